"""A split that divides no group: which samples are held out where the images bring no split."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jepakit.data.sources import Labels, every_fifth_held_out

_EVERY = 5  # one of so many groups is held out


def group_split(labels: Labels) -> Labels:
    """The same labels with a fifth of the groups held out, whole, where no split is known; else as they are.

    Groups go by the rarest of their classes (or of the labels that hold), and of each of those every fifth is held out, of fewer
    than five the last; with numbers they go by their mean, of which every fifth is held out, beginning with the third. A group
    without a label is trained on. Where a class would be left without a training group, its first stays one.
    """
    if labels.own_split:
        return labels
    if labels.kind == "class" and labels.groups is None:
        return replace(labels, test=every_fifth_held_out(labels.values))
    groups = np.arange(len(labels.values)) if labels.groups is None else labels.groups
    which = np.unique(groups, return_inverse=True)[1].reshape(-1)
    held = _by_mean(labels, which) if labels.kind == "number" else _by_rarest(labels, which)
    return replace(labels, test=held[which])


def _by_mean(labels: Labels, which: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which groups (G,) are held out, for numbers; which (n,): the group of each sample."""
    assert labels.targets is not None
    known = np.isfinite(labels.targets) & (labels.values >= 0)
    count = np.bincount(which[known], minlength=which.max(initial=-1) + 1)
    total = np.bincount(which[known], labels.targets[known], minlength=len(count))
    order = np.flatnonzero(count)[np.argsort(total[count > 0] / count[count > 0], kind="stable")]
    held = np.zeros(len(count), np.bool_)
    held[order[min(_EVERY // 2, len(order) // 2) :: _EVERY] if len(order) > 1 else []] = True
    return held


def _by_rarest(labels: Labels, which: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which groups (G,) are held out, for classes or several labels; which (n,): the group of each sample."""
    known = labels.values >= 0
    if labels.targets is None:
        rows, classes = np.flatnonzero(known), labels.values[known]
    else:
        rows, classes = np.nonzero((labels.targets == 1) & known[:, None])
    pairs = np.unique(np.stack([which[rows], classes], 1), axis=0)  # (group, class that occurs in it)
    spread = np.bincount(pairs[:, 1], minlength=len(labels.classes))  # groups of each class
    stratum = np.full(which.max(initial=-1) + 1, -1)
    stratum[which[known]] = len(labels.classes)  # labelled, and of no label that holds
    pairs = pairs[np.lexsort((pairs[:, 1], spread[pairs[:, 1]], pairs[:, 0]))]
    firsts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    stratum[pairs[firsts, 0]] = pairs[firsts, 1]
    held = every_fifth_held_out(stratum)
    for one in np.unique(stratum[stratum >= 0]):
        if 2 <= len(of := np.flatnonzero(stratum == one)) < _EVERY:
            held[of[-1]] = True
    for one in np.flatnonzero(spread):
        if held[of := pairs[pairs[:, 1] == one, 0]].all():
            held[of.min()] = False
    return held
