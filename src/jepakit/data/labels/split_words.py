"""Splits by words: one vocabulary and one rule, for folders, archives, tables and arrays; and labels by them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.data.sources import Labels, every_fifth_held_out
from jepakit.data.unread_files import some

_PARTS = {
    "train": re.compile(r"train(ing)?(val|set|data|images?|imgs?)?"),
    "test": re.compile(r"test(ing)?(set|data|images?|imgs?)?|holdout"),
    "validation": re.compile(r"(val(id(ation)?)?|dev(el(opment)?)?|eval(uation)?)(set|data|images?|imgs?)?"),
}
COLUMNS = ("split", "splits", "data_split", "subset", "partition")  # names of a column that tells each row's part
_HELD = re.compile(r"(?i)h[eo]ld[-_ ]?out")
WITH_VALIDATION = re.compile(r"(?i)train[-_ ]?val(id(ation)?)?(?![a-z])")  # both in one part: to train on


def joined(name: str) -> str:
    """A name in which 'held_out' and 'train_val' are one word each, that of their part."""
    return WITH_VALIDATION.sub("trainval", _HELD.sub("holdout", name))


def name_words(name: str) -> list[str]:
    """Its words of letters, in lower case; 'trainSet' has two."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", joined(name)).lower())


def part_of_word(word: str) -> str | None:
    """'train', 'test' or 'validation' for a word that means it, in lower case."""
    return next((part for part, pattern in _PARTS.items() if pattern.fullmatch(word)), None)


def split_of(path: str | PurePath) -> str | None:
    """'train', 'test' or 'validation': a word of a file's name, the first or else the last such, or of its folder's name.

    Words are of letters, so that 'val2017' is one.
    """
    path = PurePath(path)
    for name in (path.stem, path.parent.name):
        words = [part_of_word(word) for word in name_words(name)]
        found = [part for part in words if part]
        if found:
            return words[0] or found[-1]
    return None


def parts(titles: Iterable[str]) -> list[str]:
    """The part that each file of a set is, by its path below the folder that all lie in; 'train' where that tells none."""
    return [split_of(title) or "train" for title in titles]


def by_values(
    name: str, unique: Sequence[Any], codes: NDArray[np.int64]
) -> tuple[tuple[list[str], NDArray[np.int64]] | None, tuple[str, ...]]:
    """Parts, and the place in them of each row (n,), by a column of such values (-1: none); None where they are no split.

    And what to say of it, with counts.
    """
    counts = np.bincount(codes + 1, minlength=len(unique) + 1)[1:].tolist()
    shown = some([f"{value} {n:,}" for value, n in zip(unique, counts, strict=True)])
    found = [(split_of(f"{value}/x") if isinstance(value, str) else None) or "" for value in unique]
    if "train" not in found or not {*found} & {"test", "validation"}:
        said = "is not taken for a split, as its values are no words for train and test"
        return None, ((f"'{name}' ({shown}) {said}",) if counts else ())
    rest = len(codes) - sum(n for n, part in zip(counts, found, strict=True) if part)
    also = f"; {rest:,} images of other values have no part in it: trained on, and seen by no probe" if rest else ""
    return ([*found, ""], np.where(codes < 0, len(found), codes)), (f"the split is '{name}' ({shown}){also}",)


def unnamed(titles: Sequence[str], counts: Sequence[int]) -> tuple[str, ...]:
    """What to say of files that name no part, beside others that name train and what is held out; counts: images in each."""
    found = [split_of(title) for title in titles]
    if "train" not in found or not {*found} & {"test", "validation"} or None not in found:
        return ()
    count = sum(n for n, part in zip(counts, found, strict=True) if part is None)
    few = some([title for title, part in zip(titles, found, strict=True) if part is None])
    return (f"{count:,} images of {few} count as train: the name tells no part, beside others that do",)


def held_out_parts(parts: Sequence[str], places: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which samples (n,) are in a part for testing or validation, places (n,) in `parts`; None where none, or all are."""
    held = np.array([part in ("test", "validation") for part in parts], np.bool_)[places]
    return held if held.any() and not held.all() else None


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
        return Labels(name, classes, values, every_fifth_held_out(values), own_split=False)
    apart = int((labelled & of("validation") & ~held).sum())
    return Labels(name, classes, np.where(train | held, values, -1), held, apart=apart)


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
