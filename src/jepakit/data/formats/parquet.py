"""Parquet files of images in the layout of Hugging Face's data sets (extra 'parquet'), here or afar.

An image is a struct of bytes and path, or bytes; a label is a number, with names in the schema where there are, or text.
Parquet has no way to a single row: its row group is read for it (6 to 9 ms for a group of 11 MB from a warm file cache).
The groups last used are kept, and those soon wanted are read in the background, so that an order by groups reads each once.
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray

from jepakit.core.errors import UserError, line_of
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import tables
from jepakit.data.formats.prefetch import PrefetchCache
from jepakit.data.formats.remote import DataPaths, reason_of, shown, with_retries
from jepakit.data.labels import split_words as splits
from jepakit.data.sources import Blocks, Source
from jepakit.data.unread_files import beside

T = TypeVar("T")
KEPT = 256 << 20  # bytes of row groups in memory
AT_ONCE = 16  # images decoded between two looks at their size: a few bytes can stand for many copies of a large image
LABELS_AT_ONCE = 4096
_PART = 16 << 20  # bytes asked for at a time
OPENED = 16  # files opened at a time
_BEHIND = 4  # threads that read groups from afar ahead of need; one does for local files
THREAD = "jepakit-row-group"
LEAVE = 10.0  # seconds that Python waits for them at its end


@dataclass(frozen=True)
class InParts:
    """A file afar, of which many bytes are asked for in parts: so it is seen that some came."""

    file: Any
    came: Callable[[], None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, size: int) -> bytes:
        """So many bytes, or those up to its end."""
        parts = []
        while size > 0 and (part := self.file.read(min(size, _PART))):
            parts.append(part)
            size -= len(part)
            self.came()
        return b"".join(parts)


@dataclass(frozen=True)
class GroupedFile:
    """A Parquet file: fs is None for a local one; footer, schema and heads (of its row groups) are pyarrow's."""

    fs: AbstractFileSystem | None
    path: str
    footer: Any
    schema: Any
    heads: list[Any]

    def column(
        self, name: str, rows: int, groups: list[int] | None = None, came: Callable[[], None] = lambda: None
    ) -> Iterator[Any]:
        """Arrow arrays of so many rows of a column, of some row groups or all. Raises whatever pyarrow and a back-end do.

        came: called for each part that came from afar.
        """
        import pyarrow.parquet

        with _opened(self.fs, self.path, came) as content:  # anew, as a file has one position
            file = pyarrow.parquet.ParquetFile(content, metadata=self.footer)
            for batch in file.iter_batches(rows, row_groups=groups, columns=[name], use_threads=False):
                yield batch.column(name)


@dataclass(frozen=True)
class Group:
    """Images of a row group: bytes, and paths or None, as Arrow's chunked arrays."""

    images: tuple[Any, Any]
    nbytes: int


class ParquetSource(tables.TableSource):
    """Images of Parquet files, read by the row group. Reading is safe from several threads, and a group is read by one.

    groups: file and place in it of each row group; sizes: bytes of its images, as claimed, and true once it was read.
    """

    def __init__(self, name: str, files: list[GroupedFile], labels: str | None) -> None:
        rows = [sum(head.num_rows for head in file.heads) for file in files]
        super().__init__(name, "Parquet", [file.path for file in files], [file.schema for file in files], rows)
        self.files = files
        self.groups = [(i, group) for i, file in enumerate(files) for group in range(len(file.heads))]
        heads = [head for file in files for head in file.heads]
        self.sizes = np.array([min(max(head.total_byte_size, 0), 1 << 40) for head in heads], np.int64)  # nearly all are images
        self.blocks: Blocks = Blocks(
            np.cumsum([0, *(head.num_rows for head in heads)], dtype=np.int64),
            max(1, int(KEPT / 2 / max(self.sizes.mean(), 1))),
            sequential=files[0].fs is not None or int(self.sizes.sum()) > KEPT,
        )
        threads = 1 if files[0].fs is None else _BEHIND
        self._groups = PrefetchCache(lambda group: self._read(group), lambda group: int(self.sizes[group]), KEPT, threads, THREAD)
        least, most = _nulls(heads, self.image)
        self.read_labels(labels, tables.class_names(self.schema), most, up_to=least < most)

    def raw(self, index: int) -> bytes:
        group, file = int(self.blocks.of(np.array(index))), self.files[self.file_of(index)]
        folder = Path(file.path).parent if file.fs is None else None
        try:
            return tables.image_bytes(self._groups.item(group).images, index - int(self.blocks.starts[group]), folder)
        except (ValueError, IndexError) as error:  # a name that is no text, fewer rows than the footer claims
            raise BadImageError(line_of(error)) from None

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Begin to read the row groups of these samples, in this order, as many as fit in KEPT."""
        self._groups.prefetch(self.blocks.of(ids).tolist())

    def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
        """For the row groups of these samples, as many as fit in KEPT, where they are not local."""
        if self.files[0].fs is not None:
            self._groups.wait_for(self.blocks.of(ids).tolist(), seconds)

    def coded(self, column: str) -> tables.Coded:
        def read(file: GroupedFile) -> tables.Coded:
            return _tried(file.fs, lambda: splits.merged(map(tables.encoded, file.column(column, LABELS_AT_ONCE))))

        where = f"{self.name}, column '{column}'"
        try:
            with ThreadPoolExecutor(OPENED) as pool:
                parts = list(pool.map(read, self.files))
        except Exception as error:  # pyarrow and every back-end raise their own
            raise UserError(f"{where} cannot be read: {reason_of(error)}") from None
        if [len(codes) for _, codes in parts] != self.rows:
            raise UserError(f"{where}: it has other numbers of rows than the files claim: they are broken")
        return splits.merged(parts)

    def _read(self, group: int) -> Group:
        import pyarrow as pa

        place, number = self.groups[group]
        file, most = self.files[place], tables.most_memory()

        def read() -> Group | None:
            chunks, size = [], 0
            for chunk in file.column(self.image, AT_ONCE, [number], self._groups.came):
                chunks.append(chunk)
                size += chunk.nbytes
                if size > most:
                    return None
            return Group(tables.parts_of(pa.chunked_array(chunks)), size)

        try:
            found = _tried(file.fs, read, self._groups.pausing)
        except Exception as error:  # pyarrow and every back-end raise their own
            raise BadImageError(f"its row group cannot be read: {reason_of(error)}") from None
        if found is None:
            raise BadImageError(f"its row group takes more than {most >> 20} MiB: taken for a decompression bomb")
        self.sizes[group] = found.nbytes
        return found


def parquet(root: Path, labels: str | None) -> Source | None:
    """A Parquet file, or a folder of them, in the order of their names; files of train, test and validation are the split."""
    paths = [root] if root.is_file() and root.suffix == ".parquet" else tables.table_files(root, "parquet")
    if not paths:
        return None
    source = parquet_files(DataPaths(LocalFileSystem(), tuple(map(str, paths))), str(root), labels)
    source.notes += beside(paths, len(source)) if root.is_dir() else ()
    return source


def parquet_files(places: DataPaths, name: str, labels: str | None) -> Source:
    """The Parquet files at places, in their order; for the rest as `parquet`. Raises UserError."""
    tables.require_pyarrow(name)
    with ThreadPoolExecutor(OPENED) as pool:
        files = list(pool.map(partial(_file, None if places.local else places.fs), places.paths))
    return ParquetSource(name, files, labels)


def _nulls(heads: list[Any], column: str) -> tuple[int, int]:
    """The least and the most rows of row groups that can have no image, by their statistics; none where there are none."""
    leaves, least, most = (column, f"{column}.bytes", f"{column}.path"), 0, 0
    for head in heads:
        try:
            parts = [part for i in range(head.num_columns) if (part := head.column(i)).path_in_schema in leaves]
            counts = [part.statistics.null_count for part in parts if part.statistics is not None]
            counts = [min(max(count, 0), head.num_rows) for count in counts if count is not None]
        except Exception:  # whatever a broken footer provokes in pyarrow
            continue
        if counts:
            least += max(0, sum(counts) - head.num_rows * (len(counts) - 1))
            most += min(counts)
    return least, most


@contextmanager
def _opened(fs: AbstractFileSystem | None, path: str, came: Callable[[], None] = lambda: None) -> Iterator[Any]:
    import pyarrow as pa

    if fs is None:
        with pa.memory_map(path) as content:
            yield content
    else:
        with fs.open(path, "rb", cache_type="none") as file:  # a column's part of a group is asked for whole
            yield pa.PythonFile(InParts(file, came), mode="r")


def _file(fs: AbstractFileSystem | None, path: str) -> GroupedFile:
    """A file whose footer was read. Raises UserError."""
    import pyarrow.parquet

    def read() -> tuple[Any, Any, int]:
        with _opened(fs, path) as content:
            file = pyarrow.parquet.ParquetFile(content)
            return file.metadata, file.schema_arrow, content.size()

    try:
        footer, schema, size = _tried(fs, read)
        heads = [footer.row_group(g) for g in range(footer.num_row_groups)]
        rows = [head.num_rows for head in heads]
    except Exception as error:  # pyarrow and every back-end raise their own
        raise UserError(f"{shown(path)} cannot be read as Parquet: {reason_of(error)}") from None
    if min(rows, default=0) < 0 or sum(rows) > size:  # each has an image
        raise UserError(f"{shown(path)} claims {sum(rows)} rows in {size} bytes: it is broken")
    return GroupedFile(fs, path, footer, schema, heads)


def _tried(fs: AbstractFileSystem | None, work: Callable[[], T], pausing: Callable[[float], None] = lambda seconds: None) -> T:
    """What comes from afar may come at another try."""
    return work() if fs is None else with_retries(work, pausing)


@atexit.register
def _leave() -> None:
    """Python must not end while pyarrow is in a thread, but must where one hangs."""
    limit = time.monotonic() + LEAVE
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(max(0.0, limit - time.monotonic()))
