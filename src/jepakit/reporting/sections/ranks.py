"""The table of ranks: how many directions the features use."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reading import RANKS, MetricsRow, Result, RunFiles
from ..wording import in_words


def rank_table(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A row per encoder, a column per run and rank; warnings each with whom they concern."""
    columns = [(run, task, run.results[task]) for task in RANKS for run in runs if task in run.results]
    names = list(dict.fromkeys(name for *_, result in columns for name in result["rows"]))
    warned: dict[tuple[str, str, str], list[str]] = {}
    for run, task, result in columns:
        for name, row in result["rows"].items():
            if row.get("warning"):
                warned.setdefault((run.name if len(runs) > 1 else "", RANKS[task], str(row["warning"])), []).append(name)
    warnings = [
        " – ".join(filter(None, [who, f"{title} of {', '.join(of)}: {words}"])) for (who, title, words), of in warned.items()
    ]
    runs_by_how: dict[str, dict[str, list[str]]] = {}
    for run, task, result in columns:
        runs_by_how.setdefault(RANKS[task], {}).setdefault(_views(result), []).append(run.name)
    alike = all(len(ways) == 1 for ways in runs_by_how.values())
    return {
        "heads": [{"run": run, "title": RANKS[task]} for run, task, _ in columns],
        "cells": {name: [_rank_cell(result["rows"].get(name)) for *_, result in columns] for name in names},
        "hows": [
            f"{title}{'' if alike else ' of ' + ', '.join(who)}: {how}."
            for title, ways in runs_by_how.items()
            for how, who in ways.items()
        ],
        "warnings": warnings,
        "alike": alike,
    }


def _views(result: Result) -> str:
    """What a rank was taken of: LiDAR compares at equal numbers only."""
    row: MetricsRow = next(iter(result["rows"].values()), {})
    views = [f"{in_words(row[key])} {words}" for key, words in {"n": "images", "q": "views"}.items() if key in row]
    settings = [f"{key} {in_words(row[key])}" for key in ("by", "delta", "eps") if key in row]
    return ", ".join([Path(in_words(result.get("data", "?"))).name, *views, *settings])


def _rank_cell(row: MetricsRow | None) -> dict[str, Any] | None:
    return (
        None if row is None or math.isnan(row["value"]) else {"text": f"{row['value']:.1f}", "warned": bool(row.get("warning"))}
    )
