"""Where blocks are drawn if some patches weigh more than others (masking.prior): places by the mean of their weights.

R draws, n blocks of a draw, N patches of a grid (rows, columns).
"""

import numpy as np
from numpy.typing import NDArray

from jepakit.model.layout import Indices
from jepakit.model.masking.packed_masks import Grids


def place_weights(foreground: Grids, bias: float) -> NDArray[np.float64]:
    """1 on the foreground (R, N) and 1 - bias elsewhere; 1 everywhere where an image has none."""
    return np.where(foreground | ~foreground.any(-1, keepdims=True), 1.0, 1.0 - bias)


def weighted_firsts(
    grid: tuple[int, int], size: tuple[Indices, Indices], places: NDArray[np.float64], weights: NDArray[np.float64]
) -> list[Indices]:
    """First rows and columns (R, n) of blocks whose places have the probability of the sum of their weights (R, N).

    Sums by a summed-area table; then the inverse distribution function: of the row, and of the column in that row.
    """
    sums = np.pad(weights.reshape(-1, *grid), ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    for axis, (length, extent) in enumerate(zip(size, grid, strict=True), start=1):
        end = np.expand_dims(np.arange(extent) + length[:, None], 3 - axis)
        window = np.take_along_axis(sums, np.minimum(end, extent), axis) - sums.take(np.arange(extent), axis)
        sums = np.where(end <= extent, window, 0.0)  # of the block that begins here, 0 where it would leave the grid
    rows = _inverse(sums.sum(2).cumsum(1)[:, None], places[..., 0], grid[0] - size[0])
    in_row = np.take_along_axis(sums, rows[..., None], 1).cumsum(2)
    return [rows, _inverse(in_row, places[..., 1], grid[1] - size[1])]


def _inverse(cumulated: NDArray[np.float64], u: NDArray[np.float64], last: Indices) -> Indices:
    """The first index at which cumulated weights (R, n or 1, k) pass a share u (R, n) of all of them; `last` (R,) at most."""
    passed: Indices = (cumulated <= u[..., None] * cumulated[..., -1:]).sum(-1)
    return np.minimum(passed, last[:, None])  # u times the sum may round up to it
