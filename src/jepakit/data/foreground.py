"""Which patches of a crop are foreground (masking.prior): those of contrast above Otsu's threshold, or of a mask file.

N patches of a grid (rows, columns), in raster order.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepakit.data.decoding.decode import SUFFIXES, decode, file_bytes
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.formats.folder import leaves
from jepakit.model.masking.packed_masks import Grids

_FLAT = 1e-9  # differences of contrast, over the image's largest value, that are rounding


def of_contrast(image: Tensor, grid: tuple[int, int]) -> Grids:
    """Patches (N,) of an image (C, H, W) whose pixels deviate by more than Otsu's threshold; all where none stands out.

    The deviation of a patch is the root of the mean over channels of each channel's variance: one colour has none.
    """
    (c, h, w), (rows, columns) = image.shape, grid
    patches = image.double().reshape(c, rows, h // rows, columns, w // columns)
    contrast = patches.var((2, 4), correction=0).mean(0).sqrt().flatten().numpy()
    flat = np.ptp(contrast) <= _FLAT * float(image.abs().max())
    return np.ones(len(contrast), bool) if flat else above_otsu(contrast)


def above_otsu(values: NDArray[np.float64]) -> Grids:
    """Which of some values (N,) that are not all equal lie above Otsu's threshold (IEEE Trans. SMC 9, 1979).

    It is the one that parts them into two groups with the largest variance between their means, w0 w1 (m0 - m1)^2.
    """
    ordered = np.sort(values)
    low = np.arange(1, len(ordered))  # values in the lower group
    sums = ordered.cumsum()[:-1]
    between = low * (len(ordered) - low) * (sums / low - (ordered.sum() - sums) / (len(ordered) - low)) ** 2
    between[ordered[1:] == ordered[:-1]] = -1  # no threshold parts equal values
    return values > ordered[between.argmax()]  # type: ignore[no-any-return]


def of_mask(mask: Pixels, grid: tuple[int, int]) -> Grids:
    """Patches (N,) of which at least half is marked, of a crop's mask (h, w, C): marked where it is not 0."""
    marked = torch.from_numpy((mask != 0).any(-1)).double()
    return (F.adaptive_avg_pool2d(marked[None], grid) >= 0.5).flatten().numpy()  # type: ignore[no-any-return]


def read_mask(folder: Path, title: str, size: tuple[int, int], most_pixels: int) -> Pixels:
    """The mask (H, W, C) of an image of that title and size: the file in `folder` that has its path, whatever the ending.

    Raises BadImageError where there is none, or more than one, or it is of another size.
    """
    stem = title.rpartition(".")[0] or title
    found = [] if leaves(title) else [path for end in sorted(SUFFIXES) if (path := folder / f"{stem}{end}").is_file()]
    if len(found) != 1:
        have = f"{len(found)} masks, {found[0].name} and {found[1].name}," if found else "no mask"
        raise BadImageError(f"{have} of it in {folder} (masking.prior_folder): one image file {stem}.* is looked for")
    mask = decode(file_bytes(found[0]), most_pixels)
    if mask.shape[:2] != size:
        (h, w), (height, width) = mask.shape[:2], size
        raise BadImageError(f"its mask {found[0]} has {w}x{h} pixels, and the image {width}x{height}")
    return mask
