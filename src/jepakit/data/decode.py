"""An image file to pixels: JPEG by simplejpeg, all else by Pillow; nothing in a file can run or take the memory."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
MOST_PIXELS = 100_000_000  # more is taken for a decompression bomb
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow runs Ghostscript on others
ORIENTATION = 0x0112


class BadImageError(Exception):
    """A file that is not a readable image; the message says why."""


def read_image(path: Path) -> Pixels:
    """(H, W, 3) uint8, upright, transparency on white. Raises BadImageError."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise BadImageError(error.strerror or str(error)) from None


def decode(data: bytes) -> Pixels:
    """Bytes of an image file -> (H, W, 3) uint8. Raises BadImageError."""
    if not data:
        raise BadImageError("empty file")
    try:
        if simplejpeg.is_jpeg(data):
            return _jpeg(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_bomb(*image.size)
            return _rgb(image)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise whatever a broken file provokes; each means the same here
        raise BadImageError(f"{type(error).__name__}: {error}".split("\n")[0][:200]) from None


def _jpeg(data: bytes) -> Pixels:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    _refuse_bomb(width, height)  # simplejpeg itself has no limit
    if space == "CMYK":
        with Image.open(io.BytesIO(data)) as image:
            return _rgb(image)
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    turn = _orientation(data) if b"Exif\x00" in data[:65536] else 1
    return _upright(pixels, turn)


def _orientation(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return int(image.getexif().get(ORIENTATION, 1))


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """EXIF orientations 1-8: mirrored where even or 7/5 transposed, as the standard's table."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadImageError(f"{width}x{height} is more than {MOST_PIXELS:,} pixels: taken for a decompression bomb")


def _rgb(image: Any) -> Pixels:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray: keep the upper byte
        return np.repeat((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)[..., None], 3, -1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only
