"""Image file directories of a TIFF: what their tags hold, and where the next one lies. EXIF is a TIFF, too."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from jepakit.data.decoding.pixels import BadImageError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# tags of a TIFF: TIFF 6.0, sections 8 and 15; 254, 255: what kind of a page; 330: directories below this one; 42113: GDAL's
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 273, 274, 277
ROWS, PLANES, TILE, TILES, EXTRA_SAMPLES, SAMPLE_FORMAT, DEPTH, FILL = 278, 284, (322, 323), 324, 338, 339, 32997, 266
KIND, OLD_KIND, DESCRIPTION, BELOW, LEAST, MOST, NO_DATA, PICTURES = 254, 255, 270, 330, 340, 341, 42113, 0xB002
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # letters of struct, by the type of a tag's values
REAL, TEXT, OTHER = {**_WHOLE, 11: "f", 12: "d"}, {2: "s"}, {7: "s"}
_NUMBERS = (254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 284, 322, 323, 324, 330, 338, 339, 32997)
WANTED = dict.fromkeys(_NUMBERS, _WHOLE) | {LEAST: REAL, MOST: REAL, DESCRIPTION: TEXT, NO_DATA: TEXT, PICTURES: OTHER}
BYTES = (1, 2, 6, 7)  # types of values that are held as bytes
MOST_TAGS, MOST_VALUES = 4096, 1 << 18  # of a directory, and of a tag of numbers: strips or tiles, a few bytes each
MOST_TEXT = 1 << 20  # bytes of a text that are looked at
MOST_ENTRIES = 1 << 18  # of all directories of a file: some .3 s
Tags = dict[int, tuple[Any, ...]]  # by tag: numbers, or one text


class _Form(NamedTuple):
    """How a TIFF or a BigTIFF writes its directories, in its order of bytes."""

    order: str
    head: int  # where the first directory's place stands
    place: struct.Struct  # of a directory, or of values that do not fit into as many bytes beside their tag
    entries: struct.Struct  # the number of a directory's entries
    entry: struct.Struct  # tag, type and number of values


def _form(data: bytes) -> _Form:
    if data[:4] not in TIFF:
        raise BadImageError("no TIFF")
    order = "<" if data[:2] == b"II" else ">"
    head, *words = (8, "Q", "Q", "HHQ") if b"+" in data[:4] else (4, "I", "H", "HHI")
    return _Form(order, head, *(struct.Struct(f"{order}{word}") for word in words))


def first_of(data: bytes) -> int:
    """Where the first directory lies. Raises BadImageError and struct.error."""
    form = _form(data)
    return int(form.place.unpack_from(data, form.head)[0])


def starting_at(data: bytes, place: int) -> bytes:
    """The same file with another of its directories as the first."""
    if place == first_of(data):
        return data
    form = _form(data)
    return b"".join((data[: form.head], form.place.pack(place), memoryview(data)[form.head + form.place.size :]))


def tags_of(data: bytes, place: int | None = None) -> Tags:
    """The tags in WANTED of the directory at `place`, by default the first. Raises BadImageError, struct.error, OverflowError."""
    return _directory(data, first_of(data) if place is None else place)[0]


def first_value(tags: Tags, tag: int, default: Any = 1) -> Any:
    """A tag's first number, or its text."""
    return tags.get(tag, (default,))[0]


def directories(data: bytes, *, whole: bool = False) -> Iterator[tuple[int, Tags]]:
    """Place and tags of the directories from the first one on, as far as they can be read, and are not absurdly many.

    whole: raise BadImageError where one cannot be read.
    """
    seen, entries, place = set[int](), 0, first_of(data)
    while place and place not in seen and entries < MOST_ENTRIES:
        try:
            tags, count, end = _directory(data, place)
            seen.add(place)
            yield place, tags
            entries += count + 1
            (place,) = _form(data).place.unpack_from(data, end)
        except (BadImageError, struct.error, OverflowError):
            if whole:
                raise BadImageError(f"broken or cut: of its pages {len(seen)} are there") from None
            return


def _directory(data: bytes, place: int) -> tuple[Tags, int, int]:
    """Tags of a directory, the number of all its entries, and where the place of the next directory stands."""
    form = _form(data)
    (count,) = form.entries.unpack_from(data, place)
    if count > MOST_TAGS:
        raise BadImageError(f"a TIFF of {count} tags")
    start, size = place + form.entries.size, form.entry.size + form.place.size
    end = start + count * size
    tags: Tags = {}
    for at in range(start, end, size):
        tag, kind, n = form.entry.unpack_from(data, at)
        if n > MOST_VALUES and kind not in BYTES:
            raise BadImageError(f"a TIFF with {n} values in tag {tag}")
        letter = WANTED.get(tag, {}).get(kind)
        if not letter or tag in tags or not 0 < n <= (MOST_VALUES if letter != "s" else n):
            continue
        values, there = f"{form.order}{n}{letter}", at + form.entry.size
        if (n if letter == "s" else struct.calcsize(values)) > form.place.size:
            (there,) = form.place.unpack_from(data, there)
        tags[tag] = (data[there : there + min(n, MOST_TEXT)],) if letter == "s" else struct.unpack_from(values, data, there)
    return tags, count, end


def turn_of(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 0 where it is absent or broken."""
    try:
        turn = int(first_value(tags_of(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")), ORIENTATION, 0))
    except (BadImageError, struct.error, OverflowError):
        return 0
    return turn if turn <= 8 else 0
