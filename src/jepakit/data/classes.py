"""Classes by folders, and what of them is a guess: images in no folder, folders of one image, folders that are no classes."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from jepakit.data import splits
from jepakit.data.leftout import some
from jepakit.data.masks import words_of

ALL = re.compile(r"(jpe?g|png|rgb|left)?(images?|imgs?)|rgb|inputs?|originals?")  # a word of a folder of all images
BESIDE = re.compile(r"jpe?g|png|left|right|bit|raw|train|test|val")  # words that may stand beside it
FEW = 4  # folders of one image that are too few to wonder at


def of_folders(folders: Sequence[str], counts: Sequence[int], masks: Collection[int] = ()) -> splits.Folders:
    """As `splits.of_folders`, of folders among which '' is none at all; masks: places of those that hold masks.

    Images in no folder have no label, if they are the fewer. Folders are no classes where each of many holds one image, one is
    called 'images', or some are masks of others: then all classes are None.
    """
    inside = [i for i, folder in enumerate(folders) if folder]
    told = splits.of_folders([folders[i] for i in inside], [counts[i] for i in inside])
    classes: list[str | None] = [None] * len(folders)
    parts = [""] * len(folders) if told.parts else []
    for place, i in enumerate(inside):
        classes[i] = told.classes[place]
        if parts:
            parts[i] = told.parts[place]
    notes = list(told.notes)
    sizes: Counter[str] = Counter()
    for name, count in zip(classes, counts, strict=True):
        if name is not None:
            sizes[name] += count
    why, strays = "", sum(counts) - sum(counts[i] for i in inside)
    if len(sizes) > 1:
        why = _why_none(sizes, {name for i in masks if (name := classes[i])}, strays, sum(counts))
    if why:
        classes, notes = [None] * len(folders), [f"sub-folders are not taken for classes: {why}"]
    else:
        notes += _doubts(sizes, strays)
    return replace(told, classes=classes, parts=parts, notes=tuple(notes))


def _why_none(sizes: Counter[str], masks: set[str], strays: int, n: int) -> str:
    """Why folders of such names and sizes are no classes; '' where they may be."""
    names = sorted(sizes)
    if 2 * strays > n:
        return f"{strays:,} of {n:,} images lie in none of them ({some(names)})"
    if masks:
        return f"{some(sorted(masks))} {'hold' if len(masks) > 1 else 'holds'} masks of images elsewhere"
    whole = next((name for name in names if _holds_all(words_of(name))), None)
    if whole:
        return f"{whole} is called as if it held all images, beside {some([name for name in names if name != whole])}"
    if len(sizes) >= FEW and max(sizes.values()) == 1:
        return f"each of the {len(sizes):,} holds one image ({some(names)}), so that they are names of things"
    return ""


def _holds_all(words: Sequence[str]) -> bool:
    return any(map(ALL.fullmatch, words)) and all(ALL.fullmatch(word) or BESIDE.fullmatch(word) for word in words)


def _doubts(sizes: Counter[str], strays: int) -> list[str]:
    """What to say of classes of such names and sizes, beside images in no folder."""
    notes, single = [], sorted(name for name, size in sizes.items() if size == 1)
    if strays and len(sizes) > 1:
        lie = "image lies" if strays == 1 else "images lie"
        notes.append(f"{strays:,} {lie} in no class folder, and so without a label: move into one what is of its class")
    if len(single) >= FEW and 2 * len(single) > len(sizes):
        notes.append(f"{len(single):,} of {len(sizes):,} classes have one image ({some(single)}): they may be names of things")
    return notes
