"""What a source of images is: a length, what is stored at an index, and labels if there are any."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, nearest
from jepakit.data.decoding.decode import decode
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.findings import Finding
from jepakit.data.unread_files import some
from jepakit.model.images import MOST_PIXELS

LabelKind = Literal["class", "number", "multi"]  # of labels: one class, one number, or several yes-or-no labels at once


@dataclass(frozen=True)
class Labels:
    """Labels of the samples, and which samples are held out to test on.

    classes: names of the classes, of several labels their names, () for numbers. values (n,): int64, place in `classes`, or -1
    for a sample that has no label or no part in the split; for numbers and several labels 0 instead of a place. targets: float64,
    numbers (n,) or several labels (n, L), each 0 or 1; NaN where there is none; None for classes. test (n,): held out.
    groups (n,): samples of one number are not independent (one identity, patient, scene): intervals resample them together,
    splits that are made here do not divide them; group_names: what the number stands for, () where it is just a number.
    whole_image: the label describes the whole image, so evaluation resizes it without cropping. own_split: the split comes with
    the set or from the papers; if False, a fifth of each class, or of the groups, was held out here. apart: how many labelled
    samples of a validation part no probe uses because there is a test part too; they are -1 in `values`.
    """

    name: str
    classes: tuple[str, ...]
    values: NDArray[np.int64]
    test: NDArray[np.bool_]
    groups: NDArray[np.int64] | None = None
    whole_image: bool = False
    own_split: bool = True
    apart: int = 0
    targets: NDArray[np.float64] | None = None
    group_names: tuple[str, ...] = ()

    @property
    def kind(self) -> LabelKind:
        """Of numbers `targets` is (n,), of several labels (n, L)."""
        return "class" if self.targets is None else "number" if self.targets.ndim == 1 else "multi"

    @property
    def y(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """What a probe is to predict, of every sample: places in `classes` (n,), numbers (n,), or several labels (n, L)."""
        return self.values if self.targets is None else self.targets

    @property
    def digest(self) -> str:
        """sha256 of all that a figure depends on."""
        found = hashlib.sha256(json.dumps([self.name, self.classes, self.whole_image]).encode())
        for array in (self.values, self.test, self.targets, self.groups):
            found.update(b"-" if array is None else array.tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Blocks:
    """Samples that are best read together: those of a shard or a row group.

    starts (n + 1,): the first sample of each of n blocks, then the number of samples; at_once: how many blocks fit in memory
    or on disk at a time. sequential: reading one sample costs about as much as reading its whole block, so samples should be
    read block by block; any other order would read everything many times.
    """

    starts: NDArray[np.int64]
    at_once: int
    sequential: bool

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block of each sample: (B,) -> (B,)."""
        return np.searchsorted(self.starts, ids, side="right") - 1


class Source(Protocol):
    """Images by index. Subclasses implement `__len__`, `raw` and `title`; reading is safe from several threads.

    held_out (n,): samples of the test and validation parts, where files or folders are named as a split; None where none are.
    notes: sentences for the user about data that is not used, used in part, or guessed at: how many images, and what to do.
    by_place: titles only say where in the set a sample lies ('0', 'a.parquet:7'), so that other sets have the same titles.
    """

    name: str
    labels: Labels | None
    blocks: Blocks | None = None
    held_out: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    by_place: bool = False

    def __len__(self) -> int: ...

    def raw(self, index: int) -> bytes | Pixels:
        """What is stored: the bytes of an image file, or pixels in a set of pixels. Raises BadImageError."""
        ...

    def title(self, index: int) -> str:
        """What to call a sample in a message: the same in every place that the set lies."""
        ...

    def read(self, index: int, most_pixels: int = MOST_PIXELS, *, findings: list[Finding] | None = None) -> Pixels:
        """Pixels (H, W, C) uint8, uint16 or float32; raises BadImageError, also for more pixels.

        findings: a list that `decode` adds to.
        """
        raw = self.raw(index)
        return decode(raw, most_pixels, findings) if isinstance(raw, bytes) else raw

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Announces samples (n,) that will be read next, in this order: a remote source begins to fetch their blocks."""
        return

    def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
        """Blocks until the data of these samples has been fetched, or no bytes have arrived for `seconds`."""
        return


@dataclass
class ArraySource(Source):
    """Images that lie in memory: (n, H, W, C) uint8."""

    name: str
    images: NDArray[np.uint8]
    labels: Labels | None
    by_place = True

    def __len__(self) -> int:
        return len(self.images)

    def raw(self, index: int) -> Pixels:
        pixels: Pixels = self.images[index]
        return pixels

    def title(self, index: int) -> str:
        return str(index)


def fingerprint(source: Source) -> str:
    """sha256 of the titles in order: it changes when samples are added, removed or reordered."""
    names = "\n".join(source.title(index) for index in range(len(source)))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def groups_at_hand(source: Source, ids: NDArray[np.int64]) -> list[list[int]]:
    """Rows of ids in groups that can be read together: each of `at_once` blocks where blocks are sequential, else all in one."""
    blocks = source.blocks
    if blocks is None or not blocks.sequential:
        return [list(range(len(ids)))]
    block = blocks.of(ids)
    groups = np.array_split(np.unique(block), max(1, -(-len(np.unique(block)) // blocks.at_once)))
    return [np.flatnonzero(np.isin(block, group)).tolist() for group in groups]


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most so many of n places, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def spread_places(source: Source, count: int) -> NDArray[np.int64]:
    """At most `count` indices spread evenly over a source; where blocks are sequential, over four of its blocks."""
    n, blocks = len(source), source.blocks
    if blocks is None or not blocks.sequential:
        return evenly(n, count)
    four = evenly(len(blocks.starts) - 1, 4)
    ends = zip(blocks.starts[four], blocks.starts[four + 1], strict=True)
    places = [np.unique(np.linspace(a, b - 1, min(b - a, count // 4 + 1)).astype(np.int64)) for a, b in ends]
    return np.concatenate(places)[:count]


def pick(labels: str | None, choices: tuple[str, ...], name: str) -> str:
    """`labels` if it is among the choices; for None the first choice, or '' if there are none. Raises UserError for others."""
    if labels and labels not in choices:
        have = " and ".join(f"'{choice}'" for choice in choices) or "no labels"
        raise UserError(f"{name} has {have}, not '{labels}'{nearest(labels, choices)}")
    return labels or next(iter(choices), "")


def by_default(labels: str | None, chosen: str, choices: Sequence[str]) -> tuple[str, ...]:
    """A note for the user where a set has several kinds of labels and `chosen` was taken by default; else ()."""
    others = [choice for choice in choices if choice != chosen]
    note = f"labels are '{chosen}'; it has {some([*map(repr, others)])} too: --labels NAME takes another"
    return (note,) if others and not labels else ()


def every_fifth_held_out(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A split for sets without one: labels (n,) -> held out (n,), every fifth sample of each class in the order of the set."""
    order = np.argsort(values, kind="stable")  # class by class
    starts = np.flatnonzero(np.diff(values[order], prepend=values[order][:1] - 1))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    held: NDArray[np.bool_] = (rank % 5 == 4) & (values >= 0)
    return held
