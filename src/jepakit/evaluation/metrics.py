"""Metrics of predictions by name, as scikit-learn defines them, for many weightings of the samples at once.

m samples, K classes or labels, S draws of training images (1 but in low-shot), R weightings: weights (m, R) say how often each
sample counts, so that ones give the value itself, and numbers of a bootstrap's draws its resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jepakit.core.counted import LESS_IS_BETTER as LESS_IS_BETTER
from jepakit.core.errors import UserError, nearest
from jepakit.data.sources import LabelKind

_Floats = NDArray[np.float64]
METRICS: dict[LabelKind, tuple[str, ...]] = {  # the first is the one that counts where none is named
    "class": ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision"),
    "multi": ("auroc", "average_precision"),
    "number": ("r2", "mae", "spearman"),
}
RANKED = ("auroc", "average_precision")


@dataclass(frozen=True)
class Predictions:
    """What a probe says of m test samples, in each of S draws.

    scores: of classes their probabilities (S, m, K), of several labels the probability of each (S, m, K), or numbers (S, m).
    predicted (S, m): places of the classes named; None where the labels are no classes.
    """

    scores: NDArray[Any]
    predicted: NDArray[np.int64] | None = None

    @classmethod
    def of_classes(cls, scores: NDArray[Any], *, logits: bool = False) -> "Predictions":
        """Of scores (m, K), or (S, m, K), of classes: the largest is named; logits become probabilities by a softmax."""
        each = scores if scores.ndim == 3 else scores[None]
        predicted = each.argmax(-1).astype(np.int64)
        if logits:
            each = np.exp(each.astype(np.float64) - each.max(-1, keepdims=True))
            each /= each.sum(-1, keepdims=True)
        return cls(each.astype(np.float32), predicted)

    @property
    def kind(self) -> LabelKind:
        """That of the labels."""
        return "class" if self.predicted is not None else "number" if self.scores.ndim == 2 else "multi"

    def correct(self, truth: NDArray[Any]) -> _Floats:
        """In what share of the draws each sample was named rightly, (m,)."""
        assert self.predicted is not None
        share: _Floats = (self.predicted == truth).mean(0)
        return share

    def grouped(self, which: NDArray[np.int64], groups: int) -> "Predictions":
        """The mean of the scores over samples of one group: which (m,) below `groups` -> a prediction for each group."""
        members = csr_matrix((np.ones(len(which)), (which, np.arange(len(which)))), (groups, len(which)))
        counts = np.asarray(members.sum(1))
        flat = self.scores.reshape(*self.scores.shape[:2], -1).astype(np.float64)
        mean = np.stack([members @ draw / counts for draw in flat]).reshape(len(flat), groups, *self.scores.shape[2:])
        return Predictions.of_classes(mean) if self.kind == "class" else Predictions(mean.astype(self.scores.dtype))


def metrics_named(words: str | Sequence[str], kind: LabelKind) -> tuple[str, ...]:
    """The metrics named in a list or with commas; none: the one that counts. Raises UserError for one that this kind has not."""
    names = tuple(word.strip() for word in (words.split(",") if isinstance(words, str) else words) if word.strip())
    for name in names:
        if name not in METRICS[kind]:
            what = {"class": "classes", "multi": "several labels at once", "number": "numbers"}[kind]
            raise UserError(f"--metric {name}: {what} are judged by {', '.join(METRICS[kind])}{nearest(name, METRICS[kind])}")
    return names or METRICS[kind][:1]


def goodness(metric: str, predictions: Predictions, truth: NDArray[Any]) -> float:
    """A metric's value, the larger the better: what settings are chosen by. -inf where it says nothing."""
    value = float(weighted(predictions, truth, np.ones((len(truth), 1)), [metric])[metric][0])
    return -np.inf if np.isnan(value) else -value if metric in LESS_IS_BETTER else value


def weighted(predictions: Predictions, truth: NDArray[Any], weights: _Floats, names: Sequence[str]) -> dict[str, _Floats]:
    """Each metric (R,), the mean over draws; truth (m,) places of classes, or numbers, or (m, K) labels 0, 1, NaN.

    NaN where a weighting leaves nothing to judge by: no class has samples of it and others, or all numbers are one.
    """
    found: dict[str, list[_Floats]] = {name: [] for name in names}
    for draw in range(len(predictions.scores)):
        scores = predictions.scores[draw]
        if predictions.kind == "number":
            values = _of_numbers(scores, truth, weights, names)
        else:
            values = {}
            if predictions.predicted is not None:
                counts = class_counts(predictions.predicted[draw], truth, weights, scores.shape[1])
                values = _of_counts(counts, weights)
            if {*names} & {*RANKED}:
                values |= {name: _mean(each) for name, each in ranked(scores, truth, weights).items()}
        for name in names:
            found[name].append(values[name])
    return {name: np.mean(each, axis=0) for name, each in found.items()}


def class_counts(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], weights: _Floats, classes: int
) -> tuple[_Floats, _Floats, _Floats]:
    """Of each class (K, R): samples named rightly, samples of it, samples named so."""

    def per_class(values: NDArray[np.int64], counts: NDArray[Any]) -> _Floats:
        matrix = csr_matrix((counts.astype(np.float64), (values, np.arange(len(values)))), (classes, len(values)))
        return matrix @ weights  # type: ignore[no-any-return]

    ones = np.ones(len(truth))
    return per_class(truth, predicted == truth), per_class(truth, ones), per_class(predicted, ones)


def class_confusion(predictions: Predictions, truth: NDArray[np.int64]) -> _Floats:
    """How many samples of each class (rows) were named each class (columns), (K, K): the mean over draws."""
    assert predictions.predicted is not None
    k, draws = predictions.scores.shape[2], len(predictions.predicted)
    pairs = (truth * k + predictions.predicted).ravel()
    table: _Floats = np.bincount(pairs, minlength=k * k).reshape(k, k) / draws
    return table


def ranked(scores: NDArray[Any], truth: NDArray[Any], weights: _Floats) -> dict[str, _Floats]:
    """AUROC and average precision of each class against the rest, or of each label, (K, R); samples without it are left out.

    Ties count half in AUROC; precision is taken where a tie ends (scikit-learn's `average_precision_score`).
    """
    k, r = scores.shape[1], weights.shape[1]
    auroc, precision = np.full((k, r), np.nan), np.full((k, r), np.nan)
    for c in range(k):
        positive = truth == c if truth.ndim == 1 else truth[:, c] == 1
        known = np.arange(len(truth)) if truth.ndim == 1 else np.flatnonzero(~np.isnan(truth[:, c]))
        if positive.any() and len(known):
            auroc[c], precision[c] = _ranked_one(scores[:, c], positive, known, weights)
    return {"auroc": auroc, "average_precision": precision}


def _ranked_one(
    scores: NDArray[Any], positive: NDArray[np.bool_], known: NDArray[np.int64], weights: _Floats
) -> tuple[_Floats, _Floats]:
    """The two of one class (R,), from sums of weights over stretches of the ranking: each tie with a positive, and between."""
    order = known[np.argsort(-scores[known], kind="stable")]
    value, is_positive = scores[order], positive[order]
    begins = np.flatnonzero(np.append(True, value[1:] != value[:-1]))  # of ties, most of one sample
    ends = np.append(begins[1:], len(order))
    has = np.add.reduceat(is_positive.astype(np.int64), begins) > 0
    edges = np.unique(np.concatenate([[0], begins[has], ends[has], [len(order)]]))
    stretch = csr_matrix((np.ones(len(order)), order, edges), (len(edges) - 1, len(weights))) @ weights
    at = np.searchsorted(edges, begins[has])  # the stretches that are ties with positives
    which = np.cumsum(np.isin(np.arange(len(edges) - 1), at)) - 1
    of_sample = which[np.searchsorted(edges, np.flatnonzero(is_positive), side="right") - 1]
    rows = (np.ones(len(of_sample)), (of_sample, order[is_positive]))
    pos = csr_matrix(rows, (len(at), len(weights))) @ weights
    above = np.cumsum(stretch, 0)
    here, total, pos_above = above[at], above[-1], np.cumsum(pos, 0)
    all_positive, negative, negative_above = pos_above[-1], stretch[at] - pos, here - pos_above
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = 1 - (pos * (negative_above - negative / 2)).sum(0) / (all_positive * (total - all_positive))
        at_end = np.where(here > 0, pos_above / np.where(here > 0, here, 1), 0)
        precision = (pos * at_end).sum(0) / all_positive
    return np.where(total > all_positive, auroc, np.nan), precision


def _of_counts(counts: tuple[_Floats, _Floats, _Floats], weights: _Floats) -> dict[str, _Floats]:
    right, there, named = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": right.sum(0) / weights.sum(0),
            "balanced_accuracy": _mean(right / there),
            "macro_f1": _mean(2 * right / (there + named)),
        }


def _of_numbers(predicted: _Floats, truth: _Floats, weights: _Floats, names: Sequence[str]) -> dict[str, _Floats]:
    error, total, centred = predicted - truth, weights.sum(0), truth - truth.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = centred**2 @ weights - (centred @ weights) ** 2 / total
        spread = np.where(spread > 1e-12 * (centred**2 @ weights), spread, np.nan)
        values = {"r2": 1 - error**2 @ weights / spread, "mae": np.abs(error) @ weights / total}
    return values | ({"spearman": _spearman(predicted, truth, weights)} if "spearman" in names else {})


def _spearman(a: _Floats, b: _Floats, weights: _Floats) -> _Floats:
    """Correlation of ranks (R,); equal values have the mean of their ranks."""
    x, y = (_ranks(values, weights) for values in (a, b))
    total = weights.sum(0)
    x, y = (ranks - (weights * ranks).sum(0) / total for ranks in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((weights * x * x).sum(0) * (weights * y * y).sum(0))
        return np.where(scale > 0, (weights * x * y).sum(0) / scale, np.nan)  # type: ignore[no-any-return]


def _ranks(values: _Floats, weights: _Floats) -> _Floats:
    """Of each sample (m, R): how much weight lies below its value, and half of what lies at it."""
    which = np.unique(values, return_inverse=True)[1]
    at = csr_matrix((np.ones(len(values)), (which, np.arange(len(values))))) @ weights
    return (np.cumsum(at, 0) - at / 2)[which]  # type: ignore[no-any-return]


def _mean(each: _Floats) -> _Floats:
    """Over classes (K, R) -> (R,), those that say something; NaN where none does."""
    there = ~np.isnan(each)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, each, 0).sum(0) / there.sum(0)  # type: ignore[no-any-return]
