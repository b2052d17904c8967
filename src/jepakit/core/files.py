"""Writing files so that a crash leaves either the old or the new content; locks on folders; JSON; paths given by users."""

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jepakit.core.errors import UserError, plain

log = logging.getLogger("jepakit")
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)  # of a file system that cannot sync a folder
NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
O_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write its own line ends


def user_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """A path that the user gave, '~' expanded; `what` names it in errors. Raises UserError for what cannot be a path."""
    try:
        place = Path(path).expanduser()
        if "\0" in str(place):
            raise UserError(f"{what} {plain(str(place)[:100])}: no path has a null character")
        place.exists()
        return place
    except OSError as error:  # no file could be called so
        raise UserError(f"{what} {str(path)[:100]}: {error.strerror}") from None
    except TypeError:
        raise UserError(f"{what}: give a path, not a {type(path).__name__}") from None
    except RuntimeError as error:  # ~name of nobody
        raise UserError(f"{what} {path}: {error}") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, which is renamed to `path` at the end. A kill leaves .tmp-NAME."""
    draft = path.with_name(f".tmp-{path.name}")
    yield draft
    draft.replace(path)


def sync(path: Path) -> None:
    """Have the disk hold a file, or which files a folder has; of file systems that cannot sync a folder, pass. Raises OSError."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows syncs what may be written to, and opens no folder
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not folder or error.errno not in NO_FOLDER_SYNC:
            raise


def append(path: Path, text: str) -> None:
    """Append lines to a text file, all or nothing: when the disk is full the file stays as it was.

    A last line without an end, as a kill leaves it, is ended first. Raises OSError.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | O_BINARY, 0o666)
    try:
        size = os.fstat(handle).st_size
        data = text.encode(errors="backslashreplace")
        os.lseek(handle, max(size - 1, 0), os.SEEK_SET)
        if os.read(handle, 1) not in (b"", b"\n"):
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(handle, data) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises UserError if another process has it."""
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process is writing to {folder}; wait for it, or give another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s is on a file system without locks: see to it that no other process writes there", folder)
        yield


def _lock(file: IO[str]) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError, on Windows PermissionError, where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def finite(value: Any) -> Any:
    """A copy of nested mappings and lists with None for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(finite(value), indent=1, allow_nan=False), encoding="utf-8")


def load_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))
