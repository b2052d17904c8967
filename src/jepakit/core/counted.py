"""Which figure of a task's result counts: what tables, cards, pages and studies show of a row, in one place."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

FIGURE_OF_TASK = {  # others: as the row says
    "rankme": "rankme", "lidar": "lidar", "segmentation": "miou", "boxes": "miou", "davis": "j_and_f",
}  # fmt: skip
NO_SHARES = ("rankme", "lidar", "r2", "mae", "spearman")  # figures that are not told in per cent
LESS_IS_BETTER = ("mae",)
_DIGITS = {"rankme": ".1f", "lidar": ".1f", "mae": ".3g"}  # of figures that are not shares; others: .3f
METRIC_NAMES = {
    "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "auroc": "AUROC", "average_precision": "average precision",
    "r2": "R²", "mae": "MAE", "spearman": "Spearman's ρ", "miou": "mIoU", "iou": "IoU",
    "j_and_f": "J&F", "rankme": "RankMe", "lidar": "LiDAR",
}  # fmt: skip


class Counted(NamedTuple):
    """A metric, its value and its 95 % interval; NaN where there is none."""

    metric: str
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, metric: str, figure: Mapping[str, Any], value: str = "value") -> "Counted":
        """Of a mapping with `value` (or called otherwise), low and high; NaN for what is None or not there."""
        return cls(metric, *(number(figure.get(key)) for key in (value, "low", "high")))

    @property
    def share(self) -> bool:
        """Whether it is told in per cent."""
        return self.metric not in NO_SHARES

    def told(self, figure: float) -> str:
        """A value of this metric in words: 93.1 for a share, 0.931 for R² or a rank correlation."""
        if not math.isfinite(figure):
            return "–"
        return f"{100 * figure:.1f}" if self.share else f"{figure:{_DIGITS.get(self.metric, '.3f')}}"


def counted_figure(task: str, row: Mapping[str, Any], metric: str | None = None) -> Counted:
    """The figure of a row that counts, or another `metric` of it: accuracy where the row (of an older file) says nothing."""
    name = metric or row.get("counts") or FIGURE_OF_TASK.get(task, "accuracy")
    beside = row.get("metrics")
    if isinstance(beside, Mapping) and isinstance(beside.get(name), Mapping):
        return Counted.of(name, beside[name])
    return Counted.of(name, row, name)


def number(value: object) -> float:
    """The value as a float; NaN for anything that is none."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of hundreds of digits
        return math.nan
