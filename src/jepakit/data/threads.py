"""Work shared among threads, of which one may hang: a read from a dead disk never returns, and no thread can be stopped."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Generic, TypeVar

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError

T = TypeVar("T")
MOST_STUCK = 16  # so many threads of the process hang at a time: it is the storage, not a file
_hung: set[Thread] = set()  # those that were left behind, of the whole process


class StuckError(UserError):
    """The storage does not answer."""


class StoppedError(Exception):
    """Nobody wants the result any more."""


@dataclass(eq=False)
class _Worker:
    """What one thread does. since: when it began its item, inf between items; left: it has ended or was given up."""

    item: int = -1
    since: float = math.inf
    left: bool = False


@dataclass(eq=False)
class _Workers(Generic[T]):
    """The threads of one call of `run_parallel`, with its arguments; todo: items that no thread has begun."""

    todo: deque[int]
    work: Callable[[int], T]
    put: Callable[[int, T], None]
    seconds: float
    late: Callable[[int], None]
    lock: Lock = field(default_factory=Lock)
    ended: "SimpleQueue[BaseException | None]" = field(default_factory=SimpleQueue)
    threads: dict[_Worker, Thread] = field(default_factory=dict)

    def start(self) -> None:
        """Start another thread."""
        worker = _Worker()
        self.threads[worker] = Thread(target=self._run, args=(worker,), name="jepakit-image", daemon=True)
        self.threads[worker].start()

    def first_error(self, stop: Event | None) -> BaseException | None:
        """Waits until all threads have ended, and replaces those that hang. Raises StuckError and StoppedError."""
        first, done, woke = None, 0, time.monotonic()
        while done < len(self.threads):
            if stop is not None and stop.is_set():
                raise StoppedError
            asleep, woke = time.monotonic() - woke > self.seconds, time.monotonic()
            for worker in self.threads:
                if asleep and worker.since < math.inf:  # the whole process was stopped for a while: nobody was slow
                    worker.since = woke
            try:
                error = self.ended.get(timeout=min(1.0, self.seconds / 4))
                first, done = first or error, done + 1
            except Empty:
                self._give_up()
        return first

    def _run(self, worker: _Worker) -> None:
        """One item after the other, until there are none or this thread is given up."""
        error: BaseException | None = None
        try:
            for worker.item in self._items():
                worker.since = time.monotonic()
                found = self.work(worker.item)
                with self.lock:
                    if worker.left:
                        return
                    worker.since = math.inf
                self.put(worker.item, found)
        except BaseException as raised:
            error = raised
        with self.lock:
            if worker.left:  # the error of one that was given up is nobody's
                return
            worker.since, worker.left = math.inf, True
            if error is not None:
                self.todo.clear()
        self.ended.put(error)

    def _items(self) -> Iterator[int]:
        with suppress(IndexError):  # none is left
            while True:
                yield self.todo.popleft()

    def _give_up(self) -> None:
        """Leave those threads behind that take too long, and start others in their place."""
        for worker in list(self.threads):
            with self.lock:
                if worker.left or time.monotonic() - worker.since < self.seconds:
                    continue
                worker.left = True
            _hung.difference_update([thread for thread in _hung if not thread.is_alive()])
            _hung.add(self.threads.pop(worker))
            if len(_hung) >= MOST_STUCK:
                silent = f"have not returned for {self.seconds:g} s or more"
                raise StuckError(f"{len(_hung)} reads {silent}: the storage does not answer")
            self.late(worker.item)
            self.todo.append(worker.item)
            self.start()


def run_parallel(
    count: int,
    work: Callable[[int], T],
    put: Callable[[int, T], None],
    *,
    threads: int,
    seconds: float,
    late: Callable[[int], None],
    stop: Event | None = None,
) -> None:
    """put(i, work(i)) for i in range(count), in any order, on daemon threads; the first error is raised here.

    An item that takes more than `seconds` is given up: `late(i)` is called, what its thread may still return is dropped, and
    work(i) is tried again by another thread. Raises StuckError when MOST_STUCK threads hang, StoppedError when `stop` is set.
    """
    workers = _Workers(deque(range(count)), work, put, seconds, late)
    for _ in range(min(threads, count)):
        workers.start()
    try:
        first = workers.first_error(stop)
    except BaseException:
        workers.todo.clear()
        raise
    for thread in workers.threads.values():  # Python must not end while torch frees something in a thread
        thread.join()
    if first is not None:
        raise first


def time_limited(seconds: float, work: Callable[[], T]) -> T:
    """work(), on a thread of its own. Raises BadImageError if it takes longer than `seconds`, and whatever work raises."""
    results: list[T] = []

    def late(_: int) -> None:
        raise BadImageError(f"no answer within {seconds:g} s")

    run_parallel(1, lambda _: work(), lambda _, found: results.append(found), threads=1, seconds=seconds, late=late)
    return results[0]
