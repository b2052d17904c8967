"""Reads the files of a run's folder, whatever of them is there; nothing else of jepakit is needed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jepakit.core.counted import counted_figure, number
from jepakit.core.errors import UserError

from .figures import PALETTE, Series
from .pictured import RunPictures, read_pictured
from .states import YAML_LOADER, checkpoint_state, state_of
from .whole_files import Arrays, DamagedFileError, T, fitting, read_arrays, read_json, result_rows

PROBE_NAMES = {
    "knn": "kNN",
    "linear": "Linear probe",
    "transfer": "Transfer probe",
    "low_shot": "Low-shot",
    "attentive": "Attentive probe",
    "logistic": "Logistic",
    "finetune": "Fine-tuning",
    "segmentation": "Segmentation mIoU",
    "boxes": "Boxes mIoU",
    "davis": "DAVIS J&F",
}
RANKS = {"rankme": "RankMe", "lidar": "LiDAR"}
SIGN_KEYS = ("target_std", "effective_rank", "position_share", "own_cosine", "other_cosine")  # what the collapse doctor looks at
PROBE_METRICS = 5  # rows it wants to have seen
# of evaluation/pictures.npz: dimensions and kind of each array, "u" numbers up to 255, "b" yes or no, "U" text
_SHAPES = {
    "images": (4, "u"), "context": (3, "b"), "targets": (4, "b"), "query_images": (4, "u"), "neighbour_images": (5, "u"),
    "query_labels": (1, "U"), "neighbour_labels": (2, "U"),
}  # fmt: skip
_SAME_NUMBER = (("images", "context", "targets"), ("query_images", "neighbour_images", "query_labels", "neighbour_labels"))
AT_START = "_at_start"

MetricsRow = Mapping[str, Any]  # what the file has of a result, and what counts: metric, value, low, high (or NaN), counted
Result = Mapping[str, Any]  # what the file has, and rows: a Row for each name, that of the judged encoder first


class RunFolderError(UserError):
    """The folder holds no run, or its settings cannot be read."""


@dataclass(frozen=True)
class Metrics:
    """The logged series, the doctor's alarms with their steps, and how many lines could not be read."""

    series: Series
    alarms: Sequence[tuple[int, str]]
    skipped: int


@dataclass(frozen=True)
class RunFiles:
    """What one folder holds; `index` picks the run's colour."""

    folder: Path
    index: int
    name: str
    config: Mapping[str, Any]
    yaml: str
    metrics: Metrics
    results: Mapping[str, Result]
    pictures: Arrays
    pictured: RunPictures | None  # what `jepakit report` made first
    state: str  # running, finished or stopped
    images: int | None  # in the set that it trains on; None where no checkpoint says it
    steps: Mapping[str, Any]  # of `evaluate --steps`: images seen and results of each, baselines, sentences
    damaged: Sequence[str]  # sentences on the files that are left out

    @property
    def colour(self) -> int:
        """The run's colour in the page's palette."""
        return self.index % PALETTE

    @property
    def probed(self) -> bool:
        """Whether any task with labels, or of pixels, has a result."""
        return any(task in self.results for task in PROBE_NAMES)

    @property
    def judged(self) -> str:
        """What the encoder is called that was judged: the first of each result's rows."""
        return next((name for result in self.results.values() for name in result["rows"]), "encoder")

    @property
    def change(self) -> float:
        """The step at which targets changed from pixels to features; 0 where they did not, or not yet."""
        last = max((steps[-1] for steps, _ in self.metrics.series.values() if len(steps)), default=0.0)
        return self._pixels_first if last > self._pixels_first else 0.0

    @property
    def _pixels_first(self) -> float:
        return max(0.0, number(lookup(self.config, "target.pixels_first") or 0))

    @property
    def watched(self) -> bool:
        """Whether the doctor has had what it looks at, to the end; fixed targets (pixels, a teacher) cannot collapse."""
        found = [self.metrics.series[sign] for sign in SIGN_KEYS if sign in self.metrics.series]
        signs = [values[steps > (self._pixels_first or -1)][-PROBE_METRICS:] for steps, values in found]
        seen = len(signs) == len(SIGN_KEYS) and all(len(sign) == PROBE_METRICS and np.isfinite(sign).all() for sign in signs)
        return seen and not self.fixed

    @property
    def fixed(self) -> bool:
        """Whether targets do not move with the encoder, so that they cannot collapse."""
        return lookup(self.config, "target.kind") == "pixels" or bool(lookup(self.config, "target.teacher"))


def read(folder: Path, index: int, folders: Sequence[Path]) -> RunFiles:
    """One of the folders; files that are damaged are left out, and named. Raises RunFolderError."""
    config, text = _config(folder)
    damaged: list[str] = []

    def whole(name: str, read_file: Callable[[Path], T], without: T) -> T:
        try:
            return read_file(folder / name) if (folder / name).is_file() else without
        except DamagedFileError as error:
            damaged.append(f"{name} {error}, and is left out")
            return without

    results: dict[str, Result | None] = {
        task: whole(f"evaluation/{task}.json", partial(_result, task=task), None) for task in (*PROBE_NAMES, *RANKS)
    }
    kept = checkpoint_state(folder)
    return RunFiles(
        folder,
        index,
        _name(index, folders),
        config,
        text,
        whole("metrics.jsonl", _metrics, Metrics({}, [], 0)),
        {task: result for task, result in results.items() if result is not None},
        whole("evaluation/pictures.npz", _pictures, {}),
        whole("pictures/about.json", read_pictured, None),
        state_of(folder, bool(kept.get("finished"))),
        kept["images"] if isinstance(kept.get("images"), int) else None,
        whole("evaluation/steps.json", _steps, {}),
        damaged,
    )


def _config(folder: Path) -> tuple[Mapping[str, Any], str]:
    """A run's settings, and as text. Raises RunFolderError."""
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(f"{folder} holds no run: it has no config.yaml.")
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
        config = yaml.load(text, Loader=YAML_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        config = None
    except OSError as error:
        raise RunFolderError(f"{folder / 'config.yaml'} cannot be read: {error.strerror}.") from None
    if not isinstance(config, Mapping):
        raise RunFolderError(f"{folder / 'config.yaml'} is not a YAML mapping.")
    if not {"method", "encoder", "optim"} & config.keys():
        raise RunFolderError(f"{folder} holds no run: its config.yaml is of something else.")
    return config, text


def lookup(config: Mapping[str, Any], dotted: str) -> Any:
    """The setting of a dotted name; None where there is none."""
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _name(index: int, folders: Sequence[Path]) -> str:
    """As little of the folder's path as tells the runs apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, 4):
        tails = ["/".join(path[-length:]) for path in paths]
        if tails.count(tails[index]) == 1:
            return tails[index]
    return f"{paths[index][-1]} ({index + 1})"


def _metrics(path: Path) -> Metrics:
    """Where a resumed run repeats a step, the later row wins."""
    steps: dict[int, dict[str, Any]] = {}
    skipped = 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DamagedFileError(f"cannot be read ({error.strerror})") from None
    for line in text.splitlines():
        try:
            record = json.loads(line)
            steps.setdefault(int(float(record["step"])), {}).update(record)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # the line a killed run was writing
            skipped += bool(line.strip())
    points: dict[str, list[tuple[float, float]]] = {}
    alarms: list[tuple[int, str]] = []
    for step in sorted(steps):
        reported = steps[step].pop("alarms", None)
        alarms += [(step, str(words)) for words in reported] if isinstance(reported, list) else []
        for key, value in steps[step].items():  # some names are logged on fewer steps than others
            points.setdefault(key, []).append((step, number(value)))  # null was not finite
    for key in [key for key in points if key.endswith(AT_START)]:  # a look at step 0, logged in the first row
        start, probed = points.pop(key)[0][1], points.setdefault(key.removesuffix(AT_START), [])
        if not probed or probed[0][0] > 0:
            probed.insert(0, (0, start))
    series = {key: (np.array(pairs, float)[:, 0], np.array(pairs, float)[:, 1]) for key, pairs in points.items()}
    return Metrics(series, alarms, skipped)


def _result(path: Path, task: str) -> Result:
    return fitting(lambda: _checked_result(read_json(path), task), "is not the result of a task")


def _checked_result(found: Any, task: str) -> Result:
    rows = {
        row["name"]: {**row, **(figure := counted_figure(task, row))._asdict(), "counted": figure}
        for row in result_rows(found["rows"])
    }
    table, names = found.get("confusion") or [], found.get("class_names") or []
    if table and names and any(len(row) != len(names) for row in (table, *table)):
        raise ValueError
    return {**found, "rows": rows}


def _steps(path: Path) -> Mapping[str, Any]:
    """What `evaluate --steps` left."""
    found = read_json(path)

    def checked() -> Mapping[str, Any]:
        baselines = {task: result_rows(rows) for task, rows in found["baselines"].items()}
        steps = []
        for step in found["steps"]:
            results = {task: result_rows([{"name": "", **row}])[0] for task, row in step["results"].items()}
            steps.append((int(float(step["images"])), results))
        return {"steps": steps, "baselines": baselines, "said": [*map(str, found["said"])], "of": dict(found["of"])}

    return fitting(checked, "is not the result of evaluate --steps")


def _pictures(path: Path) -> Arrays:
    found = read_arrays(path, lambda name: name in _SHAPES)
    alike = all(len({len(found[name]) for name in names if name in found}) <= 1 for names in _SAME_NUMBER)
    if not alike or any((each.ndim, each.dtype.kind) != _SHAPES[name] for name, each in found.items()):
        raise DamagedFileError("does not hold the pictures of an evaluation")
    return found
