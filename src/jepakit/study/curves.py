"""OUT/curves.png: what the runs of a study did on their way, a row of drawings for each lever."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepakit.core.files import atomic_write
from jepakit.study.cells import BASE, label
from jepakit.study.table import PROBE_KEYS, CellRow, probe_points

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22")
_NAMED = 10  # a legend with more values tells nothing
MetricRows = Sequence[Mapping[str, Any]]


def save_curves(path: Path, rows: Sequence[CellRow], metrics: Sequence[MetricRows]) -> None:
    """Draw online probe, effective rank and position share over steps, the base in black; metrics: of each row its log."""
    base_metrics = [own for row, own in zip(rows, metrics, strict=True) if row["lever"] == BASE]
    key = next((key for key in PROBE_KEYS if any(row["looks"][key] for row in rows)), PROBE_KEYS[0])
    levers = list(dict.fromkeys(row["lever"] for row in rows if row["lever"] != BASE)) or [BASE]
    figure = Figure(figsize=(13, 2.3 * len(levers)), layout="constrained")
    titles = ("kNN accuracy" if key == "probe/knn" else "RankMe", "effective rank", "position share")
    for axes, lever in zip(figure.subplots(len(levers), 3, squeeze=False), levers, strict=True):
        shown = [(row, own) for row, own in zip(rows, metrics, strict=True) if row["lever"] == lever != BASE]
        values = list(dict.fromkeys(_name(row) for row, _ in shown))
        for own in base_metrics:
            _draw(axes, own, key, "black", BASE)
        for row, own in shown:
            place = values.index(_name(row))
            _draw(axes, own, key, _COLOURS[place % len(_COLOURS)], values[place])
        for one, title in zip(axes, titles, strict=True):
            _dress(one, title)
        axes[0].set_ylabel(lever, fontsize=10)
        named = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))  # a value once, whatever its seeds
        if len(named) <= _NAMED:
            axes[2].legend(named.values(), named.keys(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=90, format="png")


def _name(row: CellRow) -> str:
    """What the legend calls a row."""
    value = label(row["change"])
    return value if len(value) < 60 else str(row["cell"])


def _draw(axes: Sequence[Axes], rows: MetricRows, key: str, colour: str, name: str) -> None:
    """One run's three curves."""
    steps = [row["step"] for row in rows]
    seen = probe_points(rows, key)
    series = [
        ([step for step, _ in seen], [value for _, value in seen]),
        *((steps, [row.get(sign, np.nan) for row in rows]) for sign in ("effective_rank", "position_share")),
    ]
    for one, (x, y) in zip(axes, series, strict=True):
        one.plot(x, y, color=colour, linewidth=1.8 if name == BASE else 1.2, label=name, zorder=3 if name == BASE else 2)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.6, alpha=0.5)
    axes.tick_params(length=0, labelsize=8)
