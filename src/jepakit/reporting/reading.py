"""Reads the files of a run's folder, whatever of them is there; nothing else of jepakit is needed."""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from jepakit.core.counted import counted_figure
from jepakit.core.errors import UserError

from .figures import PALETTE, Series
from .states import checkpoint_state, state_of

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
AT_START = "_at_start"

MetricsRow = Mapping[str, Any]  # what the file has of a result, and what counts: metric, value, low, high (or NaN), counted
Result = Mapping[str, Any]  # what the file has, and rows: a Row for each name, that of the judged encoder first


class RunFolderError(UserError):
    """The folder holds no run, or a file of it cannot be read."""


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
    pictures: Mapping[str, NDArray[Any]]
    state: str  # running, finished or stopped
    images: int | None  # in the set that it trains on; None where no checkpoint says it
    steps: Mapping[str, Any]  # of `evaluate --steps`: images seen and results of each, baselines, sentences

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
    """One of the folders. Raises RunFolderError."""
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(f"{folder} holds no run: it has no config.yaml.")
    text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, Mapping):
        raise RunFolderError(f"{folder / 'config.yaml'} is not a YAML mapping.")
    if not {"method", "encoder", "optim"} & config.keys():
        raise RunFolderError(f"{folder} holds no run: its config.yaml is of something else.")
    files = {task: folder / "evaluation" / f"{task}.json" for task in (*PROBE_NAMES, *RANKS)}
    results = {task: _result(file, task) for task, file in files.items() if file.is_file()}
    pictures = _pictures(folder / "evaluation" / "pictures.npz")
    steps = _steps(folder / "evaluation" / "steps.json")
    metrics, kept = _metrics(folder / "metrics.jsonl"), checkpoint_state(folder)
    images = kept["images"] if isinstance(kept.get("images"), int) else None
    state, name = state_of(folder, bool(kept.get("finished"))), _name(index, folders)
    return RunFiles(folder, index, name, config, text, metrics, results, pictures, state, images, steps)


def lookup(config: Mapping[str, Any], dotted: str) -> Any:
    """The setting of a dotted name; None where there is none."""
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: object) -> float:
    """The value as a float; NaN for anything that is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


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
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""  # none before a run's first row
    for line in text.splitlines():
        try:
            record = json.loads(line)
            steps.setdefault(int(record["step"]), {}).update(record)
        except (ValueError, TypeError, KeyError, OverflowError):  # the line a killed run was writing
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
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            str(row["name"]): {**row, **counted_figure(task, row)._asdict(), "counted": counted_figure(task, row)}
            for row in result["rows"]
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path} is not the result of a task.") from error
    return {**result, "rows": rows}


def _steps(path: Path) -> Mapping[str, Any]:
    """What `evaluate --steps` left; empty where it left nothing. Raises RunFolderError for another file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        steps = [(int(step["images"]), dict(step["results"])) for step in found["steps"]]
        return {"steps": steps, "baselines": dict(found["baselines"]), "said": list(found["said"]), "of": found["of"]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path} is not the result of evaluate --steps.") from error


def _pictures(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{path} cannot be read as an array file.") from error
