"""Scores of pixel labels: confusion matrices, intersection over union, mean IoU with its bootstrap interval.

K classes, n test images.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core import rng
from jepakit.core.compare import exact
from jepakit.evaluation.dense.pairs import IGNORED

RESAMPLES = 1000
Counts = NDArray[np.int64]


def confusion(predicted: NDArray[Any], truth: NDArray[Any], classes: int, ignore: int = IGNORED) -> Counts:
    """Pixels by (truth, prediction): two arrays of one shape, classes 0..K-1 -> (K, K). Truth `ignore` is left out."""
    known = truth != ignore
    t, p = truth[known].astype(np.int64), predicted[known].astype(np.int64)
    if t.size and (min(t.min(), p.min()) < 0 or max(t.max(), p.max()) >= classes):
        raise ValueError(f"labels must be 0..{classes - 1}, or {ignore} in the truth")
    return np.bincount(t * classes + p, minlength=classes * classes).reshape(classes, classes)


def iou(confusion: Counts) -> NDArray[np.float64]:
    """Intersection over union of each class (K,); NaN where no pixel has it, in truth or prediction."""
    return _iou(class_pixels(confusion))


def miou(confusion: Counts) -> float:
    """Mean IoU over the classes that occur in truth or prediction, as mmsegmentation's; NaN without a pixel."""
    return _mean_iou(class_pixels(confusion))


def pixel_accuracy(confusion: Counts) -> float:
    """Share of the pixels that have a label and are predicted right."""
    return float(np.trace(confusion) / confusion.sum())


def resamples(n: int, seed: int) -> NDArray[np.float64]:
    """How often each of n units is drawn in each bootstrap sample: (RESAMPLES, n)."""
    generator = np.random.Generator(np.random.Philox(key=int(rng.keys(seed, "bootstrap")[0])))
    return generator.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)


def class_pixels(confusion: Counts) -> Counts:
    """What IoU needs, (3, K): pixels of each class that are right, that the truth has, that the prediction has."""
    return np.stack([np.diagonal(confusion), confusion.sum(1), confusion.sum(0)])


def _iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    correct, truth, predicted = counts
    union = truth + predicted - correct
    return np.where(union > 0, correct / np.maximum(union, 1), np.nan)


def _mean_iou(counts: NDArray[Any]) -> float:
    values = _iou(counts)
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def resampled_miou(counts: Sequence[NDArray[Any]], seed: int) -> NDArray[np.float64]:
    """Mean IoU in each bootstrap sample (RESAMPLES,) of images whose pixels are counted, (3, K) each, as `class_pixels` does."""
    drawn = resamples(len(counts), seed) @ np.stack(counts).reshape(len(counts), -1)
    return np.array([_mean_iou(each) for each in drawn.reshape(RESAMPLES, 3, -1)])


def miou_row(name: str, classes: Sequence[str], found: Iterable[Counts], seed: int) -> dict[str, Any]:
    """The scores of the summed confusion matrices of test images, with the names of the classes."""
    total, counts = np.zeros((1, 1), np.int64), []
    for one in found:
        total = total + one
        counts.append(class_pixels(one))
    low, high = np.nanquantile(resampled_miou(counts, seed), (0.025, 0.975))
    if low == high:  # a single image, or all alike
        low, high = exact(miou(total), len(counts))
    scores = {"miou": miou(total), "low": float(low), "high": float(high), "pixel_accuracy": pixel_accuracy(total)}
    per_class = [None if np.isnan(v) else float(v) for v in iou(total)]
    having = (np.stack(counts)[:, 1] > 0).sum(0)
    return {"name": name, **scores, "classes": list(classes), "per_class": per_class, "images_with": having.tolist()}
