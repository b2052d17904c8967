"""An image file to pixels: JPEG by simplejpeg, deep TIFF by tifffile, all else by Pillow.

Nothing in a file can run, or take more memory or time than an image of images.max_pixels: sizes are read off headers first.
"""

import io
import re
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from jepakit.data.kinds import HEAD, kind_of
from jepakit.data.pixels import MOST_PIXELS, BadImageError, Pixels, native, refuse_bomb
from jepakit.data.tiff import TIFF, bands_of, is_for_pillow, turn_of

PART = 1 << 20  # pixels that are converted at a time
MOST_BYTES = 1 << 30  # of an image file
MOST_SCANS = 4_000_000_000  # pixels times scans of a JPEG: a good one of the most pixels has a dozen scans; some 3 s
MOST_RUNS = 1 << 24  # pixels of a BMP in run lengths, which Pillow decodes in Python: some 1 s
SUFFIXES = frozenset(  # of what is read; in MPO are JPEGs after each other
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff", ".gtiff", ".btf", ".tf2", ".tf8", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)
FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's part; it runs Ghostscript on others
MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of a JPEG, with a length after it, or its end
# a line for every odd tag; what a reader should know is in BadImageError
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: Path) -> Pixels:
    """Pixels of a file, as of `decode`. Raises BadImageError."""
    return decode(file_bytes(path))


def file_bytes(path: Path) -> bytes:
    """What a file holds. Raises BadImageError, also for what is no plain file (reading a pipe would wait), or over 1 GiB."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("a directory, not a file" if stat.S_ISDIR(status.st_mode) else "not a file")
        if status.st_size > MOST_BYTES:
            raise BadImageError(f"a file of {status.st_size / 2**30:.1f} GiB; the largest that is read has 1")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise BadImageError(getattr(error, "strerror", None) or str(error)) from None


def decode(data: bytes, most_pixels: int = MOST_PIXELS) -> Pixels:
    """Bytes of an image file -> pixels (H, W, C), upright, transparency on white. Raises BadImageError.

    More pixels than `most_pixels` are taken for a decompression bomb, and refused by the header.

    uint8 of three channels for gray and colour of 8 bits; uint16 of one for gray of 16 bits; float32 of one for a PFM; and
    all bands of a TIFF that has others, or deeper ones, as uint8, uint16 or float32 (extra 'tiff').
    """
    if not data:
        raise BadImageError("empty file")
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data, most_pixels)
        if data[:4] in TIFF and not is_for_pillow(data, most_pixels):
            return bands_of(data, most_pixels)
        return _pillow(data, most_pixels)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        kind = next((kind for kind in FORMATS if Image.OPEN[kind][1](data[:16])), None)  # type: ignore[misc]
        other = kind_of(data[:HEAD])
        none = f"none of JPEG, {', '.join(FORMATS)}" + (f", but {other}: convert it to JPEG or PNG" if other else "")
        raise BadImageError(f"a {kind}, broken or cut" if kind else none) from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, which images.max_pixels does not move
        raise BadImageError(str(error)) from None
    except MemoryError:
        raise BadImageError("takes more memory than there is") from None
    except Exception as error:  # decoders raise whatever a broken file provokes; each means the same here
        raise BadImageError(f"broken or cut: {str(error) or type(error).__name__}".split("\n")[0][:200]) from None


def _jpeg(data: bytes, most_pixels: int) -> Pixels:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    refuse_bomb(width, height, most_pixels)  # simplejpeg itself has no limit
    most = max(16, MOST_SCANS // (width * height))
    if len(data) > 10 * most and data.count(b"\xff\xda") > most and (scans := _scans(data)) > most:
        raise BadImageError(f"{width}x{height} in {scans} scans: taken for a bomb of time")
    if space == "CMYK":
        inks = simplejpeg.decode_jpeg(data, "CMYK")  # Adobe's are inverted
        pixels = _by_parts(
            width, height, lambda a, b: Image.frombytes("CMYK", (width, b - a), inks[a:b].tobytes(), "raw", "CMYK;I")
        )
        return _upright(pixels, jpeg_turn(data))
    return _upright(simplejpeg.decode_jpeg(data, "RGB"), jpeg_turn(data))


def _scans(data: bytes) -> int:
    """Scans of a JPEG, marker by marker; what follows its end has none (a film, in a live photo)."""
    place, scans = 2, 0
    while (found := MARKER.search(data, place)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


def jpeg_turn(data: bytes) -> int:
    """The orientation that a JPEG's EXIF gives, 1 to 8; 0 where there is none."""
    place = 2
    while place < 1 << 16 and (found := MARKER.search(data, place)) and found[0] != b"\xff\xda":
        start, place = found.end() + 2, found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        if found[0] == b"\xff\xe1" and data[start : start + 6] == b"Exif\0\0":
            return turn_of(data[start:place])
    return 0


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """EXIF orientations 1-8: mirrored where even or 7/5 transposed, as the standard's table."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=["C", "W"])  # torch warns of arrays that cannot be written to


def _pillow(data: bytes, most_pixels: int) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        refuse_bomb(width, height, most_pixels)
        if width * height > MOST_RUNS and image.tile and image.tile[0][0] == "bmp_rle":
            raise BadImageError(f"{width}x{height} in runs of pixels: taken for a bomb of time")
        image.load()  # which turns a TIFF upright
        width, height = image.size
        pixels = _by_parts(width, height, lambda a, b: image if b - a == height else image.crop((0, a, width, b)))
        return _upright(pixels, 0 if image.format == "TIFF" else pillow_turn(image.info))


def _by_parts(width: int, height: int, part: Callable[[int, int], Image.Image]) -> Pixels:
    """Pixels of an image whose rows `part` gives: on the way they take many times their memory, so that is done by parts."""
    rows = max(1, PART // width)
    first = _pixels(part(0, min(rows, height)))
    whole = np.empty((height, *first.shape[1:]), first.dtype)
    whole[: len(first)] = first
    for top in range(rows, height, rows):
        below = min(top + rows, height)
        whole[top:below] = _pixels(part(top, below))
    return whole


def _pixels(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray
        return np.asarray(image).clip(0, 65535).astype(np.uint16)[..., None]
    if image.mode == "F":
        return native(np.asarray(image)[..., None])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def pillow_turn(info: dict[Any, Any]) -> int:
    """The orientation that a PNG or WebP gives: in EXIF, in ImageMagick's hexadecimal of it, or in XMP."""
    exif, raw = info.get("exif", b""), info.get("Raw profile type exif", "")
    with suppress(ValueError):
        exif = exif or bytes.fromhex("".join(raw.split("\n")[3:]))
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp", "").encode(errors="replace")
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return turn_of(exif) or (int(found[1]) if found else 0)
