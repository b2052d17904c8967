"""The papers' tables and figures as studies, and what belongs beside them: lists of points, with the numbers published.

Sources: I-JEPA, arXiv 2301.08243; EC-IJEPA, arXiv 2410.10773; C-JEPA, arXiv 2410.19560; SALT, arXiv 2509.24317; Bootleg,
arXiv 2603.15553. I-JEPA's ablations are linear probes on 1 % of ImageNet.
"""

from typing import Any

from jepakit.config.config import Config
from jepakit.study.cells import Change, Look, quarter_ends
from jepakit.study.panels import SNAPSHOTS, Panel, PaperStudy, Point

_I: Change = {"method": "ijepa"}
_EC: Change = {"method": "ec_ijepa"}
_C: Change = {"method": "c_jepa"}
_PIXELS: Change = {"method": "mae_pixels"}
_B16 = "ViT-B/16, 300 epochs, 1 % of ImageNet"
_FIRST = 0.25  # of the run, with pixels as targets: 800 of 3,000 updates in the first trials


def _conditioned(base: Config) -> Change:
    """The base's method with conditioning."""
    return {"method": "ec_c_jepa"} if base.regularizer else _EC


def _methods(base: Config) -> tuple[Panel, ...]:
    both = Point("EC-C-JEPA", {"method": "ec_c_jepa"})
    five = (Point("I-JEPA", _I), Point("EC-IJEPA", _EC), Point("C-JEPA", _C), both, Point("pixels", _PIXELS))
    ec_1 = (
        Point("I-JEPA", _I, "74.8 linear, RankMe 488.6, LiDAR 385.2"),
        Point("EC-IJEPA", _EC, "76.7 linear, RankMe 533.0, LiDAR 486.5"),
    )
    ec_3 = (
        Point("I-JEPA", _I, "74.5 count, 65.3 distance, C10 92.5, C100 75.0, EuroSAT 96.7, Food101 75.3, SUN397 69.5"),
        Point("EC-IJEPA", _EC, "75.2 count, 60.0 distance, C10 93.4, C100 76.7, EuroSAT 95.7, Food101 76.5, SUN397 71.2"),
    )
    c_1 = Point("I-JEPA", _I, "72.9 linear, 83.5 fine-tuned"), Point("C-JEPA", _C, "73.7 linear, 84.5 fine-tuned")
    return (
        Panel("methods", five),
        Panel("ec-tables-1-2", ec_1, "EC-IJEPA, tables 1 and 2: ImageNet, ViT-L/16, 600 epochs"),
        Panel("ec-table-3", ec_3, "EC-IJEPA, table 3: transfer, ViT-L/16"),
        Panel("c-table-1", c_1, "C-JEPA, table 1: ImageNet, ViT-B/16, 600 epochs; I-JEPA's as that paper cites it"),
    )


_SCALES = (([0.85, 1.0], "54.2"), ([0.75, 1.0], "49.3"), ([0.65, 1.0], "47.1"), ([0.4, 1.0], "31.2"))


def _context_points(more: Change, published: bool) -> tuple[Point, ...]:
    return tuple(
        Point(f"({low:g}, {high:g})", {**more, "masking.context_scale": [low, high]}, text if published else "")
        for (low, high), text in _SCALES
    )


def _context_scale(base: Config) -> tuple[Panel, ...]:
    return (
        Panel("plain", _context_points({}, True), f"I-JEPA, table 9: {_B16}"),
        Panel(
            "conditioned",
            _context_points(_conditioned(base), False),
            "EC-IJEPA, figure 2 (ViT-L/16): drawn, no values: flatter than I-JEPA's",
        ),
    )


def _sample_efficiency(base: Config) -> tuple[Panel, ...]:
    shares = [(n + 1) / SNAPSHOTS for n in range(SNAPSHOTS)]
    drawn = "EC-IJEPA, figure 3 (ViT-L/16): drawn, no values: EC-IJEPA above at every epoch"
    named: tuple[tuple[str, Change, str], ...] = (("ijepa", _I, drawn), ("ec-ijepa", _EC, drawn), ("c-jepa", _C, ""))
    return tuple(
        Panel(name, tuple(Point(f"{share:.0%} of the run", change, share=share) for share in shares), source)
        for name, change, source in named
    )


def _squares(kernel: int, stride: int) -> tuple[str, ...]:
    return f"conditioning.infer_kernel={kernel}", f"conditioning.infer_stride={stride}"


def _pooling(base: Config) -> tuple[Panel, ...]:
    ec = _conditioned(base)
    squares = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (8, 8))
    inference = (
        Point("4/4, as trained", ec, "best"),
        *(Point(f"{k}/{s}", ec, "drops" if k == 1 else "", _squares(k, s)) for k, s in squares),
        Point("off", ec, evaluate=("conditioning.inference=false",)),
    )
    training = (
        Point("both encoders", ec),
        Point("encoder only", {**ec, "conditioning.target_encoder": False}),
        Point("target encoder only", {**ec, "conditioning.encoder": False}),
        Point("neither", {}),
    )
    return (
        Panel("inference", inference, "EC-IJEPA, figure 4 (kernel/stride, ViT-L/16): drawn, no values"),
        Panel("training", training),
    )


def _masking(base: Config) -> tuple[Panel, ...]:
    strategies = (
        Point("multi_block", {}, "54.2"),
        Point("quadrants", {"masking.kind": "quadrants"}, "15.5"),
        Point("block", {"masking.kind": "block"}, "20.2"),
        Point("random", {"masking.kind": "random"}, "17.6"),
    )
    scales = (
        ([0.15, 0.2], "54.2"),
        ([0.075, 0.2], "19.2"),
        ([0.1, 0.2], "39.2"),
        ([0.125, 0.2], "42.4"),
        ([0.2, 0.25], "38.9"),
        ([0.2, 0.3], "33.6"),
    )
    targets = ((4, "54.2"), (3, "48.5"), (2, "22.0"), (1, "9.0"))
    return (
        Panel("strategy", strategies, f"I-JEPA, table 6: {_B16}"),
        Panel(
            "target-scale",
            tuple(Point(f"({low:g}, {high:g})", {"masking.target_scale": [low, high]}, text) for (low, high), text in scales),
            f"I-JEPA, table 8: {_B16}",
        ),
        Panel("context-scale", _context_points({}, True), f"I-JEPA, table 9: {_B16}"),
        Panel(
            "targets",
            tuple(Point(str(n), {"masking.targets": n}, text) for n, text in targets),
            f"I-JEPA, table 10: {_B16}",
        ),
        Panel("batch", tuple(point for batch in (0.25, 1, 4) for point in _laws(base, batch))),
    )


def _laws(base: Config, times: float) -> tuple[Point, ...]:
    """The released collator, which trims masks to the batch's shortest, and the law without that, at a batch size that is so
    many times the base's; as many images are seen."""
    o = base.optim
    size = max(2, int(times * o.batch_size))
    change: dict[str, Any] = {} if size == o.batch_size else {"optim.batch_size": size}
    if o.steps and change:
        change["optim.steps"] = max(1, round(o.steps / times))
        change |= {"optim.warmup_steps": round(o.warmup_steps / times)} if o.warmup_steps else {}
    return (
        Point(f"batches of {size}, trimmed", {**change, "masking.compat": "released"}),
        Point(f"batches of {size}, untrimmed", {**change, "masking.compat": None}),
    )


def _vicreg(base: Config) -> tuple[Panel, ...]:
    def terms(sim: float, std: float, cov: float) -> dict[str, Any]:
        return {**_C, "regularizer.sim": sim, "regularizer.std": std, "regularizer.cov": cov}

    still: Change = {"optim.ema_momentum": 0.0, "optim.final_ema_momentum": 0.0}
    return (
        Panel(
            "terms",
            (
                Point("none", _I, "63.7 linear, 82.5 fine-tuned"),
                Point("variance, covariance", terms(0.0, 25.0, 1.0), "68.3 linear, 83.2 fine-tuned"),
                Point("invariance", terms(25.0, 0.0, 0.0), "67.6 linear, 82.8 fine-tuned"),
                Point("all", terms(25.0, 25.0, 1.0), "69.5 linear, 83.6 fine-tuned"),
            ),
            "C-JEPA, table 3: ImageNet, ViT-B/16, 100 epochs",
        ),
        Panel(
            "tensor",
            tuple(
                Point(name, {**terms(25.0, 25.0, 1.0), "regularizer.tensor": name})
                for name in ("pred_blocks", "context_pooled", "pred_pairs")
            ),
        ),
        # the targets are the encoder's own output of the step, still without a gradient: another than that is not offered
        Panel(
            "averaging",
            (
                Point("I-JEPA", _I),
                Point("I-JEPA, no averaging", {**_I, **still}),
                Point("C-JEPA", terms(0.0, 25.0, 1.0)),
                Point("C-JEPA, no averaging", {**terms(0.0, 25.0, 1.0), **still}),
            ),
        ),
    )


def _targets(base: Config) -> tuple[Panel, ...]:
    every = quarter_ends(base.encoder.depth)
    first: Change = {"target.pixels_first": _FIRST}
    kept = {"nothing": [], "predictor": ["predictor"], "moments": ["moments"], "schedule": ["schedule"]}
    return (
        Panel(
            "table-7",
            (Point("last layer", {}, "66.9 after 500 epochs"), Point("pixels", _PIXELS, "40.7 after 800 epochs")),
            "I-JEPA, table 7: ViT-L/16, 1 % of ImageNet",
        ),
        Panel("layers", (Point("last layer"), Point(f"layers {every}", {"target.layers": every}))),
        # SALT: an encoder trained on pixels, frozen, as the teacher of a new student; here as long as the student's own run
        Panel("teacher", (Point("pixels", _PIXELS), Point("frozen teacher", {**_I, "loss": "l1"}, teacher="pixels"))),
        Panel(
            "pixels-first",
            (
                Point("C-JEPA", _C),
                Point("I-JEPA, pixels first", {**_I, **first}),
                *(
                    Point(f"C-JEPA, pixels first, kept: {name}", {**_C, **first, "target.kept": parts})
                    for name, parts in kept.items()
                ),
            ),
        ),
    )


def _predictor(base: Config) -> tuple[Panel, ...]:
    heads, width, depth = base.predictor.heads or base.encoder.heads, base.encoder.width, base.encoder.depth
    depths = {max(1, depth // 4): "64.0", max(1, depth // 2): "66.9", depth: ""}
    step = 4 * heads  # sines and cosines of rows and columns in each head
    widths = {max(step, step * round(share * width / step)): text for share, text in ((0.375, "70.7"), (0.5, ""), (1.0, "68.4"))}
    return (
        Panel(
            "depth",
            tuple(Point(str(n), {"predictor.depth": n}, text) for n, text in depths.items()),
            "I-JEPA, table 12: depth 6 and 12 beside 24 blocks of the encoder, 1 % of ImageNet",
        ),
        Panel(
            "width",
            tuple(Point(str(n), {"predictor.width": n}, text) for n, text in widths.items()),
            "I-JEPA, table 14: 384 and 1,024 beside the encoder's 1,024, 1 % of ImageNet",
        ),
    )


def _ema(base: Config) -> tuple[Panel, ...]:
    pairs = ((0.0, 0.0), (0.9, 0.999), (0.97, 0.999), (0.99, 0.99), (0.99, 0.999), (0.996, 1.0), (0.999, 1.0))
    points = tuple(
        Point(f"{a:g} to {b:g}", {"optim.ema_momentum": a, "optim.final_ema_momentum": b}, "used" if a == 0.996 else "")
        for a, b in pairs
    )
    return (Panel("momentum", points, "I-JEPA, appendix A.1: .996 to 1; no paper of the family varies it"),)


_OTHER_SETS = (
    Look("count", ("--data", "scenes", "--labels", "count", "--tasks", "linear")),
    Look("distance", ("--data", "scenes", "--labels", "distance", "--tasks", "linear")),
    Look("emoji", ("--data", "emoji", "--tasks", "knn,linear")),
)

PAPER_STUDIES: dict[str, PaperStudy] = {
    "methods": PaperStudy(
        "Which method gives the better frozen encoder?",
        _methods,
        "c_jepa_vitb16",
        tasks="rankme,lidar,knn,linear,low_shot",
        also=_OTHER_SETS,
    ),
    "context-scale": PaperStudy("Does conditioning make the size of the context matter less?", _context_scale),
    "sample-efficiency": PaperStudy("Which method is ahead after how much of the run?", _sample_efficiency, "c_jepa_vitl16"),
    "pooling": PaperStudy("What does conditioning do, where, and how coarsely, at inference?", _pooling),
    "masking": PaperStudy(
        "Which masks make features, and does the batch size change the task?", _masking, "ijepa_vitb16", ("optim.epochs=300",)
    ),
    "vicreg": PaperStudy("Which of VICReg's terms help, and of which tensor?", _vicreg, "c_jepa_vitb16", ("optim.epochs=100",)),
    "targets": PaperStudy("What should be predicted?", _targets, "c_jepa_vitl16", ("optim.epochs=500",)),
    "predictor": PaperStudy("How deep and how wide a predictor?", _predictor, words=("optim.epochs=500",)),
    "ema": PaperStudy("How slowly should the target encoder follow?", _ema),
}
