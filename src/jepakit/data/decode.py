"""An image file to pixels: JPEG by simplejpeg, deep TIFF by tifffile, all else by Pillow.

Nothing in a file can run or take the memory.
"""

import io
import stat
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

Pixels = NDArray[np.uint8 | np.uint16 | np.float32]  # (H, W, C), at the depth of the file
MOST_PIXELS = 100_000_000  # unless images.max_pixels says otherwise
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow runs Ghostscript on others
ORIENTATION = 0x0112
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, PHOTOMETRIC, SAMPLES, EXTRA_SAMPLES = 258, 262, 277, 338  # TIFF 6.0, section 8


class BadImageError(Exception):
    """A file that is not a readable image; the message says why."""


def read_image(path: Path) -> Pixels:
    """Pixels of a file, as of `decode`. Raises BadImageError."""
    return decode(file_bytes(path))


def file_bytes(path: Path) -> bytes:
    """What a file holds. Raises BadImageError, also for what is no plain file: reading a pipe would wait."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise BadImageError("a directory, not a file" if stat.S_ISDIR(mode) else "not a file")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise BadImageError(getattr(error, "strerror", None) or str(error)) from None


def decode(data: bytes, most_pixels: int = MOST_PIXELS) -> Pixels:
    """Bytes of an image file -> pixels (H, W, C), upright, transparency on white. Raises BadImageError.

    More pixels than `most_pixels` are taken for a decompression bomb, and refused by the header.

    uint8 of three channels for gray and colour of 8 bits; uint16 of one for gray of 16 bits; and all bands of a TIFF that
    has others, or deeper ones, as uint8, uint16 or float32 (extra 'tiff').
    """
    if not data:
        raise BadImageError("empty file")
    try:
        if simplejpeg.is_jpeg(data):
            return _jpeg(data, most_pixels)
        if data[:4] in TIFF and not _for_pillow(data):
            return _bands(data, most_pixels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_bomb(*image.size, most_pixels)
            return _pillow(image)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise whatever a broken file provokes; each means the same here
        raise BadImageError(f"{type(error).__name__}: {error}".split("\n")[0][:200]) from None


def _for_pillow(data: bytes) -> bool:
    """Whether a TIFF is gray or colour of 8 bits, alpha or not, or gray of 16: all else Pillow would cut, or refuse."""
    if data[:4] == b"MM\0+":  # big-endian BigTIFF: Pillow takes its header for another
        return False
    head = data[: 16 if b"+" in data[:4] else 8]
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    samples, bits = tags.get(SAMPLES, 1), max(tags.get(BITS, (1,)))
    alpha = sum(kind in (1, 2) for kind in tags.get(EXTRA_SAMPLES, ()))
    known = samples - alpha in (1, 3) or tags.get(PHOTOMETRIC) == 5  # 5: CMYK
    return (bits <= 8 and known) or (bits, samples) == (16, 1)


def _bands(data: bytes, most_pixels: int) -> Pixels:
    try:
        import tifffile
    except ImportError:
        raise BadImageError("a TIFF of many or deep bands: needs tifffile (pip install 'jepakit[tiff]')") from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        _refuse_bomb(
            page.imagewidth, page.imagelength * -(-page.samplesperpixel // 4), most_pixels
        )  # four bands weigh as one colour
        bands, axes = page.asarray(), page.axes
    if axes == "YX":
        bands = bands[..., None]
    elif axes == "SYX":
        bands = bands.transpose(1, 2, 0)
    elif axes != "YXS":
        raise BadImageError(f"a TIFF with axes {axes}; save it with rows, columns and bands")
    if bands.dtype.kind == "f":
        bands = bands.astype(np.float32)
        if not np.isfinite(bands).all():
            raise BadImageError("holds values that are not finite")
    elif bands.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"bands of {bands.dtype}; save them as uint8, uint16 or float32")
    return np.array(bands, bands.dtype.newbyteorder("="), order="C")


def _jpeg(data: bytes, most_pixels: int) -> Pixels:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    _refuse_bomb(width, height, most_pixels)  # simplejpeg itself has no limit
    if space == "CMYK":
        with Image.open(io.BytesIO(data)) as image:
            return _pillow(image)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    turn = _orientation(data) if b"Exif\x00" in data[:65536] else 1
    return _upright(pixels, turn)


def _orientation(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return int(image.getexif().get(ORIENTATION, 1))


def _upright(pixels: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """EXIF orientations 1-8: mirrored where even or 7/5 transposed, as the standard's table."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _refuse_bomb(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise BadImageError(f"{width}x{height} is more than images.max_pixels={most}: taken for a decompression bomb")


def _pillow(image: Any) -> Pixels:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray
        return np.asarray(image).clip(0, 65535).astype(np.uint16)[..., None]
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only
