"""A table beside images: the settings that name it and its columns, and its cells, read from CSV, TSV or Parquet."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pydantic import Field, ValidationError

from jepakit.core.errors import UserError, line_of, nearest, plain
from jepakit.core.files import user_path
from jepakit.core.settings import Settings
from jepakit.data.formats.tables import require_pyarrow
from jepakit.data.sources import LabelKind

_ENDINGS = (".csv", ".tsv", ".parquet")
_DELIMITERS = ",;\t"  # that a .csv may have, the likeliest first
_HEAD = 1 << 16  # characters that tell the sign between cells
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class TableSettings(Settings):
    """A table of what is known of the images, a row for each, and which of its columns say what."""

    file: str | None = Field(None, description="a .csv, .tsv or .parquet file with a row for each image; none: no table")
    labels: str | None = Field(
        None, description="its column of labels, or several with commas between; none: one called label or the like"
    )
    groups: str | None = Field(
        None, description="its column of what images belong together (patient, slide, site); none: one called patient or the like"
    )
    splits: str | None = Field(None, description="its column of words for train, validation and test; none: one called split")
    image: str | None = Field(
        None, description="its column of the images' paths, names or stems; none: the one that fits the images best"
    )
    kind: LabelKind | None = Field(
        None, description="what labels are: a class, a number, or multi for several at once; none: as the column looks"
    )
    listed: bool = Field(False, description="the images are those that the table names, as paths below data; others are left out")

    def absolute(self) -> "TableSettings":
        """The same, to be read from any working folder."""
        return self.model_copy(update={"file": os.path.abspath(os.path.expanduser(self.file))}) if self.file else self


class TableColumns(TypedDict, total=False):
    """What the verbs take as keywords beside a table and `labels`: its settings. as_: `kind`."""

    groups: str | None
    splits: str | None
    image: str | None
    as_: LabelKind | None
    listed: bool


COLUMN_WORDS = ("labels", *TableColumns.__annotations__)
GivenTable = str | Path | Mapping[str, Any] | TableSettings  # what verbs take as a table


def table_settings(table: GivenTable | None, columns: Mapping[str, Any]) -> TableSettings | None:
    """The settings of a table given as a path, as a mapping of these settings or as the settings, and columns over them.

    None where there is no table. columns: those of COLUMN_WORDS, None for one that was not given. Raises UserError for others,
    and for columns without a table, but for `labels`, which sets without one have too.
    """
    for name in columns:
        if name not in COLUMN_WORDS:
            raise UserError(f"there is no argument '{name}'{nearest(name, COLUMN_WORDS)}")
    given = {"kind" if name == "as_" else name: value for name, value in columns.items() if value not in (None, False)}
    if table is None:
        if alone := next((name for name in given if name != "labels"), None):
            raise UserError(f"--{'as' if alone == 'kind' else alone} is said of a table: give one, with --table FILE.csv")
        return None
    if isinstance(table, TableSettings):
        given = {**table.model_dump(), **given}
    elif isinstance(table, Mapping):
        given = {**table, **given}
    else:
        given = {"file": os.fspath(user_path(table, "table")), **given}
    try:
        return TableSettings.model_validate(given)
    except ValidationError as error:
        raise UserError(f"table: {'.'.join(map(str, error.errors()[0]['loc']))}: {line_of(error)}") from None


def table_layer(settings: TableSettings | None) -> dict[str, Any]:
    """The layer of settings that names a table; empty where there is none."""
    return {"table": settings.model_dump(exclude_unset=True)} if settings else {}


def label_options(labels: str | None, settings: TableSettings | None) -> list[str]:
    """Options of the command line that name labels, or a table and its columns."""
    if settings is None or not settings.file:
        return ["--labels", labels] if labels else []
    given = settings.absolute().model_dump(exclude_defaults=True)
    flags = {"file": "table", "kind": "as"}
    words = (["--listed"] if value is True else [f"--{flags.get(name, name)}", value] for name, value in given.items())
    return [word for pair in words for word in pair]


@dataclass(frozen=True)
class TableCells:
    """The cells of a table as text without blanks around it, '' for an empty one, each column (rows,) by its name.

    lines: of each row in the file (rows,), as an editor counts; in Parquet the number of the row, from 1.
    """

    path: Path
    cells: dict[str, list[str]]
    lines: Sequence[int]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def column(self, name: str, what: str) -> str:
        """The name of a column that is there. what: says in the error what it was to be. Raises UserError, with the nearest."""
        if name not in self.cells:
            have = ", ".join(f"'{plain(column)}'" for column in self.cells)
            raise UserError(f"{self.name} has no column '{plain(name)}' ({what}), but {have}{nearest(name, self.cells)}")
        return name


def read_table(path: Path) -> TableCells:
    """The cells of a .csv, .tsv or .parquet file. Raises UserError where it cannot be read, or holds no rows."""
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise UserError(f"table {path}: give a file of {', '.join(_ENDINGS)}" + ("" if path.exists() else "; it is not there"))
    if not path.is_file():
        raise UserError(f"table {path}: there is no such file")
    names, rows, lines = _parquet(path) if ending == ".parquet" else _text(path, "\t" if ending == ".tsv" else "")
    if twice := next((name for i, name in enumerate(names) if name and name in names[:i]), None):
        raise UserError(f"{path.name} has several columns '{plain(twice)}': rename them")
    if not rows:
        raise UserError(f"{path.name} holds no rows below its names of columns")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return TableCells(path, {name: list(cells) for name, cells in columns if name}, lines)


def _text(path: Path, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Names of columns, rows and their lines. delimiter: '' for the one that gives the first line the most columns."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in _UTF16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is no UTF-8 text (byte {error.start:,}): save it as CSV UTF-8") from None
    delimiter = delimiter or max(_DELIMITERS, key=lambda sign: len(next(csv.reader(_lines_of(text[:_HEAD]), delimiter=sign), [])))
    reader = csv.reader(_lines_of(text), delimiter=delimiter, strict=True)
    rows, lines, before = [], [], 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise UserError(f"{path.name}, line {before + 1}: {error}: put cells with quotes or line ends in quotes") from None
    names = rows[0] if rows else []
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            said = f"{len(row)} cells, and the first line has {len(names)}"
            raise UserError(f"{path.name}, line {line}: {said}: put cells that hold '{plain(delimiter)}' in quotes")
    return names, rows[1:], lines[1:]


def _lines_of(text: str) -> io.StringIO:
    """Its lines with the ends that they have, which may stand in cells, too."""
    return io.StringIO(text, newline="")


def _parquet(path: Path) -> tuple[list[str], list[tuple[str, ...]], Sequence[int]]:
    """As `_text`, of columns that hold text, numbers or yes and no; lists of words become 'a|b'."""
    require_pyarrow(str(path))
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import types

    def words(kind: Any) -> bool:
        return bool(types.is_list(kind) and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)))

    try:
        schema = pq.read_schema(path)
        names = [f.name for f in schema if words(f.type) or not (types.is_nested(f.type) or types.is_binary(f.type))]
        found = pq.read_table(path, columns=names)
        columns = [[_cell(value) for value in found.column(name).to_pylist()] for name in names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read as Parquet: {line_of(error)}") from None
    return names, list(zip(*columns, strict=True)), range(1, len(columns[0]) + 1 if columns else 1)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return "|".join(map(_cell, value)) if isinstance(value, list) else str(value).strip()
