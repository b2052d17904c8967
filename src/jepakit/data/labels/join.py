"""Which row of a table belongs to which image: by path, relative path, file name or stem, whichever fits most."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.decoding.file_kinds import IMAGE_KINDS

_ENDINGS = SUFFIXES | IMAGE_KINDS | {".npy", ".npz"}
_DEEP = 12  # folders that may stand before a path
_PATH = "path"  # of which two spellings are one file
_Key = Callable[[str], str]  # of a text what it is compared by; '' for a text that has none


@dataclass(frozen=True)
class Join:
    """Rows and images brought together.

    how: by what. rows (n,): the first row of each of n images, -1 for none. strangers: rows that name no image. ambiguous: rows
    that name several images, so that none is theirs. contested: rows of other paths that name one image, so that none is its.
    double: pairs of an image's first row and a further one of the same path.
    """

    how: str
    rows: NDArray[np.int64]
    strangers: Sequence[int]
    ambiguous: Sequence[int]
    contested: Sequence[int]
    double: Sequence[tuple[int, int]]

    @property
    def joined(self) -> int:
        """Images that have a row."""
        return int((self.rows >= 0).sum())

    @property
    def unclear(self) -> int:
        """Rows that name an image, but not one alone, or not alone."""
        return len(self.ambiguous) + len(self.contested)


def joined_rows(cells: Sequence[str], titles: Sequence[str], folder: str = "", root: str = "") -> Join:
    """Bring rows, whose cells (rows,) name images, together with the images of these titles (n,).

    One way to compare is taken for all rows: the one that gives most images a row, of several the narrowest. folder: that
    relative paths may count from; root: that titles count from; '' where there is none.
    """
    cells, titles = [_even(cell) for cell in cells], [_even(title) for title in titles]
    best: Join | None = None
    for how, of_cell, of_title in _ways(cells, folder, root):
        found = _joined(how, [of_cell(cell) for cell in cells], [of_title(title) for title in titles], cells)
        if best is None or found.joined > best.joined or (not best.joined and found.unclear > best.unclear):
            best = found
        if found.joined and not len(found.strangers) and not found.unclear:
            break
    assert best is not None
    return best


def stem(path: str) -> str:
    """A file's name without its folders and an image's ending: all ways to compare ask for the same stem."""
    return _no_ending(_name(_even(path)))


def _even(text: str) -> str:
    """One way to write a path: / between folders, letters with their marks as one, no ./ before it."""
    text = text.replace("\\", "/").removeprefix("./")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _ways(cells: Sequence[str], folder: str, root: str) -> Iterator[tuple[str, _Key, _Key]]:
    """Ways to compare, the narrowest first: what it is called, what of a cell and what of a title are to be the same."""
    below = f"/{_name(root)}/"
    if root:
        yield _PATH, lambda cell: os.path.normpath(f"{folder}/{cell}" if _is_relative(cell) else cell), lambda t: f"{root}/{t}"
    yield "relative path", str, str
    if root:
        yield f"path below {below[1:]}", lambda cell: f"/{cell}".rpartition(below)[2] if below in f"/{cell}" else "", str
    for less in range(1, min(_DEEP, max((cell.count("/") for cell in cells), default=0)) + 1):
        called = f"path, less its first {'folder' if less == 1 else f'{less} folders'}"
        yield called, lambda cell, less=less: _without(cell, less), str  # type: ignore[misc]
    yield "relative path without its ending", _no_ending, _no_ending
    yield "file name", _name, _name
    yield "stem", stem, stem


def _is_relative(path: str) -> bool:
    return bool(path) and not path.startswith("/")


def _without(path: str, less: int) -> str:
    parts = path.split("/", less)
    return parts[less] if len(parts) > less and "/" in parts[less] else ""  # a name alone is compared as such


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _no_ending(path: str) -> str:
    at = path.rfind(".")
    if at >= 0 and path[at:].lower() == ".gz":  # as in .nii.gz
        at = path.rfind(".", 0, at)
    return path[:at] if at >= 0 and path[at:].lower() in _ENDINGS else path


def _joined(how: str, keys: Sequence[str], titles: Sequence[str], cells: Sequence[str]) -> Join:
    """By keys of rows and of titles; cells: what rows say, of which two that differ are two images."""
    if {*titles}.isdisjoint(keys):  # most ways of most tables: no need to go over the rows
        return Join(how, np.full(len(titles), -1), [*range(len(keys))], [], [], [])
    place: dict[str, int] = {}
    for index, title in enumerate(titles):
        if title:
            place[title] = -1 if title in place else index
    rows, further = [-1] * len(titles), list[tuple[int, int]]()
    strangers, ambiguous = list[int](), list[int]()
    for row, key in enumerate(keys):
        index = place.get(key, -2)
        if index == -2:
            strangers.append(row)
        elif index < 0:
            ambiguous.append(row)
        elif rows[index] >= 0:
            further.append((index, row))
        else:
            rows[index] = row
    unlike = {index for index, row in further if how != _PATH and cells[row] != cells[rows[index]]}
    contested = sorted([*(rows[index] for index in unlike), *(row for index, row in further if index in unlike)])
    double = [(rows[index], row) for index, row in further if index not in unlike]
    for index in unlike:
        rows[index] = -1
    return Join(how, np.array(rows, np.int64), strangers, ambiguous, contested, double)
