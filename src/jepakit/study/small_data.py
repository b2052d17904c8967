"""The study `small-data`: what keeps a JEPA from collapsing, and makes it good, on few and small images.

Levers one after the other against the demo's settings (or `recipe=NAME`). Where the base's own scale matters (rates, widths,
lengths) values are multiples of the base's.
"""

from jepakit.config.config import Config
from jepakit.study.cells import Change, Lever

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
    """All levers, with the values that are tried."""
    return (*_optimisation(base), *_masks(), *_architecture(base), *_regularisers())


def _optimisation(base: Config) -> tuple[Lever, ...]:
    o = base.optim
    momenta = ((0.9, 0.999), (0.97, 0.999), (0.99, 0.999), (0.996, 1.0), (0.999, 1.0), (0.99, 0.99), (0.996, 0.996), (0.0, 0.0))
    decays = ((0.0, 0.0), (0.04, 0.04), (0.04, 0.4), (0.05, 0.05), (0.2, 0.2))
    rates = [(rate, batch) for batch in (0.5, 1, 2) for rate in (0.3, 1, 3)]
    return (
        Lever(
            "ema",
            "I-JEPA: .996 to 1, an average over hundreds of steps; V-JEPA 2: constant; none as control",
            _together(("optim.ema_momentum", "optim.final_ema_momentum"), momenta),
        ),
        Lever(
            "lr-batch",
            "small sets need another noise of the gradient; start_lr keeps its share of lr",
            tuple(
                {
                    "optim.lr": _short(rate * o.lr),
                    "optim.start_lr": _short(rate * o.start_lr),
                    "optim.batch_size": max(2, int(batch * o.batch_size)),
                }
                for rate, batch in rates
            ),
        ),
        Lever(
            "warmup",
            "shares of the run; I-JEPA's are 15 of 600 epochs and 40 of 300",
            _warmups(base, (0.0, 0.025, 0.1, 0.25, 0.5)),
        ),
        Lever(
            "weight-decay",
            "I-JEPA table 13: .04 to .4, or .05 throughout",
            _together(("optim.weight_decay", "optim.final_weight_decay"), decays),
        ),
        Lever(
            "loss",
            "paper: l2; released code: smooth_l1; V-JEPA: l1; data2vec's kin: cosine",
            _each("loss", "smooth_l1", "l2", "l1", "cosine"),
        ),
    )


def _masks() -> tuple[Lever, ...]:
    scales = ([0.05, 0.1], [0.075, 0.2], [0.1, 0.2], [0.15, 0.2], [0.2, 0.25], [0.2, 0.3], [0.3, 0.4])
    return (
        Lever(
            "target-scale", "I-JEPA table 8; on 8x8 patches .15 is ten of them, .05 three", _each("masking.target_scale", *scales)
        ),
        Lever("targets", "I-JEPA table 10", _each("masking.targets", 1, 2, 3, 4, 6)),
        Lever(
            "context-scale",
            "I-JEPA table 9",
            _each("masking.context_scale", [0.4, 1.0], [0.65, 1.0], [0.75, 1.0], [0.85, 1.0], [1.0, 1.0]),
        ),
        Lever(
            "min-keep",
            "released: 10 of 196 patches; a few patches of a small grid tell little",
            _each("masking.min_keep", 1, 3, 6, 10, 14),
        ),
        Lever("draws", "data2vec 2.0: several masks share a pass of the target encoder", _each("masking.draws", 1, 2, 4)),
        Lever(
            "crop-scale",
            "released .3 to 1; the only augmentation, so perhaps too weak or too strong for few images",
            _each("images.crop_scale", [0.08, 1.0], [0.2, 1.0], [0.3, 1.0], [0.6, 1.0], [1.0, 1.0]),
        ),
        Lever("target-crop", "MIM-JEPA: the target encoder sees a crop of its own", _each("images.target_crop", "same", "own")),
    )


def _architecture(base: Config) -> tuple[Lever, ...]:
    heads = base.predictor.heads or base.encoder.heads
    widths = [max(heads, heads * round(share * base.encoder.width / heads)) for share in (0.25, 0.5, 0.75, 1)]
    return (
        Lever("predictor-depth", "I-JEPA table 12; SCOTT, on small sets: 3", _each("predictor.depth", 1, 2, 3, 4, 6)),
        Lever("predictor-width", "I-JEPA table 14: narrower than the encoder is better", _each("predictor.width", *widths)),
        Lever(
            "target-norm",
            "released code: layer; data2vec 2.0: over a batch; paper: none",
            _each("target.norm", "layer", "batch", "none"),
        ),
        Lever(
            "conditioning",
            "EC-IJEPA: of both encoders, of one, of none",
            (
                {"conditioning": None},
                *_together(("conditioning.encoder", "conditioning.target_encoder"), ((True, True), (True, False), (False, True))),
            ),
        ),
    )


def _regularisers() -> tuple[Lever, ...]:
    sigreg: Change = {"regularizer.kind": "sigreg", "regularizer.tensor": "context_pooled"}
    return (
        Lever(
            "regulariser",
            "none; VICReg as the small recipes have it; SIGReg around LeJEPA's weight .05",
            (
                {"regularizer": None},
                VICREG,
                *({**sigreg, "regularizer.weight": weight} for weight in (0.002, 0.01, 0.05, 0.2)),
                {**sigreg, "regularizer.weight": 0.05, "regularizer.directions": 1024},
                *({**sigreg, "regularizer.tensor": "pred_blocks", "regularizer.weight": weight} for weight in (0.01, 0.05)),
            ),
        ),
        *_vicreg(),
    )


def _vicreg() -> tuple[Lever, ...]:
    readings = ("regularizer.tensor", "regularizer.sim", "regularizer.projector")
    return (
        Lever(
            "vicreg-tensor",
            "the sources' readings of C-JEPA, with its similarity term and without; a projector, as in a public code",
            _together(
                readings,
                (
                    ("context_pooled", 0.0, []),
                    ("context_pooled", 25.0, []),
                    ("pred_blocks", 0.0, []),
                    ("pred_blocks", 25.0, []),
                    ("pred_pairs", 25.0, []),
                    ("pred_blocks", 25.0, [512, 512, 512]),
                    ("pred_pairs", 25.0, [512, 512, 512]),
                ),
            ),
            regulariser=VICREG,
        ),
        Lever(
            "vicreg-weight",
            "the C-JEPA paper's .001, and up to where it outweighs the prediction",
            _each("regularizer.weight", 0.001, 0.003, 0.01, 0.04, 0.1),
            regulariser=VICREG,
        ),
        Lever("vicreg-std", "VICReg's 25", _each("regularizer.std", 5.0, 12.5, 25.0, 50.0), regulariser=VICREG),
        Lever(
            "vicreg-cov", "VICReg's 1; none as control", _each("regularizer.cov", 0.0, 0.25, 1.0, 4.0, 16.0), regulariser=VICREG
        ),
    )


def _warmups(base: Config, shares: tuple[float, ...]) -> tuple[Change, ...]:
    o = base.optim
    if o.steps:
        return _each("optim.warmup_steps", *(round(share * o.steps) for share in shares))
    free: Change = {} if o.warmup_steps is None else {"optim.warmup_steps": None}
    return tuple({"optim.warmup_epochs": _short(share * o.epochs), **free} for share in shares)


def _each(key: str, *values: object) -> tuple[Change, ...]:
    return tuple({key: value} for value in values)


def _together(keys: tuple[str, ...], rows: tuple[tuple[object, ...], ...]) -> tuple[Change, ...]:
    return tuple(dict(zip(keys, row, strict=True)) for row in rows)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
