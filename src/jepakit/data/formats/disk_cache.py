"""Copies of remote files, kept between epochs and runs: a folder with a limit, from which what was used longest ago goes.

fsspec's caching file systems know no limit of size. A file is here whole or not at all, may be shared by several processes,
and whoever has it open reads on when it goes.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
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
    """The limit; 0 keeps nothing. Raises UserError for a number that is none."""
    said = os.environ.get(LIMIT, "")
    try:
        gib = float(said) if said else USUAL
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 1e9:
        raise UserError(f"{LIMIT}={said}: give the GiB that copies of remote files may take, or 0 to keep none")
    return int(gib * 2**30)


def cached_copy(name: str, size: int, fetch: Callable[[Path], None]) -> Path | None:
    """The path of a file of so many bytes, from the cache or, by `fetch` into a path, new; None where it cannot be kept.

    name: what tells this content from all others. Raises what `fetch` does, but for a full disk.
    """
    most, folder = cache_limit(), cache_folder("files")
    if size > most:
        return None
    path = folder / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    with suppress(OSError):
        if path.stat().st_size == size:
            os.utime(path)  # used last
            return path
    draft = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _has_room(folder, size, most):
            return None
        handle, draft = tempfile.mkstemp(dir=folder, prefix=".tmp-")
        os.close(handle)
        fetch(Path(draft))
        if os.path.getsize(draft) != size:
            raise OSError(f"{os.path.getsize(draft)} of its {size} bytes came")
        os.replace(draft, path)
        return path
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)


def _has_room(folder: Path, size: int, most: int) -> bool:
    """Whether there is room for so many bytes, where need be after those went that were used longest ago."""
    files = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # another process was quicker
            status = entry.stat()
            files.append((status.st_mtime_ns, status.st_size, entry.path))
    total = sum(bytes_ for _, bytes_, _ in files)
    disk = os.statvfs(folder)
    free, spare = disk.f_bavail * disk.f_frsize, int(FREE * disk.f_blocks * disk.f_frsize)
    for used, bytes_, old in sorted(files):
        if os.path.basename(old).startswith(".tmp-") and time.time() - used / 1e9 < ABANDONED:
            continue  # somebody fetches it
        if total + size <= most and free - size >= spare:
            break
        with suppress(OSError):
            os.unlink(old)
        total, free = total - bytes_, free + bytes_
    return total + size <= most and free - size >= spare
