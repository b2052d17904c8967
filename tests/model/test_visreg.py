"""VISReg: its terms by loops and closed forms, its gradients by hand, what happens at collapse, and its place in a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm, special_ortho_group
from torch import Tensor, nn

from jepakit.artifacts import checkpoint
from jepakit.config.config import overrides
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method, method_name
from jepakit.model.regularizers.sigreg import SIGReg, directions
from jepakit.model.regularizers.visreg import SIGMA_EPS, VISReg, sliced_wasserstein
from jepakit.planning import flops
from jepakit.planning.memory import peak_memory
from jepakit.reporting.sections.curves import TERMS
from jepakit.training.train import pretrain
from test_plan import CPU, LAW, SHAPES, counted
from test_regularizers import MASKS, SAMPLES, pooled, random, tensors
from test_resume import copy, same_bits

WORDS = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 run.threads=1 run.precision=fp32 optim.steps=4 run.save_every_steps=2 "
    "run.probe_images=0 regularizer.kind=visreg"
)
NAMES = {"scale", "center", "shape"}


def terms(z: Tensor, seed: int = 0, **how: Any) -> dict[str, Tensor]:
    """The unweighted terms of features (N, d) as the pooled contexts of N images."""
    masks = Masks.from_indices([[0]] * len(z), [[[1]]] * len(z))
    return VISReg(weight=1, **how).terms(z, z, z, masks, nn.Identity(), seed)


def values(z: Tensor, seed: int = 0, **how: Any) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms(z, seed, **how).items()}


def by_loops(z: np.ndarray, a: np.ndarray) -> dict[str, float]:
    """The three terms of features (N, d) and directions (d, K), sample by sample."""
    n, d = z.shape
    mu = [sum(z[i, k] for i in range(n)) / n for k in range(d)]
    sigma = [(sum((z[i, k] - mu[k]) ** 2 for i in range(n)) / n) ** 0.5 for k in range(d)]
    shape = 0.0
    for direction in a.T:
        slices = sorted(sum(direction[k] * (z[i, k] - mu[k]) / (sigma[k] + 1e-4) for k in range(d)) for i in range(n))
        shape += sum((x - norm.ppf(i / (n + 1))) ** 2 for i, x in enumerate(slices, start=1)) / n
    return {
        "scale": sum((1 - s) ** 2 for s in sigma) / d,
        "center": sum(m * m for m in mu) / d,
        "shape": shape / a.shape[1],
    }


def quantiles(n: int) -> Tensor:
    """The normal's, (n,), which have mean 0 and a mean square below 1."""
    return torch.from_numpy(norm.ppf(np.arange(1, n + 1) / (n + 1)))


def gradient(z: Tensor, name: str, **how: Any) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(terms(z, **how)[name], z)[0]


# ---- the terms


def test_the_terms_are_their_formulas_written_in_loops() -> None:
    z, seed = 1.7 * random(9, 4) + 0.3, 5
    assert values(z, seed, directions=6) == pytest.approx(by_loops(z.numpy(), directions(4, 6, seed).double().numpy()), rel=1e-10)


@pytest.mark.parametrize(("mean", "by"), [(0.0, 1.0), (0.5, 2.0), (-3.0, 0.2), (0.0, -1.5)])
def test_moved_quantiles_of_a_normal_have_closed_forms(mean: float, by: float) -> None:
    q = quantiles(25)
    r = float(q.square().mean().sqrt())
    z = (mean + by * q)[torch.randperm(25)][:, None]
    size = abs(by) * r
    expected = {"scale": (1 - size) ** 2, "center": mean**2, "shape": r**2 * (abs(by) / (size + SIGMA_EPS) - 1) ** 2}
    assert values(z) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_shape_is_zero_of_the_quantiles_themselves_and_of_nothing_else() -> None:
    q = quantiles(16)
    assert float(sliced_wasserstein(q.flip(0)[:, None])) == pytest.approx(0, abs=1e-24)
    for other in (q + 0.1, q * 1.1, q.sign()):
        assert float(sliced_wasserstein(other[:, None])) > 1e-3


def test_signs_are_as_far_from_a_normal_as_theory_says() -> None:
    """The squared Wasserstein distance of +-1 from N(0, 1) is 1 + 1 - 2 E|x| = 2 - 2 sqrt(2 / pi)."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10_000)[:, None]
    found = values(signs)
    assert found["scale"] == found["center"] == 0
    assert found["shape"] == pytest.approx(2 - 2 * (2 / np.pi) ** 0.5, abs=2e-3)


def test_normal_features_have_little_of_each_and_less_the_more_there_are() -> None:
    few, many = (values(random(n, 8, seed=n)) for n in (64, 4096))
    assert all(many[name] < few[name] / 10 < 0.01 for name in NAMES)


def test_the_order_of_samples_changes_nothing() -> None:
    z = random(40, 5) * torch.tensor([2.0, 1.0, 1.0, 0.5, 0.1]) + 0.3
    assert values(z[torch.randperm(40)]) == pytest.approx(values(z), rel=1e-12)


def test_shape_does_not_see_a_shift_or_the_scale_of_a_feature() -> None:
    z = random(40, 5) ** 3
    moved = values(z * torch.tensor([5.0, 1.0, 30.0, 2.0, 0.5]) - 7)
    assert moved["shape"] == pytest.approx(values(z)["shape"], rel=2e-3)  # up to SIGMA_EPS
    assert moved["scale"] > 10 and moved["center"] > 40


def test_rotated_white_features_have_the_same_shape_up_to_the_choice_of_directions() -> None:
    z = random(64, 5) ** 3
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov(correction=0))).T
    rotated = z @ torch.from_numpy(special_ortho_group.rvs(5, random_state=0))
    slices = (z / (1 + SIGMA_EPS)) @ directions(5, 4000, 0).double()
    own = torch.stack([sliced_wasserstein(x[:, None]) for x in slices.T])
    assert values(rotated, directions=4000)["shape"] == pytest.approx(float(own.mean()), abs=5 * float(own.std()) / 2000**0.5)
    assert values(z)["scale"] == pytest.approx(0, abs=1e-20)


# ---- its gradients


def test_the_gradients_are_those_derived_by_hand() -> None:
    z, n, d = 0.4 * random(12, 3) + 0.7, 12, 3
    mu, sigma = z.mean(0), z.std(0, correction=0)
    torch.testing.assert_close(gradient(z, "scale"), 2 * (sigma - 1) * (z - mu) / (d * n * sigma))
    torch.testing.assert_close(gradient(z, "center"), (2 * mu / (d * n)).expand(n, d))
    a = directions(d, 7, 3).double()
    slices = (z - mu) / (sigma + SIGMA_EPS) @ a
    ranks = slices.argsort(0).argsort(0)
    pull = 2 * (slices - quantiles(n)[ranks]) / (n * 7)  # of each slice; no gradient through sigma
    by_hand = (pull - pull.mean(0)) @ a.T / (sigma + SIGMA_EPS)
    masks = Masks.from_indices([[0]] * n, [[[1]]] * n)
    z.requires_grad_()
    shape = VISReg(weight=1, directions=7).terms(z, z, z, masks, nn.Identity(), 3)["shape"]
    torch.testing.assert_close(torch.autograd.grad(shape, z)[0], by_hand)


@pytest.mark.parametrize("by", [0.01, 0.5, 3.0])
def test_the_scale_that_shape_divides_by_passes_no_gradient(by: float) -> None:
    """Along z itself, shape of by * q has the slope 2 b (b - 1) r^2, b = by / (sigma + eps), and not that of its value: 0."""
    q = quantiles(30)
    r = float(q.square().mean().sqrt())
    z = by * q[:, None]
    b = by / (by * r + SIGMA_EPS)
    assert float((gradient(z, "shape") * z).sum()) == pytest.approx(2 * b * (b - 1) * r**2, rel=1e-9)
    h = 1e-4
    along_value = (values(z * (1 + h))["shape"] - values(z * (1 - h))["shape"]) / (2 * h)
    assert abs(along_value) < 0.2 * abs(2 * b * (b - 1) * r**2)


@pytest.mark.parametrize("place", [0.0, 2.0])
def test_at_collapse_scale_pulls_features_apart_as_hard_as_ever_where_sigreg_lets_go(place: float) -> None:
    noise = random(32, 8)
    spread = noise - noise.mean(0)
    masks = Masks.from_indices([[0]] * 32, [[[1]]] * 32)

    def apart(of: str, by: float) -> float:
        """How the loss falls as the noise grows: minus the gradient along the noise's direction."""
        z = (place + by * noise).requires_grad_()
        law: Any = VISReg(weight=1) if of == "scale" else SIGReg(weight=1)
        (slope,) = torch.autograd.grad(law.terms(z, z, z, masks, nn.Identity())[of], z)
        return -float((slope * spread).sum())

    near, nearer = (apart("scale", by) for by in (1e-4, 1e-6))
    expected = 2 * float(spread.square().mean(0).sqrt().mean())  # d/dt mean (1 - t s)^2 at t = 0
    assert near == pytest.approx(expected, rel=1e-3) and nearer == pytest.approx(expected, rel=1e-5)
    assert abs(apart("sigreg", 1e-6)) < 0.02 * abs(apart("sigreg", 1e-4)) < 0.01


def test_features_that_are_all_equal_have_a_finite_gradient() -> None:
    z = torch.full((8, 4), 3.0, requires_grad=True)
    sum(terms(z).values(), torch.zeros(())).backward()
    assert z.grad is not None and z.grad.isfinite().all()
    assert values(z.detach()) == pytest.approx({"scale": 1, "center": 9, "shape": float(quantiles(8).square().mean())}, rel=1e-5)


def test_what_lowers_it_turns_features_into_a_standard_normal() -> None:
    z = (random(128, 4) * torch.tensor([1.5, 1.0, 0.3, 0.01]) + 0.5).requires_grad_()
    adam = torch.optim.Adam([z], 0.05)
    for step in range(300):
        loss = sum(terms(z, step, directions=32).values(), torch.zeros(()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    z = z.detach()
    assert z.mean(0).abs().max() < 0.1
    assert (torch.linalg.eigvalsh(z.T.cov()) - 1).abs().max() < 0.25


# ---- in the loss


def test_each_term_has_its_own_weight_and_all_have_the_common_one() -> None:
    def weighted(**how: float) -> dict[str, float]:
        law = VISReg.model_validate(how)
        return {k: float(v) for k, v in law.terms(*tensors(), MASKS, nn.Identity()).items()}

    base = weighted()
    assert set(base) == NAMES <= TERMS.keys() and all(v > 0 for v in base.values())
    for name in NAMES:
        assert weighted(**{name: 3}) == pytest.approx(base | {name: 3 * base[name]})
    assert weighted(weight=0.3) == pytest.approx({k: 100 * v for k, v in base.items()})


def test_its_readings_are_of_the_pooled_context_and_the_mean_over_the_places_of_blocks() -> None:
    context, predictions, targets = tensors()
    a = directions(5, 7, 11).double().numpy()
    found = VISReg(weight=1, directions=7).terms(context, predictions, targets, MASKS, nn.Identity(), 11)
    wanted = by_loops(pooled(context, MASKS.context_lengths).numpy(), a)
    assert {k: float(v) for k, v in found.items()} == pytest.approx(wanted, rel=1e-10)
    blocks = VISReg(weight=1, directions=7, tensor="pred_blocks")
    found = blocks.terms(context, predictions, targets, MASKS, nn.Identity(), 11)
    z = pooled(predictions, MASKS.target_lengths).view(SAMPLES, 3, 5).numpy()
    each = [by_loops(z[:, m], a) for m in range(3)]
    wanted = {name: sum(one[name] for one in each) / 3 for name in NAMES}
    assert {k: float(v) for k, v in found.items()} == pytest.approx(wanted, rel=1e-10)
    ragged = Masks.from_indices([[0], [1]], [[[2], [3]], [[4]]])
    with pytest.raises(UserError, match="same number"):
        blocks.terms(random(2, 5), random(3, 5), random(3, 5), ragged, nn.Identity())


def test_autocast_does_not_lower_its_precision() -> None:
    given = [x.bfloat16() for x in tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = VISReg(weight=1).terms(*given, MASKS, nn.Identity(), 2)
    assert {term.dtype for term in rounded.values()} == {torch.float32}
    exact = VISReg(weight=1).terms(*(x.double() for x in given), MASKS, nn.Identity(), 2)
    assert {k: float(v) for k, v in rounded.items()} == pytest.approx({k: float(v) for k, v in exact.items()}, rel=1e-5)


@pytest.mark.parametrize("how", [{}, {"tensor": "pred_blocks", "projector": [20, 8]}, {"directions": 3}], ids=str)
def test_its_flops_are_those_that_torch_counts(how: dict[str, Any]) -> None:
    grid, channels, sizes = SHAPES[0]
    method = Method.model_validate({**sizes, "masking": LAW, "regularizer": {"kind": "visreg", **how}})
    masks = method.masking.sample(grid, np.arange(3), seed=1)
    ours = flops.step(method, grid, channels, masks, padded=True)
    assert ours.total == counted(method, grid, channels, masks)[1] and ours.regularizer > 0
    assert method_name(method) is None


def test_a_run_with_it_is_foreseen_logged_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    assert peak_memory(settings("small", None, overrides(WORDS.split())), CPU, 4).total > 0
    images = ArraySource("noise", np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), np.uint8), None).images
    np.savez(tmp_path / "noise.npz", images=images)
    straight = pretrain(str(tmp_path / "noise.npz"), tmp_path / "a", set=WORDS.split())
    again = copy(straight, tmp_path / "b")
    (again.checkpoints / checkpoint.step_name(4) / "model.safetensors").write_bytes(b"broken")
    same_bits(straight, pretrain(resume=again.path))
    assert {f"loss/{name}" for name in NAMES} <= set(straight.metrics()[-1])
