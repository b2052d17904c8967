"""Image file directories of a TIFF: what their tags hold, and where the next one lies. EXIF is a TIFF, too."""

import struct
from collections.abc import Iterator
from typing import Any

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


def first_of(data: bytes) -> int:
    """Where the first directory lies. Raises BadImageError and struct.error."""
    if data[:4] not in TIFF:
        raise BadImageError("no TIFF")
    order, big = _kind(data)
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return int(place)


def starting_at(data: bytes, place: int) -> bytes:
    """The same file with another of its directories as the first."""
    if place == first_of(data):
        return data
    order, big = _kind(data)
    head = struct.pack(order + ("Q" if big else "I"), place)
    return b"".join((data[: 8 if big else 4], head, memoryview(data)[16 if big else 8 :]))


def tags_of(data: bytes) -> Tags:
    """What we want to know of the first directory of a TIFF. Raises BadImageError, struct.error and OverflowError."""
    return tags_at(data, first_of(data))


def tags_at(data: bytes, place: int) -> Tags:
    """What we want to know of the directory at that place: numbers, or one text, by tag. Raises as `tags_of`."""
    order, big = _kind(data)
    count, place, entry = _entries(data, place)
    room = 8 if big else 4  # for values beside their tag
    tags: Tags = {}
    for at in range(place, place + count * (entry.size + room), entry.size + room):
        tag, kind, n = entry.unpack_from(data, at)
        if n > MOST_VALUES and kind not in BYTES:
            raise BadImageError(f"a TIFF with {n} values in tag {tag}")
        letter = WANTED.get(tag, {}).get(kind)
        if letter and tag not in tags and 0 < n <= (MOST_VALUES if letter != "s" else n):
            values, there = f"{order}{n}{letter}", at + entry.size
            if (n if letter == "s" else struct.calcsize(values)) > room:
                (there,) = struct.unpack_from(order + ("Q" if big else "I"), data, there)
            tags[tag] = (data[there : there + min(n, MOST_TEXT)],) if letter == "s" else struct.unpack_from(values, data, there)
    return tags


def directories(data: bytes) -> Iterator[tuple[int, Tags]]:
    """Place and tags of the directories from the first one on, as far as they can be read, and are not absurdly many."""
    order, big = _kind(data)
    seen, entries, place = set[int](), 0, first_of(data)
    while place and place not in seen and entries < MOST_ENTRIES:
        try:
            count, start, entry = _entries(data, place)
            tags = tags_at(data, place)
            seen.add(place)
            yield place, tags
            entries += count + 1
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + count * (entry.size + (8 if big else 4)))
        except (BadImageError, struct.error, OverflowError):
            return


def _kind(data: bytes) -> tuple[str, bool]:
    """The order of its bytes, as of struct, and whether it is a BigTIFF."""
    return "<" if data[:2] == b"II" else ">", b"+" in data[2:4]


def _entries(data: bytes, place: int) -> tuple[int, int, struct.Struct]:
    """Entries of a directory: how many, where they begin, and what stands before the values of each."""
    order, big = _kind(data)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    if count > MOST_TAGS:
        raise BadImageError(f"a TIFF of {count} tags")
    return count, place + (8 if big else 2), struct.Struct(order + ("HHQ" if big else "HHI"))


def turn_of(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 0 where it is absent or broken."""
    try:
        turn = int(tags_of(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")).get(ORIENTATION, (0,))[0])
    except (BadImageError, struct.error, OverflowError):
        return 0
    return turn if turn <= 8 else 0
