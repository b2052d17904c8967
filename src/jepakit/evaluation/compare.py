"""Is it noise? Intervals of an accuracy and a paired test of two, with dependent samples kept together.

n test samples, C clusters of samples that are not independent (an identity, a scene); without them each stands alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

RESAMPLES, AT_ONCE = 4000, 100


@dataclass(frozen=True)
class Difference:
    """Accuracy of a minus that of b, its 95 % interval, and p: how often chance alone gives a difference as large."""

    difference: float
    low: float
    high: float
    p: float


def interval(right: NDArray[np.float64], clusters: NDArray[np.int64] | None = None) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `right` (n,).

    Clusters are resampled whole. For independent right-or-wrongs the resampled mean is binomial, exactly.
    """
    if clusters is None and np.isin(right, (0, 1)).all():
        low, high = (float(binom.ppf(q, len(right), right.mean())) / len(right) for q in (0.025, 0.975))
        return low, high
    low, high = np.quantile(_resampled(right, clusters), (0.025, 0.975))
    return float(low), float(high)


def paired(a: NDArray[np.float64], b: NDArray[np.float64], clusters: NDArray[np.int64] | None = None) -> Difference:
    """Two classifiers on the same samples: right or wrong a, b (n,).

    Independent samples: McNemar's exact test on those where the two differ. Clusters: under the null each cluster's
    difference has a random sign (a randomisation test; p counts the observed assignment too).
    """
    difference = a - b
    low, high = np.quantile(_resampled(difference, clusters), (0.025, 0.975))
    if clusters is None and np.isin(difference, (-1, 0, 1)).all():
        wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
        p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    else:
        sums = _sums(difference, clusters)[0]
        draw, as_large = np.random.default_rng(0), 0
        for _ in range(0, RESAMPLES, AT_ONCE):
            signs = 2.0 * draw.integers(0, 2, (AT_ONCE, len(sums)), np.int8) - 1
            as_large += int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12).sum())
        p = (1 + as_large) / (1 + RESAMPLES)
    return Difference(float(difference.mean()), float(low), float(high), p)


def _sums(x: NDArray[np.float64], clusters: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of samples of each cluster."""
    if clusters is None:
        return x, np.ones(len(x))
    which = np.unique(clusters, return_inverse=True)[1]
    return np.bincount(which, x), np.bincount(which).astype(np.float64)  # type: ignore[return-value]


def _resampled(x: NDArray[np.float64], clusters: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Means of RESAMPLES bootstrap samples of clusters, always the same draws."""
    sums, counts = _sums(x, clusters)
    draw = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for first in range(0, RESAMPLES, AT_ONCE):  # n x RESAMPLES counts would be gigabytes
        times = draw.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=AT_ONCE)
        means[first : first + AT_ONCE] = (times @ sums) / (times @ counts)
    return means
