"""Objects as labels of pixels: boxes, polygons and run lengths filled in, and what is done where they overlap.

A pixel is inside if its centre is; H, W rows and columns of pixels.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from jepakit.evaluation.dense.pairs import IGNORED, PixelClasses

Inside = NDArray[np.bool_]  # (H, W)


def class_map(height: int, width: int, objects: Iterable[tuple[Inside, int]]) -> PixelClasses:
    """The class of each pixel (H, W): that of the objects which it is in, 0 (background) in none.

    objects: where each is, and its class from 1, or IGNORED. A pixel in objects of two classes has none, as in torchvision's
    reference for COCO, nor has one in an object that is IGNORED.
    """
    classes = np.zeros((height, width), np.int32)
    for inside, each in objects:
        classes[inside] = np.where((classes[inside] == 0) | (classes[inside] == each), each, IGNORED)
    return classes


def in_box(height: int, width: int, left: float, top: float, right: float, bottom: float) -> Inside:
    """Pixels in a box, whose sides are in pixels from the image's upper left corner."""
    inside = np.zeros((height, width), np.bool_)
    columns, rows = (_span(*side) for side in ((left, right, width), (top, bottom, height)))
    inside[rows, columns] = True
    return inside


def _span(first: float, last: float, n: int) -> slice:
    """Places whose centres are from `first` to below `last`, of n."""
    start, stop = np.clip(np.ceil([first - 0.5, last - 0.5]), 0, n).astype(int)
    return slice(start, stop)


def in_polygon(height: int, width: int, corners: Sequence[float]) -> Inside:
    """Pixels in a polygon x0, y0, x1, y1, ... (even-odd, closed). Raises ValueError for fewer than three corners."""
    points = np.asarray(corners, np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError("a polygon is x and y of three corners at least")
    x, y = points[::2], points[1::2]
    to_x, to_y = np.roll(x, -1), np.roll(y, -1)
    toggles = np.zeros((height, width + 1), np.int32)  # crossings of a row's line of centres, each at the first pixel beyond it
    for row in range(*np.clip([np.floor(y.min()), np.ceil(y.max())], 0, height).astype(int)):
        edges = np.flatnonzero((y <= row + 0.5) != (to_y <= row + 0.5))
        at = x[edges] + (row + 0.5 - y[edges]) / (to_y[edges] - y[edges]) * (to_x[edges] - x[edges])
        np.add.at(toggles[row], np.clip(np.ceil(at - 0.5), 0, width).astype(int), 1)
    inside: Inside = np.cumsum(toggles, 1)[:, :width] % 2 == 1
    return inside


def in_runs(height: int, width: int, counts: Sequence[int] | str) -> Inside:
    """Pixels of COCO's run lengths, down the columns, out and in by turns: a list, or its compressed string.

    Raises ValueError where they are not those of an image of this size.
    """
    runs = _decompressed(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its run lengths do not sum to {height} x {width} pixels")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    """Runs of COCO's string (rleFrString in its maskApi.c): 5 bits a sign, lowest first, each from the third on a difference."""
    runs: list[int] = []
    value = shift = 0
    for sign in text.encode():
        bits = sign - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths are cut off")
    return runs
