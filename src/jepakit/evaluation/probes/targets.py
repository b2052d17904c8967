"""What a trained probe learns by gradient: the loss of classes, of several labels at once, of numbers.

B samples of a batch, K classes or labels. Places of classes are int64 (B,), or shares of classes (B, K) where labels are smoothed
or mixed; several labels are floats (B, K) from 0 to 1, NaN where one is not known; numbers are floats (B,).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def loss_of(labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of scores (B, K), (B, 1) for numbers, against what is wanted, summed over a batch; labels: all training labels.

    Of classes the cross-entropy, of several labels the sum of their binary cross-entropies, in which a NaN adds nothing; of
    numbers half the squared error in units of their standard deviation.
    """
    if not labels.is_floating_point():
        return lambda scores, wanted: F.cross_entropy(scores, wanted, reduction="sum")
    if labels.ndim == 2:
        return sigmoid_loss
    mean, scale = _mean_and_scale(labels)
    return lambda scores, wanted: ((wanted - mean) / scale - scores[:, 0]).square().sum() / 2


def sigmoid_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy of scores (B, K) with labels (B, K), summed; nothing where a label is NaN."""
    filled = wanted.nan_to_num().to(scores.dtype)
    known = (~wanted.isnan()).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, filled, weight=known, reduction="sum")


def unscaled(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores (m, K) as they are; of numbers (m, 1) -> (m,), in the units of the training labels (n,)."""
    if not labels.is_floating_point() or labels.ndim == 2:
        return scores
    mean, scale = _mean_and_scale(labels)
    return scores[:, 0].double() * scale + mean


def _mean_and_scale(labels: Tensor) -> tuple[float, float]:
    return float(labels.double().mean()), float(labels.double().std(correction=0)) or 1.0
