"""The section that sets runs against each other: paired differences, a line for each run across tasks, other settings."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepakit.core.compare import Difference, corrected, paired

from ..figures import Slope, slope_chart
from ..reading import PROBE_NAMES, RunFiles
from ..wording import in_words, interval


def runs_compared(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Runs beside each other; None for one."""
    if len(runs) < 2:
        return None
    tasks = [task for task in PROBE_NAMES if any(task in run.results for run in runs)]
    found, missing = differences_from_first(runs, tasks)
    rows = [{"run": run, "cells": [_cell(run, task, found.get((run.name, task))) for task in tasks]} for run in runs]
    slopes = slopes_of(runs, tasks)
    return {
        "rows": rows,
        "tasks": [PROBE_NAMES[task] for task in tasks],
        "missing": missing,
        "comparisons": len(found),
        "slopes": slope_chart(slopes, [PROBE_NAMES[task] for task in tasks]) if slopes and tasks else "",
        "settings": settings_that_differ(runs),
    }


def differences_from_first(runs: Sequence[RunFiles], tasks: Sequence[str]) -> tuple[dict[tuple[str, str], Difference], list[str]]:
    """Accuracy of each other run minus that of the first, on the same test images, by (run, task); and what cannot be paired."""
    pairs, missing = {}, []
    for task in tasks:
        first = _answers(runs[0].folder / "evaluation" / f"{task}.npz") if task in runs[0].results else None
        for run in runs[1:]:
            if task not in run.results or task not in runs[0].results:
                continue
            other = _answers(run.folder / "evaluation" / f"{task}.npz")
            if first is None or other is None:
                missing.append(f"{PROBE_NAMES[task]}, {run.name}: no right and wrong answers are kept to pair")
            elif not all(np.array_equal(first[key], other[key]) for key in ("data", "ids")):
                missing.append(f"{PROBE_NAMES[task]}, {run.name}: tested on other images than {runs[0].name}")
            else:
                pairs[run.name, task] = paired(other["right"][0], first["right"][0], first.get("clusters"))
    return dict(zip(pairs, corrected([*pairs.values()]), strict=True)), missing


def _answers(path: Path) -> dict[str, Any] | None:
    """Which test images the judged encoder, the first, named rightly; None where the file has no such thing."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files} if {"right", "ids", "data"} <= {*arrays.files} else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _cell(run: RunFiles, task: str, difference: Difference | None) -> dict[str, Any]:
    """A run's figure of a task, and how it stands to the first run's."""
    row: Mapping[str, Any] = next(iter(run.results[task]["rows"].values()), {}) if task in run.results else {}
    if not row or math.isnan(row["value"]):
        return {"sort": "", "text": "–", "interval": "", "difference": ""}
    text = row["counted"].told(row["value"]) + (" %" if row["counted"].share else "")
    told = difference_in_words(difference) if difference else ""
    return {"sort": row["value"], "text": text, "interval": interval(row), "difference": told}


def difference_in_words(d: Difference) -> str:
    """+1.6 points [−0.4 to +3.5], may be chance."""
    p = d.p if d.p_corrected is None else d.p_corrected
    value, low, high = (f"{100 * each:+.1f}".replace("-", "−") for each in (d.difference, d.low, d.high))
    return f"{value} points [{low} to {high}], p {_of_p(p)}: {'may be chance' if p > 0.05 else 'more than chance'}"


def _of_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


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
