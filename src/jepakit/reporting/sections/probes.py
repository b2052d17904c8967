"""The section on probes: each task's figures with their intervals, beside the baselines."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepakit.core.counted import METRIC_NAMES, Counted, number

from ..reading import PROBE_NAMES, MetricsRow, Result, RunFiles
from ..wording import in_words, interval, percent
from .class_tables import class_tables
from .ranks import rank_table

NOTES = {
    "knn": "The nearest training images vote.",
    "linear": "One linear layer on frozen features; its settings are chosen on a part of the training images.",
    "transfer": "One linear layer on frozen features, by the recipe for transfer to other data.",
    "low_shot": "A classifier on frozen features of few training images.",
    "attentive": "One layer of attention pools the frozen patch tokens.",
    "logistic": "Logistic regression on frozen features, solved exactly.",
    "finetune": "The encoder is trained too; the untrained one learns from scratch.",
    "segmentation": "A linear layer names each pixel from frozen patch tokens: mean intersection over union of the classes.",
    "boxes": "A linear layer says from frozen patch tokens which class’s box each pixel is in: mean IoU. No detector’s score.",
    "davis": "The first frame’s masks, carried through a video by likeness of patch tokens: mean of region (J) and boundary (F).",
}


def probes(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A table of each task that any of the runs was judged by, and one of the ranks."""
    tables = [_probe_table(task, runs) for task in PROBE_NAMES if any(task in run.results for run in runs)]
    return {"probes": tables, "ranks": rank_table(runs)}


def _probe_table(task: str, runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A row per encoder, a column per run; `scale` is the figure at the bars' right end."""
    probes = [run.results.get(task) for run in runs]
    names = list(dict.fromkeys(name for probe in probes if probe for name in probe["rows"]))
    cells = {name: [_cell(probe["rows"].get(name)) if probe else None for probe in probes] for name in names}
    ends = [end for row in cells.values() for cell in row if cell for end in (cell["value"], cell["high"])]
    first: MetricsRow = next((row for probe in probes if probe for row in probe["rows"].values()), {})
    figure = first.get("counted") or Counted("accuracy", math.nan, math.nan, math.nan)
    top = max(0.1, math.ceil(10 * max(ends, default=1.0) + 0.2) / 10)
    scale = top if figure.metric == "mae" else min(1.0, top)
    heads = [{"run": run, **_head(probe)} for run, probe in zip(runs, probes, strict=True)]
    alike = len({head["of"] for head in heads if head["of"]}) <= 1
    captions = {(head["of"], head["how"]) for head in heads if head["of"]}
    named = METRIC_NAMES.get(figure.metric, "") if "metrics" in first else ""
    bars = {"metric": named, "end": f"{100 * scale:.0f} %" if figure.share else f"{scale:.3g}", "more": class_tables(task, runs)}
    about = {"title": PROBE_NAMES[task], "note": NOTES[task], **bars, "caption": captions.pop() if len(captions) == 1 else None}
    return {**about, "heads": heads, "cells": cells, "scale": scale, "alike": alike}


def _head(probe: Result | None) -> dict[str, str]:
    """What was probed, how, and what the probe of the encoder came to choose."""
    if probe is None:
        return {"of": "", "how": "", "chosen": ""}
    row: MetricsRow = next(iter(probe["rows"].values()), {})
    of = [Path(in_words(probe["data"])).name] if "data" in probe else []
    of += [in_words(probe["labels"])] if "labels" in probe else []
    if isinstance(row.get("per_class"), list):
        of.append(f"{len(row['per_class'])} classes")
    called = {"multi": {"classes": "{} labels at once"}, "number": {}}.get(str(probe.get("kind")), {"classes": "{} classes"})
    counts = {**called, "n_train": "{} train", "n_test": "{} test images"}
    of += [words.format(in_words(probe.get(key, "?"))) for key, words in counts.items() if "labels" in probe]
    if number(probe.get("independent")) < number(probe.get("n_test")):
        of[-1] += f" ({in_words(probe['independent'])} independent)"
    if number(probe.get("seen_test")) > 0:
        of.append(f"of which pretraining saw {in_words(probe['seen_test'])}")
    of += [f"{in_words(row['objects'])} objects"] if "objects" in row else []
    return {"of": ", ".join(of) or "?", "how": in_words(probe.get("settings") or {}), "chosen": _chosen(row)}


def _chosen(row: MetricsRow) -> str:
    """The account of a probe in words: the head that held-out images chose, or the draws."""
    head, grid, draws = (row.get(key) for key in ("head", "heads", "accuracies"))
    if isinstance(head, Mapping):
        figure: Counted = row["counted"]
        most = f"; the best on the test images has {figure.told(number(row.get('best_on_test')))}{' %' if figure.share else ''}"
        count = f" among {len(grid)}" if isinstance(grid, list) else ""
        return f"Head chosen{count} on held-out training images: {in_words(head)}{most}."
    if isinstance(draws, list):
        over = "; intervals are over draws" if "interval" in row else ""
        return f"{len(draws)} draw{'s' * (len(draws) != 1)} of {in_words(row.get('n_train', '?'))} training images{over}."
    return ""


def _cell(row: MetricsRow | None) -> dict[str, Any] | None:
    if row is None or math.isnan(row["value"]):
        return None
    value, low, high = (max(0.0, row[end] if math.isfinite(row[end]) else row["value"]) for end in ("value", "low", "high"))
    extras = {"pixel_accuracy": "pixel accuracy", "j": "J", "f": "F"}
    also = ", ".join(f"{words} {percent(number(row[key]))}" for key, words in extras.items() if key in row)
    about = {"text": row["counted"].told(row["value"]), "interval": interval(row), "also": also}
    return {"value": value, "low": low, "high": high, **about}
