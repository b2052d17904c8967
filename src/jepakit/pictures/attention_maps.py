"""What patches attend to: the softmax of a block, computed anew from its weights.

B images, H heads, T patches of a grid (rows, columns), E conditioning tokens (EC-IJEPA's), d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.device import autocast
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.vit import Block
from jepakit.pictures.drawing import PictureRow, image_rows
from jepakit.pictures.given import Array32, encoder_input, grid_of, to_look_at


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention weights (B, H, T + E, T + E) of one block: [image, head, of this token, to that token], rows sum to one.

    Patches come first, in raster order; then conditioning tokens, if the encoder has any at inference. images (B, H', W', 3)
    uint8; block: which, from 0.
    """

    weights: Array32
    grid: tuple[int, int]
    images: NDArray[Any]
    block: int

    @property
    def received(self) -> Array32:
        """What each patch receives, (B, H, rows, columns): the mean over patches that attend; 1 / T were it even."""
        t = self.grid[0] * self.grid[1]
        mean: Array32 = self.weights[:, :, :t, :t].mean(2)
        return mean.reshape(*mean.shape[:2], *self.grid)

    @property
    def conditioning(self) -> Array32 | None:
        """What each patch gives to the conditioning tokens together, (B, H, rows, columns); None where there are none."""
        t = self.grid[0] * self.grid[1]
        if self.weights.shape[-1] == t:
            return None
        given: Array32 = self.weights[:, :, :t, t:].sum(3)
        return given.reshape(*given.shape[:2], *self.grid)

    def of_patch(self, image: int, patch: int) -> Array32:
        """What one patch attends to, (H, rows, columns)."""
        t = self.grid[0] * self.grid[1]
        return self.weights[image, :, patch, :t].reshape(-1, *self.grid)

    def figure(self, most: int = 8) -> Figure:
        """The first images, beside each what patches receive: mean over heads, then each head, each map by its own scale;
        of an encoder that is told positions also what patches give to conditioning tokens, from 0 to 1."""
        received, conditioning, rows = self.received[:most], self.conditioning, []
        for i, (image, maps) in enumerate(zip(self.images[:most], received, strict=True)):
            told = [] if conditioning is None else [("to conditioning", conditioning[i].mean(0), (0.0, 1.0))]
            heads = [(f"head {h}", one, "magma") for h, one in enumerate(maps)]
            rows.append(PictureRow([("image", image, None), ("mean", maps.mean(0), "magma"), *told, *heads]))
        return image_rows(rows, f"Attention that patches receive in block {self.block}")


@torch.no_grad()
def attention_maps(encoder: Encoder, images: Any, block: int = -1) -> AttentionMaps:
    """Attention of one block (default: the last) on images, all that `Encoder.embed` takes.

    softmax(Q K^T / sqrt(d)) of the block's own input, in float32 whatever kernel the encoder itself takes. Raises UserError for
    a block that the encoder does not have, and as `embed` does.
    """
    depth = encoder.vit.config.depth
    if not -depth <= block < depth:
        raise UserError(f"block={block}: the encoder has {depth} blocks, from 0 to {depth - 1}; -1 is the last")
    block, x = block % depth, encoder_input(encoder, images)
    with autocast(encoder.device, torch.float32):
        tokens, layout, _ = encoder.packed(x)
        before = encoder.vit.block_outputs(tokens, layout, [block - 1])[0] if block else tokens[: layout.used]
        weights = _weights(encoder.vit.blocks[block], before.unflatten(0, (len(x), -1)))  # type: ignore[arg-type]
    return AttentionMaps(weights.cpu().numpy(), grid_of(encoder, x), to_look_at(x, encoder.images), block)


def _weights(block: Block, tokens: Tensor) -> Tensor:
    """What a block makes of sequences of one length (B, L, D): (B, H, L, L)."""
    q, k, _ = block.attn.qkv(block.norm1(tokens)).float().unflatten(2, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
