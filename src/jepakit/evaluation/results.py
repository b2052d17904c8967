"""What an evaluation writes: for each task a JSON file and what was said of test samples; tables and sentences to read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jepakit.core.compare import Difference, corrected, paired
from jepakit.core.counted import FIGURE_OF_TASK, METRIC_NAMES, NO_SHARES, counted_figure
from jepakit.core.errors import UserError
from jepakit.core.files import save_json
from jepakit.data.sources import LabelKind
from jepakit.evaluation.bootstrap import paired_bootstrap
from jepakit.evaluation.metrics import Predictions, metrics_named
from jepakit.evaluation.probe_results import ResultRow
from jepakit.evaluation.probes.protocol import Protocol
from jepakit.evaluation.shortcuts import shortcuts_table
from jepakit.model.method import Which, encoder_label

IOUS_SHOWN = 24  # classes in a line


def save_rows(folder: Path, task: str, data: str, rows: list[ResultRow], protocol: Protocol) -> list[ResultRow]:
    """Write and return the rows of a task that does not classify test samples one by one."""
    settings = protocol.model_dump(mode="json").get(task)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"task": task, "data": data, "settings": settings, "symmetry": protocol.symmetry, "seed": protocol.seed}
    save_json(folder / f"{task}.json", {**about, "rows": rows})
    return rows


def differences(a: Path, b: Path, tasks: Sequence[str], metrics: str | Sequence[str] = "") -> dict[str, dict[str, Difference]]:
    """Paired tests of the results in two evaluation folders, a minus b: by task, then by name of the encoder.

    The judged encoders, the first of each file, are paired; where both have one name (both the target encoder, say), so are all
    encoders of the two runs that have one name. metrics: by which; those beside accuracy stand in the names, and are tested by
    bootstrap over groups. p_corrected counts all these pairs as comparisons. Raises UserError where a task was not tested on the
    same images in both, and for a metric whose scores an older file has not.
    """
    found: dict[str, dict[str, Difference]] = {}
    for task in tasks:
        ours, theirs = a / f"{task}.npz", b / f"{task}.npz"
        if ours.is_file() and theirs.is_file():
            with np.load(ours) as x, np.load(theirs) as y:
                same = all(np.array_equal(x[key], y[key]) for key in ("data", "ids"))
                if not same or not np.array_equal(x.get("truth", ()), y.get("truth", ()), equal_nan=True):
                    raise UserError(f"{task}: {a} and {b} were tested on other images: evaluate both on the same data")
                first, second = (x["names"].tolist(), y["names"].tolist())
                pairs = [(first[0], second[0])]
                if first[0] == second[0]:
                    pairs = [(name, name) for name in first if name in second and name in map(encoder_label, get_args(Which))]
                found[task] = {}
                for one, other in pairs:
                    called = one if one == other else f"{one} against {other}"
                    for metric, d in _pair(x, y, one, other, metrics, task).items():
                        found[task][called if metric == "accuracy" else f"{called}, {metric}"] = d
    each = iter(corrected([d for by_name in found.values() for d in by_name.values()]))
    return {task: {name: next(each) for name in by_name} for task, by_name in found.items()}


def _pair(x: Any, y: Any, one: str, other: str, metrics: str | Sequence[str], task: str) -> dict[str, Difference]:
    """By each metric, of the arrays of two files."""
    truth, groups = x.get("truth"), x.get("clusters")
    kind: LabelKind = "class" if "right" in x else "number" if truth.ndim == 1 else "multi"
    names = metrics_named(metrics, kind)
    by_scores = [name for name in names if name != "accuracy"]
    found = {}
    if "accuracy" in names:
        ours, theirs = (file["right"][file["names"].tolist().index(name)] for file, name in ((x, one), (y, other)))
        found["accuracy"] = paired(ours, theirs, groups)
    if by_scores:
        keys = [(file, f"scores/{name}", f"predicted/{name}") for file, name in ((x, one), (y, other))]
        if any(key not in file for file, key, _ in keys):
            raise UserError(f"{task}: one of the two results holds no scores to compare by {by_scores[0]}: evaluate both again")
        first, second = (Predictions(file[scores], file.get(predicted)) for file, scores, predicted in keys)
        found |= paired_bootstrap(first, second, truth, groups, by_scores)
    return {name: found[name] for name in names if name in found}


def results_table(results: Mapping[str, Sequence[ResultRow]]) -> str:
    """The results as lines of text, a row for each encoder or baseline, a column for each task."""
    tasks = sorted((task for task in results if task != "shortcuts"), key=lambda task: task in FIGURE_OF_TASK)
    told = [shortcuts_table(results["shortcuts"])] if "shortcuts" in results else []
    names = list(dict.fromkeys(row["name"] for task in tasks for row in results[task]))
    lines = [f"{'':20}" + "".join(f"{task:>26}" for task in tasks)]
    for name in names:
        cells = [next((row for row in results[task] if row["name"] == name), {}) for task in tasks]
        lines.append(f"{name:20}" + "".join(f"{figure_text(task, row):>26}" for task, row in zip(tasks, cells, strict=True)))
    warnings = {f"{task}: {row['warning']}" for task in tasks for row in results[task] if "warning" in row}
    return "\n".join(
        [*lines, *_other_metrics(results, tasks), *_ious(results), *told, *sorted(warnings), *lines_on_seen_images(results)]
    )


def _other_metrics(results: Mapping[str, Sequence[ResultRow]], tasks: Sequence[str]) -> list[str]:
    """Where a metric was named, or labels are no classes: a line for each metric of the judged encoder."""
    rows = {task: results[task][0] for task in tasks if results[task] and "metrics" in results[task][0]}
    if all(row["counts"] == "accuracy" for row in rows.values()):
        return []
    name = next(iter(rows.values()))["name"]
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row["metrics"]))
    lines = [f"{name}, by each metric:"]
    for metric in metrics:
        cells = (figure_text(task, rows[task], metric) if task in rows else "" for task in tasks)
        lines.append(f"  {METRIC_NAMES.get(metric, metric):18}" + "".join(f"{cell:>26}" for cell in cells))
    return lines


def _ious(results: Mapping[str, Sequence[ResultRow]]) -> list[str]:
    """A line with the IoU of each class of the judged encoder's pixels; of many the lowest."""
    lines = []
    for task, rows in results.items():
        if rows and "images_with" in rows[0]:
            row = rows[0]
            each = [(value, name) for name, value in zip(row["classes"], row["per_class"], strict=True) if value is not None]
            few = each if len(each) <= IOUS_SHOWN else sorted(each)[:IOUS_SHOWN]
            of = "each class" if few is each else f"the lowest of {len(each)} classes"
            lines.append(f"{task}, {row['name']}, IoU of {of}: " + ", ".join(f"{name} {100 * value:.1f}" for value, name in few))
    return lines


def lines_on_seen_images(results: Mapping[str, Sequence[ResultRow]]) -> list[str]:
    """A line where pretraining saw images of the test, and where nothing is known of what it saw."""
    probed = [row for rows in results.values() for row in rows if "seen_test" in row]
    seen = {(row["seen_test"], row["n_test"], row.get("units", "images")) for row in probed if row["seen_test"]}
    how = "images.split=train keeps out those of the set that is trained on, by its first labels"
    said = f"pretraining saw {{:,}} of the {{:,}} test {{}}: no figure here is one on new images ({how})"
    unknown = "it is not known what this encoder was pretrained on, nor whether it saw the test images"
    return [
        *(said.format(*each) for each in sorted(seen)),
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
            metric = name.rpartition(", ")[2]
            scale, unit, digits = (1, "", 3) if metric in NO_SHARES else (100, " points", 1)
            span = f"{scale * d.low:+.{digits}f} to {scale * d.high:+.{digits}f}" if d.low < d.high else "alike in all resamples"
            lines.append(f"  {task}, {name}: {scale * d.difference:+.{digits}f}{unit} ({span}), {said}: {verdict}")
    return "\n".join(lines)


def figure_text(task: str, row: ResultRow, metric: str | None = None) -> str:
    """A figure of a row with its interval; empty where there is none."""
    figure = counted_figure(task, row, metric)
    if not math.isfinite(figure.value):
        return ""
    between = "-" if figure.share else " to "  # what is no share may be below 0
    span = f"{figure.told(figure.low)}{between}{figure.told(figure.high)}" if math.isfinite(figure.low) else ""
    return f"{figure.told(figure.value)}{' %' if figure.share else ''}{f' [{span}]' if span else ''}"
