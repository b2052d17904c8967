"""What folders say of the images in them: the parts of a split, and classes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jepakit.data.labels.split_words import joined, name_words, part_of_word
from jepakit.data.unread_files import some

# words beside the one for the part, as in 'seg_train', 'training_set' and 'trainA'
FILLERS = re.compile(r"sets?|data|dataset|images?|imgs?|seg|splits?|part|folder|files|photos|pictures|raw|classification|[a-z]")
_DEEPEST = 3  # folders above that of the parts
Paths = list[list[str]]


@dataclass(frozen=True)
class Folders:
    """What n folders say of the images in them.

    classes (n,): None for no label; parts (n,): 'train', 'test', 'validation' or ''; [] where no folder names one; notes: what
    to tell the user of guesses.
    """

    classes: list[str | None]
    parts: list[str]
    notes: tuple[str, ...] = ()


def read_layout(folders: Sequence[str], counts: Sequence[int] | None = None) -> Folders:
    """Classes and parts by the folders that images lie in, as in 'cat', 'train/cat', 'set/Training/cat', 'cat/train'.

    Folders that all images share are stripped. If one level names train and test or validation, that level is the split and
    the uppermost other folder the class: files directly in a split folder are unlabelled, as in a test whose labels are hidden.
    A folder beside the split's folders is in no part, so no probe uses its images. Without a split the top folders are the
    classes. counts: images directly in each folder, to say how many a guess is about.
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
            if level:
                return Folders([path[0] if path else None for path in rest], parts, _note_classes(rest))
            return _read_parts(names, parts, rest, many)
    return Folders([path[0] if path else None for path in paths], [], _note_tops(paths))


def _read_parts(names: Sequence[str], parts: list[str], rest: Paths, counts: Sequence[int]) -> Folders:
    """Classes below the folders of a split, which lie at the top.

    Of each folder (n,): the top folder's name, its part ('' for none), the path below it and its number of images.
    """
    notes: list[str] = []
    if third := sorted({name for name, part in zip(names, parts, strict=True) if not part}):
        count = sum(n for n, part in zip(counts, parts, strict=True) if not part)
        beside = f"{count:,} images in {', '.join(third[:3])}, beside the folders of a split"
        notes.append(f"{beside}, have no part in it: trained on, and seen by no probe")
    inner = _without_idle(names, parts, rest)
    classes = [path[0] if path and part else None for path, part in zip(inner, parts, strict=True)]
    known = {name for name, part in zip(classes, parts, strict=True) if part == "train" and name}
    for held in ("test", "validation"):
        here = {name for name, part in zip(classes, parts, strict=True) if part == held and name}
        if len(here) == 1 and len(known) > 1 and not {name.lower() for name in here} & {name.lower() for name in known}:
            hidden = [part == held and name in here for name, part in zip(classes, parts, strict=True)]
            count = sum(n for n, one in zip(counts, hidden, strict=True) if one)
            classes = [None if one else name for name, one in zip(classes, hidden, strict=True)]
            why = f"all lie in {min(here)}, which is no class of the training"
            notes.append(f"{count:,} images of the {held} part have no label: {why}")
    of_parts = [path if part else [] for path, part in zip(inner, parts, strict=True)]
    return Folders(classes, parts, (*notes, *_note_classes(of_parts)))


def _without_idle(names: Sequence[str], parts: Sequence[str], rest: Paths) -> Paths:
    """The paths below the parts, without the folders that tell nothing.

    One does not that is alone in its part and called like it ('seg_train/seg_train'), nor one of the same name that is alone
    in every part and has folders in it ('train/images/cat', 'test/images/cat').
    """
    while True:
        below: dict[str, set[str]] = {}
        for name, part, path in zip(names, parts, rest, strict=True):
            if part and path:
                below.setdefault(name, set()).add(path[0])
        part_of = dict(zip(names, parts, strict=True))
        idle = {name for name, inside in below.items() if len(inside) == 1 and _part_of_folder(*inside) == part_of[name]}
        every = set().union(*below.values())
        if len(every) == 1 and any(part and len(path) > 1 for part, path in zip(parts, rest, strict=True)):
            idle = {*below}
        if not idle:
            return rest
        rest = [path[1:] if name in idle else path for name, path in zip(names, rest, strict=True)]


def _parts_of(names: set[str]) -> dict[str, str]:
    """The part that each folder of a level is, of those that are one.

    By the words of its own name; else, where names differ in one such word alone ('brain_train', 'brain_test'), by that word.
    """
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


def _note_tops(paths: Paths) -> tuple[str, ...]:
    """What to say where the upper folders are taken for the classes, and no folders for the parts of a split."""
    tops = sorted({path[0] if path else "" for path in paths})
    if len(tops) < 2:
        return ()
    if any({part_of_word(word) for word in name_words(top)} & {"test", "validation"} for top in tops):
        said = "are taken for the classes, though some are named like a split: call them train and test"
        return (f"the folders {some(tops)} {said}",)
    below = {"/".join(path[: i + 1]): _part_of_folder(path[i]) for path in paths for i in range(1, len(path))}
    if held := sorted(folder for folder, part in below.items() if part in ("test", "validation")):
        return (
            f"the folders {some(tops)} are taken for the classes, though folders in them are named like a split "
            f"({some(held)}): if those are the parts, give --data the folder that holds them",
        )
    return _note_classes(paths)


def _note_classes(paths: Paths) -> tuple[str, ...]:
    """What to say where the first folder of each path is its class."""
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
