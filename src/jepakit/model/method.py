"""A method of the family as one frozen value: a part for each axis. The papers are lines at the end."""

from typing import Any, Literal

from pydantic import Field, model_validator

from jepakit.core.settings import Settings
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.losses import Loss
from jepakit.model.masking.masks import Masking, MultiBlock
from jepakit.model.predictor import PredictorConfig
from jepakit.model.regularizers import Regularizer
from jepakit.model.targets import FeatureTargets, Target, require_layers
from jepakit.model.vit import ViTConfig

Which = Literal["target_encoder", "encoder"]


class Method(Settings):
    """One method: masks, conditioning, target, loss, regulariser, encoder, predictor.

    Each field is a settings object that also does what it names.
    """

    masking: Masking = Field(default_factory=MultiBlock)
    conditioning: PositionConditioning | None = None
    target: Target = Field(default_factory=FeatureTargets)
    loss: Loss = Field(
        "smooth_l1", description="between predictions and targets: the released code's smooth L1, the paper's l2, l1 or cosine"
    )
    regularizer: Regularizer | None = None
    encoder: ViTConfig = Field(default_factory=ViTConfig)
    predictor: PredictorConfig = Field(default_factory=PredictorConfig)

    @property
    def which(self) -> Which:
        """Which of the two encoders is the run's: judged, loaded and exported. The average where it gives the targets; with
        pixels or a frozen teacher's features as targets it is not used, so the encoder."""
        return "target_encoder" if self.target.learned else "encoder"

    @model_validator(mode="after")
    def _layers_are_there(self) -> "Method":
        if self.target.learned:  # else they are the teacher's
            require_layers(self.target.layers, self.encoder.depth, "the encoder")
        return self

    @model_validator(mode="after")
    def _one_projector(self) -> "Method":
        r, target = self.regularizer, self.target
        wide = target.teacher_width if target.kind == "features" else None  # of a teacher that was looked at
        other = "pixels" if target.kind == "pixels" else f"a teacher's {wide} features"
        fits = target.kind == "features" and wide in (None, self.encoder.width)
        if r and r.projector and r.tensor == "context_pooled" and not fits:
            raise ValueError(
                f"regularizer.tensor=context_pooled projects the encoder's features, but the projector is as wide as what is "
                f"predicted: {other}; set regularizer.projector=[]"
            )
        return self


def encoder_label(which: Which) -> str:
    """What tables call it: 'target encoder' or 'encoder'."""
    return which.replace("_", " ")


# What sets the methods apart; the rest (masks, sizes) is common to all. The one place where their names mean something.
METHODS: dict[str, dict[str, Any]] = {
    "ijepa": {"conditioning": None, "regularizer": None, "target": {"kind": "features"}},
    "ec_ijepa": {"conditioning": {}, "regularizer": None, "target": {"kind": "features"}},
    "c_jepa": {"conditioning": None, "regularizer": {"kind": "vicreg"}, "target": {"kind": "features"}},
    "ec_c_jepa": {"conditioning": {}, "regularizer": {"kind": "vicreg"}, "target": {"kind": "features"}},
    "mae_pixels": {"conditioning": None, "regularizer": None, "target": {"kind": "pixels"}},
}


def method_name(method: Method) -> str | None:
    """The name of the method that has these parts, if it is one of the family (with SIGReg or VISReg none is)."""
    parts = method.conditioning is not None, method.regularizer and method.regularizer.kind, method.target.kind
    for name, p in METHODS.items():
        if parts == (p["conditioning"] is not None, p["regularizer"] and p["regularizer"]["kind"], p["target"]["kind"]):
            return name
    return None


IJEPA, EC_IJEPA, C_JEPA, EC_C_JEPA, MAE_PIXELS = (Method.model_validate(parts) for parts in METHODS.values())
