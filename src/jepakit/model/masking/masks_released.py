"""The mask law of the released I-JEPA training, draw for draw, with what it does to the masks.

Written from a description of its behaviour, for parity and for ablations. It differs from the paper: one uniform number
drives scale and aspect, a block never reaches the last row or column, every image of a batch has the same sizes, and all
contexts are cut to the batch's shortest in raster order, which loses 36-42 % of them, always at the bottom.
"""

import math
from typing import Protocol

import numpy as np
import torch

from jepakit.core.errors import UserError
from jepakit.model.masking.packed_masks import Grids

TRIES_A_REGION = 20
STEPS_CHECKED = 1000  # block sizes are a function of the step
_MAX_TRIES = 20_000  # the released code has no bound, and hangs


class Law(Protocol):
    """The settings that the released law needs: those of `masks.MultiBlock` with compat=released."""

    @property
    def target_scale(self) -> tuple[float, float]: ...
    @property
    def target_aspect(self) -> tuple[float, float]: ...
    @property
    def context_scale(self) -> tuple[float, float]: ...
    @property
    def context_aspect(self) -> tuple[float, float]: ...
    @property
    def targets(self) -> int: ...
    @property
    def contexts(self) -> int: ...
    @property
    def min_keep(self) -> int: ...
    @property
    def allow_overlap(self) -> bool: ...


def block_sizes(law: Law, grid: tuple[int, int], step: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of target and context blocks at a step: the same for all images."""
    generator = torch.Generator().manual_seed(step)
    target = _size(grid, law.target_scale, law.target_aspect, float(torch.rand(1, generator=generator)))
    return target, _size(grid, law.context_scale, law.context_aspect, float(torch.rand(1, generator=generator)))


def _size(grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], u: float) -> tuple[int, int]:
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(rows, grid[0] - 1), min(columns, grid[1] - 1)


def require_released(law: Law, grid: tuple[int, int]) -> None:
    """Raises UserError, with a way out, where some step's blocks could not keep more than min_keep patches."""
    sizes = [block_sizes(law, grid, step) for step in range(STEPS_CHECKED)]
    smallest = min(min(t[0] * t[1], c[0] * c[1]) for t, c in sizes)
    if smallest <= law.min_keep:
        way = f"masking.min_keep={smallest - 1} or " if smallest > 1 else ""
        raise UserError(
            f"the released mask law wants more than masking.min_keep={law.min_keep} patches in every block, and on a grid of "
            f"{grid[0]}x{grid[1]} some have {smallest}; set {way}masking.compat=none"
        )


def released_grids(law: Law, grid: tuple[int, int], batch: int, step: int, seed: int | torch.Generator) -> tuple[Grids, Grids]:
    """context (B, contexts, N) and targets (B, targets, N), trimmed. `seed` drives the positions.

    Raises UserError where the law has no solution on this grid.
    """
    target_size, context_size = block_sizes(law, grid, step)
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    context = np.zeros((batch, law.contexts, grid[0] * grid[1]), bool)
    targets = np.zeros((batch, law.targets, grid[0] * grid[1]), bool)
    for image in range(batch):
        for block in range(law.targets):
            targets[image, block] = _draw(law, grid, target_size, [], generator)
        regions = [] if law.allow_overlap else [~block for block in targets[image]]
        for block in range(law.contexts):
            context[image, block] = _draw(law, grid, context_size, regions, generator)
    return _trim(context), _trim(targets)


def _draw(law: Law, grid: tuple[int, int], size: tuple[int, int], regions: list[Grids], generator: torch.Generator) -> Grids:
    """One block within `regions`; after each 20 failures one region fewer counts, so contexts may come to overlap."""
    for attempt in range(_MAX_TRIES):
        top, left = (int(torch.randint(0, n - s, (1,), generator=generator)) for n, s in zip(grid, size, strict=True))
        block = np.zeros(grid, bool)
        block[top : top + size[0], left : left + size[1]] = True
        mask = block.ravel()
        for region in regions[: max(0, len(regions) - attempt // TRIES_A_REGION)]:
            mask = mask & region
        if mask.sum() > law.min_keep:
            return mask
    raise UserError(
        f"the released mask law finds no block of more than masking.min_keep={law.min_keep} patches on {grid[0]}x{grid[1]}; "
        f"set masking.compat=none"
    )


def _trim(masks: Grids) -> Grids:
    """Keep the first n patches of each mask, n the least count in the batch."""
    shortest = masks.sum(-1).min()
    kept: Grids = masks & (masks.cumsum(-1) <= shortest)
    return kept
