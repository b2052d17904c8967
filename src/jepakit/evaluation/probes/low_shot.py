"""Low-shot probing: logistic regression on frozen features of a few labelled images (I-JEPA's "1 %", appendix A.2).

The penalty is fixed, as there are no samples left to choose it on. Its value is that of the linear 1 % probe of StoP
(arXiv 2308.00566), which re-evaluates I-JEPA. StoP's code standardises test images by their own mean and deviation, which
tells the probe something of the test set; here those of the training images are taken. Its PCA, a rotation of the features,
is left out, as an L2 penalty does not depend on it. Several labels have a regression each; numbers have a ridge regression, its
penalty chosen by leaving out one of the few at a time. n training samples, m test samples, D features, K classes or labels.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core import rng
from jepakit.core.compare import mean_and_margin
from jepakit.core.errors import UserError
from jepakit.core.files import user_path
from jepakit.evaluation.metrics import LESS_IS_BETTER, Predictions, goodness
from jepakit.evaluation.probes.logistic import as_predictions, probabilities, standardised
from jepakit.evaluation.probes.ridge import leave_one_out, ridge

log = logging.getLogger("jepakit")
_Rows = NDArray[np.int64]

# The paper's code minimises  1/n sum loss + λ/2 |w|²  with λ = .0025 / n; scikit-learn  C sum loss + 1/2 |w|².
# Divided by C n the second is the first with λ = 1 / (C n), so C = 1 / (λ n) = 1 / .0025, whatever n.
STRENGTH = 1 / 0.0025
STEPS, TOLERANCE = 300, 1e-6  # of L-BFGS: the usual ones would end before so weak a penalty is felt


@dataclass(frozen=True)
class LowShot:
    """What several draws of training images give: the metric of each, their mean, and its 95 % t-interval (low, high).

    low and high are None for a single draw. predictions: of the test samples, by each draw. n_train: training images of a draw.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]
    predictions: Predictions
    n_train: int


def low_shot(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    truth: Tensor,
    *,
    shots: int | None = None,
    share: float | None = 0.01,
    rows: _Rows | None = None,
    draws: int = 5,
    seed: int = 0,
    classes: int | None = None,
    metric: str | None = None,
) -> LowShot:
    """Predictions for test (m, D), with its truth (m,), of probes trained on few rows of train (n, D) with labels (n,).

    Each is trained on `rows` (then there is one draw), else on `shots` of each class, else on `share` of each class, at least
    one; of several labels (n, K) and of numbers that is so many of all images. Raises UserError where a class has fewer than
    `shots` samples, and where shots, share or draws is out of range.
    """
    y = labels.cpu().numpy()
    of_classes = labels.dtype == torch.int64
    k = (
        (int(max(labels.max(), truth.max())) + 1 if classes is None else classes)
        if of_classes
        else y.reshape(len(y), -1).shape[1]
    )
    chosen = [] if rows is None else [rows]
    if rows is None:
        strata = y if of_classes else np.zeros(len(y), np.int64)
        chosen = [drawn(strata, shots=shots, share=share, seed=seed, draw=draw) for draw in range(draws)]
    if not chosen or not len(chosen[0]):
        raise UserError("low-shot probing has no draw or no training image: give at least one of each")
    each = [as_predictions(_scores(train[torch.from_numpy(r)], labels[torch.from_numpy(r)], test, k), labels) for r in chosen]
    metric = metric or ("accuracy" if of_classes else "r2" if labels.ndim == 1 else "auroc")
    values = np.array([goodness(metric, one, truth.numpy()) for one in each]) * (-1 if metric in LESS_IS_BETTER else 1)
    low, high = draws_interval(values)
    named = np.concatenate([one.predicted for one in each if one.predicted is not None]) if of_classes else None
    together = Predictions(np.concatenate([one.scores for one in each]), named)
    return LowShot(float(values.mean()), low, high, tuple(map(float, values)), together, len(chosen[0]))


def drawn(labels: _Rows, *, shots: int | None, share: float | None, seed: int, draw: int) -> _Rows:
    """Rows of labels (n,) that a draw takes, ascending: a function of (seed, draw); more shots add to those of fewer.

    Raises UserError as `low_shot`.
    """
    values, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if shots is not None:
        if shots < 1:
            raise UserError(f"low-shot probing of {shots} images a class: give at least 1")
        if counts.min() < shots:
            least = int(counts.argmin())
            raise UserError(f"class {values[least]} has {counts[least]} training images, not {shots}: ask for fewer shots")
        wanted = np.full(len(values), shots)
    elif share is not None and 0 < share <= 1:
        wanted = np.maximum(1, np.floor(share * counts + 0.5).astype(np.int64))
    else:
        raise UserError(f"low-shot probing of a share {share} of the images: give more than 0 and at most 1, or shots")
    chance = rng.uniform(rng.keys(seed, "low-shot", draw, np.arange(len(labels))), 1)[:, 0]
    order = np.lexsort((chance, index))
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[index[order]]  # within the class, in random order
    return np.sort(order[place < wanted[index[order]]])


def draws_interval(values: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """95 % t-interval of the mean of independent values; none of fewer than two."""
    mean, margin = mean_and_margin(values)
    return (None, None) if margin is None else (mean - margin, mean + margin)


def names_in(list_file: str | Path, titles: Sequence[str]) -> _Rows:
    """Rows, ascending, of those `titles` (paths below a data folder) that a text file lists, such as SimCLR's 1percent.txt.

    Each line is a title or its last part, the file name. Lines that fit no title are counted in a warning. Raises UserError where
    the file cannot be read, no line fits a title, or a line fits several.
    """
    try:
        lines = user_path(list_file).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the list {list_file}: {error.strerror}; give a text file of image names") from None
    by_title: dict[str, set[int]] = defaultdict(set)
    by_file_name: dict[str, set[int]] = defaultdict(set)
    for row, title in enumerate(titles):
        by_title[title].add(row)
        by_file_name[PurePosixPath(title).name].add(row)
    rows_of = {**by_file_name, **by_title}
    names = [line.strip() for line in lines if line.strip()]
    found = [rows_of[name] for name in names if name in rows_of]
    if not found:
        example = f"it has '{names[0]}', they are called '{titles[0]}'" if names and titles else "one of the two is empty"
        raise UserError(f"{list_file} names none of the training images ({example}): give the list of this data set")
    several = next((name for name in names if len(rows_of.get(name, ())) > 1), None)
    if several is not None:
        raise UserError(f"{list_file}: '{several}' names several images; give their paths below the data folder")
    if len(found) < len(names):
        log.warning("%s: %d of its %d names are not among the training images", list_file, len(names) - len(found), len(names))
    return np.array(sorted(set().union(*found)), np.int64)


def _scores(x: Tensor, y: Tensor, test: Tensor, classes: int) -> Tensor:
    """(m, K) or (m,)"""
    if y.dtype != torch.int64 and y.ndim == 1:
        return ridge(x, y, test, [leave_one_out(x, y)])[0]
    seen, asked = standardised(x.double(), test)  # float32 is too coarse for so weak a penalty
    # Of two classes scikit-learn fits one vector w, where the paper's softmax has w/2 and -w/2, of half the squared norm.
    strength = STRENGTH if y.ndim == 1 and len(y.unique()) > 2 else 2 * STRENGTH
    found = probabilities(seen.numpy(), y.numpy(), asked.numpy(), strength, classes, steps=STEPS, tolerance=TOLERANCE)
    return torch.from_numpy(found)
