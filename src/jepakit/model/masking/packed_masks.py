"""Masks of a batch: which patches are context, and which are targets, as packed indices of the grid in raster order.

B images, R draws (one sampling of masks for an image), M target blocks of a draw, N patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.model.layout import Indices

Grids = NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """Packed patch indices. Draws stand image by image, blocks draw by draw, patches in the order given.

    context (sum of context_lengths,), context_lengths (R,), targets (sum of target_lengths,), target_lengths (blocks,),
    draw_of_block (blocks,), image_of_draw (R,); all int64, on the host.
    """

    context: Indices
    context_lengths: Indices
    targets: Indices
    target_lengths: Indices
    draw_of_block: Indices
    image_of_draw: Indices

    @classmethod
    def from_indices(cls, context: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]]) -> "Masks":
        """Masks of your own: context [B][n], targets [B][k][m], lengths free, order kept.

        Raises UserError where an image lacks context or targets, or an index is negative.
        """
        if len(context) != len(targets):
            raise UserError(f"context has {len(context)} images, targets {len(targets)}: give one entry an image in both")
        if not len(context):
            raise UserError("masks of no image: give at least one")
        for i, (own, blocks) in enumerate(zip(context, targets, strict=True)):
            if not len(own) or not len(blocks) or not all(len(block) for block in blocks):
                raise UserError(f"image {i}: each image needs a context, and at least one target block, that are not empty")
        blocks = [block for image in targets for block in image]
        masks = cls(
            context=np.concatenate([np.asarray(own, np.int64) for own in context]),
            context_lengths=np.array([len(own) for own in context], np.int64),
            targets=np.concatenate([np.asarray(block, np.int64) for block in blocks]),
            target_lengths=np.array([len(block) for block in blocks], np.int64),
            draw_of_block=np.repeat(np.arange(len(targets)), [len(image) for image in targets]),
            image_of_draw=np.arange(len(context)),
        )
        if min(masks.context.min(), masks.targets.min()) < 0:
            raise UserError("patch indices count from 0: there is a negative one")
        return masks

    @classmethod
    def from_grids(cls, context: Grids, targets: Grids, image_of_draw: Indices) -> "Masks":
        """context (R, N), targets (R, M, N), image_of_draw (R,) -> indices in raster order."""
        blocks = targets.reshape(-1, targets.shape[-1])
        (seen, seen_lengths), (wanted, wanted_lengths) = _packed(context), _packed(blocks)
        return cls(
            context=seen,
            context_lengths=seen_lengths,
            targets=wanted,
            target_lengths=wanted_lengths,
            draw_of_block=np.repeat(np.arange(len(targets)), targets.shape[1]),
            image_of_draw=image_of_draw,
        )

    @classmethod
    def joined(cls, batches: Sequence["Masks"]) -> "Masks":
        """The masks of several batches as those of one, one batch after the other."""

        def after(own: list[Indices], counts: list[int]) -> Indices:
            return np.concatenate([index + before for index, before in zip(own, np.cumsum([0, *counts[:-1]]), strict=True)])

        return cls(
            context=np.concatenate([batch.context for batch in batches]),
            context_lengths=np.concatenate([batch.context_lengths for batch in batches]),
            targets=np.concatenate([batch.targets for batch in batches]),
            target_lengths=np.concatenate([batch.target_lengths for batch in batches]),
            draw_of_block=after([batch.draw_of_block for batch in batches], [len(batch.context_lengths) for batch in batches]),
            image_of_draw=after([batch.image_of_draw for batch in batches], [batch.images for batch in batches]),
        )

    def of_images(self, which: slice) -> "Masks":
        """The masks of some images that stand one after the other."""
        first, last, _ = which.indices(self.images)
        draws = (self.image_of_draw >= first) & (self.image_of_draw < last)
        blocks = draws[self.draw_of_block]
        return Masks(
            context=self.context[np.repeat(draws, self.context_lengths)],
            context_lengths=self.context_lengths[draws],
            targets=self.targets[np.repeat(blocks, self.target_lengths)],
            target_lengths=self.target_lengths[blocks],
            draw_of_block=(np.cumsum(draws) - 1)[self.draw_of_block[blocks]],
            image_of_draw=self.image_of_draw[draws] - first,
        )

    @property
    def images(self) -> int:
        """B."""
        return int(self.image_of_draw[-1]) + 1

    @property
    def first_draws(self) -> Indices:
        """The place of each image's first draw: (B,)."""
        return np.unique(self.image_of_draw, return_index=True)[1]

    def require_on_grid(self, patches: int) -> None:
        """Raises UserError unless every index lies on a grid of that many patches."""
        largest = int(max(self.context.max(), self.targets.max()))
        if largest >= patches:
            raise UserError(f"patch index {largest} lies outside the grid of {patches} patches (they count from 0)")


def _packed(grids: Grids) -> tuple[Indices, Indices]:
    """Where rows (n, N) are true, row after row, and how often each is. (Much faster than nonzero and sum of two axes.)"""
    flat, first = np.flatnonzero(grids), np.arange(len(grids) + 1) * grids.shape[-1]
    lengths = np.diff(np.searchsorted(flat, first))
    return flat - np.repeat(first[:-1], lengths), lengths
