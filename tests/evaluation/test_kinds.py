"""Several labels at once, with gaps, and numbers: each probe against scikit-learn or torch, and `evaluate` from end to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor, nn

from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource, Labels, Source
from jepakit.evaluation.aggregate import means, one_for_each_group
from jepakit.evaluation.features import FrozenFeatures
from jepakit.evaluation.metrics import METRICS, goodness
from jepakit.evaluation.probes.attentive import attentive
from jepakit.evaluation.probes.finetune import finetune, mixup, smoothed
from jepakit.evaluation.probes.finetune_recipe import FineTuning
from jepakit.evaluation.probes.knn import knn_scores
from jepakit.evaluation.probes.linear_probe import LinearHeads, LinearProbe, linear_probe
from jepakit.evaluation.probes.logistic import as_predictions, logistic, validation_fifth
from jepakit.evaluation.probes.low_shot import low_shot
from jepakit.evaluation.probes.ridge import PENALTIES, leave_one_out, ridge, ridge_probe
from jepakit.evaluation.probes.targets import loss_of, sigmoid_loss, unscaled
from jepakit.evaluation.results import differences, results_table
from jepakit.evaluation.tasks import evaluate
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.vit import ViT, ViTConfig
from jepakit.reporting import report
from jepakit.reporting.paired_runs import paired_with_first
from jepakit.reporting.reading import read
from jepakit.training.train import pretrain

NAN = float("nan")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gappy(n: int = 240, width: int = 6, k: int = 3) -> tuple[Tensor, Tensor]:
    """Features, and labels that a line tells; a fifth is not known."""
    x = normal(n, width)
    y = (x @ normal(width, k, seed=1) + 0.5 * normal(n, k, seed=2) > 0.5).double()
    y[torch.rand(n, k, generator=torch.Generator().manual_seed(3)) < 0.2] = NAN
    return x, y


def numbers(n: int = 240, width: int = 6) -> tuple[Tensor, Tensor]:
    x = normal(n, width)
    return x, (100 + 7 * (x @ normal(width, seed=1)) + 3 * normal(n, seed=2)).double()


# ---- probes


def test_neighbours_give_their_weighted_mean_of_what_is_known() -> None:
    x, y = numbers()
    train, test = x[:180], x[180:]
    judge = KNeighborsRegressor(7, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))  # of unit vectors 1 - d²/2 is the cosine
    judge.fit(normalize(train.numpy()), y[:180].numpy())
    np.testing.assert_allclose(
        knn_scores(train, y[:180], test, k=7, temperature=0.1), judge.predict(normalize(test.numpy())), rtol=1e-4
    )
    labels = torch.tensor([[1.0, NAN, 0.0], [0.0, 1.0, NAN], [1.0, NAN, NAN]]).double()
    same = torch.ones(3, 2)  # all as near
    assert knn_scores(same, labels, same[:1], k=3).tolist()[0] == pytest.approx([2 / 3, 1, 0])
    far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert knn_scores(far, labels, far[:1], k=1).tolist()[0] == [1, 1, 0]  # of the second nothing is known there: all of training


def test_neighbours_shares_of_classes_add_up_to_one() -> None:
    x, labels = normal(50, 4), torch.arange(50) % 3
    found = knn_scores(x, labels, x[:9], classes=5)
    assert found.shape == (9, 5) and (found[:, 3:] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1)


def test_each_label_has_the_logistic_regression_that_it_would_have_alone() -> None:
    x, y = gappy()
    found, c = logistic(x[:180], y[:180], x[180:], strength=0.05)
    scaled = StandardScaler().fit(x[:180].numpy())
    for k in range(3):
        known = ~y[:180, k].isnan()
        judge = LogisticRegression(C=0.05, max_iter=100, tol=1e-3).fit(
            scaled.transform(x[:180][known].numpy()), y[:180, k][known]
        )
        np.testing.assert_allclose(found[:, k], judge.predict_proba(scaled.transform(x[180:].numpy()))[:, 1], atol=2e-3)
    y[:, 1] = torch.where(y[:, 1].isnan(), y[:, 1], 0.0)  # one answer is all there is
    assert (logistic(x, y, x, strength=c)[0][:, 1] == 0).all()


@pytest.mark.parametrize("kind", ["linear", "bn_affine"])
def test_the_gradient_of_several_labels_is_torchs_of_the_binary_cross_entropy(kind: str) -> None:
    x, y = gappy(40)
    heads = LinearHeads(x, kind, "last", LinearProbe(lr=(0.1,), weight_decay=(0.0,)), 3, 0)
    parameters = [nn.Parameter(p + 0.1 * normal(*p.shape, seed=i)) for i, p in enumerate(heads.parameters)]
    heads.parameters = [p.detach() for p in parameters]
    weight, bias, *affine = parameters
    scaled = x * affine[0][0] + affine[1][0] if affine else x
    logits = scaled @ weight[0] + bias[0]
    known = ~y.isnan()
    F.binary_cross_entropy_with_logits(logits[known], y[known].float(), reduction="sum").div(40).backward()
    for ours, p in zip(heads.gradients(x, y), parameters, strict=True):
        np.testing.assert_allclose(ours, p.grad, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def test_a_linear_probe_tells_several_labels_and_its_choice_goes_by_the_metric_on_the_fifth() -> None:
    x, y = gappy(600)
    settings = LinearProbe(epochs=20, lr=(1e-5, 0.01))
    scores, about = linear_probe({"last": x[:400]}, y[:400], {"last": x[400:]}, y[400:], settings, metric="auroc")
    assert goodness("auroc", as_predictions(scores, y, logits=True), y[400:].numpy()) > 0.9
    held = [head["auroc"]["held"] for head in about["heads"]]
    assert about["head"]["auroc"]["held"] == max(held) > min(held)
    assert about["best_on_test"] == pytest.approx(max(head["auroc"]["test"] for head in about["heads"]), abs=1e-4)


def test_another_metric_chooses_other_heads_of_classes() -> None:
    """Rare classes: to name the common one is right most often, so that metrics part ways."""
    draw = np.random.default_rng(0)
    labels = torch.from_numpy((draw.uniform(size=500) < 0.1).astype(np.int64))
    x = normal(500, 8) + 0.8 * labels[:, None]
    settings = LinearProbe(epochs=10, keep_path=False, lr=(1e-3, 0.1, 10.0))
    for metric in ("accuracy", "macro_f1", "average_precision"):
        _, about = linear_probe({"last": x[:300]}, labels[:300], {"last": x[300:]}, labels[300:], settings, metric=metric)
        assert about["head"][metric]["held"] == max(head[metric]["held"] for head in about["heads"])


def test_ridge_is_scikit_learns_in_both_of_its_forms() -> None:
    for n in (40, 4):  # more samples than features, and fewer
        x, y = numbers(n + 30)
        scaled = StandardScaler().fit(x[:n].numpy())
        for penalty, found in zip(PENALTIES, ridge(x[:n], y[:n], x[n:]), strict=True):
            judge = Ridge(alpha=n * penalty).fit(scaled.transform(x[:n].double().numpy()), y[:n].numpy())
            np.testing.assert_allclose(found, judge.predict(scaled.transform(x[n:].double().numpy())), rtol=1e-4)


def test_the_penalty_of_few_is_the_one_that_leaving_out_one_chooses() -> None:
    for n in (8, 30):
        x, y = numbers(n)
        scaled = StandardScaler().fit_transform(x.double().numpy())
        expected = RidgeCV(alphas=[n * penalty for penalty in PENALTIES]).fit(scaled, y.numpy())
        assert n * leave_one_out(x, y) == pytest.approx(expected.alpha_)


def test_ridge_chooses_layers_and_penalty_on_the_fifth() -> None:
    x, y = numbers(300)
    train = {"last": normal(200, 6, seed=9), "last4": torch.cat([x[:200], normal(200, 30, seed=8)], 1)}
    test = {"last": normal(100, 6, seed=7), "last4": torch.cat([x[200:], normal(100, 30, seed=6)], 1)}
    for metric in METRICS["number"]:
        found, about = ridge_probe(train, y[:200], test, y[200:], ("last", "last4"), metric=metric)
        held = [head[metric]["held"] for head in about["heads"]]
        assert about["head"]["layers"] == "last4" and about["head"][metric]["held"] == (min if metric == "mae" else max)(held)
        assert goodness("spearman", as_predictions(found, y), y[200:].numpy()) > 0.8


@pytest.mark.parametrize("of", ["labels", "numbers"])
def test_few_images_tell_something_of_labels_and_numbers(of: str) -> None:
    x, y = gappy(600) if of == "labels" else numbers(600)
    result = low_shot(x[:500], y[:500], x[500:], y[500:], share=0.1, draws=3)
    assert result.n_train == 50 and len(result.values) == 3 and result.mean > 0.7
    shape = (3, 100, 3) if of == "labels" else (3, 100)
    assert result.predictions.scores.shape == shape and result.predictions.predicted is None
    one = low_shot(x[:500], y[:500], x[500:], y[500:], shots=1, draws=1).predictions  # of one image nothing can be told
    assert np.isfinite(one.scores).all() and np.ptp(one.scores, axis=1).max() < 1e-9


def test_the_loss_leaves_out_what_is_not_known_and_numbers_are_in_units_of_their_deviation() -> None:
    scores, wanted = normal(5, 3), torch.tensor([[1.0, NAN, 0.0]]).repeat(5, 1)
    expected = F.binary_cross_entropy_with_logits(scores[:, [0, 2]], wanted[:, [0, 2]], reduction="sum")
    assert float(sigmoid_loss(scores, wanted)) == pytest.approx(float(expected))
    y = torch.tensor([10.0, 20.0, 60.0]).double()
    perfect = ((y - y.mean()) / y.std(correction=0))[:, None].float()
    assert float(loss_of(y)(perfect, y)) == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(unscaled(perfect, y), y, rtol=1e-6, atol=0)
    assert float(loss_of(y)(torch.zeros(3, 1), y)) == pytest.approx(3 / 2)


@pytest.mark.parametrize("of", ["labels", "numbers"])
def test_attention_reads_labels_and_numbers_off_tokens(of: str) -> None:
    x, y = gappy(500, width=8) if of == "labels" else numbers(500, width=8)
    tokens = torch.stack([3 * x, normal(500, 8, seed=5), normal(500, 8, seed=6)], 1)
    metric = "auroc" if of == "labels" else "r2"
    scores, about = attentive(tokens[:400], y[:400], tokens[400:], 3 if of == "labels" else 0, epochs=15, batch=50, metric=metric)
    assert goodness(metric, as_predictions(scores, y, logits=True), y[400:].numpy()) > 0.6
    assert len(about[f"held_{metric}"]) == 3


def test_targets_of_fine_tuning() -> None:
    labels = torch.tensor([[1.0, 0.0, NAN], [0.0, NAN, 1.0]])
    assert smoothed(labels, 3, 0.1)[0].tolist()[:2] == pytest.approx([0.95, 0.05])
    _, targets = mixup(torch.zeros(2, 1, 2, 2), labels, 0.25)
    assert targets[0].tolist()[0] == pytest.approx(0.25) and targets[:, 1:].isnan().all()  # a mixture of what is not known
    assert smoothed(torch.tensor([3.5]), 0, 0.1).tolist() == [3.5]


@pytest.mark.parametrize("of", ["labels", "numbers"])
def test_fine_tuning_learns_labels_and_numbers(of: str) -> None:
    draw = np.random.default_rng(0)
    level = draw.uniform(40, 200, (160, 3))
    images = (level[:, None, None] + draw.normal(0, 8, (160, 16, 16, 3))).clip(0, 255).astype(np.uint8)
    y = (level[:, :2] > 120).astype(float) if of == "labels" else 1000 + level[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViT(ViTConfig(width=16, depth=1, heads=2, patch_size=4), (4, 4), 3)
    encoder = Encoder(vit, ImageSettings(size=16, crop_scale=(0.3, 1.0)), None)
    settings = FineTuning(
        epochs=12, batch_size=16, base_lr=0.05, warmup_epochs=1, mixup=0, cutmix=0, drop_path=0, layer_decay=1.0
    )
    given = settings.model_copy(update={"mixup": 0.8}) if of == "numbers" else settings
    scores, about = finetune(encoder, ArraySource("s", images, None), np.arange(120), np.arange(120, 160), y, 2, given)
    metric = "auroc" if of == "labels" else "spearman"
    assert goodness(metric, as_predictions(scores, torch.from_numpy(y), logits=True), y[120:]) > 0.9
    assert about["mixup"] == 0  # nobody knows the number of a mixture
    assert of == "labels" or abs(float(scores.mean()) - y[:120].mean()) < 60


# ---- fifths and groups


def test_a_fifth_is_even_over_numbers_and_does_not_divide_groups() -> None:
    y = np.random.default_rng(0).permutation(np.arange(100) / 7)
    fifth = validation_fifth(y)
    assert fifth.sum() == 20 and abs(y[fifth].mean() - y.mean()) < 0.5
    groups = np.random.default_rng(1).integers(0, 25, 100)
    for labels in (y, np.arange(100) % 3, np.stack([np.arange(100) % 2, np.full(100, np.nan)], 1)):
        held = validation_fifth(labels, groups)
        assert not set(groups[held]) & set(groups[~held]) and 3 <= len(set(groups[held])) <= 5


@pytest.mark.parametrize("grouped", [False, True])
def test_a_fifth_of_several_labels_is_a_fifth_though_no_two_samples_are_alike(grouped: bool) -> None:
    draw = np.random.default_rng(0)
    y = (draw.random((200, 14)) < 0.2).astype(float)
    y[:, 0], y[:, 1] = 0, 1
    y[rare := 123, 0] = y[3, 1] = np.nan
    y[draw.integers(0, 200, 3), 2] = np.nan
    y[[rare, 7], 0], y[[50, 51], 1] = 1, 0  # of the second answer to two labels there are two samples each
    groups = np.arange(200) // 4 if grouped else None
    held = validation_fifth(y, groups)
    assert 32 <= held.sum() <= 40
    assert all((y[~held] == answer).any(0).all() for answer in (0, 1))  # nothing is asked that could not be learnt


def test_the_others_have_a_sample_of_every_class_whatever_classes_a_group_mixes() -> None:
    for seed in range(300):
        draw = np.random.default_rng(seed)
        y = draw.integers(0, 3, 60)
        y[draw.choice(60, 2, replace=False)] = 3  # which need not be the first of its group
        held = validation_fifth(y, groups := np.arange(60) // 3)
        assert set(y[~held]) == {0, 1, 2, 3} and not set(groups[held]) & set(groups[~held])


def grouped_labels() -> Labels:
    values = np.array([0, 0, 1, 1, 0, -1, 1])
    groups, test = np.array([4, 4, 2, 2, 7, 4, 2]), np.array([0, 0, 0, 0, 1, 0, 1], bool)
    return Labels("kind", ("a", "b"), values, test, groups, group_names=tuple("zyxwvuts"))


def test_a_group_has_the_mean_of_its_features_and_its_label() -> None:
    labels = grouped_labels()
    ids = np.flatnonzero(labels.values >= 0)
    grouped, places, which = one_for_each_group(labels, ids)
    assert places.tolist() == [0, 2, 4, 6] and which.tolist() == [0, 0, 1, 1, 2, 3]  # group 2 has a part in the test, too
    assert grouped.values[places].tolist() == [0, 1, 0, 1] and (grouped.values >= 0).sum() == 4
    x = torch.arange(12.0).reshape(6, 2)
    found = means({"a": FrozenFeatures(x, 2 * x)}, which, 4)["a"]
    assert found.last.tolist() == [[1, 2], [5, 6], [8, 9], [10, 11]] and found.last4 is not None
    assert torch.equal(found.last4, 2 * found.last)


def test_of_several_labels_a_group_knows_what_any_of_its_images_knows() -> None:
    targets = np.array([[1, NAN], [NAN, 0], [0, 1], [NAN, NAN], [1, 1], [NAN, NAN], [0, 0]])
    labels = replace(grouped_labels(), values=np.array([0, 0, 0, 0, 0, -1, 0]), targets=targets, classes=("ill", "old"))
    ids = np.flatnonzero(labels.values >= 0)
    grouped, places, _ = one_for_each_group(labels, ids)
    assert grouped.y[places].tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]


def test_a_group_of_two_labels_or_none_is_one_sentence() -> None:
    labels = grouped_labels()
    two = replace(labels, values=np.array([0, 1, 1, 1, 0, -1, 1]))
    with pytest.raises(UserError, match="group 'v' have different labels, 'a' and 'b'"):
        one_for_each_group(two, np.array([0, 1, 2]))
    with pytest.raises(UserError, match="--groups"):
        one_for_each_group(replace(labels, groups=None), np.arange(3))


# ---- from end to end


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    words = ["encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8"]
    words += ["predictor.depth=1", "images.size=16", "masking.min_keep=2", "optim.batch_size=8", "optim.steps=2", "run.threads=1"]
    return [pretrain("emoji", root / name, set=[*words, f"seed={s}"]) for s, name in enumerate(("a", "b"))]


QUICK = ["linear.epochs=2", "transfer.epochs=2", "attentive.epochs=1", "finetune.epochs=2", "finetune.warmup_epochs=1"]


def made(kind: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Source:
    """120 images of 40 patients, whose brightness is the number, and the labels."""
    draw = np.random.default_rng(0)
    level = np.repeat(draw.uniform(30, 220, (40, 2)), 3, 0)
    images = (level[:, None, None, [0, 1, 0]] + draw.normal(0, 10, (120, 20, 20, 3))).clip(0, 255).astype(np.uint8)
    groups, test = np.arange(120) // 3, np.arange(120) >= 75
    values, names, targets = np.zeros(120, np.int64), (), None
    if kind == "class":
        values, names = (level[:, 0] > 125).astype(np.int64), ("dark", "light")
    if kind == "number":
        targets = level[:, 0]
    if kind == "multi":
        names, targets = ("red", "green"), (level > 125).astype(float)
        targets[::7, 0] = NAN
    labels = Labels("lesion", names, values, test, groups, targets=targets, group_names=tuple(f"p{i}" for i in range(40)), **more)
    source = ArraySource("slices", images, labels)
    monkeypatch.setattr("jepakit.data.opening.open_source", lambda *_, **__: source)
    return source


def written(run: Run, task: str) -> dict[str, Any]:
    return json.loads((run.path / f"evaluation/{task}.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["class", "multi", "number"])
def test_every_task_gives_every_metric_of_its_kind(
    kind: str, runs: list[Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made(kind, monkeypatch)
    tasks = ["knn", "linear", "transfer", "low_shot", "attentive", "finetune", "logistic"]
    results = evaluate(runs[0], tasks=tasks, set=[*QUICK, "low_shot.share=0.3"])
    left_out = {"transfer", "logistic"} if kind == "number" else set()
    assert set(results) == {"rankme", *tasks} - left_out
    assert not left_out or "transfer and logistic: a recipe of classifiers" in caplog.text
    top = "accuracy" if kind == "class" else METRICS[kind][0]  # type: ignore[index]
    for task in set(results) - {"rankme"}:
        about = written(runs[0], task)
        assert about["kind"] == kind and about["n_test"] == 45 and about["independent"] == 15
        for row in about["rows"]:
            assert tuple(row["metrics"]) == METRICS[kind]  # type: ignore[index]
            assert row["counts"] == top and row[top] == row["metrics"][top]["value"]
            for name, figure in row["metrics"].items():
                if figure["low"] is not None:
                    assert figure["low"] <= figure["value"] <= figure["high"], (task, row["name"], name)
        assert kind == "number" or [row["class"] for row in about["per_class"]] == list(made(kind, monkeypatch).labels.classes)  # type: ignore[union-attr]
        with np.load(runs[0].path / f"evaluation/{task}.npz", allow_pickle=False) as arrays:
            assert len(arrays["truth"]) == 45 and ("confusion" in arrays) == (kind == "class")
            first = arrays[f"scores/{arrays['names'][0]}"]
            assert first.shape[1] == 45 and np.isfinite(first).all()
    best = {row["name"]: row["metrics"] for row in results["linear"]}["raw pixels"]
    assert best["r2" if kind == "number" else "auroc"]["value"] > 0.9  # brightness is all there is to tell
    said = results_table(results)
    assert (kind == "class") != ("by each metric:" in said)
    page = report([runs[0].path]).read_text()
    right = {row["name"]: row["metrics"] for row in results["knn"]}["target encoder"]
    if kind == "class":
        low, high = (100 * right["accuracy"][end] for end in ("low", "high"))
        assert f"accuracy {100 * right['accuracy']['value']:.1f} % [{low:.1f}–{high:.1f}]" in page
    assert ("AUROC" if kind != "number" else "Spearman") in page and ("test images" in page)


def test_a_named_metric_counts_in_tables_choices_and_pairs(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made("class", monkeypatch)
    cli.main(["evaluate", *(str(run.path) for run in runs), "--tasks", "knn,linear", "--metric", "auroc,accuracy", *QUICK])
    said = capsys.readouterr().out
    row = written(runs[0], "linear")["rows"][0]
    assert row["counts"] == "auroc" and set(row["head"]) >= {"auroc"} and row["accuracy"] == row["metrics"]["accuracy"]["value"]
    assert f"{100 * row['metrics']['auroc']['value']:.1f} %" in said and "macro-F1" in said
    found = differences(runs[0].path / "evaluation", runs[1].path / "evaluation", ["knn", "linear"], "auroc,accuracy")
    assert set(found["knn"]) == {"target encoder", "target encoder, auroc", "encoder", "encoder, auroc"}
    assert all(d.comparisons == 8 and d.p_corrected >= d.p for of in found.values() for d in of.values())  # type: ignore[operator]
    other = written(runs[1], "linear")["rows"][0]
    d = found["linear"]["target encoder, auroc"]
    assert d.difference == pytest.approx(row["metrics"]["auroc"]["value"] - other["metrics"]["auroc"]["value"], abs=1e-6)
    assert "linear, target encoder, auroc:" in said and "corrected for 8 comparisons (Holm)" in said
    paths = [runs[1].path, runs[0].path]  # a report takes the first away from the others
    shown = paired_with_first([read(path, i, paths) for i, path in enumerate(paths)], ["knn", "linear"])
    (alike,) = [each for (_, task, metric), each in shown.counting.items() if (task, metric) == ("linear", "auroc")]
    assert (alike.low, alike.high, alike.p) == pytest.approx((d.low, d.high, d.p)) and not shown.missing
    (alike,) = [each for (_, task, metric), each in shown.others.items() if (task, metric) == ("knn", "accuracy")]
    assert alike.low == found["knn"]["target encoder"].low and alike.comparisons == 8 == len(shown.others)


def test_a_group_is_one_sample_of_the_test_by_features_or_by_scores(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    made("class", monkeypatch)
    results = evaluate(runs[0], tasks=["knn", "attentive", "finetune"], set=[*QUICK, "aggregate=group", "knn.k=3"])
    for task in ("knn", "attentive", "finetune"):
        about = written(runs[0], task)
        assert about["n_test"] == about["independent"] == 15 and about["aggregate"] == "group", task
        assert about["n_train"] == (25 if task == "knn" else 75)
        with np.load(runs[0].path / f"evaluation/{task}.npz") as arrays:
            assert arrays["ids"].tolist() == list(range(75, 120, 3)) and arrays["right"].shape == (len(results[task]), 15)


MISTAKES = {
    "unknown metric": ("class", ["--metric", "aurok"], ["aurok", "'auroc'"]),
    "metric of classes for numbers": ("number", ["--metric", "accuracy"], ["numbers are judged by r2"]),
    "metric of classes for labels": ("multi", ["--metric", "macro_f1"], ["several labels", "auroc"]),
    "only classifiers for numbers": ("number", ["--tasks", "transfer"], ["classifiers", "--tasks linear"]),
    "constant number": ("constant", [], ["have the number 5", "two"]),
    "labels without both answers": ("one-sided", [], ["of no label"]),
    "nothing labelled": ("none", [], ["no image has a label"]),
    "one class": ("one class", [], ["of one class, 'dark'"]),
    "no groups": ("no groups", ["--aggregate", "group"], ["--groups"]),
    "unknown way to average": ("class", ["--aggregate", "patient"], ["aggregate", "group"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_code_2(
    name: str, runs: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kind, words, expected = MISTAKES[name]
    plain = {"constant": "number", "one-sided": "multi"}.get(kind, kind if kind in METRICS else "class")
    source = made(plain, monkeypatch)
    assert isinstance(source, ArraySource) and source.labels is not None
    labels = source.labels
    changes: dict[str, dict[str, Any]] = {
        "constant": {"targets": np.full(120, 5.0)},
        "one-sided": {"targets": np.ones((120, 2))},
        "none": {"values": np.full(120, -1)},
        "one class": {"values": np.zeros(120, np.int64)},
        "no groups": {"groups": None},
    }
    source.labels = replace(labels, **changes.get(kind, {}))
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(runs[0].path), "--out", str(tmp_path / "new"), *words])
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.err.count("error: ") == 1 and "Traceback" not in said.err
    assert all(word in said.err.splitlines()[-1] for word in expected), said.err
    assert not (tmp_path / "new").exists()
