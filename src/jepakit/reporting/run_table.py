"""The verb `runs`: what became of all runs below a folder, from the ends of their files. No torch, no numpy."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jepakit.core.counted import LESS_IS_BETTER, Counted, counted_figure
from jepakit.core.errors import UserError, checked, nearest, plain
from jepakit.core.files import load_json, user_path

from .states import YAML_LOADER, checkpoint_state, state_of
from .wording import data_name, duration, in_words

LOWEST_FIRST = ("age", "name", "method", "data", "state", "loss", *LESS_IS_BETTER)
LAST_PROBES = ("linear", "logistic", "attentive", "knn", "low_shot", "transfer", "segmentation", "probe/knn", "probe/rankme")
RUN_COLUMNS = ("name", "state", "step", "method", "data", "last probe", "alarms", "age")


@dataclass(frozen=True)
class RunRow:
    """A run in a line: metrics are those last logged, and those of its evaluation; alarms what the collapse doctor said."""

    name: str
    path: str
    state: str  # finished, running, stopped; unreadable where its settings are damaged
    step: int
    steps: int | None
    method: str
    data: str
    age: float  # seconds since something was logged
    alarms: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)  # of each task, the metric that its figure is

    @property
    def last_probe(self) -> str:
        """The first of LAST_PROBES that it has."""
        return next((f"{key} {self.told(key)}" for key in LAST_PROBES if key in self.metrics), "–")

    def told(self, key: str) -> str:
        """A metric in words."""
        if key not in self.metrics:
            return "–"
        if key in self.counts or key == "probe/knn":
            figure = Counted(self.counts.get(key, "accuracy"), self.metrics[key], math.nan, math.nan)
            return figure.told(figure.value) + (" %" if figure.share else "")
        return f"{self.metrics[key]:.4g}"


@checked
def runs(folder: str | os.PathLike[str] = "runs", sort: str = "age") -> list[RunRow]:
    """All runs in a folder and below it, by a column or a metric (`sort`), the best or newest first; those without it last.

    Raises UserError where there is no such folder, no run in it, or no such metric in any of them.
    """
    root = user_path(folder, "the folder")
    if not root.is_dir():
        raise UserError(f"{root} is {'a file' if root.exists() else 'not there'}: give a folder that holds runs")
    found = [row for place in run_folders(root) if (row := _row(place, root))]
    if not found:
        raise UserError(f"no run in {root} or below it: a run is a folder that jepakit pretrain --out made, with its config.yaml")
    known = sorted({*(key for row in found for key in row.metrics), *RUN_COLUMNS} - {"last probe"})
    if sort not in known:
        raise UserError(f"--sort {sort}: none of these runs has it; choose from {', '.join(known)}{nearest(sort, known)}")
    found.sort(key=lambda row: row.name)
    worth: dict[str, Any] = {row.path: _worth(row, sort) for row in found}
    low = sort in LOWEST_FIRST or any(row.counts.get(sort) in LESS_IS_BETTER for row in found)
    there = sorted((row for row in found if worth[row.path] is not None), key=lambda row: worth[row.path], reverse=not low)
    return [*there, *(row for row in found if worth[row.path] is None)]


def run_folders(root: Path) -> Iterator[Path]:
    """Folders with a run's settings; nothing is looked for inside a run. Links are not followed."""
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.yaml" in files and ("metrics.jsonl" in files or "checkpoints" in folders or ".lock" in files):
            folders.clear()
            yield Path(place)


def _row(place: Path, root: Path) -> RunRow | None:
    """None for the folder of another program."""
    name = str(place.relative_to(root)) if place != root else place.resolve().name
    try:
        config: Any = yaml.load(place.joinpath("config.yaml").read_text(encoding="utf-8", errors="replace"), Loader=YAML_LOADER)
    except (yaml.YAMLError, OSError):
        return RunRow(name, str(place), "unreadable", 0, None, "–", "–", math.inf)
    if not isinstance(config, Mapping) or "optim" not in config:
        return None
    last, alarms, written = _logged(place / "metrics.jsonl")
    kept, optim = checkpoint_state(place), config["optim"]
    steps = optim.get("steps") if isinstance(optim, Mapping) else None
    judged, counts = _judged(place / "evaluation")
    step = max(int(last.get("step", 0)), kept["step"] if isinstance(kept.get("step"), int) else 0)
    said = {"method": in_words(config.get("method") or "–"), "data": data_name(config.get("data"))}
    state = state_of(place, bool(kept.get("finished")))
    age = time.time() - written if written else math.inf
    return RunRow(
        name, str(place), state, step, steps if isinstance(steps, int) else None, **said,
        age=age, alarms=alarms, metrics={**last, **judged}, counts=counts,
    )  # fmt: skip


def _logged(path: Path) -> tuple[dict[str, float], list[str], float]:
    """The numbers of the last row and of the last look at the encoder, all alarms, and when the last row was written."""
    try:
        lines, written = path.read_bytes().splitlines(), path.stat().st_mtime
    except OSError:
        return {}, [], 0.0
    rows = [row for line in reversed(lines) if (row := _json(line))][:1] if lines else []
    looks = next((row for line in reversed(lines) if b'"probe/knn"' in line and (row := _json(line))), {})
    told = [_json(line).get("alarms") for line in lines if b'"alarms"' in line]
    alarms = [str(words) for each in told if isinstance(each, list) for words in each]
    found = {**{key: value for key, value in looks.items() if key.startswith("probe/")}, **(rows[0] if rows else {})}
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}
    return numbers, alarms, written


def _json(line: bytes) -> dict[str, Any]:
    """A row; empty for a line that a kill cut short."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _judged(folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """The figure that counts of each task, of the encoder that was judged, and which metric it is."""
    values, counts = {}, {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            figure = counted_figure(path.stem, load_json(path)["rows"][0])
            if math.isfinite(figure.value):
                values[path.stem], counts[path.stem] = figure.value, figure.metric
    return values, counts


def _worth(row: RunRow, sort: str) -> Any:
    if sort == "alarms":
        return len(row.alarms)
    value = row.metrics.get(sort) if sort not in RUN_COLUMNS else getattr(row, sort)
    return None if value == math.inf else value


def runs_table(found: Sequence[RunRow], sort: str = "age") -> str:
    """The runs as lines of text, with a column for what they are sorted by."""
    heads = [*RUN_COLUMNS] if sort in RUN_COLUMNS else [*RUN_COLUMNS[:5], sort, *RUN_COLUMNS[5:]]
    cells = [[_cell(row, head) for head in heads] for row in found]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in [heads, *cells]]
    return "\n".join(lines)


def _cell(row: RunRow, head: str) -> str:
    if head == "step":
        return f"{row.step:,} of {row.steps:,}" if row.steps and row.steps > row.step else f"{row.step:,}"
    if head == "age":
        return "–" if row.age == math.inf else duration(row.age)
    if head == "alarms":
        return f"{len(row.alarms)}: {row.alarms[-1].partition(':')[0]}" if row.alarms else "–"
    return plain(row.last_probe if head == "last probe" else str(getattr(row, head)) if head in RUN_COLUMNS else row.told(head))


def runs_as_json(found: Sequence[RunRow]) -> list[dict[str, Any]]:
    """The runs as plain values; ages that are not known are null when written."""
    return [{**asdict(row), "last_probe": row.last_probe} for row in found]
