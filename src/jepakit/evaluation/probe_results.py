"""What one probe came to: rows as they come in, what was said of each test sample, and the two files of it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from jepakit.core.files import atomic_write, save_json
from jepakit.data.sources import LabelKind, Labels, Source
from jepakit.evaluation.aggregate import GroupedTest
from jepakit.evaluation.bootstrap import figures_and_resamples, per_class
from jepakit.evaluation.metrics import Predictions, class_confusion, metrics_named
from jepakit.evaluation.probes.logistic import as_predictions
from jepakit.evaluation.probes.protocol import ProbeLabels, Protocol
from jepakit.evaluation.split import Split, SplitRows, train_and_test
from jepakit.model.method import Which, encoder_label

ResultRow = dict[str, Any]
Baselines = dict[str, dict[str, tuple[ResultRow, Predictions]]]  # by task and name, what was found and what was said
MAJORITY = "majority class"
WITHOUT_IMAGES: dict[LabelKind, str] = {"class": MAJORITY, "multi": "shares of labels", "number": "mean number"}
CONFUSION_IN_JSON = 100  # classes
SCORES_KEPT = 64 << 20  # bytes of one encoder's scores
log = logging.getLogger("jepakit")


@dataclass
class ProbeResults:
    """The results of one probe, as they come in: for each encoder and baseline a row, and what it said of m test samples.

    ids: places of the samples in the source; the split's rows are places in ids. metrics: those that count, the first most.
    seen_test: how many test images were seen in pretraining, of groups how many with a seen image, None where that is not known.
    known: whether it is known what the encoder was pretrained on. judged_as: where scores are averaged over groups before they
    are judged, how. units: what is judged one by one. drawn: by encoder and metric, its values in resamples of the samples (R,).
    """

    source: Source
    labels: Labels
    split: Split
    ids: SplitRows
    metrics: tuple[str, ...]
    seen_test: int | None = None
    known: bool = True
    judged_as: GroupedTest | None = None
    units: Literal["images", "groups"] = "images"
    rows: list[ResultRow] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    drawn: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: Source,
        labels: Labels,
        ids: SplitRows,
        seen: NDArray[np.bool_] | None = None,
        *,
        known: bool = True,
        metric: str = "",
        grouped: bool = False,
        units: Literal["images", "groups"] = "images",
    ) -> "ProbeResults":
        """For the samples at places `ids`, split into training and test; seen: a bool for each sample of the source, whether
        pretraining saw it; grouped: scores are averaged over groups. Raises UserError as `train_and_test`."""
        split, metrics = train_and_test(source, labels, ids), metrics_named(metric, labels.kind)
        judged_as = GroupedTest.of(labels, split, ids) if grouped else None
        seen_test = None if seen is None else seen[ids[split.test]]
        if seen_test is not None and judged_as is not None:
            seen_test = np.bincount(judged_as.which, seen_test) > 0
        count = None if seen_test is None else int(seen_test.sum())
        return cls(source, labels, split, ids, metrics, count, known, judged_as, units)

    @property
    def problem(self) -> ProbeLabels:
        """What a probe is told of the labels."""
        split, labels = self.split, self.labels
        # groups that are only numbers come with a set of ours, whose figures were taken with fifths that divide them
        groups = split.train_groups if labels.group_names else None
        y = (split.train_labels, split.test_labels, len(labels.classes))
        return ProbeLabels(*y, self._titles, labels.whole_image, self.metrics[0], groups)

    @property
    def truth(self) -> NDArray[Any]:
        """Labels of what is judged: the test samples, or groups of them."""
        return self.split.test_labels.numpy() if self.judged_as is None else self.judged_as.truth

    @property
    def clusters(self) -> SplitRows | None:
        """Groups of what is judged, if any."""
        return self.split.clusters if self.judged_as is None else self.judged_as.groups

    def _titles(self) -> list[str]:
        """Names of the training images (n,)."""
        return [self.source.title(int(i)) for i in self.ids[self.split.train]]

    def judge(self, name: str, predictions: Predictions, about: Mapping[str, Any]) -> tuple[ResultRow, Predictions]:
        """The row of one encoder, each metric with its interval over groups of test images; and what was judged."""
        if self.judged_as is not None:
            predictions = predictions.grouped(self.judged_as.which, len(self.judged_as.truth))
        truth, groups = self.truth, self.clusters
        found, self.drawn[name] = figures_and_resamples(predictions, truth, groups)
        if (self.seen_test or not self.known) and name in map(encoder_label, get_args(Which)):
            about = {**about, "seen_test": self.seen_test, "n_test": len(truth), "units": self.units}
        top = "accuracy" if predictions.kind == "class" else self.metrics[0]
        figure = {top: found[top]["value"], "low": found[top]["low"], "high": found[top]["high"]}
        return {"name": name, **figure, "counts": self.metrics[0], "metrics": found, **about}, predictions

    def enter(self, name: str, predictions: Predictions, about: Mapping[str, Any]) -> None:
        """Note one result."""
        self.note(*self.judge(name, predictions, about))

    def note(self, row: ResultRow, predictions: Predictions) -> None:
        """Note one result that was judged."""
        self.rows.append(row)
        self.predictions[row["name"]] = predictions

    def share(self, baselines: dict[str, tuple[ResultRow, Predictions]], judged: str) -> None:
        """Add what is here of all but the judged encoder to the baselines, and what is there to this."""
        for row in self.rows:
            if row["name"] != judged:
                baselines.setdefault(row["name"], (row, self.predictions[row["name"]]))
        for name, outcome in baselines.items():
            if name not in self.predictions:
                self.note(*outcome)

    def save(self, folder: Path, task: str, protocol: Protocol) -> list[ResultRow]:
        """Add what needs no image as a baseline, write TASK.json and TASK.npz to the folder, and return the rows."""
        split, first, truth = self.split, next(iter(self.predictions.values()), None), self.truth
        self.enter(WITHOUT_IMAGES[self.labels.kind], _without_images(split, len(self.labels.classes)), {})
        about = {
            "task": task,
            "data": self.source.name,
            "labels": self.labels.name,
            "kind": self.labels.kind,
            "metrics": self.metrics,
            "classes": len(self.labels.classes),
            "n_train": len(split.train),
            "n_test": len(truth),
            "seen_test": self.seen_test,
            "independent": len(truth) if self.clusters is None else len(np.unique(self.clusters)),
            "settings": self.rows[0].get("settings") or protocol.model_dump(mode="json").get(task),
            "symmetry": protocol.symmetry,
            "seed": protocol.seed,
            "aggregate": protocol.aggregate,
        }
        if first is not None and self.labels.kind != "number":
            about["per_class"] = per_class(first, truth, self.labels.classes)
            if first.predicted is not None and len(self.labels.classes) <= CONFUSION_IN_JSON:
                about["confusion"] = class_confusion(first, truth).tolist()
                about["class_names"] = list(self.labels.classes)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{task}.npz") as draft:
            np.savez_compressed(draft, **self._arrays(task))
        save_json(folder / f"{task}.json", {**about, "rows": self.rows})
        return self.rows

    def _arrays(self, task: str) -> dict[str, Any]:
        """What pairs of runs are compared by: scores (N, S, m, ...) of the N encoders by name, and the truth (m,) or (m, K)."""
        each, split = list(self.predictions.values()), self.split
        arrays: dict[str, Any] = {
            "ids": self.ids[split.test] if self.judged_as is None else self.judged_as.ids,
            "names": np.array(list(self.predictions)),
            "data": np.array([self.source.name, self.labels.name]),
            "truth": self.truth,
        }
        if self.clusters is not None:
            arrays["clusters"] = self.clusters
        arrays |= {f"drawn/{metric}": values for metric, values in self.drawn.get(next(iter(self.predictions)), {}).items()}
        if self.labels.kind == "class":
            arrays["right"] = np.stack([one.correct(self.truth) for one in each])
            arrays["confusion"] = np.stack([class_confusion(one, self.truth) for one in each])
        if each[0].scores.nbytes > SCORES_KEPT:
            log.warning(
                "%s: scores of %d test images are not kept: two runs are compared by accuracy alone", task, len(self.truth)
            )
            return arrays
        for key in ("scores", "predicted"):
            for name, one in self.predictions.items():
                if getattr(one, key) is not None:
                    arrays[f"{key}/{name}"] = getattr(one, key)
        return arrays


def _without_images(split: Split, classes: int) -> Predictions:
    """What is said of every test sample without a look at it: the shares of classes or labels in training, the mean number."""
    y, m = split.train_labels, len(split.test)
    if y.dtype == torch.int64:
        shares = y.bincount(minlength=classes).double() / len(y)
        return Predictions.of_classes(shares.expand(m, -1).numpy())
    mean = y.nanmean(0).nan_to_num()
    return as_predictions(mean.expand(m, *mean.shape).clone(), y)
