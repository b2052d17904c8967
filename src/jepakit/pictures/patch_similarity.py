"""How alike patches are to an encoder: the cosine of one patch's token with all others, of its own image and of a gallery.

B images, T patches of a grid (rows, columns), D width, K components.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.pictures.drawing import PictureRow, image_rows
from jepakit.pictures.given import Array32, encoder_input, grid_of, patch_tokens, to_look_at

ASKED_OF_SHORT = 256  # patches on which the error of short tokens is measured


@dataclass(frozen=True, eq=False)
class PatchSimilarity:
    """cosines (B, rows, columns) of the token of one `patch` (its place in raster order) of one `image` with every patch's."""

    cosines: Array32
    image: int
    patch: int
    images: NDArray[Any]

    def figure(self, most: int = 12) -> Figure:
        """The image that was asked of first, its patch marked; then the gallery; colours run from 0 to 1 in all."""
        order = [self.image, *(i for i in range(len(self.images)) if i != self.image)][:most]
        rows = [PictureRow([("image", self.images[i], None), ("cosine", self.cosines[i], (0.0, 1.0))]) for i in order]
        mark = divmod(self.patch, self.cosines.shape[2])
        return image_rows(rows, "Cosine with the marked patch", down=True, mark=mark)


def patch_similarity(encoder: Encoder, images: Any, image: int = 0, patch: int | tuple[int, int] = 0) -> PatchSimilarity:
    """Cosines of one patch with all patches of images, all that `Encoder.embed` takes; the patch with itself is 1.

    patch: its place in raster order, or (row, column). Raises UserError for an image or a patch that is not there.
    """
    x = encoder_input(encoder, images)
    grid = grid_of(encoder, x)
    place = patch if isinstance(patch, int) else patch[0] * grid[1] + patch[1]
    inside = isinstance(patch, int) or (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1])
    if not 0 <= image < len(x):
        raise UserError(f"image={image}: there are {len(x)} images, from 0 to {len(x) - 1}")
    if not (inside and 0 <= place < grid[0] * grid[1]):
        raise UserError(f"patch={patch}: an image has {grid[0]} rows of {grid[1]} patches, counted from 0")
    units = F.normalize(patch_tokens(encoder, x).double(), dim=2)
    cosines = (units @ units[image, place]).reshape(len(x), *grid)
    return PatchSimilarity(cosines.float().numpy(), image, place, to_look_at(x, encoder.images))


def short_tokens(tokens: Tensor, most: int = 64) -> tuple[NDArray[np.int8], float]:
    """Tokens (B, T, D) -> (B, T, K) int8, K <= `most`, whose cosines are nearly theirs, and the largest difference found.

    Unit tokens on their leading singular vectors (uncentred, as cosines are), of length 127: small enough for a page.
    """
    units = F.normalize(tokens.flatten(0, 1).double(), dim=1)
    leading = torch.linalg.eigh(units.T @ units).eigenvectors.flip(1)[:, :most]
    short = (F.normalize(units @ leading, dim=1) * 127).round()
    asked = torch.linspace(0, len(units) - 1, min(len(units), ASKED_OF_SHORT)).long()
    back = F.normalize(short, dim=1)
    error = (units[asked] @ units.T - back[asked] @ back.T).abs().max()
    return short.to(torch.int8).view(*tokens.shape[:2], -1).numpy(), float(error)
