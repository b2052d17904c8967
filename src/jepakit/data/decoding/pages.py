"""The pages of a TIFF: which is the image, which are its channels (as ImageJ, OME or tifffile say), and which are not read."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from jepakit.data.decoding.ifd import (
    BELOW,
    BITS,
    COMPRESSION,
    DESCRIPTION,
    KIND,
    LENGTH,
    OLD_KIND,
    PLANES,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIPS,
    TILE,
    WIDTH,
    Tags,
    directories,
    first_of,
    tags_at,
)

IMAGEJ = {b"channels": "C", b"slices": "Z", b"frames": "T"}  # fastest first
ATTRIBUTE = re.compile(rb"(\w+)\s*=\s*[\"']([^\"']*)")
PIXELS, TIFF_DATA = (re.compile(rb"<(?:\w+:)?%s\b([^>]*)>" % name) for name in (b"Pixels", b"TiffData"))
Axes = dict[str, int]  # lengths of the axes that pages lie along, the fastest first


@dataclass(frozen=True)
class Pages:
    """Where the image of a TIFF is. Smaller copies, thumbnails and masks are no pages.

    places: its directory, or that of each channel; behind: where pages lie behind each other under the one directory, those
    that are channels; number: of all pages, 1 where they were not counted; axes: of all, as the file names them, or '';
    masks: pages that are such.
    """

    places: tuple[int, ...]
    behind: tuple[int, ...] = ()
    number: int = 1
    axes: str = ""
    masks: int = 0


def pages_of(data: bytes, *, counted: bool) -> Pages:
    """Where the image of a TIFF is. counted: count all pages, which takes longer. Raises as `ifd.tags_of`."""
    first = first_of(data)
    tags = tags_at(data, first)
    axes = axes_of(tags)
    channels, samples = axes.get("C", 1), tags.get(SAMPLES, (1,))[0]
    if not counted and channels == 1 and not _aside(tags):
        return Pages((first,))
    found = list(directories(data))
    whole = [place for place, others in found if not _aside(others)]
    if not whole:  # a thumbnail, and the image below it
        whole = [place for place in tags.get(BELOW, ()) if not _aside(tags_at(data, place))] or [first]
    named = math.prod(axes.values())
    behind = len(whole) == 1 < named and _lie_behind(data, tags, named)
    numbers = _channels(tags, axes)
    there = channels > 1 and (behind or (len(whole) > max(numbers, default=0) and len(set(numbers)) == channels))
    return Pages(
        tuple(whole[number] for number in numbers) if there and not behind else (whole[0],),
        tuple(numbers) if there and behind else (),
        named if behind else len(whole),
        "".join(axis for axis, size in reversed(axes.items()) if size > 1) + "YXS"[: 3 if samples > 1 else 2]
        if named > 1
        else "",
        sum(others.get(KIND, (0,))[0] & 5 == 4 for _, others in found),
    )


def axes_of(tags: Tags) -> Axes:
    """The axes that pages lie along: ImageJ's, the first image's of OME-XML, or of tifffile's JSON; {} if none is named."""
    text: bytes = tags.get(DESCRIPTION, (b"",))[0]
    if text.startswith(b"ImageJ="):
        given = dict(re.findall(rb"^(\w+)=(\d{1,9})\s*$", text, re.M))
        axes = {axis: max(1, int(given.get(name, 1))) for name, axis in IMAGEJ.items()}
        return axes | {"I": max(1, int(given.get(b"images", 1)) // math.prod(axes.values()))}
    if re.search(rb"<(?:\w+:)?OME\b", text) and (pixels := PIXELS.search(text)):
        given = dict(ATTRIBUTE.findall(pixels[1]))
        order = given.get(b"DimensionOrder", b"XYCZT").decode(errors="replace")[2:]
        axes = {axis: _number(given.get(b"Size" + axis.encode(), b"1")) for axis in order if axis in "CZT"}
        samples = tags.get(SAMPLES, (1,))[0]  # which OME counts as channels
        return axes | {"C": max(1, axes.get("C", 1) // max(1, samples))}
    if text.startswith(b"{"):
        return _of_json(text, tags)
    return {}


def _of_json(text: bytes, tags: Tags) -> Axes:
    try:
        said: Any = json.loads(text.rstrip(b"\0"))
        shape, names = [int(size) for size in said["shape"]], str(said.get("axes", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return {}
    own = tags.get(WIDTH, (1,))[0] * tags.get(LENGTH, (1,))[0] * tags.get(SAMPLES, (1,))[0]
    ahead, product = len(shape), 1
    while ahead and product < own:
        ahead -= 1
        product *= shape[ahead]
    if product != own or min(shape[:ahead], default=0) < 1:
        return {}
    known = names[:ahead] if len(names) == len(shape) and len(set(names)) == len(names) else "QRVWH"[:ahead]
    return dict(zip(reversed(known), reversed(shape[:ahead]), strict=False))


def _channels(tags: Tags, axes: Axes) -> list[int]:
    """Numbers of the pages that are the channels of the first picture; [] where there are absurdly many."""
    count, names = axes.get("C", 1), list(axes)
    if not 1 < count <= 1024:  # the most of images.channels
        return []
    step = math.prod(axes[name] for name in names[: names.index("C")])
    text: bytes = tags.get(DESCRIPTION, (b"",))[0]
    said = dict[int, int]()
    if (pixels := PIXELS.search(text)) is not None:  # OME says where planes lie; without, they are in order
        end = text.find(b"Pixels>", pixels.end())
        for attributes in TIFF_DATA.findall(text, pixels.end(), end if end >= 0 else len(text)):
            of = {name: _number(value) for name, value in ATTRIBUTE.findall(attributes)}
            if not of.get(b"FirstZ", 0) and not of.get(b"FirstT", 0):
                said.setdefault(of.get(b"FirstC", 0), of.get(b"IFD", 0))
    if len(said) > 1:  # each has its own, maybe in another file
        return [said.get(channel, 0) for channel in range(count)]
    return [said.get(0, 0) + channel * step for channel in range(count)]


def _number(text: bytes) -> int:
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else 0


def _aside(tags: Tags) -> bool:
    """Whether a page is a smaller copy of another one, or its mask."""
    return bool(tags.get(KIND, (0,))[0] & 5) or tags.get(OLD_KIND, (0,))[0] == 2


def _lie_behind(data: bytes, tags: Tags, number: int) -> bool:
    """Whether so many pages lie behind each other where the first has its pixels (ImageJ, tifffile)."""
    plain = tags.get(COMPRESSION, (1,)) == (1,) and tags.get(PLANES, (1,)) == (1,) and TILE[0] not in tags
    plain = plain and max(tags.get(BITS, (1,))) in (8, 16, 32, 64)
    return plain and len(tags.get(STRIPS, ())) == 1 and tags[STRIPS][0] + number * page_bytes(tags) <= len(data)


def page_bytes(tags: Tags) -> int:
    """Bytes of the pixels of a page that is not compressed."""
    bits = tags.get(WIDTH, (0,))[0] * tags.get(SAMPLES, (1,))[0] * max(tags.get(BITS, (1,)))
    return -(-int(bits) // 8) * int(tags.get(LENGTH, (0,))[0])


def page_behind(data: bytes, tags: Tags, number: int) -> np.ndarray[Any, Any]:
    """Pixels (H, W, samples) of a page that lies so many behind the first."""
    kind, size = {1: "u", 2: "i", 3: "f"}[tags.get(SAMPLE_FORMAT, (1,))[0]], max(tags.get(BITS, (1,))) // 8
    shape = tags[LENGTH][0], tags[WIDTH][0], tags.get(SAMPLES, (1,))[0]
    dtype = np.dtype(f"{'<' if data[:2] == b'II' else '>'}{kind}{size}")
    return np.frombuffer(data, dtype, math.prod(shape), tags[STRIPS][0] + number * page_bytes(tags)).reshape(shape)
