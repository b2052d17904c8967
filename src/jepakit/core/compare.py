"""Is it noise? Intervals of an accuracy and a paired test of two, with dependent samples kept together.

n test samples, C clusters of samples that are not independent (an identity, a scene); without them each stands alone.
No interval is a point: that all samples seen are right, or that two classifiers agree on all, says little of the next ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, stdtrit  # scipy.stats takes half a second to import

RESAMPLES, AT_ONCE = 4000, 100


@dataclass(frozen=True)
class Difference:
    """Accuracy, or another figure, of a minus that of b, its 95 % interval, and p: how often chance alone gives one as large.

    p_corrected: p where it is one of so many `comparisons` (Holm).
    """

    difference: float
    low: float
    high: float
    p: float
    p_corrected: float | None = None
    comparisons: int = 1


def mean_and_margin(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean of independent values, and half of its 95 % t-interval; None for one value, which says nothing of others."""
    n = len(values)
    margin = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return float(np.mean(values)), margin


def accuracy_interval(correct: NDArray[np.float64], clusters: NDArray[np.int64] | None = None) -> tuple[float, float]:
    """95 % interval of the mean of `correct` (n,), each 0 or 1, or a share between them; clusters (n,): whose samples depend.

    For independent samples that are right or wrong it is the exact one of Clopper and Pearson. Otherwise it is Korn and
    Graubard's (Survey Methodology 24, 1998): the exact interval of an effective number of independent samples, the number that
    would give the variance found over the clusters; the number of clusters where that variance is 0.
    """
    sums, counts = _sums(correct, clusters)
    n, c, share = len(correct), len(sums), float(correct.mean())
    residuals = sums - share * counts
    variance = float(residuals @ residuals) / n**2
    if c == 1 or variance <= 1e-18:
        return exact(share, c)
    effective = share * (1 - share) / variance * (c - 1) / c * n / (n - 1) * (stdtrit(n - 1, 0.975) / stdtrit(c - 1, 0.975)) ** 2
    return exact(share, min(effective, n) if np.isin(correct, (0, 1)).all() else effective)


def exact(share: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share of n independent samples; n need not be an integer."""
    k = share * n
    low = float(betaincinv(k, n - k + 1, 0.025)) if share > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if share < 1 else 1.0
    return low, high


def exact_mean(counts: Sequence[int]) -> float:
    """The least mean of shares p_k that leaves all of n_k samples right, of each k, a chance of 2.5 %; counts: n_k, 1 or more.

    Of one share it is the lower end of `exact`. sum n_k log p_k = log .025 has its least mean at p_k = n_k / c, at most 1.
    """
    from scipy.optimize import brentq

    n = np.asarray(counts, np.float64)

    def shares(c: float) -> NDArray[np.float64]:
        return np.minimum(1, n / c)

    c = brentq(lambda c: float(n @ np.log(shares(c))) - np.log(0.025), n.min(), 1.01 * n.max() * 0.025 ** (-1 / n.sum()))
    return float(shares(c).mean())


def paired(a: NDArray[np.float64], b: NDArray[np.float64], clusters: NDArray[np.int64] | None = None) -> Difference:
    """The difference in accuracy of two classifiers on the same samples; a, b (n,): whether each named a sample rightly, 0 to 1.

    The interval is Bonett and Price's (J. Educ. Behav. Stat. 37, 2012): two clusters of the mean size are added, one in which
    a wins every sample and one in which it loses every one. p for independent samples is McNemar's exact test on the samples
    where the two differ. With clusters it is a randomisation test: under the null hypothesis the sign of each cluster's
    difference is random; the observed signs count as one of the draws.
    """
    difference = a - b
    sums, counts = _sums(difference, clusters)
    if clusters is None and np.isin(difference, (-1, 0, 1)).all():
        wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
        p = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    else:
        draw, as_large = np.random.default_rng(0), 0
        for _ in range(0, RESAMPLES, AT_ONCE):  # at once, their signs would be gigabytes
            signs = 2.0 * draw.integers(0, 2, (AT_ONCE, len(sums)), np.int8) - 1
            as_large += int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12).sum())
        p = (1 + as_large) / (1 + RESAMPLES)
    size = counts.mean()
    sums, counts = np.append(sums, (size, -size)), np.append(counts, (size, size))
    middle = sums.sum() / counts.sum()
    residuals = sums - middle * counts
    spread = (len(sums) / (len(sums) - 1) * float(residuals @ residuals)) ** 0.5 / counts.sum()
    margin = float(stdtrit(len(sums) - 1, 0.975)) * spread
    return Difference(float(difference.mean()), max(-1.0, float(middle - margin)), min(1.0, float(middle + margin)), p)


def resampled_difference(seen: float, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Difference | None:
    """A figure of a minus that of b, of which `seen` is the difference, from its values in the same resamples (R,) of the test
    samples; None where these, without NaN, are none.

    The interval is that of percentiles; p is twice the share of resamples in which the difference is not on the side where it
    was seen; those seen count as one.
    """
    known = ours - theirs
    known = known[~np.isnan(known)]
    if np.isnan(seen) or not len(known):
        return None
    sides = [(1 + int((sign * known <= 0).sum())) / (1 + len(known)) for sign in (1, -1)]
    low, high = (float(np.quantile(known, q)) for q in (0.025, 0.975))
    return Difference(seen, min(low, seen), max(high, seen), min(1.0, 2 * min(sides)))


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """The same, each with its p as one of so many, so that all together have one false alarm in twenty."""
    many = holm([d.p for d in found])
    return [replace(d, p_corrected=p, comparisons=len(found)) for d, p in zip(found, many, strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's p-values (1979): the smallest times their number, the next times one less, none smaller than one before it."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(each) for each in stepped[np.argsort(order)]]


def _sums(x: NDArray[np.float64], clusters: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of samples of each cluster."""
    if clusters is None:
        return x, np.ones(len(x))
    which = np.unique(clusters, return_inverse=True)[1]
    return np.bincount(which, x), np.bincount(which).astype(np.float64)  # type: ignore[return-value]
