"""The report's section on a run's kept steps: each metric against the images that training had seen."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jepakit.core.counted import METRIC_NAMES, NO_SHARES, Counted, counted_figure

from ..figures import Line, curve
from ..reading import PROBE_NAMES, RANKS, RunFiles

_NOTE = "{}, over the images that training had seen; dashed, the untrained encoder."


def along_run(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Panels of each task, what was said of each run's steps, and whether all were judged on the same images; empty for none."""
    there = [run for run in runs if run.steps]
    known, found = [*PROBE_NAMES, *RANKS], {task for run in there for _, results in run.steps["steps"] for task in results}
    tasks = [*(task for task in known if task in found), *sorted(found - {*known})]  # others are of shortcuts
    panels = [_panel(task, there) for task in tasks]
    judged_on = {json.dumps([run.steps["of"].get(key) for key in ("data", "labels", "digest")]) for run in there}
    said = [{"run": run, "sentences": run.steps["said"]} for run in there]
    return {"panels": panels, "said": said, "alike": len(judged_on) <= 1}


def _panel(task: str, runs: Sequence[RunFiles]) -> dict[str, Any]:
    title, lines, last, metric = {**PROBE_NAMES, **RANKS}.get(task, task), [], [], ""
    for run in runs:
        points = [(images, counted_figure(task, results[task])) for images, results in run.steps["steps"] if task in results]
        if not points:
            continue
        metric = metric or points[0][1].metric
        seen, values = (np.array(each, float) for each in zip(*((n, _scaled(f)) for n, f in points), strict=True))
        lines.append(Line(seen, values, run.colour, run=run.name))
        untrained = next((row for row in run.steps["baselines"].get(task, ()) if row["name"].startswith("untrained")), None)
        if untrained is not None:
            level = _scaled(counted_figure(task, untrained))
            lines.append(Line(np.array([0.0, seen[-1]]), np.array([level, level]), run.colour, dashed=True, run=run.name))
        last.append({"colour": run.colour, "text": points[-1][1].told(points[-1][1].value)})
    named = METRIC_NAMES.get(metric, metric.capitalize()) + (" in per cent" if metric not in NO_SHARES else "")
    svg = curve(f"{title} along the run", [replace(line, run="") for line in lines])  # the page says a run by its colour
    return {"title": title, "note": _NOTE.format(named), "svg": svg, "last": last, "bad": 0, "lines": lines}


def _scaled(figure: Counted) -> float:
    return figure.value * (100 if figure.share else 1)
