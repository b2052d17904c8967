"""Files that are whole or as they were before."""

import errno
import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jepakit.errors import UserError

log = logging.getLogger("jepakit")
NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to, renamed into place when it is written. A killed one is left as .tmp-NAME."""
    draft = path.with_name(f".tmp-{path.name}")
    yield draft
    draft.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; UserError if another process does."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing to {folder}; wait for it, or give another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s is on a file system without locks: see to it that no other process writes there", folder)
        yield


def save_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    with whole(path) as draft:
        draft.write_text(json.dumps(value, indent=1))
