"""Patch tokens as colours: their three leading principal components over several images, as DINOv2 shows them.

B images, T patches of a grid (rows, columns), D width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.pictures.drawing import PictureRow, image_rows
from jepakit.pictures.given import Array32, encoder_input, grid_of, patch_tokens, to_look_at

STRETCHED_BETWEEN = (1, 99)  # percentiles of a component that are its darkest and brightest


@dataclass(frozen=True, eq=False)
class PatchColours:
    """Principal components of the patch tokens of all images together.

    scores (B, rows, columns, 3); basis (3, D) unit rows, the largest entry of each positive; mean (D,); explained (3,): share
    of the tokens' variance. images (B, H', W', 3) uint8.
    """

    scores: Array32
    basis: Array32
    mean: Array32
    explained: Array32
    images: NDArray[Any]

    @property
    def colours(self) -> Array32:
        """Red, green and blue in [0, 1] of each patch, (B, rows, columns, 3): each component stretched over all images alike."""
        low, high = np.percentile(self.scores.reshape(-1, 3), STRETCHED_BETWEEN, axis=0)
        stretched: Array32 = ((self.scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1).astype(np.float32)
        return stretched

    def figure(self, most: int = 12) -> Figure:
        """The first images above their patches' colours."""
        pairs = zip(self.images[:most], self.colours[:most], strict=True)
        rows = [PictureRow([("image", image, None), ("PCA", colours, None)]) for image, colours in pairs]
        share = ", ".join(f"{each:.0%}" for each in self.explained)
        return image_rows(rows, f"Principal components of patch tokens (variance: {share})", down=True)


def patch_colours(encoder: Encoder, images: Any) -> PatchColours:
    """Principal components of patch tokens over images, all that `Encoder.embed` takes: scikit-learn's, exact.

    Raises UserError as `embed` does, and where there are fewer than three tokens or features that are not finite.
    """
    x = encoder_input(encoder, images)
    return colours_of(patch_tokens(encoder, x), grid_of(encoder, x), to_look_at(x, encoder.images))


def colours_of(tokens: Tensor, grid: tuple[int, int], images: NDArray[Any]) -> PatchColours:
    """The same of tokens (B, T, D) that are there already, and images to look at (B, H', W', 3)."""
    from sklearn.decomposition import PCA

    rows = tokens.flatten(0, 1).double().numpy()
    if min(rows.shape) < 3:
        raise UserError(f"three principal components of {rows.shape[0]} tokens of {rows.shape[1]} features: give more images")
    if not np.isfinite(rows).all():
        raise UserError("the features of some patches are not finite: the weights or the images are broken")
    found = PCA(3, svd_solver="covariance_eigh").fit(rows)
    scores = found.transform(rows).reshape(len(tokens), *grid, 3)
    basis, mean, share = (x.astype(np.float32) for x in (found.components_, found.mean_, found.explained_variance_ratio_))
    return PatchColours(scores.astype(np.float32), basis, mean, share, images)
