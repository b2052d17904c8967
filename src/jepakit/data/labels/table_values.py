"""What a table's cells say: a class, a number, or several labels at once of each row."""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.data.labels.table import TableCells
from jepakit.data.sources import LabelKind
from jepakit.data.unread_files import plural, some

FEW = 20  # different whole numbers that still count as classes
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NOTHING = {"na", "n/a", "nan", "null", "none", "-"}  # words that stand for an empty cell in a column of numbers
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Values:
    """Labels of a table's rows; classes, values (rows,) and targets (rows,) or (rows, L) as in `Labels`. said: in words."""

    classes: tuple[str, ...]
    values: NDArray[np.int64]
    targets: NDArray[np.float64] | None
    said: str

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Values and targets of images whose rows are rows (n,), -1 for none."""
        values = np.append(self.values, -1)[rows]
        if self.targets is None:
            return values, None
        nothing = np.full((1, *self.targets.shape[1:]), np.nan)
        return values, np.concatenate([self.targets, nothing])[rows]


def values_of(table: TableCells, names: Sequence[str], kind: LabelKind | None) -> Values:
    """The labels in one column or several, of the kind that is asked for, else as they look; an empty cell is none.

    Several columns are 0, 1 or a word for nothing each. One column: words with | between them are several labels at once; whole
    numbers of at most FEW values are classes, other numbers are numbers; words are classes. Raises UserError for other cells.
    """
    if len(names) > 1:
        if kind not in (None, "multi"):
            raise UserError(f"--as {kind} takes one column of labels, not {len(names)}: {', '.join(names)}")
        return _several(table, names)
    cells = table.cells[names[0]]
    words = {cell for cell in cells if cell}
    numbers = {word: float(word) for word in words if _NUMBER.fullmatch(word)}
    others = words - {*numbers}
    measured = bool(numbers) and {word.lower() for word in others} <= _NOTHING
    if kind == "multi" and _without_nothing(words) <= _truths(words).keys():
        return _several(table, names)
    if kind == "multi" or (kind is None and not measured and any("|" in word for word in words)):
        return _listed(cells)
    if kind == "number" and not measured:
        wrong = next((cell for cell in cells if cell in others), "")
        where = f" (line {table.lines[cells.index(wrong)]})" if wrong else ""
        raise UserError(
            f"{table.name}: column '{plain(names[0])}' holds '{plain(wrong)}'{where}, which is no number: numbers are written as "
            f"0.5 or 1e-3, and a cell without one is empty"
        )
    whole = all(number.is_integer() for number in numbers.values())
    if measured and kind != "class" and (kind == "number" or not whole or len({*numbers.values()}) > FEW):
        return _measured(cells, numbers, others, asked=kind is not None)
    return _classes(cells, numbers if measured else {}, others, asked=kind is not None)


def _measured(cells: Sequence[str], numbers: dict[str, float], others: set[str], *, asked: bool) -> Values:
    targets = np.array([numbers.get(cell, np.nan) for cell in cells])
    if not np.isfinite(list(numbers.values())).all():
        raise UserError("a column of labels holds a number too large to be one: write it in another unit")
    said = "numbers" + ("" if asked else " (--as class takes them as classes)") + _none_said(others)
    return Values((), np.where(np.isnan(targets), -1, 0), targets, said)


def _classes(cells: Sequence[str], numbers: dict[str, float], others: set[str], *, asked: bool) -> Values:
    """Classes in the order of their numbers, where all are numbers, else of their words."""
    if numbers:
        order = sorted({*numbers.values()})
        classes = tuple(str(int(number)) if number.is_integer() else repr(number) for number in order)
        place = {word: order.index(number) for word, number in numbers.items()}
        said = plural(len(classes), "class", "classes") + ("" if asked else " (--as number takes them as numbers)")
        said += _none_said(others)
    else:
        classes = tuple(sorted(others := {cell for cell in cells if cell}))
        place, said = {word: i for i, word in enumerate(classes)}, plural(len(classes), "class", "classes")
        said += _one_is_nothing(classes)
        if any(map(_NUMBER.fullmatch, classes)):
            odd = sorted(word for word in classes if not _NUMBER.fullmatch(word))
            said += f", some of them numbers beside words such as '{plain(odd[0])}': empty such cells to have numbers"
    return Values(classes, np.array([place.get(cell, -1) for cell in cells], np.int64), None, said)


def _none_said(others: Set[str]) -> str:
    return f"; {some([repr(word) for word in sorted(others)])} count{'s' * (len(others) < 2)} as empty" if others else ""


def _one_is_nothing(classes: Sequence[str]) -> str:
    """What to say of a class whose name may stand for none."""
    empty = sorted({*classes} - _without_nothing({*classes}))
    return f", of which '{plain(empty[0])}' is one: empty its cells if it stands for no label" if empty else ""


def _without_nothing(words: Set[str]) -> set[str]:
    return {word for word in words if word.lower() not in _NOTHING}


def _listed(cells: Sequence[str]) -> Values:
    """Several labels at once, of names with | between them; a cell without any is unlabelled."""
    given = [[name.strip() for name in cell.split("|") if name.strip()] for cell in cells]
    classes = tuple(sorted({name for names in given for name in names}))
    place = {name: i for i, name in enumerate(classes)}
    targets = np.zeros((len(cells), len(classes)))
    for row, names in enumerate(given):
        targets[row, [place[name] for name in names]] = 1
        if not names:
            targets[row] = np.nan
    return _multi(classes, targets, _one_is_nothing(classes))


def _several(table: TableCells, names: Sequence[str]) -> Values:
    """Several labels at once, of a column of 0 and 1 each; words for nothing are empty cells. Raises UserError for others."""
    targets, nothing = np.full((len(table.lines), len(names)), np.nan), set[str]()
    for at, name in enumerate(names):
        cells = table.cells[name]
        truths = _truths({*cells})
        nothing |= (none := {*cells} - _without_nothing({*cells}))
        if word := next((cell for cell in cells if cell and cell not in truths and cell not in none), ""):
            raise UserError(
                f"{table.name}: column '{plain(name)}' holds '{plain(word)}' (line {table.lines[cells.index(word)]}): where "
                f"several labels are given at once, each is 0 or 1, or empty where it is not known"
            )
        targets[:, at] = [truths.get(cell, np.nan) for cell in cells]
    return _multi(tuple(names), targets, _none_said(nothing))


def _multi(names: tuple[str, ...], targets: NDArray[np.float64], also: str) -> Values:
    values = np.where(np.isfinite(targets).any(1), 0, -1) if len(names) else np.full(len(targets), -1)
    said = f"{plural(len(names), 'label')} at once ({some([*map(plain, names)])}){also}"
    return Values(names, values, targets, said)


def _truths(words: set[str]) -> dict[str, float]:
    """Words for no and yes, and 0 and 1 for them."""
    found = {word: _TRUTH.get(word.lower(), float(word) if _NUMBER.fullmatch(word) else np.nan) for word in words}
    return {word: value for word, value in found.items() if value in (0, 1)}
