"""Files of embeddings as they are read: Parquet by row groups, .npz mapped from the disk; neither is in memory whole.

n rows, D numbers of a vector.
"""

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.data.formats.tables import require_pyarrow

BLOCK_ROWS = 8192  # rows of arrays that are looked at together
_LOCAL_HEADER = 30  # bytes of a zip's before a name


class Embeddings(Protocol):
    """n rows by column. about: what they are of, see `embedding._about`; {} where nobody said."""

    about: Mapping[str, Any]
    names: tuple[str, ...]

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """The vectors (b, D) a block at a time, and the first row of each."""
        ...

    def rows(self, column: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """A column at some rows (m,): (m, ...)."""
        ...


@dataclass(frozen=True)
class ArrayEmbeddings(Embeddings):
    """Columns that are arrays, in memory or mapped."""

    arrays: Mapping[str, NDArray[Any]]
    about: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays["vector"])

    def blocks(self) -> Iterator[tuple[int, NDArray[np.floating]]]:
        vectors = self.arrays["vector"]
        for start in range(0, len(vectors), BLOCK_ROWS):
            yield start, vectors[start : start + BLOCK_ROWS].reshape(-1, int(np.prod(vectors.shape[1:])))

    def rows(self, column: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(self.arrays[column][rows])


class ParquetEmbeddings(Embeddings):
    """A Parquet file that `embed` made. Raises UserError for another."""

    def __init__(self, path: Path) -> None:
        require_pyarrow(str(path))
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(path)
            self.about = _described(self.file.schema_arrow.metadata[b"jepakit"])
        except (OSError, pa.ArrowException, TypeError, KeyError, ValueError):
            raise not_ours(path) from None
        self.names = tuple(self.file.schema_arrow.names)
        footer = self.file.metadata
        self.starts = np.cumsum([0, *(footer.row_group(g).num_rows for g in range(footer.num_row_groups))], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def blocks(self) -> Iterator[tuple[int, NDArray[np.floating]]]:
        for group, start in enumerate(self.starts[:-1].tolist()):
            yield start, self._column("vector", group)

    def rows(self, column: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        if not len(rows):
            return np.empty(0, object)
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        found: dict[int, Any] = {}
        for group in np.unique(groups).tolist():
            values, mine = self._column(column, group), np.flatnonzero(groups == group)
            found |= zip(mine.tolist(), values[rows[mine] - self.starts[group]], strict=True)
        return np.array([found[i] for i in range(len(rows))])

    def _column(self, name: str, group: int) -> NDArray[Any]:
        values = self.file.read_row_group(group, columns=[name]).column(0).combine_chunks()
        if name != "vector":
            return np.asarray(values.to_numpy(zero_copy_only=False))
        return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(values), -1)


def open_embeddings(path: Path) -> Embeddings:
    """A file that `embed` made, .parquet or .npz. Raises UserError for any other."""
    if not path.is_file():
        raise UserError(f"no file {path}: jepakit embed RUN --data SRC --out {path} makes it")
    if path.suffix != ".npz":
        return ParquetEmbeddings(path)
    try:
        arrays = _mapped(path)
        return ArrayEmbeddings(arrays, _described(str(arrays.pop("metadata"))))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, struct.error):
        raise not_ours(path) from None


def _described(text: str | bytes) -> dict[str, Any]:
    """What a file says of itself. Raises KeyError, TypeError or ValueError for what is no such description."""
    about: dict[str, Any] = json.loads(text)
    if missing := {"weights", "shape", "pool", "images", "data"} - about.keys():
        raise KeyError(*missing)
    return about


def not_ours(path: Path) -> UserError:
    return UserError(f"{path} is no file of embeddings that jepakit embed wrote, or a broken one")


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed .npz by name, mapped from the disk. Raises ValueError for other kinds."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            file.seek(member.header_offset)
            name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
            file.seek(member.header_offset + _LOCAL_HEADER + name + extra)
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, kind = readers[version](file)
            if kind.hasobject or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("objects, or compressed")
            key = member.filename.removesuffix(".npy")
            arrays[key] = np.memmap(path, kind, "r", file.tell(), shape) if 0 not in shape else np.empty(shape, kind)
    return arrays
