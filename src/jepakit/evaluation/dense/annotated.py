"""A data set with a class for each pixel, in the layout that its folder has: VOC's, COCO's, or images beside label images.

K classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.data.sources import evenly
from jepakit.evaluation.dense.coco import coco
from jepakit.evaluation.dense.label_folders import label_folders
from jepakit.evaluation.dense.label_images import VALUES
from jepakit.evaluation.dense.pairs import IGNORED, LabelledFolder, Pair, counted
from jepakit.evaluation.dense.voc import voc_boxes, voc_folder, voc_segmentation

log = logging.getLogger("jepakit")


@dataclass(frozen=True)
class Annotated:
    """A segmentation data set. names (K,): of its classes; pixels (K,): how many of each its training images have."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    names: tuple[str, ...]
    pixels: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """K."""
        return len(self.names)


def open_annotated(
    root: Path,
    zero_is_other: bool | None = None,
    limit: int | None = None,
    *,
    ignore: Sequence[int] | None = None,
    class_list: Path | None = None,
) -> Annotated:
    """The data set in a folder: VOC's, COCO's, or images/ beside annotations/ (`label_folders`), whichever it is.

    zero_is_other: label 0 is no class, and 1 is the first; None: as in ADE20K so in folders like its own, not in VOC's. ignore:
    values of label images that are no class; None: 255 (65535 of 16 bits). class_list: a file that names the values; None:
    classes.txt or the like in the folder, else the largest label tells how many there are. limit: training images at most,
    evenly over the set. What is taken for granted is logged. Raises UserError where no layout fits, an image or a label is
    missing or cannot be read, fewer than two classes have pixels, or fewer than five training images are left.
    """
    ignored = None if ignore is None else tuple(ignore)
    voc = voc_folder(root)
    layout = voc_segmentation(voc, zero_is_other, ignored, class_list) if voc else coco(root, boxes=False)
    if layout is None and voc:
        raise UserError(f"{voc} has no SegmentationClass/: --tasks boxes takes the boxes of its Annotations/ as labels")
    return _annotated(layout or label_folders(root, zero_is_other, ignored, class_list), root, limit)


def open_boxes(root: Path, limit: int | None = None) -> Annotated:
    """The boxes of COCO's or VOC's folder, filled, as classes of pixels, background the first. Raises UserError."""
    voc = voc_folder(root)
    layout = voc_boxes(voc) if voc else coco(root, boxes=True)
    if layout is None:
        raise UserError(f"no boxes in {root}: give COCO's folder (annotations/*.json) or VOC's (JPEGImages/, Annotations/*.xml)")
    return _annotated(layout, root, limit)


def _annotated(layout: LabelledFolder, root: Path, limit: int | None) -> Annotated:
    """The pairs with their pixels counted. Raises UserError."""
    for note in layout.notes:
        log.info("%s", plain(f"{root}: {note}"))
    train = [layout.train[i] for i in evenly(len(layout.train), limit)] if limit else layout.train
    if len(train) < 5:
        raise UserError(f"{root}: {len(train)} training images; give at least five, as a fifth chooses the learning rate")
    counts = np.zeros((2, VALUES), np.int64)
    for split, pairs, found in zip(("training", "test"), (train, layout.test), counts, strict=True):
        for pair in counted(f"{split} labels", pairs):
            labels = pair.read()
            found += np.bincount(labels[labels != IGNORED], minlength=VALUES)
        if not found.any():
            raise UserError(
                f"{root}: no pixel has a class in the {split} images. 255 is none unless a list of classes names it, 0 is none "
                "in folders like ADE20K's unless segmentation.zero_is_other=false"
            )
    most = int(np.flatnonzero(counts.any(0))[-1]) + 1
    names = layout.classes or tuple(str(value) for value in range(layout.first, layout.first + most))
    if np.count_nonzero(counts[0]) < 2:
        only = plain(names[int(counts[0].argmax())])
        raise UserError(
            f"{root}: all labelled pixels of the training images are of one class, '{only}': there is nothing to tell apart. "
            "Where 0 is the other class, say segmentation.zero_is_other=false"
        )
    return Annotated(tuple(train), layout.test, names, counts[0, : len(names)])
