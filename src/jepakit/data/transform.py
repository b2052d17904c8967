"""Images as evaluation shows them to an encoder, one at a time: what `Encoder.transform` is."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepakit.data.crops import centre_crop, channels_of
from jepakit.data.decoding.decode import decode, file_bytes
from jepakit.data.decoding.held import held_pixels
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.model.images import ImageSettings, normalise
from jepakit.model.inputs import ImagesError, in_white_units, require_like

EMBEDDED_AT_ONCE = 64  # images


@dataclass(frozen=True)
class EvaluationTransform:
    """The largest centre crop of an image, resized with antialias and normalised. It can be pickled, and used by many threads."""

    images: ImageSettings

    def __call__(self, image: Any) -> Tensor:
        """A path, a PIL image, or an array or a tensor (H, W), (H, W, C) or (C, H, W) -> float32 (C, height, width).

        uint8, uint16, or floats in units of white (0 black, 1 white). Raises ImagesError, a UserError and a ValueError.
        """
        try:
            pixels, settings = self._pixels(image)
            view = centre_crop(channels_of(pixels, settings), *settings.height_width)[None]
        except BadImageError as error:
            which = f"{os.fsdecode(image)}: " if isinstance(image, str | os.PathLike) else "an image "
            raise ImagesError(f"{which}{error}") from None
        x = normalise(in_white_units(view, self.images), self.images)
        if view.dtype != torch.uint8:
            require_like(x, self.images)
        return x[0]

    def batches(self, images: Any) -> Iterator[Tensor]:
        """Images -> (B, C, height, width), so many at once: one image, a list of such, or uint8 or uint16 (B, H, W, C)."""
        if isinstance(images, Tensor | np.ndarray):
            images = images if images.ndim == 4 else images[None]
        elif not isinstance(images, list | tuple):
            images = [images]
        for start in range(0, len(images), EMBEDDED_AT_ONCE):
            yield torch.stack([self(image) for image in images[start : start + EMBEDDED_AT_ONCE]])

    def _pixels(self, image: Any) -> tuple[Pixels, ImageSettings]:
        """Pixels (H, W, C), and the settings by which they are read. Raises BadImageError."""
        if isinstance(image, str | os.PathLike):
            return decode(file_bytes(Path(image).expanduser()), self.images.max_pixels), self.images
        pixels = held_pixels(image)
        if pixels.dtype == np.float32:  # in units of white already, unlike a file's
            return pixels, self.images.model_copy(update={"white": None})
        return pixels, self.images
