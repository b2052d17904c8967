"""What labels and groups a set has: how many of which, on both sides of the split; and how it is said."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import plain
from jepakit.data.sources import Labels
from jepakit.data.unread_files import plural

_SHORT = 60  # letters of a name
_SHOWN = 12  # classes or labels of which counts are shown
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # per cent


@dataclass(frozen=True)
class OfClass:
    """Samples of a class, or those for which one of several labels holds; unknown: for which that label is not known."""

    name: str
    train: int
    test: int
    unknown: int = 0


@dataclass(frozen=True)
class GroupsSeen:
    """How many groups there are, the largest with its samples, and how many have samples on both sides of the split."""

    count: int
    largest: tuple[str, int]
    both_sides: int


@dataclass(frozen=True)
class LabelsSeen:
    """Labels of all samples; smallest and largest class with their samples, or of several labels at once those that hold.

    span: of numbers the least, the mean and the largest; quantiles: theirs, by side of the split. groups: None where each image
    stands alone.
    """

    name: str
    classes: int
    smallest: tuple[str, int]
    largest: tuple[str, int]
    unlabelled: int
    test: int
    kind: str
    span: tuple[float, float, float] | None
    each: tuple[OfClass, ...]
    quantiles: dict[str, tuple[float, ...]]
    groups: GroupsSeen | None


def labels_seen(labels: Labels) -> LabelsSeen:
    """Of all samples of a set."""
    labelled = labels.values >= 0
    each = _each(labels, labelled)
    totals = np.array([one.train + one.test for one in each] or [0])
    names = [one.name for one in each] or [""]
    numbers = labels.y[labelled] if labels.kind == "number" and labelled.any() else None
    sides = {"training": labelled & ~labels.test, "test": labelled & labels.test}
    quantiles = {side: _quantiles(labels.y[rows]) for side, rows in sides.items() if numbers is not None and rows.any()}
    return LabelsSeen(
        name=labels.name,
        classes=len(labels.classes),
        smallest=(names[int(totals.argmin())], int(totals.min())),
        largest=(names[int(totals.argmax())], int(totals.max())),
        unlabelled=max(0, int((~labelled).sum()) - labels.apart),
        test=int((labelled & labels.test).sum()),
        kind=labels.kind,
        span=None if numbers is None else (float(numbers.min()), float(numbers.mean()), float(numbers.max())),
        each=each,
        quantiles=quantiles,
        groups=_groups(labels, labelled),
    )


def _each(labels: Labels, labelled: NDArray[np.bool_]) -> tuple[OfClass, ...]:
    if labels.kind == "number":
        return ()
    train, test = labelled & ~labels.test, labelled & labels.test
    if labels.kind == "class":
        counts = [np.bincount(labels.values[rows], minlength=len(labels.classes)).tolist() for rows in (train, test)]
        return tuple(map(OfClass, labels.classes, *counts))
    y = labels.y
    counts = [*((y[rows] == 1).sum(0).tolist() for rows in (train, test)), np.isnan(y[labelled]).sum(0).tolist()]
    return tuple(map(OfClass, labels.classes, *counts))


def _quantiles(numbers: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(numbers, np.array(QUANTILES) / 100))


def _groups(labels: Labels, labelled: NDArray[np.bool_]) -> GroupsSeen | None:
    if labels.groups is None:
        return None
    groups, counts = np.unique(labels.groups, return_counts=True)
    if not len(groups):
        return None
    most, names = int(groups[counts.argmax()]), labels.group_names
    both = np.intersect1d(labels.groups[labelled & labels.test], labels.groups[labelled & ~labels.test])
    return GroupsSeen(len(groups), (names[most] if most < len(names) else str(most), int(counts.max())), len(both))


def short_title(text: str) -> str:
    """A name without signs that move the cursor, its middle left out where it is long."""
    text = plain(text)
    return text if len(text) <= _SHORT else f"{text[: _SHORT // 2 - 1]}...{text[-_SHORT // 2 + 2 :]}"


def label_lines(labels: LabelsSeen) -> list[str]:
    """In words: what there is, then how many of each."""
    (small, few), (large, many) = labels.smallest, labels.largest
    if labels.kind == "number":
        least, mean, largest = labels.span or (float("nan"),) * 3
        what, ends = "numbers", f"least {least:g}, mean {mean:g}, largest {largest:g}"
    else:
        several = labels.kind == "multi"
        what = plural(labels.classes, "label") + " at once" if several else plural(labels.classes, "class", "classes")
        ends = f"{'rarest' if several else 'smallest'} {short_title(small)} {few:,}, "
        ends += f"{'most frequent' if several else 'largest'} {short_title(large)} {many:,}"
    groups = f"; {plural(labels.groups.count, 'group')}" if labels.groups else ""
    first = f"'{short_title(labels.name)}', {what}: {ends}; {labels.unlabelled:,} without; {labels.test:,} for testing{groups}"
    return [first, *_of_each(labels), *_quantile_lines(labels), *_group_lines(labels.groups)]


def _of_each(labels: LabelsSeen) -> list[str]:
    told = []
    for one in sorted(labels.each, key=lambda one: -(one.train + one.test)):
        unknown = f" ({one.unknown:,} unknown)" if one.unknown else ""
        told.append(f"{short_title(one.name)} {one.train:,} + {one.test:,}{unknown}")
    if not told:
        return []
    more = f", and {len(told) - _SHOWN:,} more (--json FILE has all)" if len(told) > _SHOWN else ""
    return [f"training + test: {', '.join(told[:_SHOWN])}{more}"]


def _quantile_lines(labels: LabelsSeen) -> list[str]:
    return [
        f"{side}: " + ", ".join(f"{share}% {value:.4g}" for share, value in zip(QUANTILES, values, strict=True))
        for side, values in labels.quantiles.items()
    ]


def _group_lines(groups: GroupsSeen | None) -> list[str]:
    if groups is None:
        return []
    name, many = groups.largest
    both = f"{groups.both_sides:,} of them on both sides of the split" if groups.both_sides else "none on both sides of the split"
    return [f"{plural(groups.count, 'group')}: the largest, {short_title(name)}, has {plural(many, 'image')}; {both}"]
