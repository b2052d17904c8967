"""Work shared among threads, of which one may hang: a read from a dead disk never returns, and no thread can be stopped."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

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
    item: int = -1
    since: float = math.inf
    left: bool = False  # alone with its item: another one goes on in its place


def each(
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

    An item that takes more than `seconds` is given up: `late(i)` is called, what its thread may still bring is not put, and
    work(i) is tried again by another thread. Raises StuckError when MOST_STUCK threads hang, StoppedError when `stop` is set.
    """
    todo, lock = deque(range(count)), Lock()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    workers: dict[_Worker, Thread] = {}

    def run(me: _Worker) -> None:
        error: BaseException | None = None
        try:
            while todo:
                try:
                    me.item = todo.popleft()
                except IndexError:  # another thread was quicker
                    break
                me.since = time.monotonic()
                found = work(me.item)
                with lock:
                    if me.left:
                        return
                    me.since = math.inf
                put(me.item, found)
        except BaseException as raised:
            error = raised
        with lock:
            if me.left:  # the error of one that was given up is nobody's
                return
            me.since, me.left = math.inf, True
            if error is not None:
                todo.clear()
        ended.put(error)

    def start() -> None:
        me = _Worker()
        workers[me] = Thread(target=run, args=(me,), name="jepakit-image", daemon=True)
        workers[me].start()

    def give_up() -> None:
        """Leave those behind that take too long, and put others in their place."""
        for worker in list(workers):
            with lock:
                if worker.left or time.monotonic() - worker.since < seconds:
                    continue
                worker.left = True
            _hung.difference_update([thread for thread in _hung if not thread.is_alive()])
            _hung.add(workers.pop(worker))
            if len(_hung) >= MOST_STUCK:
                raise StuckError(f"{len(_hung)} reads have not returned for {seconds:g} s or more: the storage does not answer")
            late(worker.item)
            todo.append(worker.item)
            start()

    for _ in range(min(threads, count)):
        start()
    first, done, woke = None, 0, time.monotonic()
    try:
        while done < len(workers):
            if stop is not None and stop.is_set():
                raise StoppedError
            asleep, woke = time.monotonic() - woke > seconds, time.monotonic()
            for worker in workers:
                if asleep and worker.since < math.inf:  # the whole process was stopped for a while: nobody was slow
                    worker.since = woke
            try:
                error = ended.get(timeout=min(1.0, seconds / 4))
                first, done = first or error, done + 1
            except Empty:
                give_up()
    except BaseException:
        todo.clear()
        raise
    for thread in workers.values():  # Python must not end while torch frees something in a thread
        thread.join()
    if first is not None:
        raise first


def time_limited(seconds: float, work: Callable[[], T]) -> T:
    """work(), on a thread that is left behind where it takes longer. Raises BadImageError then, and what work raises."""
    results: list[T] = []

    def late(_: int) -> None:
        raise BadImageError(f"no answer within {seconds:g} s")

    each(1, lambda _: work(), lambda _, found: results.append(found), threads=1, seconds=seconds, late=late)
    return results[0]
