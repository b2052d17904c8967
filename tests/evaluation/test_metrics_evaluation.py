"""The numbers that judge an encoder, against closed forms and independent implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from jepakit.evaluation.features import pca
from jepakit.evaluation.probes.knn import knn, neighbours
from jepakit.model.metrics import Discriminant, Gram, content_cosines, lidar, position_share, rankme


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


@pytest.mark.parametrize("shape", [(300, 20), (5000, 12), (20, 20), (15, 200)])
def test_rankme_from_sums_over_chunks_is_rankme_by_svd(shape: tuple[int, int]) -> None:
    z = (gaussian(*shape) * torch.logspace(0, -2, shape[1]) + 0.3).float()
    gram, index = Gram(), 0
    for size in (1, 2, 7, 4097, shape[0]):
        gram.add(z[index : index + size])
        index += size
    assert gram.n == shape[0]
    assert gram.rankme() == pytest.approx(rankme(z), rel=1e-4)
    assert gram.rankme(1e-5) == pytest.approx(rankme(z, 1e-5), rel=1e-4)


@pytest.mark.parametrize("n, value", [(256, 118.5), (512, 123.6), (2560, 127.2), (25600, 127.9)])
def test_rankme_from_sums_of_gaussian_noise_is_the_measured_value(n: int, value: float) -> None:
    gram = Gram()
    for part in gaussian(n, 128).float().split(200):
        gram.add(part)
    assert gram.rankme() == pytest.approx(value, abs=0.3)


def test_rankme_from_sums_is_uncentred_and_finite_for_nothing() -> None:
    assert Gram().add(gaussian(2560, 128) + 5).rankme() == pytest.approx(52.5, abs=0.5)
    assert Gram().add(torch.ones(50, 8)).rankme() == pytest.approx(1, abs=2e-4)
    assert np.isfinite(Gram().add(torch.zeros(50, 8)).rankme())


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


@pytest.mark.parametrize("group", [1, 7, 500])
def test_lidar_of_images_that_come_in_groups_is_lidar_of_all(group: int) -> None:
    e = views(60, 5, dims=4, width=12) + 3
    scatter = Discriminant()
    for part in e.float().split(group):
        scatter.add(part)
    assert scatter.lidar() == pytest.approx(reference_lidar(e.float().double().numpy(), 1e-4), rel=1e-6)
    assert scatter.lidar(1e-2, 1e-5) == pytest.approx(lidar(e.float(), 1e-2, 1e-5), rel=1e-9)


@pytest.mark.parametrize("q, value", [(5, 29.1), (10, 22.9), (50, 17.5)])
def test_streamed_lidar_of_sixteen_signal_dimensions_is_the_measured_value(q: int, value: float) -> None:
    scatter = Discriminant()
    for part in views(500, q).split(64):
        scatter.add(part)
    assert scatter.lidar() == pytest.approx(value, rel=0.04)


@pytest.mark.parametrize("n, value", [(64, 46.5), (100, 64.4), (200, 90.1), (1000, 119.2)])
def test_lidar_of_a_signal_in_all_dimensions_grows_with_the_images(n: int, value: float) -> None:
    assert lidar(views(n, 10, dims=128)) == pytest.approx(value, rel=0.04)


def test_another_number_of_views_is_refused() -> None:
    with pytest.raises(ValueError, match="views"):
        Discriminant().add(gaussian(3, 4, 5)).add(gaussian(3, 5, 5))


def test_lidar_of_images_that_do_not_differ_is_one() -> None:
    assert lidar(torch.ones(30, 4, 16)) == pytest.approx(1, abs=1e-4)
    assert lidar(gaussian(1, 4, 16).expand(30, 4, 16)) == pytest.approx(1, abs=1e-4)


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


# ---- do predictions tell images apart


def unit(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], 1)


def cos(degrees: float) -> float:
    return float(np.cos(np.radians(degrees)))


def test_two_images_at_two_patches_worked_by_hand() -> None:
    index, image = np.array([3, 9, 9, 3]), np.array([0, 0, 1, 1])  # patches in any order
    predictions = unit(10, 20, 70, 80) * torch.tensor([[1.0], [2.0], [3.0], [0.5]])  # lengths do not count
    targets = unit(0, 30, 60, 90) * torch.tensor([[5.0], [1.0], [0.1], [1.0]])
    own, other = content_cosines(predictions, targets, index, image)
    assert own == pytest.approx(np.mean([cos(10)] * 4))
    assert other == pytest.approx(np.mean([cos(10 - 90), cos(20 - 60), cos(70 - 30), cos(80 - 0)]))


def test_predictions_that_are_their_targets_have_cosine_one_with_those_alone() -> None:
    targets, index, image = gaussian(600, 64), np.tile(np.arange(30), 20), np.repeat(np.arange(20), 30)
    own, other = content_cosines(7 * targets, targets, index, image)
    assert own == pytest.approx(1) and abs(other) < 0.02


def test_predictions_that_are_a_places_mean_fit_all_images_alike() -> None:
    place, index, image = gaussian(30, 64), np.tile(np.arange(30), 20), np.repeat(np.arange(20), 30)
    targets = place[index] + 0.5 * gaussian(600, 64, seed=1)
    own, other = content_cosines(place[index], targets, index, image)
    assert own == pytest.approx(other, abs=0.005) and own > 0.8
    mean = torch.stack([F.normalize(targets, dim=1)[index == i].mean(0) for i in range(30)])
    own, other = content_cosines(mean[index], targets, index, image)
    assert own == pytest.approx(other, abs=1e-9)  # each target is a partner once


def test_patches_that_no_other_image_shares_are_left_out() -> None:
    targets = unit(0, 90, 0, 45)
    own, other = content_cosines(unit(0, 90, 60, 45), targets, np.array([1, 2, 7, 7]), np.array([0, 1, 2, 3]))
    assert own == pytest.approx((cos(60) + 1) / 2) and other == pytest.approx((cos(15) + cos(45)) / 2)
    for rows in (slice(0, 2), slice(0, 0)):
        both = content_cosines(targets[rows], targets[rows], np.array([1, 2])[rows], np.array([0, 1])[rows])
        assert np.isnan(both).all()
    alone = content_cosines(targets, targets, np.zeros(4, np.int64), np.zeros(4, np.int64))  # one image, one patch, four draws
    assert np.isnan(alone).all()


def test_several_targets_of_an_image_at_a_patch_count_each_against_another_images() -> None:
    image = np.array([0, 0, 0, 1, 1, 1])  # three draws of masks that took the same patch
    own, other = content_cosines(unit(0, 20, 40, 80, 80, 80), unit(0, 0, 0, 90, 90, 90), np.zeros(6, np.int64), image)
    assert own == pytest.approx((1 + cos(20) + cos(40) + 3 * cos(10)) / 6)
    assert other == pytest.approx((cos(90) + cos(70) + cos(50) + 3 * cos(80)) / 6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(0, 50))
def test_an_image_is_never_compared_with_itself_however_many_of_a_patchs_rows_are_its(image: list[int], seed: int) -> None:
    """Targets one-hot by image: a row compared with its own image would have cosine 1."""
    owner = np.random.RandomState(seed).permutation(np.array(image + [0] * seed))
    targets = torch.eye(5, dtype=torch.float64)[owner]
    own, other = content_cosines(targets, targets, np.zeros(len(owner), np.int64), owner)
    assert other == 0 or (np.isnan(other) and len(set(owner.tolist())) == 1)
    assert own == 1 or np.isnan(own)


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


def test_pixel_pca_is_scikit_learns_fitted_on_the_training_half_alone() -> None:
    x, train = gaussian(70, 8) * torch.logspace(0, -1, 8) + 2, np.arange(50) + 10
    test = np.setdiff1d(np.arange(70), train)
    found = pca(x, train, components=3)
    judge = PCA(3).fit(x[train].numpy())
    for part in (train, test):  # an axis may point either way
        np.testing.assert_allclose(found[part].abs(), np.abs(judge.transform(x[part].numpy())), atol=1e-9)
    changed = x.clone()
    changed[test] *= 100
    assert found.shape == (70, 3) and torch.equal(pca(changed, train, components=3)[train], found[train])
