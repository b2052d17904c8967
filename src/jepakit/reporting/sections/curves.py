"""The section on curves: what was logged, over steps, images or hours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..figures import Line, Series, curve, finite_values, short, thinned
from ..reading import RunFiles, lookup

CHANGED = "Dotted upright: the targets change from pixels to features, so that left and right of it are losses of two things."
TERMS = {
    "prediction": "Prediction loss",
    "sim": "Similarity term",
    "std": "Variance term",
    "cov": "Covariance term",
    "sigreg": "SIGReg term",
    "scale": "Scale term",
    "center": "Centre term",
    "shape": "Shape term",
}
# Title, what the reader should know, and the logged names: the first drawn solid, the second dashed.
PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("kNN accuracy", "Looks at the encoder on a few images; dashed, before training.", ("probe/knn",)),
    ("RankMe", "Looks at the encoder on a few images; dashed, before training.", ("probe/rankme",)),
    ("Effective rank", "Directions the encoder’s output uses. A fall towards 1 is collapse.", ("effective_rank",)),
    ("Position share", "How much of a target its position alone explains.", ("position_share",)),
    (
        "Cosine",
        "A prediction with its own target; dashed, with another image’s at the same place.",
        ("own_cosine", "other_cosine"),
    ),
    ("Standard deviation", "Target solid, prediction dashed. Near 0 is collapse.", ("target_std", "prediction_std")),
    ("Gradient norm", "Spikes are steps to look at.", ("grad_norm",)),
    ("Tokens", "Context solid, target dashed.", ("context_tokens", "target_tokens")),
    ("Learning rate", "The schedule.", ("lr",)),
    ("Weight decay", "The schedule.", ("weight_decay",)),
    ("Momentum", "How slowly the target encoder follows the encoder.", ("momentum",)),
    ("Images per second", "Throughput.", ("images_per_second",)),
)


LABELS = {
    "own_cosine": "own target",
    "other_cosine": "another image’s",
    "target_std": "target",
    "prediction_std": "prediction",
    "context_tokens": "context",
    "target_tokens": "target",
}


def curves(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """One small chart per logged quantity, the runs overlaid, and what turns a run's steps into images and hours."""
    changes = sorted({run.change for run in runs} - {0})
    terms = list(dict.fromkeys(key for run in runs for key in run.metrics.series if key.startswith("loss/")))
    terms = terms if len(terms) > 1 else []  # a single term is the loss itself
    shown = [(TERMS.get(key[5:], key[5:]), "A term of the loss.", (key,)) for key in terms]
    lowered = f"What the optimiser lowers.{' ' + CHANGED if changes else ''}"
    chosen = [("Loss", lowered, ("loss",)), *shown, *PANELS]
    panels = [panel for title, note, keys in chosen if (panel := _panel(title, note, keys, runs, changes))]
    return {"panels": panels, "axes": {run.name: axis_data(run) for run in runs}}


def axis_data(run: RunFiles) -> dict[str, Any]:
    """Images of a step, and hours of training at logged steps; None and nothing where that is not known."""
    batch = lookup(run.config, "optim.batch_size")
    steps, hours = thinned(*hours_trained(run.metrics.series))
    about = {"name": run.name, "colour": run.colour, "batch": batch if isinstance(batch, int) else None}
    return {**about, "steps": steps.tolist(), "hours": hours.round(5).tolist()}


def hours_trained(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and hours of training up to them, those of all its lives: a resumed run's clock begins at 0 again."""
    steps, seconds = series.get("seconds", (np.empty(0), np.empty(0)))
    known = np.isfinite(seconds)
    steps, seconds = steps[known], seconds[known]
    gone = np.diff(seconds, prepend=0.0)
    return steps, np.where(gone < 0, seconds, gone).cumsum() / 3600


def _panel(
    title: str, note: str, keys: tuple[str, ...], runs: Sequence[RunFiles], changes: Sequence[float]
) -> dict[str, Any] | None:
    lines, last, bad = [], [], 0
    for run in runs:
        series = run.metrics.series
        for key in keys:
            if not (finite := finite_values(series, key)).size:
                continue
            steps, values = series[key]
            label, whose = LABELS.get(key, ""), run.name
            lines.append(Line(steps, values, run.colour, key != keys[0], label, whose))
            if key.startswith("probe/") and steps[0] == 0 and len(steps) > 1:
                lines.append(Line(steps[[0, -1]], values[[0, 0]], run.colour, True, "before training", whose))
            bad += len(values) - len(finite)
            if key == keys[0] or len(runs) == 1:
                last.append({"colour": run.colour, "text": short(finite[-1])})
    if not lines:
        return None
    return {"title": title, "note": note, "svg": curve(title, lines, changes), "last": last, "bad": bad, "lines": lines}
