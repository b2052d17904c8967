"""Where each sequence lies in a packed batch.

Sequences of different lengths are stored one after the other as rows of one (S, D) tensor; a `Layout` says where each
begins. Everything but attention is then a plain 2-D operation without padding. S packed tokens, D width.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
MOST_PADDED = 1.1  # rows over tokens, up to which padding each sequence to one length pays


def starts(lengths: Indices) -> Indices:
    """First row of each sequence: (n,) lengths -> (n,)."""
    return np.cumsum(lengths) - lengths


def ranges(first: Indices, lengths: Indices) -> Indices:
    """Concatenation of range(first[i], first[i] + lengths[i]) over i."""
    return np.repeat(first - starts(lengths), lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True)
class Layout:
    """Lengths (n,) of the packed sequences, on the host; what attention needs of them lives on `device`.

    padded_length: rows that every sequence takes, those behind its last token empty; none: as many rows as it has tokens.
    row_multiple: rows that belong to no sequence are added at the end until all rows are a multiple of it; none: none are.
    """

    lengths: Indices
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    padded_length: int | None = None
    row_multiple: int | None = None

    @cached_property
    def max_length(self) -> int:
        return self.padded_length or int(self.lengths.max())

    @cached_property
    def used(self) -> int:
        """S: rows of all sequences, their empty ones included."""
        return len(self.lengths) * self.padded_length if self.padded_length else int(self.lengths.sum())

    @cached_property
    def padding_rows(self) -> int:
        """Rows behind the last sequence, which belong to none."""
        return -self.used % self.row_multiple if self.row_multiple else 0

    @cached_property
    def rows(self) -> int:
        """Rows of all sequences, and the padding rows behind them."""
        return self.used + self.padding_rows

    @cached_property
    def without_padding_rows(self) -> "Layout":
        """The same sequences without padding rows behind them."""
        return replace(self, row_multiple=None)

    def with_row_multiple(self, row_multiple: int | None) -> "Layout":
        """The same sequences with another row multiple; none: on a CPU `default_row_multiple`, elsewhere no padding rows."""
        return replace(
            self, row_multiple=row_multiple or (default_row_multiple(self.used) if self.device.type == "cpu" else None)
        )

    def fill(self, x: Tensor) -> Tensor:
        """(S, ...) -> (rows, ...), zeros in the padding rows, if it does not have them yet."""
        lacking = self.rows - len(x)
        assert lacking >= 0, "rows of another layout"
        return F.pad(x, (0, 0) * (x.ndim - 1) + (0, lacking)) if lacking else x

    @cached_property
    def full(self) -> bool:
        """Whether all sequences are of one length, and no row is empty."""
        return bool((self.lengths == self.max_length).all())

    @cached_property
    def dense(self) -> bool:
        """Whether all sequences take the same number of rows: then a reshape is all that padding takes."""
        return self.padded_length is not None or self.full

    @cached_property
    def cumulative(self) -> Tensor:
        """(n + 1,) int32: 0 and the end of each sequence."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)
        return torch.from_numpy(ends).to(self.device, non_blocking=True)

    @cached_property
    def slots(self) -> Tensor:
        """(S,) int64: the row of each token in the padded (n * max_length) view."""
        first = np.arange(len(self.lengths)) * self.max_length
        return torch.from_numpy(ranges(first, self.lengths)).to(self.device, non_blocking=True)

    @cached_property
    def valid(self) -> Tensor:
        """(n, 1, 1, max_length) bool: True on real tokens of the padded view."""
        real = np.arange(self.max_length) < self.lengths[:, None]
        return torch.from_numpy(real).to(self.device, non_blocking=True)[:, None, None, :]

    def pad(self, x: Tensor) -> Tensor:
        """(S, ...) -> (n, max_length, ...), zeros behind each sequence's end."""
        shape = (len(self.lengths), self.max_length, *x.shape[1:])
        return x.view(shape) if self.dense else scatter_rows(x, self.slots, shape[0] * shape[1]).view(shape)

    def unpad(self, x: Tensor) -> Tensor:
        """(n, max_length, ...) -> (S, ...): the inverse of `pad`."""
        return x.flatten(0, 1) if self.dense else take(x.flatten(0, 1), self.slots)


class _Take(torch.autograd.Function):
    """Rows at distinct indices. The stock backward adds with atomics or row by row; distinct rows need a copy only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, index, gradient.contiguous()), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, index, x.contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return gradient.contiguous().index_select(0, index), None, None


def take(x: Tensor, index: Tensor) -> Tensor:
    """x[index] for *distinct* indices, with a deterministic backward."""
    return _Take.apply(x, index)  # type: ignore[no-any-return]


def scatter_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Zeros (rows, ...) with x written at distinct indices: the transpose of `take`."""
    return _Spread.apply(x, index, rows)  # type: ignore[no-any-return]


def default_row_multiple(rows: int) -> int:
    """A power of two; rounded up to a multiple of it, a number of rows has six significant bits.

    Ragged sequences have another number of rows at each step, and a CPU's library compiles code for each shape that it meets,
    while the heap falls to pieces of all sizes: so few different numbers are better.
    """
    return 1 << max(int(rows).bit_length() - 6, 0)


def segment_mean(x: Tensor, lengths: Indices) -> Tensor:
    """Mean of each run of rows: (S, D), lengths (n,) -> (n, D)."""
    return torch.segment_reduce(x, "mean", lengths=torch.from_numpy(lengths).to(x.device), axis=0)


def choose_padded_length(lengths: Indices, device: torch.device) -> int | None:
    """The longest length where, on a CPU, few rows would be empty if all sequences were padded to it; none: do not pad.

    A few empty rows cost less than moving all rows at every attention.
    """
    most = int(lengths.max())
    return most if device.type == "cpu" and len(lengths) * most <= MOST_PADDED * lengths.sum() else None


@dataclass(frozen=True)
class Interleaved:
    """Two packed batches a and b joined sequence by sequence: [a_0 | b_0], [a_1 | b_1], ...

    a_index are the rows of a that are used (None: all, in order); a_rows and b_rows say where the rows of a and b went.
    """

    layout: Layout
    a_index: Tensor | None
    a_rows: Tensor
    b_rows: Tensor

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """(rows of a, D), (rows of b, D) -> (S, D). A row of a may stand in several sequences."""
        a = a if self.a_index is None else a.index_select(0, self.a_index)
        return scatter_rows(torch.cat([a, b]), torch.cat([self.a_rows, self.b_rows]), self.layout.rows)


def interleave(
    a_lengths: Indices,
    b_lengths: Indices,
    device: torch.device,
    a_of_b: Indices | None = None,
    *,
    padded_length: int | None = None,
    row_multiple: int | None = None,
) -> Interleaved:
    """How a and b join: sequence i holds a's sequence a_of_b[i] (i if not given), then b's.

    padded_length is as a `Layout`'s, row_multiple as for `with_row_multiple`.
    """
    chosen = np.arange(len(b_lengths)) if a_of_b is None else a_of_b
    a_taken = a_lengths[chosen]
    layout = Layout(a_taken + b_lengths, device, padded_length).with_row_multiple(row_multiple)
    first = np.arange(len(layout.lengths)) * padded_length if padded_length else starts(layout.lengths)

    def send(index: Indices) -> Tensor:
        return torch.from_numpy(index).to(device, non_blocking=True)

    a_index = None if a_of_b is None else send(ranges(starts(a_lengths)[chosen], a_taken))
    return Interleaved(layout, a_index, send(ranges(first, a_taken)), send(ranges(first + a_taken, b_lengths)))
