"""Multinomial logistic regression on standardised frozen features, by scikit-learn's L-BFGS: a probe with one setting.

n training samples, m test samples, D features.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

STRENGTHS = (0.001, 0.01, 0.1)  # scikit-learn's C: the weight of the summed loss against half the squared norm


def logistic(train: Tensor, labels: Tensor, test: Tensor, strength: float | None = None) -> tuple[Tensor, float]:
    """Predicted labels (m,) int64 of test (m, D) from train (n, D) with labels (n,), any integers; and the C that was used.

    Features are standardised by the training samples' mean and standard deviation. A C that is not given is the best of STRENGTHS
    on a validation fifth of the training samples (the smaller of two that do equally well); then all of them train the probe.
    """
    x, z = (x.numpy() for x in standardised(train, test))
    y = labels.cpu().numpy()
    c = _chosen(x, y) if strength is None else strength
    return torch.from_numpy(predictions(x, y, z, c)), c


def standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Each matrix (·, D) standardised by the mean and std of `train`'s columns, on the CPU; a constant column becomes zeros."""
    mean = train.double().mean(0)
    std = train.double().var(0, correction=0).sqrt()
    constant = std <= 1e-6 * mean.abs()  # what float32 leaves of a constant is no spread to divide by
    scale = torch.where(constant, 1, std)
    kind = torch.promote_types(train.dtype, torch.float32)  # half precision is for storing
    return [((x.to(kind) - mean.to(kind)) / scale.to(kind)).cpu() for x in (train, *others)]


def validation_fifth(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The fifth of the training samples, with labels (n,), that chooses a setting: (n,) bool, even over classes, always the same.

    The first sample of each class is never in it, so that it is empty where each class has one sample.
    """
    order = np.argsort(labels, kind="stable")
    first = np.append(True, labels[order][1:] != labels[order][:-1]) if len(labels) else np.zeros(0, bool)
    validation = np.zeros(len(labels), bool)
    validation[order] = (np.arange(len(labels)) % 5 == 4) & ~first
    return validation


def predictions(
    x: NDArray[Any], y: NDArray[np.int64], z: NDArray[Any], c: float, *, steps: int = 100, tolerance: float = 1e-3
) -> NDArray[np.int64]:
    """Labels (m,) for z (m, D), learnt from x (n, D) with y (n,); one class predicts itself.

    L-BFGS ends after `steps`, or where no entry of the mean loss's gradient is larger than the tolerance.
    """
    if (y == y[0]).all():
        return np.full(len(z), y[0], np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe stopped early is a fair probe
        fitted = LogisticRegression(C=c, max_iter=steps, tol=tolerance).fit(x, y)
    return fitted.predict(z).astype(np.int64)  # type: ignore[no-any-return]


def _chosen(x: NDArray[Any], y: NDArray[np.int64]) -> float:
    validation = validation_fifth(y)
    if not validation.any():
        return STRENGTHS[len(STRENGTHS) // 2]
    correct = {c: int((predictions(x[~validation], y[~validation], x[validation], c) == y[validation]).sum()) for c in STRENGTHS}
    return max(STRENGTHS, key=lambda c: (correct[c], -c))
