"""Labels among arrays: which are taken, and why others that look like it are not."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.data.formats import tables
from jepakit.data.labels import split_words as splits
from jepakit.data.sources import Labels, by_default
from jepakit.data.unread_files import some

_LABELS = ("labels", "label", "y", "targets", "target", "classes", "class")  # names without their word for the split
COLOUR_COUNTS = (1, 3, 4)  # axes of these lengths are channels
MOST_NOTES = 3  # arrays that are named where none is taken
MOST_LABELS = 1 << 28  # bytes of an array that may be one-hot
Names = dict[str, str]  # of arrays by their split, '' for none


@dataclass(frozen=True)
class Stored:
    """An array as its header describes it, and how to have it: mapped, or read into memory."""

    shape: tuple[int, ...]
    dtype: Any
    mapped: bool
    load: Callable[[], NDArray[Any]]

    @property
    def is_images(self) -> bool:
        kind, size = self.dtype.kind, self.dtype.itemsize
        pixels = (kind == "u" and size <= 2) or (kind == "f" and size <= 8)
        axes = len(self.shape) == 4 or (len(self.shape) == 3 and self.shape[2] not in COLOUR_COUNTS)  # else it is one image
        return pixels and axes and min(self.shape) > 0

    def is_labels(self, rows: int) -> bool:
        """Whether it has a number or a word for each row: (n,) or (n, 1)."""
        return self.dtype.kind in "iubUS" and self.shape in ((rows,), (rows, 1))

    @property
    def columns(self) -> int:
        """Numbers in each row of (n,) or (n, columns)."""
        return self.shape[1] if len(self.shape) == 2 else 1

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)

    @property
    def kind(self) -> str:
        return "of objects, which are not read as they may run code" if self.dtype.hasobject else str(self.dtype)


def array_labels(
    name: str,
    images: Names,
    others: dict[str, Names],
    arrays: dict[str, Stored],
    labels: str | None,
    of_parts: tuple[list[str], NDArray[np.int64]],
) -> tuple[Labels | None, tuple[str, ...]]:
    """Labels, and notes of other arrays that could be, or that look like labels and are not.

    images: the arrays that hold them; others: those that do not, by their names without the word for the split. labels: the
    name that was asked for. of_parts: the parts, and the place in them of each image (n,). Raises UserError where what was
    asked for is no array of labels, and for a number that has no name.
    """
    others = {base: keys for base, keys in others.items() if base not in splits.COLUMNS or base == labels}
    rows = {split: arrays[key].shape[0] for split, key in images.items()}
    plain, fit, notes = _fitting(others, arrays, rows, labels)
    can = [base for base in others if base in fit or base in plain]
    if labels in notes and labels not in can:
        raise UserError(f"{name}: {notes[labels]}")
    named = {base: names for base in can if (names := _class_names(base, others[base], others, arrays))}
    chosen = tables.likely(can, _LABELS, named, labels, name)
    if not chosen:
        why = [said for base, said in notes.items() if base not in fit][:MOST_NOTES]
        could = some([repr(base) for base in can if not tables.NO_CLASS.search(base)])
        return None, (*why, *([f"no labels are taken: {could} may be such; --labels NAME takes one"] if could else []))
    coded = fit.get(chosen) or {s: _encoded(arrays[key].load()) for s, key in others[chosen].items() if s in rows}
    unique, codes = splits.merged([coded.get(s, ([], np.full(n, -1))) for s, n in rows.items()])
    classes, values = splits.class_values(unique, codes, named.get(chosen), f"{name}, array '{chosen}'")
    kinds = [base for base in can if base in (*_LABELS, *named) or base == chosen]
    return splits.split_labels(chosen, classes, values, *of_parts), (
        *by_default(labels, chosen, kinds),
        *(notes[base] for base in notes if base in (*_LABELS, chosen)),
    )


def _fitting(
    others: dict[str, Names], arrays: dict[str, Stored], rows: dict[str, int], labels: str | None
) -> tuple[list[str], dict[str, dict[str, tables.Coded]], dict[str, str]]:
    """Arrays that are labels as they are; those that are in another form, coded; and what is to be said of these, by name."""
    plain: list[str] = []
    fit: dict[str, dict[str, tables.Coded]] = {}
    notes: dict[str, str] = {}
    for base, keys in others.items():
        shared = {split: arrays[key] for split, key in keys.items() if split in rows}
        if shared and all(array.is_labels(rows[split]) for split, array in shared.items()):
            plain.append(base)
        elif base in (*_LABELS, labels) or (not tables.NO_CLASS.search(base) and _look_like_labels(shared, rows)):
            found, notes[base] = _unusual(keys, arrays, rows)
            fit |= {base: found} if found else {}
    return plain, fit, notes


def split_array(
    others: dict[str, Names], arrays: dict[str, Stored], rows: int
) -> tuple[tuple[list[str], NDArray[np.int64]] | None, tuple[str, ...]]:
    """As `splits.by_values`, of an array that is called as a split and has a value for each row."""
    named = [others[base][""] for base in splits.COLUMNS if "" in others.get(base, {})]
    key = next((key for key in named if arrays[key].is_labels(rows)), None)
    return splits.by_values(key, *_encoded(arrays[key].load())) if key else (None, ())


def _look_like_labels(shared: dict[str, Stored], rows: dict[str, int]) -> bool:
    """Whether arrays of any name may be labels: numbers or words in about as many rows as there are images."""

    def near(array: Stored, n: int) -> bool:
        few = len(array.shape) in (1, 2) and array.dtype.kind in "iubfUS"
        return few and (array.shape[0] == n or (len(array.shape) == 1 and abs(array.shape[0] - n) <= max(1, n // 10)))

    return bool(shared) and all(near(array, rows[split]) for split, array in shared.items())


def _unusual(keys: Names, arrays: dict[str, Stored], rows: dict[str, int]) -> tuple[dict[str, tables.Coded], str]:
    """Labels by split, of arrays that hold whole numbers as floats or rows that are one-hot, and how they are taken.

    Else {}, and why they are not.
    """
    found: dict[str, tables.Coded] = {}
    for split, key in keys.items():
        array = arrays[key]
        what = f"array '{key}' {array.shape}"
        if split not in rows:
            return {}, f"{what} is not used: there are no images of its part"
        if array.dtype.hasobject:
            return {}, f"{what} is not taken for labels, being {array.kind}: save it as numbers, or by astype(str)"
        if not array.shape or array.shape[0] != rows[split]:
            return {}, f"{what} is not taken for labels: there are {rows[split]:,} images, and it is to have as many rows"
        if array.dtype.kind not in "iubf" or len(array.shape) > 2 or array.nbytes > MOST_LABELS:
            return {}, f"{what} {array.dtype} is not taken for labels: save a whole number or a word for each image"
        coded = _numbers(array.load())
        if coded is None:
            why = "holds numbers with fractions" if array.columns == 1 else "has several numbers for each image"
            return {}, f"{what} is not taken for labels, as it {why}: save a whole number or a word for each image"
        found[split] = coded
    key = next(iter(keys.values()))
    how = "the place of the one in each row" if arrays[key].columns > 1 else "the whole numbers they are"
    return found, f"labels are array '{key}' {arrays[key].shape} {arrays[key].dtype}, taken as {how}"


def _numbers(array: NDArray[Any]) -> tables.Coded | None:
    """Classes of floats that are whole numbers (not-a-number: none), or of rows that are one-hot; None for others."""
    if array.ndim == 2 and array.shape[1] > 1:
        one_hot = bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())
        return ([*range(array.shape[1])], array.argmax(1).astype(np.int64)) if one_hot else None
    flat = array.reshape(-1)
    known = ~np.isnan(flat)
    if not np.isfinite(flat[known]).all() or (flat[known] % 1 != 0).any():
        return None
    unique, codes = np.unique(flat[known], return_inverse=True)
    places = np.full(len(flat), -1, np.int64)
    places[known] = codes
    return [int(value) for value in unique], places


def _class_names(base: str, keys: Names, others: dict[str, Names], arrays: dict[str, Stored]) -> list[str]:
    """Names of numbers: 'groups' of 'group', 'label_names' of 'label' or 'labels', and 'class_names' of any label."""
    if any(arrays[key].dtype.kind not in "iufb" for key in keys.values()):
        return []
    likely = [f"{base}s", f"{base}_names", f"{base.removesuffix('s')}_names", *(["class_names"] if base in _LABELS else [])]
    for key in (others[word][""] for word in likely if "" in others.get(word, {})):
        if arrays[key].dtype.kind in "US" and len(arrays[key].shape) == 1:
            names: list[str] = _text(arrays[key].load()).tolist()
            if len(set(names)) == len(names):  # else a word for each image
                return names
    return []


def _encoded(array: NDArray[Any]) -> tables.Coded:
    unique, codes = np.unique(_text(array.reshape(-1)), return_inverse=True)
    return unique.tolist(), codes.astype(np.int64)


def _text(array: NDArray[Any]) -> NDArray[Any]:
    """Names as NumPy's text. Raises UserError for numbers beyond Unicode's last, of which Python can make no text."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "U" and array.size:
        letters = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view(np.uint32)
        if letters.max(initial=0) > sys.maxunicode:
            raise UserError("an array of names holds numbers that are no letters: save it anew")
    return array
