"""The split of a labelled set: the rows that a probe learns from, and those that it is tested on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.data.sources import Labels, Source

SplitRows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of the features for training (n,) and testing (m,), their labels, and the test and training samples' groups if any.

    Labels are places of classes, int64 (n,), or floats: several labels (n, K), or numbers (n,).
    """

    train: SplitRows
    test: SplitRows
    train_labels: Tensor
    test_labels: Tensor
    clusters: SplitRows | None
    train_groups: SplitRows | None = None


def labelled(source: Source, labels: Labels, limit: int | None = None) -> SplitRows:
    """Places in the source (n,), ascending, of the samples that have a label.

    At most `limit` of them, evenly over training and test samples and over classes. Raises UserError if no sample has a label.
    """
    ids = np.nonzero(labels.values >= 0)[0]
    if not len(ids):
        raise UserError(f"{source.name}: no image has a label")
    if limit is None or limit >= len(ids):
        return ids
    by_split_and_class = ids[np.lexsort((labels.values[ids], labels.test[ids]))]
    return np.sort(by_split_and_class[np.linspace(0, len(ids) - 1, limit).round().astype(np.int64)])


def train_and_test(source: Source, labels: Labels, ids: SplitRows) -> Split:
    """The training and test samples among `ids`, places in the source (n,); rows of the split are places in `ids`.

    Raises UserError where either is empty, the training samples are of one class (have one number, or no label has both answers),
    or a test sample is of a class without one.
    """
    values, test = labels.values[ids], labels.test[ids]
    named = f"{source.name} ({labels.name})"
    for name, there, mend in (("training", ~test, "train/"), ("test", test, "test/ or val/")):
        if not there.any():
            raise UserError(
                f"{named}: no {name} image is left of {len(ids)}: give at least five images of each class, or folders "
                f"train/ and test/ with images in {mend}"
            )
    y = labels.y[ids]
    if labels.kind == "class":
        _require_classes(values, test, labels, named)
    else:
        _require_answers(y[~test], labels, named)
    wanted = torch.from_numpy(y)
    train_rows, test_rows = np.nonzero(~test)[0], np.nonzero(test)[0]
    groups = (None, None) if labels.groups is None else (labels.groups[ids][train_rows], labels.groups[ids][test_rows])
    return Split(train_rows, test_rows, wanted[train_rows], wanted[test_rows], groups[1], groups[0])


def _require_classes(values: SplitRows, test: NDArray[np.bool_], labels: Labels, named: str) -> None:
    """Raises UserError where there are fewer than two classes to learn, or one is tested that is not learnt."""
    known = np.unique(values[~test])
    if len(known) < 2:
        raise UserError(f"{named}: all training images are of one class, '{labels.classes[known[0]]}': a probe needs two")
    strange = np.setdiff1d(values[test], known)
    if len(strange):
        raise UserError(
            f"{named}: test images of class '{labels.classes[strange[0]]}' ({len(strange)} such classes), of which no "
            f"training image is left: give some, or take the class out"
        )


def _require_answers(y: NDArray[Any], labels: Labels, named: str) -> None:
    """Raises UserError where training numbers (n,) are all one, or no label of (n, K) has both answers."""
    if y.ndim == 1 and (y == y[0]).all():
        raise UserError(f"{named}: all training images have the number {y[0]:g}: a probe needs two")
    if y.ndim == 2 and not ((y == 0).any(0) & (y == 1).any(0)).any():
        raise UserError(f"{named}: of no label are there training images with and without it: a probe needs both")


def without_both_answers(labels: Labels, split: Split) -> list[str]:
    """Which of several labels have one answer only among the training or the test images: no mean over labels counts them."""
    if labels.kind != "multi":
        return []
    both = [((y == 0).any(0) & (y == 1).any(0)).numpy() for y in (split.train_labels, split.test_labels)]
    return [name for name, there in zip(labels.classes, both[0] & both[1], strict=True) if not there]
