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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray

from jepakit.core.errors import UserError, line_of
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import tables
from jepakit.data.formats.prefetch import PrefetchCache
from jepakit.data.formats.remote import Places, shown, with_retries
from jepakit.data.labels import split_words as splits
from jepakit.data.left_out import beside
from jepakit.data.sources import Blocks, Labels, Source

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
class Files:
    """Parquet files of one set: fs is None for local ones; footers are pyarrow's FileMetaData, titles their names below."""

    fs: AbstractFileSystem | None
    paths: list[str]
    titles: list[str]
    footers: list[Any]

    @contextmanager
    def reader(self, file: int, came: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """A ParquetFile of its own for each reading, as it has one position. Raises whatever a back-end does.

        `came` is called for each part that came from afar.
        """
        import pyarrow.parquet

        with _opened(self.fs, self.paths[file], came) as content:
            yield pyarrow.parquet.ParquetFile(content, metadata=self.footers[file])


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
class Group:
    """Images of a row group: bytes, and paths or None, as Arrow's chunked arrays."""

    images: tuple[Any, Any]
    nbytes: int


@dataclass(eq=False)
class ParquetSource(Source):
    """Images of Parquet files, read by the row group. Reading is safe from several threads, and a group is read by one."""

    name: str
    files: Files
    column: str
    labels: Labels | None
    starts: NDArray[np.int64]  # first sample of each row group, and the number of samples
    groups: list[tuple[int, int]]  # file and place in it of each row group
    sizes: NDArray[np.int64]  # bytes of its images: claimed, and true once it was read
    firsts: list[int]  # first sample of each file
    blocks: Blocks | None = None
    held_out: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    by_place = True
    _groups: PrefetchCache[Group] = field(init=False)

    def __post_init__(self) -> None:
        threads = 1 if self.files.fs is None else _BEHIND
        self._groups = PrefetchCache(lambda group: self._read(group), lambda group: int(self.sizes[group]), KEPT, threads, THREAD)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def raw(self, index: int) -> bytes:
        group, row = self._place(index)
        file = self.groups[group][0]
        folder = Path(self.files.paths[file]).parent if self.files.fs is None else None
        try:
            return tables.image_bytes(self._groups.item(group).images, row, folder)
        except (ValueError, IndexError) as error:  # a name that is no text, fewer rows than the footer claims
            raise BadImageError(line_of(error)) from None

    def title(self, index: int) -> str:
        file = self.groups[self._place(index)[0]][0]
        return f"{self.files.titles[file]}:{index - self.firsts[file]}"

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Begin to read the row groups of these samples, in this order, as many as fit in KEPT."""
        self._groups.prefetch((np.searchsorted(self.starts, ids, side="right") - 1).tolist())

    def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
        """For the row groups of these samples, as many as fit in KEPT, where they are not local."""
        if self.files.fs is not None:
            self._groups.wait_for((np.searchsorted(self.starts, ids, side="right") - 1).tolist(), seconds)

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return group, index - int(self.starts[group])

    def _read(self, group: int) -> Group:
        import pyarrow as pa

        file, place = self.groups[group]

        def read() -> Group | None:
            chunks, size = [], 0
            with self.files.reader(file, self._groups.came) as reader:
                for batch in reader.iter_batches(AT_ONCE, row_groups=[place], columns=[self.column], use_threads=False):
                    chunks.append(batch.column(self.column))
                    size += chunks[-1].nbytes
                    if size > tables.most_memory():
                        return None
            return Group(tables.parts_of(pa.chunked_array(chunks)), size)

        try:
            found = _result(self.files.fs, read, self._groups.pausing)
        except Exception as error:  # pyarrow and every back-end raise their own
            raise BadImageError(f"its row group cannot be read: {_reason(error)}") from None
        if found is None:
            raise BadImageError(f"its row group takes more than {tables.most_memory() >> 20} MiB: taken for a decompression bomb")
        self.sizes[group] = found.nbytes
        return found


def parquet(root: Path, labels: str | None) -> Source | None:
    """A Parquet file, or a folder of them, in the order of their names; files of train, test and validation are the split."""
    paths = [root] if root.is_file() and root.suffix == ".parquet" else tables.table_files(root, "parquet")
    if not paths:
        return None
    source = _source(str(root), None, [str(path) for path in paths], labels)
    source.notes += beside(paths, len(source)) if root.is_dir() else ()
    return source


def parquet_files(places: Places, name: str, labels: str | None) -> Source:
    """The Parquet files at places, in their order; for the rest as `parquet`. Raises UserError."""
    return _source(name, None if places.local else places.fs, list(places.paths), labels)


def _source(name: str, fs: AbstractFileSystem | None, paths: list[str], labels: str | None) -> ParquetSource:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(f"{shown(name)} needs pyarrow to be read: pip install 'jepakit[parquet]'") from None
    with ThreadPoolExecutor(OPENED) as pool:
        opened = list(pool.map(lambda path: _footer(fs, path), paths))
    files = Files(fs, paths, tables.below(paths), [footer for footer, _ in opened])
    schema = opened[0][1]
    for path, (_, other) in zip(paths, opened, strict=True):
        if not other.equals(schema):
            raise UserError(
                f"{shown(path)} has other columns than {files.titles[0]}: give one of them, or a folder for each kind"
            )
    column, notes = tables.image_column(schema, shown(name))
    places = [(i, g) for i, footer in enumerate(files.footers) for g in range(footer.num_row_groups)]
    heads = [files.footers[i].row_group(g) for i, g in places]
    starts = np.cumsum([0, *(head.num_rows for head in heads)], dtype=np.int64)
    if not starts[-1]:
        raise UserError(f"{shown(name)}: its Parquet files hold no rows")
    rows = np.bincount([i for i, _ in places], [head.num_rows for head in heads], len(paths)).astype(int).tolist()
    sizes = np.array([min(max(head.total_byte_size, 0), 1 << 40) for head in heads], np.int64)  # nearly all are images
    at_once = max(1, int(KEPT / 2 / max(sizes.mean(), 1)))
    blocks = Blocks(starts, at_once, sequential=fs is not None or int(sizes.sum()) > KEPT)
    named, read = tables.class_names(tables.features(schema)), partial(_coded, shown(name), files, rows)
    parts, said = tables.rows_parts(files.titles, rows, schema, read, named)
    found, guessed = tables.column_labels(schema, column, named, labels, shown(name), read, parts)
    notes += tables.nulls(*_nulls(heads, column)) + guessed + said
    firsts = np.cumsum([0, *rows]).tolist()
    return ParquetSource(name, files, column, found, starts, places, sizes, firsts, blocks, splits.held_out_parts(*parts), notes)


def _nulls(heads: list[Any], column: str) -> tuple[int, bool]:
    """Rows of row groups that have no image by their statistics, and whether that many is the most there can be."""
    total, exact = 0, True
    for head in heads:
        try:
            leaves = [head.column(i) for i in range(head.num_columns)]
            counts = {leaf.path_in_schema: leaf.statistics.null_count for leaf in leaves if leaf.statistics is not None}
            few = [counts[leaf] for leaf in (column, f"{column}.bytes", f"{column}.path") if counts.get(leaf) is not None]
        except Exception:  # whatever a broken footer provokes in pyarrow
            continue
        few = [min(max(count, 0), head.num_rows) for count in few]
        if few:
            least, most = max(0, sum(few) - head.num_rows * (len(few) - 1)), min(few)
            total, exact = total + most, exact and least == most
    return total, not exact


@contextmanager
def _opened(fs: AbstractFileSystem | None, path: str, came: Callable[[], None] = lambda: None) -> Iterator[Any]:
    import pyarrow as pa

    if fs is None:
        with pa.memory_map(path) as content:
            yield content
    else:
        with fs.open(path, "rb", cache_type="none") as file:  # a column's part of a group is asked for whole
            yield pa.PythonFile(InParts(file, came), mode="r")


def _footer(fs: AbstractFileSystem | None, path: str) -> tuple[Any, Any]:
    """A file's FileMetaData and its schema. Raises UserError."""
    import pyarrow.parquet

    def read() -> tuple[Any, Any, int]:
        with _opened(fs, path) as content:
            file = pyarrow.parquet.ParquetFile(content)
            return file.metadata, file.schema_arrow, content.size()

    try:
        footer, schema, size = _result(fs, read)
        rows = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
    except Exception as error:  # pyarrow and every back-end raise their own
        raise UserError(f"{shown(path)} cannot be read as Parquet: {_reason(error)}") from None
    if min(rows, default=0) < 0 or sum(rows) > size:  # each has an image
        raise UserError(f"{shown(path)} claims {sum(rows)} rows in {size} bytes: it is broken")
    return footer, schema


def _coded(name: str, files: Files, rows: list[int], column: str) -> tables.Coded:
    """Values of a column, each once, and the place in them of every row. Raises UserError."""

    def of(file: int) -> tables.Coded:
        with files.reader(file) as reader:
            batches = reader.iter_batches(LABELS_AT_ONCE, columns=[column], use_threads=False)
            return splits.merged(tables.encoded(batch.column(column)) for batch in batches)

    where = f"{name}, column '{column}'"
    try:
        with ThreadPoolExecutor(OPENED) as pool:
            parts = list(pool.map(lambda file: _result(files.fs, lambda: of(file)), range(len(rows))))
    except Exception as error:  # pyarrow and every back-end raise their own
        raise UserError(f"{where} cannot be read: {_reason(error)}") from None
    if [len(codes) for _, codes in parts] != rows:
        raise UserError(f"{where}: it has other numbers of rows than the files claim: they are broken")
    return splits.merged(parts)


def _result(fs: AbstractFileSystem | None, work: Callable[[], T], pausing: Callable[[float], None] = lambda seconds: None) -> T:
    """What comes from afar may come at another try."""
    return work() if fs is None else with_retries(work, pausing)


def _reason(error: Exception) -> str:
    return shown(line_of(error)) or type(error).__name__


@atexit.register
def _leave() -> None:
    """Python must not end while pyarrow is in a thread, but must where one hangs."""
    limit = time.monotonic() + LEAVE
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(max(0.0, limit - time.monotonic()))
