"""Metrics by name with scikit-learn as judge, their intervals over groups, and paired tests of any of them."""

import time
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as judge

from jepakit.core.compare import corrected, exact
from jepakit.core.errors import UserError
from jepakit.evaluation.bootstrap import figures, group_resamples, paired_bootstrap, per_class
from jepakit.evaluation.metrics import METRICS, Predictions, class_confusion, goodness, metrics_named, weighted


def classes_of(m: int = 300, k: int = 4, seed: int = 0, coarse: bool = True) -> tuple[Predictions, np.ndarray]:
    """Scores with ties, if coarse; labels of unlike frequency."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(k, m, p=np.arange(1, k + 1) / (k * (k + 1) / 2))
    logits = draw.standard_normal((m, k)) + 1.2 * np.eye(k)[truth]
    return Predictions.of_classes(logits.round(0 if coarse else 9), logits=True), truth


def several(m: int = 300, k: int = 3, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    """Labels of which a quarter is missing."""
    draw = np.random.default_rng(seed)
    truth = (draw.uniform(size=(m, k)) < [0.5, 0.2, 0.05]).astype(float)
    scores = (truth + draw.standard_normal((m, k))).round(1)
    truth[draw.uniform(size=(m, k)) < 0.25] = np.nan
    return Predictions(scores[None].astype(np.float32)), truth


def numbers(m: int = 300, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    draw = np.random.default_rng(seed)
    truth = 40 + 9 * draw.standard_normal(m).round(1)
    return Predictions((truth + 5 * draw.standard_normal(m)).round(0)[None]), truth


def as_scikit_learn_has_them(p: Predictions, y: np.ndarray) -> dict[str, float]:
    scores = p.scores[0].astype(np.float64)
    if p.kind == "number":
        return {
            "r2": judge.r2_score(y, scores),
            "mae": judge.mean_absolute_error(y, scores),
            "spearman": float(stats.spearmanr(y, scores).statistic),
        }
    if p.kind == "multi":
        known = [~np.isnan(column) for column in y.T]
        each = [(y[there, k], scores[there, k]) for k, there in enumerate(known)]
        return {
            "auroc": float(np.mean([judge.roc_auc_score(*one) for one in each])),
            "average_precision": float(np.mean([judge.average_precision_score(*one) for one in each])),
        }
    assert p.predicted is not None
    ones = np.eye(scores.shape[1])[y]
    return {
        "accuracy": judge.accuracy_score(y, p.predicted[0]),
        "balanced_accuracy": judge.balanced_accuracy_score(y, p.predicted[0]),
        "macro_f1": judge.f1_score(y, p.predicted[0], average="macro"),
        "auroc": judge.roc_auc_score(ones, scores, average="macro"),
        "average_precision": judge.average_precision_score(ones, scores, average="macro"),
    }


CASES = {
    "classes": classes_of(),
    "two classes": classes_of(k=2),
    "fine scores": classes_of(coarse=False),
    "labels with gaps": several(),
    "numbers": numbers(),
}


@pytest.mark.parametrize("case", CASES)
def test_every_metric_is_scikit_learns(case: str) -> None:
    predictions, truth = CASES[case]
    values = {name: figure["value"] for name, figure in figures(predictions, truth).items()}
    assert tuple(values) == METRICS[predictions.kind]
    assert values == pytest.approx(as_scikit_learn_has_them(predictions, truth), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_resample_has_the_metrics_of_the_samples_that_it_repeats(case: str) -> None:
    predictions, truth = CASES[case]
    groups = np.arange(len(truth)) // 3
    weights = group_resamples(len(truth), groups, 3)
    assert (weights.reshape(-1, 3, 3) == weights.reshape(-1, 3, 3)[:, :1]).all()  # a group comes and goes as one
    assert (weights[::3].sum(0) == len(truth) / 3).all()
    drawn = weighted(predictions, truth, weights, METRICS[predictions.kind])
    for r in range(3):
        rows = np.repeat(np.arange(len(truth)), weights[:, r].astype(int))
        again = Predictions(
            predictions.scores[:, rows], None if predictions.predicted is None else predictions.predicted[:, rows]
        )
        expected = as_scikit_learn_has_them(again, truth[rows])
        assert {name: each[r] for name, each in drawn.items()} == pytest.approx(expected, abs=1e-9)


def test_a_class_that_the_test_lacks_or_that_is_named_in_vain_counts_as_scikit_learn_counts_it() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]])
    truth = np.array([0, 1, 0, 0])  # nothing is of the third class, which is named once
    values = {name: figure["value"] for name, figure in figures(Predictions.of_classes(scores), truth).items()}
    predicted = scores.argmax(1)
    assert values["balanced_accuracy"] == pytest.approx(np.mean([2 / 3, 1]))
    assert values["macro_f1"] == pytest.approx(judge.f1_score(truth, predicted, average="macro", zero_division=0))
    by_hand = [judge.roc_auc_score(truth == c, scores[:, c]) for c in (0, 1)]
    assert values["auroc"] == pytest.approx(np.mean(by_hand))


def test_what_cannot_be_judged_is_none_and_never_the_best() -> None:
    constant = np.full(6, 2.5)
    found = figures(Predictions(np.arange(6.0)[None]), constant)
    assert found["r2"] == {"value": None, "low": None, "high": None} and found["mae"]["value"] is not None
    labels = np.array([[1.0, np.nan], [1.0, 0.0], [np.nan, 1.0]])
    scores = Predictions(np.array([[[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]]))
    assert figures(scores, labels)["auroc"]["value"] == 1  # of the second label alone: all that is known of the first is 1
    none = Predictions(np.array([[[0.9], [0.8]]]))
    assert goodness("auroc", none, np.ones((2, 1))) == -np.inf


@pytest.mark.parametrize("draw", range(3))
def test_the_mean_over_draws_is_that_of_each_draws_metrics(draw: int) -> None:
    each = [classes_of(seed=0)[0], Predictions.of_classes(np.random.default_rng(draw).uniform(size=(300, 4)))]
    truth = classes_of(seed=0)[1]
    assert each[0].predicted is not None and each[1].predicted is not None
    both = Predictions(
        np.concatenate([one.scores for one in each]),
        np.concatenate([one.predicted for one in each]),  # type: ignore[misc]
    )
    for name, figure in figures(both, truth).items():
        alone = [figures(one, truth)[name]["value"] for one in each]
        assert figure["value"] == pytest.approx(np.mean(alone))  # type: ignore[arg-type]


# ---- intervals


def test_the_interval_holds_the_truth_about_nineteen_times_of_twenty() -> None:
    """AUROC of two normal laws a deviation apart is known: the distribution function of 1 / sqrt 2."""
    expected, held = float(stats.norm.cdf(0.5**0.5)), []
    for seed in range(100):
        draw = np.random.default_rng(seed)
        truth = np.arange(120) % 2
        score = draw.standard_normal(120) + truth
        two = Predictions(score[None, :, None].astype(np.float32))
        figure = figures(two, truth[:, None].astype(float))["auroc"]
        held.append(figure["low"] <= expected <= figure["high"])  # type: ignore[operator]
    assert 0.88 <= np.mean(held) <= 1


def test_copies_of_a_sample_tell_no_more_than_the_sample() -> None:
    predictions, truth = classes_of(200)
    four = Predictions(predictions.scores.repeat(4, 1), predictions.predicted.repeat(4, 1))  # type: ignore[union-attr]
    groups = np.arange(800) // 4
    once, wise, naive = figures(predictions, truth), figures(four, truth.repeat(4), groups), figures(four, truth.repeat(4))
    for name in METRICS["class"]:
        one, two, three = (f[name]["high"] - f[name]["low"] for f in (once, wise, naive))  # type: ignore[operator]
        same = 0.01 * one if name == "accuracy" else 1e-9  # that one's interval is no bootstrap
        assert two == pytest.approx(one, abs=same) and three == pytest.approx(one / 2, rel=0.2), name


def test_no_interval_is_a_point() -> None:
    truth = np.arange(40) % 4
    perfect = Predictions.of_classes(np.eye(4)[truth])
    for name, figure in figures(perfect, truth).items():
        all_count = name in ("accuracy", "balanced_accuracy")  # else the samples of the rarest class
        assert figure["value"] == 1 and (figure["low"], figure["high"]) == pytest.approx(exact(1, 40 if all_count else 10)), name
    alike = figures(Predictions.of_classes(np.tile([0.1, 0.4, 0.3, 0.2], (40, 1))), truth)
    assert alike["auroc"] == {"value": 0.5, "low": None, "high": None}  # whatever the sample
    same = Predictions(np.arange(9.0)[None])
    assert figures(same, np.arange(9.0))["mae"] == {"value": 0, "low": None, "high": None}


def test_ten_thousand_images_a_thousand_times_take_seconds() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 10, 10_000)
    predictions = Predictions.of_classes(draw.uniform(size=(10_000, 10)))
    started = time.process_time()
    figures(predictions, truth)
    assert time.process_time() - started < 15  # 2 s on a core of its own


# ---- pairs


def test_a_run_against_itself_differs_by_nothing() -> None:
    for predictions, truth in CASES.values():
        for d in paired_bootstrap(predictions, predictions, truth).values():
            assert (d.difference, d.low, d.high, d.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("case", ["classes", "labels with gaps", "numbers"])
def test_a_pair_that_differs_is_found_and_its_mirror_image_is_the_same(case: str) -> None:
    good, truth = CASES[case]
    draw = np.random.default_rng(1)
    noise = good.scores + 30 * draw.standard_normal(good.scores.shape)
    bad = Predictions.of_classes(noise[0]) if good.kind == "class" else Predictions(noise)
    found, turned = paired_bootstrap(good, bad, truth), paired_bootstrap(bad, good, truth)
    values = [figures(one, truth) for one in (good, bad)]
    for name, d in found.items():
        assert d.difference == pytest.approx(values[0][name]["value"] - values[1][name]["value"])  # type: ignore[operator]
        assert (d.difference > 0) != (name == "mae") and d.low * d.high > 0 and d.p < 0.01
        assert turned[name].difference == -d.difference and turned[name].p == pytest.approx(d.p)
        assert (turned[name].low, turned[name].high) == pytest.approx((-d.high, -d.low))


def test_of_pairs_that_differ_by_chance_few_are_called_more() -> None:
    alarms = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        truth = (np.arange(150) % 3 == 0).astype(float)[:, None]
        one, two = (Predictions((truth + draw.standard_normal((150, 1)))[None].astype(np.float32)) for _ in range(2))
        alarms += paired_bootstrap(one, two, truth, names=["auroc"])["auroc"].p < 0.05
    assert alarms <= 8  # of 60: more would come once in a thousand times, were it one in twenty


def test_several_metrics_are_several_comparisons() -> None:
    good, truth = classes_of()
    found = paired_bootstrap(good, classes_of(seed=3)[0], truth)
    each = corrected([*found.values()])
    least = min(d.p for d in found.values())
    assert {d.comparisons for d in each} == {5} and min(d.p_corrected for d in each) == pytest.approx(5 * least)  # type: ignore[type-var]


# ---- tables, names, groups


def test_the_table_of_classes_and_the_confusions_are_scikit_learns() -> None:
    predictions, truth = classes_of()
    assert predictions.predicted is not None
    predicted = predictions.predicted[0]
    np.testing.assert_array_equal(class_confusion(predictions, truth), judge.confusion_matrix(truth, predicted))
    rows = per_class(predictions, truth, list("abcd"))
    precision, recall, f1, support = judge.precision_recall_fscore_support(truth, predicted)
    for c, row in enumerate(rows):
        ones: dict[str, Any] = {"class": "abcd"[c], "n_test": support[c]}
        ones |= {"precision": precision[c], "recall": recall[c], "f1": f1[c]}
        ones["auroc"] = judge.roc_auc_score(truth == c, predictions.scores[0][:, c])
        ones["average_precision"] = judge.average_precision_score(truth == c, predictions.scores[0][:, c])
        assert {key: value for key, value in row.items() if key != "class"} == pytest.approx(
            {key: value for key, value in ones.items() if key != "class"}
        )
    of_labels, gaps = several()
    rows = per_class(of_labels, gaps, list("abc"))
    assert [row["n_test"] for row in rows] == [int((column == 1).sum()) for column in gaps.T]
    assert np.mean([row["auroc"] for row in rows]) == pytest.approx(figures(of_labels, gaps)["auroc"]["value"])


def test_scores_of_a_group_are_the_mean_of_its_members() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.3, 0.7]])
    both = Predictions.of_classes(scores).grouped(np.array([1, 0, 1, 0]), 2)
    np.testing.assert_allclose(both.scores[0], [[0.35, 0.65], [0.65, 0.35]], rtol=1e-6)
    assert both.predicted is not None and both.predicted.tolist() == [[1, 0]]
    one = Predictions(np.array([[1.0, 2.0, 4.0]])).grouped(np.array([0, 1, 1]), 2)
    assert one.scores.tolist() == [[1, 3]] and one.kind == "number"


def test_a_metric_of_another_kind_is_one_sentence_with_the_nearest() -> None:
    assert metrics_named("", "class") == ("accuracy",) and metrics_named("", "multi") == ("auroc",)
    assert metrics_named("macro_f1, auroc", "class") == ("macro_f1", "auroc")
    with pytest.raises(UserError, match=r"aurok: classes are judged by accuracy.*did you mean 'auroc'"):
        metrics_named("aurok", "class")
    with pytest.raises(UserError, match="accuracy: numbers are judged by r2, mae, spearman"):
        metrics_named("accuracy", "number")
