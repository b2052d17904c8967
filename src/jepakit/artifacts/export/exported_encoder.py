"""The encoder as it is exported: at the size asked for, and as a plain dense one with its conditioning folded in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jepakit.artifacts.export.dense import DenseEncoder
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.vit import ViT


@dataclass(frozen=True)
class ExportChoice:
    """What an export is to be: its format, precision, and what goes along."""

    format: str
    dtype: torch.dtype
    preprocess: bool
    custom_code: bool


def at_size(encoder: Encoder, size: tuple[int, int] | None) -> Encoder:
    """The encoder with the positions that it has for images of a size (height, width); itself where that is its own.

    Raises UserError for a size that is no multiple of the patch.
    """
    patch, vit = encoder.vit.config.patch_size, encoder.vit
    own = (vit.grid[0] * patch, vit.grid[1] * patch)
    height, width = size or own
    if min(height, width) < patch or height % patch or width % patch:
        raise UserError(f"images of {height}x{width} are no whole number of patches: give multiples of {patch}")
    if (height, width) == own:
        return encoder
    grid = (height // patch, width // patch)
    with torch.random.fork_rng(devices=[]):
        fresh = ViT(vit.config.model_copy(update={"learned_positions": True}), grid, vit.channels, vit.eps, vit.activation)
    fresh.load_state_dict({**vit.state_dict(), "positions": encoder.positions_of(grid)})
    images = encoder.images.model_copy(update={"size": (height, width) if height != width else height})
    return Encoder(fresh, images, encoder.training_conditioning, encoder.which).requires_grad_(False).eval()


def conditioning_tokens(encoder: Encoder) -> Tensor:
    """The tokens (E, D) that an encoder is conditioned by at inference, a function of its positions alone; E may be 0."""
    vit = encoder.vit
    if encoder.conditioning is None:
        return vit.positions.new_zeros(0, encoder.width)
    return encoder.conditioning.for_inference(vit.positions, vit.grid)


def dense_of(encoder: Encoder) -> DenseEncoder:
    """A `DenseEncoder` with the encoder's weights, for images of its own size: the same function."""
    vit, shape, extra = encoder.vit, encoder.vit.config, conditioning_tokens(encoder)
    with torch.random.fork_rng(devices=[]):
        dense = DenseEncoder(
            channels=vit.channels,
            patch_size=shape.patch_size,
            tokens=len(vit.positions),
            conditioning_tokens=len(extra),
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads,
            hidden=round(shape.width * shape.mlp_ratio),
            eps=vit.eps,
            activation=vit.activation,
        )
    dense.load_state_dict({**vit.state_dict(), "positions": vit.positions, "conditioning_tokens": extra})
    return dense.requires_grad_(False).eval()
