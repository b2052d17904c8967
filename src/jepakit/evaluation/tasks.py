"""The verb `evaluate`: tasks on a run's frozen features, results as JSON and as a table."""

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from jepakit.config import Config
from jepakit.data.sources import Labels, Source, open_source
from jepakit.device import device_of, precision_of, use_cpu
from jepakit.encoder import Encoder
from jepakit.errors import UserError, nearest
from jepakit.evaluation.features import Features, extract, pca
from jepakit.evaluation.knn import knn
from jepakit.evaluation.linear import linear
from jepakit.evaluation.pictures import save_pictures
from jepakit.files import save_json
from jepakit.metrics import rankme
from jepakit.run import Run
from jepakit.weights import jepa_from_checkpoint, jepa_of

log = logging.getLogger("jepakit")
Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Features by name, in two halves, with labels (n,), (m,)."""

    train: dict[str, Tensor]
    test: dict[str, Tensor]
    train_labels: Tensor
    test_labels: Tensor


def _knn(train: Tensor, labels: Tensor, test: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return knn(train, labels, test), {}


def _linear(train: Tensor, labels: Tensor, test: Tensor) -> tuple[Tensor, dict[str, Any]]:
    predicted, c = linear(train, labels, test)
    return predicted, {"C": c}


TASKS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Any]]], dict[str, Any]]] = {
    "knn": (_knn, {"k": 20, "temperature": 0.07, "similarity": "cosine"}),
    "linear": (_linear, {"probe": "logistic regression on standardised features", "C": "chosen on a fifth of train"}),
}


def evaluate(
    run: Run | str | Path, data: str | Path | None = None, tasks: list[str] | tuple[str, ...] = tuple(TASKS)
) -> dict[str, list[Row]]:
    """Probe a run on labelled images (default: the run's own), beside baselines; writes RUN/evaluation/.

    Rows of each task: name, accuracy, and low and high of its 95 % bootstrap interval over test images.
    Raises UserError for an unknown task. Without labels only RankMe and pictures are made, and that is said.
    """
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"unknown task '{task}': choose from {', '.join(TASKS)}{nearest(task, TASKS)}")
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    source = open_source(str(data or config.data or ""))
    features = extract(source, _encoders(run), precision_of(config.run.precision, device_of(config.run.device)))
    folder = _folder(run, source.name)
    ranks = [{"name": name, "rankme": rankme(x[:25_600])} for name, x in features.by_name.items()]
    save_json(folder / "rankme.json", {"task": "rankme", "data": source.name, "rows": ranks})
    save_pictures(folder / "pictures.npz", config, source, features)
    if source.labels is None:
        log.warning(
            "%s has no labels: put images into sub-folders, one a class, to probe; RankMe and pictures were made",
            source.name,
        )
        return {"rankme": ranks}
    return {"rankme": ranks} | _probe(source, source.labels, features, tasks, folder, config.encoder.width)


def _folder(run: Run, data: str) -> Path:
    """RUN/evaluation, without results on other data: one report tells of one set."""
    folder = run.path / "evaluation"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        try:
            same = json.loads(old.read_text()).get("data") == data
        except ValueError:
            same = False
        if not same:
            old.unlink()
    return folder


def _encoders(run: Run) -> dict[str, Encoder]:
    jepa = jepa_from_checkpoint(run.path)
    config = jepa.method
    assert isinstance(config, Config)  # that of a run always is
    use_cpu(config.run.threads)
    device, fresh = device_of(config.run.device), jepa_of(config)
    vits = {"target encoder": jepa.target_encoder, "encoder": jepa.encoder, "untrained encoder": fresh.encoder}
    return {name: Encoder(vit, config.images, config.conditioning).to(device).eval() for name, vit in vits.items()}


def _probe(
    source: Source, labels: Labels, features: Features, tasks: list[str] | tuple[str, ...], folder: Path, width: int
) -> dict[str, list[Row]]:
    split = _split(features, labels, width)
    results = {}
    for task in tasks:
        function, settings = TASKS[task]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a probe stopped early is a fair probe
            rows = [
                _row(name, *function(split.train[name], split.train_labels, split.test[name]), split.test_labels)
                for name in split.train
            ]
        most = torch.full_like(split.test_labels, int(split.train_labels.bincount().argmax()))
        rows.append(_row("majority class", most, {}, split.test_labels))
        results[task] = rows
        about = {
            "task": task,
            "data": source.name,
            "labels": labels.name,
            "classes": len(labels.classes),
            "settings": settings,
        }
        counts = {"n_train": len(split.train_labels), "n_test": len(split.test_labels)}
        save_json(folder / f"{task}.json", {**about, **counts, "rows": rows})
    return results


def _split(features: Features, labels: Labels, width: int) -> Split:
    test = torch.from_numpy(labels.test[features.ids])
    values = torch.from_numpy(labels.values[features.ids])
    if not test.any() or len(values[~test].unique()) < 2:
        raise UserError("too few images to hold some out: give at least five of each of two classes")
    train_x = {name: x[~test] for name, x in features.by_name.items()}
    test_x = {name: x[test] for name, x in features.by_name.items()}
    raw = train_x["raw pixels"]
    train_x["pixel PCA"], test_x["pixel PCA"] = pca(raw, test_x["raw pixels"], components=min(width, *raw.shape))
    return Split(train_x, test_x, values[~test], values[test])


def _row(name: str, predicted: Tensor, extra: dict[str, Any], truth: Tensor) -> Row:
    accuracy = float((predicted == truth).float().mean())
    low, high = bootstrap(accuracy, len(truth))
    return {"name": name, "accuracy": accuracy, "low": low, "high": high, **extra}


def bootstrap(accuracy: float, n: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean of n right-or-wrongs: their resampled mean is binomial, exactly."""
    low, high = (float(binom.ppf(q, n, accuracy)) / n for q in (0.025, 0.975))
    return low, high


def as_table(results: dict[str, list[Row]]) -> str:
    """The results as lines of text, a row for each encoder or baseline."""
    tasks = [task for task in results if task != "rankme"]
    ranks = {row["name"]: row["rankme"] for row in results["rankme"]}
    names = [row["name"] for row in results[tasks[0]]] if tasks else list(ranks)
    lines = [f"{'':20}" + "".join(f"{task:>24}" for task in tasks) + f"{'RankMe':>10}"]
    for name in names:
        cells = [next(row for row in results[task] if row["name"] == name) for task in tasks]
        texts = [f"{100 * c['accuracy']:.1f} % [{100 * c['low']:.1f}-{100 * c['high']:.1f}]" for c in cells]
        rank = f"{ranks[name]:10.1f}" if name in ranks else ""
        lines.append(f"{name:20}" + "".join(f"{text:>24}" for text in texts) + rank)
    return "\n".join(lines)
