"""Caches that fetch ahead: `PrefetchCache` for items of any kind, and `Fetched` for remote files as open local copies.

Copies of files are kept in the user's cache folder (disk_cache.py). Where that has no space, a copy is unlinked as soon as it
is open: its bytes are freed when the last reader closes it or the process ends, however it ends.
"""

import errno
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from jepakit.core.errors import UserError
from jepakit.core.files import O_BINARY
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.disk_cache import cached_copy
from jepakit.data.formats.remote import PATIENCE, DataPaths, is_permanent, reason_of, shown, with_retries

T = TypeVar("T")
log = logging.getLogger("jepakit")
_BEHIND = 2  # threads that fetch whole files that will be wanted


class PrefetchCache(Generic[T]):
    """A cache of numbered items (row groups, files): the least recently used goes first, and announced ones are fetched ahead.

    Each item is fetched once even when several threads ask for it. fetch(index): gives an item, or raises BadImageError or
    UserError; size(index): in the units of `capacity`, which items here and under way never exceed together, except that one
    item is always allowed. threads: how many fetch ahead. Safe from several threads.
    """

    def __init__(self, fetch: Callable[[int], T], size: Callable[[int], int], capacity: int, threads: int, name: str) -> None:
        self.fetch, self.size, self.capacity, self.threads, self.name = fetch, size, capacity, threads, name
        self._changed = threading.Condition()
        self._copies: OrderedDict[int, T] = OrderedDict()  # the last used is the last
        self._under_way: dict[int, Future[T]] = {}
        self._failed: dict[int, tuple[float, BaseException]] = {}
        self._wanted: tuple[int, ...] = ()  # announced by `prefetch`
        self._behind = 0  # threads that fetch those ahead
        self._parts = 0  # of items, that have arrived
        self._again_at = 0.0  # when the next try after a failure begins

    def item(self, index: int) -> T:
        """An item, fetched if need be. Raises what `fetch` does; for PATIENCE seconds after a failure it does so at once."""
        with self._changed:
            self._changed.wait_for(lambda: index in self._under_way or self._settled(index) or self._fits(index))
            if index in self._copies:
                self._copies.move_to_end(index)
                return self._copies[index]
            if self._fails(index):
                raise _alike(self._failed[index][1])
            found = self._under_way.get(index)
            promise = found or self._begin(index)
        if found is None:
            self._fetch(index, promise)
        if error := promise.exception():
            raise _alike(error)
        return promise.result()

    def prefetch(self, indices: Iterable[int]) -> None:
        """Begin to fetch these items in the background, in their order, as many as `capacity` allows. Returns at once."""
        with self._changed:
            self._wanted = self._first(indices)
            for index in reversed(self._wanted):  # what is wanted last goes first
                if index in self._copies:
                    self._copies.move_to_end(index)
            more = max(0, min(len(self._missing()), self.threads - self._behind))
            self._behind += more
        for _ in range(more):  # daemons, as one that hangs must not keep Python from ending
            threading.Thread(target=self._fetch_wanted, name=self.name, daemon=True).start()

    def wait_for(self, indices: Iterable[int], seconds: float) -> None:
        """Blocks until these items, as many as `capacity` allows, are here or failed, or nothing arrived for `seconds`."""
        awaited = self._first(indices)
        self.prefetch(self._wanted if set(awaited) <= set(self._wanted) else awaited)
        with self._changed:
            seen, since, now = None, 0.0, time.monotonic()
            while awaited := tuple(index for index in awaited if not self._settled(index)):
                woke, now, come = now, time.monotonic(), (awaited, set(self._under_way), self._parts, self._grown())
                if come != seen or now - woke > seconds:  # the whole process was stopped: nobody was slow
                    seen, since = come, now
                elif now - max(since, self._again_at) > seconds:
                    return
                self._changed.wait(min(1.0, seconds / 4))

    def came(self) -> None:
        """Called by `fetch` when a part of an item has arrived, as a sign of life for `wait_for`."""
        self._parts += 1  # whether all are counted is of no matter

    def pausing(self, pause: float) -> None:
        """Called by `fetch` before it sleeps `pause` seconds and tries again: `wait_for` does not count them as silence."""
        self._again_at = time.monotonic() + pause

    def _grown(self) -> object:
        """Any value that changes while items under way make progress."""
        return None

    def _first(self, indices: Iterable[int]) -> tuple[int, ...]:
        """The first of these, each once, that together fit in `capacity`; at least one."""
        found: list[int] = []
        size = 0
        for index in dict.fromkeys(indices):
            size += self.size(index)
            if found and size > self.capacity:
                break
            found.append(index)
        return tuple(found)

    def _settled(self, index: int) -> bool:
        return index in self._copies or self._fails(index)

    def _fails(self, index: int) -> bool:
        return index in self._failed and time.monotonic() - self._failed[index][0] < PATIENCE

    def _missing(self) -> list[int]:
        return [index for index in self._wanted if index not in self._under_way and not self._settled(index)]

    def _fits(self, index: int) -> bool:
        """Whether it may be fetched beside those under way."""
        return not self._under_way or self._total([*self._under_way, index]) <= self.capacity

    def _total(self, indices: Iterable[int]) -> int:
        return sum(self.size(index) for index in indices)

    def _begin(self, index: int) -> "Future[T]":
        promise = self._under_way[index] = Future()
        self._drop_beside(index)
        return promise

    def _drop_beside(self, index: int) -> None:
        """Drop the least recently used items until the rest fits beside item `index`."""
        for other in [other for other in self._copies if other != index]:
            if self._total([*self._copies, *self._under_way]) <= self.capacity:
                return
            del self._copies[other]

    def _fetch_wanted(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not (missing := self._missing()) or self._fits(missing[0]))
                missing = self._missing()
                if not missing or not threading.main_thread().is_alive():
                    self._behind -= 1
                    return
                promise = self._begin(missing[0])
            self._fetch(missing[0], promise)  # an error is raised to whoever asks for the item

    def _fetch(self, index: int, promise: "Future[T]") -> None:
        try:
            promise.set_result(self.fetch(index))
        except BaseException as raised:
            promise.set_exception(_alike(raised))
        error = promise.exception()
        with self._changed:
            del self._under_way[index]
            if error is None:
                self._failed.pop(index, None)
                self._copies[index] = promise.result()
                self._drop_beside(index)
            elif isinstance(error, Exception):  # a reader who is interrupted has not failed
                self._failed[index] = (time.monotonic(), error)
            self._changed.notify_all()


def _alike(error: BaseException) -> BaseException:
    """A copy of an error: raising one object twice would keep the frames of both tracebacks alive."""
    return type(error)(*error.args)


class OpenFile:
    """A file open for reading, from any thread; closed when the last one lets go of it."""

    def __init__(self, path: str | Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | O_BINARY)
        self._moving = threading.Lock()
        weakref.finalize(self, os.close, self.fd).atexit = False  # threads may read up to the end
        self.size = os.fstat(self.fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """At most so many bytes from there. Raises OSError."""
        if hasattr(os, "pread"):
            return os.pread(self.fd, size, offset)
        with self._moving:  # Windows has one place of reading for all threads
            os.lseek(self.fd, offset, os.SEEK_SET)
            return os.read(self.fd, size)


class Fetched(PrefetchCache[OpenFile]):
    """Local copies of remote files, up to `capacity` of them open at a time. Safe from several threads.

    stamp: gives text that changes when the file of a number does; without it nothing is kept in the user's cache folder.
    """

    def __init__(self, places: DataPaths, capacity: int, stamp: Callable[[int], str] | None = None) -> None:
        super().__init__(self._copy, lambda index: 1, capacity, _BEHIND, "jepakit-shard")
        self.places, self.stamp = places, stamp
        self._drafts: dict[int, Path] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="jepakit-", ignore_cleanup_errors=True)

    def file(self, index: int) -> OpenFile:
        """The copy of a file, fetched if need be. Raises BadImageError if it cannot be, UserError if the disk is full."""
        return self.item(index)

    def _grown(self) -> object:
        """The bytes of each copy under way."""
        sizes = {}
        for index in self._under_way:
            with suppress(KeyError, OSError):  # not begun, or there already
                sizes[index] = os.stat(self._drafts[index]).st_size
        return sizes

    def _download(self, index: int, draft: Path) -> None:
        self._drafts[index] = draft
        self.places.fs.get_file(self.places.paths[index], str(draft))

    def _copy(self, index: int) -> OpenFile:
        path, draft = self.places.paths[index], Path(self._folder.name, str(index))

        def fetch() -> OpenFile:
            size = self.places.fs.info(path).get("size")
            if size and self.stamp and (kept := self._cached(index, size)):
                return kept
            if shutil.disk_usage(self._folder.name).free < (size or 0):
                raise self._disk_full()
            self._download(index, draft)
            copy = OpenFile(draft)
            if size is not None and copy.size != size:
                raise OSError(f"{copy.size} of its {size} bytes came")
            return copy

        try:
            return with_retries(fetch, self.pausing)
        except UserError:
            raise
        except Exception as error:  # each back-end raises its own
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full() from None
            reason = "not found" if is_permanent(error) else reason_of(error)
            raise BadImageError(f"{shown(path)} could not be fetched: {reason}") from None
        finally:
            with suppress(PermissionError):  # Windows keeps what is open
                draft.unlink(missing_ok=True)

    def _cached(self, index: int, size: int) -> OpenFile | None:
        """The copy in the user's cache folder, fetched if need be; None, with one warning, where it cannot be kept there."""
        assert self.stamp is not None
        name = f"{self.places.fs.unstrip_protocol(self.places.paths[index])} {size} {self.stamp(index)}"
        try:
            kept = cached_copy(name, size, partial(self._download, index))
            return OpenFile(kept) if kept else None
        except FileNotFoundError:  # another process made room just now; or it is not there, which is found out next
            return None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            asked, self.stamp = self.stamp, None
            if asked is not None:  # by the first of the threads
                log.warning("copies of remote files are not kept: %s; set XDG_CACHE_HOME to a folder with room", error)
            return None

    def _disk_full(self) -> UserError:
        where = Path(self._folder.name).parent
        return UserError(f"no room in {where} for a copy of a remote file; set TMPDIR to a folder on a larger disk")
