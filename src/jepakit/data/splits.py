"""Splits and classes by words: one vocabulary and one rule, for folders, archives, tables and arrays."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data.sources import Labels, fifths
from jepakit.errors import UserError

PARTS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}


def split_of(path: str | PurePath) -> str | None:
    """'train', 'test' or 'validation': a word of a file's name, the first or else the last such, or of its folder's name.

    Words are of letters, so that 'val2017' is one.
    """
    path = PurePath(path)
    for name in (path.stem, path.parent.name):
        words = _words(name)
        found = [word for word in words if word in PARTS]
        if found:
            return PARTS[words[0] if words[0] in PARTS else found[-1]]
    return None


def parts(titles: Iterable[str]) -> list[str]:
    """The part that each file of a set is, by its path below the folder that all lie in; 'train' where that tells none."""
    return [split_of(title) or "train" for title in titles]


def of_folders(folders: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Classes of images, and their parts, by the two upper folders that they lie in: 'cat', 'train/cat'.

    The upper ones are parts where each is a word for one, and classes lie below; an image right in a part has no class, as
    in a test whose labels are hidden. Else they are classes, and of parts there are none.
    """
    tops = [folder.split("/")[0] for folder in folders]
    below = [folder.split("/")[1] if "/" in folder else None for folder in folders]
    found = [PARTS[word] for top in tops if (word := " ".join(_words(top))) in PARTS]
    return (below, found) if len(found) == len(tops) and any(below) else ([*tops], [])


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def split_labels(
    name: str, classes: tuple[str, ...], values: NDArray[np.int64], parts: Sequence[str], places: NDArray[np.int64]
) -> Labels:
    """Labels (n,) of samples whose parts are parts[places], places (n,): held out is the test, else the validation.

    A part counts if it has labels, as a test's may all be hidden; with both, one has no part. A fifth of each class is held
    out where there is neither, or nothing to learn from beside them.
    """

    def of(part: str) -> NDArray[np.bool_]:
        return np.array([word == part for word in parts], np.bool_)[places]

    train, labelled = of("train"), values >= 0
    held = next((test for test in (of("test"), of("validation")) if (test & labelled).any()), None)
    if held is None or not (train & labelled).any():
        return Labels(name, classes, values, fifths(values))
    return Labels(name, classes, np.where(train | held, values, -1), held)


def class_values(
    unique: Sequence[Any], codes: NDArray[np.int64], names: list[str] | None, where: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes, and the place in them of the values that codes (n,) stand for; -1 for none (code -1) and numbers below 0.

    Classes are the names given to numbers, else the sorted values. Raises UserError for a number that has no name.
    """
    if names is not None and all(value is None or isinstance(value, int) for value in unique):
        numbers = [-1 if value is None else value for value in unique]
        if max(numbers, default=-1) >= len(names):
            raise UserError(f"{where}: label {max(numbers)} of {len(names)} named classes")
        return tuple(names), np.array([*(max(number, -1) for number in numbers), -1], np.int64)[codes]
    classes = sorted({value for value in unique if value is not None and (isinstance(value, str) or value >= 0)})
    place = {value: i for i, value in enumerate(classes)}
    return tuple(map(str, classes)), np.array([*(place.get(value, -1) for value in unique), -1], np.int64)[codes]


def merged(parts: Iterable[tuple[Sequence[Any], NDArray[Any]]]) -> tuple[list[Any], NDArray[np.int64]]:
    """Values, each once, and the place in them of every row (n,), -1 for none: of several such, as of one."""
    place: dict[Any, int] = {}
    codes = [np.zeros(0, np.int64)]
    for unique, here in parts:
        codes.append(np.array([*(place.setdefault(value, len(place)) for value in unique), -1], np.int64)[here])
    return list(place), np.concatenate(codes)
