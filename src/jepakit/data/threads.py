"""Work shared among threads, of which one may hang: a read from a dead disk never returns, and no thread can be stopped."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

from jepakit.errors import UserError

T = TypeVar("T")
MOST_STUCK = 16  # so many threads hang at a time: it is the storage, not a file


class StuckError(UserError):
    """The storage does not answer."""


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
) -> None:
    """put(i, work(i)) for i in range(count), in any order, on daemon threads; the first error is raised here.

    An item that takes more than `seconds` is given up: `late(i)` is called, what its thread may still bring is not put, and
    work(i) is tried again by another thread. Raises StuckError when MOST_STUCK threads hang.
    """
    todo, lock = deque(range(count)), Lock()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

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
            todo.clear()
        with lock:
            if not me.left:
                me.since, me.left = math.inf, True
                ended.put(error)

    def start() -> None:
        me = _Worker()
        thread = Thread(target=run, args=(me,), name="jepakit-image", daemon=True)
        workers[me] = thread
        thread.start()

    workers: dict[_Worker, Thread] = {}
    for _ in range(min(threads, count)):
        start()
    running, stuck, first, woke = len(workers), 0, None, time.monotonic()
    while running:
        asleep, woke = time.monotonic() - woke > seconds, time.monotonic()  # the whole process was stopped: nobody was slow
        try:
            error = ended.get(timeout=min(1.0, seconds / 4))
            running -= 1
            first = first or error
            continue
        except Empty:
            pass
        for worker in list(workers):
            with lock:
                if asleep and worker.since < math.inf:
                    worker.since = time.monotonic()
                if worker.left or time.monotonic() - worker.since < seconds:
                    continue
                worker.left = True
            stuck += 1
            del workers[worker]
            if stuck >= MOST_STUCK:
                todo.clear()
                raise StuckError(f"{stuck} reads have not returned for {seconds:g} s each: the storage does not answer")
            try:
                late(worker.item)
            except UserError as error:
                todo.clear()
                first, running = first or error, running - 1
                continue
            todo.append(worker.item)
            start()
    for thread in workers.values():  # Python must not end while torch frees something in a thread
        thread.join()
    if first is not None:
        raise first
