"""What is predicted: features of the target encoder (I-JEPA, section 3) or of a frozen teacher (SALT), or pixels (MAE).

S target tokens, D encoder width, C channels.
"""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.core.parallel import mean_and_variance
from jepakit.core.settings import Settings


class FeatureTargets(Settings):
    """The target encoder's output, normalised over features (layer), over the batch (batch), or as it is (none).

    With `teacher`, a frozen encoder's in its place (arXiv 2509.24317, stage 2). With `pixels_first`, the run begins with
    pixels as targets; the encoder that they made is then copied into the target encoder.
    """

    kind: Literal["features"] = "features"
    norm: Literal["layer", "batch", "none"] = Field(
        "layer",
        description="over features (layer; released code), each feature over the tokens of a micro-batch (batch), or none",
    )

    pixels_first: float = Field(
        0, ge=0, description="updates (or below 1: share of the run) with pixels as targets, before features are predicted"
    )
    kept: tuple[Literal["predictor", "moments", "schedule"], ...] = Field(
        (), description="what else than the encoder's weights outlives pixels_first; the schedule else begins anew"
    )
    teacher: str | None = Field(
        None,
        description="weights of a frozen encoder whose features are the targets; all that `jepakit.load` reads",
    )
    teacher_width: int | None = Field(None, ge=1, description="features of the teacher; read off its weights")
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="blocks, from 0, of the encoder that makes the targets whose outputs side by side are the target; none: "
        "that encoder's output",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "FeatureTargets":
        if self.teacher and self.pixels_first:
            raise ValueError("a frozen teacher needs no pixels_first: set one of the two")
        if self.kept and not self.pixels_first:
            raise ValueError("kept says what outlives pixels_first: set that too, or leave target.kept out")
        if self.teacher_width and not self.teacher:
            raise ValueError(
                "teacher_width is read off a teacher's weights: set target.teacher, or leave target.teacher_width out"
            )
        if self.layers and list(self.layers) != sorted({*self.layers}):
            raise ValueError(f"target.layers names each block once, from the first to the last: {sorted({*self.layers})}")
        return self

    @property
    def levels(self) -> int:
        """How many layers a target is made of (Bootleg, arXiv 2603.15553; V-JEPA 2.1, arXiv 2603.14482)."""
        return len(self.layers or (-1,))

    @property
    def learned(self) -> bool:
        """Whether targets move with the encoder: then its average makes them, and they can collapse."""
        return self.teacher is None

    @field_validator("norm", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """On the command line and in YAML, none is read as no value: take it for the word."""
        return "none" if value is None else value

    def width(self, encoder_width: int, patch_pixels: int) -> int:
        """Features of a target: of all its levels."""
        return (self.teacher_width or encoder_width) * self.levels

    def normalise(self, features: Tensor) -> Tensor:
        """(tokens, levels * D) -> (tokens, levels * D), each level by itself, without learned scale; batch: of all processes."""
        if self.norm == "layer":
            by_level = features.unflatten(-1, (self.levels, -1))
            return F.layer_norm(by_level, by_level.shape[-1:]).flatten(-2)
        if self.norm == "batch":
            mean, variance = mean_and_variance(features)
            return (features - mean) / (variance + 1e-5).sqrt()
        return features


class PixelTargets(Settings):
    """The target patches' own pixels, each patch normalised as in MAE (arXiv 2111.06377, section 3)."""

    kind: Literal["pixels"] = "pixels"
    norm: bool = Field(True, description="zero mean and unit variance in each patch")
    learned: ClassVar[bool] = False  # they do not move with the encoder
    layers: ClassVar[None] = None
    levels: ClassVar[int] = 1

    def width(self, encoder_width: int, patch_pixels: int) -> int:
        return patch_pixels

    def normalise(self, patches: Tensor) -> Tensor:
        """(S, C * p^2) -> (S, C * p^2)."""
        if not self.norm:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def require_layers(layers: tuple[int, ...] | None, depth: int, whose: str) -> None:
    """Raises UserError unless an encoder of that depth has these layers."""
    if layers and layers[-1] >= depth:
        raise UserError(f"target.layers names block {layers[-1]}, and {whose} has {depth}: from 0 to {depth - 1}")


Target = Annotated[FeatureTargets | PixelTargets, Field(discriminator="kind")]
