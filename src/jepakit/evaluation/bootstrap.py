"""Intervals and paired tests of any metric, by resampling groups of test samples (Efron and Tibshirani 1993, percentiles).

m test samples, G groups (each sample one where there are none), R resamples, K classes or labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.compare import Difference, accuracy_interval, exact, exact_mean, resampled_difference
from jepakit.evaluation.metrics import METRICS, RANKED, Predictions, class_counts, ranked, weighted

RESAMPLES_MOST, RESAMPLES_LEAST = 1000, 200
WORK = 2e9  # samples x classes x resamples: with more there are fewer resamples
RESAMPLES_AT_ONCE = 250  # weights in memory: of 10,000 samples 20 MB
SHARES = ("accuracy", "balanced_accuracy", "macro_f1", *RANKED)  # metrics from 0 to 1
_Floats = NDArray[np.float64]
Groups = NDArray[np.int64] | None
Figure = dict[str, float | None]  # value, low, high


def group_resamples(m: int, groups: Groups, count: int, seed: int = 0) -> _Floats:
    """How often each sample is in each of `count` resamples (m, R): as many groups as there are, drawn with replacement."""
    which = np.arange(m) if groups is None else np.unique(groups, return_inverse=True)[1]
    n = int(which.max()) + 1
    draw = np.random.default_rng(seed)
    times = np.stack([np.bincount(draw.integers(0, n, n), minlength=n) for _ in range(count)], 1)
    weights: _Floats = times[which].astype(np.float64)
    return weights


def resampled(predictions: Sequence[Predictions], truth: NDArray[Any], groups: Groups, names: Sequence[str]) -> list[Any]:
    """Each metric (R,) of each of several predictions, in the same resamples of groups (m,); a dict for each of them."""
    first = predictions[0].scores
    work = first.size if {*names} & {*RANKED} else first.shape[0] * first.shape[1]
    count = int(np.clip(WORK / work, RESAMPLES_LEAST, RESAMPLES_MOST))
    found: list[dict[str, list[_Floats]]] = [{name: [] for name in names} for _ in predictions]
    for seed, start in enumerate(range(0, count, RESAMPLES_AT_ONCE)):
        weights = group_resamples(len(truth), groups, min(RESAMPLES_AT_ONCE, count - start), seed)
        for of, each in zip(found, predictions, strict=True):
            for name, values in weighted(each, truth, weights, names).items():
                of[name].append(values)
    return [{name: np.concatenate(values) for name, values in of.items()} for of in found]


def figures(predictions: Predictions, truth: NDArray[Any], groups: Groups = None) -> dict[str, Figure]:
    """Every metric of the labels' kind with its 95 % interval over groups (m,): value, low and high, None where undefined."""
    return figures_and_resamples(predictions, truth, groups)[0]


def figures_and_resamples(
    predictions: Predictions, truth: NDArray[Any], groups: Groups = None
) -> tuple[dict[str, Figure], dict[str, _Floats]]:
    """The same, and each metric in each resample (R,), by which two runs are paired that were judged on the same samples.

    Accuracy's is `accuracy_interval`. Percentiles of resamples would be a point where nothing, or all, was ranked or named
    wrongly; there the interval is the exact one of a share of as many samples as there are groups of the rarest class (Clopper
    and Pearson), of balanced accuracy `exact_mean` of the groups of all classes.
    """
    names = METRICS[predictions.kind]
    here = weighted(predictions, truth, np.ones((len(truth), 1)), names)
    drawn = resampled([predictions], truth, groups, names)[0]
    found = {name: _figure(name, float(here[name][0]), drawn[name], truth, groups) for name in names}
    if predictions.kind == "class":
        correct = predictions.correct(truth)
        low, high = accuracy_interval(correct, groups)
        found["accuracy"] = {"value": float(correct.mean()), "low": low, "high": high}
    return found, drawn


def _figure(name: str, value: float, drawn: _Floats, truth: NDArray[Any], groups: Groups) -> Figure:
    known = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(known) < len(drawn) / 2:
        return {"value": None if np.isnan(value) else value, "low": None, "high": None}
    low, high = (min(float(np.quantile(known, 0.025)), value), max(float(np.quantile(known, 0.975)), value))
    if high - low < 1e-9:
        if name not in SHARES or 1e-9 < value < 1 - 1e-9:  # of scores that are all one it is what it is in any sample
            return {"value": value, "low": None, "high": None}
        share = min(1.0, max(0.0, value))
        if name == "balanced_accuracy":
            bound = exact_mean(_groups_of_each(truth, groups))
            low, high = (bound, 1.0) if share > 0.5 else (0.0, 1 - bound)
        else:
            low, high = exact(share, min(_groups_of_each(truth, groups), default=1))
    return {"value": value, "low": low, "high": high}


def _groups_of_each(truth: NDArray[Any], groups: Groups) -> list[int]:
    """How many groups have each class, or each answer to a label, of those that any has."""
    which = np.arange(len(truth)) if groups is None else groups
    if truth.ndim == 1:
        return [len(np.unique(which[truth == c])) for c in np.unique(truth)]
    counts = [len(np.unique(which[truth[:, k] == side])) for k in range(truth.shape[1]) for side in (0, 1)]
    return [count for count in counts if count]


def paired_bootstrap(
    a: Predictions, b: Predictions, truth: NDArray[Any], groups: Groups = None, names: Sequence[str] = ()
) -> dict[str, Difference]:
    """Each metric of a minus that of b on the same samples, with its 95 % interval and p, over groups (m,).

    Interval and p are those of `resampled_difference`; metrics that are undefined are left out.
    """
    names = names or METRICS[a.kind]
    ones = np.ones((len(truth), 1))
    ours, theirs = (weighted(each, truth, ones, names) for each in (a, b))
    drawn, drawn_too = resampled([a, b], truth, groups, names)
    found = {}
    for name in names:
        difference = resampled_difference(float(ours[name][0] - theirs[name][0]), drawn[name], drawn_too[name])
        if difference is not None:
            found[name] = difference
    return found


def per_class(predictions: Predictions, truth: NDArray[Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class or label: how many test samples are of it, recall, precision, F1, AUROC and average precision."""
    ones, draws = np.ones((len(truth), 1)), range(len(predictions.scores))
    ranks = [ranked(predictions.scores[draw], truth, ones) for draw in draws]
    columns = {name: np.mean([each[name][:, 0] for each in ranks], axis=0) for name in RANKED}
    counts = [int((truth == c).sum() if truth.ndim == 1 else (truth[:, c] == 1).sum()) for c in range(len(classes))]
    if predictions.predicted is not None:
        right, there, named = (
            np.mean(each, axis=0)[:, 0]
            for each in zip(*(class_counts(p, truth, ones, len(classes)) for p in predictions.predicted), strict=True)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = 2 * right / (there + named)
            columns = {"recall": right / there, "precision": right / named, "f1": f1, **columns}
    return [
        {"class": name, "n_test": counts[c], **{key: float(column[c]) for key, column in columns.items()}}
        for c, name in enumerate(classes)
    ]
