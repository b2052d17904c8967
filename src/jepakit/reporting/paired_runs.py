"""Runs paired on the test images that they share, from what `evaluate` keeps of each in TASK.npz; or why they cannot be.

evaluation/TASK.npz, m test samples, R resamples: ids (m,), and where there are such data, truth, clusters and seed, which runs
that were tested alike have alike; right (encoders, m), the judged first; each/METRIC (m,), whose mean the metric is;
drawn/METRIC (R,), of the judged encoder in resamples of the samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.compare import Difference, corrected, paired, resampled_difference
from jepakit.core.counted import METRIC_NAMES, Counted, counted_figure

from .reading import RunFiles
from .whole_files import Arrays, DamagedFileError, fitting, read_arrays

_ALIKE = ("data", "ids", "truth", "clusters", "seed")
_KEPT = (*_ALIKE, "right")
Pairs = dict[tuple[str, str, str], Difference]  # by run, task and metric


@dataclass(frozen=True)
class PairedRuns:
    """Runs minus the first of them: by the metric that counts, and by all others. Each of the two is corrected for its own
    number, as what counts was said before. missing: by (run, task) why what counts cannot be paired."""

    counting: Pairs
    others: Pairs
    missing: Mapping[tuple[str, str], str]


def paired_with_first(runs: Sequence[RunFiles], tasks: Sequence[str]) -> PairedRuns:
    """Of every task that both have a figure of, on the same test images."""
    counting: Pairs = {}
    others: Pairs = {}
    missing = {}
    for task in tasks:
        for run in runs[1:]:
            counts, beside = figures_of(run, task), figures_of(runs[0], task)
            if not counts or not beside:
                continue
            metric, why = next(iter(counts)), ""
            try:
                found = _pairs(counts, beside, *_kept_alike(run, runs[0], task))
                if metric != next(iter(beside)):
                    why = f"what counts is {metric_in_words(metric)}, of {runs[0].name} {metric_in_words(next(iter(beside)))}"
                elif metric not in found:
                    why = f"nothing is kept that pairs {metric_in_words(metric)}: evaluate both again"
            except DamagedFileError as error:
                found, why = {}, str(error)
            if why:
                missing[run.name, task] = why
            for name, difference in found.items():
                (counting if name == metric and not why else others)[run.name, task, name] = difference
    by_family = [dict(zip(each, corrected([*each.values()]), strict=True)) for each in (counting, others)]
    return PairedRuns(by_family[0], by_family[1], missing)


def figures_of(run: RunFiles, task: str) -> dict[str, Counted]:
    """What a run's judged encoder has of each metric, what counts first; empty where there is no figure."""
    row: Mapping[str, Any] = next(iter(run.results[task]["rows"].values()), {}) if task in run.results else {}
    if not row or not np.isfinite(row["value"]):
        return {}
    beside = row.get("metrics")
    return {row["metric"]: row["counted"]} | {
        name: figure
        for name in (beside if isinstance(beside, Mapping) else ())
        if np.isfinite((figure := counted_figure(task, row, name)).value)
    }


def metric_in_words(metric: str) -> str:
    """Its name in a sentence."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def _kept_alike(run: RunFiles, first: RunFiles, task: str) -> tuple[Arrays, Arrays]:
    """What is kept of both, where they were tested alike. Raises DamagedFileError with the reason where that is not so."""
    ours, theirs = (_kept(each, task) for each in (run, first))
    differ = [key for key in _ALIKE if not _same(ours.get(key), theirs.get(key))]
    if differ == ["seed"]:
        raise DamagedFileError(f"its test images were resampled with another seed than those of {first.name}")
    if differ:
        raise DamagedFileError(f"tested on other images than {first.name}")
    return ours, theirs


def _same(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether both are not there, or hold the same."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


def _kept(run: RunFiles, task: str) -> Arrays:
    path = run.folder / "evaluation" / f"{task}.npz"
    if not path.is_file():
        raise DamagedFileError(f"no answers of {run.name} are kept to pair: evaluate it again")
    try:
        return read_arrays(path, lambda name: name in _KEPT or name.startswith(("each/", "drawn/")))
    except DamagedFileError as error:
        raise DamagedFileError(f"evaluation/{task}.npz of {run.name} {error}") from None


def _pairs(here: Mapping[str, Counted], there: Mapping[str, Counted], ours: Arrays, theirs: Arrays) -> dict[str, Difference]:
    """By each metric that both have what pairs them by."""

    def found() -> dict[str, Difference]:
        seen = {metric: here[metric].value - there[metric].value for metric in here if metric in there}
        each = {metric: _difference(metric, value, ours, theirs) for metric, value in seen.items()}
        return {metric: difference for metric, difference in each.items() if difference is not None}

    return fitting(found)


def _difference(metric: str, seen: float, ours: Arrays, theirs: Arrays) -> Difference | None:
    """None where nothing of it is kept. Raises what `fitting` takes for damage."""
    if metric == "accuracy" and "right" in ours and "right" in theirs:
        return paired(ours["right"][0], theirs["right"][0], ours.get("clusters"))
    each, drawn = (f"{kind}/{metric}" for kind in ("each", "drawn"))
    if each in ours and each in theirs:
        return paired(ours[each], theirs[each], ours.get("clusters"))
    if drawn in ours and drawn in theirs:
        count = min(len(ours[drawn]), len(theirs[drawn]))  # where one has more, its first are the same resamples
        return resampled_difference(seen, ours[drawn][:count], theirs[drawn][:count])
    return None
