"""The section that sets runs against each other: paired differences, a line for each run across tasks, other settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jepakit.core.compare import Difference
from jepakit.core.counted import NO_SHARES, Counted

from ..figures import Slope, slope_chart
from ..paired_runs import PairedRuns, Pairs, figures_of, metric_in_words, paired_with_first
from ..reading import PROBE_NAMES, RunFiles
from ..wording import in_words, interval


def runs_compared(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Runs beside each other; None for one."""
    if len(runs) < 2:
        return None
    tasks = [task for task in PROBE_NAMES if any(task in run.results for run in runs)]
    found, slopes = paired_with_first(runs, tasks), slopes_of(runs, tasks)
    return {
        "rows": [{"run": run, "cells": [_cell(run, task, found) for task in tasks]} for run in runs],
        "tasks": [PROBE_NAMES[task] for task in tasks],
        "missing": [f"{PROBE_NAMES[task]}, {name}: {why}" for (name, task), why in found.missing.items()],
        "comparisons": len(found.counting),
        "others": _other_rows(runs, found.others),
        "other_comparisons": len(found.others),
        "slopes": slope_chart(slopes, [PROBE_NAMES[task] for task in tasks]) if slopes and tasks else "",
        "settings": settings_that_differ(runs),
    }


def _cell(run: RunFiles, task: str, found: PairedRuns) -> dict[str, Any]:
    """A run's figure of a task, and how it stands to the first run's."""
    figures = figures_of(run, task)
    if not figures:
        return {"sort": "", "text": "–", "metric": "", "interval": "", "difference": ""}
    metric, figure = next(iter(figures.items()))
    difference = found.counting.get((run.name, task, metric))
    told = difference_in_words(difference, metric) if difference else "not paired" if (run.name, task) in found.missing else ""
    named = "" if metric == "accuracy" or metric_in_words(metric) in PROBE_NAMES[task] else metric_in_words(metric)
    row = next(iter(run.results[task]["rows"].values()))
    return {"sort": figure.value, "text": _told(figure), "metric": named, "interval": interval(row), "difference": told}


def _other_rows(runs: Sequence[RunFiles], others: Pairs) -> list[dict[str, Any]]:
    """A row for each task and metric by which some run is paired besides what counts: each run's figure, and its difference."""
    rows = []
    for task, metric in dict.fromkeys((task, metric) for _, task, metric in others):
        cells = []
        for run in runs:
            figure, difference = figures_of(run, task).get(metric), others.get((run.name, task, metric))
            told = difference_in_words(difference, metric) if difference else ""
            cells.append({"text": _told(figure) if figure else "–", "difference": told})
        rows.append({"task": PROBE_NAMES[task], "metric": metric_in_words(metric), "cells": cells})
    return rows


def _told(figure: Counted) -> str:
    return figure.told(figure.value) + (" %" if figure.share else "")


def difference_in_words(d: Difference, metric: str) -> str:
    """+1.6 points [−0.4 to +3.5], p = 0.1: may be chance; of what is no share without points."""
    p = d.p if d.p_corrected is None else d.p_corrected
    form = "{:+.3g}" if metric in NO_SHARES else "{:+.1f}"
    scale, unit = (1, "") if metric in NO_SHARES else (100, " points")
    value, low, high = (form.format(scale * each).replace("-", "−") for each in (d.difference, d.low, d.high))
    span = f"[{low} to {high}]" if d.low < d.high else "(no interval: alike in all resamples)"
    return f"{value}{unit} {span}, p\u00a0{_of_p(p)}: {'may be chance' if p > 0.05 else 'more than chance'}"


def _of_p(p: float) -> str:
    return "<\u00a00.001" if p < 0.001 else f"=\u00a0{p:.2g}"


def slopes_of(runs: Sequence[RunFiles], tasks: Sequence[str]) -> list[Slope]:
    """Each run's figures across the tasks that are told in per cent; NaN where one was not measured."""
    found = []
    for run in runs:
        rows = [next(iter(run.results[task]["rows"].values()), None) if task in run.results else None for task in tasks]
        values = [100 * row["value"] if row and row["counted"].share else math.nan for row in rows]
        if any(map(math.isfinite, values)):
            found.append(Slope(run.name, run.colour, values))
    return found


def settings_that_differ(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Rows of the settings that are not the same in all runs."""
    flat = [_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    values = {key: [in_words(each[key]) if key in each else "–" for each in flat] for key in keys}
    return [{"key": key, "cells": cells} for key, cells in values.items() if len(set(cells)) > 1]


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) and value else {f"{before}{key}": value}
    return found
