"""Distances between prediction and target, both (S, D), mean over every element, computed in at least float32."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Loss = Literal["smooth_l1", "l2", "l1", "cosine"]


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity, mean over tokens."""
    return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,  # the released code, beta 1
    "l2": F.mse_loss,  # the paper's formula
    "l1": F.l1_loss,
    "cosine": cosine,
}


def full_precision(x: Tensor) -> Tensor:
    """At least float32: what losses and statistics are computed in."""
    return x if x.dtype.itemsize >= 4 else x.float()
