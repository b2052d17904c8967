"""What stands on top of the page: the run in sentences, and its facts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jepakit.core.counted import METRIC_NAMES, number

from ..figures import finite_values, short
from ..reading import PROBE_NAMES, RANKS, MetricsRow, Result, RunFiles, lookup
from ..wording import data_name, duration, in_words, interval
from .curves import hours_trained
from .verdict import UNTRAINED, Verdict, judged_by, verdict

METHOD_NAMES = {
    "ijepa": "I-JEPA",
    "ec_ijepa": "EC-IJEPA",
    "c_jepa": "C-JEPA",
    "ec_c_jepa": "EC-C-JEPA",
    "mae_pixels": "Pixel targets",
}

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
    """Of each run the verdict, what was trained, its figures beside baselines and sentences; and a table of settings."""
    tops = {}
    for run in runs:
        found = verdict(run)
        about = {"trained": _trained(run), "doctor": _doctor(run), "cost": _cost(run), "plot": _plot(run, found)}
        tops[run.name] = {"verdict": found, "sentences": _sentences(run), **about}
    return {"tops": tops, "facts": _facts(runs)}


def _trained(run: RunFiles) -> str:
    """What was trained on what, for how long."""
    series = run.metrics.series
    method, width = lookup(run.config, "method"), lookup(run.config, "encoder.width")
    encoder = f"a ViT of {lookup(run.config, 'encoder.depth')} blocks, {width} wide" if width else "an encoder"
    data = data_name(lookup(run.config, "data"))
    images = f"{run.images:,} images of {data}" if run.images else data
    made = (
        f"{METHOD_NAMES.get(str(method).replace('-', '_'), in_words(method) if method else 'JEPA')} trained {encoder} on {images}"
    )
    if "step" not in series:
        return f"{made}: no step is logged yet."
    step, planned = int(series["step"][0][-1]), _steps(run.config)
    seconds = 3600 * float(hours[-1]) if (hours := hours_trained(series)[1]).size else math.nan
    time = f" for {duration(seconds)}" if math.isfinite(seconds) else ""
    if not planned or step >= planned or run.state == "finished":
        return f"{made}{time}: {step:,} steps."
    word = "so far" if run.state == "running" else "then it stopped"
    return f"{made}{time}: {step:,} of {planned:,} steps, {word}."


def _cost(run: RunFiles) -> list[tuple[str, str]]:
    """What it took: time, pace, images."""
    series, batch = run.metrics.series, number(lookup(run.config, "optim.batch_size"))
    hours, rates = hours_trained(series)[1], finite_values(series, "images_per_second")
    found = [("Training time", duration(3600 * float(hours[-1])))] if hours.size else []
    found += [("Pace", f"{short(float(np.median(rates)))} images/s")] if rates.size else []
    if "step" in series and batch > 0:
        seen = int(series["step"][0][-1]) * batch
        each = f", each {seen / run.images:.0f} times" if run.images and seen >= run.images else ""
        found += [("Images seen", f"{seen:,.0f}{each}")]
    return found


def _doctor(run: RunFiles) -> str:
    """What the collapse doctor says, where it raised no alarm."""
    if run.metrics.alarms or "step" not in run.metrics.series:
        return ""
    if run.fixed:
        return "Collapse doctor: not asked, as these targets do not move with the encoder."
    return _no_alarm(run) if run.watched else "Collapse doctor: too little was logged to tell."


def _plot(run: RunFiles, found: Verdict) -> dict[str, Any] | None:
    """The figures of the task that speaks for the run, each with its interval as shares of a scale."""
    if not found.judged:
        return None
    result = run.results[found.judged.task]
    rows = [row for row in result["rows"].values() if math.isfinite(row["value"])]
    ends = [end for row in rows for end in (row["value"], row["low"], row["high"]) if math.isfinite(end)]
    low, high = min(0.0, *ends), max(ends) * 1.06 or 1.0
    at = [{key: 100 * (row[key] - low) / (high - low) for key in ("value", "low", "high")} for row in rows]
    told = [row["counted"].told(row["value"]) + (" %" if row["counted"].share else "") for row in rows]
    metric = rows[0]["metric"]
    title = f"{PROBE_NAMES[found.judged.task]}, {METRIC_NAMES.get(metric, metric)}"
    each = [
        {"name": row["name"], "told": words, "interval": interval(row), "at": place}
        for row, words, place in zip(rows, told, at, strict=True)
    ]
    return {"title": title, "rows": each}


def _sentences(run: RunFiles) -> list[str]:
    """The run in words: one sentence per probe, one on ranks, on the doctor and on training."""
    ranks = [words for task, title in RANKS.items() if (words := _rank(title, run.results.get(task)))]
    said = [_figure(title, run.results[task]["rows"]) for task, title in PROBE_NAMES.items() if task in run.results]
    said += ["; ".join(ranks) + "."] if ranks else []
    said += [doctor] if (doctor := _doctor(run)) else []
    return [*said, _progress(run)]


def _no_alarm(run: RunFiles) -> str:
    """That the doctor is content; whether targets are mere positions it does not ask before the run has settled."""
    steps, settled = run.metrics.series.get("settled", ((0.0,), (0.0,)))
    early = steps[-1] < settled[-1]
    return "Collapse doctor: no alarm" + (" (too early to judge position)." if early else ".")


def _figure(title: str, rows: Mapping[str, MetricsRow]) -> str:
    """The encoder's figure, beside that of the untrained one and of the best that pixels give."""
    judged = judged_by("", rows)
    if judged is None:
        return f"{title}: no figure."
    best = judged.best
    figure, metric = best["counted"], best["metric"]
    named = f" {METRIC_NAMES[metric]}" if "metrics" in best and metric in METRIC_NAMES else ""
    clauses, close = [f"{title}{named} {figure.told(figure.value)}{' %' if figure.share else ''}{interval(best)}"], []
    for row, words in ((judged.untrained, f"the {UNTRAINED}"), (judged.pixels, judged.pixels and judged.pixels["name"])):
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
    trained, untrained = next(iter(values.values()), math.nan), values.get(UNTRAINED, math.nan)
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
