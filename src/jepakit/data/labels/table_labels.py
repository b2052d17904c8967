"""Labels, groups and a split of a source's images from the rows of a table."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.core.files import user_path
from jepakit.data.formats.folder import FilesSource, leaves
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.group_split import group_split
from jepakit.data.labels.join import Join, joined_rows
from jepakit.data.labels.table import TableCells, TableSettings, read_table
from jepakit.data.labels.table_columns import IMAGE_COLUMNS, chosen_columns, guessed
from jepakit.data.labels.table_values import values_of
from jepakit.data.sources import Labels, Source
from jepakit.data.training_part import held_out
from jepakit.data.unread_files import plural, some
from jepakit.data.volumes.source import VolumeSource

_Parts = tuple[list[str], NDArray[np.int64]]  # words for train, test and validation, and the place in them of each image
_OF_OTHERS = ("--labels", "may tell labels")  # in notes on labels of the source's own


def with_table(source: Source, settings: TableSettings) -> Source:
    """A source that was just opened, with the labels, groups and split that a table tells; as it is where no file is named.

    What the table does not tell stays as the source says it. What does not join, and what is guessed, is said in its `notes`.
    Raises UserError where a column is not there, nothing joins, rows contradict each other, or labels are not as asked for.
    """
    if not settings.file:
        return source
    told = _Told.of(source, settings)
    own = tuple(note for note in source.notes if not any(words in note for words in _OF_OTHERS))
    parts, split_notes = told.parts()
    by_column = parts is not None
    source.held_out = held = splits.held_out_parts(*parts) if parts else held_out(source)
    if not parts and held is not None:
        parts = ["train", "test"], held.astype(np.int64)
    groups, group_names, group_notes = told.groups(held)
    if groups is None:
        groups, group_names = _own_groups(source)
    labels, label_notes = told.labels(source.labels, parts, by_column)
    if labels is not None and groups is not None:
        labels = group_split(replace(labels, groups=groups, group_names=group_names))
    source.labels = labels
    source.notes = (*own, *told.join_notes(), *label_notes, *group_notes, *split_notes)
    return source


def _own_groups(source: Source) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """What belongs together without a table's word: what the source's labels say, else the slices of a volume."""
    if source.labels is not None and source.labels.groups is not None:
        return source.labels.groups, source.labels.group_names
    if isinstance(source, VolumeSource):
        return source.volume_of, tuple(volume.name for volume in source.volumes)
    return None, ()


def listed_images(place: str | os.PathLike[str], settings: TableSettings) -> Source:
    """The images that a table names, as paths below the folder `place`, in the order of its rows, each once.

    Rows without such a file are counted in `notes`. Raises UserError where there is none, or `place` is no folder.
    """
    root, table = Path(place), read_table(user_path(settings.file or "", "table"))
    if not root.is_dir():
        raise UserError(f"--listed takes the images from a folder, and {place} is none: give --data FOLDER")
    of = [table.column(settings.image, "--image")] if settings.image else guessed([*table.cells], IMAGE_COLUMNS)
    if not of:
        raise UserError(f"--listed: no column of {table.name} is called as paths are: say with --image NAME which holds them")
    given = [cell.replace("\\", "/") for cell in table.cells[of[0]] if cell]
    paths = dict.fromkeys(os.path.normpath(os.path.relpath(cell, root) if os.path.isabs(cell) else cell) for cell in given)
    files = [file for file in paths if not leaves(file) and (root / file).is_file()]
    missing = [plain(file) for file in paths.keys() - {*files}]
    if not files:
        raise UserError(
            f"no row of {table.name}, column '{plain(of[0])}', names a file below {root} ({_three(given)}): say with --image "
            f"which column does, or give another --data"
        )
    source = FilesSource(root, files, None)
    if missing:
        which = f"{plural(len(missing), 'path')} of {table.name} left out"
        source.notes = (f"{which}, without a file below {root}: {_three(missing)}",)
    return source


@dataclass(frozen=True)
class _Told:
    """What a table tells of the images of these titles. columns: by what they say; asked: what of that was asked for by name."""

    table: TableCells
    titles: Sequence[str]
    place: str
    join: Join
    columns: dict[str, list[str]]
    settings: TableSettings

    @classmethod
    def of(cls, source: Source, settings: TableSettings) -> "_Told":
        """Raises UserError where a column is not there, nothing joins, or two rows of an image say different things."""
        table = read_table(user_path(settings.file or "", "table"))
        titles = [source.title(index) for index in range(len(source))]
        volumes = [volume.name for volume in source.volumes] if isinstance(source, VolumeSource) else []
        columns = chosen_columns(table, settings, [*titles, *volumes])
        root = os.path.realpath(source.root) if isinstance(source, FilesSource | VolumeSource) else ""
        cells, folder = table.cells[columns["image"][0]], os.path.realpath(table.path.parent)
        joined = joined_rows(cells, titles, folder, root)
        if isinstance(source, VolumeSource):  # a row may be a volume's, and so of all its slices
            whole = joined_rows(cells, volumes, folder, root)
            whole = replace(whole, rows=whole.rows[source.volume_of])
            joined = whole if whole.joined > joined.joined else joined
        told = cls(table, titles, source.name, joined, columns, settings)
        told.require_joined()
        told.require_agreeing()
        return told

    def require_joined(self) -> None:
        """Raises UserError where no image has a row, with three examples of each side."""
        if self.join.joined:
            return
        column, several, one = self.columns["image"][0], self.join.ambiguous, self.join.contested
        said = f"{self.table.name}: no row names an image of {plain(self.place)}: column '{plain(column)}' holds "
        said += f"{_three(self.table.cells[column])}; the images are {_three(self.titles)}"
        why = f"{plural(len(several), 'row')} could be of several images each: write paths" if several else ""
        why = f"by {self.join.how} {len(one):,} rows are several of one image: write paths that tell them apart" if one else why
        raise UserError(f"{said}: {why or 'say with --image which column names them'}")

    def require_agreeing(self) -> None:
        """Raises UserError where two rows of one image differ in what is used of them."""
        used = [name for what, names in self.columns.items() for name in names if what != "image"]
        differ = [(a, b, name) for a, b in self.join.double for name in used if self._cell(name, a) != self._cell(name, b)]
        if differ:
            (a, b, name), lines = differ[0], self.table.lines
            both = f"'{plain(self._cell(name, a))}' and '{plain(self._cell(name, b))}'"
            image = plain(self._cell(self.columns["image"][0], b))
            more = len({b for _, b, _ in differ}) - 1
            raise UserError(
                f"{self.table.name}: lines {lines[a]} and {lines[b]} are both of {image} and say {both} in '{plain(name)}'"
                + (f", as do {more:,} more such rows" if more else "")
                + ": leave one row for each image"
            )

    def _cell(self, column: str, row: int) -> str:
        return self.table.cells[column][row]

    def join_notes(self) -> list[str]:
        """What of the table and of the images came together, and what did not, with counts and names."""
        found, table, image = self.join, self.table, self.columns["image"][0]
        cells, without = table.cells[image], np.flatnonzero(found.rows < 0)
        how = f"by {found.how}, column '{plain(image)}'" + self._guess("image")
        notes = [f"{table.name}: {found.joined:,} of {len(self.titles):,} images have a row of {len(cells):,}, {how}"]
        if found.strangers:
            rows = plural(len(found.strangers), "row")
            notes.append(f"{rows} of {table.name} without an image here: {_three([cells[row] for row in found.strangers])}")
        if found.ambiguous:
            which = f"{plural(len(found.ambiguous), 'row')} of {table.name}, {_three([cells[row] for row in found.ambiguous])}"
            notes.append(f"{which}: of several images each, so that none is labelled by it: write paths in the table")
        if found.contested:
            which = f"{len(found.contested):,} rows of {table.name}, {_three([cells[row] for row in found.contested])}"
            notes.append(f"{which}: several of one image by {found.how}, so that none is its: write paths that tell them apart")
        if len(without):
            images = f"{plural(len(without), 'image')} without a row of {table.name}, and so without a label"
            notes.append(f"{images}: {_three([self.titles[index] for index in without[:4].tolist()], len(without))}")
        if found.double:
            notes.append(f"{plural(len(found.double), 'row')} of {table.name} repeated, saying the same")
        return notes

    def parts(self) -> tuple[_Parts | None, tuple[str, ...]]:
        """Words for the parts of a split, and the place in them of each image (n,), None without a column of them; and notes."""
        if not (names := self.columns["splits"]):
            return None, ()
        words, codes = self._coded(names[0])
        found, notes = splits.by_values(names[0], words, codes)
        if found is None and self.settings.splits:
            raise UserError(
                f"{self.table.name}: column '{plain(names[0])}' is no split: it holds {_three(words)}, and words for train and "
                f"for test or validation are needed"
            )
        return found, notes

    def groups(self, held: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64] | None, tuple[str, ...], list[str]]:
        """The group of each image (n,), one of its own for an image without, their names, and notes. held (n,): a given split."""
        if not (names := self.columns["groups"]):
            return None, (), []
        words, codes = self._coded(names[0])
        alone = codes < 0
        groups = np.where(alone, len(words) + np.cumsum(alone) - 1, codes)
        notes = [f"groups are column '{plain(names[0])}'{self._guess('groups')}: {len(words):,}"]
        if held is not None:
            both = np.intersect1d(codes[held & ~alone], codes[~held & ~alone])
            if len(both):
                which = f"{len(both):,} of {plural(len(words), 'group')} ({_three([words[code] for code in both.tolist()])})"
                notes.append(
                    f"{which} have images on both sides of the given split: what is measured on it is no test on new ones of "
                    f"'{plain(names[0])}'; a split made here divides no group"
                )
        return groups, tuple(words), notes

    def labels(self, own: Labels | None, parts: _Parts | None, by_column: bool) -> tuple[Labels | None, list[str]]:
        """The labels of all images, by the table's columns or else the source's own, held out by `parts`; and notes.

        by_column: the parts are a column's, so that they count for the source's own labels, too.
        """
        given = parts or (["train"], np.zeros(len(self.titles), np.int64))
        if not (names := self.columns["labels"]):
            free = [repr(plain(name)) for name in self.table.cells if [name] not in self.columns.values()]
            notes = [f"no labels are taken from {self.table.name}: --labels NAME takes a column ({some(free)})"] if free else []
            if own is None or not by_column:
                return own, notes
            found = splits.split_labels(own.name, own.classes, own.values, *given)
            return replace(found, groups=own.groups, group_names=own.group_names, whole_image=own.whole_image), notes
        told, name = values_of(self.table, names, self.settings.kind), ", ".join(names)
        values, targets = told.of(self.join.rows)
        if not (values >= 0).any():
            raise UserError(f"{self.table.name}: column '{plain(name)}' holds no label of any image here: its cells are empty")
        labels = splits.split_labels(name, told.classes, values, *given)
        if targets is not None:
            targets[labels.values < 0] = np.nan
        labels = replace(labels, targets=targets, whole_image=own is not None and own.whole_image)
        said = "" if "labels" in self._asked else ", guessed by its name"
        return group_split(labels), [f"labels are column '{plain(name)}'{said}: {told.said}"]

    @property
    def _asked(self) -> set[str]:
        return {name for name in self.columns if getattr(self.settings, name)}

    def _guess(self, what: str) -> str:
        return "" if what in self._asked else f" (guessed; --{what} names another)"

    def _coded(self, column: str) -> tuple[list[str], NDArray[np.int64]]:
        """Words of the images' rows, sorted, and the place in them of each image (n,), -1 for none."""
        cells = [*self.table.cells[column], ""]  # the last for images without a row
        here = [cells[row] for row in self.join.rows.tolist()]
        words = sorted({*here} - {""})
        place = {word: code for code, word in enumerate(words)}
        return words, np.array([place.get(word, -1) for word in here], np.int64)


def _three(names: Sequence[str], count: int | None = None) -> str:
    return some([repr(plain(name)) for name in names[:4]], len(names) if count is None else count)
