"""Intervals and paired tests, against exact laws and simulations of what they claim."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from jepakit.core.compare import accuracy_interval, corrected, exact, exact_mean, holm, paired


def wrongs(share: float, n: int) -> np.ndarray:
    return (np.arange(n) < round(share * n)).astype(float)


# ---- intervals


@pytest.mark.parametrize("successes, n", [(0, 1), (1, 1), (1, 5), (7, 20), (50, 100), (999, 1000), (0, 30), (40, 40)])
def test_of_independent_rights_and_wrongs_it_is_the_exact_one(successes: int, n: int) -> None:
    correct = wrongs(successes / n, n)
    low, high = accuracy_interval(correct)
    judge = stats.binomtest(successes, n).proportion_ci(0.95, "exact")  # Clopper and Pearson's
    assert (low, high) == pytest.approx((judge.low, judge.high), abs=1e-9)
    assert 0 <= low <= correct.mean() <= high <= 1 and low < high
    if successes:
        assert stats.binom.sf(successes - 1, n, low) == pytest.approx(0.025)  # of a truth at the end, what was seen or more
    if successes < n:
        assert stats.binom.cdf(successes, n, high) == pytest.approx(0.025)


@pytest.mark.parametrize("n", [1, 10, 100, 1000])
@pytest.mark.parametrize("truth", [0.0, 0.001, 0.01, 0.03, 0.2, 0.5, 0.9, 0.98, 0.999, 1.0])
def test_it_holds_the_truth_nineteen_times_of_twenty_at_any_truth(n: int, truth: float) -> None:
    chance = stats.binom.pmf(np.arange(n + 1), n, truth)
    seen = np.flatnonzero(chance > 1e-9)
    bounds = {k: accuracy_interval(wrongs(k / n, n)) for k in seen}
    assert sum(chance[k] for k, (low, high) in bounds.items() if low <= truth <= high) >= 0.95 - 1e-6  # over all that can be seen


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("clusters", [10, 60])
@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_with_clusters_too_it_holds_the_truth_also_near_all_right(truth: float, clusters: int, alike: float) -> None:
    draw, held = np.random.default_rng(0), []
    for _ in range(400):
        sizes = draw.integers(1, 9, clusters)
        own = draw.uniform(size=clusters) < truth  # a cluster is all right or wrong, in a share of what is drawn
        which = np.repeat(np.arange(clusters), sizes)
        correct = np.where(draw.uniform(size=clusters)[which] < alike, own[which], draw.uniform(size=len(which)) < truth)
        low, high = accuracy_interval(correct.astype(float), which)
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.95 - 3 * (0.05 * 0.95 / 400) ** 0.5


def test_what_is_all_right_or_all_wrong_is_known_as_well_as_there_are_clusters() -> None:
    clusters = np.arange(60) // 3
    for correct, ends in ((np.ones(60), (0.025 ** (1 / 20), 1)), (np.zeros(60), (0, 1 - 0.025 ** (1 / 20)))):
        assert accuracy_interval(correct, clusters) == pytest.approx(ends)
    low, high = accuracy_interval(np.ones(60), np.zeros(60, np.int64))  # one cluster
    assert (low, high) == pytest.approx((0.025, 1))


def test_shares_of_draws_have_an_interval_that_is_never_a_point() -> None:
    draw = np.random.default_rng(0)
    some = draw.integers(0, 6, 400) / 5  # in how many of five draws a sample was right
    low, high = accuracy_interval(some)
    assert high - low == pytest.approx(2 * 1.96 * some.std() / 20, rel=0.05) and low < some.mean() < high
    assert accuracy_interval(np.ones(400)) == pytest.approx((0.025 ** (1 / 400), 1))
    low, high = accuracy_interval(np.full(400, 0.6))
    assert low == pytest.approx(stats.binomtest(240, 400).proportion_ci(0.95, "exact").low) and high > 0.6


def test_samples_that_are_each_a_cluster_are_independent_samples() -> None:
    correct = wrongs(0.7, 400)
    alone = np.random.RandomState(0).permutation(400)
    np.testing.assert_allclose(accuracy_interval(correct, alone), accuracy_interval(correct), atol=0.006)
    with_share = correct.copy()
    with_share[0] = 0.999999  # no right-or-wrong, so drawn
    np.testing.assert_allclose(accuracy_interval(with_share), accuracy_interval(correct), atol=0.006)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_a_sample_count_once(copies: int) -> None:
    correct = wrongs(0.7, 300)
    order = np.random.RandomState(0).permutation(300 * copies)
    many, clusters = np.repeat(correct, copies)[order], np.repeat(np.arange(300), copies)[order]
    once, kept, naive = accuracy_interval(correct), accuracy_interval(many, clusters), accuracy_interval(many)
    np.testing.assert_allclose(kept, once, atol=0.007)
    assert kept[1] - kept[0] == pytest.approx(copies**0.5 * (naive[1] - naive[0]), rel=0.1)


def test_clusters_of_unequal_size_are_weighed_by_their_samples() -> None:
    correct, clusters = np.array([1.0, 1, 1, 0]), np.array([5, 5, 5, -2])  # any numbers name clusters
    assert accuracy_interval(correct, clusters) == pytest.approx((0, 1), abs=1e-9)  # of two clusters one is right, one wrong
    low, high = accuracy_interval(np.array([1.0, 1, 0, 0]), np.zeros(4, np.int64))  # one cluster knows no spread
    assert low < 0.01 and high > 0.99


def test_a_large_cluster_counts_for_more_than_a_small_one() -> None:
    sizes = np.tile([1, 9], 50)
    correct = np.repeat(np.tile([0.0, 1], 50), sizes)  # the large ones are right: nine samples of ten
    low, high = accuracy_interval(correct, np.repeat(np.arange(100), sizes))
    assert low < 0.9 < high and high - low < 0.11  # and not a half, the mean over clusters
    sizes = np.array([12, 1, 1, 1, 1])
    a = np.repeat([1.0, 0, 0, 0, 0], sizes)
    assert paired(a, 1 - a, np.repeat(np.arange(5), sizes)).p == 1  # 12 against 4 ones: no signs give less than 12 - 4


def dependent(draw: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Rights of clusters that each have a chance of their own, uniform in [.4, 1]: 0.7 in the mean."""
    sizes = draw.integers(1, 9, clusters)
    chance = np.repeat(draw.uniform(0.4, 1, clusters), sizes)
    return (draw.uniform(size=len(chance)) < chance).astype(float), np.repeat(np.arange(clusters), sizes)


def test_the_clustered_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    draw, held = np.random.default_rng(0), []
    for _ in range(300):
        low, high = accuracy_interval(*dependent(draw, 80))
        held.append(low <= 0.7 <= high)
    assert 0.91 <= np.mean(held) <= 0.985  # 95 % within three deviations


def test_samples_that_hang_together_fool_an_interval_that_takes_them_for_independent() -> None:
    draw, naive, kept = np.random.default_rng(1), [], []
    for _ in range(60):
        chance = draw.choice([0.0, 1.0], 40, p=[0.3, 0.7]).repeat(20)  # a cluster is all right or all wrong
        naive.append(np.subtract(*accuracy_interval(chance)[::-1]))
        kept.append(np.subtract(*accuracy_interval(chance, np.arange(40).repeat(20))[::-1])) if len(kept) < 5 else None
    assert np.mean(kept) == pytest.approx(20**0.5 * np.mean(naive), rel=0.15)


# ---- paired differences


def pair(wins: int, losses: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([1.0, 0, 1, 0], [wins, losses, both, neither])
    b = np.repeat([0.0, 1, 1, 0], [wins, losses, both, neither])
    order = np.random.RandomState(0).permutation(len(a))
    return a[order], b[order]


@pytest.mark.parametrize("wins, losses", [(0, 1), (5, 0), (9, 3), (20, 20), (60, 31), (0, 40)])
def test_p_is_mcnemars_exact_one_on_the_samples_where_the_two_differ(wins: int, losses: int) -> None:
    for both, neither in ((10, 5), (500, 0)):
        found = paired(*pair(wins, losses, both, neither))
        tail = stats.binom.cdf(min(wins, losses), wins + losses, 0.5)
        assert found.p == pytest.approx(min(1, 2 * tail), rel=1e-9) == stats.binomtest(wins, wins + losses, 0.5).pvalue
        n = wins + losses + both + neither
        assert found.difference == pytest.approx((wins - losses) / n)
        assert found.low <= found.difference <= found.high


def test_the_same_twice_differs_by_nothing_with_p_one_and_an_interval_as_wide_as_so_few_samples_leave() -> None:
    correct, widths = wrongs(0.6, 50), []
    for clusters in (None, np.arange(50) // 5, np.zeros(50, np.int64)):
        same = paired(correct, correct, clusters)
        assert (same.difference, same.p) == (0, 1) and same.low == -same.high < 0
        widths.append(same.high)
    assert widths[0] == pytest.approx(2 * 2**0.5 / 52, rel=0.05) and widths[0] < widths[1] < widths[2]  # two deviations
    better = paired(np.ones(20), np.zeros(20))
    assert better.difference == better.high == 1 and 0.6 < better.low < 0.9
    worse = paired(np.zeros(20), np.ones(20), np.arange(20) // 4)
    assert worse.difference == worse.low == -1 and -0.6 < worse.high < 0


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("win, lose", [(0.0, 0.0), (0.01, 0.01), (0.02, 0.0), (0.1, 0.02), (0.3, 0.2), (1.0, 0.0)])
def test_the_interval_of_a_difference_holds_the_true_one(win: float, lose: float, clustered: bool) -> None:
    draw, held = np.random.default_rng(0), []
    for _ in range(400):
        chance = draw.uniform(size=30 if clustered else 100)
        which = np.repeat(np.arange(len(chance)), draw.integers(1, 6, len(chance)) if clustered else 1)
        a, b = (chance < win).astype(float)[which], ((chance >= win) & (chance < win + lose)).astype(float)[which]
        found = paired(a, b, which if clustered else None)
        held.append(found.low <= win - lose <= found.high)
        assert found.low <= found.difference <= found.high and found.low < found.high
    assert np.mean(held) >= 0.93


def test_the_interval_of_a_difference_is_narrower_than_two_intervals_as_both_saw_the_same_samples() -> None:
    a, b = pair(16, 4, 600, 380)
    found = paired(a, b)
    assert found.low > 0 and accuracy_interval(b)[1] > accuracy_interval(a)[0]
    deviation = ((a - b).var() / len(a)) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_swapping_the_two_turns_the_signs() -> None:
    a, b = pair(12, 4, 60, 40)
    clusters = np.arange(len(a)) // 4
    for c in (None, clusters):
        one, two = paired(a, b, c), paired(b, a, c)
        assert one.p == two.p and one.difference == -two.difference
        assert (one.low, one.high) == pytest.approx((-two.high, -two.low))


def test_copies_of_a_sample_add_no_evidence() -> None:
    a, b = pair(9, 2, 40, 49)
    once = paired(a, b)
    many = paired(np.repeat(a, 6), np.repeat(b, 6), np.repeat(np.arange(100), 6))
    assert many.difference == pytest.approx(once.difference)
    assert many.p == pytest.approx(once.p, abs=4 * (once.p / 4000) ** 0.5)
    assert paired(np.repeat(a, 6), np.repeat(b, 6)).p < 1e-6 < once.p  # what leaving clusters out would claim
    np.testing.assert_allclose((many.low, many.high), (once.low, once.high), atol=0.01)


def test_with_few_clusters_p_is_that_of_all_signs() -> None:
    a = np.array([1.0, 1, 1, 1, 0, 1, 1, 0])
    clusters = np.array([0, 0, 1, 1, 2, 2, 3, 3])  # sums 2, 2, 1, 1
    signs = np.array(np.meshgrid(*[(-1, 1)] * 4)).reshape(4, -1)
    exact = np.mean(np.abs(np.array([2, 2, 1, 1]) @ signs) >= 6)
    assert paired(a, np.zeros(8), clusters).p == pytest.approx(exact, abs=0.015) and exact == 2 / 16


def test_under_the_null_the_clustered_p_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepakit.core.compare.RESAMPLES", 1000)
    draw, p = np.random.default_rng(2), []
    for _ in range(250):
        sizes = draw.integers(1, 6, 60)
        clusters = np.repeat(np.arange(60), sizes)
        chance = draw.uniform(0.3, 0.9, (2, 60))  # each of the two is good at some clusters, neither at more
        a, b = (draw.uniform(size=len(clusters)) < row[clusters] for row in chance)
        p.append(paired(a.astype(float), b.astype(float), clusters).p)
    for level in (0.05, 0.1, 0.25, 0.5):  # whole numbers of samples tie, so that p is a little too large, never too small
        share, noise = np.mean(np.array(p) <= level), (level * (1 - level) / 250) ** 0.5
        assert 0.88 * level - 3 * noise < share < level + 3 * noise


def test_a_big_effect_has_a_tiny_p() -> None:
    draw = np.random.default_rng(3)
    clusters = np.arange(300) // 3
    a, b = (draw.uniform(size=300) < chance for chance in (0.9, 0.6))
    assert paired(a.astype(float), b.astype(float), clusters).p <= 1 / 2000
    assert paired(a.astype(float), b.astype(float)).p < 1e-8
    low = paired(a.astype(float), b.astype(float), clusters).low
    assert 0.15 < low < 0.3


def test_shares_of_draws_are_compared_too() -> None:
    draw = np.random.default_rng(4)
    a, b = draw.integers(0, 6, (2, 200)) / 5  # how many of five draws were right
    found = paired(a, b)
    how: dict[str, Any] = {"permutation_type": "samples", "n_resamples": 4000, "random_state": 1}
    judge = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), **how)
    assert found.p == pytest.approx(judge.pvalue, abs=0.04)
    assert paired(np.minimum(a + 0.4, 1), a).p < 0.001


def test_all_is_the_same_each_time() -> None:
    draw = np.random.default_rng(5)
    a, clusters = dependent(draw, 30)
    b = np.roll(a, 1)
    assert accuracy_interval(a, clusters) == accuracy_interval(a, clusters) and paired(a, b, clusters) == paired(a, b, clusters)


# ---- several at once


def test_holms_p_is_that_worked_out_by_hand() -> None:
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and none below one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3, 0.4, 0.9]) == pytest.approx([0.9, 0.9, 0.9]) and holm([0.6, 0.7]) == [1, 1]
    assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])


def test_of_many_comparisons_of_nothing_one_in_twenty_calls_alarms() -> None:
    p = np.random.default_rng(0).uniform(size=(2000, 10))
    alone, together = ((np.array([min(f(list(row))) for row in p]) <= 0.05).mean() for f in (list, holm))
    assert alone == pytest.approx(1 - 0.95**10, abs=0.04) and together == pytest.approx(1 - 0.995**10, abs=0.015)


def test_each_difference_has_its_own_p_and_that_among_all() -> None:
    some = [paired(*pair(wins, 2, 50, 40)) for wins in (12, 3, 9)]
    many = corrected(some)
    assert [d.p for d in many] == [d.p for d in some] and {d.comparisons for d in many} == {3}
    assert [d.p_corrected for d in many] == holm([d.p for d in some])
    assert corrected(some[:1])[0].p_corrected == some[0].p and some[0].comparisons == 1


def test_the_least_mean_of_shares_that_leaves_all_right_a_chance() -> None:
    assert exact_mean([7]) == pytest.approx(exact(1, 7)[0]) and exact_mean([5, 5, 5]) == pytest.approx(exact(1, 15)[0])
    draw = np.random.default_rng(0)
    for counts in ([2, 9], [1, 4, 30], [3, 3, 50]):
        shares = draw.uniform(size=(400_000, len(counts))) ** 0.2  # most near 1, where the bound lies
        possible = (shares ** np.array(counts)).prod(1) >= 0.025
        assert shares[possible].mean(1).min() == pytest.approx(exact_mean(counts), abs=0.03)
        assert shares[possible].mean(1).min() >= exact_mean(counts) - 1e-9
