"""Which images of a set are masks of a segmentation rather than pictures: by the words they are called by, and by their look."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.sources import evenly
from jepakit.data.threads import time_limited
from jepakit.data.unread_files import some

WORD = re.compile(
    r"(masks?|seg(s|m|mentations?|mentationclass|mentationobject)?|anns?|annot(s|ations?)?|panoptic|gts?|groundtruth|truth|trimaps?|mattes?|"
    r"labels?|label(ids|maps?|trainids)|instanceids|targets?)"
)
_NAMES = re.compile(
    r"(?:^(mask|seg|label|gt)s?[_\-. ])|[_\-. ](masks?|segs?|segmentation|labels?|labelids|instanceids|labeltrainids|gt|"
    r"groundtruth|annotations?|trimap|matte|color)(?:[_\-. ]?\(?\d+\)?)?$"
)
_SAMPLED = 256  # places in a set where names are looked at
SEEN, MOST_PIXELS, SECONDS = 8, 1 << 24, 10.0  # images of a kind that are looked at, how large, and how long one may take
LEVELS, FLAT = 32, 0.8  # a mask has fewer values, or this share of its pixels is like the next one


@dataclass(frozen=True)
class MaskFolders:
    """Images that look like masks.

    ids (m,): their places in the set; words: what tells them, 'masks/' of a folder and '*_mask' of names; folders: places of
    the folders that hold them.
    """

    ids: NDArray[np.int64]
    words: tuple[str, ...]
    folders: frozenset[int]


NO_MASKS = MaskFolders(np.zeros(0, np.int64), (), frozenset())


def folder_words(name: str) -> list[str]:
    """The words of a folder's name in lower case: 'SegmentationClass' has two."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def masks_among(
    title: Callable[[int], str], folders: Sequence[str], lies: NDArray[np.int64], read: Callable[[int, int], Pixels]
) -> MaskFolders:
    """The masks among n images: a few of each folder or ending that is called by a word for masks are looked at.

    title(i): an image's path; lies (n,): its place in `folders`; read(i, most): its pixels, if it has at most so many.
    """
    by_folder: dict[str, list[int]] = {}
    for place, folder in enumerate(folders):
        if word := next((part for part in folder.split("/") if any(map(WORD.fullmatch, folder_words(part)))), ""):
            by_folder.setdefault(word, []).append(place)
    kinds = {f"{word}/": np.flatnonzero(np.isin(lies, inside)) for word, inside in by_folder.items()}
    kinds |= {f"*{word}": np.array(ids, np.int64) for word, ids in _by_name(title, len(lies)).items()}
    masks = {word: ids for word, ids in kinds.items() if _look_so(ids, read)}
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *masks.values()]))
    holding = frozenset(i for word in masks for i in by_folder.get(word[:-1], ()))
    return MaskFolders(ids, tuple(masks), holding if len(ids) < len(lies) else frozenset())  # of all images none is a mask's


def _by_name(title: Callable[[int], str], n: int) -> dict[str, list[int]]:
    """Images whose names have a word for masks, by the word; none where no name at some places of the set has one."""
    few = evenly(n, _SAMPLED)
    near = np.unique(np.concatenate([few, np.arange(min(n, _SAMPLED)), np.minimum(few + 1, n - 1)]))  # a pair lies side by side
    if not any(_word_of(title(index)) for index in near.tolist()):
        return {}
    found: dict[str, list[int]] = {}
    for index in range(n):
        if word := _word_of(title(index)):
            found.setdefault(word, []).append(index)
    return found


def _word_of(title: str) -> str:
    """The word for masks in a file's name, as '_mask' of 'a/cat_mask_2.png'; '' where it has none."""
    match = _NAMES.search(title.rpartition("/")[2].rpartition(".")[0].lower())
    return (match[0] if match[1] else re.sub(r"[_\-. (]*\d+\)?$", "", match[0])) if match else ""


def without_mask_word(stem: str) -> str:
    """A mask's name, without its ending, as its picture would have it: 'cat_2' of 'cat_2_mask', 'cat' of 'mask_cat'."""
    match = _NAMES.search(stem.lower())
    return (stem[: match.start()] + stem[match.end() :]) if match else stem


def _look_so(ids: NDArray[np.int64], read: Callable[[int, int], Pixels]) -> bool:
    """Whether most of some images have few values, or are of one value all over."""
    looks = []
    for index in ids[evenly(len(ids), SEEN)].tolist():
        try:
            pixels = time_limited(SECONDS, partial(read, index, MOST_PIXELS))
        except BadImageError:
            continue
        looks.append(_is_mask(pixels))
    return bool(looks) and 2 * sum(looks) > len(looks)


def _is_mask(pixels: Pixels) -> bool:
    """Whether pixels (h, w, bands) are flat, or of few values."""
    alike = (pixels[:, 1:] == pixels[:, :-1]).all(-1)
    if alike.size and alike.mean() >= FLAT:
        return True
    sampled = pixels.reshape(-1, pixels.shape[-1])[:: max(1, pixels.shape[0] * pixels.shape[1] // 65536)]
    return len(np.unique(sampled, axis=0)) <= LEVELS


def note_of(masks: MaskFolders, n: int, elsewhere: str) -> tuple[str, ...]:
    """What to say of masks among n images; elsewhere: the folder that holds the others alone, '' if there is none."""
    if not len(masks.ids):
        return ()
    what = f"{len(masks.ids):,} of {n:,} images look like masks ({some(masks.words)}), and count as images"
    return (f"{what}: to leave them out, {f'give --data {elsewhere}' if elsewhere else 'move them out of the folder'}",)
