"""Assembles the page from what the files of run folders hold."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jepakit.core.counted import METRIC_NAMES, Counted
from jepakit.core.errors import UserError, checked
from jepakit.core.files import user_path

from .along_run import along_run
from .class_tables import class_tables
from .figures import finite_values, masks, neighbour_rows, panels, short
from .reading import PROBE_NAMES, RANKS, MetricsRow, Result, RunFiles, RunFolderError, lookup, number, read

__all__ = ["RunFolderError", "report"]

_UNTRAINED = "untrained encoder"
PIXELS = ("raw pixels", "pixel PCA", "first mask kept")  # the best of them is what an encoder must beat
NOTES = {
    "knn": "The nearest training images vote.",
    "linear": "One linear layer on frozen features; its settings are chosen on a part of the training images.",
    "transfer": "One linear layer on frozen features, by the recipe for transfer to other data.",
    "low_shot": "A classifier on frozen features of few training images.",
    "attentive": "One layer of attention pools the frozen patch tokens.",
    "logistic": "Logistic regression on frozen features, solved exactly.",
    "finetune": "The encoder is trained too; the untrained one learns from scratch.",
    "segmentation": "A linear layer names each pixel from frozen patch tokens: mean intersection over union of the classes.",
    "boxes": "A linear layer says from frozen patch tokens which class’s box each pixel is in: mean IoU. No detector’s score.",
    "davis": "The first frame’s masks, carried through a video by likeness of patch tokens: mean of region (J) and boundary (F).",
}
FACTS = {
    "Method": "method",
    "Recipe": "recipe",
    "Data": "data",
    "Image size": "images.size",
    "Encoder": "encoder",
    "Predictor": "predictor",
    "Steps": "optim.steps",
    "Epochs": "optim.epochs",
    "Batch": "optim.batch_size",
    "Seed": "seed",
}
_NAMES = ("name", "kind", "preset", "size", "source", "path")  # keys whose value speaks for itself


@checked
def report(runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of one run, or of several side by side; by default `report.html` in the first folder."""
    folders = [user_path(run, "the run") for run in ([runs] if isinstance(runs, os.PathLike | str) else runs)]
    if not folders:
        raise RunFolderError("A report needs at least one run folder.")
    found = [read(folder, index, folders) for index, folder in enumerate(folders)]
    path = folders[0] / "report.html" if out is None else user_path(out, "out")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(_render(found), encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
    return path


def _render(runs: Sequence[RunFiles]) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("page.html").render(
        runs=runs,
        summaries={run.name: _summary(run) for run in runs},
        facts=_facts(runs),
        panels=panels([run.metrics.series for run in runs], sorted({run.change for run in runs} - {0})),
        along=along_run(runs),
        probes=[_probe_table(task, runs) for task in PROBE_NAMES if any(task in run.results for run in runs)],
        ranks=_rank_table(runs),
        masks={run.name: masks(run.pictures, 8 if len(runs) == 1 else 4) for run in runs},
        neighbours={run.name: neighbour_rows(run.pictures) for run in runs},
    )


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(run: RunFiles) -> list[str]:
    """The run in words: one sentence per probe, one on ranks, on the doctor and on training."""
    ranks = [words for task, title in RANKS.items() if (words := _rank(title, run.results.get(task)))]
    said = [_verdict(title, run.results[task]["rows"]) for task, title in PROBE_NAMES.items() if task in run.results]
    said += ["; ".join(ranks) + "."] if ranks else []
    said += [_no_alarm(run)] if run.watched and not run.metrics.alarms else []
    return [*said, _progress(run)]


def _no_alarm(run: RunFiles) -> str:
    """That the doctor is content; whether targets are mere positions it does not ask before the run has settled."""
    steps, settled = run.metrics.series.get("settled", ((0.0,), (0.0,)))
    early = steps[-1] < settled[-1]
    return "Collapse doctor: no alarm" + (" (too early to judge position)." if early else ".")


def _verdict(title: str, rows: Mapping[str, MetricsRow]) -> str:
    """The encoder's figure, beside that of the untrained one and of the best that pixels give."""
    name = next(iter(rows), "")
    measured = {key: row for key, row in rows.items() if not math.isnan(row["value"])}
    best = measured.pop(name, None)
    if best is None:
        return f"{title}: no figure."
    figure, metric = best["counted"], best["metric"]
    named = f" {METRIC_NAMES[metric]}" if "metrics" in best and metric in METRIC_NAMES else ""
    clauses, close = [f"{title}{named} {figure.told(figure.value)}{' %' if figure.share else ''}{interval(best)}"], []
    pixels = max((key for key in PIXELS if key in measured), key=lambda key: measured[key]["value"], default="")
    for row, words in ((measured.get(_UNTRAINED), f"the {_UNTRAINED}"), (measured.get(pixels), pixels)):
        if row is not None:
            gain = best["value"] - row["value"]
            sign, than = ("+", "over") if gain >= 0 else ("−", "against")
            clauses.append(f"{sign}{figure.told(abs(gain))} {than} {words}")
            if best["low"] <= row["high"] and row["low"] <= best["high"]:  # false where an interval is missing
                close.append(len(clauses) - 1)
    if len(close) == 1:
        clauses[close[0]] += " (intervals overlap)"
    return ", ".join(clauses) + (" (both intervals overlap)." if len(close) > 1 else ".")


def _rank(title: str, result: Result | None) -> str:
    """RankMe 18.0 (untrained 4.0), or nothing."""
    values = {name: row["value"] for name, row in result["rows"].items()} if result else {}
    trained, untrained = next(iter(values.values()), math.nan), values.get(_UNTRAINED, math.nan)
    if math.isnan(trained):
        return ""
    return f"{title} {trained:.1f}" + ("" if math.isnan(untrained) else f" (untrained {untrained:.1f})")


def _progress(run: RunFiles) -> str:
    series = run.metrics.series
    if "step" not in series:
        return "No training step logged yet."
    step, planned = int(series["step"][0][-1]), _steps(run.config)
    clauses = [f"{step:,} of {planned:,} steps" if planned and planned > step else f"{step:,} steps"]
    reported = {"loss": "loss {}", "effective_rank": "effective rank {}", "images_per_second": "{} images/s"}
    for key, words in reported.items():
        if (finite := finite_values(series, key)).size:
            clauses.append(words.format(short(finite[-1])))
    return "Trained " + ", ".join(clauses) + "."


def percent(fraction: float) -> str:
    """55.2 for 0.552; a dash for none."""
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "–"


def interval(row: MetricsRow) -> str:
    """The 95 % interval in brackets, or nothing."""
    if not (math.isfinite(row["low"]) and math.isfinite(row["high"])):
        return ""
    if not row["counted"].share:
        return f" [{row['counted'].told(row['low'])}–{row['counted'].told(row['high'])}]"
    rounded, exact = (f" [{100 * row['low']:.{digits}f}–{100 * row['high']:.{digits}f}]" for digits in (0, 1))
    return rounded if round(100 * row["low"]) < round(100 * row["high"]) else exact  # no interval looks like a point


def _steps(config: Mapping[str, Any]) -> int | None:
    steps = lookup(config, FACTS["Steps"])
    return steps if isinstance(steps, int) else None


def _words(value: Any) -> str:
    """A setting in a few words: of a mapping, its name and its first plain values."""
    if isinstance(value, Mapping):
        plain = {key: item for key, item in value.items() if item is not None and not isinstance(item, Mapping | list)}
        named = [str(plain.pop(key)) for key in _NAMES if key in plain]
        return ", ".join([*named, *(f"{key} {item}" for key, item in plain.items())][:6])
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _facts(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Rows of the facts table: a title, a value per run, and whether the runs differ."""
    rows = []
    for title, path in FACTS.items():
        found = [lookup(run.config, path) for run in runs]
        values = ["–" if value is None else _words(value) or "–" for value in found]
        if set(values) != {"–"}:
            rows.append({"title": title, "cells": values, "differs": len(set(values)) > 1})
    return rows


def _probe_table(task: str, runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A row per encoder, a column per run; `scale` is the figure at the bars' right end."""
    probes = [run.results.get(task) for run in runs]
    names = list(dict.fromkeys(name for probe in probes if probe for name in probe["rows"]))
    cells = {name: [_cell(probe["rows"].get(name)) if probe else None for probe in probes] for name in names}
    ends = [end for row in cells.values() for cell in row if cell for end in (cell["value"], cell["high"])]
    first: MetricsRow = next((row for probe in probes if probe for row in probe["rows"].values()), {})
    figure = first.get("counted") or Counted("accuracy", math.nan, math.nan, math.nan)
    top = max(0.1, math.ceil(10 * max(ends, default=1.0) + 0.2) / 10)
    scale = top if figure.metric == "mae" else min(1.0, top)
    heads = [{"run": run, **_head(probe)} for run, probe in zip(runs, probes, strict=True)]
    alike = len({head["of"] for head in heads if head["of"]}) <= 1
    captions = {(head["of"], head["how"]) for head in heads if head["of"]}
    named = METRIC_NAMES.get(figure.metric, "") if "metrics" in first else ""
    bars = {"metric": named, "end": f"{100 * scale:.0f} %" if figure.share else f"{scale:.3g}", "more": class_tables(task, runs)}
    about = {"title": PROBE_NAMES[task], "note": NOTES[task], **bars, "caption": captions.pop() if len(captions) == 1 else None}
    return {**about, "heads": heads, "cells": cells, "scale": scale, "alike": alike}


def _head(probe: Result | None) -> dict[str, str]:
    """What was probed, how, and what the probe of the encoder came to choose."""
    if probe is None:
        return {"of": "", "how": "", "chosen": ""}
    row: MetricsRow = next(iter(probe["rows"].values()), {})
    of = [Path(_words(probe["data"])).name] if "data" in probe else []
    of += [_words(probe["labels"])] if "labels" in probe else []
    if isinstance(row.get("per_class"), list):
        of.append(f"{len(row['per_class'])} classes")
    counts = {"classes": "{} classes", "n_train": "{} train", "n_test": "{} test images"}
    of += [words.format(_words(probe.get(key, "?"))) for key, words in counts.items() if "labels" in probe]
    if number(probe.get("independent")) < number(probe.get("n_test")):
        of[-1] += f" ({_words(probe['independent'])} independent)"
    if number(probe.get("seen_test")) > 0:
        of.append(f"of which pretraining saw {_words(probe['seen_test'])}")
    of += [f"{_words(row['objects'])} objects"] if "objects" in row else []
    return {"of": ", ".join(of) or "?", "how": _words(probe.get("settings") or {}), "chosen": _chosen(row)}


def _chosen(row: MetricsRow) -> str:
    """The account of a probe in words: the head that held-out images chose, or the draws."""
    head, grid, draws = (row.get(key) for key in ("head", "heads", "accuracies"))
    if isinstance(head, Mapping):
        figure: Counted = row["counted"]
        most = f"; the best on the test images has {figure.told(number(row.get('best_on_test')))}{' %' if figure.share else ''}"
        count = f" among {len(grid)}" if isinstance(grid, list) else ""
        return f"Head chosen{count} on held-out training images: {_words(head)}{most}."
    if isinstance(draws, list):
        over = "; intervals are over draws" if "interval" in row else ""
        return f"{len(draws)} draw{'s' * (len(draws) != 1)} of {_words(row.get('n_train', '?'))} training images{over}."
    return ""


def _cell(row: MetricsRow | None) -> dict[str, Any] | None:
    if row is None or math.isnan(row["value"]):
        return None
    value, low, high = (max(0.0, row[end] if math.isfinite(row[end]) else row["value"]) for end in ("value", "low", "high"))
    extras = {"pixel_accuracy": "pixel accuracy", "j": "J", "f": "F"}
    also = ", ".join(f"{words} {percent(number(row[key]))}" for key, words in extras.items() if key in row)
    about = {"text": row["counted"].told(row["value"]), "interval": interval(row), "also": also}
    return {"value": value, "low": low, "high": high, **about}


def _rank_table(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A row per encoder, a column per run and rank; warnings each with whom they concern."""
    columns = [(run, task, run.results[task]) for task in RANKS for run in runs if task in run.results]
    names = list(dict.fromkeys(name for *_, result in columns for name in result["rows"]))
    warned: dict[tuple[str, str, str], list[str]] = {}
    for run, task, result in columns:
        for name, row in result["rows"].items():
            if row.get("warning"):
                warned.setdefault((run.name if len(runs) > 1 else "", RANKS[task], str(row["warning"])), []).append(name)
    warnings = [
        " – ".join(filter(None, [who, f"{title} of {', '.join(of)}: {words}"])) for (who, title, words), of in warned.items()
    ]
    runs_by_how: dict[str, dict[str, list[str]]] = {}
    for run, task, result in columns:
        runs_by_how.setdefault(RANKS[task], {}).setdefault(_views(result), []).append(run.name)
    alike = all(len(ways) == 1 for ways in runs_by_how.values())
    return {
        "heads": [{"run": run, "title": RANKS[task]} for run, task, _ in columns],
        "cells": {name: [_rank_cell(result["rows"].get(name)) for *_, result in columns] for name in names},
        "hows": [
            f"{title}{'' if alike else ' of ' + ', '.join(who)}: {how}."
            for title, ways in runs_by_how.items()
            for how, who in ways.items()
        ],
        "warnings": warnings,
        "alike": alike,
    }


def _views(result: Result) -> str:
    """What a rank was taken of: LiDAR compares at equal numbers only."""
    row: MetricsRow = next(iter(result["rows"].values()), {})
    views = [f"{_words(row[key])} {words}" for key, words in {"n": "images", "q": "views"}.items() if key in row]
    settings = [f"{key} {_words(row[key])}" for key in ("by", "delta", "eps") if key in row]
    return ", ".join([Path(_words(result.get("data", "?"))).name, *views, *settings])


def _rank_cell(row: MetricsRow | None) -> dict[str, Any] | None:
    return (
        None if row is None or math.isnan(row["value"]) else {"text": f"{row['value']:.1f}", "warned": bool(row.get("warning"))}
    )
