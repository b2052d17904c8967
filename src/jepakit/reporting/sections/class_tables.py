"""What a probe's result says beside the figure that counts: each metric, each class, what was taken for what."""

from collections.abc import Mapping, Sequence
from typing import Any

from jepakit.core.counted import METRIC_NAMES, counted_figure, number

from ..reading import RunFiles

CLASSES_SHOWN = 50  # rows of the table of classes, the worst
WHOLE = 12  # classes of which all confusions are shown; of more, the pairs most often confused
PAIRS = 10
_HEADS = {"f1": "F1"}


def class_tables(task: str, runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """For each run whose result has more to say: its metrics, classes and confusions of the judged encoder."""
    found = []
    for run in runs:
        result = run.results.get(task)
        row: Mapping[str, Any] = next(iter(result["rows"].values()), {}) if result else {}
        each = "label" if (result or {}).get("kind") == "multi" else "class"
        classes = _classes((result or {}).get("per_class") or _of_pixels(row), each)
        if result and (isinstance(row.get("metrics"), Mapping) or classes):
            tables = {"metrics": _metrics(task, row), "classes": classes}
            found.append({"run": run, **tables, "confused": _confused(result), "whole": _whole(result)})
    return found


def _of_pixels(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each class of a task that names pixels: how many test images have it, and its IoU."""
    columns = [row.get(key) for key in ("classes", "images_with", "per_class")]
    if not all(isinstance(column, list) for column in columns):
        return []
    return [{"class": name, "n_test": n, "iou": value} for name, n, value in zip(*columns, strict=False)]


def _metrics(task: str, row: Mapping[str, Any]) -> list[str]:
    """Each metric with its interval, in words; shares in per cent."""
    each = [counted_figure(task, row, name) for name in row.get("metrics", ())]
    return [
        f"{METRIC_NAMES.get(one.metric, one.metric)} {one.told(one.value)}{' %' if one.share else ''}"
        + (f" [{one.told(one.low)}–{one.told(one.high)}]" if one.told(one.low) != "–" else "")
        for one in each
    ]


def _classes(rows: Any, each: str) -> dict[str, Any] | None:
    """The table of classes, or what `each` is: of many those of the lowest recall, IoU or average precision, the lowest first."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    keys = [key for key in rows[0] if key not in ("class", "n_test")]
    by = next((key for key in ("recall", "iou") if key in keys), "average_precision")
    worst = rows if len(rows) <= CLASSES_SHOWN else sorted(rows, key=lambda row: _or_one(row.get(by)))[:CLASSES_SHOWN]
    cells = [[str(row.get("class")), str(row.get("n_test")), *(_per_cent(row.get(key)) for key in keys)] for row in worst]
    heads = [each, "test images", *(METRIC_NAMES.get(key, _HEADS.get(key, key)) for key in keys)]
    return {"heads": heads, "rows": cells, "of": len(rows), "each": each}


def _whole(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix of few classes: rows are what images are, columns what they were taken for."""
    table, names = result.get("confusion"), result.get("class_names")
    if not isinstance(table, list) or not isinstance(names, list) or len(names) > WHOLE:
        return None
    rows = [[str(name), *(f"{number(count):g}" for count in row)] for name, row in zip(names, table, strict=False)]
    return {"heads": [str(name) for name in names], "rows": rows}


def _confused(result: Mapping[str, Any]) -> list[str]:
    """Of many classes, what was most often taken for what."""
    table, names = result.get("confusion"), result.get("class_names")
    if not isinstance(table, list) or not isinstance(names, list) or len(names) <= WHOLE:
        return []
    pairs = [(number(n), i, j) for i, row in enumerate(table) for j, n in enumerate(row) if i != j and number(n) > 0]
    return [f"{names[i]} for {names[j]}: {n:g}" for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:PAIRS]]


def _or_one(value: Any) -> float:
    found = number(value)
    return found if found == found else 1.0


def _per_cent(value: Any) -> str:
    found = number(value)
    return f"{100 * found:.1f}" if found == found else "–"
