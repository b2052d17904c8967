"""Shortcuts: whether frozen features tell site, scanner or batch, and whether what they tell of the label rests on it.

The label is asked of a site that training did not see, in turn, and beside it of probes that did, trained on as many images: the
two differ in nothing but whether the site was among them. n training samples, m test samples, S sites, K classes or labels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core import rng
from jepakit.core.counted import METRIC_NAMES, Counted
from jepakit.core.errors import UserError
from jepakit.core.files import save_json
from jepakit.data.labels.group_split import group_split
from jepakit.data.sources import Labels
from jepakit.evaluation.bootstrap import figures, paired_bootstrap
from jepakit.evaluation.features import FrozenFeatures
from jepakit.evaluation.metrics import LESS_IS_BETTER, Predictions
from jepakit.evaluation.probes.logistic import as_predictions, logistic, validation_fifth
from jepakit.evaluation.probes.protocol import ProbeLabels, Protocol
from jepakit.evaluation.probes.ridge import ridge, ridge_probe
from jepakit.evaluation.split import Split, SplitRows

log = logging.getLogger("jepakit")


@dataclass(frozen=True)
class Sites:
    """Which site each sample is of (n,), a place in `names`, -1 where that is not known; called: what sites are."""

    called: str
    names: tuple[str, ...]
    of: NDArray[np.int64]

    @classmethod
    def at(cls, labels: Labels | None, ids: SplitRows, called: str) -> "Sites":
        """Of the samples at places `ids`. Raises UserError where labels are no classes or there is only one site."""
        if labels is None or labels.kind != "class":
            raise UserError(f"--shortcuts {called}: it is to say which site, scanner or batch each image is of, as a class")
        of = labels.values[ids]
        if len(np.unique(of[of >= 0])) < 2:
            raise UserError(f"--shortcuts {called}: all labelled images are of one {called}: there is nothing to tell apart")
        return cls(called, labels.classes, of)


def shortcuts(
    features: Mapping[str, FrozenFeatures],
    names: Sequence[str],
    problem: ProbeLabels,
    split: Split,
    sites: Sites,
    groups: NDArray[np.int64] | None,
    label: str,
    protocol: Protocol,
) -> list[dict[str, Any]]:
    """A row for each of the named encoders and baselines: how well they tell the site, and the label with and without it.

    groups: of all samples (n + m,). Each row has `site` (balanced accuracy on a fifth held out here) beside `chance`; `label`
    and `left_out` on the same test images, of which the site was in training, with as many others, or was not; `difference` of
    these two; and the `sentence` that says what to conclude. Where each site is one group, images tell it, one by one.
    """
    rows, told_by = list[dict[str, Any]](), _groups_that_tell(sites, groups)
    for name in names:
        x = features[name].last
        site, chance = _site(x, sites, told_by)
        row: dict[str, Any] = {"name": name, "sites": sites.called, "site": site, "chance": chance, "metric": problem.metric}
        both = _with_and_without(x, problem, split, sites, protocol.seed)
        if both is not None:
            seen, unseen, rows_of_test = both
            truth = problem.test.numpy()[rows_of_test]
            of_test = None if split.clusters is None else split.clusters[rows_of_test]
            found = paired_bootstrap(seen, unseen, truth, of_test, [problem.metric]).get(problem.metric)
            row["label"], row["left_out"] = (figures(each, truth, of_test)[problem.metric] for each in (seen, unseen))
            row["difference"] = None if found is None else {"value": found.difference, "low": found.low, "high": found.high}
            row |= {"p": None if found is None else found.p, "n_test": len(rows_of_test)}
        rows.append({**row, "sentence": _sentence(row, sites.called, label)})
    return rows


def _site(x: Tensor, sites: Sites, groups: NDArray[np.int64] | None) -> tuple[dict[str, float | None], float]:
    """Balanced accuracy at telling the site of a fifth of the images that no other image of its group is learnt from; chance.

    groups: of all samples; None also where no site has two of them.
    """
    known = np.flatnonzero(sites.of >= 0)
    values, of_known = sites.of[known], None if groups is None else groups[known]
    held = _held_out(sites, values, of_known)
    if not held.any():
        raise UserError(f"--shortcuts {sites.called}: each {sites.called} has too few images to hold one out")
    y = torch.from_numpy(values)
    within = validation_fifth(values[~held], None if of_known is None else of_known[~held])
    found, _ = logistic(x[known[~held]], y[~held], x[known[held]], len(sites.names), held=within)
    predictions = as_predictions(found, y)
    figure = figures(predictions, values[held], None if of_known is None else of_known[held])["balanced_accuracy"]
    return figure, 1 / len(np.unique(values[held]))


def _held_out(sites: Sites, values: NDArray[np.int64], groups: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """A fifth of the images of each site, or of its groups where there are."""
    none = np.zeros(len(values), np.bool_)
    return group_split(Labels(sites.called, sites.names, values, none, groups=groups, own_split=False)).test


def _groups_that_tell(sites: Sites, groups: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The groups (n + m,); none, which is said, where no site has two of them, so that none could be held out."""
    known = sites.of >= 0
    if groups is None or _held_out(sites, sites.of[known], groups[known]).any():
        return groups
    log.warning("--shortcuts %s: no %s has several groups, so it is asked of single images", sites.called, sites.called)
    return None


def _with_and_without(
    x: Tensor, problem: ProbeLabels, split: Split, sites: Sites, seed: int
) -> tuple[Predictions, Predictions, SplitRows] | None:
    """What is said of test samples by probes that saw others of their site, and by probes that saw none; and which samples.

    None where no site has both training and test samples, and can be left out.
    """
    of_train, of_test = sites.of[split.train], sites.of[split.test]
    z, train = x[split.test], x[split.train]
    _, strength = _told(train, problem, problem.train, z)
    all_known = np.flatnonzero(of_train >= 0)
    scores: list[tuple[Tensor, Tensor]] = []
    rows: list[SplitRows] = []
    for site in np.intersect1d(of_train[of_train >= 0], of_test[of_test >= 0]):
        others, asked = np.flatnonzero((of_train >= 0) & (of_train != site)), np.flatnonzero(of_test == site)
        as_many = all_known[rng.permutation(seed, "shortcuts", int(site), len(all_known))[: len(others)]]
        if any(_one_answer(problem.train[chosen]) for chosen in (others, as_many)):
            continue
        seen, unseen = (_told(train[c], problem, problem.train[c], z[asked], strength)[0] for c in (as_many, others))
        scores.append((seen, unseen))
        rows.append(asked)
    if not rows:
        return None
    first, second = (as_predictions(torch.cat([pair[i] for pair in scores]), problem.train) for i in (0, 1))
    return first, second, np.concatenate(rows)


def _told(train: Tensor, problem: ProbeLabels, y: Tensor, test: Tensor, strength: float | None = None) -> tuple[Tensor, float]:
    """Scores by a linear probe that is solved exactly, and its strength or penalty, chosen where none is given."""
    if problem.kind != "number":
        choice = problem.chosen_by if strength is None else {}
        return logistic(train, y, test, problem.classes, strength, **choice)
    if strength is None:
        none_asked, truth = {"last": train[:2]}, y[:2]
        _, about = ridge_probe({"last": train}, y, none_asked, truth, ("last",), **problem.chosen_by)
        strength = float(about["head"]["penalty"])
    return ridge(train, y, test, [strength])[0], strength


def _one_answer(y: Tensor) -> bool:
    if y.ndim == 2:
        return not bool(((y == 0).any(0) & (y == 1).any(0)).any())
    return len(y) < 2 or bool((y == y[0]).all())


def _sentence(row: Mapping[str, Any], called: str, label: str) -> str:
    """What to conclude."""
    site = Counted.of("balanced_accuracy", row["site"])
    told = f"{site.told(site.value)} % [{site.told(site.low)}-{site.told(site.high)}], chance {100 * row['chance']:.1f} %"
    metric = row["metric"]
    if not site.low > row["chance"]:
        if site.value > (1 + row["chance"]) / 2:
            return f"the features may tell {called} ({told}), which so few images, or groups, cannot show to be more than chance"
        return f"the features do not tell {called} better than chance ({told}): no shortcut by it was found"
    if "label" not in row or not row["difference"]:
        return (
            f"the features tell {called} ({told}); no {called} has both training and test images that can be left out, so the "
            f"figures of {label} are those of a new {called} already, or rest on it unseen: split by {called} to know"
        )
    seen, unseen, difference = (Counted.of(metric, row[key]) for key in ("label", "left_out", "difference"))
    unit = " %" if seen.share else ""
    a, b = f"{seen.told(seen.value)}{unit}", f"{unseen.told(unseen.value)}{unit}"
    span = f"difference {seen.told(difference.value)} [{seen.told(difference.low)} to {seen.told(difference.high)}]"
    worse = difference.high < 0 if metric in LESS_IS_BETTER else difference.low > 0
    named = METRIC_NAMES.get(metric, metric)
    if worse:
        return (
            f"the features tell {called} ({told}), and {named} of {label} goes from {a} to {b} where the {called} is left out of "
            f"training ({span}): a part of it rests on {called}, so judge on a {called} that training did not see"
        )
    return (
        f"the features tell {called} ({told}), but {named} of {label} is not surely worse where the {called} is left out of "
        f"training ({a} against {b}, {span}): no sign that it rests on {called}"
    )


def shortcuts_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of text, and what to conclude of the first."""
    metric, called = rows[0]["metric"], rows[0]["sites"]
    named = METRIC_NAMES.get(metric, metric)
    heads = (f"{called} (chance {100 * rows[0]['chance']:.1f} %)", f"{named}, {called} seen", f"{named}, {called} left out")
    lines = [f"{'':20}" + "".join(f"{head:>34}" for head in heads)]
    for row in rows:
        cells = [_cell("balanced_accuracy", row["site"]), *(_cell(metric, row.get(key)) for key in ("label", "left_out"))]
        lines.append(f"{row['name']:20}" + "".join(f"{cell:>34}" for cell in cells))
    return "\n".join([*lines, f"{rows[0]['name']}: {rows[0]['sentence']}"])


def shortcut_tasks(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows as those of two tasks of one metric each: telling the site, and, where it can be left out, the label without."""
    called, metric = rows[0]["sites"], rows[0]["metric"]
    told = [{"name": row["name"], "counts": "balanced_accuracy", "metrics": {"balanced_accuracy": row["site"]}} for row in rows]
    left = [
        {"name": row["name"], "counts": metric, "metrics": {metric: row["left_out"]}, "sentence": row["sentence"]}
        for row in rows
        if "left_out" in row
    ]
    return {f"tells {called}": told, **({f"{called} left out": left} if left else {})}


def save_shortcuts(folder: Path, rows: Sequence[Mapping[str, Any]], called: str, data: str, label: str, seed: int) -> None:
    """Write shortcuts.json."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"task": "shortcuts", "data": data, "labels": label, "sites": called, "seed": seed}
    save_json(folder / "shortcuts.json", {**about, "rows": list(rows)})


def _cell(metric: str, figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return ""
    one = Counted.of(metric, figure)
    return f"{one.told(one.value)}{' %' if one.share else ''} [{one.told(one.low)}-{one.told(one.high)}]"
