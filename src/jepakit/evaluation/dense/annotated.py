"""Images with a label for each pixel, in ADE20K's layout.

K classes, H, W rows and columns of pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError, line_of
from jepakit.core.progress import progress
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.opening import SECONDS
from jepakit.data.sources import evenly
from jepakit.data.threads import time_limited
from jepakit.model.images import MOST_PIXELS

IGNORED = -1  # the class of pixels without one
_VALUES = 1 << 16  # of a label image of 16 bits


@dataclass(frozen=True)
class Pair:
    """An image and the image of its labels."""

    image: Path
    labels: Path


@dataclass(frozen=True)
class Annotated:
    """A segmentation data set. pixels (K,): how many pixels of each class its training images have."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    classes: int
    pixels: NDArray[np.int64]
    zero_is_other: bool

    def labels(self, pair: Pair) -> NDArray[np.int32]:
        """The class of each pixel, (H, W), from 0; IGNORED where there is none. Raises UserError."""
        return read_labels(pair.labels, self.zero_is_other)


def open_annotated(root: Path, zero_is_other: bool = True, limit: int | None = None) -> Annotated:
    """The data set in root/images/{training,validation}/NAME.jpg and root/annotations/{training,validation}/NAME.png.

    The largest label found gives the number of classes. zero_is_other: label 0 is no class, and 1 is the first (as in ADE20K);
    else 0 is the first. limit: training images at most, evenly over the set. Raises UserError where a folder or one of a pair is
    missing, a label image cannot be read, no pixel has a class, or fewer than five training images are left.
    """
    train, test = _pairs(root, "training"), _pairs(root, "validation")
    if limit is not None:
        train = [train[i] for i in evenly(len(train), limit)]
    if len(train) < 5:
        raise UserError(f"{root}: {len(train)} training images; give at least five, as a fifth chooses the learning rate")
    counts = np.zeros((2, _VALUES), np.int64)
    for split, pairs, found in zip(("training", "validation"), (train, test), counts, strict=True):
        for pair in counted(f"{split} labels", pairs):
            labels = read_labels(pair.labels, zero_is_other)
            found += np.bincount(labels[labels != IGNORED], minlength=_VALUES)
        if not found.any():
            raise UserError(f"{root}/annotations/{split}: no pixel has a class; 255 is never one, 0 is one if you say so")
    classes = int(np.flatnonzero(counts.any(0))[-1]) + 1
    return Annotated(tuple(train), tuple(test), classes, counts[0, :classes], zero_is_other)


def read_labels(path: Path, zero_is_other: bool) -> NDArray[np.int32]:
    """Classes (H, W) from 0; IGNORED where the file has 255 (65535 with 16 bits), or 0 if `zero_is_other`. Raises UserError."""
    labels = label_image(path)
    shifted = labels.astype(np.int32) - int(zero_is_other)
    shifted[labels == np.iinfo(labels.dtype).max] = IGNORED
    return shifted


def label_image(path: Path) -> NDArray[np.uint8 | np.uint16]:
    """The values (H, W) of a PNG, gray or of a palette, of 8 or 16 bits. Raises UserError for any other file."""
    try:
        return time_limited(SECONDS, lambda: _labels_of(path))
    except BadImageError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _labels_of(path: Path) -> NDArray[np.uint8 | np.uint16]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"{path}: more than {MOST_PIXELS:,} pixels: taken for a decompression bomb")
            if image.mode not in ("1", "L", "P", "I;16"):
                raise UserError(f"{path}: labels must be a PNG with one channel, this one is {image.mode}")
            labels = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a PNG of labels: {line_of(error)}") from None
    return labels.astype(np.uint16 if labels.dtype.itemsize > 1 else np.uint8)


def counted(title: str, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs, one by one, with their number as progress."""
    with progress(title, len(pairs)) as report:
        for done, pair in enumerate(pairs, start=1):
            yield pair
            report(done)


def _pairs(root: Path, split: str) -> list[Pair]:
    folders = [root / kind / split for kind in ("images", "annotations")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give a root with images/ and annotations/, each with training/ and validation/")
    images = {p.stem: p for p in sorted(folders[0].iterdir()) if p.suffix.lower() in SUFFIXES and p.name[0] != "."}
    labels = {p.stem: p for p in sorted(folders[1].glob("*.png")) if p.name[0] != "."}
    if not images:
        raise UserError(f"no images in {folders[0]}")
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        where, other = folders if alone[0] in images else folders[::-1]
        counts = f"{len(images)} images, {len(labels)} label images"
        raise UserError(f"{where} has '{alone[0]}' and {other} has not ({counts}): each image needs a PNG of its name")
    return [Pair(images[stem], labels[stem]) for stem in sorted(images)]
