"""The pages of a TIFF: which is the image, which are its channels (as ImageJ, OME or tifffile say), and which are not read."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from jepakit.data.decoding import ifd
from jepakit.data.decoding.ifd import Tags, first_value

IMAGEJ = {b"channels": "C", b"slices": "Z", b"frames": "T"}  # fastest first
ATTRIBUTE = re.compile(rb"(\w+)\s*=\s*[\"']([^\"']*)")
PIXELS, TIFF_DATA = (re.compile(rb"<(?:\w+:)?%s\b([^>]*)>" % name) for name in (b"Pixels", b"TiffData"))
Axes = dict[str, int]  # lengths of the axes that pages lie along, the fastest first


@dataclass(frozen=True)
class Pages:
    """Where the image of a TIFF is. Smaller copies, thumbnails and masks are no pages.

    places: its directory, or that of each of its channels. behind: for pages that lie behind each other under one directory,
    the numbers of those that are its channels. count: of all pages, 1 where they were not counted; axes: that all of them
    lie along, as the file names them, or ''; masks: how many pages are masks.
    """

    places: tuple[int, ...]
    behind: tuple[int, ...] = ()
    count: int = 1
    axes: str = ""
    masks: int = 0


def pages_of(data: bytes, *, counted: bool) -> Pages:
    """Where the image of a TIFF is. counted: count all pages, which takes longer. Raises as `ifd.tags_of`."""
    first, tags = ifd.first_of(data), ifd.tags_of(data)
    axes = axes_of(tags)
    channels = axes.get("C", 1)
    if not counted and channels == 1 and not _is_aside(tags):
        return Pages((first,))
    found = list(ifd.directories(data))
    pages = [place for place, others in found if not _is_aside(others)]
    if not pages:  # a thumbnail, and the image below it
        pages = [place for place in tags.get(ifd.BELOW, ()) if not _is_aside(ifd.tags_of(data, place))] or [first]
    named = math.prod(axes.values())
    behind = len(pages) == 1 < named and _lie_behind(data, tags, named)
    numbers = _channel_pages(tags, axes)
    apart = len(pages) > max(numbers, default=0) and len(set(numbers)) == channels
    inside = "YXS" if first_value(tags, ifd.SAMPLES) > 1 else "YX"
    return Pages(
        places=tuple(pages[i] for i in numbers) if channels > 1 and apart and not behind else (pages[0],),
        behind=tuple(numbers) if channels > 1 and behind else (),
        count=named if behind else len(pages),
        axes="".join(axis for axis, size in reversed(axes.items()) if size > 1) + inside if named > 1 else "",
        masks=sum(first_value(others, ifd.KIND, 0) & 5 == 4 for _, others in found),
    )


def axes_of(tags: Tags) -> Axes:
    """The axes that pages lie along: ImageJ's, the first image's of OME-XML, or of tifffile's JSON; {} if none is named."""
    text: bytes = first_value(tags, ifd.DESCRIPTION, b"")
    if text.startswith(b"ImageJ="):
        given = dict(re.findall(rb"^(\w+)=(\d{1,9})\s*$", text, re.M))
        axes = {axis: max(1, int(given.get(name, 1))) for name, axis in IMAGEJ.items()}
        return axes | {"I": max(1, int(given.get(b"images", 1)) // math.prod(axes.values()))}
    if re.search(rb"<(?:\w+:)?OME\b", text) and (pixels := PIXELS.search(text)):
        given = dict(ATTRIBUTE.findall(pixels[1]))
        order = given.get(b"DimensionOrder", b"XYCZT").decode(errors="replace")[2:]
        axes = {axis: _digits(given.get(b"Size" + axis.encode(), b"1")) for axis in order if axis in "CZT"}
        return axes | {"C": max(1, axes.get("C", 1) // max(1, first_value(tags, ifd.SAMPLES)))}  # OME counts samples as channels
    return _shaped_axes(text, tags) if text.startswith(b"{") else {}


def _shaped_axes(text: bytes, tags: Tags) -> Axes:
    """The axes before those of a page, of the shape of all pages that tifffile writes as JSON."""
    try:
        content: Any = json.loads(text.rstrip(b"\0"))
        shape, names = [int(size) for size in content["shape"]], str(content.get("axes", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return {}
    values = math.prod(first_value(tags, tag) for tag in (ifd.WIDTH, ifd.LENGTH, ifd.SAMPLES))
    ahead, product = len(shape), 1
    while ahead and product < values:
        ahead -= 1
        product *= shape[ahead]
    if product != values or min(shape[:ahead], default=0) < 1:
        return {}
    known = names[:ahead] if len(names) == len(shape) and len(set(names)) == len(names) else "QRVWH"[:ahead]
    return dict(zip(reversed(known), reversed(shape[:ahead]), strict=False))


def _channel_pages(tags: Tags, axes: Axes) -> list[int]:
    """Numbers of the pages that are the channels of the first picture; [] where there are absurdly many."""
    count, names = axes.get("C", 1), list(axes)
    if not 1 < count <= 1024:  # the most of images.channels
        return []
    step = math.prod(axes[name] for name in names[: names.index("C")])
    text: bytes = first_value(tags, ifd.DESCRIPTION, b"")
    placed = dict[int, int]()
    if (pixels := PIXELS.search(text)) is not None:  # OME says where planes lie; without, they are in order
        end = text.find(b"Pixels>", pixels.end())
        for attributes in TIFF_DATA.findall(text, pixels.end(), end if end >= 0 else len(text)):
            plane = {name: _digits(value) for name, value in ATTRIBUTE.findall(attributes)}
            if not plane.get(b"FirstZ", 0) and not plane.get(b"FirstT", 0):
                placed.setdefault(plane.get(b"FirstC", 0), plane.get(b"IFD", 0))
    if len(placed) > 1:  # each has its own, maybe in another file
        return [placed.get(channel, 0) for channel in range(count)]
    return [placed.get(0, 0) + channel * step for channel in range(count)]


def _digits(text: bytes) -> int:
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else 0


def _is_aside(tags: Tags) -> bool:
    """Whether a page is a smaller copy of another one, or its mask."""
    return bool(first_value(tags, ifd.KIND, 0) & 5) or first_value(tags, ifd.OLD_KIND, 0) == 2


def _lie_behind(data: bytes, tags: Tags, count: int) -> bool:
    """Whether so many pages lie behind each other where the first has its pixels (ImageJ, tifffile)."""
    plain = first_value(tags, ifd.COMPRESSION) == first_value(tags, ifd.PLANES) == 1 and ifd.TILE[0] not in tags
    strips = tags.get(ifd.STRIPS, ())
    known = max(tags.get(ifd.BITS, (1,))) in (8, 16, 32, 64)
    return plain and known and len(strips) == 1 and strips[0] + count * _page_bytes(tags) <= len(data)


def _page_bytes(tags: Tags) -> int:
    """Bytes of the pixels of a page that is not compressed."""
    bits = first_value(tags, ifd.WIDTH, 0) * first_value(tags, ifd.SAMPLES) * max(tags.get(ifd.BITS, (1,)))
    return -(-int(bits) // 8) * int(first_value(tags, ifd.LENGTH, 0))


def page_behind(data: bytes, tags: Tags, index: int) -> np.ndarray[Any, Any]:
    """Pixels (H, W, samples) of the page that lies so many behind the first."""
    kind, size = {1: "u", 2: "i", 3: "f"}[first_value(tags, ifd.SAMPLE_FORMAT)], max(tags.get(ifd.BITS, (1,))) // 8
    shape = tags[ifd.LENGTH][0], tags[ifd.WIDTH][0], first_value(tags, ifd.SAMPLES)
    dtype = np.dtype(f"{'<' if data[:2] == b'II' else '>'}{kind}{size}")
    return np.frombuffer(data, dtype, math.prod(shape), tags[ifd.STRIPS][0] + index * _page_bytes(tags)).reshape(shape)
