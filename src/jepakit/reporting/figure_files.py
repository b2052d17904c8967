"""Every figure of a report as files: PNG and SVG to show, CSV with its data."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jepakit.core.errors import UserError

from .figures import COLOURS, NO_METADATA, PALETTE, SVG_AS_TEXT, Line, lines_figure, slopes_figure
from .picture_figures import picture_figures, picture_grid
from .reading import PROBE_NAMES, RunFiles
from .sections.along_run import along_run
from .sections.comparison import slopes_of
from .sections.curves import curves

INK = "#23221f"
DOTS_PER_INCH = 200


def save_figures(runs: Sequence[RunFiles], folder: Path) -> list[Path]:
    """Write each figure of the runs' report to a folder, made if it is not there: NAME.png, NAME.svg, NAME.csv.

    Raises UserError where nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [path for panel in curves(runs)["panels"] for path in _curve(folder, panel["title"], panel["lines"], "step")]
        for panel in along_run(runs)["panels"]:
            written += _curve(folder, f"along the run {panel['title']}", panel["lines"], "images")
        for task in PROBE_NAMES:
            written += _probe(folder, task, runs) if any(task in run.results for run in runs) else []
        written += _slopes(folder, runs) if len(runs) > 1 else []
        for run in runs:
            written += _masks(folder, run, runs) + _neighbours(folder, run, runs)
            for found in picture_figures(run):
                written += _save(folder, _named(found.title, run, runs), found.figure, found.head, found.rows)
    except OSError as error:
        raise UserError(f"cannot write figures to {folder}: {error.strerror or error}") from None
    return written


def _save(folder: Path, title: str, figure: Figure, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Path]:
    """The three files of a figure; what is no number is an empty cell."""
    stem = folder / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "figure")
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg", "csv")]
    with rc_context(SVG_AS_TEXT | {"svg.hashsalt": title}):
        figure.savefig(paths[0], dpi=DOTS_PER_INCH, facecolor="white", bbox_inches="tight", metadata={"Software": None})
        figure.savefig(paths[1], facecolor="white", bbox_inches="tight", metadata=NO_METADATA)
    with paths[2].open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        write = csv.writer(file)
        write.writerow(head)
        write.writerows([["" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row] for row in rows])
    return paths


def _curve(folder: Path, title: str, lines: Sequence[Line], over: str) -> list[Path]:
    figure = lines_figure(lines, colours=COLOURS, ink=INK)
    figure.axes[0].set_title(title, fontsize=10, loc="left", color=INK)
    named = {line.run: Line2D([], [], color=COLOURS[line.colour]) for line in lines}
    if len(named) > 1:
        figure.legend(
            named.values(), named.keys(), frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0.1, 0.02)
        )
    rows = [
        [line.run, line.label or ("untrained" if line.dashed else ""), f"{step:.10g}", float(value)]
        for line in lines
        for step, value in zip(line.steps, line.values, strict=True)
    ]
    return _save(folder, title, figure, ["run", "line", over, "value"], rows)


def _probe(folder: Path, task: str, runs: Sequence[RunFiles]) -> list[Path]:
    """Each encoder's and baseline's figure of a task, with its interval."""
    rows: list[tuple[RunFiles, Mapping[str, Any]]] = [
        (run, row)
        for run in runs
        if task in run.results
        for row in run.results[task]["rows"].values()
        if math.isfinite(row["value"])
    ]
    figure = Figure(figsize=(5.2, 0.5 + 0.28 * max(1, len(rows))))
    axes = figure.add_subplot()
    for place, (run, row) in enumerate(rows):
        colour, scale = COLOURS[run.index % PALETTE], 100 if row["counted"].share else 1
        axes.plot(scale * row["value"], -place, "o", color=colour, markersize=6)
        axes.plot([scale * row["low"], scale * row["high"]], [-place, -place], color=colour, linewidth=2)
    axes.set_yticks(
        range(0, -len(rows), -1), [f"{run.name}, {row['name']}" if len(runs) > 1 else row["name"] for run, row in rows]
    )
    axes.set_title(PROBE_NAMES[task] + (", per cent" if rows and rows[0][1]["counted"].share else ""), fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    table = [[run.name, row["name"], row["metric"], row["value"], row["low"], row["high"]] for run, row in rows]
    return _save(folder, f"probe {task}", figure, ["run", "encoder", "metric", "value", "low", "high"], table)


def _slopes(folder: Path, runs: Sequence[RunFiles]) -> list[Path]:
    tasks = [task for task in PROBE_NAMES if any(task in run.results for run in runs)]
    slopes = slopes_of(runs, tasks)
    if not slopes:
        return []
    figure = slopes_figure(slopes, [PROBE_NAMES[task] for task in tasks], COLOURS, INK)
    figure.axes[0].legend(frameon=False, fontsize=9)
    rows = [[slope.name, task, value] for slope in slopes for task, value in zip(tasks, slope.values, strict=True)]
    return _save(folder, "runs across tasks", figure, ["run", "task", "per cent"], rows)


def _named(title: str, run: RunFiles, runs: Sequence[RunFiles]) -> str:
    return f"{title} {run.name}" if len(runs) > 1 else title


def _masks(folder: Path, run: RunFiles, runs: Sequence[RunFiles]) -> list[Path]:
    """The pictures, dimmed where the encoder sees nothing, with the targets' patches outlined; the cells of each as rows."""
    images, context, targets = (run.pictures.get(name, np.empty(0)) for name in ("images", "context", "targets"))
    if not len(images):
        return []
    figure = Figure(figsize=(1.9 * len(images), 2))
    rows: list[list[Any]] = []
    for i, image in enumerate(images):
        axes = figure.add_subplot(1, len(images), i + 1)
        height, width = context[i].shape
        box = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(image, extent=box)
        axes.imshow(np.dstack([np.ones((height, width, 3)), ~context[i] * 0.76]), extent=box)
        for j, target in enumerate(targets[i]):
            if target.any():
                axes.contour(
                    np.pad(target, 1).repeat(8, 0).repeat(8, 1), [0.5], colors=[COLOURS[j % PALETTE]], extent=_around(box)
                )
        axes.set_axis_off()
        for role, mask in [("context", context[i]), *((f"target {j}", target) for j, target in enumerate(targets[i]))]:
            rows += [[i, role, int(y), int(x)] for y, x in np.argwhere(mask)]
    return _save(folder, _named("masks", run, runs), figure, ["image", "role", "row", "column"], rows)


def _around(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, right, bottom, top = box
    return left - 1, right + 1, top - 1, bottom + 1


def _neighbours(folder: Path, run: RunFiles, runs: Sequence[RunFiles]) -> list[Path]:
    queries, found = (run.pictures.get(name, np.empty(0)) for name in ("query_images", "neighbour_images"))
    if not len(queries):
        return []
    figure = picture_grid([[query, *near] for query, near in zip(queries, found, strict=True)])
    labels, others = run.pictures.get("query_labels", np.empty(0)), run.pictures.get("neighbour_labels", np.empty((0, 0)))
    rows = [[i, str(labels[i]), j + 1, str(others[i, j])] for i in range(len(labels)) for j in range(others.shape[1])]
    return _save(folder, _named("neighbours", run, runs), figure, ["query", "query label", "rank", "label"], rows)
