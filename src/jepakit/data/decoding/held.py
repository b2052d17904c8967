"""One image that Python holds, PIL's, NumPy's or torch's, to pixels."""

from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from jepakit.data.decoding.decode import opened_pixels
from jepakit.data.decoding.pixels import BadImageError, Pixels, native

_LOADING = Lock()  # an image that Pillow has opened reads its file when first used, which two threads must not do at once


def held_pixels(image: object) -> Pixels:
    """Pixels (H, W, C) of a PIL image, or of an array or a tensor (H, W), (H, W, C) or (C, H, W). Raises BadImageError.

    A PIL image becomes what the same image in a file would; arrays hold uint8, uint16 or floats.
    """
    if isinstance(image, Image.Image):
        try:
            with _LOADING:
                image.load()
            return opened_pixels(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # its file may be broken
            raise BadImageError(f"broken or cut: {error}") from None
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise BadImageError(f"a {type(image).__name__}: give PIL images, arrays or tensors")
    require_pixels(image.dtype)
    axis = channel_axis(image.shape)
    pixels = image[..., None] if axis is None else np.moveaxis(image, axis, 2)
    if not pixels.size:
        raise BadImageError(f"{image.shape} holds no pixels")
    return native(pixels)


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of an image that holds its channels: 2 of (H, W, C), 0 of (C, H, W), None of (H, W). Raises BadImageError.

    Channels are fewer than rows and columns; where neither outer axis is so, nothing is guessed.
    """
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise BadImageError(f"{shape} is not the shape of an image: (H, W), (H, W, C) or (C, H, W)")
    first, middle, last = shape
    if last < min(first, middle):
        return 2
    if first < min(middle, last):
        return 0
    raise BadImageError(f"in {shape} channels cannot be told from rows and columns: they must be fewer, and come last or first")


def require_pixels(dtype: Any) -> None:
    """Raises BadImageError for arrays that are not of uint8, uint16 or floats, which say what white is."""
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16) and not (dtype.kind == "f" and dtype.itemsize <= 8):
        raise BadImageError(f"holds {dtype}: give uint8, uint16 or floats, as by astype(np.uint8)")
