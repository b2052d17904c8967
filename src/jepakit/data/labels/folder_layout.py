"""What folders say of the images in them: the parts of a split, and classes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jepakit.data.labels.split_words import joined, name_words, part_of_word
from jepakit.data.left_out import some

# words beside the one for the part, as in 'seg_train', 'training_set' and 'trainA'
FILLERS = re.compile(r"sets?|data|dataset|images?|imgs?|seg|splits?|part|folder|files|photos|pictures|raw|classification|[a-z]")
_DEEPEST = 3  # folders above that of the parts
Paths = list[list[str]]


@dataclass(frozen=True)
class Folders:
    """What folders say of the images in them: a class and a part each (parts: [] where they name none), and what is guessed."""

    classes: list[str | None]
    parts: list[str]
    notes: tuple[str, ...] = ()


def read_layout(folders: Sequence[str], counts: Sequence[int] | None = None) -> Folders:
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
    for level in range(_DEEPEST):
        names = [path[level] if len(path) > level else "" for path in paths]
        part_of = _parts_of({*names})
        parts = [part_of.get(name, "") for name in names]
        others = [name for name, part in zip(names, parts, strict=True) if not part]
        if {*parts} & {"test", "validation"} and (("train" in parts and level == 0) or not others):
            rest = [[*path[:level], *path[level + 1 :]] for path in paths]
            third = (_of_third(others, sum(n for n, part in zip(many, parts, strict=True) if not part)),) if others else ()
            if level:
                return Folders([path[0] if path else None for path in rest], parts, (*third, *_of_classes(rest)))
            return _in_parts(names, parts, rest, many, third)
    return Folders([path[0] if path else None for path in paths], [], _of_tops(paths))


def _in_parts(names: Sequence[str], parts: list[str], rest: Paths, many: Sequence[int], notes: tuple[str, ...]) -> Folders:
    """Of folders that begin with a part: its name, the part, and the path below it."""
    inner = _without_idle(names, parts, rest)
    classes = [path[0] if path and part else None for path, part in zip(inner, parts, strict=True)]
    known = {name for name, part in zip(classes, parts, strict=True) if part == "train" and name}
    for held in ("test", "validation"):
        here = {name for name, part in zip(classes, parts, strict=True) if part == held and name}
        if len(here) == 1 and len(known) > 1 and not {name.lower() for name in here} & {name.lower() for name in known}:
            alone = [part == held and name in here for name, part in zip(classes, parts, strict=True)]
            count = sum(n for n, one in zip(many, alone, strict=True) if one)
            classes = [None if one else name for name, one in zip(classes, alone, strict=True)]
            said = f"{count:,} images of the {held} part have no label: all lie in {min(here)}, which is no class of the training"
            notes = (*notes, said)
    of_parts = [path if part else [] for path, part in zip(inner, parts, strict=True)]
    return Folders(classes, parts, (*notes, *_of_classes(of_parts)))


def _without_idle(names: Sequence[str], parts: Sequence[str], rest: Paths) -> Paths:
    """Paths below parts without folders that tell nothing.

    That is one which is the only one in its part and is called like it ('seg_train/seg_train'), and one and the same below
    every part, if there are folders in it ('train/images/cat', 'test/images/cat').
    """
    while True:
        below: dict[str, set[str]] = {}
        for name, part, path in zip(names, parts, rest, strict=True):
            if part and path:
                below.setdefault(name, set()).add(path[0])
        part_of = dict(zip(names, parts, strict=True))
        idle = {name for name, inside in below.items() if {_part_of_folder(one) for one in inside} == {part_of[name]}}
        idle = {name for name in idle if len(below[name]) == 1}
        every = set().union(*below.values())
        if len(every) == 1 and any(part and len(path) > 1 for part, path in zip(parts, rest, strict=True)):
            idle = {*below}
        if not idle:
            return rest
        rest = [path[1:] if name in idle else path for name, path in zip(names, rest, strict=True)]


def _parts_of(names: set[str]) -> dict[str, str]:
    """The part that each folder of a level is, of those that are one: by its own words, or where they differ in that alone."""
    parts = {name: part for name in names if (part := _part_of_folder(name))}
    if {*parts.values()} & {"test", "validation"}:
        return parts
    alike: dict[str, str] = {}
    besides: set[str] = set()
    for name in names:
        found = [word for word in name_words(name) if part_of_word(word)]
        if len(found) == 1:
            alike[name] = part_of_word(found[0]) or ""
            besides.add(joined(name).lower().replace(found[0], "", 1))
    return alike if len(besides) == 1 and "train" in alike.values() else parts


def _part_of_folder(name: str) -> str | None:
    """The part that a folder is: one of its words says it, and no other says anything else."""
    words = name_words(name)
    found = [part for word in words if (part := part_of_word(word))]
    plain = all(part_of_word(word) or FILLERS.fullmatch(word) for word in words)
    return found[0] if len(found) == 1 and plain else None


def _of_third(names: list[str], count: int) -> str:
    few = ", ".join(sorted({*names})[:3])
    return f"{count:,} images in {few}, beside the folders of a split, have no part in it: trained on, and seen by no probe"


def _of_tops(paths: Paths) -> tuple[str, ...]:
    """What is guessed where the upper folders are taken for the classes, and no folders for the parts of a split."""
    tops = sorted({path[0] if path else "" for path in paths})
    if len(tops) < 2:
        return ()
    if any({part_of_word(word) for word in name_words(top)} & {"test", "validation"} for top in tops):
        said = "are taken for the classes, though some are named like a split: call them train and test"
        return (f"the folders {some(tops)} {said}",)
    lower = sorted({"/".join(path[: i + 1]) for path in paths for i in range(1, len(path)) if _is_held(path[i])})
    if lower:
        return (
            f"the folders {some(tops)} are taken for the classes, though folders in them are named like a split "
            f"({some(lower)}): if those are the parts, give --data the folder that holds them",
        )
    return _of_classes(paths)


def _is_held(name: str) -> bool:
    return _part_of_folder(name) in ("test", "validation")


def _of_classes(paths: Paths) -> tuple[str, ...]:
    """What is guessed where the first of these folders are the classes."""
    below: dict[str, set[str]] = {}
    for path in paths:
        if path:
            below.setdefault(path[0], set()).update(path[1:2])
    tops = sorted(below)
    cases = Counter(name.lower() for name in tops)
    alike = [name for name in tops if cases[name.lower()] > 1]
    said = f"the classes {some(alike)} differ in upper and lower case alone: if they are the same, call their folders the same"
    notes = (said,) if alike else ()
    if len(tops) > 1 and len(below[tops[0]]) > 1 and all(names == below[tops[0]] for names in below.values()):
        return (
            f"the folders {some(tops)} are taken for the classes, though each holds the same folders "
            f"({some(sorted(below[tops[0]]))}): if those are the classes, call the upper ones train and test, or give --data one "
            f"of them",
            *notes,
        )
    return notes
