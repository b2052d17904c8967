"""Reading some samples of a source with threads and a time limit, block by block; a bad one gives its error, not an exception."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.sources import Source, groups_at_hand
from jepakit.data.threads import each

T = TypeVar("T")
_THREADS = 2  # that read where no setting says how many


def read_each(
    source: Source,
    ids: NDArray[np.int64],
    read: Callable[[int], T],
    *,
    threads: int = _THREADS,
    seconds: float = 60.0,
    stop: Event | None = None,
) -> list[T | BadImageError]:
    """read(id) for each of ids (n,), in their order; or in its place a BadImageError: what it raised, or a time-out.

    Where blocks are sequential each is fetched once, and waited for as long as bytes arrive. Raises the first error of
    another kind, StuckError where too many reads hang, StoppedError once `stop` is set.
    """
    found: dict[int, T | BadImageError] = {}
    late: set[int] = set()

    def one(row: int) -> T | BadImageError:
        try:
            return BadImageError(f"no answer within {seconds:g} s") if row in late else read(int(ids[row]))
        except BadImageError as error:
            return error.with_traceback(None)  # which would hold on to all that was read

    for rows in groups_at_hand(source, ids):
        wait_for(source, ids[rows], seconds, stop)
        each(
            len(rows),
            lambda i, rows=rows: one(rows[i]),  # type: ignore[misc]
            lambda i, value, rows=rows: found.__setitem__(rows[i], value),  # type: ignore[misc]
            threads=threads,
            seconds=seconds,
            late=lambda i, rows=rows: late.add(rows[i]),  # type: ignore[misc]
            stop=stop,
        )
    return [found[row] for row in range(len(ids))]


def wait_for(source: Source, ids: NDArray[np.int64], seconds: float, stop: Event | None = None) -> None:
    """`source.wait_for`, but raises StoppedError as soon as `stop` is set."""
    if source.blocks is None:  # nothing is fetched
        return
    if stop is None:
        source.wait_for(ids, seconds)
    else:
        each(
            1,
            lambda _: source.wait_for(ids, seconds),
            lambda *_: None,
            threads=1,
            seconds=math.inf,
            late=lambda _: None,
            stop=stop,
        )


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items of an iterator, the next one computed by a daemon thread while the current one is used. Raises its errors."""
    made: Queue[tuple[bool, T | BaseException | None]] = Queue(1)
    left = Event()

    def put(more: bool, item: T | BaseException | None) -> None:
        while not left.is_set():
            with suppress(Full):
                made.put((more, item), timeout=0.5)
                return

    def make() -> None:
        try:
            for item in items:
                put(True, item)
                if left.is_set():
                    return
            put(False, None)
        except BaseException as error:
            put(False, error)

    Thread(target=make, name="jepakit-ahead", daemon=True).start()
    try:
        while True:
            more, item = made.get()
            if isinstance(item, BaseException) and not more:
                raise item
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        left.set()
