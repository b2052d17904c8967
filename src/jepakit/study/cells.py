"""Cells of a study: a base, and settings of it that are changed one lever after the other."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from jepakit.config.config import Config, merge, nested
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError, nearest

Change = Mapping[str, Any]  # dotted names of settings, and their values
BASE = "base"  # the lever of a cell in which none is turned; a lever's value that changes nothing


@dataclass(frozen=True)
class Lever:
    """One thing to turn, and its values; regulariser: what they are settings of, put in where the base has another."""

    name: str
    values: tuple[Change, ...]
    regulariser: Change = field(default_factory=dict)

    def belongs(self, config: Config) -> bool:
        """Whether these settings have the regulariser that the values are settings of."""
        return not self.regulariser or getattr(config.regularizer, "kind", None) == self.regulariser["regularizer.kind"]


@dataclass(frozen=True)
class Look:
    """One evaluation of a run beside its own: words for `jepakit evaluate`, and the step of the checkpoint (0: the run's end)."""

    name: str
    words: tuple[str, ...] = ()
    step: int = 0
    baselines: bool = True  # judged here too, where the cell has them: on other images they are others


@dataclass(frozen=True)
class Cell:
    """One run of a study: the lever that is turned, what that changes, and what it is called whatever the seed."""

    lever: str
    change: Change
    called: str
    seed: int
    looks: tuple[Look, ...] = ()  # evaluations beside the run's own
    teacher: str = ""  # what the cell is called whose encoder gives the targets, of the same seed
    baselines: bool = True  # judged beside an untrained encoder and pixels

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.called}-seed{self.seed}"


def configuration(base: Mapping[str, Any], change: Change) -> Config:
    """All settings of a cell: `base` is a layer with its recipe's name. Raises UserError where they do not go together."""
    layer: dict[str, Any] = {}
    for key, value in change.items():
        layer = merge(layer, nested(key, value))
    return settings(base["recipe"], layer.pop("method", base.get("method")), dict(base), layer)


def grid(base: Mapping[str, Any], levers: Iterable[Lever], seeds: int) -> list[Cell]:
    """The base and, one lever at a time, each value that makes other settings; first all with the first seed."""
    at_base = configuration(base, {})
    cells, known = [Cell(BASE, {}, BASE, at_base.seed)], [at_base]
    for lever in levers:
        for value in lever.values:
            change = value if lever.belongs(at_base) else {**lever.regulariser, **value}
            config = _possible(base, change)
            if config is None or config not in known:
                cells.append(Cell(lever.name, change, slug(lever.name, value), at_base.seed))
                known += [config] if config else []
    return [replace(cell, seed=cell.seed + n) for n in range(seeds) for cell in cells]


def turning(base: Mapping[str, Any], levers: Iterable[Lever]) -> list[Lever]:
    """The levers, without the values that the base has."""
    at_base = configuration(base, {})
    return [replace(lever, values=tuple(v for v in lever.values if _possible(base, v) != at_base)) for lever in levers]


def chosen(levers: Sequence[Lever], names: Sequence[str] | None) -> list[Lever]:
    """The levers of these names; all for None. Raises UserError, with the nearest name."""
    known = {lever.name: lever for lever in levers}
    for name in names or ():
        if name not in known:
            raise UserError(f"--levers: unknown lever '{name}': choose from all, none, {', '.join(known)}{nearest(name, known)}")
    return [lever for lever in levers if names is None or lever.name in names]


def _possible(base: Mapping[str, Any], change: Change) -> Config | None:
    """A cell's settings; none where they do not go together, which its run will say."""
    with suppress(UserError):
        return configuration(base, change)
    return None


def quarter_ends(depth: int) -> list[int]:
    """The last block of each quarter: all of 4; 2, 5, 8 and 11 of 12 (Bootleg, arXiv 2603.15553)."""
    return sorted({max(1, depth * n // 4) - 1 for n in (1, 2, 3, 4)})


def words(change: Change) -> list[str]:
    """The same as words of the command line."""
    return [f"{key}={_yaml(value)}" for key, value in change.items()]


def evaluations(cell: Cell, run: str, own: Sequence[str]) -> list[list[str]]:
    """Command lines that judge a cell's run: its own evaluation, with the words `own`, and then its further looks."""

    def judged(of: str, words: Sequence[str], baselines: bool) -> list[str]:
        return ["evaluate", of, *words, *([] if cell.baselines and baselines else ["baselines=false"])]

    looks = []
    for look in cell.looks:
        of, out = f"{run}@{look.step}" if look.step else run, f"{run}/evaluation/{look.name}"
        looks.append(judged(of, ["--out", out, *look.words], look.baselines))
    return [judged(run, own, True), *looks]


def label(change: Change) -> str:
    """Short words for people: the last part of each name."""
    return " ".join(word[word.rfind(".", 0, word.find("=")) + 1 :] for word in words(change)) or BASE


def slug(lever: str, value: Change) -> str:
    """A folder's name."""
    return "-".join([lever, *(re.sub(r"[^\w.]+", "_", _yaml(each)).strip("_") or "none" for each in value.values())])


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return json.dumps(value, separators=(",", ":"))
