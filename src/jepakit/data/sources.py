"""What a source of images is: a length, what is stored at an index, and labels if there are any."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, nearest
from jepakit.data.decoding.decode import decode
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.findings import Finding
from jepakit.model.images import MOST_PIXELS


@dataclass(frozen=True)
class Labels:
    """What a probe can learn.

    values (n,): int64 in `classes`, or -1 for a sample that has no label or no part in the split; test (n,): held out.
    clusters (n,): samples of one number are not independent (one identity, one scene), so intervals resample them
    together. whole: the label speaks of the whole image, so that evaluation resizes it and crops nothing. own_split: the set
    brings the split, or the papers do; else a fifth was held out. apart: labelled samples of a validation part that no probe
    uses beside a test part, -1 in `values`.
    """

    name: str
    classes: tuple[str, ...]
    values: NDArray[np.int64]
    test: NDArray[np.bool_]
    clusters: NDArray[np.int64] | None = None
    whole: bool = False
    own_split: bool = True
    apart: int = 0


@dataclass(frozen=True, eq=False)
class Blocks:
    """Samples that are best read together: those of a shard or a row group.

    starts (n + 1,): the first sample of each block, and the number of samples; held: blocks that can be open at a time.
    dear: a sample costs about its whole block, so that reading in any order would read everything many times.
    """

    starts: NDArray[np.int64]
    held: int
    dear: bool

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block of each sample: (B,) -> (B,)."""
        return np.searchsorted(self.starts, ids, side="right") - 1


class Source(Protocol):
    """Images by index. A class of this kind names it as its base and gives `raw`; reading is safe from several threads.

    held_out (n,): what files or folders named as a split keep from training, validation too; None where they name none.
    notes: a sentence for whatever of the user's data is not used, used in part, or taken by a guess: how many, and what to do.
    by_place: titles say where in the set a sample lies and nothing of what it is: other sets have the same.
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

    def read(self, index: int, most_pixels: int = MOST_PIXELS, *, told: list[Finding] | None = None) -> Pixels:
        """Pixels (H, W, C) uint8, uint16 or float32; raises BadImageError, also for more pixels. told: as of `decode`."""
        raw = self.raw(index)
        return decode(raw, most_pixels, told) if isinstance(raw, bytes) else raw

    def soon(self, ids: NDArray[np.int64]) -> None:
        """Samples that will be asked for next, in this order: a source that fetches from afar may begin."""
        return

    def wait(self, ids: NDArray[np.int64], seconds: float) -> None:
        """Returns when what these samples need has come from afar, or nothing came for so many seconds."""
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
    """What changes when samples come, go or change places: sha256 of their names in order."""
    names = "\n".join(source.title(index) for index in range(len(source)))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def groups_at_hand(source: Source, ids: NDArray[np.int64]) -> list[list[int]]:
    """Rows of ids in groups that can be at hand at the same time: of as many blocks as are held, where blocks are dear."""
    blocks = source.blocks
    if blocks is None or not blocks.dear:
        return [list(range(len(ids)))]
    block = blocks.of(ids)
    groups = np.array_split(np.unique(block), max(1, -(-len(np.unique(block)) // blocks.held)))
    return [np.flatnonzero(np.isin(block, group)).tolist() for group in groups]


def spread_places(source: Source, count: int) -> NDArray[np.int64]:
    """At most so many places of a source, evenly; where blocks are dear, of four blocks."""
    n, blocks = len(source), source.blocks
    if blocks is None or not blocks.dear:
        return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))
    some = np.unique(np.linspace(0, len(blocks.starts) - 2, 4).astype(int))
    ends = zip(blocks.starts[some], blocks.starts[some + 1], strict=True)
    return np.concatenate([np.unique(np.linspace(a, b - 1, min(b - a, count // 4 + 1)).astype(np.int64)) for a, b in ends])[
        :count
    ]


def pick(labels: str | None, choices: tuple[str, ...], name: str) -> str:
    """`labels` if it is one of a set's kinds of labels, their first for None ('' if there is none). Raises UserError."""
    if labels and labels not in choices:
        have = " and ".join(f"'{choice}'" for choice in choices) or "no labels"
        raise UserError(f"{name} has {have}, not '{labels}'{nearest(labels, choices)}")
    return labels or next(iter(choices), "")


def by_default(labels: str | None, chosen: str, choices: Sequence[str]) -> tuple[str, ...]:
    """What to say where a set has several kinds of labels and nobody has said which."""
    others = [choice for choice in choices if choice != chosen]
    few = ", ".join([*map(repr, others[:3]), *(["..."] if others[3:] else [])])
    return (f"labels are '{chosen}'; it has {few} too: --labels NAME takes another",) if others and not labels else ()


def fifths(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Held out where a set has no split of its own: every fifth of a class, in the order of the set; (n,) -> (n,)."""
    order = np.argsort(values, kind="stable")  # class by class
    starts = np.flatnonzero(np.diff(values[order], prepend=values[order][:1] - 1))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    held: NDArray[np.bool_] = (rank % 5 == 4) & (values >= 0)
    return held
