"""The split of a labelled set: the rows that a probe learns from, and those that it is tested on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.data.sources import Labels, Source

SplitRows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of the features for training (n,) and testing (m,), their labels, and clusters of the test samples if any."""

    train: SplitRows
    test: SplitRows
    train_labels: Tensor
    test_labels: Tensor
    clusters: SplitRows | None


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

    Raises UserError where either is empty, the training samples are of one class, or a test sample is of a class without one.
    """
    values, test = labels.values[ids], labels.test[ids]
    named = f"{source.name} ({labels.name})"
    for name, there, mend in (("training", ~test, "train/"), ("test", test, "test/ or val/")):
        if not there.any():
            raise UserError(
                f"{named}: no {name} image is left of {len(ids)}: give at least five images of each class, or folders "
                f"train/ and test/ with images in {mend}"
            )
    known = np.unique(values[~test])
    if len(known) < 2:
        raise UserError(f"{named}: all training images are of one class, '{labels.classes[known[0]]}': a probe needs two")
    strange = np.setdiff1d(values[test], known)
    if len(strange):
        raise UserError(
            f"{named}: test images of class '{labels.classes[strange[0]]}' ({len(strange)} such classes), of which no "
            f"training image is left: give some, or take the class out"
        )
    y = torch.from_numpy(values)
    train_rows, test_rows = np.nonzero(~test)[0], np.nonzero(test)[0]
    clusters = None if labels.groups is None else labels.groups[ids][test_rows]
    return Split(train_rows, test_rows, y[train_rows], y[test_rows], clusters)
