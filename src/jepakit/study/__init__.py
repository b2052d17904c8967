"""The verb `study`: many runs that differ in one thing each, as one command, and one table of what came of them."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from shlex import join
from typing import Any

import yaml

from jepakit.artifacts.run import Run
from jepakit.config.config import Config, overrides, read_yaml, setting_words
from jepakit.config.optim import Schedule
from jepakit.core.device import cores, device_of
from jepakit.core.errors import UserError, checked, nearest
from jepakit.core.files import atomic_write, locked
from jepakit.core.progress import progress
from jepakit.core.signals import signals
from jepakit.data.opening import absolute, named, open_source
from jepakit.data.sources import Source
from jepakit.data.training_part import training_part, with_split
from jepakit.evaluation.split import labelled, train_and_test
from jepakit.study import small_data
from jepakit.study.cells import BASE, Cell, Lever, chosen, configuration, grid, turning
from jepakit.study.curves import save_curves
from jepakit.study.running import Job, Runner, run_jobs
from jepakit.study.search import Search
from jepakit.study.table import CellRow, save_table

log = logging.getLogger("jepakit")


@dataclass(frozen=True)
class Design:
    """What a study is: the recipe that its base begins with, and its levers, given all settings of the base."""

    recipe: str
    levers: Callable[[Config], tuple[Lever, ...]]


STUDIES = {"small-data": Design(small_data.RECIPE, small_data.levers)}
# Seconds instead of hours, to see that it runs: settings of the base, and of the evaluation.
SMOKE = [
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "predictor.width=8", "predictor.depth=1", "optim.steps=6"),
    *("optim.batch_size=32", "optim.warmup_steps=2", "run.log_every_steps=1", "run.probe_images=60"),
]
SMOKE_EVALUATION = ["images_limit=300", "linear.epochs=2"]
# One linear head instead of six: what is compared is cells, and there are many
EVALUATION = ["linear.layers=[last]", "linear.heads=[bn]", "linear.weight_decay=[0]"]
PROBES_PER_RUN = 8  # online probes in a run; one a pass where it has fewer passes


@checked
def study(
    name: str,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    labels: str | None = None,
    levers: Sequence[str] | None = None,
    seeds: int = 1,
    trials: int = 0,
    processes: int | None = None,
    smoke: bool = False,
    set: Sequence[str] | str = (),
) -> list[CellRow]:
    """Run a study's grid (each lever alone, against the base), then a search of `trials` runs over its levers together.

    data: images (default: the recipe's); out: the study's folder (default runs/NAME), which goes on where it was stopped;
    labels: which of a set's labels the evaluation takes; levers: names, none of them for no grid (a search then takes all);
    seeds: runs of each cell of the grid; processes: cells at a time (default: one a core, on CUDA one); smoke: three cells
    of a few steps; set: 'group.key=value' words of the base. Leaves table.json, table.md and curves.png in `out`; returns
    the rows of all cells that are over. A cell that fails is a row. Raises UserError for what can be mended beforehand.
    """
    design = _design(name)
    out = Path(out or Path("runs") / name).expanduser()
    words = setting_words(set)
    base = _base(design.recipe, data, [*(SMOKE if smoke else []), *words])
    config = configuration(base, {})
    every = turning(base, design.levers(config))
    turned = chosen(every, levers)
    cells = grid(base, turned, seeds)[: 3 if smoke else None] if turned else []
    source = open_source(str(config.data), labels)
    train_images = training_part(source, with_split(config.images, source))
    evaluation = [*_tasks(source, labels), *EVALUATION, *(SMOKE_EVALUATION if smoke else [])]
    most = processes or (1 if device_of(config.run.device).type == "cuda" else cores())
    runner = Runner(out, _how(config, base.get("run", {}), len(train_images), most), tuple(evaluation))
    about, order = {"study": name, "base": base, "evaluation": evaluation}, [BASE, *(lever.name for lever in every)]
    rows = _run_in_folder(runner, about, cells, turned or every, trials, most, order)
    if runner.stopping:
        flags = {"data": data, "labels": labels, "levers": levers, "seeds": seeds, "trials": trials, "processes": processes}
        log.info("stopped with %d cells over; go on with: %s", len(rows), _command(name, out, flags, smoke, words))
    return rows


def _design(name: str) -> Design:
    """The study of this name. Raises UserError, with the nearest name."""
    if name not in STUDIES:
        raise UserError(f"unknown study '{name}': choose from {', '.join(STUDIES)}{nearest(name, STUDIES)}")
    return STUDIES[name]


def _command(name: str, out: Path, flags: Mapping[str, Any], smoke: bool, words: Sequence[str]) -> str:
    """The command line that goes on with a study."""
    levers = flags["levers"]
    flags = {**flags, "levers": None if levers is None else ",".join(levers) or "none"}
    given = [f"--{flag}={value}" for flag, value in flags.items() if value] + ["--smoke"] * smoke
    return join(["jepakit", "study", name, f"--out={out}", *given, *words])


def _run_in_folder(
    runner: Runner,
    about: dict[str, Any],
    cells: Sequence[Cell],
    levers: Sequence[Lever],
    trials: int,
    most: int,
    order: Sequence[str],
) -> list[CellRow]:
    """Run the cells, then a search of `trials` over the levers, in a folder that is locked meanwhile; the rows of all cells.

    about: what study.yaml holds; most: cells at a time; order: names of levers, as in the table. Raises UserError.
    """
    out = runner.out
    with _claimed(out, about):
        search = Search.open(runner, about["base"], levers, cells, trials) if trials else None
        save = partial(_save, out, about["study"], about["base"], order)
        with signals(runner.stop):
            _go(runner, cells, search, most, save)
        rows = save()
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


def _base(recipe: str, data: str | Path | None, words: list[str]) -> dict[str, Any]:
    """The layer of settings that all cells share: the recipe's name, the images, the user's words. Raises UserError."""
    layer = overrides(words)
    layer = {**layer, "recipe": layer.get("recipe") or recipe}
    config = configuration(layer, {} if data is None else {"data": named(data)})
    if not config.data:
        raise UserError("which images? give --data SRC")
    return {**layer, "data": absolute(config.data)}


def _how(config: Config, given: Mapping[str, Any], images: int, most: int) -> dict[str, Any]:
    """Settings of `run` for every cell, over which those that the base gives stand."""
    a_pass = max(1, images // config.optim.batch_size)
    epochs = Schedule(config.optim, a_pass).steps // a_pass
    own = {"threads": max(1, cores() // most), "loader_threads": 1, "probe_every_epochs": max(1, epochs // PROBES_PER_RUN)}
    return {**own, **{key: value for key, value in given.items() if key in own}}


def _tasks(source: Source, labels: str | None) -> list[str]:
    """Words for `evaluate`: what these images and labels allow."""
    tasks = "rankme,knn,linear"
    try:
        if source.labels is None:
            raise UserError(f"{source.name} has no labels")
        train_and_test(source, source.labels, labelled(source, source.labels))
    except UserError as error:
        log.warning("%s: cells are judged by RankMe alone", error)
        tasks = "rankme"
    return ["--tasks", tasks, *(["--labels", labels] if labels else [])]


@contextmanager
def _claimed(out: Path, about: dict[str, Any]) -> Iterator[None]:
    """Hold a folder for a study. Raises UserError where it holds another one, or anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        note, others = out / "study.yaml", [path.name for path in out.iterdir() if not path.name.startswith(".")]
        if not note.is_file() and others:
            raise UserError(f"{out} holds other files ({min(others)}); give a folder of its own")
        if note.is_file() and (there := read_yaml(note)) != about:
            other = next(key for key in about if there.get(key) != about[key])
            raise UserError(f"{out} holds a study with {other} {there.get(other)}, not {about[other]}: give another --out")
        (out / "cells").mkdir(exist_ok=True)
        for path, value in ((note, about), (out / "base.yaml", about["base"])):
            with atomic_write(path) as draft:
                draft.write_text(yaml.safe_dump(value, sort_keys=False))
        yield


def _save(out: Path, name: str, base: dict[str, Any], order: Sequence[str]) -> list[CellRow]:
    """Write the table of all cells that are over, lever by lever, the search's last; returns its rows."""
    found = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    places = {lever: place for place, lever in enumerate(order)}
    rows = sorted(found, key=lambda row: places.get(row["lever"], len(order)))
    save_table(out, rows, f"# {name}\n\nBase: `{yaml.safe_dump(base, default_flow_style=True, width=1000).strip()}`")
    return rows
