"""EC-IJEPA's conditioning of the encoders (arXiv 2410.10773, section 3): the context encoder
gets the positions of the targets, the target encoder those of the context.

The positions are appended to the sequence as tokens, pooled so that they cost little: windows of positions in raster
order are averaged in runs of m//2 (m the patches of a target block) in training, in 4x4 squares at inference. The tokens
are the encoder's own fixed positions; they have no parameters. Where the paper is silent, a field offers the readings.
E conditioning tokens, D width, N patches.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from jepakit.core.settings import Settings
from jepakit.model.layout import Indices, ranges, starts
from jepakit.model.masking.packed_masks import Masks


@dataclass(frozen=True)
class Windows:
    """Packed windows of patch indices: index (sum of lengths,), lengths (n,), owner (n,) the sequence each conditions."""

    index: Indices
    lengths: Indices
    owner: Indices


class PositionConditioning(Settings):
    """Settings of the conditioning; the defaults are the reading that the project takes of the paper."""

    encoder: bool = Field(True, description="tell the encoder the targets' positions")
    target_encoder: bool = Field(True, description="tell the target encoder the context's positions")
    pool_scope: Literal["block", "concat", "union"] = Field(
        "block", description="pool each target block, all in a row, or their union"
    )
    kernel: int | None = Field(
        None, ge=1, description="positions averaged into one token; none: half the patches of a target block"
    )
    tail: Literal["drop", "partial"] = Field(
        "drop", description="positions left over at a window's end: dropped, or a mean of fewer"
    )
    order: Literal["raster", "column"] = Field("raster", description="order of a window's positions before pooling")
    renorm: bool = Field(False, description="give pooled positions the norm of a position again")
    inference: bool = Field(True, description="condition on all positions at inference")
    infer_kernel: int = Field(4, ge=1, description="side of the square averaged into one token at inference")
    infer_stride: int = Field(4, ge=1, description="step between the squares")
    infer_ceil: bool = Field(False, description="keep squares that overhang the grid")

    def for_encoder(self, masks: Masks, positions: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Indices]:
        """Tokens (E, D) of the targets' positions, and how many each draw gets (R,)."""
        return self._pool(self._target_windows(masks, grid), masks, positions)

    def for_target_encoder(self, masks: Masks, positions: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Indices]:
        """Tokens (E, D) of the context's positions, and how many each draw gets (R,)."""
        index = self._ordered(masks.context, masks.context_lengths, grid)
        return self._pool(Windows(index, masks.context_lengths, np.arange(len(masks.context_lengths))), masks, positions)

    def for_inference(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (E, D) of all positions, averaged in squares (section 3, inference)."""
        field = positions.T.unflatten(1, grid)[None]
        kernel = [min(self.infer_kernel, n) for n in grid]
        pooled = F.avg_pool2d(field, kernel, self.infer_stride, ceil_mode=self.infer_ceil)
        return self._scaled(pooled[0].flatten(1).T)

    def _target_windows(self, masks: Masks, grid: tuple[int, int]) -> Windows:
        index = self._ordered(masks.targets, masks.target_lengths, grid)
        if self.pool_scope == "block":
            return Windows(index, masks.target_lengths, masks.draw_of_block)
        draws = np.arange(len(masks.context_lengths))
        patch_draw = np.repeat(masks.draw_of_block, masks.target_lengths)
        if self.pool_scope == "concat":
            return Windows(index, np.bincount(patch_draw, minlength=len(draws)), draws)
        union = np.unique(np.stack([patch_draw, index]), axis=1)
        lengths = np.bincount(union[0], minlength=len(draws))
        return Windows(self._ordered(union[1], lengths, grid), lengths, draws)

    def _ordered(self, index: Indices, lengths: Indices, grid: tuple[int, int]) -> Indices:
        """The patches of each window in raster order, or column by column, however the masks list them."""
        window = np.repeat(np.arange(len(lengths)), lengths)
        rank = index if self.order == "raster" else index % grid[1] * grid[0] + index // grid[1]
        return index[np.lexsort((rank, window))]

    def _pool(self, windows: Windows, masks: Masks, positions: Tensor) -> tuple[Tensor, Indices]:
        draws = len(masks.context_lengths)
        _, first_block = np.unique(masks.draw_of_block, return_index=True)
        kernel = np.full(draws, self.kernel) if self.kernel else masks.target_lengths[first_block] // 2
        chunks, count = _chunks(windows.index, windows.lengths, kernel[windows.owner], partial=self.tail == "partial")
        tokens = _means(positions, chunks)
        return self._scaled(tokens), np.bincount(windows.owner, weights=count, minlength=draws).astype(np.int64)

    def _scaled(self, tokens: Tensor) -> Tensor:
        # every sin-cos pair of a true position has norm 1
        return F.normalize(tokens, dim=-1) * (tokens.shape[-1] / 2) ** 0.5 if self.renorm else tokens


def _chunks(index: Indices, lengths: Indices, kernel: Indices, *, partial: bool) -> tuple[Indices, Indices]:
    """Runs of `kernel` indices of each window, as rows padded with -1, and the number of runs of each window.

    Like AvgPool1d(kernel, stride=kernel): an incomplete last run is dropped, or with `partial` averaged. A window shorter than
    its kernel is one run.
    """
    kernel = np.clip(kernel, 1, lengths)
    count = -(-lengths // kernel) if partial else lengths // kernel
    offset = ranges(np.zeros_like(count), count)
    first = np.repeat(starts(lengths), count) + offset * np.repeat(kernel, count)
    last = np.minimum(first + np.repeat(kernel, count), np.repeat(np.cumsum(lengths), count))
    columns = first[:, None] + np.arange(int(kernel.max()))
    return np.where(columns < last[:, None], index[np.minimum(columns, len(index) - 1)], -1), count


def _means(positions: Tensor, chunks: Indices) -> Tensor:
    """Mean of the positions at each row of patch indices, -1 being padding: (E, k) -> (E, D)."""
    index = torch.from_numpy(chunks + 1).to(positions.device, non_blocking=True)
    padded = torch.cat([positions.new_zeros(1, positions.shape[1]), positions])
    return padded[index].sum(1) / (index > 0).sum(1, keepdim=True)
