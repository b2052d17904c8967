"""Ridge regression of a number on standardised frozen features: the linear probe where labels are numbers.

n training samples, m test samples, D features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.evaluation.metrics import LESS_IS_BETTER, Predictions, goodness
from jepakit.evaluation.probes.logistic import standardised, validation_fifth

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of half the squared norm beside the mean squared error of standardised features


def ridge(train: Tensor, y: Tensor, test: Tensor, penalties: Sequence[float] = PENALTIES) -> Tensor:
    """Numbers (P, m) for test (m, D), one row a penalty: w = argmin |Xw - y|² + n penalty |w|², X standardised, y centred.

    Of several numbers each, y (n, K): (P, m, K).
    """
    x, z = (each.double() for each in standardised(train, test))
    mean = y.double().mean(0)
    target, n = y.double() - mean, len(x)
    wide = x.shape[1] > n  # the smaller of the two systems is solved: (X'X + λ)⁻¹ X'y = X' (XX' + λ)⁻¹ y
    gram, right = (x @ x.T, target) if wide else (x.T @ x, x.T @ target)
    eye = torch.eye(len(gram), dtype=torch.float64)
    solved = [torch.linalg.solve(gram + n * penalty * eye, right) for penalty in penalties]
    return torch.stack([z @ (x.T @ w if wide else w) for w in solved]) + mean


def leave_one_out(train: Tensor, y: Tensor, penalties: Sequence[float] = PENALTIES) -> float:
    """The penalty with the least squared error on each sample from the others: where there are too few to hold any out.

    By the closed form: a residual over what its own sample has of it, 1 - h, with h of the mean and of the weights.
    """
    (x,), target, n = standardised(train.double()), y.double() - y.double().mean(), len(y)
    errors = []
    for penalty in penalties:
        residual = n * penalty * torch.linalg.inv(x @ x.T + n * penalty * torch.eye(n, dtype=torch.float64))
        own = residual.diagonal() - 1 / n
        errors.append(float(((residual @ target) / own.clamp(min=1e-12)).square().sum()))
    return penalties[int(np.argmin(errors))]


def ridge_probe(
    train: dict[str, Tensor],
    y: Tensor,
    test: dict[str, Tensor],
    truth: Tensor,
    layers: Sequence[str],
    *,
    metric: str = "r2",
    held: NDArray[np.bool_] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Numbers (m,) by the layers and the penalty that do best by the metric on a held fifth; trained on all; and an account.

    train, test: features by layer, (n, D) and (m, D); y (n,), truth (m,).
    """
    validation = torch.from_numpy(validation_fifth(y.numpy()) if held is None else held)
    if not validation.any():
        validation = ~validation
    learnt = ~validation if not validation.all() else validation
    there = [layer for layer in layers if layer in train] or ["last"]
    grid = [(layer, penalty) for layer in there for penalty in PENALTIES]

    def judged(found: Tensor, wanted: Tensor) -> list[float]:
        return [goodness(metric, Predictions(each[None].numpy()), wanted.numpy()) for each in found]

    on_fifth = torch.cat([ridge(train[one][learnt], y[learnt], train[one][validation]) for one in there])
    on_test = torch.cat([ridge(train[one], y, test[one]) for one in there])
    fifth_values, test_values = judged(on_fifth, y[validation]), judged(on_test, truth)
    sign = -1 if metric in LESS_IS_BETTER else 1
    heads = [
        {"layers": layer, "penalty": penalty, metric: {"held": sign * h, "test": sign * t}}
        for (layer, penalty), h, t in zip(grid, fifth_values, test_values, strict=True)
    ]
    best = int(np.argmax(fifth_values))
    return on_test[best], {"head": heads[best], "best_on_test": sign * max(test_values), "heads": heads}
