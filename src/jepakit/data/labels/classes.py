"""Classes by folders, and what of them is a guess: images in no folder, folders of one image, folders that are no classes."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from jepakit.data.labels.folder_split import Folders, read_layout
from jepakit.data.labels.segmentation_masks import folder_words
from jepakit.data.unread_files import some

ALL = re.compile(r"(jpe?g|png|rgb|left)?(images?|imgs?)|rgb|inputs?|originals?")  # a word of a folder of all images
BESIDE = re.compile(r"jpe?g|png|left|right|bit|raw|train|test|val")  # words that may stand beside it
ALIKE = 0.9  # share of two folders' names that are in both, where they hold the same things seen twice
_FEW = 4  # folders of one image that are too few to wonder at


def folder_classes(
    folders: Sequence[str], lies: NDArray[np.int64], masks: Collection[int], title: Callable[[int], str]
) -> Folders:
    """Classes and parts of n images, whose titles `title` gives, by the folders that they lie in; '' is no folder at all.

    lies (n,): each image's place in `folders`; masks: places of folders that hold masks. Images in no folder have no label,
    if they are the fewer. Folders are no classes, and every class is None, where most images lie in none of them, where many
    hold one image each, where one is called 'images' and another has the same names in it, or where some hold masks.
    """
    counts = np.bincount(lies, minlength=len(folders)).tolist()
    inside = {folder: count for folder, count in zip(folders, counts, strict=True) if folder}
    layout = read_layout([*inside], [*inside.values()])
    class_of = dict(zip(inside, layout.classes, strict=True))
    part_of = dict(zip(inside, layout.parts, strict=False))  # empty where no folder names a part
    classes = [class_of.get(folder) for folder in folders]
    parts = [part_of.get(folder, "") for folder in folders] if part_of else []
    sizes: Counter[str] = Counter()
    for name, count in zip(classes, counts, strict=True):
        if name is not None:
            sizes[name] += count
    if len(sizes) < 2:
        return Folders(classes, parts, layout.notes)
    strays = len(lies) - sum(inside.values())
    catch_all = [name for name in sorted(sizes) if _holds_all(folder_words(name))][:1]
    pair = [*catch_all, *_named_alike(catch_all[0], classes, lies, title)] if catch_all else []
    if why := _why_none(sizes, {name for i in masks if (name := classes[i])}, pair, strays, len(lies)):
        return Folders([None] * len(folders), parts, (f"sub-folders are not taken for classes: {why}",))
    return Folders(classes, parts, (*layout.notes, *_doubts(sizes, catch_all, strays)))


def _why_none(sizes: Counter[str], masks: set[str], pair: list[str], strays: int, n: int) -> str:
    """Why folders of such sizes, by name, are no classes; '' where they may be.

    masks: names of those with masks; pair: one called as if it held all of the n images, and those with the same names in
    them; strays: images in no folder.
    """
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
    """Whether a folder called by these words should hold all images, as 'JPEGImages' does."""
    return any(map(ALL.fullmatch, words)) and all(ALL.fullmatch(word) or BESIDE.fullmatch(word) for word in words)


def _named_alike(one: str, classes: Sequence[str | None], lies: NDArray[np.int64], title: Callable[[int], str]) -> list[str]:
    """Other classes, whose images have the same names as those of `one`."""
    names: dict[str, set[str]] = {}
    for index, place in enumerate(lies.tolist()):
        if name := classes[place]:
            names.setdefault(name, set()).add(title(index).rpartition("/")[2].partition(".")[0])
    ours = names.pop(one)
    return sorted(name for name, theirs in names.items() if len(ours & theirs) >= ALIKE * len(ours | theirs))


def _doubts(sizes: Counter[str], catch_all: list[str], strays: int) -> list[str]:
    """What is doubtful of classes of such sizes, by name; catch_all: the one called 'images'; strays: images in no folder."""
    notes = [f"{name} is taken for a class, though it is called as if it held all images" for name in catch_all]
    single = sorted(name for name, size in sizes.items() if size == 1)
    if strays:
        lie = "image lies" if strays == 1 else "images lie"
        notes.append(f"{strays:,} {lie} in no class folder, and so without a label: move into one what is of its class")
    if len(single) >= _FEW and 2 * len(single) > len(sizes):
        notes.append(f"{len(single):,} of {len(sizes):,} classes have one image ({some(single)}): they may be names of things")
    return notes
