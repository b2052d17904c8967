"""Reading some samples of a source with threads and a time limit, block by block; a bad one gives its error, not an exception."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.sources import Source, groups_at_hand, spread_places
from jepakit.data.threads import run_parallel, time_limited

T = TypeVar("T")
READERS = 2  # that read where no setting says how many


def read_many(
    source: Source,
    ids: NDArray[np.int64],
    read: Callable[[int], T],
    *,
    threads: int = READERS,
    seconds: float = 60.0,
    stop: Event | None = None,
) -> list[T | BadImageError]:
    """read(id) for each of ids (n,), in their order; or in its place a BadImageError: what it raised, or a time-out.

    Where blocks are sequential each is fetched once, and waited for as long as bytes arrive. Raises the first error of
    another kind, StuckError where too many reads hang, StoppedError once `stop` is set.
    """
    found: dict[int, T | BadImageError] = {}
    for rows in groups_at_hand(source, ids):
        wait_for(source, ids[rows], seconds, stop)
        found |= zip(rows, _read_group(ids[rows].tolist(), read, threads, seconds, stop), strict=True)
    return [found[row] for row in range(len(ids))]


def _read_group(
    ids: list[int], read: Callable[[int], T], threads: int, seconds: float, stop: Event | None
) -> list[T | BadImageError]:
    found: dict[int, T | BadImageError] = {}
    late: set[int] = set()

    def one(place: int) -> T | BadImageError:
        try:
            return BadImageError(f"no answer within {seconds:g} s") if place in late else read(ids[place])
        except BadImageError as error:
            return error.with_traceback(None)  # which would hold on to all that was read

    run_parallel(len(ids), one, found.__setitem__, threads=threads, seconds=seconds, late=late.add, stop=stop)
    return [found[place] for place in range(len(ids))]


def wait_for(source: Source, ids: NDArray[np.int64], seconds: float, stop: Event | None = None) -> None:
    """`source.wait_for`, but raises StoppedError as soon as `stop` is set."""

    def wait(_: int) -> None:
        source.wait_for(ids, seconds)

    if source.blocks is not None:  # else nothing is fetched
        run_parallel(1, wait, lambda *_: None, threads=1, seconds=math.inf, late=lambda _: None, stop=stop)


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items of an iterator, the next one computed by a daemon thread while the current one is used. Raises its errors."""
    end = object()
    asked: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[Future[Any]] = SimpleQueue()

    def compute() -> None:
        while asked.get():
            item = Future[Any]()
            try:
                item.set_result(next(items, end))
            except BaseException as error:
                item.set_exception(error)
            made.put(item)

    Thread(target=compute, name="jepakit-ahead", daemon=True).start()
    try:
        asked.put(True)
        while (item := made.get().result()) is not end:
            asked.put(True)
            yield item
    finally:
        asked.put(False)


def errors_of_all(source: Source, count: int, read: Callable[[int], object], seconds: float) -> list[tuple[int, BadImageError]]:
    """Of at most `count` samples spread over a source, each id and what read(id) raised; none as soon as one can be read."""
    errors = []
    ids = spread_places(source, count)
    source.wait_for(ids, seconds)
    for index in ids.tolist():
        try:
            time_limited(seconds, partial(read, index))
            return []
        except BadImageError as error:
            errors.append((index, error.with_traceback(None)))  # which would hold on to all that was read
    return errors
