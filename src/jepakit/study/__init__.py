"""The verb `study`: many runs that differ in one thing each, as one command, and one table of what came of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from shlex import join
from typing import Any, NamedTuple, Unpack

import yaml

from jepakit.artifacts.run import Run
from jepakit.config.config import Config, overrides, setting_words
from jepakit.config.optim import Schedule
from jepakit.core.device import cores, device_of
from jepakit.core.errors import UserError, checked, nearest
from jepakit.core.files import load_json, save_json
from jepakit.core.progress import progress
from jepakit.core.signals import signals
from jepakit.data.labels.table import GivenTable, TableColumns, TableSettings, label_options, table_layer, table_settings
from jepakit.data.opening import absolute, named, open_source
from jepakit.data.training_part import training_part, with_split
from jepakit.study import small_data
from jepakit.study.cells import BASE, Cell, Lever, chosen, configuration, grid, turning
from jepakit.study.comparison import as_data, comparison, comparison_table
from jepakit.study.comparison_figure import save_figure
from jepakit.study.curves import save_curves
from jepakit.study.folder import claimed
from jepakit.study.judging import possible_tasks, two_sets
from jepakit.study.panels import PaperStudy, chosen_panels, layout, snapshot_settings
from jepakit.study.papers import PAPER_STUDIES
from jepakit.study.running import Forked, Job, Runner, run_jobs
from jepakit.study.scales import (
    RECIPE_OF_PAPERS,
    SCALES,
    SMOKE,
    SMOKE_EVALUATION,
    SMOKE_LOOKS,
    Scale,
    about_base,
    at_paper_scale,
    base_words,
)
from jepakit.study.search import Search
from jepakit.study.table import CellRow, save_table
from jepakit.study.theory import theory

log = logging.getLogger("jepakit")


SMALL_DATA, THEORY = "small-data", "theory"
STUDIES = (SMALL_DATA, *PAPER_STUDIES, THEORY)
# One linear head instead of six: what is compared is cells, and there are many
EVALUATION = ["linear.layers=[last]", "linear.heads=[bn]", "linear.weight_decay=[0]"]
TEXTURES = ": python benchmarks/textures.py textures makes a set to try it on, for --data textures"
PROBES_PER_RUN = 8  # online probes in a run; one a pass where it has fewer passes


@dataclass(frozen=True)
class _Work:
    """What a study runs: cells, the levers of a search, names in the table's order, settings of `run`, the text above the
    table of cells, and its figure, drawn once, when all is over or stopped."""

    cells: list[Cell]
    levers: Sequence[Lever]
    order: list[str]
    run: Mapping[str, int]
    head: Callable[[Sequence[CellRow]], str]
    draw: Callable[[Sequence[CellRow]], None]


@checked
def study(
    name: str,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    scale: Scale = "cpu",
    labels: str | None = None,
    table: GivenTable | None = None,
    levers: Sequence[str] | None = None,
    seeds: int | None = None,
    trials: int = 0,
    processes: int | None = None,
    set: Sequence[str] | str = (),
    **columns: Unpack[TableColumns],
) -> list[dict[str, Any]]:
    """Run a study: a grid of runs that differ in one thing each, or a paper's tables and figures (docs/study.md).

    data: images; for a paper's also a folder with left/ to pretrain on and probe/ to judge on; out: the study's folder (default
    runs/NAME), which goes on where it was stopped; scale: smoke (some steps), cpu, gpu, or paper, which prints command lines
    and forecasts; labels: which of a set's the evaluation takes; table, columns: as of `jepakit.pretrain`, of the images that are
    judged on; levers: names of levers or panels, none of them for no grid; seeds: runs of each cell (default 3; of small-data and
    at smoke 1); trials: of small-data's search over its levers together; processes: cells at a time (default: one a core, on
    CUDA one); set: 'group.key=value' words of the base. Leaves table.json, table.md and drawings in `out`; returns rows of all
    cells that are over, of which one that failed is one. Raises UserError.
    """
    _require(name, scale, trials)
    out, words, paper = Path(out or Path("runs") / name).expanduser(), setting_words(set), PAPER_STUDIES.get(name)
    number = seeds or (1 if scale == "smoke" or name == SMALL_DATA else 3)
    if name == THEORY:
        return theory(out, number, smoke=scale == "smoke")
    if paper and scale == "paper":
        for line in at_paper_scale(name, paper, number, words, EVALUATION):
            print(line, flush=True)
        return []
    told = table_settings(table, {**columns, "labels": labels})
    prepared = _prepared(name, data, out, scale, labels, told, levers, number, processes, words)
    rows = _run_in_folder(*prepared, trials)
    if prepared.runner.stopping:
        flags = {"data": data, "levers": levers, "seeds": seeds, "trials": trials, "processes": processes}
        given = [*label_options(labels, told), *words]
        log.info("stopped with %d cells over; go on with: %s", len(rows), _command(name, out, flags, scale, given))
    return rows


class _Prepared(NamedTuple):
    """All that a study's runs need; about: what study.yaml holds; most: cells at a time."""

    runner: Runner
    about: dict[str, Any]
    work: _Work
    most: int


def _prepared(
    name: str,
    data: str | Path | None,
    out: Path,
    scale: Scale,
    labels: str | None,
    table: TableSettings | None,
    levers: Sequence[str] | None,
    seeds: int,
    processes: int | None,
    words: list[str],
) -> _Prepared:
    """What `study` was asked for, checked against the images, before anything is written. Raises UserError."""
    paper, smoke = PAPER_STUDIES.get(name), scale == "smoke"
    train, judged = two_sets(data) if paper else (data, None)
    recipe, start = (RECIPE_OF_PAPERS, base_words(scale)) if paper else (small_data.RECIPE, SMOKE if smoke else [])
    base = _base(recipe, train, [*start, *words], TEXTURES if paper else "")
    base = base if judged else {**base, **table_layer(table and table.absolute())}  # else of the images that are judged on
    config = configuration(base, {})
    source = open_source(str(config.data), None if judged or table else labels, images=config.images, table=config.table)
    images = len(training_part(source, with_split(config.images, source)))
    quick = (SMOKE_LOOKS if paper else SMOKE_EVALUATION) if smoke else []
    judging = open_source(judged, labels, images=config.images, table=table) if judged else source
    tasks = possible_tasks(judging, paper.tasks if paper else "rankme,knn,linear")
    own = not judged and table  # the run's, which its evaluation takes
    known = [*(["--data", judged] if judged else []), "--tasks", tasks, *([] if own else label_options(labels, table))]
    evaluation = [*known, *EVALUATION, *quick]
    work = _panels(paper, out, base, levers, seeds, images, evaluation, scale) if paper else _levers(base, levers, seeds, scale)
    most = processes or (1 if device_of(config.run.device).type == "cuda" else cores())
    runner = Runner(out, {**_how(config, base.get("run", {}), images, most), **work.run}, tuple(evaluation))
    if paper and smoke:
        runner.launch = Forked
    return _Prepared(runner, {"study": name, "base": base, "evaluation": evaluation}, work, most)


def _require(name: str, scale: str, trials: int) -> None:
    """Raise UserError for an unknown study or scale, and for what a study has not."""
    if name not in STUDIES:
        raise UserError(f"unknown study '{name}': choose from {', '.join(STUDIES)}{nearest(name, STUDIES)}")
    if scale not in SCALES:
        raise UserError(f"--scale: unknown scale '{scale}': choose from {', '.join(SCALES)}{nearest(scale, SCALES)}")
    if scale == "paper" and name not in PAPER_STUDIES:
        raise UserError(f"{name} repeats no paper's runs: leave --scale paper out")
    if trials and name != SMALL_DATA:
        raise UserError(f"--trials is a search over the levers of {SMALL_DATA}: {name} has none")


def _levers(base: dict[str, Any], names: Sequence[str] | None, seeds: int, scale: str) -> _Work:
    """The work of small-data: the base, and each lever alone; at smoke three cells of it."""
    every = turning(base, small_data.levers(configuration(base, {})))
    turned = chosen(every, names)
    cells = grid(base, turned, seeds)[: 3 if scale == "smoke" else None] if turned else []
    return _Work(cells, turned or every, [BASE, *(lever.name for lever in every)], {}, lambda rows: "", lambda rows: None)


def _panels(
    paper: PaperStudy,
    out: Path,
    base: dict[str, Any],
    names: Sequence[str] | None,
    seeds: int,
    images: int,
    evaluation: list[str],
    scale: str,
) -> _Work:
    """The work of a paper's study: the runs of its panels. images: that are trained on. Raises UserError."""
    config = configuration(base, {})
    panels = chosen_panels(paper.panels(config), names)
    steps = Schedule(config.optim, max(1, images // config.optim.batch_size)).steps
    looks = [replace(look, words=(*look.words, *EVALUATION, *(SMOKE_LOOKS if scale == "smoke" else []))) for look in paper.also]
    made = layout(base, panels, seeds, steps, evaluation, looks)
    compared = partial(comparison, paper, panels, made)

    def head(rows: Sequence[CellRow]) -> str:
        lines = compared(rows)
        save_json(out / "comparison.json", as_data(lines))
        sources = {panel.name: panel.source for panel in panels}
        return f"{paper.asks}\n\n{about_base(scale, config.method)}\n\n{comparison_table(lines, sources)}\n\n## How each run went"

    def draw(rows: Sequence[CellRow]) -> None:
        save_figure(out / "figure.svg", compared(rows))

    return _Work(made.cells, (), [panel.name for panel in panels], snapshot_settings(panels, steps), head, draw)


def _command(name: str, out: Path, flags: Mapping[str, Any], scale: str, words: Sequence[str]) -> str:
    """The command line that goes on with a study."""
    levers = flags["levers"]
    flags = {**flags, "levers": None if levers is None else ",".join(levers) or "none"}
    given = [f"--{flag}={value}" for flag, value in flags.items() if value] + ([] if scale == "cpu" else [f"--scale={scale}"])
    return join(["jepakit", "study", name, f"--out={out}", *given, *words])


def _run_in_folder(runner: Runner, about: dict[str, Any], work: _Work, most: int, trials: int) -> list[CellRow]:
    """Run the cells, then a search of `trials` over the levers, in a folder that is locked meanwhile; the rows of all cells.

    about: what study.yaml holds; most: cells at a time. Raises UserError.
    """
    out = runner.out
    with claimed(out, about):
        search = Search.open(runner, about["base"], work.levers, work.cells, trials) if trials else None
        save = partial(_save, out, about["study"], about["base"], work)
        with signals(runner.stop):
            _go(runner, work.cells, search, most, save)
        rows = save()
        work.draw(rows)
        save_curves(out / "curves.png", rows, [Run(out / "cells" / row["run"]).metrics() for row in rows])
    return rows


def _go(runner: Runner, cells: Sequence[Cell], search: Search | None, most: int, each_time: Callable[[], object]) -> None:
    """All cells that are not over, then the search; `each_time` one is."""
    todo = [cell for cell in cells if runner.row(cell) is None]
    total, done = len(cells), len(cells) - len(todo)
    if search:
        total, done = total + search.wanted, done + search.over
    with progress("study", total, done) as report:

        def counted(job: Job) -> Job:
            nonlocal done
            yield from job
            done += not runner.stopping
            each_time()
            report(done, "cells")

        jobs = chain((runner.job(cell) for cell in todo), search.jobs() if search else ())
        run_jobs(map(counted, jobs), most, lambda: runner.stopping)


def _base(recipe: str, data: str | Path | None, words: list[str], advice: str = "") -> dict[str, Any]:
    """The layer of settings that all cells share: the recipe's name, the images, the user's words. Raises UserError."""
    layer = overrides(words)
    layer = {**layer, "recipe": layer.get("recipe") or recipe}
    config = configuration(layer, {} if data is None else {"data": named(data)})
    if not config.data:
        raise UserError(f"which images? give --data SRC{advice}")
    return {**layer, "data": absolute(config.data)}


def _how(config: Config, given: Mapping[str, Any], images: int, most: int) -> dict[str, Any]:
    """Settings of `run` for every cell, over which those that the base gives stand."""
    a_pass = max(1, images // config.optim.batch_size)
    epochs = Schedule(config.optim, a_pass).steps // a_pass
    own = {"threads": max(1, cores() // most), "loader_threads": 1, "probe_every_epochs": max(1, epochs // PROBES_PER_RUN)}
    return {**own, **{key: value for key, value in given.items() if key in own}}


def _save(out: Path, name: str, base: dict[str, Any], work: _Work) -> list[CellRow]:
    """Write the table of all cells that are over, lever by lever, the search's last; returns its rows."""
    found = [load_json(path) for path in sorted((out / "cells").glob("*.json"))]
    places = {lever: place for place, lever in enumerate(work.order)}
    rows = sorted(found, key=lambda row: places.get(row["lever"], len(work.order)))
    settings, head = yaml.safe_dump(base, default_flow_style=True, width=1000).strip(), work.head(rows)
    save_table(out, rows, f"# {name}\n\nBase: `{settings}`" + (f"\n\n{head}" if head else ""))
    return rows
