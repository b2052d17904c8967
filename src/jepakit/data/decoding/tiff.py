"""A page of a TIFF by its tags: which Pillow reads whole, all bands of the others by tifffile; no data, and what is black."""

import io
import logging
import math
import mmap
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decoding import ifd
from jepakit.data.decoding.ifd import Tags, first_value
from jepakit.data.decoding.pixels import BadImageError, Pixels, native, refuse_bomb
from jepakit.data.findings import Finding

DEFLATE, OTHERS = (8, 32946), (5, 32773, 50000)  # TIFF compressions; others: LZW, PackBits and Zstandard by imagecodecs
# what Pillow knows, by photometric interpretation: how many samples, and of what kind those are that are extra; 2, 1: alpha
_KNOWN: dict[int, tuple[tuple[int, tuple[int, ...]], ...]] = {
    0: ((1, ()),),  # gray, the least white
    1: ((1, ()), (2, (2,))),  # gray
    2: ((3, ()), (4, (1,)), (4, (2,))),  # RGB
    3: ((1, ()), (2, (2,))),  # palette
    5: ((4, ()), (5, (0,)), (6, (0, 0))),  # CMYK
    6: ((1, ()), (3, ())),  # YCbCr
    8: ((3, ()),),  # CIE L*a*b*
}
GUESSED = {2: 0, 3: 0, 4: 0, 6: 6}  # photometric interpretation where none is named, by compression: fax, old JPEG; else unknown
_COLOURS = {3: "a palette", 6: "YCbCr", 8: "L*a*b*", 9: "L*a*b*", 10: "L*a*b*"}  # that are no bands by themselves
INFLATED = 1032  # bytes that one of deflate can become
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # a line for every odd tag


def is_for_pillow(data: bytes, tags: Tags, most_pixels: int) -> bool:
    """Whether Pillow reads the first page of a TIFF, of these tags, rightly and whole.

    It does for gray or colour of 8 bits, with alpha or without, and for gray of 16; all else it would cut, or refuse.
    Raises BadImageError for more than `most_pixels`, and where strips or tiles are missing.
    """
    width, length = (first_value(tags, tag, 0) for tag in (ifd.WIDTH, ifd.LENGTH))
    across, along = (first_value(tags, tag, 0) for tag in ifd.TILE)
    refuse_bomb(width, length, most_pixels)
    refuse_bomb(across or 1, along or 1, most_pixels)  # a tile can be larger than its image
    if not _pillow_knows(data, tags):
        return False
    tiled = across and along
    pieces = -(-width // across) * -(-length // along) if tiled else -(-length // first_value(tags, ifd.ROWS, length))
    pieces *= first_value(tags, ifd.SAMPLES) if first_value(tags, ifd.PLANES) == 2 else 1
    have = len(tags.get(ifd.TILES if across else ifd.STRIPS, ()))
    without_strips = first_value(tags, ifd.COMPRESSION) == 6  # one old JPEG
    if have < pieces and not without_strips:  # Pillow would leave the others black
        raise BadImageError(f"broken or cut: {have} of {pieces} strips or tiles")
    return True


def _pillow_knows(data: bytes, tags: Tags) -> bool:
    """Whether Pillow reads this kind of a TIFF, and reads it rightly."""
    compression, samples = first_value(tags, ifd.COMPRESSION), first_value(tags, ifd.SAMPLES)
    photometric = first_value(tags, ifd.PHOTOMETRIC, GUESSED.get(compression, -1))
    bits, extra = {*tags.get(ifd.BITS, (1,))}, tags.get(ifd.EXTRA_SAMPLES, ())
    if first_value(tags, ifd.DEPTH) > 1 or {*tags.get(ifd.SAMPLE_FORMAT, (1,))} != {1} or len(bits) > 1:
        return False
    if data[:4] == b"MM\0+" or (samples, extra) not in _KNOWN.get(photometric, ()):  # the first it takes for another
        return False
    if first_value(tags, ifd.PLANES) == 2:  # it knows such colours; of one sample it takes the least for black
        alone = samples == 1 and (compression != 1 or (photometric == 1 and bits <= {1, 8}))
        if not alone and not (photometric in (2, 5, 8) and {*extra} <= {2}):
            return False
    plain = not extra and photometric in (0, 1, 2, 3) and bits <= {1, 2, 4, 8} and (photometric, *bits) != (0, 8)
    if first_value(tags, ifd.FILL) != 1 and compression == 1 and not plain:  # bits from right to left
        return False
    few = samples == 1 and photometric in (0, 1, 3) and bits <= {1, 2, 4}
    deep = samples == 1 and bits == {16} and (photometric == 1 or (photometric == 0 and data[:2] == b"II"))
    return bits == {8} or few or deep


def bands_of(data: bytes, most_pixels: int) -> NDArray[Any]:
    """All bands of the first page (H, W, bands), at the depth and in the byte order of the file. Raises BadImageError."""
    try:
        import tifffile
    except ImportError:
        raise BadImageError("a TIFF of many or deep bands: needs tifffile (pip install 'jepakit[tiff]')") from None
    with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False) as file:  # one page is enough
        page: Any = file.pages[0]
        refuse_page(page, data, most_pixels)
        bands: NDArray[Any] = page.asarray(maxworkers=1)
        if page.axes == "YX":
            bands = bands[..., None]
        elif page.axes == "SYX":
            bands = bands.transpose(1, 2, 0)
    return bands


def as_pixels(bands: NDArray[Any], tags: Tags, findings: list[Finding] | None, *, shown: bool = False) -> Pixels:
    """Bands (H, W, bands) of a page as pixels: those of no data get the mean of the others, and the least value is black.

    shown: the bands are what Pillow made of the page, which at 8 bits are colours, gray already turned. findings: gets what
    is found. Raises BadImageError where no pixel has data, and where a float is not finite.
    """
    found = list[Finding]()
    colours, photometric = shown and bands.dtype == np.uint8, first_value(tags, ifd.PHOTOMETRIC)
    white = (1 << max(tags.get(ifd.BITS, (1,)))) - 1
    value = _no_data(tags)
    if value is not None and colours and photometric == 3:
        found.append(Finding("palette"))
    elif value is not None:
        if colours:
            value = (white - value if photometric == 0 else value) * 255 // white
        bands, share = _filled(bands, value, together=colours or photometric == 2)
        found += [Finding("nodata", f"{value:g} fills {share:.1%}", share)] if share else []
    if photometric == 0 and not colours:  # the least value is white
        floats = bands.dtype.kind == "f"
        if floats and ifd.MOST not in tags:
            found.append(Finding("polarity"))
        else:
            most = tags[ifd.MOST][0] + first_value(tags, ifd.LEAST, 0) if floats else white
            turned = bands.shape[2] - len(tags.get(ifd.EXTRA_SAMPLES, ()))
            bands = np.concatenate([bands.dtype.type(most) - bands[..., :turned], bands[..., turned:]], 2)
    if bands.dtype == np.float64:
        found.append(Finding("depth", "floats of 64 bits, of which 32 are kept"))
    if findings is not None:
        findings.extend(found)
    return native(bands)


def _no_data(tags: Tags) -> float | None:
    """The value that GDAL's tag names, where it names one."""
    try:
        return float(tags[ifd.NO_DATA][0].split(b"\0")[0])
    except (KeyError, ValueError):
        return None


def _filled(bands: NDArray[Any], value: float, *, together: bool) -> tuple[NDArray[Any], float]:
    """Bands with the mean of each band's others where a pixel has no data, or of all bands where it has none; and the share.

    together: a pixel has no data where all of its bands are `value`, as 0 of red is red's own.
    """
    floats = bands.dtype.kind == "f"
    empty = np.isnan(bands) if math.isnan(value) else bands == (bands.dtype.type(value) if floats else value)
    if together:
        empty = np.broadcast_to(empty.all(2, keepdims=True), bands.shape)
    if not empty.any():
        return bands, 0.0
    counts, sums = (~empty).sum((0, 1)), np.where(empty, 0, bands).sum((0, 1), dtype=np.float64)
    if not counts.any():
        raise BadImageError("all of its pixels are of the value that it names as no data")
    means = np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum() / counts.sum())
    return np.where(empty, (means if floats else means.round()).astype(bands.dtype), bands), float(empty.mean())


def require_depth(kind: Any, bits: int) -> None:
    """Raises BadImageError for a dtype that is none of ours."""
    if kind is None or not (kind.kind == "f" or (kind.kind == "u" and kind.itemsize <= 2)):
        raise BadImageError(f"bands of {kind or f'{bits} bits'}; save them as uint8, uint16 or float32")


def refuse_page(page: Any, data: bytes | mmap.mmap, most_pixels: int, *, integers: bool = False) -> None:
    """Raises BadImageError for a TIFF whose bands are no image of ours, or would take more memory than their pixels do.

    integers: of any kind are taken.
    """
    kind, samples = page.dtype, page.samplesperpixel
    if page.axes not in ("YX", "YXS", "SYX"):
        raise BadImageError(f"a TIFF with axes {page.axes}; save it with rows, columns and bands")
    if not integers or kind is None or kind.kind not in "iu":
        require_depth(kind, page.bitspersample)
    if colours := _COLOURS.get(page.photometric):
        raise BadImageError(f"a TIFF whose colours are {colours}, in a form that is not read; save it as RGB")
    for width, length in ((page.imagewidth, page.imagelength), (page.tilewidth or 1, page.tilelength or 1)):
        refuse_bomb(width, length, most_pixels, -(-samples * kind.itemsize // 4))
    if page.bitspersample % 8 and page.bitspersample != 1 and not find_spec("imagecodecs"):
        raise BadImageError(f"a TIFF of {page.bitspersample} bits: save it with 8 or 16, or pip install imagecodecs")
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
