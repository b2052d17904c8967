"""Work by threads whose results are taken in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from jepakit.errors import UserError

T = TypeVar("T")
SECONDS = 300.0  # in which a result must be there


def threads_of(asked: int | None) -> int:
    """As many threads as asked for, or as cores that this process may use. Raises UserError for none."""
    if asked is not None and asked < 1:
        raise UserError(f"--threads {asked}: give at least 1")
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def in_order(work: Callable[[int], T], ids: Iterable[int], threads: int) -> Iterator[T]:
    """work(id) of each id, in their order, by threads that are at most 2 * threads ids ahead of who asks.

    Raises what `work` raises, and UserError where it does not come back: a read from a dead disk never does.
    """
    todo: SimpleQueue[tuple[int, Future[T]] | None] = SimpleQueue()

    def run() -> None:
        while (item := todo.get()) is not None:
            index, future = item
            try:
                future.set_result(work(index))
            except BaseException as error:
                future.set_exception(error)

    def first(waiting: deque[Future[T]]) -> T:
        try:
            return waiting.popleft().result(SECONDS)
        except TimeoutError:
            raise UserError(f"an image has not been read for {SECONDS:g} s: its storage does not answer") from None

    workers = [Thread(target=run, name="jepakit-image", daemon=True) for _ in range(threads)]  # one that hangs must not keep us
    for worker in workers:
        worker.start()
    waiting: deque[Future[T]] = deque()
    try:
        for index in ids:
            waiting.append(Future())
            todo.put((index, waiting[-1]))
            if len(waiting) >= 2 * threads:
                yield first(waiting)
        while waiting:
            yield first(waiting)
    finally:
        for _ in workers:
            todo.put(None)
        for worker in workers:  # Python must not end while torch frees something in a thread
            worker.join(1.0)
