"""Multinomial logistic regression on standardised frozen features, by scikit-learn's L-BFGS: a probe with one setting.

n training samples, m test samples, D features, K classes, or labels of which each has a regression of its own.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.evaluation.metrics import Predictions, goodness

# How scikit-learn's warnings begin of a probe that was stopped early, and of one with few images a class: both are fair probes
EXPECTED = "lbfgs failed to converge|The number of unique classes is greater than 50%"
STRENGTHS = (0.001, 0.01, 0.1)  # scikit-learn's C: the weight of the summed loss against half the squared norm


def logistic(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int | None = None,
    strength: float | None = None,
    *,
    metric: str = "accuracy",
    held: NDArray[np.bool_] | None = None,
) -> tuple[Tensor, float]:
    """Probabilities (m, K) of test (m, D) from train (n, D) with labels (n,) < K, or (n, K) of 0, 1, NaN; and the C used.

    Features are standardised by the training samples' mean and standard deviation. A C that is not given is the best of STRENGTHS
    by the metric on a validation fifth of the training samples, `held` (n,), (the smaller of two that do equally well); then all
    of them train the probe.
    """
    x, z = (x.numpy() for x in standardised(train, test))
    y = labels.cpu().numpy()
    k = (int(y.max()) + 1 if classes is None else classes) if y.ndim == 1 else y.shape[1]
    validation = validation_fifth(y) if held is None else held
    c = _chosen(x, y, k, metric, validation) if strength is None else strength
    return torch.from_numpy(probabilities(x, y, z, c, k)), c


def standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Each matrix (·, D) standardised by the mean and std of `train`'s columns, on the CPU; a constant column becomes zeros."""
    mean = train.double().mean(0)
    std = train.double().var(0, correction=0).sqrt()
    constant = std <= 1e-6 * mean.abs()  # what float32 leaves of a constant is no spread to divide by
    scale = torch.where(constant, 1, std)
    kind = torch.promote_types(train.dtype, torch.float32)  # half precision is for storing
    return [((x.to(kind) - mean.to(kind)) / scale.to(kind)).cpu() for x in (train, *others)]


def validation_fifth(labels: NDArray[Any], groups: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """The fifth of the training samples, with labels (n,), that chooses a setting: (n,) bool, always the same.

    It is even over classes, over numbers from small to large, and over the patterns of several labels (n, K). Groups (n,) are
    not divided; each goes by its first sample. Each class, and each answer to a label, has a sample that is not in it, so that it
    is empty where each class has one sample.
    """
    which = np.arange(len(labels))
    if groups is None:
        held = _every_fifth(labels)
    else:
        _, firsts, which = np.unique(groups, return_index=True, return_inverse=True)
        held = _every_fifth(labels[firsts])[which]
    for sample in _only_in(labels, held):
        held &= which != which[sample]
    return held


def _every_fifth(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Every fifth of the samples in the order of their labels, of classes never the first of one."""
    if labels.ndim == 2:
        labels = np.unique(np.nan_to_num(labels, nan=2), axis=0, return_inverse=True)[1].astype(np.float64).ravel()
    order = np.argsort(labels, kind="stable")
    held = np.zeros(len(labels), bool)
    held[order[4::5]] = True
    if labels.dtype.kind != "f":
        held[np.unique(labels, return_index=True)[1]] = False
    return held


def _only_in(labels: NDArray[Any], held: NDArray[np.bool_]) -> list[int]:
    """The first sample of each class, or of each answer to one of several labels, that only held samples (n,) have."""
    if labels.ndim == 1:
        if labels.dtype.kind == "f":
            return []
        return [int(np.argmax(labels == one)) for one in np.setdiff1d(labels[held], labels[~held])]
    firsts: list[int] = []
    for answer in (0, 1):
        has = labels == answer
        firsts += [int(np.argmax(has[:, k])) for k in np.flatnonzero(has.any(0) & ~has[~held].any(0))]
    return firsts


def probabilities(
    x: NDArray[Any], y: NDArray[Any], z: NDArray[Any], c: float, classes: int, *, steps: int = 100, tolerance: float = 1e-3
) -> NDArray[np.float64]:
    """Probabilities (m, K) for z (m, D), learnt from x (n, D) with classes y (n,), or labels (n, K); one class predicts itself.

    L-BFGS ends after `steps`, or where no entry of the mean loss's gradient is larger than the tolerance.
    """
    found = np.zeros((len(z), classes))
    if y.ndim == 2:
        for k in range(classes):
            known = ~np.isnan(y[:, k])
            if known.any():
                one = (y[known, k] == 1).astype(np.int64)
                found[:, k] = probabilities(x[known], one, z, c, 2, steps=steps, tolerance=tolerance)[:, 1]
        return found
    if (y == y[0]).all():
        found[:, y[0]] = 1
        return found
    from sklearn.linear_model import LogisticRegression  # takes a second

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", EXPECTED)
        fitted = LogisticRegression(C=c, max_iter=steps, tol=tolerance).fit(x, y)
    found[:, fitted.classes_] = fitted.predict_proba(z)
    return found


def as_predictions(scores: Tensor, labels: Tensor, *, logits: bool = False) -> Predictions:
    """Scores (m, K), or numbers (m,), as predictions of labels of this kind: int64 (n,) are classes, floats (n,) numbers.

    logits: they are to become probabilities, of classes by a softmax, of several labels by sigmoids.
    """
    if labels.dtype == torch.int64:
        return Predictions.of_classes(scores.cpu().numpy(), logits=logits)
    values = (scores.double().sigmoid() if logits and labels.ndim == 2 else scores).cpu().numpy()
    return Predictions(values[None].astype(np.float64 if labels.ndim == 1 else np.float32))


def _chosen(x: NDArray[Any], y: NDArray[Any], classes: int, metric: str, validation: NDArray[np.bool_]) -> float:
    if not validation.any():
        return STRENGTHS[len(STRENGTHS) // 2]

    def found(c: float) -> float:
        scores = torch.from_numpy(probabilities(x[~validation], y[~validation], x[validation], c, classes))
        return goodness(metric, as_predictions(scores, torch.from_numpy(y)), y[validation])

    values = {c: found(c) for c in STRENGTHS}
    return max(STRENGTHS, key=lambda c: (values[c], -c))
