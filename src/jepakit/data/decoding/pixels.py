"""What decoding gives, or why it does not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8 | np.uint16 | np.float32]  # (H, W, C), at the depth of the file
MOST_SIDE = 1 << 20  # pixels


class BadImageError(Exception):
    """A file that is not a readable image; the message says why."""


def too_many(bad: int, samples: int, share: float) -> bool:
    """Whether so many unreadable images are more than images.max_bad; one is never too many."""
    return bad > max(1, share * samples)


def refuse_bomb(width: int, height: int, most: int, weight: int = 1) -> None:
    """Raises BadImageError for more pixels than that, or none. weight: words of four bytes in a pixel."""
    size = f"{width}x{height}" + (f" of {4 * weight} bytes a pixel" if weight != 1 else "")
    if width * height * weight > most:
        raise BadImageError(f"{size} is more than images.max_pixels={most}: taken for a decompression bomb")
    if max(width, height) > MOST_SIDE:  # a row of one pixel takes Pillow twenty bytes
        raise BadImageError(f"{size} has a side of more than {MOST_SIDE}: taken for a decompression bomb")
    if min(width, height, weight) < 1:
        raise BadImageError(f"{width}x{height} has no pixels")


def native(bands: Any) -> Pixels:
    """In the machine's byte order, floats as float32. Raises BadImageError where one is not finite."""
    floats = bands.dtype.kind == "f"
    with np.errstate(over="ignore"):
        pixels: Pixels = np.require(bands, np.float32 if floats else bands.dtype.newbyteorder("="), ["C", "W"])
    if floats and not np.isfinite(pixels).all():
        raise BadImageError("holds values that are not finite")
    return pixels
