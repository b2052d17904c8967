"""Whole remote files, as local copies while they are read.

A copy loses its name as soon as it is open, so that it goes when its last reader does, or the process, however that ends.
"""

import errno
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

from jepakit.data.pixels import BadImageError
from jepakit.data.remote import PATIENCE, Places, lasts, patiently, shown
from jepakit.errors import UserError, line_of

BEHIND = 2  # threads that fetch what will be wanted


class OpenFile:
    """A file open for reading, from any thread; closed when the last one lets go of it."""

    fd = -1

    def __init__(self, path: str | Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, size: int, offset: int) -> bytes:
        """At most so many bytes from there. Raises OSError."""
        return os.pread(self.fd, size, offset)


class Fetched:
    """Whole remote files, the `held` last used or soon wanted as local copies. Safe from several threads."""

    def __init__(self, places: Places, held: int) -> None:
        self.places, self.held = places, held
        self._folder = tempfile.TemporaryDirectory(prefix="jepakit-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self._copies: OrderedDict[int, OpenFile] = OrderedDict()
        self._under_way: dict[int, Future[OpenFile]] = {}
        self._failed: dict[int, tuple[float, BaseException]] = {}
        self._wanted: tuple[int, ...] = ()
        self._behind = 0

    def file(self, index: int) -> OpenFile:
        """The copy of a file, fetched if need be. Raises BadImageError if it cannot be, UserError for want of room."""
        with self._lock:
            if index in self._copies:
                self._copies.move_to_end(index)
                return self._copies[index]
            if self._fails(index):
                raise self._failed[index][1].with_traceback(None)  # which would grow with each
            under_way = self._under_way.get(index)
            mine = self._under_way.setdefault(index, Future())
        if under_way is None:
            self._fetch(index, mine)
        return mine.result()

    def soon(self, indices: Iterable[int]) -> None:
        """Begin to fetch these, in their order and as many as are held, behind the caller's back."""
        with self._lock:
            self._wanted = tuple(islice(dict.fromkeys(indices), self.held))
            more = self._behind < BEHIND and self._missing() is not None
            self._behind += more
        if more:
            threading.Thread(target=self._fetch_wanted, daemon=True).start()

    def _fetch_wanted(self) -> None:
        while True:
            with self._lock:
                index = self._missing()
                if index is None:
                    self._behind -= 1
                    return
                mine = self._under_way[index] = Future()
            self._fetch(index, mine)  # an error is told to who asks for the file

    def _missing(self) -> int | None:
        return next((i for i in self._wanted if i not in self._copies and i not in self._under_way and not self._fails(i)), None)

    def _fails(self, index: int) -> bool:
        return index in self._failed and time.monotonic() - self._failed[index][0] < PATIENCE

    def _fetch(self, index: int, promise: "Future[OpenFile]") -> None:
        try:
            copy = self._copy(index)
        except BaseException as error:
            with self._lock:
                del self._under_way[index]
                self._failed[index] = (time.monotonic(), error)
            promise.set_exception(error)
            return
        with self._lock:
            del self._under_way[index]
            self._failed.pop(index, None)
            self._copies[index] = copy
            while len(self._copies) > self.held:
                others = [i for i in self._copies if i != index]
                del self._copies[next((i for i in others if i not in self._wanted), others[0])]
        promise.set_result(copy)

    def _copy(self, index: int) -> OpenFile:
        fs, path, draft = self.places.fs, self.places.paths[index], Path(self._folder.name, str(index))

        def fetch() -> OpenFile:
            size = fs.info(path).get("size")
            self._require_room(size or 0)
            fs.get_file(path, str(draft))
            copy = OpenFile(draft)
            if size is not None and copy.size != size:
                raise OSError(f"{copy.size} of its {size} bytes came")
            return copy

        try:
            return patiently(fetch)
        except UserError:
            raise
        except Exception as error:  # each back-end raises its own
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                self._require_room(1 << 62)
            reason = "not found" if lasts(error) else line_of(error) or type(error).__name__
            raise BadImageError(f"{shown(path)} could not be fetched: {shown(reason)}") from None
        finally:
            draft.unlink(missing_ok=True)

    def _require_room(self, size: int) -> None:
        if shutil.disk_usage(self._folder.name).free < size:
            where = Path(self._folder.name).parent
            raise UserError(f"no room in {where} for a copy of a remote file; set TMPDIR to a folder on a larger disk")
