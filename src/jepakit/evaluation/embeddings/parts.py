"""A file of embeddings while it is being made: parts that are whole or absent after a kill, and their join with flat memory.

OUT.parts/ holds embedding.json (what is made, of what) and a file for each range of places in the source, synced and renamed
into place: n rows of columns, and the images of that range that could not be read. A Parquet file has its footer at the end, so
that a row group in it would be no use before the last one.
"""

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.core.files import atomic_write, load_json, sync
from jepakit.evaluation.features import UnreadRow

Columns = dict[str, NDArray[Any]]
SPLITS = ("train", "test")
LABEL_OF = "label."  # begins the name of a column of one of several labels
DESCRIPTION = "embedding.json"
_OURS = re.compile(r"\.lock|(\.tmp-)?(embedding\.json|\d{6,}\.npz)")  # all that a folder of parts may hold


@dataclass(frozen=True)
class EmbeddingParts:
    """The folder of parts of a file to be made; count: how many there will be."""

    folder: Path
    count: int

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    @property
    def missing(self) -> list[int]:
        """Numbers of parts that are not there, ascending."""
        return [number for number in range(self.count) if not self.path(number).exists()]

    def save(self, number: int, columns: Columns, bad: list[UnreadRow]) -> None:
        """Write a part: columns (n, ...), all numbers but the path, and groups that have names."""
        with written(self.path(number)) as draft, draft.open("wb") as file:
            arrays: Any = {**columns, "bad": np.array(json.dumps(bad))}
            np.savez(file, **arrays)

    def load(self, number: int, *names: str) -> Columns:
        """Columns of a part, those named or all. Raises UserError for a part that is broken."""
        try:
            with np.load(self.path(number), allow_pickle=False) as stored:
                return {name: stored[name] for name in names or [each for each in stored.files if each != "bad"]}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path(number)} is broken ({error}): remove it, and say the same again") from None

    def bad(self) -> Iterator[UnreadRow]:
        """Images of all parts that could not be read."""
        for number in range(self.count):
            yield from map(tuple, json.loads(str(self.load(number, "bad")["bad"])))

    def __iter__(self) -> Iterator[Columns]:
        """Parts that have rows, one at a time."""
        for number in range(self.count):
            columns = self.load(number)
            if len(columns["index"]):
                yield columns


def require_ours(folder: Path) -> None:
    """Raises UserError for a folder that holds anything but parts, as it is removed when all is done."""
    if other := next((path.name for path in sorted(folder.iterdir()) if path.is_dir() or not _OURS.fullmatch(path.name)), None):
        raise UserError(f"{folder} holds {plain(other)}, which jepakit embed did not write: move it, or give another --out")


def described(folder: Path) -> dict[str, Any] | None:
    """What a folder of parts was begun with; None for one that was not begun. Raises UserError for a broken one."""
    place = folder / DESCRIPTION
    try:
        about = load_json(place) if place.exists() else None
    except ValueError:
        about = ()
    if not isinstance(about, dict | None):
        raise UserError(f"{place} is broken: begin again with --overwrite")
    return about


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder of parts with what is to be made."""
    for draft in folder.glob(".tmp-*"):
        draft.unlink()
    if not (folder / DESCRIPTION).exists():
        with written(folder / DESCRIPTION) as draft:
            draft.write_text(json.dumps(about), encoding="utf-8")


def join(parts: EmbeddingParts, out: Path, about: Mapping[str, Any]) -> int:
    """Write the parts as one file, .parquet or .npz, and OUT.bad.csv where images could not be read: then the parts go.

    Returns the number of images that could not be read. Raises UserError where no image could be.
    """
    rows = sum(len(parts.load(number, "index")["index"]) for number in range(parts.count))
    bad = _write_bad(parts, bad_path(out))
    if not rows:
        shutil.rmtree(parts.folder)
        raise UserError(f"no image could be read: {bad_path(out)} says why")
    with written(out) as draft:
        (_write_npz if out.suffix == ".npz" else _write_parquet)(parts, rows, draft, about)
    shutil.rmtree(parts.folder)
    return bad


def bad_path(out: Path) -> Path:
    """The file that names the images that could not be read."""
    return out.with_name(f"{out.name}.bad.csv")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to; then the file is synced, renamed to `path`, and its folder synced."""
    try:
        with atomic_write(path) as draft:
            yield draft
            sync(draft)
    finally:
        draft.unlink(missing_ok=True)  # there after an error alone, such as a full disk
    sync(path.parent)


def _write_bad(parts: EmbeddingParts, path: Path) -> int:
    count = 0
    with written(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(("index", "path", "reason"))
        for index, title, reason in parts.bad():
            table.writerow((index, as_text(title), plain(reason)))
            count += 1
    if not count:
        path.unlink()
    return count


def as_text(title: str) -> str:
    """A title as UTF-8 can hold it: bytes of a file's name that are no text become escapes."""
    return title.encode("utf-8", "backslashreplace").decode()


def _write_parquet(parts: EmbeddingParts, rows: int, draft: Path, about: Mapping[str, Any]) -> None:
    """A row group a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = int(np.prod(about["shape"]))
    words = {"path", "split", *(["label"] if about["kind"] == "class" else [])}  # others as they are stored

    def kind(name: str, column: NDArray[Any]) -> Any:
        return pa.string() if name in words or column.dtype.kind == "U" else pa.from_numpy_dtype(column.dtype)

    schema: Any = None
    writer: Any = None
    try:
        for columns in parts:
            if writer is None:
                vector = pa.list_(pa.from_numpy_dtype(columns["vector"].dtype), size)
                fields = [*((name, kind(name, x)) for name, x in columns.items() if name != "vector"), ("vector", vector)]
                schema = pa.schema(fields, metadata={"jepakit": json.dumps(about)})
                writer = pq.ParquetWriter(draft, schema, compression="NONE", use_dictionary=["label", "split"])
            values = _in_words(columns, about)
            flat = pa.array(columns["vector"].reshape(-1))
            arrays = [pa.array(values[f.name], f.type, from_pandas=True) for f in schema if f.name != "vector"]  # NaN is null
            table = pa.Table.from_arrays([*arrays, pa.FixedSizeListArray.from_arrays(flat, size)], schema=schema)
            writer.write_table(table, row_group_size=len(table))
    finally:
        if writer is not None:
            writer.close()


def _in_words(columns: Columns, about: Mapping[str, Any]) -> dict[str, Any]:
    """Columns with words in the place of codes, None for -1, and for a group without a name."""
    words: dict[str, Any] = {**columns, "path": [as_text(title) for title in columns["path"].tolist()]}
    if "group" in columns and columns["group"].dtype.kind == "U":
        words["group"] = [as_text(name) or None for name in columns["group"].tolist()]
    for name, names in (("label", about["classes"]), ("split", SPLITS)):
        if name in columns and columns[name].dtype.kind == "i":
            words[name] = [as_text(names[code]) if code >= 0 else None for code in columns[name].tolist()]
    return words


def _write_npz(parts: EmbeddingParts, rows: int, draft: Path, about: Mapping[str, Any]) -> None:
    """Arrays by name, uncompressed, each written part by part; metadata is JSON."""
    widest: dict[str, int] = {}
    first = next(iter(parts))
    for columns in parts:
        for name, values in _in_words(_small(columns), about).items():
            if isinstance(values, list):
                widest[name] = max(widest.get(name, 1), *(len(value or "") for value in values))
    with zipfile.ZipFile(draft, "w") as archive:
        _write_array(archive, "metadata", np.array(json.dumps(about)))
        for name, array in first.items():
            kind = np.dtype(f"<U{widest[name]}") if name in widest else array.dtype
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                shape = (rows, *(about["shape"] if name == "vector" else ()))
                header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(shape)}
                np.lib.format.write_array_header_2_0(file, header)
                for number in range(parts.count):
                    values = _in_words({"path": np.array([], np.str_), **parts.load(number, name)}, about)[name]
                    values = [value or "" for value in values] if name in widest else values
                    file.write(np.asarray(values, kind).tobytes())


def _small(columns: Columns) -> Columns:
    return {name: values for name, values in columns.items() if name != "vector"}


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
