"""Patch embeddings for patches of another size, or images of other channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.core.errors import UserError


def resize_patches(weight: Tensor, side: int) -> Tensor:
    """A patch embedding (D, C, p, p) for patches of `side` pixels: (D, C, side, side).

    FlexiViT's pseudo-inverse resize (arXiv 2212.08013, section 3.4): with B the bilinear resize of a patch, w' = (B^T)^+ w, so
    that a patch enlarged by B gives exactly what it gave, and one that is shrunk the least-squares nearest.
    """
    old = weight.shape[-1]
    if old == side:
        return weight
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resized = F.interpolate(basis, (side, side), mode="bilinear", align_corners=False, antialias=side < old)
    inverse = torch.linalg.pinv(resized.flatten(1))  # (side^2, old^2): of B^T, whose rows are the basis, resized
    new: Tensor = (weight.double().flatten(2) @ inverse.T).unflatten(2, (side, side)).float()
    return new


def change_channels(weight: Tensor, channels: int, where: str) -> Tensor:
    """A patch embedding (D, C, p, p) for images of other channels: what a gray image shown in all C gives.

    C to 1: the sum; 1 to C: a C-th part each. Raises UserError for other changes, as nobody can say which band is which.
    """
    old = weight.shape[1]
    if old == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if old == 1:
        return weight.repeat(1, channels, 1, 1) / channels
    raise UserError(
        f"{where} holds an encoder of {old} channels, and the images have {channels}: only one channel is made of several, or "
        f"several of one; set images.channels={old} if that is what they are, or begin without these weights"
    )
