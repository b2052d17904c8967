"""Splits and classes by words: one vocabulary and one rule, for folders, archives, tables and arrays."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data.sources import Labels, fifths
from jepakit.errors import UserError

PARTS = {
    "train": re.compile(r"train(ing)?(set|data|images?|imgs?)?"),
    "test": re.compile(r"test(ing)?(set|data|images?|imgs?)?|holdout"),
    "validation": re.compile(r"(val(id(ation)?)?|dev(el(opment)?)?|eval(uation)?)(set|data|images?|imgs?)?"),
}
# words beside the one for the part, as in 'seg_train', 'training_set' and 'trainA'
FILLERS = re.compile(r"sets?|data|dataset|images?|imgs?|seg|splits?|part|folder|files|photos|pictures|raw|classification|[a-z]")
DEEPEST = 3  # folders above that of the parts


@dataclass(frozen=True)
class Folders:
    """What folders say of the images in them: a class and a part each (parts: [] where they name none), and what is guessed."""

    classes: list[str | None]
    parts: list[str]
    notes: tuple[str, ...] = ()


def part_of_word(word: str) -> str | None:
    """'train', 'test' or 'validation' for a word that means it, in lower case."""
    return next((part for part, pattern in PARTS.items() if pattern.fullmatch(word)), None)


def split_of(path: str | PurePath) -> str | None:
    """'train', 'test' or 'validation': a word of a file's name, the first or else the last such, or of its folder's name.

    Words are of letters, so that 'val2017' is one.
    """
    path = PurePath(path)
    for name in (path.stem, path.parent.name):
        words = [part_of_word(word) for word in _words(name)]
        found = [part for part in words if part]
        if found:
            return words[0] or found[-1]
    return None


def parts(titles: Iterable[str]) -> list[str]:
    """The part that each file of a set is, by its path below the folder that all lie in; 'train' where that tells none."""
    return [split_of(title) or "train" for title in titles]


def of_folders(folders: Sequence[str], counts: Sequence[int] | None = None) -> Folders:
    """Classes and parts by the folders that images lie in, as in 'cat', 'train/cat', 'set/Training/cat', 'cat/train'.

    Folders around all are left away. Where folders of one level are named as train and as something held out, they are the
    parts, and the class is the uppermost other folder: an image right in a part has none, as in a test whose labels are
    hidden. Beside parts at the top a third folder has no part: its images are no probe's. Else the tops are classes.
    counts: images right in each folder, to say how many a guess is about.
    """
    many = [1] * len(folders) if counts is None else counts
    paths = [folder.split("/") if folder else [] for folder in folders]
    while paths and min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    for level in range(DEEPEST):
        names = [path[level] if len(path) > level else "" for path in paths]
        found = [_part_of_folder(name) for name in names]
        others = [name for name, part in zip(names, found, strict=True) if part is None]
        if {*found} & {"test", "validation"} and (("train" in found and level == 0) or not others):
            rest = [[*path[:level], *path[level + 1 :]] for path in paths]
            of_parts = [part or "" for part in found]
            classes = [path[0] if path and part else None for path, part in zip(rest, of_parts, strict=True)]
            left = sum(n for n, part in zip(many, of_parts, strict=True) if not part)
            return Folders(classes, of_parts, (_of_third(others, left),) if others else ())
    return Folders([path[0] if path else None for path in paths], [], _of_tops(paths))


def held_out(parts: Sequence[str], places: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which samples (n,) are in a part for testing or validation, places (n,) in `parts`; None where none, or all are."""
    held = np.array([part in ("test", "validation") for part in parts], np.bool_)[places]
    return held if held.any() and not held.all() else None


def _part_of_folder(name: str) -> str | None:
    """The part that a folder is: one of its words says it, and no other says anything else."""
    words = _words(re.sub(r"(?i)hold[-_ ]?out", "holdout", name))
    found = [part for word in words if (part := part_of_word(word))]
    plain = all(part_of_word(word) or FILLERS.fullmatch(word) for word in words)
    return found[0] if len(found) == 1 and plain else None


def _of_third(names: list[str], count: int) -> str:
    few = ", ".join(sorted({*names})[:3])
    return f"{count:,} images in {few}, beside the folders of a split, have no part in it: trained on, and seen by no probe"


def _of_tops(paths: list[list[str]]) -> tuple[str, ...]:
    """What is guessed where the upper folders are taken for the classes."""
    below: dict[str, set[str]] = {}
    for path in paths:
        below.setdefault(path[0] if path else "", set()).update(path[1:2])
    tops = sorted(below)
    shown = ", ".join(tops[:3]) + (", ..." if len(tops) > 3 else "")
    if any({part_of_word(word) for word in _words(top)} & {"test", "validation"} for top in tops) and len(tops) > 1:
        return (f"the folders {shown} are taken for the classes, though some are named like a split: call them train and test",)
    if len(tops) > 1 and len(below[tops[0]]) > 1 and all(names == below[tops[0]] for names in below.values()):
        inner = ", ".join(sorted(below[tops[0]])[:3])
        return (
            f"the folders {shown} are taken for the classes, though each holds the same folders ({inner}): if those are the "
            f"classes, call the upper ones train and test, or give --data one of them",
        )
    return ()


def _words(name: str) -> list[str]:
    """Its words of letters, in lower case; 'trainSet' has two."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


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
        return Labels(name, classes, values, fifths(values), own_split=False)
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
