"""What steps of a run came to: a file that an evaluation goes on from, a table, which step is best, and metric against images."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from jepakit.core.counted import FIGURE_OF_TASK, METRIC_NAMES, counted_figure
from jepakit.core.files import atomic_write, load_json, save_json
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME
from jepakit.evaluation.metrics import LESS_IS_BETTER
from jepakit.evaluation.probe_results import ResultRow
from jepakit.evaluation.results import figure_text, lines_on_seen_images

STEPS_FILE = "steps.json"
CHEATING = "To choose a step by its test figures is cheating: the chosen figure then has the luck in it that chose it."
_COLOURS = ("#2c5f8f", "#c9652a", "#3a8560", "#86508f", "#a98318", "#2f8a93", "#ad414c", "#6b6b6b")


@dataclass(frozen=True)
class JudgedStep:
    """One step: how many images training saw by then, the sha256 of the encoder's weights, and its row of each task."""

    step: int
    images: int
    weights: str
    results: dict[str, ResultRow]


@dataclass
class StepResults:
    """The steps of a run that were judged alike, oldest first; baselines: by task, rows of what needs no step.

    of: what all must have in common, data, labels, settings; where it differs, what is there is not gone on from.
    """

    of: dict[str, Any]
    steps: list[JudgedStep] = field(default_factory=list)
    baselines: dict[str, list[ResultRow]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, of: Mapping[str, Any]) -> "StepResults":
        """Those of a file where they are of the same; else none."""
        try:
            found = load_json(path)
            if found["of"] == json.loads(json.dumps(of)):
                return cls(dict(of), [JudgedStep(**step) for step in found["steps"]], found["baselines"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # there is none yet, or another program's
        return cls(dict(of))

    def has(self, step: int, weights: str, tasks: Iterable[str]) -> bool:
        """Whether a step with these weights was judged by these tasks."""
        return any(each.step == step and each.weights == weights and each.results.keys() >= {*tasks} for each in self.steps)

    def add(self, new: JudgedStep, baselines: Mapping[str, list[ResultRow]]) -> None:
        """Note a step; tasks that it was judged by before stay where its weights are the same."""
        old = next((each for each in self.steps if (each.step, each.weights) == (new.step, new.weights)), None)
        both = JudgedStep(new.step, new.images, new.weights, {**(old.results if old else {}), **new.results})
        self.steps = sorted([*(each for each in self.steps if each.step != new.step), both], key=lambda each: each.step)
        self.baselines |= baselines

    def only(self, steps: Iterable[int], tasks: Iterable[str]) -> "StepResults":
        """Some steps and tasks of these."""
        wanted, named = {*steps}, [*tasks]
        some = [
            JudgedStep(s.step, s.images, s.weights, {task: s.results[task] for task in named if task in s.results})
            for s in self.steps
            if s.step in wanted
        ]
        return StepResults(self.of, some, {task: self.baselines[task] for task in named if task in self.baselines})

    def save(self, path: Path) -> None:
        """Write it, with the best steps."""
        path.parent.mkdir(parents=True, exist_ok=True)
        best = {task: found.step for task in self.tasks if (found := self.best(task))}
        steps = [vars(step) for step in self.steps]
        about = {"of": self.of, "best": best, "said": best_sentences(self)}
        save_json(path, {**about, "steps": steps, "baselines": self.baselines})

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, ranks last."""
        names = dict.fromkeys(task for step in self.steps for task in step.results)
        return sorted(names, key=lambda task: task in FIGURE_OF_TASK)

    def best(self, task: str) -> JudgedStep | None:
        """The step that does best on the held fifth of the training images, of equals the first; None where there is no such."""
        held = [step for step in self.steps if isinstance(step.results.get(task, {}).get("validation"), int | float)]
        if not held:
            return None
        sign = -1 if held[0].results[task].get("counts") in LESS_IS_BETTER else 1
        return max(held, key=lambda step: sign * step.results[task]["validation"])


def steps_table(found: StepResults) -> str:
    """A line for each step, then the baselines, a column for each task; which step is best, and what pretraining saw."""
    tasks = found.tasks
    lines = [("step (images seen)", {}), *((f"{s.step:,} ({s.images:,})", s.results) for s in found.steps)]
    names = dict.fromkeys(row["name"] for task in tasks for row in found.baselines.get(task, ()))
    for name in names:
        lines.append((name, {task: row for task in tasks for row in found.baselines.get(task, ()) if row["name"] == name}))
    wide = max(len(name) for name, _ in lines) + 2
    said = [lines[0][0].ljust(wide) + "".join(f"{task:>26}" for task in tasks)]
    for name, rows in lines[1:]:
        cells = (figure_text(task, rows[task]) if task in rows else "" for task in tasks)
        said.append(name.ljust(wide) + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join([*said, *best_sentences(found), *lines_on_seen_images({task: _rows_of(found, task) for task in tasks})])


def best_sentences(found: StepResults) -> list[str]:
    """Which step is best by training images that were held out, task by task, and a warning."""
    said = []
    for task in found.tasks:
        best = found.best(task)
        if best is None:
            continue
        row = best.results[task]
        figure = counted_figure(task, row)
        unit = " %" if figure.share else ""
        named = METRIC_NAMES.get(figure.metric, figure.metric)
        held = f"{named} {figure.told(row['validation'])}{unit} on the fifth of the training images that is held out"
        said.append(f"{task}: best is step {best.step:,} ({best.images:,} images), by {held}; test: {figure_text(task, row)}")
    return [*said, CHEATING] if said else []


def _rows_of(found: StepResults, task: str) -> list[ResultRow]:
    return [step.results[task] for step in found.steps if task in step.results]


def save_steps_figure(path: Path, runs: Mapping[str, StepResults]) -> None:
    """Draw each metric against images seen, a line for each run with its 95 % intervals; a star where the held fifth is best;
    dashed, the untrained encoder."""
    tasks = list(dict.fromkeys(task for found in runs.values() for task in found.tasks))
    figure = Figure(figsize=(0.6 + 4.2 * len(tasks), 3.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for number, (name, found) in enumerate(runs.items()):
            _draw(axes, task, found, _COLOURS[number % len(_COLOURS)], name)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("images seen", fontsize=9)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value:,.0f}"))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.6, alpha=0.5)
        axes.tick_params(length=0, labelsize=8)
        axes.set_xlim(left=0)
        if len(runs) > 1 and task == tasks[-1]:
            axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=110, format="png")


def _draw(axes: Axes, task: str, found: StepResults, colour: str, name: str) -> None:
    steps = [step for step in found.steps if task in step.results]
    figures, images = [counted_figure(task, step.results[task]) for step in steps], [step.images for step in steps]
    if not steps:
        return
    axes.plot(images, [each.value for each in figures], color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
    if all(math.isfinite(each.low) for each in figures):
        axes.fill_between(images, [f.low for f in figures], [f.high for f in figures], color=colour, alpha=0.15, linewidth=0)
    untrained = _row_named(found.baselines.get(task, ()), UNTRAINED_NAME)
    if untrained is not None:
        axes.axhline(counted_figure(task, untrained).value, color=colour, linewidth=1, linestyle=(0, (3, 2)))
    best = found.best(task)
    if best is not None:
        value = counted_figure(task, best.results[task]).value
        axes.plot([best.images], [value], color=colour, marker="*", markersize=11, linestyle="")
    axes.set_ylabel(METRIC_NAMES.get(figures[0].metric, figures[0].metric), fontsize=9)
    if figures[0].share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _row_named(rows: Sequence[ResultRow], name: str) -> ResultRow | None:
    return next((row for row in rows if row["name"] == name), None)
