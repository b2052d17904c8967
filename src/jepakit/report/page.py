"""Reads the files of run folders and assembles the page; nothing else of jepakit is needed."""

import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from .figures import PALETTE, Series, finite_values, masks, neighbours, panels, short

TASKS = {"knn": "kNN", "linear": "Linear probe"}
FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Method", ("method",)),
    ("Recipe", ("recipe",)),
    ("Data", ("data",)),
    ("Image size", ("images.size",)),
    ("Encoder", ("encoder",)),
    ("Predictor", ("predictor",)),
    ("Steps", ("optim.steps",)),
    ("Epochs", ("optim.epochs",)),
    ("Batch", ("optim.batch_size",)),
    ("Seed", ("seed",)),
)
NAMES = ("name", "kind", "preset", "size", "source", "path")  # keys whose value speaks for itself


class RunFolderError(ValueError):
    """The folder holds no run, or a file of it cannot be read."""


@dataclass(frozen=True)
class Run:
    """What one folder holds; `index` picks the run's colour."""

    index: int
    name: str
    config: Mapping[str, Any]
    yaml: str
    series: Series
    skipped: int
    probes: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, NDArray[Any]]

    @property
    def colour(self) -> int:
        """The run's colour in the page's palette."""
        return self.index % PALETTE


def report(runs: Sequence[Path | str] | Path | str, out: Path | str | None = None) -> Path:
    """Write the page of one run, or of several side by side; by default `report.html` in the first folder."""
    folders = [Path(run) for run in ([runs] if isinstance(runs, Path | str) else runs)]
    if not folders:
        raise RunFolderError("A report needs at least one run folder.")
    read = [_read(folder, index, folders) for index, folder in enumerate(folders)]
    path = folders[0] / "report.html" if out is None else Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(_render(read), encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _render(runs: Sequence[Run]) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("page.html").render(
        runs=runs,
        summaries={run.name: _summary(run) for run in runs},
        facts=_facts(runs),
        panels=panels([run.series for run in runs]),
        probes=[_probe_table(task, title, runs) for task, title in TASKS.items()],
        masks={run.name: masks(run.pictures, 8 if len(runs) == 1 else 4) for run in runs},
        neighbours={run.name: neighbours(run.pictures) for run in runs},
    )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(folder: Path, index: int, folders: Sequence[Path]) -> Run:
    for needed in ("config.yaml", "metrics.jsonl"):
        if not (folder / needed).is_file():
            raise RunFolderError(f"{folder} holds no run: it has no {needed}.")
    text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, Mapping):
        raise RunFolderError(f"{folder / 'config.yaml'} is not a YAML mapping.")
    series, skipped = _series(folder / "metrics.jsonl")
    files = {task: folder / "evaluation" / f"{task}.json" for task in TASKS}
    probes = {task: _probe(file) for task, file in files.items() if file.is_file()}
    pictures = _pictures(folder / "evaluation" / "pictures.npz")
    return Run(index, _name(index, folders), config, text, series, skipped, probes, pictures)


def _name(index: int, folders: Sequence[Path]) -> str:
    """As little of the folder's path as tells the runs apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, 4):
        tails = ["/".join(parts[-length:]) for parts in paths]
        if tails.count(tails[index]) == 1:
            return tails[index]
    return f"{paths[index][-1]} ({index + 1})"


def _series(path: Path) -> tuple[Series, int]:
    """The logged series, and how many lines could not be read; where a resumed run repeats a step, the later wins."""
    steps: dict[float, dict[str, Any]] = {}
    skipped = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            steps.setdefault(float(record["step"]), {}).update(record)
        except (ValueError, TypeError, KeyError):  # the line a killed run was writing
            skipped += bool(line.strip())
    points: dict[str, list[tuple[float, float]]] = {}
    for step in sorted(steps):
        for key, value in steps[step].items():  # some names are logged on fewer steps than others
            if value is not None:
                points.setdefault(key, []).append((step, _number(value)))
    return {key: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for key, pairs in points.items()}, skipped


def _probe(path: Path) -> Mapping[str, Any]:
    try:
        probe = json.loads(path.read_text(encoding="utf-8"))
        rows = {str(row["name"]): {key: _number(row.get(key)) for key in ("accuracy", "low", "high")}
                for row in probe["rows"]}  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path} is not the result of a probe.") from error
    return {**probe, "rows": rows}


def _pictures(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{path} cannot be read as an array file.") from error


def _number(value: object) -> float:
    """The value as a float; NaN for anything that is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(run: Run) -> list[str]:
    """The run in words: one sentence per probe, one on training."""
    return [*(_verdict(TASKS[task], probe["rows"]) for task, probe in run.probes.items()), _progress(run)]


def _verdict(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    name = "target encoder" if "target encoder" in rows else next(iter(rows), "")
    best = rows.get(name, {"accuracy": math.nan, "low": math.nan, "high": math.nan})
    if math.isnan(best["accuracy"]):
        return f"{title}: no accuracy."
    parts = [f"{title} {percent(best['accuracy'])} %{interval(best)}"]
    for other, words in (("untrained encoder", "the untrained encoder"), ("raw pixels", "raw pixels")):
        row = rows.get(other)
        if row is None or other == name or math.isnan(row["accuracy"]):
            continue
        gain = 100 * (best["accuracy"] - row["accuracy"])
        close = best["low"] <= row["high"] and row["low"] <= best["high"]  # false where an interval is missing
        sign = "+" if gain >= 0 else "−"
        parts.append(f"{sign}{abs(gain):.1f} {'over' if gain >= 0 else 'against'} {words}"
                     + (" (intervals overlap)" if close else ""))  # fmt: skip
    return ", ".join(parts) + "."


def _progress(run: Run) -> str:
    if "step" not in run.series:
        return "No training step logged yet."
    step, planned = int(run.series["step"][0][-1]), _steps(run.config)
    parts = [f"{step:,} of {planned:,} steps" if planned and planned > step else f"{step:,} steps"]
    told = {"loss": "loss {}", "effective_rank": "effective rank {}", "images_per_second": "{} images/s"}
    for key, words in told.items():
        if (finite := finite_values(run.series, key)).size:
            parts.append(words.format(short(finite[-1])))
    return "Trained " + ", ".join(parts) + "."


def percent(fraction: float) -> str:
    """55.2 for 0.552; a dash for none."""
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "–"


def interval(row: Mapping[str, float]) -> str:
    """The 95 % interval in brackets, or nothing."""
    known = math.isfinite(row["low"]) and math.isfinite(row["high"])
    return f" [{100 * row['low']:.0f}–{100 * row['high']:.0f}]" if known else ""


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _steps(config: Mapping[str, Any]) -> int | None:
    found = (_lookup(config, path) for path in dict(FACTS)["Steps"])
    return next((value for value in found if isinstance(value, int)), None)


def _words(value: Any) -> str:
    """A setting in a few words: of a mapping, its name and its first plain values."""
    if isinstance(value, Mapping):
        plain = {key: item for key, item in value.items() if item is not None and not isinstance(item, Mapping | list)}
        named = [str(plain.pop(key)) for key in NAMES if key in plain]
        return ", ".join([*named, *(f"{key} {item}" for key, item in plain.items())][:6])
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _facts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of the facts table: a title, a value per run, and whether the runs differ."""
    rows = []
    for title, paths in FACTS:
        found = [next((v for path in paths if (v := _lookup(run.config, path)) is not None), None) for run in runs]
        values = ["–" if value is None else _words(value) or "–" for value in found]
        if set(values) != {"–"}:
            rows.append({"title": title, "cells": values, "differs": len(set(values)) > 1})
    return rows


def _probe_table(task: str, title: str, runs: Sequence[Run]) -> dict[str, Any]:
    """A row per encoder, a column per run; `scale` is the accuracy at the bars' right end."""
    probes = [run.probes.get(task) for run in runs]
    names = list(dict.fromkeys(name for probe in probes if probe for name in probe["rows"]))
    cells = {name: [_cell(probe["rows"].get(name)) if probe else None for probe in probes] for name in names}
    ends = [end for row in cells.values() for cell in row if cell for end in (cell["accuracy"], cell["high"])]
    scale = min(1.0, math.ceil(10 * max(ends, default=1.0) + 0.2) / 10)
    heads = [{"run": run, **_head(probe)} for run, probe in zip(runs, probes, strict=True)]
    alike = len({head["of"] for head in heads if head["of"]}) <= 1
    return {"title": title, "heads": heads, "cells": cells, "scale": scale, "alike": alike}


def _head(probe: Mapping[str, Any] | None) -> dict[str, str]:
    """What was probed, and how."""
    if probe is None:
        return {"of": "", "how": ""}
    count = {key: _words(probe.get(key, "?")) for key in ("labels", "classes", "n_train", "n_test")}
    of = f"{count['labels']}, {count['classes']} classes, {count['n_train']} train, {count['n_test']} test images"
    return {"of": of, "how": _words(probe.get("settings") or {})}


def _cell(row: Mapping[str, float] | None) -> dict[str, Any] | None:
    if row is None or math.isnan(row["accuracy"]):
        return None
    low, high = (row[end] if math.isfinite(row[end]) else row["accuracy"] for end in ("low", "high"))
    return {**row, "low": low, "high": high, "text": percent(row["accuracy"]), "interval": interval(row)}
