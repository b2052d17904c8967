"""A study that repeats a paper's table or figure: panels of points, and the cells that their runs are.

A panel is one table or figure; a point of it is a run that differs from the base, or an evaluation of such a run that
differs. Points whose runs have the same settings share the run.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jepakit.config.config import Config
from jepakit.core.errors import UserError, nearest
from jepakit.study.cells import Cell, Change, Look, configuration, evaluations, words
from jepakit.study.table import OWN

SNAPSHOTS = 4  # snapshots of a run that is judged on its way, evenly


@dataclass(frozen=True)
class Point:
    """A line of a panel. change: of the run's settings; evaluate: settings of its evaluation; share: of the run, at which it is
    judged; published: what the paper has; teacher: the point whose encoder gives the targets (target.teacher)."""

    called: str
    change: Change = field(default_factory=dict)
    published: str = ""
    evaluate: tuple[str, ...] = ()
    share: float = 1.0
    teacher: str = ""


@dataclass(frozen=True)
class Panel:
    """Points to compare, and where the numbers published beside them are from ("" where there are none)."""

    name: str
    points: tuple[Point, ...]
    source: str = ""


@dataclass(frozen=True)
class PaperStudy:
    """asks: the question; panels: given the base's settings; recipe, words: the base at --scale paper; tasks: of every run's own
    evaluation; also: evaluations of every run on other sets."""

    asks: str
    panels: Callable[[Config], tuple[Panel, ...]]
    recipe: str = "ijepa_vitl16"
    words: tuple[str, ...] = ()
    tasks: str = "rankme,knn,linear"
    also: tuple[Look, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a point's numbers are: the cell whatever the seed, and the name of the evaluation."""

    cell: str
    look: str


@dataclass(frozen=True)
class StudyRuns:
    """Cells of all seeds, the first seed's first, and the place of each point by (panel, point)."""

    cells: list[Cell]
    places: dict[tuple[str, str], Place]


def chosen_panels(panels: Sequence[Panel], names: Sequence[str] | None) -> tuple[Panel, ...]:
    """The panels of these names; all for None. Raises UserError, with the nearest name."""
    known = {panel.name: panel for panel in panels}
    for name in names or ():
        if name not in known:
            raise UserError(f"--levers: unknown panel '{name}': choose from all, {', '.join(known)}{nearest(name, known)}")
    return tuple(panel for panel in panels if names is None or panel.name in names)


def layout(
    base: Mapping[str, Any], panels: Sequence[Panel], seeds: int, steps: int, evaluation: Sequence[str], also: Sequence[Look] = ()
) -> StudyRuns:
    """The cells of all panels: a run for each settings, with the evaluations that its points ask for.

    steps: updates of a run; evaluation: words of a run's own evaluation; also: evaluations of every run. Raises UserError.
    """
    runs: dict[str, Cell] = {}
    places: dict[tuple[str, str], Place] = {}
    for panel in panels:
        called_by_point = {point.called: _called(panel, point) for point in panel.points}
        for point in panel.points:
            config = configuration(base, point.change)
            key = json.dumps([config.model_dump(mode="json"), point.teacher], sort_keys=True)
            teacher = places[panel.name, point.teacher].cell if point.teacher else ""
            cell = runs.get(key) or Cell(panel.name, point.change, called_by_point[point.called], config.seed, teacher=teacher)
            look = _look(point, steps, evaluation)
            known = {each.name for each in cell.looks}
            runs[key] = replace(cell, looks=(*cell.looks, *([look] if look and look.name not in known else [])))
            places[panel.name, point.called] = Place(cell.called, look.name if look else OWN)
    once = [replace(cell, looks=(*cell.looks, *also)) for cell in runs.values()]
    every = [replace(cell, seed=cell.seed + n, baselines=cell is once[0]) for n in range(seeds) for cell in once]
    return StudyRuns(every, places)


def snapshot_settings(panels: Sequence[Panel], steps: int) -> dict[str, int]:
    """Settings of `run` that keep the encoders which points before a run's end are judged at."""
    if all(point.share == 1 for panel in panels for point in panel.points):
        return {}
    return {"keep_every_steps": max(1, steps // SNAPSHOTS)}


def _look(point: Point, steps: int, evaluation: Sequence[str]) -> Look | None:
    """The evaluation that a point asks for; none where it is the run's own, beside which baselines are judged."""
    if not point.evaluate and point.share == 1:
        return None
    at = 0 if point.share == 1 else round(point.share * SNAPSHOTS) * max(1, steps // SNAPSHOTS)
    name = _file_name("-".join([*([f"step-{at}"] if at else []), *(word.partition(".")[2] for word in point.evaluate)]))
    return Look(name, (*evaluation, *point.evaluate), at, baselines=False)


def _called(panel: Panel, point: Point) -> str:
    """The name of a cell's folder: its panel, and what sets it apart."""
    return _file_name("-".join([panel.name, point.called]))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")


def commands(cell: Cell, base: Sequence[str], run: str, own: Sequence[str]) -> list[list[str]]:
    """A cell as command lines: `pretrain` into the folder `run`, `evaluate` at its end, and its further evaluations.

    base: words of `pretrain` before the cell's own; own: words of the evaluation at the end.
    """
    there = f"{run}/{cell.name}"
    teacher = [f"target.teacher={run}/{replace(cell, called=cell.teacher).name}"] if cell.teacher else []
    train = ["pretrain", *base, "--out", there, *words(cell.change), *teacher, f"seed={cell.seed}"]
    return [train, *evaluations(cell, there, own)]
