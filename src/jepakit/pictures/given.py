"""Images as a user gives them: what the encoder is shown of them, and what a person is.

B images, T patches of a grid (rows, columns), D width.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.device import autocast
from jepakit.core.errors import UserError
from jepakit.data.crops import to_show
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.inputs import as_tensor

Array32 = NDArray[np.float32]


def encoder_input(encoder: Encoder, images: Any) -> Tensor:
    """Normalised floats (B, C, H, W) of all that `Encoder.embed` takes. Raises UserError for none, and as `embed` does."""
    if isinstance(images, Tensor | np.ndarray) and as_tensor(images).is_floating_point():
        given = as_tensor(images)
    else:
        given = torch.cat([*encoder.transform.batches(images)] or [torch.zeros(0, 1, 1, 1)])
    if not len(given):
        raise UserError("pictures of no image: give at least one")
    return given


def grid_of(encoder: Encoder, x: Tensor) -> tuple[int, int]:
    """(rows, columns) of patches of images (B, C, H, W)."""
    p = encoder.vit.config.patch_size
    return x.shape[2] // p, x.shape[3] // p


def to_look_at(x: Tensor, images: ImageSettings) -> NDArray[np.uint8]:
    """Normalised images (B, C, H, W) -> (B, H, W, 3) uint8 to look at: of 8 bits as they were, else each stretched."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (images.mean, images.std))
    white = x.detach().cpu().float() * std + mean
    eight_bits = images.depth in (None, "uint8")
    values = (white * 255).round().clamp(0, 255).to(torch.uint8) if eight_bits else white
    return np.stack([to_show(image).permute(1, 2, 0).numpy() for image in values])


@torch.no_grad()
def patch_tokens(encoder: Encoder, x: Tensor) -> Tensor:
    """Patch tokens (B, T, D) of images (B, C, H, W), float32 on the host, without autocast."""
    with autocast(encoder.device, torch.float32):
        return encoder(x).float().cpu()  # type: ignore[no-any-return]
