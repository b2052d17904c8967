"""The numbers that judge an encoder, against closed forms and independent implementations."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from jepakit.errors import UserError
from jepakit.evaluation.features import pca
from jepakit.evaluation.knn import knn, neighbours
from jepakit.evaluation.linear import linear
from jepakit.evaluation.tasks import as_table, bootstrap, evaluate
from jepakit.metrics import lidar, position_share, rankme
from jepakit.report import report
from jepakit.run import Run
from jepakit.train import pretrain

TINY = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "images.max_bad=0.2 masking.min_keep=2 optim.batch_size=8 run.threads=1 run.precision=fp32"
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(n, n, seed=seed))[0]


# ---- RankMe (arXiv 2210.02885)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_rankme_of_r_equal_singular_values_is_r(r: int, scale: float, seed: int) -> None:
    z = scale * orthogonal(40, seed)[:, :r] @ orthogonal(30, seed + 1)[:r]
    assert rankme(z) == pytest.approx(r, rel=1e-4)


def test_rankme_of_one_direction_is_one_and_of_nothing_is_finite() -> None:
    assert rankme(gaussian(100, 1) @ gaussian(1, 64, seed=1)) == pytest.approx(1, abs=2e-4)
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, abs=2e-5)
    assert np.isfinite(rankme(torch.zeros(50, 8)))


@pytest.mark.parametrize("n, value", [(256, 118.5), (512, 123.6), (2560, 127.2)])
def test_rankme_of_gaussian_noise_is_the_measured_value(n: int, value: float) -> None:
    assert rankme(gaussian(n, 128)) == pytest.approx(value, abs=0.3)


def test_rankme_is_uncentred() -> None:
    z = gaussian(2560, 128) + 5
    assert rankme(z) == pytest.approx(52.5, abs=0.5)
    assert rankme(z - z.mean(0)) == pytest.approx(127.2, abs=0.3)


def test_rankme_does_not_feel_rotation_or_scale_but_feels_other_maps() -> None:
    z = gaussian(200, 16)
    stretched = z * torch.logspace(0, 2, 16)
    assert rankme(7 * z @ orthogonal(16)) == pytest.approx(rankme(z), rel=1e-9)
    assert rankme(stretched) < rankme(z) - 3


def test_rankme_is_the_entropy_of_singular_values() -> None:
    values = torch.tensor([5.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    p = (values / 10).numpy()
    z = orthogonal(9)[:, :4] @ torch.diag(values) @ orthogonal(4, 1)
    assert rankme(z) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-5)
    assert rankme(z.float()) == pytest.approx(rankme(z), rel=1e-4)


# ---- LiDAR (arXiv 2312.04000)


def views(n: int, q: int, dims: int = 16, width: int = 128, strength: float = 3.0, seed: int = 0) -> Tensor:
    """Images with a signal in some dimensions, seen q times with unit noise."""
    signal = torch.zeros(n, 1, width, dtype=torch.float64)
    signal[:, 0, :dims] = strength * gaussian(n, dims, seed=seed)
    return signal + gaussian(n, q, width, seed=seed + 1)


def reference_lidar(e: np.ndarray, delta: float) -> float:
    """The definition, term by term."""
    n, q, d = e.shape
    mean = e.mean(1)
    between = sum(np.outer(m, m) for m in mean - mean.mean(0)) / (n - 1)
    within = sum(np.outer(v, v) for i in range(n) for v in e[i] - mean[i]) / (n * (q - 1)) + delta * np.eye(d)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.linalg.eigvalsh(root @ between @ root).clip(0)
    p = p / p.sum() + 1e-8
    return float(np.exp(-(p * np.log(p)).sum()))


def test_lidar_is_its_definition() -> None:
    for shape, delta in (((30, 4, 8), 1e-4), ((12, 5, 20), 1e-2)):
        e = gaussian(*shape, seed=3)
        assert lidar(e, delta) == pytest.approx(reference_lidar(e.numpy(), delta), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-2, 2))
def test_lidar_does_not_feel_any_invertible_map_at_delta_zero(seed: int, power: float) -> None:
    e = views(60, 6, dims=3, width=8, seed=seed)
    stretch = torch.logspace(0, power, 8, dtype=torch.float64)
    mapped = e @ (orthogonal(8, seed) * stretch) @ orthogonal(8, seed + 1) + 3
    assert lidar(mapped, delta=0) == pytest.approx(lidar(e, delta=0), rel=1e-6)


@pytest.mark.parametrize("q, value", [(5, 29.1), (10, 22.9), (50, 17.5)])
def test_lidar_of_sixteen_signal_dimensions_is_the_measured_value(q: int, value: float) -> None:
    assert lidar(views(500, q)) == pytest.approx(value, rel=0.04)


def test_lidar_of_pure_noise_is_near_the_most_so_it_does_not_prove_a_signal() -> None:
    assert lidar(gaussian(500, 20, 128)) == pytest.approx(112.2, abs=1)


def test_lidar_hardly_feels_scale_at_the_default_delta() -> None:
    e = views(500, 10)
    values = [lidar(scale * e) for scale in (1, 0.1, 0.01)]
    assert max(values) - min(values) < 0.3


# ---- the share that position explains


def test_targets_that_are_their_position_have_share_one() -> None:
    index = np.tile(np.arange(16), 20)
    assert position_share(gaussian(16, 8)[index], index) == pytest.approx(1, abs=1e-12)


def test_targets_that_do_not_know_their_position_have_share_zero() -> None:
    index = np.tile(np.arange(64), 5)
    shares = [position_share(gaussian(len(index), 16, seed=s), index) for s in range(20)]
    assert abs(float(np.mean(shares))) < 0.01  # plain R^2 would say 63 / 319 = .2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_mixture_has_the_share_it_was_made_with(share: float) -> None:
    index = np.random.RandomState(1).randint(0, 64, 6000)  # unequal counts
    x = share**0.5 * gaussian(64, 32)[index] + (1 - share) ** 0.5 * gaussian(6000, 32, seed=2)
    assert position_share(x, index) == pytest.approx(share, abs=0.02)
    assert position_share(7 * x + 3, index) == pytest.approx(position_share(x, index), abs=1e-9)


def test_a_share_that_cannot_be_told_is_not_a_number() -> None:
    assert np.isnan(position_share(gaussian(4, 3), np.arange(4)))
    assert np.isnan(position_share(torch.ones(10, 3), np.arange(10) % 2))


# ---- probes


@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_knn_equals_scikit_learns_with_the_same_weights(k: int) -> None:
    labels = torch.from_numpy(np.random.RandomState(0).randint(0, 5, 200))
    centres = gaussian(5, 12, seed=4)
    train, test = gaussian(200, 12) + centres[labels], gaussian(90, 12, seed=1) + centres[torch.arange(90) % 5]
    judge = KNeighborsClassifier(min(k, 200), metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07))
    expected = judge.fit(train.numpy(), labels.numpy()).predict(test.numpy())
    np.testing.assert_array_equal(knn(train, labels, test, k=k).numpy(), expected)


def test_neighbours_are_the_nearest_by_angle_in_order() -> None:
    train, test = gaussian(300, 6), gaussian(7, 6, seed=1)
    similarity, index = neighbours(train, 100 * test, 4)
    cosine = torch.nn.functional.cosine_similarity(test[:, None], train[None], dim=-1)
    np.testing.assert_array_equal(index.numpy(), cosine.argsort(1, descending=True)[:, :4].numpy())
    np.testing.assert_allclose(similarity, cosine.sort(1, descending=True).values[:, :4], atol=1e-12)


def test_a_linear_probe_finds_a_line_that_neighbours_do_not() -> None:
    labels = torch.arange(400) % 2
    x = gaussian(400, 40) * 5
    x[:, 0] = (labels * 2 - 1) * 2.0  # one feature of 40 tells, on a scale below the noise
    predicted, strength = linear(x[:300], labels[:300], x[300:])
    assert float((predicted == labels[300:]).double().mean()) > 0.97 and strength in (0.001, 0.01, 0.1, 1.0)
    scaled, _ = linear(x[:300] * 1e4 + 7, labels[:300], x[300:] * 1e4 + 7)
    assert float((scaled == predicted).double().mean()) > 0.98


def test_a_linear_probe_of_noise_is_chance_and_a_constant_feature_does_no_harm() -> None:
    x = gaussian(600, 10)
    x[:, 3] = 1
    labels = torch.from_numpy(np.random.RandomState(5).randint(0, 4, 600))
    predicted, _ = linear(x[:400], labels[:400], x[400:])
    assert 0.12 < float((predicted == labels[400:]).double().mean()) < 0.38


def test_pixel_pca_is_fitted_on_the_training_half_alone() -> None:
    train, test = gaussian(50, 8) * torch.logspace(0, -1, 8), gaussian(20, 8, seed=1)
    a, b = pca(train, test, components=3)
    again, _ = pca(train, 100 * test, components=3)
    assert a.shape == (50, 3) and b.shape == (20, 3) and torch.equal(a, again)
    covariance = a.T @ a / 49
    values = torch.linalg.eigvalsh(torch.cov(train.T)).flip(0)[:3]
    np.testing.assert_allclose(covariance, torch.diag(values), atol=1e-9)


@pytest.mark.parametrize("accuracy, n", [(0.5, 100), (0.9, 40), (0.0, 30), (1.0, 30), (0.713, 1000)])
def test_the_interval_is_that_of_resampling(accuracy: float, n: int) -> None:
    right = np.arange(n) < round(accuracy * n)
    resampled = right[np.random.RandomState(0).randint(0, n, (20_000, n))].mean(1)
    low, high = bootstrap(float(right.mean()), n)
    assert low == pytest.approx(np.quantile(resampled, 0.025), abs=1.01 / n)
    assert high == pytest.approx(np.quantile(resampled, 0.975), abs=1.01 / n)
    assert low <= right.mean() <= high


# ---- the verb


def photos(root: Path, classes: int, each: int) -> Path:
    """Images whose class is their colour."""
    draw = np.random.default_rng(0)
    for c in range(classes):
        folder = root / f"class{c}" if classes > 1 else root
        folder.mkdir(parents=True)
        for i in range(each):
            pixels = draw.integers(0, 60, (20, 20, 3))
            pixels[..., c % 3] += 60 * (1 + c % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("labelled")
    data = photos(root / "photos", 3, 15)
    (data / "class1" / "03.png").write_bytes(b"broken")  # left out, of features and labels alike
    return pretrain(str(data), root / "run", method="ec_ijepa", set=[*TINY.split(), "optim.steps=4"])


ENCODERS = {"target encoder", "encoder", "untrained encoder", "raw pixels"}


def test_evaluation_writes_every_probe_beside_every_baseline(labelled: Run) -> None:
    results = evaluate(labelled)
    for task in ("knn", "linear"):
        written = json.loads((labelled.path / f"evaluation/{task}.json").read_text())
        assert written["task"] == task and written["rows"] == results[task]
        assert written["n_train"] == 35 and written["n_test"] == 9 and written["classes"] == 3 and written["settings"]
        rows = {row["name"]: row for row in written["rows"]}
        assert set(rows) == ENCODERS | {"pixel PCA", "majority class"}
        assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows.values())
        assert rows["raw pixels"]["accuracy"] == 1 and rows["majority class"]["accuracy"] == pytest.approx(1 / 3)
    ranks = json.loads((labelled.path / "evaluation/rankme.json").read_text())["rows"]
    assert {row["name"] for row in ranks} == ENCODERS and all(1 <= row["rankme"] <= 44 for row in ranks)
    table = as_table(results)
    assert len(table.splitlines()) == 7 and "target encoder" in table


def test_the_pictures_are_masks_and_neighbours_of_real_images(labelled: Run) -> None:
    evaluate(labelled, tasks=["knn"])
    with np.load(labelled.path / "evaluation/pictures.npz", allow_pickle=False) as file:
        p = {name: file[name] for name in file.files}
    n, q = len(p["images"]), len(p["query_images"])
    assert n == 6 and p["images"].shape == (n, 16, 16, 3) and p["images"].dtype == np.uint8
    assert p["context"].shape == (n, 4, 4) and p["targets"].shape == (n, 4, 4, 4)
    assert p["context"].any((1, 2)).all() and not (p["context"] & p["targets"].any(1)).any()
    assert p["neighbour_images"].shape == (q, 6, 16, 16, 3) and p["neighbour_labels"].shape == (q, 6)
    assert set(p["query_labels"]) <= {"class0", "class1", "class2"}
    assert not list(labelled.path.rglob(".tmp-*"))
    assert "class0" in report([labelled.path]).read_text()


def test_evaluation_is_the_same_each_time(labelled: Run) -> None:
    assert evaluate(labelled) == evaluate(labelled.path)


def test_without_labels_there_are_rank_and_pictures_and_a_word_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = pretrain(str(photos(tmp_path / "flat", 1, 12)), tmp_path / "run", method="ijepa", set=[*TINY.split(), "optim.steps=2"])
    with caplog.at_level(logging.WARNING, "jepakit"):
        results = evaluate(run)
    assert set(results) == {"rankme"} and {row["name"] for row in results["rankme"]} == ENCODERS
    assert sorted(p.name for p in (run.path / "evaluation").iterdir()) == ["pictures.npz", "rankme.json"]
    assert any("no labels" in record.getMessage() for record in caplog.records)
    assert "RankMe" in as_table(results)
    elsewhere = evaluate(run, str(photos(tmp_path / "other", 3, 10)))  # labels from another folder
    assert set(elsewhere) == {"rankme", "knn", "linear"}


def test_classes_too_small_to_hold_one_out_are_one_sentence(labelled: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least five of each of two classes"):
        evaluate(labelled, str(photos(tmp_path / "few", 3, 3)))
    with pytest.raises(UserError, match="did you mean 'linear'"):
        evaluate(labelled, tasks=["linaer"])
