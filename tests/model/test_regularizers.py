"""VICReg in C-JEPA's loss: its published formulas written out in loops, closed forms, and the three readings."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch import Tensor, nn

from jepakit.core.errors import UserError
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.regularizers import projector
from jepakit.model.regularizers.vicreg import Reading, VICReg, blocks_per_draw, covariance, invariance, variance

EPS = 1e-4
SAMPLES = 6
READINGS: list[Reading] = ["pred_blocks", "context_pooled", "pred_pairs"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def std_term(z: Tensor, gamma: float = 1.0) -> float:
    """(1/d) sum over j of max(0, gamma - sqrt(Var(z_j) + eps)), with the unbiased variance."""
    n, d = z.shape
    total = 0.0
    for j in range(d):
        mean = sum(float(z[b, j]) for b in range(n)) / n
        var = sum((float(z[b, j]) - mean) ** 2 for b in range(n)) / (n - 1)
        total += max(0.0, gamma - (var + EPS) ** 0.5)
    return total / d


def cov_term(z: Tensor) -> float:
    """(1/d) sum over i != j of C_ij^2."""
    n, d = z.shape
    centred = (z - z.mean(0)).tolist()
    total = 0.0
    for i in range(d):
        for j in range(d):
            if i != j:
                total += (sum(row[i] * row[j] for row in centred) / (n - 1)) ** 2
    return total / d


def pairs(z: Tensor, f: Callable[[Tensor, Tensor], float]) -> float:
    """Mean of f over ordered pairs i != j of views (B, M, d)."""
    m = z.shape[1]
    values = [f(z[:, i], z[:, j]) for i in range(m) for j in range(m) if i != j]
    return sum(values) / len(values)


def official(x: Tensor, y: Tensor) -> float:
    """VICReg's loss as published: 25 mse + 25 (std_x / 2 + std_y / 2) + (cov_x + cov_y)."""
    mse = float((x - y).square().mean())
    return 25 * mse + 25 * (std_term(x) / 2 + std_term(y) / 2) + cov_term(x) + cov_term(y)


# A batch of SAMPLES draws with ragged contexts and three ragged blocks each.
BLOCKS = [[[0, 1], [2, 3, 4], [5]] for _ in range(SAMPLES)]
MASKS = Masks.from_indices([[6, 7, 8][: 1 + i % 3] for i in range(SAMPLES)], BLOCKS)


def tensors(width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Context, predictions and targets of MASKS."""
    rows = len(MASKS.targets)
    return random(len(MASKS.context), width, seed=1), 0.5 * random(rows, width, seed=2), random(rows, width, seed=3)


def pooled(rows: Tensor, lengths: np.ndarray) -> Tensor:
    return torch.stack([own.mean(0) for own in rows.split(lengths.tolist())])


def test_two_views_give_the_published_loss() -> None:
    masks = Masks.from_indices([[0]] * SAMPLES, [[[1], [2]]] * SAMPLES)
    z = 0.7 * random(SAMPLES, 2, 5)
    terms = VICReg(weight=1).terms(random(SAMPLES, 5), z.flatten(0, 1), z.flatten(0, 1), masks, nn.Identity())
    assert float(sum(terms.values())) == pytest.approx(official(z[:, 0], z[:, 1]), rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(m=st.integers(2, 5), n=st.integers(2, 6), d=st.integers(2, 5), scale=st.floats(0.1, 3))
def test_statistics_equal_loops_over_their_formulas(m: int, n: int, d: int, scale: float) -> None:
    z = scale * random(n, m, d, seed=n * m * d) + 3
    assert float(invariance(z)) == pytest.approx(pairs(z, lambda a, b: float((a - b).square().mean())), rel=1e-10)
    assert float(variance(z[:, 0], 1.0, EPS)) == pytest.approx(std_term(z[:, 0]), rel=1e-9, abs=1e-12)
    assert float(covariance(z[:, 0])) == pytest.approx(cov_term(z[:, 0]), rel=1e-9, abs=1e-12)


def test_several_views_average_the_published_loss_over_their_ordered_pairs() -> None:
    context, predictions, targets = tensors()
    z = pooled(predictions, MASKS.target_lengths).view(SAMPLES, 3, 5)
    terms = VICReg(weight=1).terms(context, predictions, targets, MASKS, nn.Identity())
    assert float(sum(terms.values())) == pytest.approx(pairs(z, official), rel=1e-10)


def test_one_view_has_no_invariance() -> None:
    masks = Masks.from_indices([[0]] * SAMPLES, [[[1, 2]]] * SAMPLES)
    predictions = random(2 * SAMPLES, 5)
    terms = VICReg(weight=1).terms(random(SAMPLES, 5), predictions, predictions, masks, nn.Identity())
    z = pooled(predictions, masks.target_lengths)
    assert float(terms["sim"]) == 0
    assert float(terms["std"]) == pytest.approx(25 * std_term(z)) and float(terms["cov"]) == pytest.approx(cov_term(z))


def test_decorrelated_features_of_unit_variance_cost_nothing() -> None:
    z = torch.from_numpy(hadamard(8)).double()[:, 1:] * (7 / 8) ** 0.5
    torch.testing.assert_close(z.var(0), torch.ones(7, dtype=torch.float64))
    assert float(variance(z, 1.0, EPS)) == 0
    assert float(covariance(z)) == pytest.approx(0, abs=1e-24)
    assert float(variance(z, 2.0, EPS)) == pytest.approx(2 - (1 + EPS) ** 0.5)


def test_constant_features_cost_gamma_less_the_root_of_eps() -> None:
    z = torch.full((8, 5), 3.0, dtype=torch.float64)
    for gamma, eps in ((1.0, 1e-4), (2.0, 1e-2)):
        assert float(variance(z, gamma, eps)) == pytest.approx(gamma - eps**0.5, rel=1e-12)
    assert float(covariance(z)) == 0


def test_identical_features_have_covariances_of_their_variance() -> None:
    z = random(50, 1).expand(50, 4)
    assert float(covariance(z)) == pytest.approx(3 * float(z[:, 0].var()) ** 2, rel=1e-10)  # d (d - 1) v^2 / d


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-100, 100), seed=st.integers(0, 100))
def test_statistics_do_not_see_a_shift_or_the_order_of_images_and_views(shift: float, seed: int) -> None:
    z = random(7, 3, 4, seed=seed)
    moved = (z + shift)[torch.randperm(7)][:, torch.randperm(3)]
    assert float(invariance(moved)) == pytest.approx(float(invariance(z)), rel=1e-8)
    for f in (covariance, lambda x: variance(x, 1.0, EPS)):
        own, other = (sum(float(f(view)) for view in x.unbind(1)) for x in (z, moved))
        assert other == pytest.approx(own, rel=1e-7, abs=1e-10)


def test_reading_pred_blocks_compares_predicted_blocks_with_each_other_only() -> None:
    context, predictions, targets = tensors()
    law = VICReg(weight=1)
    terms = law.terms(context, predictions, targets, MASKS, nn.Identity())
    z = pooled(predictions, MASKS.target_lengths).view(SAMPLES, 3, 5)
    assert float(terms["sim"]) == pytest.approx(25 * pairs(z, lambda a, b: float((a - b).square().mean())))
    assert float(terms["std"]) == pytest.approx(25 * sum(std_term(z[:, i]) for i in range(3)) / 3)
    assert float(terms["cov"]) == pytest.approx(2 * sum(cov_term(z[:, i]) for i in range(3)) / 3)
    assert law.terms(context + 1, predictions, targets * 2, MASKS, nn.Identity()) == terms


def test_reading_context_pooled_has_statistics_of_the_context_and_compares_with_the_targets() -> None:
    context, predictions, targets = tensors()
    terms = VICReg(weight=1, tensor="context_pooled").terms(context, predictions, targets, MASKS, nn.Identity())
    own = pooled(context, MASKS.context_lengths)
    said, wanted = (pooled(x, MASKS.target_lengths) for x in (predictions, targets))
    assert float(terms["sim"]) == pytest.approx(25 * float((said - wanted).square().mean()))
    assert float(terms["std"]) == pytest.approx(25 * std_term(own))
    assert float(terms["cov"]) == pytest.approx(cov_term(own))


def test_reading_pred_pairs_has_statistics_of_the_blocks_and_compares_with_the_targets() -> None:
    context, predictions, targets = tensors()
    law = VICReg(weight=1, tensor="pred_pairs", halve_std=False)
    terms = law.terms(context, predictions, targets, MASKS, nn.Identity())
    said, wanted = (pooled(x, MASKS.target_lengths) for x in (predictions, targets))
    z = said.view(SAMPLES, 3, 5)
    assert float(terms["sim"]) == pytest.approx(25 * float((said - wanted).square().mean()))
    assert float(terms["std"]) == pytest.approx(25 * pairs(z, lambda a, b: std_term(a) + std_term(b)))
    assert float(terms["cov"]) == pytest.approx(pairs(z, lambda a, b: cov_term(a) + cov_term(b)))


@pytest.mark.parametrize("reading", READINGS)
def test_each_term_has_its_own_weight_and_all_have_the_common_one(reading: Reading) -> None:
    def terms(**how: float) -> dict[str, float]:
        law = VICReg.model_validate({"tensor": reading, **how})
        return {k: float(v) for k, v in law.terms(*tensors(), MASKS, nn.Identity()).items()}

    base = terms()
    assert set(base) == {"sim", "std", "cov"} and all(v > 0 for v in base.values())
    for name, own in {"sim": 25.0, "std": 25.0, "cov": 1.0}.items():
        assert terms(**{name: 3 * own}) == pytest.approx(base | {name: 3 * base[name]})
        assert terms(**{name: 0}) == pytest.approx(base | {name: 0})
    assert terms(weight=0.5) == pytest.approx({k: 500 * v for k, v in base.items()})  # the paper's weight is .001


@pytest.mark.parametrize("reading", ["pred_blocks", "pred_pairs"])
def test_not_halving_doubles_the_variance_term_only(reading: Reading) -> None:
    whole, half = (VICReg(tensor=reading, halve_std=h).terms(*tensors(), MASKS, nn.Identity()) for h in (False, True))
    assert float(whole["std"]) == pytest.approx(2 * float(half["std"]))
    assert float(whole["sim"]) == float(half["sim"]) and float(whole["cov"]) == float(half["cov"])


@pytest.mark.parametrize("reading", READINGS)
def test_autocast_does_not_lower_the_precision_of_the_statistics(reading: Reading) -> None:
    torch.manual_seed(0)
    project = projector((16, 16, 8), 5)
    context, predictions, targets = (x.bfloat16() for x in tensors())
    law = VICReg(tensor=reading, weight=1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = law.terms(context, predictions, targets, MASKS, project)
    exact = law.terms(context.float(), predictions.float(), targets.float(), MASKS, project)
    for name, term in rounded.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_pass_through_every_term(reading: Reading) -> None:
    context, predictions, targets = (x.requires_grad_() for x in tensors(3))
    law = VICReg(tensor=reading, weight=1)

    def total(c: Tensor, p: Tensor) -> Tensor:
        return torch.stack([*law.terms(c, p, targets.detach(), MASKS, nn.Identity()).values()]).sum()

    assert torch.autograd.gradcheck(total, (context, predictions))


def test_unequal_numbers_of_blocks_are_refused_where_blocks_are_compared() -> None:
    masks = Masks.from_indices([[0], [1]], [[[2], [3]], [[4]]])
    rows = random(3, 5)
    for reading in ("pred_blocks", "pred_pairs"):
        with pytest.raises(UserError, match="same number"):
            VICReg(tensor=reading).terms(random(2, 5), rows, rows, masks, nn.Identity())
    VICReg(tensor="context_pooled").terms(random(2, 5), rows, rows, masks, nn.Identity())
    assert blocks_per_draw(MASKS) == 3


def test_the_projector_is_linear_norm_relu_twice_then_linear() -> None:
    torch.manual_seed(0)
    project = projector((7, 6, 4), 5).double()
    x = random(20, 5)
    weights = dict(project.named_parameters())
    assert [tuple(p.shape) for p in weights.values()] == [(7, 5), (7,), (7,), (6, 7), (6,), (6,), (4, 6), (4,)]
    z = x
    for layer in (0, 3):
        z = z @ weights[f"{layer}.weight"].T
        z = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()).relu()
    torch.testing.assert_close(project(x), z @ weights["6.weight"].T + weights["6.bias"])
    assert torch.equal(projector((), 5)(x), x)
