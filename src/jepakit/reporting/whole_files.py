"""Files of a run's folder, read as far as they are whole: a kill, a full disk or another program may have left anything."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.files import load_json

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]
# what NumPy and zipfile raise for what is no archive of arrays, or one of which bytes are wrong or gone
_NO_ARRAYS = (
    OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# what is raised where values are of another kind, or fewer, than what reads them takes for granted
_ILL_FITTING = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, SyntaxError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


class DamagedFileError(Exception):
    """A file that does not hold what it should; the message goes on from the file's name."""


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises DamagedFileError."""
    try:
        return load_json(path)
    except OSError as error:
        raise DamagedFileError(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DamagedFileError("is no whole JSON file") from None


def read_arrays(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Arrays:
    """The arrays of an .npz file, those of the wanted names. Raises DamagedFileError; nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if wanted(name)}
    except _NO_ARRAYS:
        raise DamagedFileError("is no whole file of arrays") from None


def fitting(make: Callable[[], T], what: str = "does not hold what it should") -> T:
    """What is made of a file's values. Raises DamagedFileError, with `what`, where they are not as they should be."""
    try:
        return make()
    except _ILL_FITTING:
        raise DamagedFileError(what) from None


def result_rows(rows: Any) -> list[dict[str, Any]]:
    """The rows of a task's result, as far as the page takes them for granted. Raises what `fitting` takes for damage."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError
    for row in rows:
        metrics = row.get("metrics", {})
        if not isinstance(row["name"], str) or not isinstance(row.get("counts", ""), str) or not isinstance(metrics, Mapping):
            raise TypeError
    return [dict(row) for row in rows]
