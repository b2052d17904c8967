"""What Parquet, Arrow and NumPy files of images share: which files they are, the columns of images and labels."""

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import SUFFIXES, file_bytes
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.folder import leaves
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.split_words import class_values, split_of
from jepakit.data.left_out import plural, some
from jepakit.data.sources import Labels, by_default, pick

IMAGE_NAMES = ("image", "img")  # looked for first
LABEL_NAMES = ("label", "fine_label", "labels", "class")
NO_CLASS = re.compile(r"(?i)(^|_)(id|idx|index|key|path|file|filename|name|url|caption|text|width|height|size|date|time)s?($|_)")
Coded = tuple[list[Any], NDArray[np.int64]]  # values, each once, and the place in them of every row
_NUMBERS = "save a whole number or a word in each row"


def table_files(root: Path, kind: str) -> list[Path]:
    """Files *.`kind` of a folder, or of folders of splits in it, in the order of their names."""
    here = _ending(root, kind)
    if here:  # a table may also lie beside plain images, and tell of them
        named = any(split_of(path.name) for path in here)
        others = any((entry.is_dir() and not named) or entry.suffix.lower() in SUFFIXES for entry in root.iterdir())
        return [] if others else here
    folders = _entries(root, lambda entry: entry.is_dir())
    return [path for folder in folders for path in _ending(folder, kind) if split_of(path)]


def _ending(folder: Path, kind: str) -> list[Path]:
    return _entries(folder, lambda entry: entry.name.endswith(f".{kind}"))


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """Faster than a glob: images may lie here by the million."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and wanted(entry))
    except OSError:
        return []


def image_column(schema: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """The column of an Arrow schema that holds images, and notes of others that may. Raises UserError where none does."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def holds(kind: Any) -> bool:
        return is_bytes(kind) or (
            pa.types.is_struct(kind) and any(f.name == "bytes" and is_bytes(f.type) for f in _fields(kind).values())
        )

    try:
        found = [word for word, column in zip(schema.names, schema, strict=True) if holds(column.type)]
    except UnicodeDecodeError:
        raise UserError(f"{name} has a column whose name is no text: the file is broken") from None
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{name} has several columns of one name: rename them")
    if not found:
        among = ", ".join(map(repr, schema.names))
        raise UserError(f"{name} has no column of images (bytes, or a struct of bytes and path) among {among}")
    chosen = next((word for word in IMAGE_NAMES if word in found), found[0])
    lists = [column.name for column in schema if _is_list(column.type) and holds(column.type.value_type)]
    others = [repr(word) for word in [*found, *lists] if word != chosen]
    said = f"images are column '{chosen}'; {some(others)} may hold images too and {'are' if others[1:] else 'is'} not used"
    return chosen, ((f"{said}: to use another, call it '{IMAGE_NAMES[0]}', and it alone",) if others else ())


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def nulls(count: int, up_to: bool = False) -> tuple[str, ...]:
    """What to say of rows that have no image."""
    rows = f"{'up to ' if up_to else ''}{plural(count, 'row')} {'has' if count == 1 else 'have'} no image (null)"
    return (f"{rows}: they count as images that cannot be read (images.max_bad); leave them out of the file",) if count else ()


def _fields(kind: Any) -> dict[str, Any]:
    return {kind.field(i).name: kind.field(i) for i in range(kind.num_fields)}


def label_column(schema: Any, image: str, named: Iterable[str], labels: str | None, name: str) -> tuple[str, tuple[str, ...]]:
    """The column to learn: `labels`, else the likely one, '' for none; and notes of what else could be, or is not and why.

    Raises UserError where `labels` is none that can be.
    """
    import pyarrow as pa

    def fit(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_floating)
        return any(is_one(kind) for is_one in kinds)

    columns = [column for column in schema if column.name != image and column.name.isprintable()]
    columns = [c for c in columns if c.name.lower() not in splits.COLUMNS or c.name == labels]
    named = [column for column in named if column.lower() not in splits.COLUMNS or column == labels]
    can = [c.name for c in columns if fit(c.type)]
    unfit = {c.name: f"column '{c.name}' is not taken for labels, being {_kind(c.type)}: {_NUMBERS}" for c in columns}
    unfit = {column: said for column, said in unfit.items() if column not in can}
    if labels in unfit:
        raise UserError(f"{name}: {unfit[labels]}")
    chosen = likely(can, LABEL_NAMES, named, labels, name)
    numbers = [c.name for c in columns if _is_list(c.type) and not NO_CLASS.search(c.name) and fit(c.type.value_type)]
    why = [said for column, said in unfit.items() if column in LABEL_NAMES or (not chosen and column in numbers)]
    others = [word for word in can if word not in (*LABEL_NAMES, *named) and not NO_CLASS.search(word)] if not chosen else []
    could = f"no labels are taken: none of {some([*map(repr, others)])} is called '{LABEL_NAMES[0]}'; --labels NAME takes one"
    whole = [c.name for c in columns if not pa.types.is_floating(c.type)]  # floats are mostly measured
    kinds = [word for word in can if word in (*LABEL_NAMES, *named) or (word in whole and not NO_CLASS.search(word))]
    return chosen, (*by_default(labels, chosen, kinds if chosen else ()), *why, *((could,) if others else ()))


def split_column(schema: Any) -> str:
    """The column that is called as a split, of words or whole numbers; '' if there is none."""
    import pyarrow as pa

    def fit(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))

    return next((c.name for c in schema if c.name.lower() in splits.COLUMNS and fit(c.type)), "")


def rows_parts(
    titles: list[str], rows: list[int], schema: Any, read: Callable[[str], Coded], named: dict[str, list[str]]
) -> tuple[tuple[list[str], NDArray[np.int64]], tuple[str, ...]]:
    """Parts, and the place in them of each row: by the names of files of so many rows, else by a column; and what to say.

    read: values of a column, and codes of its rows.
    """
    by_files = splits.parts(titles), np.repeat(np.arange(len(rows)), rows)
    column = split_column(schema)
    if not column or splits.held_out_parts(*by_files) is not None:
        return by_files, splits.unnamed(titles, rows)
    unique, codes = read(column)
    if names := named.get(column):
        unique = [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in unique]
    by_column, said = splits.by_values(column, unique, codes)
    return by_column or by_files, said


def column_labels(
    schema: Any,
    image: str,
    named: dict[str, list[str]],
    labels: str | None,
    name: str,
    read: Callable[[str], Coded],
    parts: tuple[list[str], NDArray[np.int64]],
) -> tuple[Labels | None, tuple[str, ...]]:
    """Labels of a table whose columns are read by `read`, and what to say of them. Raises UserError."""
    chosen, notes = label_column(schema, image, named, labels, name)
    if not chosen:
        return None, notes
    found, guessed = classes_of(*read(chosen), named.get(chosen), bool(labels), f"{name}, column '{chosen}'")
    return found and splits.split_labels(chosen, *found, *parts), notes + guessed


def _kind(kind: Any) -> str:
    return "a list in each row" if _is_list(kind) else f"of type {kind}"


def classes_of(
    unique: list[Any], codes: NDArray[np.int64], names: list[str] | None, asked: bool, where: str
) -> tuple[tuple[tuple[str, ...], NDArray[np.int64]] | None, tuple[str, ...]]:
    """As `class_values`, of floats as well, if they are whole numbers (not-a-number: none); else None; and a note of either.

    Raises UserError where labels with fractions were asked for.
    """
    if not any(isinstance(value, float) for value in unique):
        return class_values(unique, codes, names, where), ()
    known = [None if value is None or value != value else value for value in unique]
    if all(value is None or float(value).is_integer() for value in known):
        numbers = [None if value is None else int(value) for value in known]
        return class_values(numbers, codes, names, where), (f"{where}: labels are floats, taken as the whole numbers they are",)
    said = f"{where} is not taken for labels, as it holds numbers with fractions: {_NUMBERS}"
    if asked:
        raise UserError(said)
    return None, (said,)


def likely(fit: list[str], words: Iterable[str], named: Iterable[str], labels: str | None, name: str) -> str:
    """Of what could be labels: `labels`, else by a usual word, else one whose classes have names, else ''. Raises UserError."""
    fit = [column for column in fit if column.isprintable()]  # messages name them
    first = list(dict.fromkeys(column for column in (*words, *named) if column in fit))
    return pick(labels, tuple(dict.fromkeys([*first, *fit])), name) if labels or first else ""


def encoded(array: Any) -> tuple[list[Any], NDArray[np.int64]]:
    """Values of an Arrow array, each once, and the place in them of every row (n,); -1 for null."""
    import pyarrow as pa

    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)


def features(schema: Any) -> Any:
    """What the 'huggingface' metadata of a schema tells of its columns."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}


def class_names(found: Any) -> dict[str, list[str]]:
    """Names of classes by column, from Hugging Face's features."""
    if not isinstance(found, dict):
        return {}
    named = {str(column): f["names"] for column, f in found.items() if isinstance(f, dict) and isinstance(f.get("names"), list)}
    return {column: [str(name) for name in names] for column, names in named.items() if names}


def parts_of(images: Any) -> tuple[Any, Any]:
    """The bytes of a column or array of images, and the paths if it has any."""
    import pyarrow as pa

    if not pa.types.is_struct(images.type):
        return images, None
    parts = dict(zip(_fields(images.type), images.flatten(), strict=True))
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


def below(paths: list[str]) -> list[str]:
    """Paths as they are below the folder that all lie in: the same in every place that a set lies."""
    common = os.path.commonpath([PurePath(path).parent for path in paths])
    return [PurePath(path).relative_to(common).as_posix() for path in paths]


def most_memory() -> int:
    """What one thing in a file may take: half of the machine's memory; more is taken for a decompression bomb."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # not on every system
        return 4 << 30
