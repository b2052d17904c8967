"""What Parquet, Arrow and NumPy files of images share: which files they are, the columns of images, splits and labels."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.environment import host_memory
from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import SUFFIXES, file_bytes
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.folder import leaves
from jepakit.data.formats.remote import shown, titles_below
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.split_words import class_values, split_of
from jepakit.data.sources import Labels, Source, by_default, pick
from jepakit.data.unread_files import plural, some

IMAGE_NAMES = ("image", "img")  # looked for first
LABEL_NAMES = ("label", "fine_label", "labels", "class")
NO_CLASS = re.compile(r"(?i)(^|_)(id|idx|index|key|path|file|filename|name|url|caption|text|width|height|size|date|time)s?($|_)")
Coded = tuple[list[Any], NDArray[np.int64]]  # values, each once, and the place in them of every row, -1 for null
Parts = tuple[list[str], NDArray[np.int64]]  # parts of a split, and the place in them of every row
_NUMBERS = "save a whole number or a word in each row"
_BYTES = ("binary", "large_binary")  # types, as pyarrow.types.is_... calls them
_LISTS = ("list", "large_list", "fixed_size_list")
_CODES = ("integer", "string", "large_string")
_CLASSES = (*_CODES, "boolean", "floating")


def table_files(root: Path, kind: str) -> list[Path]:
    """Files *.`kind` of a folder, or of folders of splits in it, in the order of their names."""
    here = _ending_in(f".{kind}", [root])
    if not here:
        return [path for path in _ending_in(f".{kind}", _folders_in(root)) if split_of(path)]
    # a table may also lie beside plain images, and tell of them
    named = any(split_of(path.name) for path in here)
    others = any((entry.is_dir() and not named) or entry.suffix.lower() in SUFFIXES for entry in root.iterdir())
    return [] if others else here


def _folders_in(root: Path) -> list[Path]:
    with suppress(OSError), os.scandir(root) as entries:
        # where a link leads is seen when the folder is listed: one that leads nowhere, or to itself, hides no other
        return [Path(entry.path) for entry in entries if entry.name[0] != "." and (entry.is_symlink() or entry.is_dir())]
    return []


def _ending_in(ending: str, folders: Iterable[Path]) -> list[Path]:
    """What has such a name in some folders, sorted; folders may hold images by the million beside."""
    found: list[Path] = []
    for folder in folders:
        with suppress(OSError):  # no folder, or none that may be read
            found += [Path(folder, name) for name in os.listdir(folder) if name.endswith(ending) and name[0] != "."]
    return sorted(found)


class TableSource(Source):
    """Images in a column of several files' rows, in the order of the files. Subclasses implement `raw` and `coded`.

    image: the column; paths, titles: of the files; firsts: the first sample of each, then the number of samples.
    """

    by_place = True

    def __init__(self, name: str, kind: str, paths: Sequence[str], schemas: list[Any], rows: list[int]) -> None:
        """Raises UserError where the files' columns differ, there is no row, or no column of images.

        kind: what to call the files; schemas, rows: Arrow's schema and the number of rows of each file.
        """
        self.name, self.paths, self.titles, self.rows, self.schema = name, paths, titles_below(tuple(paths)), rows, schemas[0]
        for path, schema in zip(paths, schemas, strict=True):
            if not schema.equals(self.schema):
                other = f"{shown(path)} has other columns than {self.titles[0]}"
                raise UserError(f"{other}: give one of them, or a folder for each kind")
        self.image, self.notes = image_column(self.schema, name)
        self.firsts = np.cumsum([0, *rows], dtype=np.int64)
        if not len(self):
            raise UserError(f"{name}: its {kind} files hold no rows")

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def title(self, index: int) -> str:
        file = self.file_of(index)
        return f"{self.titles[file]}:{index - int(self.firsts[file])}"

    def file_of(self, index: int) -> int:
        """The number of the file that a sample lies in."""
        return int(np.searchsorted(self.firsts, index, side="right")) - 1

    def coded(self, column: str) -> Coded:
        """The values of a column. Raises UserError where it cannot be read."""
        raise NotImplementedError

    def read_labels(self, asked: str | None, names: dict[str, list[str]], nulls: int, up_to: bool = False) -> None:
        """Sets `labels`, `held_out` and `notes`. Raises UserError where the column that is asked for cannot be labels.

        names: of classes, by column; nulls: rows without an image, or the most there can be.
        """
        parts, split_notes = self._parts(names)
        self.held_out = splits.held_out_parts(*parts)
        self.labels, label_notes = self._labels(asked, names, parts)
        if nulls:
            count = f"{'up to ' if up_to else ''}{plural(nulls, 'row')} {'has' if nulls == 1 else 'have'} no image (null)"
            self.notes += (f"{count}: they count as images that cannot be read (images.max_bad); leave them out of the file",)
        self.notes += label_notes + split_notes

    def _parts(self, names: dict[str, list[str]]) -> tuple[Parts, tuple[str, ...]]:
        """Parts by the names of the files, else by a column that is called as a split; and notes."""
        by_files = splits.parts(self.titles), np.repeat(np.arange(len(self.rows)), self.rows)
        column = next((c.name for c in self.schema if c.name.lower() in splits.COLUMNS and _holds(c.type, *_CODES)), "")
        if not column or splits.held_out_parts(*by_files) is not None:
            return by_files, splits.unnamed(self.titles, self.rows)
        values, codes = self.coded(column)
        if known := names.get(column):
            values = [known[v] if isinstance(v, int) and 0 <= v < len(known) else v for v in values]
        by_column, notes = splits.by_values(column, values, codes)
        return by_column or by_files, notes

    def _labels(self, asked: str | None, names: dict[str, list[str]], parts: Parts) -> tuple[Labels | None, tuple[str, ...]]:
        """Labels of the column that is asked for, else of the likely one; None where there is none; and notes."""
        column, notes = label_column(self.schema, self.image, names, asked, self.name)
        if not column:
            return None, notes
        where = f"{self.name}, column '{column}'"
        values, codes = self.coded(column)
        if any(isinstance(value, float) for value in values):
            values = [None if value != value else value for value in values]  # not-a-number
            if not all(value is None or value.is_integer() for value in values):
                reason = f"{where} is not taken for labels, as it holds numbers with fractions: {_NUMBERS}"
                if asked:
                    raise UserError(reason)
                return None, (*notes, reason)
            values = [None if value is None else int(value) for value in values]
            notes += (f"{where}: labels are floats, taken as the whole numbers they are",)
        return splits.split_labels(column, *class_values(values, codes, names.get(column), where), *parts), notes


def _is(kind: Any, *words: str) -> bool:
    """Whether a type of Arrow's is one of those that pyarrow.types.is_WORD tells."""
    import pyarrow.types

    return any(getattr(pyarrow.types, f"is_{word}")(kind) for word in words)


def _holds(kind: Any, *words: str) -> bool:
    """As `_is`, of the values of a dictionary too."""
    return _is(kind.value_type if _is(kind, "dictionary") else kind, *words)


def image_column(schema: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """The column of an Arrow schema that holds images, and notes of others that may. Raises UserError where none does."""

    def has_images(kind: Any) -> bool:
        fields = kind if _is(kind, "struct") else ()
        return _is(kind, *_BYTES) or any(f.name == "bytes" and _is(f.type, *_BYTES) for f in fields)

    try:
        found = [column.name for column in schema if has_images(column.type)]
        names = schema.names
    except UnicodeDecodeError:
        raise UserError(f"{name} has a column whose name is no text: the file is broken") from None
    if len(set(names)) < len(names):
        raise UserError(f"{name} has several columns of one name: rename them")
    if not found:
        among = ", ".join(map(repr, names))
        raise UserError(f"{name} has no column of images (bytes, or a struct of bytes and path) among {among}")
    chosen = next((word for word in IMAGE_NAMES if word in found), found[0])
    lists = [column.name for column in schema if _is(column.type, *_LISTS) and has_images(column.type.value_type)]
    others = [repr(word) for word in [*found, *lists] if word != chosen]
    if not others:
        return chosen, ()
    note = f"images are column '{chosen}'; {some(others)} may hold images too and {'are' if others[1:] else 'is'} not used"
    return chosen, (f"{note}: to use another, call it '{IMAGE_NAMES[0]}', and it alone",)


def label_column(schema: Any, image: str, named: Iterable[str], asked: str | None, name: str) -> tuple[str, tuple[str, ...]]:
    """The column to learn: `asked`, else the likely one, '' for none; and notes of what else could be, or is not and why.

    named: columns whose classes have names. Raises UserError where `asked` is none that can be.
    """
    columns = {c.name: c.type for c in schema if c.name != image and c.name.isprintable()}
    columns = {column: kind for column, kind in columns.items() if column == asked or column.lower() not in splits.COLUMNS}
    fit = [column for column, kind in columns.items() if _holds(kind, *_CLASSES)]
    unfit = {column: kind for column, kind in columns.items() if column not in fit}

    def why_not(column: str) -> str:
        kind = "a list in each row" if _is(unfit[column], *_LISTS) else f"of type {unfit[column]}"
        return f"column '{column}' is not taken for labels, being {kind}: {_NUMBERS}"

    if asked and asked in unfit:
        raise UserError(f"{name}: {why_not(asked)}")
    chosen = likely(fit, LABEL_NAMES, named, asked, name)
    classes = [column for column in columns if not NO_CLASS.search(column)]
    usual = {*LABEL_NAMES, *named}
    if chosen:  # floats are mostly measured
        others = [c for c in fit if c in usual or (c in classes and not _is(columns[c], "floating"))]
        return chosen, (*by_default(asked, chosen, others), *(why_not(c) for c in unfit if c in LABEL_NAMES))
    lists = [c for c in unfit if c in classes and _is(unfit[c], *_LISTS) and _holds(unfit[c].value_type, *_CLASSES)]
    notes = [why_not(c) for c in unfit if c in LABEL_NAMES or c in lists]
    if could := [repr(c) for c in fit if c in classes]:
        notes.append(f"no labels are taken: none of {some(could)} is called '{LABEL_NAMES[0]}'; --labels NAME takes one")
    return "", tuple(notes)


def likely(fit: list[str], words: Iterable[str], named: Iterable[str], asked: str | None, name: str) -> str:
    """Of what could be labels: `asked`, else by a usual word, else one whose classes have names, else ''. Raises UserError."""
    fit = [column for column in fit if column.isprintable()]  # messages name them
    first = list(dict.fromkeys(column for column in (*words, *named) if column in fit))
    return pick(asked, tuple(dict.fromkeys([*first, *fit])), name) if asked or first else ""


def encoded(array: Any) -> Coded:
    """The values of an Arrow array (n,)."""
    import pyarrow as pa

    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)


def class_names(schema: Any, described: Any = None) -> dict[str, list[str]]:
    """Names of classes by column, as Hugging Face notes them in a schema's metadata, and in `described`, features of a set."""
    try:
        inside = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        inside = {}
    named = {}
    for features in (inside, described):
        for column, feature in features.items() if isinstance(features, dict) else ():
            names = feature.get("names") if isinstance(feature, dict) else None
            if names and isinstance(names, list):
                named[str(column)] = [str(name) for name in names]
    return named


def parts_of(images: Any) -> tuple[Any, Any]:
    """The bytes of a column or array of images, and the paths if it has any."""
    if not _is(images.type, "struct"):
        return images, None
    parts = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
    return parts["bytes"], parts.get("path")


def image_bytes(images: tuple[Any, Any], row: int, folder: Path | None) -> bytes:
    """An image of `parts_of`; where a row has no bytes, of the file that its path names below `folder`. Raises BadImageError."""
    data: bytes | None = images[0][row].as_py()
    if data:
        return data
    path = None if images[1] is None else images[1][row].as_py()
    if not path or not isinstance(path, str):
        raise BadImageError("no bytes and no path")
    if leaves(path):
        raise BadImageError(f"its path {path!r} may lie outside of the folder")
    if folder is None:
        raise BadImageError(f"it has no bytes but the path {path!r}, which is read from local folders only")
    return file_bytes(folder / path)


def require_pyarrow(name: str) -> None:
    """Raises UserError where pyarrow is not installed, which `name` needs."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(f"{name} needs pyarrow to be read: pip install 'jepakit[parquet]'") from None


@cache
def most_memory() -> int:
    """What one thing in a file may take: half of the memory, 4 GiB where that is not known; more is a decompression bomb."""
    return (host_memory() or 8 << 30) // 2
