"""TIFF by its tags: which one Pillow reads whole, and all bands of the others by tifffile. EXIF is a TIFF, too."""

import io
import logging
import math
import struct
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np

from jepakit.data.pixels import BadImageError, Pixels, native, refuse_bomb

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# tags of a TIFF: TIFF 6.0, sections 8 and 15
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 273, 274, 277
ROWS, PLANES, TILE, TILES, EXTRA_SAMPLES, SAMPLE_FORMAT = 278, 284, (322, 323), 324, 338, 339
WANTED = {256, 257, 258, 259, 262, 273, 274, 277, 278, 284, 322, 323, 324, 338, 339}
TYPES, TEXTS = {1: "B", 3: "H", 4: "I", 16: "Q"}, (1, 2, 6, 7)  # whole numbers; what is held as bytes
MOST_TAGS, MOST_VALUES = 4096, 1 << 18  # of a TIFF's directory, and of a tag of numbers: strips or tiles, a few bytes each
DEFLATE, OTHERS = (8, 32946), (5, 32773, 50000)  # TIFF compressions; others: LZW, PackBits and Zstandard by imagecodecs
INFLATED = 1032  # bytes that one of deflate can become
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # a line for every odd tag


def tags_of(data: bytes) -> dict[int, tuple[int, ...]]:
    """Numbers in the first directory of a TIFF, by tag. Raises BadImageError, struct.error and OverflowError."""
    order, big = ("<" if data[:2] == b"II" else ">"), b"+" in data[2:4]
    if data[:4] not in TIFF:
        raise BadImageError("no TIFF")
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    if count > MOST_TAGS:
        raise BadImageError(f"a TIFF of {count} tags")
    entry, place = struct.Struct(order + ("HHQ" if big else "HHI")), place + (8 if big else 2)
    room = 8 if big else 4  # for values beside their tag
    tags: dict[int, tuple[int, ...]] = {}
    for at in range(place, place + count * (entry.size + room), entry.size + room):
        tag, kind, n = entry.unpack_from(data, at)
        if n > MOST_VALUES and kind not in TEXTS:
            raise BadImageError(f"a TIFF with {n} values in tag {tag}")
        if tag in WANTED and tag not in tags and kind in TYPES and 0 < n <= MOST_VALUES:
            values, there = f"{order}{n}{TYPES[kind]}", at + entry.size
            if struct.calcsize(values) > room:
                (there,) = struct.unpack_from(order + ("Q" if big else "I"), data, there)
            tags[tag] = struct.unpack_from(values, data, there)
    return tags


def is_for_pillow(data: bytes, most_pixels: int) -> bool:
    """Whether a TIFF is gray or colour of 8 bits, alpha or not, or gray of 16: all else Pillow would cut, or refuse."""
    tags = tags_of(data)
    (width, length), (across, along) = ((tags.get(tag, (0,))[0] for tag in side) for side in ((WIDTH, LENGTH), TILE))
    refuse_bomb(width, length, most_pixels)
    refuse_bomb(across or 1, along or 1, most_pixels)  # a tile can be larger than its image
    if data[:4] == b"MM\0+" or set(tags.get(SAMPLE_FORMAT, (1,))) != {1}:  # it takes big-endian BigTIFF for another
        return False
    samples, bits = tags.get(SAMPLES, (1,))[0], max(tags.get(BITS, (1,)))
    alpha = sum(kind in (1, 2) for kind in tags.get(EXTRA_SAMPLES, ()))
    known = samples - alpha in (1, 3) or tags.get(PHOTOMETRIC) == (5,)  # 5: CMYK
    if not ((bits <= 8 and known) or (bits, samples) == (16, 1)):
        return False
    strips = -(-width // across) * -(-length // along) if across and along else -(-length // tags.get(ROWS, (length,))[0])
    strips *= samples if tags.get(PLANES) == (2,) else 1
    have = len(tags.get(TILES if across else STRIPS, ()))
    if have < strips and tags.get(COMPRESSION) != (6,):  # Pillow would leave the others black; 6: one JPEG, without strips
        raise BadImageError(f"broken or cut: {have} of {strips} strips or tiles")
    return True


def bands_of(data: bytes, most_pixels: int) -> Pixels:
    try:
        import tifffile
    except ImportError:
        raise BadImageError("a TIFF of many or deep bands: needs tifffile (pip install 'jepakit[tiff]')") from None
    with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False) as file:  # one page is enough
        page: Any = file.pages[0]
        _refuse_page(page, data, most_pixels)
        bands = page.asarray(maxworkers=1)
        if page.axes == "YX":
            bands = bands[..., None]
        elif page.axes == "SYX":
            bands = bands.transpose(1, 2, 0)
    return native(bands)


def _refuse_page(page: Any, data: bytes, most_pixels: int) -> None:
    """Raises BadImageError for a TIFF whose bands are no image of ours, or would take more memory than their pixels do."""
    kind, samples = page.dtype, page.samplesperpixel
    if page.axes not in ("YX", "YXS", "SYX"):
        raise BadImageError(f"a TIFF with axes {page.axes}; save it with rows, columns and bands")
    if kind is None or not (kind.kind == "f" or kind in (np.uint8, np.uint16)):
        raise BadImageError(f"bands of {kind or f'{page.bitspersample} bits'}; save them as uint8, uint16 or float32")
    for width, length in ((page.imagewidth, page.imagelength), (page.tilewidth or 1, page.tilelength or 1)):
        refuse_bomb(width, length, most_pixels, -(-samples * kind.itemsize // 4))
    if page.is_contiguous:
        return
    if len(page.dataoffsets) < math.prod(page.chunked):  # tifffile would make room for all of them
        raise BadImageError(f"broken or cut: {len(page.dataoffsets)} of {math.prod(page.chunked)} strips or tiles")
    other = page.compression in OTHERS
    if page.compression not in (1, *DEFLATE) and not (other and find_spec("imagecodecs")):
        name, mend = getattr(page.compression, "name", page.compression), " or pip install imagecodecs" if other else ""
        raise BadImageError(f"a TIFF of compression {name}: save it with deflate{mend}")
    most = math.prod(page.chunks) * kind.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if page.compression in DEFLATE and min(count, len(data)) * INFLATED > max(most, 1 << 27):
            inflated = zlib.decompressobj().decompress(data[offset : offset + count], most + 1)  # Python's zlib has no bound
            if len(inflated) > most:
                raise BadImageError("a strip or tile that inflates to more than its pixels: taken for a decompression bomb")


def turn_of(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 0 where it is absent or broken."""
    try:
        turn = tags_of(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")).get(ORIENTATION, (0,))[0]
    except (BadImageError, struct.error, OverflowError):
        return 0
    return turn if turn <= 8 else 0
