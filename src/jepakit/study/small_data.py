"""The study `small-data`: what keeps a JEPA from collapsing, and makes it good, on few and small images.

Levers one after the other against the demo's settings (or `recipe=NAME`). Where the base's own scale matters (rates, widths,
lengths) values are multiples of the base's.
"""

from dataclasses import replace
from typing import Any

from jepakit.config.config import Config
from jepakit.study.cells import Change, Lever, quarter_ends

RECIPE = "demo"
# The part that the VICReg levers turn, where the base has none: as in the first trials on the emoji.
VICREG: Change = {
    "regularizer.kind": "vicreg",
    "regularizer.tensor": "context_pooled",
    "regularizer.weight": 0.04,
    "regularizer.sim": 0.0,
    "regularizer.std": 25.0,
    "regularizer.cov": 1.0,
    "regularizer.projector": [],
}


def levers(base: Config) -> tuple[Lever, ...]:
    """All levers, with the values that are tried; why these stands above each."""
    return (*_optimisation(base), *_masks(), *_architecture(base), *_regularisers(), *_vicreg())


def _lever(name: str, settings: str, *values: Any) -> Lever:
    """A lever of one setting; of several, with a space between them, each value is a tuple that has one for each."""
    keys = settings.split()
    rows = values if len(keys) > 1 else [(value,) for value in values]
    return Lever(name, tuple(dict(zip(keys, row, strict=True)) for row in rows))


def _optimisation(base: Config) -> tuple[Lever, ...]:
    o = base.optim
    momenta = ((0.9, 0.999), (0.97, 0.999), (0.99, 0.999), (0.996, 1.0), (0.999, 1.0), (0.99, 0.99), (0.996, 0.996), (0.0, 0.0))
    decays = ((0.0, 0.0), (0.04, 0.04), (0.04, 0.4), (0.05, 0.05), (0.2, 0.2))
    rates = [
        (_short(rate * o.lr), _short(rate * o.start_lr), max(2, int(batch * o.batch_size)))
        for batch in (0.5, 1, 2)
        for rate in (0.3, 1, 3)
    ]
    return (
        # I-JEPA: .996 to 1, an average over hundreds of steps; V-JEPA 2: constant; none as control
        _lever("ema", "optim.ema_momentum optim.final_ema_momentum", *momenta),
        # small sets need another noise of the gradient; start_lr keeps its share of lr
        _lever("lr-batch", "optim.lr optim.start_lr optim.batch_size", *rates),
        # shares of the run; I-JEPA's are 15 of 600 epochs and 40 of 300
        Lever("warmup", _warmups(base, (0.0, 0.025, 0.1, 0.25, 0.5))),
        # I-JEPA table 13: .04 to .4, or .05 throughout
        _lever("weight-decay", "optim.weight_decay optim.final_weight_decay", *decays),
        # paper: l2; released code: smooth_l1; V-JEPA: l1; data2vec's kin: cosine
        _lever("loss", "loss", "smooth_l1", "l2", "l1", "cosine"),
    )


def _warmups(base: Config, shares: tuple[float, ...]) -> tuple[Change, ...]:
    o = base.optim
    if o.steps:
        return tuple({"optim.warmup_steps": round(share * o.steps)} for share in shares)
    free: Change = {} if o.warmup_steps is None else {"optim.warmup_steps": None}
    return tuple({"optim.warmup_epochs": _short(share * o.epochs), **free} for share in shares)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _masks() -> tuple[Lever, ...]:
    targets = ([0.05, 0.1], [0.075, 0.2], [0.1, 0.2], [0.15, 0.2], [0.2, 0.25], [0.2, 0.3], [0.3, 0.4])
    return (
        # I-JEPA table 8; on 8x8 patches .15 is ten of them, .05 three
        _lever("target-scale", "masking.target_scale", *targets),
        # I-JEPA table 10
        _lever("targets", "masking.targets", 1, 2, 3, 4, 6),
        # I-JEPA table 9
        _lever("context-scale", "masking.context_scale", [0.4, 1.0], [0.65, 1.0], [0.75, 1.0], [0.85, 1.0], [1.0, 1.0]),
        # released: 10 of 196 patches; a few patches of a small grid tell little
        _lever("min-keep", "masking.min_keep", 1, 3, 6, 10, 14),
        # data2vec 2.0: several masks share a pass of the target encoder
        _lever("draws", "masking.draws", 1, 2, 4),
        # released .3 to 1; the only augmentation, so perhaps too weak or too strong for few images
        _lever("crop-scale", "images.crop_scale", [0.08, 1.0], [0.2, 1.0], [0.3, 1.0], [0.6, 1.0], [1.0, 1.0]),
        # MIM-JEPA: the target encoder sees a crop of its own
        _lever("target-crop", "images.target_crop", "same", "own"),
        # images without a left and a right, or an up
        _lever("symmetry", "images.symmetry", None, "mirror", "d4"),
        # target blocks rather on the foreground; an OCT project: a purer foreground did worse
        _lever("prior", "masking.prior masking.bias", ("contrast", 0.25), ("contrast", 0.5), ("contrast", 1.0)),
    )


def _architecture(base: Config) -> tuple[Lever, ...]:
    heads = base.predictor.heads or base.encoder.heads
    widths = [max(heads, heads * round(share * base.encoder.width / heads)) for share in (0.25, 0.5, 0.75, 1)]
    informed = ((True, True), (True, False), (False, True))
    conditioning = _lever("conditioning", "conditioning.encoder conditioning.target_encoder", *informed)
    return (
        # I-JEPA table 12; SCOTT, on small sets: 3
        _lever("predictor-depth", "predictor.depth", 1, 2, 3, 4, 6),
        # I-JEPA table 14: narrower than the encoder is better
        _lever("predictor-width", "predictor.width", *widths),
        # released code: layer; data2vec 2.0: over a batch; paper: none
        _lever("target-norm", "target.norm", "layer", "batch", "none"),
        # Bootleg, V-JEPA 2.1: every quarter of the blocks
        _lever("target-layers", "target.layers", quarter_ends(base.encoder.depth)),
        # StoP: .25
        _lever("stop", "predictor.stop", 0.0, 0.1, 0.25, 0.5),
        # EC-IJEPA: of both encoders, of one, of none
        replace(conditioning, values=({"conditioning": None}, *conditioning.values)),
    )


def _regularisers() -> tuple[Lever, ...]:
    """No regulariser, VICReg as the small recipes have it, SIGReg around LeJEPA's weight .05, and VISReg."""
    sigreg, visreg = ({"regularizer.kind": kind, "regularizer.tensor": "context_pooled"} for kind in ("sigreg", "visreg"))
    values = (
        {"regularizer": None},
        VICREG,
        *({**sigreg, "regularizer.weight": weight} for weight in (0.002, 0.01, 0.05, 0.2)),
        {**sigreg, "regularizer.weight": 0.05, "regularizer.directions": 1024},
        *({**sigreg, "regularizer.tensor": "pred_blocks", "regularizer.weight": weight} for weight in (0.01, 0.05)),
        *({**visreg, "regularizer.weight": weight} for weight in (0.003, 0.03, 0.3)),
    )
    return (Lever("regulariser", values),)


def _vicreg() -> list[Lever]:
    wide = [512, 512, 512]
    readings: tuple[tuple[str, float, list[int]], ...] = (
        *(("context_pooled", 0.0, []), ("context_pooled", 25.0, []), ("pred_blocks", 0.0, []), ("pred_blocks", 25.0, [])),
        *(("pred_pairs", 25.0, []), ("pred_blocks", 25.0, wide), ("pred_pairs", 25.0, wide)),
    )
    found = (
        # the sources' readings of C-JEPA, with its similarity term and without; a projector, as in a public code
        _lever("vicreg-tensor", "regularizer.tensor regularizer.sim regularizer.projector", *readings),
        # the C-JEPA paper's .001, and up to where it outweighs the prediction
        _lever("vicreg-weight", "regularizer.weight", 0.001, 0.003, 0.01, 0.04, 0.1),
        # VICReg's 25
        _lever("vicreg-std", "regularizer.std", 5.0, 12.5, 25.0, 50.0),
        # VICReg's 1; none as control
        _lever("vicreg-cov", "regularizer.cov", 0.0, 0.25, 1.0, 4.0, 16.0),
    )
    return [replace(lever, regulariser=VICREG) for lever in found]
