"""What came of a study's cells: rows of numbers from the runs' folders, and one table to read."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jepakit.artifacts.checkpoint import step_name, steps
from jepakit.artifacts.run import Run
from jepakit.config.config import read_yaml, resolve
from jepakit.config.optim import Schedule
from jepakit.config.phases import at_step
from jepakit.core.counted import Counted, counted_figure
from jepakit.core.errors import UserError
from jepakit.core.files import atomic_write, load_json, save_json
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME
from jepakit.evaluation.metrics import LESS_IS_BETTER
from jepakit.model.method import encoder_label
from jepakit.study.cells import BASE, Cell, label
from jepakit.training.collapse import MEDIAN_ROWS

CellRow = dict[str, Any]
OWN = "own"  # the name of the evaluation that every run has, at its end
SPECTRA = ("rankme", "lidar")  # tasks whose figure has no interval
PROBE_KEYS = ("probe/knn", "probe/rankme")
HEAD = ("lever", "value", "kNN", "linear", "RankMe", "rank at 25/50/75/100 %", "position, end", "alarms", "minutes")
SIGNS = {
    "effective_rank": lambda row: row.get("effective_rank"),
    "position_share": lambda row: row.get("position_share"),
    "target_std": lambda row: row.get("target_std"),
    "own_less_other_cosine": lambda row: row.get("own_cosine", np.nan) - row.get("other_cosine", np.nan),
}


def row_of(cell: Cell, run: Run, status: str, said: str = "") -> CellRow:
    """All that a cell that is over ('finished', 'pruned', 'failed') left; accuracies are shares with their 95 % interval."""
    metrics, planned = run.metrics(), steps_of(run)
    step = metrics[-1]["step"] if metrics else 0
    settings = read_yaml(run.path / "config.yaml") if (run.path / "config.yaml").is_file() else None
    return {
        "run": cell.name, "cell": cell.called, "lever": cell.lever, "change": dict(cell.change), "seed": cell.seed,
        "status": status, "said": said,
        "steps": step, "planned_steps": planned, "minutes": seconds(metrics) / 60,
        "start": {key: _number(of(metrics[0])) for key, of in SIGNS.items()} if metrics else {},
        "quarters": quarters(metrics, planned or 0),
        "alarms": [{"step": row["step"], "words": words} for row in metrics for words in row.get("alarms", ())],
        "looks": {key: probe_points(metrics, key) for key in PROBE_KEYS},
        # a run that ended before its targets changed is one of pixels
        "judged": encoder_label(at_step(resolve(settings), step).which if settings else "target_encoder"),
        **{task: _result(run.path / "evaluation" / f"{task}.json") for task in ("knn", "linear", "rankme")},
        "metric": _metric(run.path / "evaluation" / "knn.json"),
        "evaluations": {OWN: _tasks(run.path / "evaluation")}
        | {look.name: _tasks(run.path / "evaluation" / look.name) for look in cell.looks},
        "settings": settings,
    }  # fmt: skip


def steps_of(run: Run) -> int | None:
    """Steps of a whole run, as its newest checkpoint tells; none where there is no checkpoint."""
    for step in steps(run.checkpoints):
        try:
            state = load_json(run.checkpoints / step_name(step) / "state.json")
            optim = resolve(state["config"]).optim
            return Schedule(optim, state["images"] // optim.batch_size).steps
        except (OSError, ValueError, KeyError, UserError):
            continue
    return None


def quarters(rows: Sequence[Mapping[str, Any]], total: int) -> dict[str, list[float | None]]:
    """Each sign after a quarter, a half, three quarters and all of `total` steps; none where a run did not get so far.

    The median of the last MEDIAN_ROWS rows logged by then, as the doctor looks at them.
    """
    found: dict[str, list[float | None]] = {name: [] for name in SIGNS}
    for quarter in (1, 2, 3, 4):
        step = quarter * total / 4
        there = [row for row in rows if row["step"] <= step][-MEDIAN_ROWS:] if rows and rows[-1]["step"] >= step else []
        for name, of in SIGNS.items():
            found[name].append(_median([_number(of(row)) for row in there]))
    return found


def seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """How long a run was trained. The clock in its rows starts anew at a resume, which shows where it falls."""
    clocks = [float(row.get("seconds", 0)) for row in rows]
    return sum(now for now, later in pairwise([*clocks, -1.0]) if later < now)


def probe_points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """The online probe's values as (step, value), that of the untrained encoder (step 0) first where it was logged."""
    start = [(0, row[f"{key}_at_start"]) for row in rows[:1] if f"{key}_at_start" in row]
    return start + [(row["step"], row[key]) for row in rows if key in row]


def _number(value: Any) -> float | None:
    """A float; none for what is none or not finite."""
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def value_of(row: CellRow) -> float | None:
    """What cells are ranked by: kNN accuracy (or what counts there; the less an error the better) of the encoder that users get,
    RankMe where there are no labels."""
    for task in ("knn", "rankme"):
        if row["judged"] in row[task]:
            sign = -1 if task == "knn" and row.get("metric") in LESS_IS_BETTER else 1
            return sign * float(row[task][row["judged"]][0])
    return None


def save_table(out: Path, rows: Sequence[CellRow], title: str) -> None:
    """Write OUT/table.json and OUT/table.md."""
    save_json(out / "table.json", rows)
    with atomic_write(out / "table.md") as draft:
        draft.write_text(f"{title}\n\n{study_table(rows)}\n", encoding="utf-8")


def study_table(rows: Sequence[CellRow]) -> str:
    """Markdown: the base and its untrained encoder on top, then lever by lever, best first; medians over seeds."""
    cells: dict[str, list[CellRow]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    order = list(dict.fromkeys(row["lever"] for row in rows))
    groups = sorted(cells.values(), key=lambda own: (own[0]["lever"] != BASE, order.index(own[0]["lever"]), -_rank(own)))
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for own in groups:
        lines.append("| " + " | ".join(_cells(own)) + " |")
        if own[0]["lever"] == BASE and own[0]["rankme"]:
            accuracies = [_accuracy(own, task, UNTRAINED_NAME) for task in ("knn", "linear")]
            blind = [*accuracies, _rankme(own, UNTRAINED_NAME)]
            lines.append("| " + " | ".join([BASE, UNTRAINED_NAME, *blind, "", "", "", ""]) + " |")
    return "\n".join(lines)


def _cells(own: Sequence[CellRow]) -> list[str]:
    """One line of the table, from the rows of all seeds."""
    ranks = [_over(own, quarter) for quarter in range(4)]
    end = _median([row["quarters"]["position_share"][3] for row in own])
    return [
        own[0]["lever"],
        label(own[0]["change"]),
        _accuracy(own, "knn") or _last_probe(own),
        _accuracy(own, "linear"),
        _rankme(own, None),
        " / ".join("–" if rank is None else f"{rank:.2f}" for rank in ranks),
        "" if end is None else f"{end:.2f}",
        _alarms(own),
        f"{statistics.median(row['minutes'] for row in own):.1f}",
    ]


def _over(own: Sequence[CellRow], quarter: int) -> float | None:
    """Effective rank at a quarter over that of each run's first row."""
    pairs = [(row["quarters"]["effective_rank"][quarter], row["start"].get("effective_rank")) for row in own]
    return _median([now / first if now is not None and first else None for now, first in pairs])


def _accuracy(own: Sequence[CellRow], task: str, name: str | None = None) -> str:
    """In per cent (R² and the like as they are), [its interval over test images], (the least and most of several seeds)."""
    found = [row[task][name or row["judged"]] for row in own if (name or row["judged"]) in row[task]]
    if not found:
        return ""
    figure = Counted(own[0].get("metric", "accuracy"), *(statistics.median(column) for column in zip(*found, strict=True)))
    value, low, high = (figure.told(each) for each in figure[1:])
    least, most = (figure.told(of(one[0] for one in found)) for of in (min, max))
    return f"{value} [{low}–{high}]" + (f" ({least}–{most})" if len(found) > 1 else "")


def _rankme(own: Sequence[CellRow], name: str | None) -> str:
    found = [row["rankme"][name or row["judged"]][0] for row in own if (name or row["judged"]) in row["rankme"]]
    return f"{statistics.median(found):.1f}" if found else ""


def _last_probe(own: Sequence[CellRow]) -> str:
    """The last value of the online probe, by which a pruned run was stopped; empty where there is none."""
    for key, share in zip(PROBE_KEYS, (100, 1), strict=True):
        if own[0]["looks"][key]:
            step, value = own[0]["looks"][key][-1]
            return f"{share * value:.1f} at step {step}"
    return ""


def _alarms(own: Sequence[CellRow]) -> str:
    """What the doctor said, or why there is nothing to say."""
    said = [f"{row['status']} {row['said']}".strip() for row in own if row["status"] != "finished"]
    said += [f"{alarm['words'].split(' collapse')[0]} at {alarm['step']}" for row in own for alarm in row["alarms"]]
    return ", ".join(dict.fromkeys(said)).replace("|", "/")


def _rank(own: Sequence[CellRow]) -> float:
    """The median of what cells are ranked by; a cell without it comes last."""
    found = _median([value_of(row) for row in own])
    return -1.0 if found is None else found


def _result(path: Path) -> dict[str, list[float]]:
    """Each encoder's figure in a result of `evaluate`, with the interval where there is one."""
    if not path.is_file():
        return {}
    rows = load_json(path)["rows"]
    ends = 1 if path.stem in SPECTRA else 3
    return {
        name: [one.value, one.low, one.high][:ends]
        for name, one in ((row["name"], counted_figure(path.stem, row)) for row in rows)
    }


def _metric(path: Path) -> str:
    """What counts in a result: accuracy where there is none."""
    rows = load_json(path)["rows"] if path.is_file() else []
    return counted_figure(path.stem, rows[0]).metric if rows else "accuracy"


def _tasks(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The results of all tasks in a folder, by task and encoder."""
    return {path.stem: _result(path) for path in sorted(folder.glob("*.json"))}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
