"""What stands on top of the page: the run in sentences, and its facts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jepakit.core.counted import METRIC_NAMES

from ..figures import finite_values, short
from ..reading import PROBE_NAMES, RANKS, MetricsRow, Result, RunFiles, lookup
from ..wording import in_words, interval

_UNTRAINED = "untrained encoder"
PIXELS = ("raw pixels", "pixel PCA", "first mask kept")  # the best of them is what an encoder must beat
FACTS = {
    "Method": "method",
    "Recipe": "recipe",
    "Data": "data",
    "Image size": "images.size",
    "Encoder": "encoder",
    "Predictor": "predictor",
    "Steps": "optim.steps",
    "Epochs": "optim.epochs",
    "Batch": "optim.batch_size",
    "Seed": "seed",
}


def summary(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Sentences on each run, and a table of its settings."""
    return {"summaries": {run.name: _summary(run) for run in runs}, "facts": _facts(runs)}


def _summary(run: RunFiles) -> list[str]:
    """The run in words: one sentence per probe, one on ranks, on the doctor and on training."""
    ranks = [words for task, title in RANKS.items() if (words := _rank(title, run.results.get(task)))]
    said = [_verdict(title, run.results[task]["rows"]) for task, title in PROBE_NAMES.items() if task in run.results]
    said += ["; ".join(ranks) + "."] if ranks else []
    said += [_no_alarm(run)] if run.watched and not run.metrics.alarms else []
    return [*said, _progress(run)]


def _no_alarm(run: RunFiles) -> str:
    """That the doctor is content; whether targets are mere positions it does not ask before the run has settled."""
    steps, settled = run.metrics.series.get("settled", ((0.0,), (0.0,)))
    early = steps[-1] < settled[-1]
    return "Collapse doctor: no alarm" + (" (too early to judge position)." if early else ".")


def _verdict(title: str, rows: Mapping[str, MetricsRow]) -> str:
    """The encoder's figure, beside that of the untrained one and of the best that pixels give."""
    name = next(iter(rows), "")
    measured = {key: row for key, row in rows.items() if not math.isnan(row["value"])}
    best = measured.pop(name, None)
    if best is None:
        return f"{title}: no figure."
    figure, metric = best["counted"], best["metric"]
    named = f" {METRIC_NAMES[metric]}" if "metrics" in best and metric in METRIC_NAMES else ""
    clauses, close = [f"{title}{named} {figure.told(figure.value)}{' %' if figure.share else ''}{interval(best)}"], []
    pixels = max((key for key in PIXELS if key in measured), key=lambda key: measured[key]["value"], default="")
    for row, words in ((measured.get(_UNTRAINED), f"the {_UNTRAINED}"), (measured.get(pixels), pixels)):
        if row is not None:
            gain = best["value"] - row["value"]
            sign, than = ("+", "over") if gain >= 0 else ("−", "against")
            clauses.append(f"{sign}{figure.told(abs(gain))} {than} {words}")
            if best["low"] <= row["high"] and row["low"] <= best["high"]:  # false where an interval is missing
                close.append(len(clauses) - 1)
    if len(close) == 1:
        clauses[close[0]] += " (intervals overlap)"
    return ", ".join(clauses) + (" (both intervals overlap)." if len(close) > 1 else ".")


def _rank(title: str, result: Result | None) -> str:
    """RankMe 18.0 (untrained 4.0), or nothing."""
    values = {name: row["value"] for name, row in result["rows"].items()} if result else {}
    trained, untrained = next(iter(values.values()), math.nan), values.get(_UNTRAINED, math.nan)
    if math.isnan(trained):
        return ""
    return f"{title} {trained:.1f}" + ("" if math.isnan(untrained) else f" (untrained {untrained:.1f})")


def _progress(run: RunFiles) -> str:
    series = run.metrics.series
    if "step" not in series:
        return "No training step logged yet."
    step, planned = int(series["step"][0][-1]), _steps(run.config)
    clauses = [f"{step:,} of {planned:,} steps" if planned and planned > step else f"{step:,} steps"]
    reported = {"loss": "loss {}", "effective_rank": "effective rank {}", "images_per_second": "{} images/s"}
    for key, words in reported.items():
        if (finite := finite_values(series, key)).size:
            clauses.append(words.format(short(finite[-1])))
    return "Trained " + ", ".join(clauses) + "."


def _steps(config: Mapping[str, Any]) -> int | None:
    steps = lookup(config, FACTS["Steps"])
    return steps if isinstance(steps, int) else None


def _facts(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Rows of the facts table: a title, a value per run, and whether the runs differ."""
    rows = []
    for title, path in FACTS.items():
        found = [lookup(run.config, path) for run in runs]
        values = ["–" if value is None else in_words(value) or "–" for value in found]
        if set(values) != {"–"}:
            rows.append({"title": title, "cells": values, "differs": len(set(values)) > 1})
    return rows
