"""Which columns of a table say what: as they were asked for, else as their names and cells make obvious."""

import re
from collections.abc import Iterable, Sequence, Set

from jepakit.core.errors import UserError
from jepakit.data.formats.tables import LABEL_NAMES
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.join import stem
from jepakit.data.labels.table import TableCells, TableSettings
from jepakit.data.sources import evenly

IMAGE_COLUMNS = re.compile(r"(?i)(image|img|file|photo|slide|scan)?[_ -]?(path|file|name|image|img|id|index|uid|uuid)s?")
_GROUPS = re.compile(r"(?i)(patient|subject|participant|animal|donor|individual|group|case)s?([_ -]?(id|no|number|name))?")
_SPLITS = re.compile("|".join(splits.COLUMNS), re.IGNORECASE)
_LABELS = (*LABEL_NAMES, "target", "targets", "diagnosis", "category")
_SOME = 200  # rows by which the column of the images is found


def chosen_columns(table: TableCells, settings: TableSettings, titles: Sequence[str]) -> dict[str, list[str]]:
    """The columns that hold 'image' (one), 'labels', 'groups' and 'splits' (none, where none is named or obvious).

    Raises UserError where one that was asked for is not there, or nothing is left to name the images.
    """
    asked = {what: _asked(table, settings, what) for what in ("image", "labels", "groups", "splits")}
    image = asked["image"] or [_image_column(table, titles, {*asked["labels"], *asked["splits"]})]
    others = [name for name in table.cells if name not in image]
    by_name = {name.lower(): name for name in reversed(others)}
    labels = next(([by_name[word]] for word in _LABELS if word in by_name), [])
    obvious = {"labels": labels, "groups": guessed(others, _GROUPS), "splits": guessed(others, _SPLITS)}
    return {"image": image, **{what: asked[what] or found for what, found in obvious.items()}}


def guessed(names: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    """The first name that is as the pattern says, in a list; none where there is none."""
    return next(([name] for name in names if pattern.fullmatch(name)), [])


def _asked(table: TableCells, settings: TableSettings, what: str) -> list[str]:
    word = getattr(settings, what)
    several = what == "labels" and word and word not in table.cells  # a column's name may hold a comma
    names = [name.strip() for name in word.split(",") if name.strip()] if several else [word] if word else []
    return [table.column(name, f"--{what}") for name in names]


def _image_column(table: TableCells, titles: Sequence[str], taken: Set[str]) -> str:
    """The column whose cells most often name an image; of several alike the first with a usual name. Not one of `taken`."""
    stems, free = {stem(title) for title in titles}, [name for name in table.cells if name not in taken]
    if not free:
        raise UserError(f"{table.name}: no column is left that could name the images by their paths, names or stems")

    def best(rows: Sequence[int]) -> tuple[int, bool, str]:
        scores = ((sum(stem(table.cells[name][row]) in stems for row in rows), name) for name in free)
        return max(((count, bool(IMAGE_COLUMNS.fullmatch(name)), name) for count, name in scores), key=lambda found: found[:2])

    found = best(evenly(len(table.lines), _SOME).tolist())
    return (found if found[0] else best(range(len(table.lines))))[2]
