"""Parquet files of images in the layout of Hugging Face's data sets (extra 'parquet').

An image is a struct of bytes and path, or bytes; a label is a number, with names in the schema where there are, or text.
Parquet has no way to a single row: its row group is read for it. In order that is once a group; shuffled, a set of more
than KEPT bytes reads about a group an image (measured from a warm file cache: 6 to 9 ms for a group of 11 MB, 100 ms for one
of 110 MB), so unpack a large set into a folder of image files before pretraining on it.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decode import SUFFIXES, BadImageError, file_bytes
from jepakit.data.folder import leaves
from jepakit.data.sources import Labels, Source, fifths, pick
from jepakit.errors import UserError, line_of

IMAGE_NAMES = ("image", "img")  # looked for first
LABEL_NAMES = ("label", "fine_label", "labels", "class")
HELD_OUT = {"test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
KEPT = 256 << 20  # bytes of row groups in memory


@dataclass
class ParquetSource(Source):
    """Images of Parquet files, read by the row group. Reading is safe from several threads."""

    name: str
    paths: list[Path]
    files: list[Any]  # pyarrow's ParquetFile
    column: str
    labels: Labels | None
    starts: NDArray[np.int64]  # first sample of each row group, and the number of samples
    groups: list[tuple[int, int]]  # file and place in it of each row group
    firsts: list[int]  # first sample of each file
    _kept: OrderedDict[int, Any] = field(default_factory=OrderedDict)
    _bytes: int = 0  # of those kept
    _lock: Lock = field(default_factory=Lock)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def raw(self, index: int) -> bytes:
        group, row = self._place(index)
        try:
            value = self._group(group)[row].as_py()
        except (OSError, ValueError) as error:
            raise BadImageError(line_of(error)) from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if data:
            return bytes(data)
        path = value.get("path") if isinstance(value, dict) else None
        if not path:
            raise BadImageError("no bytes and no path")
        if leaves(path):
            raise BadImageError(f"its path '{path}' may lie outside of the folder")
        return file_bytes(self.paths[self.groups[group][0]].parent / path)

    def title(self, index: int) -> str:
        file = self.groups[self._place(index)[0]][0]
        return f"{self.paths[file].name}:{index - self.firsts[file]}"

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return group, index - int(self.starts[group])

    def _group(self, group: int) -> Any:
        """The images of a row group; the last ones are kept, as many as KEPT has room for, and one at least."""
        with self._lock:  # pyarrow's files have one reading position
            if group not in self._kept:
                file, place = self.groups[group]
                table = self.files[file].read_row_group(place, columns=[self.column], use_threads=False)
                self._kept[group] = table.column(0)
                self._bytes += table.nbytes
                while self._bytes > KEPT and len(self._kept) > 1:
                    self._bytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept.move_to_end(group)
            return self._kept[group]


def parquet(root: Path, labels: str | None) -> Source | None:
    """A Parquet file, or a folder of them, in the order of their names; files of train, test and validation are the split."""
    paths = [root] if root.is_file() and root.suffix == ".parquet" else _files(root)
    if not paths:
        return None
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{root} needs pyarrow to be read: pip install 'jepakit[parquet]'") from None
    try:
        files = [pyarrow.parquet.ParquetFile(path, memory_map=True) for path in paths]
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"a Parquet file of {root} cannot be read: {line_of(error)}") from None
    schema = files[0].schema_arrow
    for path, file in zip(paths, files, strict=True):
        if not file.schema_arrow.equals(schema):
            raise UserError(f"{path} has other columns than {paths[0].name}: give one of them, or a folder for each kind")
    groups = [(i, g) for i, file in enumerate(files) for g in range(file.num_row_groups)]
    rows = [files[i].metadata.row_group(g).num_rows for i, g in groups]
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    if not starts[-1]:
        raise UserError(f"{root}: its Parquet files hold no rows")
    column = _image_column(schema, root)
    found = _labels(root, paths, files, schema, column, labels)
    firsts = np.cumsum([0, *(file.metadata.num_rows for file in files)]).tolist()
    return ParquetSource(str(root), paths, files, column, found, starts, groups, firsts)


def _files(root: Path) -> list[Path]:
    """Parquet files of a folder, or of folders of splits in it."""
    here = sorted(root.glob("*.parquet"))
    if here:  # a table may also lie beside plain images, and tell of them
        named = any(_split(path) for path in here)
        others = any((entry.is_dir() and not named) or entry.suffix.lower() in SUFFIXES for entry in root.iterdir())
        return [] if others else here
    return sorted(path for path in root.glob("*/*.parquet") if _split(path) is not None)


def _split(path: Path) -> str | None:
    """'train', 'test' or 'validation': what a file's name begins with, or its folder's name is."""
    for word in (path.stem.split("-")[0].split("_")[0], path.parent.name):
        if word == "train" or word in HELD_OUT:
            return HELD_OUT.get(word, word)
    return None


def _image_column(schema: Any, root: Path) -> str:
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" and holds(kind.field(i).type) for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [column.name for column in schema if holds(column.type)]
    if not found:
        raise UserError(f"{root} has no column of images (bytes, or a struct of bytes and path) among {', '.join(schema.names)}")
    return next((name for name in IMAGE_NAMES if name in found), found[0])


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of classes by column, from the 'huggingface' metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {key: [str(n) for n in f["names"]] for key, f in features.items() if isinstance(f, dict) and f.get("names")}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _labels(root: Path, paths: list[Path], files: list[Any], schema: Any, image: str, labels: str | None) -> Labels | None:
    import pyarrow as pa

    named = _class_names(schema)
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    fit = [column.name for column in schema if column.name != image and any(kind(column.type) for kind in kinds)]
    likely = [*(n for n in LABEL_NAMES if n in fit), *(n for n in fit if n in named and n not in LABEL_NAMES)]
    choices = (*likely, *(n for n in fit if n not in likely))
    chosen = pick(labels, choices, str(root)) if labels or likely else ""
    if not chosen:
        return None
    column = [v for file in files for v in file.read(columns=[chosen], use_threads=False).column(0).to_pylist()]
    classes, values = _values(column, named.get(chosen), f"{root}, column '{chosen}'")
    split = np.repeat([_split(path) or "train" for path in paths], [file.metadata.num_rows for file in files])
    if len(set(split)) == 1:
        return Labels(chosen, classes, values, fifths(values))
    held = next((part for part in ("test", "validation") if (values[split == part] >= 0).any()), "")
    values[(split != "train") & (split != held)] = -1  # with both a test and a validation, the other has no part
    return Labels(chosen, classes, values, split == held if held else fifths(values))  # a test's labels may all be hidden


def _values(column: list[Any], names: list[str] | None, where: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes and each row's place in them: by the names given, else the sorted values; -1 for none or below 0."""
    if names is not None and all(value is None or isinstance(value, int) for value in column):
        values = np.array([-1 if value is None else value for value in column], np.int64)
        if values.max(initial=-1) >= len(names):
            raise UserError(f"{where}: label {values.max()} of {len(names)} named classes")
        return tuple(names), np.maximum(values, -1)
    present = {value for value in column if value is not None and (isinstance(value, str) or value >= 0)}
    classes = sorted(present)
    place = {value: i for i, value in enumerate(classes)}
    return tuple(str(value) for value in classes), np.array([place.get(value, -1) for value in column], np.int64)
