"""Classes by folders, and what of them is a guess: images in no folder, folders of one image, folders that are no classes."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jepakit.data.labels import folder_layout as layout
from jepakit.data.labels.segmentation_masks import folder_words
from jepakit.data.left_out import some

ALL = re.compile(r"(jpe?g|png|rgb|left)?(images?|imgs?)|rgb|inputs?|originals?")  # a word of a folder of all images
BESIDE = re.compile(r"jpe?g|png|left|right|bit|raw|train|test|val")  # words that may stand beside it
ALIKE = 0.9  # share of two folders' names that are in both, where they hold the same things seen twice
_FEW = 4  # folders of one image that are too few to wonder at


def folder_classes(
    folders: Sequence[str], lies: NDArray[np.int64], masks: Collection[int], title: Callable[[int], str]
) -> layout.Folders:
    """As `layout.read_layout`, of folders among which '' is none at all, in which images of such titles lie (n,).

    masks: places of those that hold masks. Images in no folder have no label, if they are the fewer. Folders are no classes
    where each of many holds one image, one is called 'images' and another has the same names in it, or some are masks of
    others: then all classes are None.
    """
    counts = np.bincount(lies, minlength=len(folders)).tolist()
    inside = [i for i, folder in enumerate(folders) if folder]
    told = layout.read_layout([folders[i] for i in inside], [counts[i] for i in inside])
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
    whole = sorted(name for name in sizes if _holds_all(folder_words(name)))[:1] if len(sizes) > 1 else []
    pair = [*whole, *_with_names_of(whole[0], classes, lies, title)] if whole else []
    if len(sizes) > 1:
        why = _why_none(sizes, {name for i in masks if (name := classes[i])}, pair, strays, sum(counts))
    if why:
        classes, notes = [None] * len(folders), [f"sub-folders are not taken for classes: {why}"]
    else:
        notes += _doubts(sizes, whole, strays)
    return replace(told, classes=classes, parts=parts, notes=tuple(notes))


def _why_none(sizes: Counter[str], masks: set[str], pair: list[str], strays: int, n: int) -> str:
    """Why folders of such names and sizes are no classes; '' where they may be."""
    names = sorted(sizes)
    if 2 * strays > n:
        return f"{strays:,} of {n:,} images lie in none of them ({some(names)})"
    if masks:
        return f"{some(sorted(masks))} {'hold' if len(masks) > 1 else 'holds'} masks of images elsewhere"
    if len(pair) > 1:
        return f"{pair[0]} is called as if it held all images, and {some(pair[1:])} beside it holds the same names"
    if len(sizes) >= _FEW and max(sizes.values()) == 1:
        return f"each of the {len(sizes):,} holds one image ({some(names)}), so that they are names of things"
    return ""


def _holds_all(words: Sequence[str]) -> bool:
    return any(map(ALL.fullmatch, words)) and all(ALL.fullmatch(word) or BESIDE.fullmatch(word) for word in words)


def _with_names_of(whole: str, classes: Sequence[str | None], lies: NDArray[np.int64], title: Callable[[int], str]) -> list[str]:
    """Other classes whose images are called as those of one."""
    names: dict[str, set[str]] = {}
    for index, place in enumerate(lies.tolist()):
        if name := classes[place]:
            names.setdefault(name, set()).add(title(index).rpartition("/")[2].partition(".")[0])
    ours = names.pop(whole)
    return sorted(name for name, theirs in names.items() if len(ours & theirs) >= ALIKE * len(ours | theirs))


def _doubts(sizes: Counter[str], whole: list[str], strays: int) -> list[str]:
    """What to say of classes of such names and sizes, beside images in no folder."""
    notes = [f"{name} is taken for a class, though it is called as if it held all images" for name in whole]
    single = sorted(name for name, size in sizes.items() if size == 1)
    if strays and len(sizes) > 1:
        lie = "image lies" if strays == 1 else "images lie"
        notes.append(f"{strays:,} {lie} in no class folder, and so without a label: move into one what is of its class")
    if len(single) >= _FEW and 2 * len(single) > len(sizes):
        notes.append(f"{len(single):,} of {len(sizes):,} classes have one image ({some(single)}): they may be names of things")
    return notes
