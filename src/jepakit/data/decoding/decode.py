"""An image file to pixels: JPEG by simplejpeg, deep TIFF by tifffile, all else by Pillow.

Nothing in a file can run, or take more memory or time than an image of images.max_pixels: sizes are read off headers first.
"""

import io
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from jepakit.data.decoding import ifd
from jepakit.data.decoding.file_kinds import HEAD_BYTES, kind_of
from jepakit.data.decoding.ifd import first_value, starting_at, tags_of, turn_of
from jepakit.data.decoding.pages import page_behind, pages_of
from jepakit.data.decoding.pixels import BadImageError, Pixels, native, refuse_bomb
from jepakit.data.decoding.tiff import as_pixels, bands_of, is_for_pillow, require_depth
from jepakit.data.findings import Finding
from jepakit.model.images import MOST_PIXELS

_PART = 1 << 20  # pixels that are converted at a time
MOST_FILE_BYTES = 1 << 30  # of an image file
MOST_SCANS = 4_000_000_000  # pixels times scans of a JPEG: a good one of the most pixels has a dozen scans; some 3 s
MOST_RUNS = 1 << 24  # pixels of a BMP in run lengths, which Pillow decodes in Python: some 1 s
SUFFIXES = frozenset(  # of what is read; in MPO are JPEGs after each other
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff", ".gtiff", ".btf", ".tf2", ".tf8", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)
FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's part; it runs Ghostscript on others
# what Pillow unpacks of 16 bits a channel: the upper byte of each, and another word for the lower; of gray with alpha, all four
HALVES = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}
MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of a JPEG, with a length after it, or its end
SCAN, EXIF = 0xDA, 0xE1  # the second bytes of two
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
        if status.st_size > MOST_FILE_BYTES:
            raise BadImageError(f"a file of {status.st_size / 2**30:.1f} GiB; the largest that is read has 1")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise BadImageError(getattr(error, "strerror", None) or str(error)) from None


def decode(data: bytes, most_pixels: int = MOST_PIXELS, findings: list[Finding] | None = None) -> Pixels:
    """Bytes of an image file -> pixels (H, W, C), upright, transparency on white, the least value black. Raises BadImageError.

    More pixels than `most_pixels` are taken for a decompression bomb, and refused by the header. findings: gets what of the file
    is not in the pixels, or not as it was: looking for that takes a little longer.

    uint8 of three channels for gray and colour of 8 bits; uint16 of one for gray of 16 bits, of three for colour; float32 of
    one for a PFM; and all bands of a TIFF that has others, or deeper ones, or channels as pages, as uint8, uint16 or float32
    (deep ones and odd numbers by the extra 'tiff').
    """
    if not data:
        raise BadImageError("empty file")
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data, most_pixels, findings)
        return _tiff(data, most_pixels, findings) if data[:4] in ifd.TIFF else _pillow(data, most_pixels, findings)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        kind = next((kind for kind in FORMATS if Image.OPEN[kind][1](data[:16])), None)  # type: ignore[misc]
        other = kind_of(data[:HEAD_BYTES])
        none = f"none of JPEG, {', '.join(FORMATS)}" + (f", but {other}: convert it to JPEG or PNG" if other else "")
        raise BadImageError(f"a {kind}, broken or cut" if kind else none) from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, which images.max_pixels does not move
        raise BadImageError(str(error)) from None
    except MemoryError:
        raise BadImageError("takes more memory than there is") from None
    except Exception as error:  # decoders raise whatever a broken file provokes; each means the same here
        raise BadImageError(f"broken or cut: {str(error) or type(error).__name__}".split("\n")[0][:200]) from None


def _tiff(data: bytes, most_pixels: int, findings: list[Finding] | None) -> Pixels:
    pages = pages_of(data, counted=findings is not None)
    first, count = starting_at(data, pages.places[0]), len(pages.behind) or len(pages.places)
    tags = tags_of(first)
    if findings is not None:
        if pages.count > count:
            findings.append(Finding("pages", f"{pages.count} pages{f' (axes {pages.axes})' if pages.axes else ''}"))
        if pages.masks:
            findings.append(Finding("mask"))
    if count > 1:
        weight = count * first_value(tags, ifd.SAMPLES) * -(-max(tags.get(ifd.BITS, (1,))) // 8)
        refuse_bomb(first_value(tags, ifd.WIDTH, 0), first_value(tags, ifd.LENGTH, 0), most_pixels, -(-weight // 4))
    if pages.behind:
        bands = [page_behind(first, tags, index) for index in pages.behind]
        require_depth(bands[0].dtype, 0)
        return as_pixels(np.concatenate(bands, 2), tags, findings)
    pixels = _page(first, most_pixels, findings, alone=count == 1)
    others = (_page(starting_at(data, place), most_pixels, None, alone=False) for place in pages.places[1:])
    return np.concatenate([pixels, *others], 2) if count > 1 else pixels


def _page(data: bytes, most_pixels: int, findings: list[Finding] | None, *, alone: bool) -> Pixels:
    """The first page of a TIFF. alone: gray of 8 bits has three channels, as in other formats; else one."""
    tags = tags_of(data)
    if not is_for_pillow(data, tags, most_pixels):
        return as_pixels(bands_of(data, most_pixels), tags, findings)
    pixels = as_pixels(_pillow(data, most_pixels, None), tags, findings, shown=True)
    colours = first_value(tags, ifd.SAMPLES) > 1 or first_value(tags, ifd.PHOTOMETRIC) == 3
    return pixels if alone or colours else pixels[..., :1]


def _jpeg(data: bytes, most_pixels: int, findings: list[Finding] | None) -> Pixels:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    refuse_bomb(width, height, most_pixels)  # simplejpeg itself has no limit
    if findings is not None and (pictures := _pictures(data)) > 1:
        findings.append(Finding("pages", f"{pictures} pictures"))
    most = max(16, MOST_SCANS // (width * height))
    if len(data) > 10 * most and data.count(b"\xff\xda") > most:
        scans = sum(marker == SCAN for marker, *_ in _segments(data))
        if scans > most:
            raise BadImageError(f"{width}x{height} in {scans} scans: taken for a bomb of time")
    pixels = simplejpeg.decode_jpeg(data, "CMYK" if space == "CMYK" else "RGB")
    if space == "CMYK":
        pixels = _by_parts(width, height, partial(_inks_to_colours, pixels))
    return _upright(pixels, jpeg_turn(data))


def _inks_to_colours(inks: Pixels, a: int, b: int) -> Pixels:
    """Rows of a CMYK JPEG, whose inks Adobe inverts."""
    return _pixels(Image.frombytes("CMYK", (inks.shape[1], b - a), inks[a:b].tobytes(), "raw", "CMYK;I"))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG; what follows its end has none (a film, in a live photo)."""
    place = 2
    while (found := MARKER.search(data, place)) and found[0] != b"\xff\xd9":
        start = found.end()
        place = start + int.from_bytes(data[start : start + 2])
        yield found[0][1], start + 2, place


def _pictures(data: bytes) -> int:
    """Pictures of a JPEG in the multi-picture format (CIPA DC-007), less smaller copies and what makes HDR of the first one."""
    start = data.find(b"MPF\0", 0, 1 << 20) + 4
    if start < 4 or b"hdrgm:Version" in data:
        return 1
    try:
        entries: bytes = tags_of(data[start : start + (1 << 16)])[ifd.PICTURES][0]
    except (BadImageError, KeyError, struct.error, OverflowError):
        return 0
    kinds = np.frombuffer(entries, "<u4" if data[start] == ord("I") else ">u4", len(entries) // 4)[::4] & 0xFFFFFF
    return int((~np.isin(kinds, (0x010001, 0x010002))).sum())


def jpeg_turn(data: bytes) -> int:
    """The orientation that a JPEG's EXIF gives, 1 to 8; 0 where there is none."""
    for marker, start, end in _segments(data):
        if marker == EXIF and data[start : start + 6] == b"Exif\0\0":
            return turn_of(data[start:end])
        if marker == SCAN or end >= 1 << 16:
            break
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


def _pillow(data: bytes, most_pixels: int, findings: list[Finding] | None) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        tile: Any = image.tile[0] if image.tile else None
        deep = tile is not None and (tile[3] in HALVES or (image.format == "PPM" and tile[0] == "ppm" and tile[3][1] > 255))
        refuse_bomb(width, height, most_pixels, 2 if deep and image.mode != "I" else 1)
        if width * height > MOST_RUNS and tile and tile[0] == "bmp_rle":
            raise BadImageError(f"{width}x{height} in runs of pixels: taken for a bomb of time")
        if deep and image.format == "PPM":
            return _deep_ppm(data, image)
        image.load()  # which turns a TIFF upright
        width, height = image.size
        part = _deep_png(data, tile[3], image) if deep else lambda a, b: _pixels(_rows(image, a, b))
        pixels = _by_parts(width, height, part)
        if findings is not None:
            findings.extend(_lost(image, tile))
        return _upright(pixels, 0 if image.format == "TIFF" else pillow_turn(image.info))


def _lost(image: Image.Image, tile: Any) -> Iterator[Finding]:
    """What of a file Pillow has not given."""
    with suppress(Exception):  # the first frame is good, whatever becomes of the others
        if (frames := getattr(image, "n_frames", 1)) > 1:
            yield Finding("pages", f"{frames} frames")
    if tile and tile[0] == "ppm_plain" and image.mode == "RGB" and tile[3][1] > 255:
        yield Finding("depth", f"colours written as text up to {tile[3][1]}, of which 8 bits are kept")


def _deep_png(data: bytes, rawmode: str, image: Image.Image) -> Callable[[int, int], Pixels]:
    """Reads rows of a PNG of 16 bits a channel, of which Pillow gives 8 at a time: a function to uint16 (rows, W, 3 or 1)."""
    halves = []
    for half in HALVES[rawmode]:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            opened.tile = [tile._replace(args=half) for tile in opened.tile]
            opened.load()
            halves.append(opened)
    clear: Any = image.info.get("transparency") if rawmode == "RGB;16B" else None

    def part(a: int, b: int) -> Pixels:
        bytes_ = [np.asarray(_rows(half, a, b)).astype(np.uint16) for half in halves]
        upper, lower = bytes_ if len(bytes_) == 2 else (bytes_[0][..., ::2], bytes_[0][..., 1::2])
        values: Any = upper << 8 | lower
        alpha = np.uint32(65535)
        if clear is not None:
            alpha = (values != np.array(clear)).any(2, keepdims=True).astype(np.uint32) * 65535
        elif rawmode != "RGB;16B":
            values, alpha = values[..., :-1], values[..., -1:].astype(np.uint32)
        on_white: Pixels = ((values * alpha + 65535 * (65535 - alpha) + 32767) // 65535).astype(np.uint16)
        return on_white

    return part


def _deep_ppm(data: bytes, image: Any) -> Pixels:
    """A PPM or PGM of two bytes a value, of which Pillow cuts colours to 8 bits: uint16 (H, W, 3 or 1), its maximum as 65535."""
    (width, height), bands, tile = image.size, 3 if image.mode == "RGB" else 1, image.tile[0]
    most, row = int(tile[3][1]), width * bands

    def part(a: int, b: int) -> Pixels:
        values = np.frombuffer(data, ">u2", (b - a) * row, tile[2] + 2 * a * row).astype(np.uint32)
        return ((values.clip(max=most) * 65535 + most // 2) // most).astype(np.uint16).reshape(b - a, width, bands)

    return _by_parts(width, height, part)


def _rows(image: Image.Image, first: int, last: int) -> Image.Image:
    return image if last - first == image.height else image.crop((0, first, image.width, last))


def _by_parts(width: int, height: int, part: Callable[[int, int], Pixels]) -> Pixels:
    """Pixels of an image, `part` giving those of some rows: on the way they take many times their memory, so it goes by parts."""
    rows = max(1, _PART // width)
    first = part(0, min(rows, height))
    pixels = np.empty((height, *first.shape[1:]), first.dtype)
    pixels[: len(first)] = first
    for top in range(rows, height, rows):
        pixels[top : top + rows] = part(top, min(top + rows, height))
    return pixels


def _pixels(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError(f"values from {values.min()} to {values.max()}; save them as uint16 or float32")
        return values.astype(np.uint16)[..., None]
    if image.mode == "F":
        return native(np.asarray(image)[..., None])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def opened_pixels(image: Image.Image) -> Pixels:
    """Pixels of an image that Pillow has loaded, as `decode` gives those of its file, if of no more than 8 bits a colour."""
    pixels = _by_parts(*image.size, lambda a, b: _pixels(_rows(image, a, b)))
    return _upright(pixels, 0 if image.format == "TIFF" else pillow_turn(image.info))  # load() turns a TIFF


def pillow_turn(info: dict[Any, Any]) -> int:
    """The orientation that a PNG or WebP gives: in EXIF, in ImageMagick's hexadecimal of it, or in XMP."""
    exif, raw = info.get("exif", b""), info.get("Raw profile type exif", "")
    with suppress(ValueError):
        exif = exif or bytes.fromhex("".join(raw.split("\n")[3:]))
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp", "").encode(errors="replace")
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return turn_of(exif) or (int(found[1]) if found else 0)
