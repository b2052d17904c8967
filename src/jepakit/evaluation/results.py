"""What an evaluation writes: for each task a JSON file and which test samples were right; tables and sentences to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.core.files import atomic_write, save_json
from jepakit.data.sources import Labels, Source
from jepakit.evaluation.compare import Difference, accuracy_interval, corrected, paired
from jepakit.evaluation.probes.protocol import Correct, ProbeLabels, Protocol
from jepakit.evaluation.split import Split, SplitRows, train_and_test
from jepakit.model.method import Which, encoder_label

ResultRow = dict[str, Any]
MAJORITY = "majority class"
RESULT_KEYS = {"rankme": "rankme", "lidar": "lidar", "segmentation": "miou", "davis": "j_and_f"}  # a row's figure; else accuracy


@dataclass
class ProbeResults:
    """The results of one probe, as they come in: for each encoder and baseline a row, and what was right, (m,).

    ids: places of the samples in the source; the split's rows are places in ids. seen_test: how many test images were seen in
    pretraining, None where that is not known. known: whether it is known what the encoder was pretrained on.
    """

    source: Source
    labels: Labels
    split: Split
    ids: SplitRows
    seen_test: int | None = None
    known: bool = True
    rows: list[ResultRow] = field(default_factory=list)
    correct: dict[str, Correct] = field(default_factory=dict)

    @classmethod
    def of(
        cls, source: Source, labels: Labels, ids: SplitRows, seen: NDArray[np.bool_] | None = None, *, known: bool = True
    ) -> "ProbeResults":
        """For the samples at places `ids`, split into training and test; seen: a bool for each sample of the source, whether
        pretraining saw it. Raises UserError as `train_and_test`."""
        split = train_and_test(source, labels, ids)
        return cls(source, labels, split, ids, None if seen is None else int(seen[ids[split.test]].sum()), known)

    @property
    def problem(self) -> ProbeLabels:
        """What a probe is told of the labels."""
        split, labels = self.split, self.labels
        return ProbeLabels(split.train_labels, split.test_labels, len(labels.classes), self._titles, labels.whole_image)

    def _titles(self) -> list[str]:
        """Names of the training images (n,)."""
        return [self.source.title(int(i)) for i in self.ids[self.split.train]]

    def enter(self, name: str, correct: Correct, about: Mapping[str, Any]) -> None:
        """Note one result, with its interval over test images."""
        low, high = accuracy_interval(correct, self.split.clusters)
        if (self.seen_test or not self.known) and name in map(encoder_label, get_args(Which)):
            about = {**about, "seen_test": self.seen_test, "n_test": len(correct)}
        self.rows.append({"name": name, "accuracy": float(correct.mean()), "low": low, "high": high, **about})
        self.correct[name] = correct

    def save(self, folder: Path, task: str, protocol: Protocol) -> list[ResultRow]:
        """Add the majority class as a baseline, write TASK.json and TASK.npz to the folder, and return the rows."""
        split = self.split
        most = int(split.train_labels.bincount().argmax())
        self.enter(MAJORITY, (split.test_labels == most).double().numpy(), {})
        about = {
            "task": task,
            "data": self.source.name,
            "labels": self.labels.name,
            "classes": len(self.labels.classes),
            "n_train": len(split.train),
            "n_test": len(split.test),
            "seen_test": self.seen_test,
            "independent": len(split.test) if split.clusters is None else len(np.unique(split.clusters)),
            "settings": self.rows[0].get("settings") or protocol.model_dump(mode="json").get(task),
            "symmetry": protocol.symmetry,
            "seed": protocol.seed,
        }
        clusters: dict[str, Any] = {} if split.clusters is None else {"clusters": split.clusters}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{task}.npz") as draft:
            np.savez_compressed(
                draft,
                ids=self.ids[split.test],
                names=np.array(list(self.correct)),
                right=np.stack(list(self.correct.values())),
                data=np.array([self.source.name, self.labels.name]),
                **clusters,
            )
        save_json(folder / f"{task}.json", {**about, "rows": self.rows})
        return self.rows


def save_rows(folder: Path, task: str, data: str, rows: list[ResultRow], protocol: Protocol) -> list[ResultRow]:
    """Write and return the rows of a task that does not classify test samples one by one."""
    settings = protocol.model_dump(mode="json").get(task)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"task": task, "data": data, "settings": settings, "symmetry": protocol.symmetry, "seed": protocol.seed}
    save_json(folder / f"{task}.json", {**about, "rows": rows})
    return rows


def differences(a: Path, b: Path, tasks: Sequence[str]) -> dict[str, dict[str, Difference]]:
    """Paired tests of the results in two evaluation folders, a minus b: by task, then by name of the encoder.

    The judged encoders, the first of each file, are paired; where both have one name (both the target encoder, say), so are all
    encoders of the two runs that have one name. p_corrected counts all these pairs as comparisons. Raises UserError where a task
    was not tested on the same images in both.
    """
    found: dict[str, dict[str, Difference]] = {}
    for task in tasks:
        ours, theirs = a / f"{task}.npz", b / f"{task}.npz"
        if ours.is_file() and theirs.is_file():
            with np.load(ours) as x, np.load(theirs) as y:
                if not all(np.array_equal(x[key], y[key]) for key in ("data", "ids")):
                    raise UserError(f"{task}: {a} and {b} were tested on other images: evaluate both on the same data")
                first, second = (dict(zip(z["names"].tolist(), z["right"], strict=True)) for z in (x, y))
                pairs = [(next(iter(first)), next(iter(second)))]
                if pairs[0][0] == pairs[0][1]:
                    pairs = [(name, name) for name in first if name in second and name in map(encoder_label, get_args(Which))]
                found[task] = {
                    one if one == other else f"{one} against {other}": paired(first[one], second[other], x.get("clusters"))
                    for one, other in pairs
                }
    each = iter(corrected([d for by_name in found.values() for d in by_name.values()]))
    return {task: {name: next(each) for name in by_name} for task, by_name in found.items()}


def results_table(results: Mapping[str, Sequence[ResultRow]]) -> str:
    """The results as lines of text, a row for each encoder or baseline, a column for each task."""
    tasks = sorted(results, key=lambda task: task in RESULT_KEYS)
    names = list(dict.fromkeys(row["name"] for task in tasks for row in results[task]))
    lines = [f"{'':20}" + "".join(f"{task:>22}" for task in tasks)]
    for name in names:
        cells = [next((row for row in results[task] if row["name"] == name), {}) for task in tasks]
        lines.append(f"{name:20}" + "".join(f"{_cell(task, row):>22}" for task, row in zip(tasks, cells, strict=True)))
    warnings = {f"{task}: {row['warning']}" for task in tasks for row in results[task] if "warning" in row}
    return "\n".join([*lines, *sorted(warnings), *_lines_on_seen_images(results)])


def _lines_on_seen_images(results: Mapping[str, Sequence[ResultRow]]) -> list[str]:
    """A line where pretraining saw images of the test, and where nothing is known of what it saw."""
    probed = [row for rows in results.values() for row in rows if "seen_test" in row]
    seen = {(row["seen_test"], row["n_test"]) for row in probed if row["seen_test"]}
    how = "images.split=train keeps out those of the set that is trained on, by its first labels"
    said = f"pretraining saw {{:,}} of the {{:,}} test images: no accuracy is one on new images ({how})"
    unknown = "it is not known what this encoder was pretrained on, nor whether it saw the test images"
    return [
        *(said.format(*counts) for counts in sorted(seen)),
        *([unknown] if any(row["seen_test"] is None for row in probed) else []),
    ]


def as_sentences(found: Mapping[str, Mapping[str, Difference]], a: str, b: str) -> str:
    """Paired tests in words."""
    lines = [f"{a} against {b}, on the same test images:"]
    for task, by_name in found.items():
        for name, d in by_name.items():
            p = d.p if d.p_corrected is None else d.p_corrected
            said = f"p = {p:.2g}" + (f", corrected for {d.comparisons} comparisons (Holm)" if d.comparisons > 1 else "")
            verdict = "may be chance" if p > 0.05 else "more than chance"
            span = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
            lines.append(f"  {task}, {name}: {100 * d.difference:+.1f} points ({span}), {said}: {verdict}")
    return "\n".join(lines)


def _cell(task: str, row: ResultRow) -> str:
    value = row.get(RESULT_KEYS.get(task, "accuracy"))
    if value is None:
        return ""
    if task in ("rankme", "lidar"):
        return f"{value:.1f}"
    return f"{100 * value:.1f} % [{100 * row['low']:.1f}-{100 * row['high']:.1f}]"
