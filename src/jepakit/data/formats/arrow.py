"""Arrow files of images as Hugging Face's `datasets` saves and caches them (extra 'parquet'): mapped, nothing is copied.

Columns are as in Parquet. The stream format is read, and the file format too, which is a stream between two magic words.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jepakit.core.errors import UserError, line_of
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import tables
from jepakit.data.formats.folder import leaves
from jepakit.data.labels import split_words as splits
from jepakit.data.sources import Blocks, Source
from jepakit.data.unread_files import beside

END = struct.pack("<iI", -1, 0)  # of a stream
NEAR = 128 << 20  # bytes of record batches that an order by blocks goes through at a time
MOST_JSON = 64 << 20


class ArrowSource(tables.TableSource):
    """Images of mapped record batches. Reading is safe from several threads, and costs a copy of the image's bytes."""

    def __init__(self, name: str, paths: list[Path], labels: str | None) -> None:
        self.tables = [_table(path) for path in paths]
        schemas, rows = [table.schema for table in self.tables], [len(table) for table in self.tables]
        super().__init__(name, "Arrow", [str(path) for path in paths], schemas, rows)
        self.chunks = [chunk for table in self.tables for chunk in table.column(self.image).chunks if len(chunk)]
        self._checked: dict[int, tuple[Any, Any]] = {}  # bytes and paths of the chunks that were validated
        mean = sum(path.stat().st_size for path in paths) / len(self.chunks)
        starts = np.cumsum([0, *map(len, self.chunks)], dtype=np.int64)
        self.blocks: Blocks = Blocks(starts, max(1, int(NEAR / mean)), sequential=False)
        info = paths[0].parent / "dataset_info.json"
        names = tables.class_names(self.schema, _content(info).get("features") if info.is_file() else None)
        self.read_labels(labels, names, sum(map(_nulls, self.chunks)))

    def raw(self, index: int) -> bytes:
        chunk = int(self.blocks.of(np.array(index)))
        try:
            if chunk not in self._checked:  # offsets of a broken file may lead anywhere
                self.chunks[chunk].validate(full=True)
                self._checked[chunk] = tables.parts_of(self.chunks[chunk])
            folder = Path(self.paths[self.file_of(index)]).parent
            return tables.image_bytes(self._checked[chunk], index - int(self.blocks.starts[chunk]), folder)
        except ValueError as error:  # pyarrow's own are such
            raise BadImageError(f"its record batch is broken: {line_of(error)}") from None

    def coded(self, column: str) -> tables.Coded:
        columns = [table.column(column) for table in self.tables]
        try:
            for found in columns:
                found.validate(full=True)
            return splits.merged(tables.encoded(chunk) for found in columns for chunk in found.chunks)
        except ValueError as error:
            raise UserError(f"{self.name}, column '{column}' cannot be read: {line_of(error)}") from None


def arrow(root: Path, labels: str | None) -> Source | None:
    """A data set (or several splits) of `save_to_disk`, `datasets`' own cache of one, or an .arrow file. Raises UserError."""
    paths = [root] if root.is_file() and root.suffix == ".arrow" else _saved(root)
    if not paths:
        return None
    tables.require_pyarrow(str(root))
    source = ArrowSource(str(root), paths, labels)
    source.notes += beside(paths, len(source)) if root.is_dir() else ()
    return source


def _nulls(chunk: Any) -> int:
    """Rows without an image: neither bytes nor a path."""
    import pyarrow.compute as pc

    try:
        chunk.validate()  # that the buffers are as long as is said
        data, paths = tables.parts_of(chunk)
        empty = data.is_null() if paths is None else pc.and_(data.is_null(), paths.is_null())
        return int(pc.sum(empty).as_py() or 0)
    except ValueError:  # said when it is read
        return 0


def _saved(root: Path) -> list[Path]:
    """The .arrow files of a folder in their order, those of all splits; none where it is no such folder."""
    if (root / "dataset_dict.json").is_file():
        splits = _named(root / "dataset_dict.json", lambda content: content["splits"])
        return [path for split in splits for path in _listed(root / split)]
    if (root / "state.json").is_file() and any(root.glob("*.arrow")):
        return _listed(root)
    found = tables.table_files(root, "arrow")
    return [path for path in found if not path.name.startswith("cache-")] or found  # those were computed from the data


def _listed(folder: Path) -> list[Path]:
    state = folder / "state.json"
    if _content(state).get("_indices_files"):
        raise UserError(f"{folder} is saved as a selection of rows of another: call flatten_indices() before save_to_disk()")
    return [folder / name for name in _named(state, lambda content: [file["filename"] for file in content["_data_files"]])]


def _named(path: Path, names: Callable[[Any], Any]) -> list[str]:
    """What a JSON file names below its folder. Raises UserError."""
    try:
        found = names(_content(path))
        bad = next((name for name in found if not isinstance(name, str) or not name or "\0" in name or leaves(name)), None)
    except (KeyError, TypeError):
        raise UserError(f"{path} does not name its data as datasets' save_to_disk() does: save the set again") from None
    if bad is not None:
        raise UserError(f"{path} names {bad!r}, which may lie outside of the folder")
    return list(found)


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON >> 20} MiB")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent} lacks {path.name}: the set is not whole") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON that can be read: {line_of(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping")
    return content


def _table(path: Path) -> Any:
    """A file's record batches as one table, mapped. Raises UserError."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            start = 8 if file.read(8)[:6] == b"ARROW1" else 0
            file.seek(start)
            packed = sum(_is_compressed(message) for message in pa.ipc.MessageReader.open_stream(file))  # to the end
            file.seek(max(file.tell() - len(END), 0))
            if file.read(len(END)) != END:
                raise ValueError("it has no end")
            file.seek(start)
            if not packed:
                return pa.ipc.open_stream(file).read_all()
    except FileNotFoundError:
        raise UserError(f"{path.parent} lacks {path.name}: the set is not whole") from None
    except Exception as error:  # whatever bytes a file holds, and whatever they provoke in pyarrow
        raise UserError(f"{path} cannot be read as Arrow, it may be cut: {line_of(error)}") from None
    raise UserError(f"{path} is compressed, which Arrow has to unpack whole: save it uncompressed, or as Parquet")


def _is_compressed(message: Any) -> bool:
    """Whether a record batch's buffers are: Flatbuffers of Message (field 2: header) and RecordBatch (3: compression)."""
    data = message.metadata.to_pybytes()

    def number(kind: str, at: int) -> int:
        return int(struct.unpack_from(f"<{kind}", data, at)[0])

    def place(table: int, which: int) -> int:
        """Where a table's field is, from the table on; 0 for none."""
        columns = table - number("i", table)
        return number("H", columns + 4 + 2 * which) if 4 + 2 * which < number("H", columns) else 0

    root = number("I", 0)
    header = root + place(root, 2)
    table = header + number("I", header)
    if message.type == "dictionary":  # it has a record batch (data: 1)
        table += place(table, 1)
        table += number("I", table)
    return message.type in ("record batch", "dictionary") and place(table, 3) > 0
