"""One answer for a group of images: slices of a volume, tiles of a slide, views of a patient (`aggregate=group`).

n samples, G groups, m test samples, K labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError, plain
from jepakit.data.sources import Labels
from jepakit.evaluation.features import FrozenFeatures
from jepakit.evaluation.split import Split, SplitRows
from jepakit.evaluation.storage import ROWS_AT_ONCE, allocate


@dataclass(frozen=True)
class GroupedTest:
    """Test samples whose scores are averaged over groups: which (m,) of them each is of, their truth, the place in the source of
    the first sample of each, ids (G,), and the numbers that they have among all groups (G,)."""

    which: SplitRows
    truth: NDArray[Any]
    ids: SplitRows
    groups: SplitRows

    @classmethod
    def of(cls, labels: Labels, split: Split, ids: SplitRows) -> "GroupedTest":
        """Of the test samples of a split of the samples at places `ids`. Raises UserError as `one_for_each_group`."""
        test = ids[split.test]
        grouped, firsts, which = one_for_each_group(labels, test)
        assert grouped.groups is not None
        return cls(which, grouped.y[firsts], firsts, grouped.groups[firsts])


def one_for_each_group(labels: Labels, ids: SplitRows) -> tuple[Labels, SplitRows, SplitRows]:
    """Labels of groups at the place of each group's first sample; these places (G,); and which group each of `ids` (n,) is of.

    A group with samples in training and in the test is two. Of several labels, one that is known of any of its images is known of
    the group. Raises UserError without groups, and where the images of one have different labels.
    """
    if labels.groups is None:
        raise UserError(f"{labels.name}: there are no groups to average over: name a table's column with --groups")
    pairs = np.stack([labels.groups[ids], labels.test[ids]], 1)
    _, firsts, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(firsts)  # in the order of the set
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    which, places = rank[which.ravel()], ids[firsts[order]]
    y = labels.y[ids].astype(np.float64).reshape(len(ids), -1)
    low, high = (np.full((len(places), y.shape[1]), start) for start in (np.inf, -np.inf))
    known = ~np.isnan(y)
    np.minimum.at(low, which, np.where(known, y, np.inf))
    np.maximum.at(high, which, np.where(known, y, -np.inf))
    unlike = np.flatnonzero((low < high).any(1))
    if len(unlike):
        raise UserError(_unlike(labels, int(labels.groups[places[unlike[0]]]), low[unlike[0]], high[unlike[0]], len(unlike)))
    values = np.full(len(labels.values), -1)
    values[places] = labels.values[places]
    grouped = replace(labels, values=values)
    if labels.targets is not None:
        targets = np.full(labels.targets.shape, np.nan)
        found = np.where(np.isfinite(low), low, np.nan)
        targets[places] = found if labels.targets.ndim == 2 else found[:, 0]
        grouped = replace(grouped, targets=targets)
    return grouped, places, which


def seen_groups(seen: NDArray[np.bool_] | None, ids: SplitRows, places: SplitRows, which: SplitRows) -> NDArray[np.bool_] | None:
    """Of a source's samples, whether each was seen: of a group's first, at places (G,), whether any of the group was."""
    if seen is None:
        return None
    of_groups = seen.copy()
    of_groups[places] = np.bincount(which, seen[ids]) > 0
    return of_groups


def means(features: Mapping[str, FrozenFeatures], which: SplitRows, groups: int) -> dict[str, FrozenFeatures]:
    """The mean of each encoder's features over the samples of each group; patch tokens have none."""
    return {
        name: FrozenFeatures(_mean(x.last, which, groups), None if x.last4 is None else _mean(x.last4, which, groups))
        for name, x in features.items()
    }


def _mean(x: Tensor, which: SplitRows, groups: int) -> Tensor:
    total, index = allocate(groups, x.shape[1]).zero_(), torch.from_numpy(which)
    for rows, batch in zip(index.split(ROWS_AT_ONCE), x.split(ROWS_AT_ONCE), strict=True):
        total.index_add_(0, rows, batch.float())
    return total.div_(index.bincount(minlength=groups)[:, None])


def _unlike(labels: Labels, group: int, low: NDArray[np.float64], high: NDArray[np.float64], count: int) -> str:
    called = plain(labels.group_names[group]) if labels.group_names else str(group)
    k = int(np.flatnonzero(low < high)[0])
    answers = [f"'{labels.classes[int(v[0])]}'" if labels.kind == "class" else f"{v[k]:g}" for v in (low, high)]
    of = f" of '{labels.classes[k]}'" if labels.kind == "multi" else ""
    return (
        f"{labels.name}: images of group '{called}' have different labels{of}, {' and '.join(answers)} ({count} such groups): "
        f"one answer for a group needs one label, so leave out --aggregate group"
    )
