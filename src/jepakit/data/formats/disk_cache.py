"""Copies of remote files, kept between epochs and runs in a folder of limited size: what was used longest ago goes first.

fsspec's caching file systems know no limit of size. A file is here whole or not at all, may be shared by several processes,
and whoever has it open reads on when it goes.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jepakit.core.errors import UserError

LIMIT = "JEPAKIT_CACHE_GIB"
USUAL = 20.0  # GiB
ABANDONED = 24 * 3600.0  # seconds after which what a kill left half goes too
FREE = 0.1  # of the disk, which is left free


def cache_folder(kind: str) -> Path:
    """Where the user's caches of a kind are: below XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache"), "jepakit", kind)


def cache_limit() -> int:
    """How many bytes the copies may take together; 0: none. Raises UserError where that is no number from 0 to 1e9 GiB."""
    said = os.environ.get(LIMIT, "")
    try:
        gib = float(said) if said else USUAL
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 1e9:
        raise UserError(f"{LIMIT}={said}: give the GiB that copies of remote files may take, or 0 to keep none")
    return int(gib * 2**30)


def cached_copy(name: str, size: int, fetch: Callable[[Path], None]) -> Path | None:
    """The path of the cached file of this name, which has `size` bytes; `fetch(path)` makes it if need be. None without room.

    name: differs for any two contents. Raises what `fetch` does, and OSError where the folder cannot be written to or the file
    that was fetched has another size.
    """
    most, folder = cache_limit(), cache_folder("files")
    if size > most:
        return None
    path = folder / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    with suppress(OSError):
        if path.stat().st_size == size:
            os.utime(path)  # used last
            return path
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_room(folder, size, most):
        return None
    with written_aside(path) as draft:
        fetch(draft)
        if (came := draft.stat().st_size) != size:
            raise OSError(f"{came} of its {size} bytes came")
    return path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A new file for this process alone, in the folder of `path`, which is renamed to it; on an error it goes. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    os.close(handle)
    try:
        yield Path(draft)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _has_room(folder: Path, size: int, most: int) -> bool:
    """Whether `size` more bytes fit into `most` and on the disk, once the files that were used longest ago are removed."""
    files = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # another process was quicker
            status = entry.stat()
            files.append((status.st_mtime, status.st_size, entry.path))
    disk = shutil.disk_usage(folder)
    room = min(most - sum(taken for _, taken, _ in files), disk.free - int(FREE * disk.total))
    for used, taken, path in sorted(files):
        if room >= size:
            break
        if os.path.basename(path).startswith(".tmp-") and time.time() - used < ABANDONED:
            continue  # somebody fetches it
        with suppress(OSError):
            os.unlink(path)
        room += taken
    return room >= size
