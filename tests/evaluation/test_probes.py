"""The probes that choose, are short of labels, attend, or train the encoder too."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import optimize, stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from jepakit.core.errors import UserError
from jepakit.data.sources import Labels, Source
from jepakit.evaluation.probes import finetune as ft
from jepakit.evaluation.probes import finetune_recipe
from jepakit.evaluation.probes.attentive import Probe, attentive, scores
from jepakit.evaluation.probes.finetune import Classifier, finetune
from jepakit.evaluation.probes.finetune_recipe import MAE, FineTuning, layer_scales, parameter_groups, recipe_for
from jepakit.evaluation.probes.knn import knn
from jepakit.evaluation.probes.logistic import STRENGTHS, logistic, standardised, validation_fifth
from jepakit.evaluation.probes.low_shot import LowShot, drawn, draws_interval, low_shot, names_in
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.layout import Layout
from jepakit.model.vit import VIT_SIZES, ViT, ViTConfig


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clouds(n: int, classes: int, width: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % classes
    return 3 * normal(classes, width, seed=99)[labels] + spread * normal(n, width, seed=seed), labels


def share(predicted: Tensor, truth: Tensor) -> float:
    return float((predicted == truth).double().mean())


# ---- logistic regression


def test_logistic_regression_is_scikit_learns_behind_its_scaler() -> None:
    x, labels = clouds(400, 5, 12, spread=6)
    x = (x * torch.logspace(-3, 3, 12) + 5).double()
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100, tol=1e-3))
    expected = judge.fit(x[:300].numpy(), labels[:300].numpy()).predict(x[300:].numpy())
    found, c = logistic(x[:300], labels[:300], x[300:], strength=0.01)
    assert found.shape == (100, 5) and c == 0.01
    np.testing.assert_array_equal(found.argmax(1).numpy(), expected)
    np.testing.assert_allclose(found, judge.predict_proba(x[300:].numpy()), rtol=1e-6)
    scaled = StandardScaler().fit(x[:300].numpy())
    for ours, theirs in zip(standardised(x[:300], x[300:]), (x[:300], x[300:]), strict=True):
        np.testing.assert_allclose(ours.numpy(), scaled.transform(theirs.numpy()), rtol=1e-9, atol=1e-9)


def test_the_strength_is_the_one_that_does_best_on_the_held_fifth() -> None:
    x, labels = clouds(300, 4, 30, spread=9)
    _, c = logistic(x, labels, x)
    validation = validation_fifth(labels.numpy())
    correct = {}
    for strength in STRENGTHS:
        predicted = logistic(x[~validation], labels[~validation], x[validation], strength=strength)[0].argmax(1)
        # standardised by all of the training samples there, by four fifths here: a sample or two may go either way
        correct[strength] = share(predicted, labels[validation])
    assert correct[c] >= max(correct.values()) - 2 / validation.sum()


def test_the_held_fifth_is_even_over_classes_and_leaves_each_one_a_sample() -> None:
    labels = np.random.RandomState(0).permutation(np.repeat([7, -3, 40, 8, 2], [50, 100, 25, 1, 3]))
    validation = validation_fifth(labels)
    assert abs(validation.sum() - len(labels) / 5) <= 3
    for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs(validation[labels == value].sum() - count / 5) <= 1 and not validation[labels == value].all()
    np.testing.assert_array_equal(validation, validation_fifth(labels))
    assert not validation_fifth(np.arange(12)).any()


@pytest.mark.parametrize("labels", [[5, 5, 9, 9, 1, 100], [0, 1, 2, 3, 4, 5], [3] * 6, [0, 0, 0, 0, 0, 1]])
def test_logistic_regression_takes_any_labels_one_sample_a_class_and_features_that_say_nothing(labels: list[int]) -> None:
    x, y = normal(6, 4), torch.tensor(labels)
    x[:, 1] = 0.1
    x[:, 2] = 0
    x[:, 0] = y * 10.0
    wild = x.clone()
    wild[:, 1:3] = 1e6  # constant in training: what a test sample has there counts for nothing
    for given in (x, wild):
        found, _ = logistic(x, y, given)
        assert set(found.argmax(1).tolist()) <= set(labels)
        torch.testing.assert_close(found.sum(1), torch.ones(6).double())
    assert share(logistic(x, y, wild, strength=1e4)[0].argmax(1), y) == 1


def test_what_rounding_leaves_of_a_constant_feature_is_not_blown_up() -> None:
    x = torch.full((50, 2), 1000.0)
    x[:, 0] += 1e-4 * normal(50)  # about the step between float32 numbers there
    x[:, 1] += 0.1 * normal(50)
    rounding, spread = standardised(x)[0].T
    assert rounding.abs().max() < 1e-2 and float(spread.std(correction=0)) == pytest.approx(1, rel=1e-3)


def test_a_probe_that_stops_early_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    x, labels = clouds(60, 3, 50)
    logistic(x, labels, x, strength=1e8)
    assert not [w for w in recwarn if "converge" in str(w.message)]


# ---- low-shot


@pytest.mark.parametrize("shots", [1, 4, 10])
def test_every_draw_has_that_many_of_each_class_and_more_shots_add_to_fewer(shots: int) -> None:
    labels = np.random.RandomState(0).permutation(np.repeat([3, 8, 11], [10, 40, 200]))
    draws = [drawn(labels, shots=shots, share=None, seed=1, draw=d) for d in range(4)]
    for d, rows in enumerate(draws):
        assert len(np.unique(rows)) == len(rows) == 3 * shots
        np.testing.assert_array_equal(np.unique(labels[rows], return_counts=True)[1], [shots] * 3)
        assert set(drawn(labels, shots=1, share=None, seed=1, draw=d)) <= set(rows)
    others = [tuple(r) for r in (*draws, drawn(labels, shots=shots, share=None, seed=2, draw=0))]
    assert len({r if shots < 10 else (i, r) for i, r in enumerate(others)}) == 5


@pytest.mark.parametrize("part, counts", [(0.01, [1, 1, 1, 10]), (0.1, [1, 2, 12, 100]), (1.0, [3, 20, 120, 1000])])
def test_a_share_is_of_each_class_and_one_at_least(part: float, counts: list[int]) -> None:
    labels = np.repeat(np.arange(4), [3, 20, 120, 1000])
    rows = drawn(labels, shots=None, share=part, seed=0, draw=0)
    np.testing.assert_array_equal(np.bincount(labels[rows]), counts)


def test_each_sample_of_a_class_is_drawn_as_often_as_the_others() -> None:
    labels = np.repeat([0, 1], [10, 20])
    times = sum(np.isin(np.arange(30), drawn(labels, shots=3, share=None, seed=0, draw=d)) for d in range(1000))
    for part, p in ((times[:10], 0.3), (times[10:], 0.15)):
        assert abs(part - 1000 * p).max() < 4.5 * (1000 * p * (1 - p)) ** 0.5
    pairs = sum({0, 1} <= set(drawn(labels, shots=3, share=None, seed=0, draw=d).tolist()) for d in range(1000))
    assert pairs == pytest.approx(1000 * 3 * 2 / (10 * 9), abs=4.5 * 66**0.5)


def test_the_interval_is_students() -> None:
    values = np.array([0.61, 0.64, 0.58, 0.66, 0.6])
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(draws_interval(values), expected, rtol=1e-12)
    np.testing.assert_allclose(draws_interval(values), stats.ttest_1samp(values, 0).confidence_interval(0.95), rtol=1e-12)
    assert draws_interval(values[:1]) == (None, None)


def test_low_shot_numbers_are_those_of_its_draws() -> None:
    x, labels = clouds(900, 3, 8, spread=6)

    def right(result: LowShot) -> np.ndarray:
        return result.predictions.correct(labels[600:].numpy())

    result = low_shot(x[:600], labels[:600], x[600:], labels[600:], shots=4, draws=4, seed=5)
    assert result.n_train == 12 and len(result.values) == 4 and 0.4 < result.mean < 1
    assert result.mean == pytest.approx(np.mean(result.values)) == pytest.approx(right(result).mean())
    assert (result.low, result.high) == draws_interval(np.array(result.values))
    assert right(result).shape == (300,) and set((4 * right(result)).tolist()) <= {0, 1, 2, 3, 4}
    again = low_shot(x[:600], labels[:600], x[600:], labels[600:], shots=4, draws=4, seed=5)
    assert again.values == result.values and (again.predictions.scores == result.predictions.scores).all()
    rows = drawn(labels[:600].numpy(), shots=4, share=None, seed=5, draw=2)
    one = low_shot(x[:600], labels[:600], x[600:], labels[600:], rows=rows)
    assert one.values == result.values[2:3] and one.low is None and one.high is None
    few = low_shot(x[:600], labels[:600], x[600:], labels[600:], seed=5)  # by default 1 %, five times
    assert few.n_train == 6 and len(few.values) == 5 and few.mean < result.mean
    easy, y = clouds(900, 3, 8, spread=0.1)
    assert low_shot(easy[:600], y[:600], easy[600:], y[600:], shots=1).mean == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_low_shot_minimises_the_softmax_loss_with_a_penalty_of_0025_over_n(classes: int) -> None:
    x, labels = clouds(20 + 5000, classes, 8, spread=6, seed=3)  # few enough to be separable: the penalty decides where
    n = 20
    seen, asked = standardised(x[:n].double(), x[n:])

    def expected(penalty: float) -> Tensor:
        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w = torch.tensor(flat, requires_grad=True)
            weight, bias = w[: 8 * classes].view(classes, 8), w[8 * classes :]
            loss = F.cross_entropy(seen @ weight.T + bias, labels[:n]) + penalty / 2 * weight.square().sum()
            loss.backward()
            assert w.grad is not None
            return loss.item(), w.grad.numpy()

        found = torch.tensor(optimize.minimize(objective, np.zeros(9 * classes), jac=True, options={"gtol": 1e-9}).x)
        return (asked @ found[: 8 * classes].view(classes, 8).T + found[8 * classes :]).argmax(1) == labels[n:]

    few = low_shot(x[:n], labels[:n], x[n:], labels[n:], rows=np.arange(n)).predictions
    correct = torch.from_numpy(few.correct(labels[n:].numpy())).bool()
    assert share(correct, expected(0.0025 / n)) > 0.999
    assert all(share(correct, expected(other * 0.0025 / n)) < 0.998 for other in (0.5, 2))


def test_a_probe_of_few_images_a_class_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """scikit-learn takes so many classes for numbers, and an early stop for a mistake."""
    x, labels = clouds(120, 30, 8)
    low_shot(x, labels, x, labels, shots=1, draws=1)
    logistic(x, labels, x)
    assert not [str(warning.message) for warning in recwarn]


def test_low_shot_errors_are_one_sentence_that_says_what_to_do() -> None:
    x, labels = clouds(30, 3, 4)
    for given, message in (({"shots": 11}, "class 0 has 10 training images, not 11"), ({"shots": 0}, "at least 1")):
        with pytest.raises(UserError, match=message):
            low_shot(x, labels, x, labels, **given)
    for given in ({"share": 0.0}, {"share": 1.5}, {"share": None}):
        with pytest.raises(UserError, match="more than 0 and at most 1"):
            low_shot(x, labels, x, labels, **given)
    with pytest.raises(UserError, match="no draw"):
        low_shot(x, labels, x, labels, draws=0)


def test_a_list_of_names_becomes_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    titles = ["n01/n01_2.JPEG", "n01/n01_10.JPEG", "n02/n02_1.JPEG", "n02/same.png", "n03/same.png"]
    listed = tmp_path / "1percent.txt"
    listed.write_text("n02_1.JPEG\n\nn01_2.JPEG\r\nn02/same.png\nn02_1.JPEG\nn99_9.JPEG\n")
    with caplog.at_level(logging.WARNING, "jepakit"):
        np.testing.assert_array_equal(names_in(listed, titles), [0, 2, 3])
    assert "1 of its 5 names" in caplog.text
    for text, message in (("same.png", "several"), ("cat.jpg", "names none .*'cat.jpg'.*n01_2"), ("", "empty")):
        listed.write_text(text)
        with pytest.raises(UserError, match=message):
            names_in(listed, titles)
    with pytest.raises(UserError, match="cannot read"):
        names_in(tmp_path / "none.txt", titles)


# ---- attentive


def one_token_tells(n: int, tokens: int = 16, width: int = 32, classes: int = 4) -> tuple[Tensor, Tensor]:
    """The class is in one token, marked by the last feature, at a random place; all others say another class, more loudly."""
    draw, labels = np.random.RandomState(0), torch.arange(n) % classes
    x, place = 0.3 * normal(n, tokens, width), torch.from_numpy(draw.randint(0, tokens, n))
    loud = torch.from_numpy(draw.randint(0, classes, (n, tokens)))
    x[..., :classes] += 3 * F.one_hot(loud, classes)
    x[torch.arange(n), place, :classes] = F.one_hot(labels, classes).float()
    x[torch.arange(n), place, -1] += 2
    return x, labels


def test_attention_finds_the_one_token_that_tells_where_the_mean_does_not() -> None:
    x, labels = one_token_tells(1400)
    settings: dict[str, Any] = {"heads": 2, "epochs": 15, "batch": 64, "lrs": (1e-3, 1e-2)}
    predicted, about = attentive(x[:1000].half(), labels[:1000], x[1000:].half(), 4, **settings)
    assert share(predicted.argmax(1), labels[1000:]) > 0.97
    assert about["heads"] == 2 and about["lr"] in (1e-3, 1e-2) and set(about["held_accuracy"]) == {"0.001", "0.01"}
    mean = x.mean(1)
    assert share(knn(mean[:1000], labels[:1000], mean[1000:]), labels[1000:]) < 0.6
    assert share(logistic(mean[:1000], labels[:1000], mean[1000:])[0].argmax(1), labels[1000:]) < 0.6


def as_multihead_attention(x: Tensor, probe: Probe, heads: int, mean: Tensor, std: Tensor) -> Tensor:
    """The same probe by torch's own attention."""
    width = x.shape[2]
    judge = nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        judge.in_proj_weight.copy_(torch.cat([torch.eye(width), probe.key, probe.value]))
        judge.in_proj_bias.copy_(torch.cat([torch.zeros(width), normal(width), probe.value_bias]))  # any key bias
        judge.out_proj.weight.copy_(torch.eye(width))
        judge.out_proj.bias.zero_()
        x = (x - mean) / std
        read, _ = judge(probe.query.expand(len(x), 1, -1), x, x)
        normed = F.layer_norm(read[:, 0], (width,), probe.norm_scale, probe.norm_bias, 1e-6)
        return normed @ probe.head.T + probe.head_bias


@pytest.mark.parametrize("heads", [1, 3])
def test_the_probe_is_torchs_cross_attention_of_standardised_tokens_for_each_probe_of_a_stack(heads: int) -> None:
    x, mean, std = normal(5, 7, 12) * 3 + 2, normal(12), normal(12).abs() + 0.5
    probes = [Probe(12, 4, seed) for seed in range(3)]
    for probe in probes:
        for i, p in enumerate(probe.parameters()):
            p.data = normal(*p.shape, seed=i)
    expected = torch.stack([as_multihead_attention(x, p, heads, mean, std) for p in probes])
    torch.testing.assert_close(scores(x, probes, heads, mean, std), expected, rtol=1e-4, atol=1e-4)
    shuffled = x[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(scores(shuffled, probes, heads, mean, std), expected, rtol=1e-4, atol=1e-4)


def test_a_rate_of_the_grid_trains_the_probe_that_it_would_train_alone() -> None:
    x, labels = one_token_tells(500)
    settings: dict[str, int] = {"heads": 2, "epochs": 3, "batch": 64}
    _, grid = attentive(x, labels, x, 4, lrs=(1e-4, 1e-2), **settings)
    validation = torch.from_numpy(validation_fifth(labels.numpy()))
    alone, _ = attentive(x[~validation], labels[~validation], x[validation], 4, lrs=(1e-2,), **settings)
    # moments of four fifths there, of all here: nearly the same probe
    assert share(alone.argmax(1), labels[validation]) == pytest.approx(grid["held_accuracy"]["0.01"], abs=0.05)
    assert grid["lr"] == 1e-2 and grid["held_accuracy"]["0.0001"] < 0.5


def test_attention_does_not_care_for_the_order_of_tokens_or_the_scale_of_features() -> None:
    x, labels = one_token_tells(400)
    settings = {"heads": 4, "epochs": 4, "batch": 64, "lrs": (1e-2,)}
    predicted, _ = attentive(x[:300], labels[:300], x[300:], 4, **settings)
    orders = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(400)])
    moved = torch.gather(x, 1, orders[..., None].expand_as(x))
    scaled = x * torch.logspace(-3, 3, 32) + 5
    for other in (moved, scaled):
        again, _ = attentive(other[:300], labels[:300], other[300:], 4, **settings)
        assert share(again.argmax(1), predicted.argmax(1)) > 0.98


def test_an_attentive_probe_is_the_same_each_time_and_leaves_the_global_random_state_alone() -> None:
    with torch.inference_mode():  # as cached features are
        x, labels = one_token_tells(120)
    labels, before = labels.clone(), torch.get_rng_state()
    torch.manual_seed(1)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first, _ = attentive(x, labels, x, 4, epochs=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == np_state).all()  # type: ignore[index]
    torch.manual_seed(2)
    assert torch.equal(attentive(x, labels, x, 4, epochs=2, seed=3)[0], first)
    assert attentive(x, labels, x, 4, epochs=1)[1]["heads"] == 1
    torch.set_rng_state(before)


def test_heads_that_do_not_divide_the_width_are_one_sentence() -> None:
    with pytest.raises(UserError, match="5 heads do not divide tokens of 32"):
        attentive(*one_token_tells(20), normal(3, 16, 32), 4, heads=5)


# ---- fine-tuning: its parts


def test_layers_learn_at_maes_rates() -> None:
    scales = layer_scales(12, 0.65)
    assert len(scales) == 14 and scales[-1] == 1 and scales[12] == pytest.approx(0.65)
    assert scales[0] == pytest.approx(0.65**13) == pytest.approx(0.003697, rel=1e-3)  # patch embedding
    assert scales[1] == pytest.approx(0.65**12) and scales[6] == pytest.approx(0.65**7)  # blocks 0 and 5
    assert layer_scales(2, 1.0) == [1.0] * 4


def test_the_rate_rises_from_nothing_and_falls_as_a_cosine() -> None:
    s = MAE["base"]
    values = [finetune_recipe.rate(e, 2e-3, s) for e in (0, 2.5, 5, 52.5, 100)]
    np.testing.assert_allclose(values, [0, 1e-3, 2e-3, (2e-3 + 1e-6) / 2, 1e-6], rtol=1e-9)


def test_the_rate_is_that_of_the_images_a_step_truly_has() -> None:
    s = FineTuning(batch_size=1024, base_lr=5e-4)
    assert finetune_recipe.peak_rate(1024, s) == finetune_recipe.peak_rate(4096, s) == pytest.approx(2e-3)
    assert finetune_recipe.peak_rate(256, s) == pytest.approx(5e-4)  # one step of 256 images, not of 1024
    assert finetune_recipe.peak_rate(1400, s) == pytest.approx(5e-4 * 1400 / 256)  # one step of all
    assert finetune_recipe.peak_rate(2500, s) == pytest.approx(5e-4 * 1250 / 256)  # two steps of 1250


@pytest.mark.parametrize(
    ("size", "expected"),  # table 9 of MAE: epochs, base rate, layer decay, drop path; its code's drop path of ViT-H
    [
        ("tiny", (100, 5e-4, 0.65, 0.1)),
        ("small", (100, 5e-4, 0.65, 0.1)),
        ("base", (100, 5e-4, 0.65, 0.1)),
        ("large", (50, 1e-3, 0.75, 0.2)),
        ("huge", (50, 1e-3, 0.75, 0.3)),
        ("giant", (50, 1e-3, 0.75, 0.3)),
    ],
)
def test_the_recipe_follows_the_shape_of_the_encoder(size: str, expected: tuple[float, ...]) -> None:
    width, depth, *_ = VIT_SIZES[size]
    recipe = recipe_for(width, depth)
    assert (recipe.epochs, recipe.base_lr, recipe.layer_decay, recipe.drop_path) == expected


def tiny(conditioning: PositionConditioning | None = None, depth: int = 3, size: int = 16) -> Encoder:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(patch_size=4, width=16, depth=depth, heads=2), (size // 4, size // 4))
    return Encoder(vit, ImageSettings(size=size, mean=(0.5,) * 3, std=(0.25,) * 3), conditioning).requires_grad_(False)


def test_groups_hold_every_parameter_once_and_vectors_do_not_decay() -> None:
    model = Classifier(tiny(), 5, FineTuning(layer_decay=0.5), seed=0)
    groups = parameter_groups(model, 3, 0.5, 0.05)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}
    of = {id(p): group for group in groups for p in group["params"]}
    assert all(p.requires_grad for p in model.parameters())
    for name, p in model.named_parameters():
        assert of[id(p)]["weight_decay"] == (0.05 if p.ndim > 1 else 0), name
    vit, first = model.encoder.vit, "proj"
    assert of[id(getattr(vit.patch_embed, first).weight)]["scale"] == 0.5**4
    for i, block in enumerate(vit.blocks):
        assert {of[id(p)]["scale"] for p in block.parameters()} == {0.5 ** (3 - i)}
    assert {of[id(p)]["scale"] for p in (*model.head.parameters(), *model.norm.parameters())} == {1}


def test_smoothed_targets_are_torchs() -> None:
    labels, found = torch.tensor([0, 2, 1, 2]), normal(4, 3)
    judge = F.cross_entropy(found, labels, label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(found, ft.smoothed(labels, 3, 0.1)), judge)


def test_mixup_and_cutmix_keep_the_mass_of_labels_and_give_each_image_its_share() -> None:
    images, targets = normal(6, 3, 8, 12), ft.smoothed(torch.arange(6) % 4, 4, 0.1)
    x, y = ft.mixup(images, targets, 0.3)
    torch.testing.assert_close(y.sum(1), torch.ones(6))
    torch.testing.assert_close(x[1], 0.3 * images[1] + 0.7 * images[4])
    torch.testing.assert_close(y[1], 0.3 * targets[1] + 0.7 * targets[4])
    black_and_white = torch.stack([torch.zeros(3, 8, 12), torch.ones(3, 8, 12)])
    draw = np.random.RandomState(0)
    for lam in (0.0, 0.2, 0.5, 0.9, 0.999, 1.0):
        for _ in range(20):
            box = ft.cutmix_box(8, 12, lam, (draw.rand(), draw.rand()))
            x, y = ft.cutmix(black_and_white, torch.eye(2), box)
            torch.testing.assert_close(y.sum(1), torch.ones(2))
            assert float(y[0, 1]) == pytest.approx(float(x[0].mean()), abs=1e-6)  # white in the black image, exactly
            assert float(y[1, 0]) == pytest.approx(1 - float(x[1].mean()), abs=1e-6)
    assert float(black_and_white[0].sum()) == 0  # what was given is left as it is


def test_a_cutmix_box_in_the_middle_has_the_area_and_at_the_edge_is_cut_off() -> None:
    assert ft.cutmix_box(100, 200, 0.75, (0.5, 0.5)) == (25, 75, 50, 150)  # a quarter of the area: half of each side
    assert ft.cutmix_box(100, 200, 0.75, (0.0, 0.999)) == (0, 25, 149, 200)
    assert ft.cutmix_box(100, 200, 0.0, (0.5, 0.5)) == (0, 100, 0, 200)


def test_which_mixture_a_step_takes_and_how_much_follow_their_laws() -> None:
    images, targets = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)]), torch.eye(2)
    both = [ft.mixed(images, targets, FineTuning(), 0, step) for step in range(600)]
    cut = np.array([len(x[0].unique()) <= 2 and set(x[0].unique().tolist()) <= {0.0, 1.0} for x, _ in both])
    assert abs(cut.mean() - 0.5) < 4.5 * 0.5 / 600**0.5
    lam = [float(ft.mixed(images, targets, FineTuning(mixup=0.2, cutmix=0), 0, step)[1][0, 0]) for step in range(600)]
    assert stats.kstest(lam, stats.beta(0.2, 0.2).cdf).pvalue > 1e-4
    none = ft.mixed(images, targets, FineTuning(mixup=0, cutmix=0), 0, 0)
    assert none[0] is images and none[1] is targets
    again = ft.mixed(images, targets, FineTuning(), 0, 7)
    assert torch.equal(again[0], both[7][0]) and torch.equal(again[1], both[7][1])


def test_drop_path_drops_whole_images_and_keeps_the_expectation() -> None:
    x = normal(8 * 5, 3)
    assert ft.drop_path(x, 0.0, torch.zeros(40)) is x
    out = ft.drop_path(x, 0.25, torch.tensor([0.1, 0.9] * 4).repeat_interleave(5)).view(8, 5, 3)
    assert not out[::2].any()
    torch.testing.assert_close(out[1::2], x.view(8, 5, 3)[1::2] / 0.75)
    chances = (torch.arange(100) + 0.5) / 100  # every hundredth of [0, 1) once
    mean = torch.stack([ft.drop_path(x, 0.25, chance.expand(40)) for chance in chances]).mean(0)
    torch.testing.assert_close(mean, x, rtol=1e-4, atol=1e-5)


def test_every_step_block_branch_and_image_draws_for_itself() -> None:
    chances = torch.stack([ft._chances(4, np.arange(50), 0, step) for step in range(5)])
    assert chances.shape == (5, 4, 2, 50) and len(chances.unique()) == chances.numel()
    assert stats.kstest(chances.flatten().numpy(), "uniform").pvalue > 1e-4
    assert torch.equal(ft._chances(4, np.arange(50)[::-1].copy(), 0, 3), chances[3].flip(2))  # wherever in the batch


def test_drop_path_rises_over_depth_to_its_rate() -> None:
    rates = finetune_recipe.drop_rates(12, 0.1)
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1) and np.mean(rates) == pytest.approx(0.05)
    np.testing.assert_allclose(np.diff(rates), 0.1 / 11)
    assert finetune_recipe.drop_rates(1, 0.3) == [0.0]


@pytest.mark.parametrize("conditioning", [None, PositionConditioning(infer_kernel=2, infer_stride=2)])
def test_without_drop_path_the_classifier_sees_what_the_encoder_gives(conditioning: PositionConditioning | None) -> None:
    encoder, images = tiny(conditioning), normal(4, 3, 16, 16)
    encoder.vit.norm.weight.copy_(torch.linspace(0.5, 2, 16))
    encoder.vit.norm.bias.copy_(torch.linspace(-1, 2, 16))  # else a norm of a norm is that norm
    model = Classifier(encoder, 5, FineTuning(drop_path=0.5), seed=0)
    tokens = model.encoder(images)  # before the encoder's last norm, which is left out
    torch.testing.assert_close(encoder.vit.norm(tokens), encoder(images))
    torch.testing.assert_close(model(images), model.head(model.norm(tokens.mean(1))))
    kept = torch.full((3, 2, 4), 0.999)
    other = Classifier(encoder, 5, FineTuning(drop_path=0.0), seed=0)
    torch.testing.assert_close(other(images, kept), model(images))
    assert (model(images, kept) - model(images)).abs().max() > 1e-7  # kept branches weigh more
    assert torch.equal(model(images), model(images))  # and the draw of one pass is gone in the next


def test_an_image_whose_branches_are_all_dropped_is_its_patch_embedding_and_others_do_not_notice() -> None:
    encoder, images = tiny(PositionConditioning(infer_kernel=2, infer_stride=2)), normal(3, 3, 16, 16)
    model = Classifier(encoder, 5, FineTuning(), seed=0)
    for block in model.encoder.vit.blocks:
        block.rate = 0.5  # type: ignore[assignment]
    chance = torch.full((3, 2, 3), 0.9)
    together = model(images, chance)
    chance[:, :, 1] = 0.1
    found = model(images, chance)
    torch.testing.assert_close(found[[0, 2]], together[[0, 2]])
    patches = images[1].unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(16, 48)
    embedded = encoder.vit.patch_embed(patches) + encoder.vit.positions
    torch.testing.assert_close(found[1], model.head(model.norm(embedded.mean(0))))


def test_the_two_branches_of_a_block_are_dropped_apart() -> None:
    vit, x = tiny(depth=1).vit, normal(8, 16)
    block, layout = vit.blocks[0], Layout(np.array([4, 4]))
    dropping = ft.DropPathBlock(block, 0.5)  # type: ignore[arg-type]
    dropping.chance = torch.tensor([[0.1, 0.9], [0.9, 0.1]])  # of two images, the one's attention and the other's MLP
    attended = x + 2 * block.attn(block.norm1(x), layout)  # type: ignore[operator]
    expected = torch.cat([x[:4] + 2 * block.mlp(block.norm2(x[:4])), attended[4:]])  # type: ignore[operator]
    torch.testing.assert_close(dropping(x, layout), expected)
    dropping.chance = None
    assert torch.equal(dropping(x, layout), block(x, layout))


# ---- fine-tuning: the whole


class Stripes(Source):
    """Stripes across or down, of any phase and either sign: the mean of pixels tells nothing."""

    name = "stripes"

    def __init__(self, n: int, whole: bool = False) -> None:
        draw = np.random.RandomState(0)
        self.values = np.arange(n) % 2
        waves = np.sin(np.arange(16)[None] * 1.6 + draw.rand(n, 1) * 2 * np.pi)
        images = np.where(self.values[:, None, None] == 0, waves[:, :, None], waves[:, None, :]) + np.zeros((n, 16, 16))
        noise = 20 * draw.randn(n, 16, 16, 3)
        self.images = np.clip(128 + 60 * images[..., None] + noise, 0, 255).astype(np.uint8)
        self.labels: Labels | None = Labels("way", ("across", "down"), self.values, np.zeros(n, bool), whole_image=whole)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def raw(self, index: int) -> np.ndarray:
        self.seen.append(index)
        return self.images[index]

    def title(self, index: int) -> str:
        return str(index)


QUICK = FineTuning(
    epochs=12, batch_size=32, base_lr=0.16, warmup_epochs=2, layer_decay=0.9, drop_path=0.1, head_std=0.02, crop_scale=(0.5, 1.0)
)


def test_fine_tuning_learns_what_the_frozen_encoder_does_not_show_and_leaves_it_as_it_was() -> None:
    source, encoder = Stripes(336), tiny(depth=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    train, test = np.arange(256), np.arange(256, 336)
    settings = QUICK.model_copy(update={"base_lr": 0.24, "epochs": 16})
    truth = torch.from_numpy(source.values[test])
    frozen = encoder.embed(encoder.normalise(torch.from_numpy(source.images).permute(0, 3, 1, 2)))
    start, _ = logistic(frozen[train], torch.from_numpy(source.values[train]), frozen[test])
    predicted, about = finetune(encoder, source, train, test, source.values, 2, settings, seed=1)
    assert predicted.shape == (80, 2)
    assert share(start.argmax(1), truth) < 0.8 and share(predicted.argmax(1), truth) > 0.9
    assert about["lr"] == pytest.approx(0.24 * 32 / 256) and about["epochs"] == 16 and about["loss"] < 0.69
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters()) and type(encoder.vit.norm) is nn.LayerNorm


@pytest.mark.parametrize("conditioning", [None, PositionConditioning(infer_kernel=2, infer_stride=2)])
def test_fine_tuning_twice_gives_the_same_bits_and_another_seed_others(conditioning: PositionConditioning | None) -> None:
    source, train, test = Stripes(60), np.arange(10, 60), np.arange(10)
    settings = QUICK.model_copy(update={"epochs": 3, "warmup_epochs": 1})
    encoder = tiny(conditioning, depth=2)
    state = torch.get_rng_state()
    losses = [finetune(encoder, source, train, test, source.values, 2, settings, seed=s)[1]["loss"] for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert set(source.seen) == set(range(60)) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("whole", [False, True])
def test_training_images_are_cropped_unless_the_label_speaks_of_the_whole(whole: bool) -> None:
    source = Stripes(4, whole=whole)
    settings = QUICK.model_copy(update={"crop_scale": (0.1, 0.2), "symmetry": None})
    view = ft._View(source, ImageSettings(size=16), whole, settings, seed=0)
    shown = [view(2, epoch) for epoch in range(3)]
    full = torch.from_numpy(source.images[2]).permute(2, 0, 1)
    assert all(torch.equal(image, full) for image in shown) == whole and torch.equal(view(2, None), full)
    assert torch.equal(view(2, 1), shown[1]) and torch.equal(shown[0], shown[1]) == whole
    flipped = ft._View(source, ImageSettings(size=16), True, QUICK, seed=0)
    ways = [torch.equal(flipped(2, e), full) for e in range(40)]
    assert 5 < sum(ways) < 35 and all(torch.equal(flipped(2, e), full.flip(2)) for e in range(40) if not ways[e])


@pytest.mark.parametrize(
    "change",
    [{"epochs": 5}, {"batch_size": 0}, {"drop_path": 1.0}, {"layer_decay": 0.0}, {"label_smoothing": 1.0}, {"mixup": -1.0}],
)
def test_settings_that_make_no_sense_are_one_sentence(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        FineTuning(**change)  # type: ignore[arg-type]


def test_few_images_learn_at_the_rate_of_their_number_and_the_account_says_so() -> None:
    source, encoder, n = Stripes(48), tiny(depth=1), 40
    few = QUICK.model_copy(update={"epochs": 3, "warmup_epochs": 1, "min_lr": 0.0, "batch_size": 1024})
    same = few.model_copy(update={"batch_size": n})  # the same steps, and so the same training
    one, other = (finetune(encoder, source, np.arange(n), np.arange(n, 48), source.values, 2, s)[1] for s in (few, same))
    assert one["lr"] == other["lr"] == pytest.approx(0.16 * 40 / 256) and one["loss"] == other["loss"]


def test_a_training_image_of_other_bands_is_named_in_one_sentence() -> None:
    class Odd(Stripes):
        def raw(self, index: int) -> np.ndarray:
            return np.zeros((16, 16, 13), np.uint16) if index == 3 else super().raw(index)

        def title(self, index: int) -> str:
            return f"image{index}.tif"

    source = Odd(10)
    with pytest.raises(UserError, match=r"^image3\.tif .*13"):
        finetune(tiny(depth=1), source, np.arange(8), np.arange(8, 10), source.values, 2, QUICK)


def test_a_loss_that_is_not_finite_stops_with_one_sentence() -> None:
    source, encoder = Stripes(8), tiny(depth=1)
    encoder.vit.patch_embed.proj.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="smaller base_lr"):
        finetune(encoder, source, np.arange(6), np.arange(6, 8), source.values, 2, QUICK)
