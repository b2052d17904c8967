"""What is known in closed form of deep linear JEPAs (arXiv 2407.03475), through our loss and our target encoder.

Encoder of L linear layers W, linear predictor V; covariances diag(s_i) and diag(l_i), rho_i = l_i / s_i. From a balanced
start of amplitude a0 = eps^(1/L) a layer and mode, gradient flow of the loss 1/2 E |V W x - target|^2 gives
    JEPA (target: stop-gradient of W y):  da/dt = a^(2L) (l - a s),          so a -> rho and W -> rho^L
    MAE  (target: y):                     da/dt = a^L (l - a^(L+1) s)
"""

import pytest
import torch

from jepakit.study.theory import EPS_OF_DEPTH, LinearJEPA, descend, jepa_time, learning_times, linear_data, mae_time


def times(slope: list[float], rho: list[float], depth: int, eps: float, dt: float, steps: int, *, jepa: bool) -> list[float]:
    return learning_times(slope, rho, LinearJEPA(len(rho), depth, eps), dt, steps, jepa=jepa).tolist()


def test_closed_form_times_are_the_published_ones() -> None:
    ours = [jepa_time(1, rho, 2, 0.02) for rho in (0.9, 0.6, 0.3)]
    assert ours == pytest.approx([156.56, 184.27, 281.32], abs=0.01)
    assert [mae_time(1, rho, 2, 0.02) for rho in (0.9, 0.6, 0.3)] == pytest.approx([6.56, 6.48, 6.31], abs=0.01)


def test_modes_of_equal_slope_are_learned_at_the_closed_forms_times() -> None:
    rho = [0.9, 0.6, 0.3]
    expected = [jepa_time(1, r, 2, 0.02) for r in rho]
    assert times([1, 1, 1], rho, 2, 0.02, dt=0.05, steps=6000, jepa=True) == pytest.approx(expected, rel=0.01)
    assert expected == sorted(expected)  # the regression coefficient sets the order
    expected = [mae_time(1, r, 2, 0.02) for r in rho]
    assert times([1, 1, 1], rho, 2, 0.02, dt=0.005, steps=1500, jepa=False) == pytest.approx(expected, rel=0.01)


RATIOS = {1: (0.900, 0.772), 2: (1.102, 0.835), 3: (1.308, 0.850), 4: (1.514, 0.854)}


@pytest.mark.parametrize("depth", RATIOS)
def test_jepa_flips_the_order_of_two_modes_from_two_layers_on_and_mae_never(depth: int) -> None:
    slope, rho, eps = [1.0, 0.85], [0.5, 0.9], EPS_OF_DEPTH[depth]
    for jepa, formula, ratio in zip((True, False), (jepa_time, mae_time), RATIOS[depth], strict=True):
        expected = [formula(s, r, depth, eps) for s, r in zip(slope, rho, strict=True)]
        assert expected[0] / expected[1] == pytest.approx(ratio, abs=0.0006)
        reached = times(slope, rho, depth, eps, dt=max(expected) / 3000, steps=4000, jepa=jepa)
        assert reached == pytest.approx(expected, rel=0.01)
        assert bool(reached[0] > reached[1]) == (jepa and depth >= 2)


def test_a_linear_jepa_ends_at_the_regression_coefficient_to_the_power_of_its_depth() -> None:
    x, y = linear_data([1.0, 1.0, 0.8], [0.9, 0.7, 0.5])
    slope = torch.tensor([1.0, 1.0, 0.8], dtype=torch.float64).diag()
    torch.testing.assert_close(y.T @ x / len(x), slope, rtol=1e-12, atol=1e-12)
    model = LinearJEPA(3, 2, 0.1)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(1500):
        descend(model, x, y, sgd, jepa=True)
    expected = torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64)
    torch.testing.assert_close(model.encoder_map(), (expected**2).diag(), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(model.predictor.weight.detach().diagonal(), expected, rtol=1e-4, atol=0)
