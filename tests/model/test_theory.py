"""What is known in closed form of deep linear JEPAs (arXiv 2407.03475), through our loss and our target encoder.

Encoder of L linear layers W, linear predictor V; covariances diag(s_i) and diag(l_i), rho_i = l_i / s_i. From a balanced
start of amplitude a0 = eps^(1/L) a layer and mode, gradient flow of the loss 1/2 E |V W x - target|^2 gives
    JEPA (target: stop-gradient of W y):  da/dt = a^(2L) (l - a s),          so a -> rho and W -> rho^L
    MAE  (target: y):                     da/dt = a^L (l - a^(L+1) s)
"""

import math
from copy import deepcopy

import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import hadamard
from torch import Tensor, nn

from jepakit.model.jepa import JEPA
from jepakit.model.losses import LOSSES

EPS_OF_DEPTH = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005}  # far below the fixed points, rho^L
SHARE = 0.8  # of its own fixed point, at which a mode counts as learned


class Linear(nn.Module):
    """A JEPA of linear maps: an encoder of L layers, its target encoder, and one linear predictor."""

    def __init__(self, features: int, depth: int, eps: float) -> None:
        super().__init__()
        layers = [nn.Linear(features, features, bias=False, dtype=torch.float64) for _ in range(depth + 1)]
        for layer in layers:
            layer.weight.data = eps ** (1 / depth) * torch.eye(features, dtype=torch.float64)
        self.encoder, self.predictor = nn.Sequential(*layers[:-1]), layers[-1]
        self.target_encoder = deepcopy(self.encoder).requires_grad_(False)

    def modes(self) -> Tensor:
        """(features,): what the encoder makes of each direction of the data."""
        weight = torch.eye(len(self.predictor.weight), dtype=torch.float64)
        for layer in self.encoder:
            weight = layer.weight.detach() @ weight
        assert not (weight - weight.diagonal().diag()).abs().max() > 1e-12
        return weight.diagonal()


def data(slope: list[float], rho: list[float]) -> tuple[Tensor, Tensor]:
    """x and y (samples, features) whose covariances are exact: E x x' = diag(slope / rho), E y x' = diag(slope)."""
    samples = 1 << len(rho).bit_length()
    signs = torch.from_numpy(hadamard(samples)).double()[:, 1 : len(rho) + 1]
    x = signs * (torch.tensor(slope, dtype=torch.float64) / torch.tensor(rho, dtype=torch.float64)).sqrt()
    y = x * torch.tensor(rho, dtype=torch.float64)
    torch.testing.assert_close(y.T @ x / samples, torch.tensor(slope, dtype=torch.float64).diag(), rtol=1e-12, atol=1e-12)
    return x, y


def times(slope: list[float], rho: list[float], depth: int, eps: float, dt: float, steps: int, *, jepa: bool) -> Tensor:
    """When each mode reaches its share of its fixed point under gradient descent with steps dt."""
    x, y = data(slope, rho)
    model = Linear(len(rho), depth, eps)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=dt)
    power = depth if jepa else depth / (depth + 1)
    aim = SHARE * torch.tensor(rho, dtype=torch.float64) ** power
    reached, before = torch.full_like(aim, math.nan), model.modes()
    for step in range(1, steps + 1):
        with torch.no_grad():
            target = model.target_encoder(y) if jepa else y
        # ours is the mean over elements; the theory's is half the mean over samples of the squared norm
        loss = LOSSES["l2"](model.predictor(model.encoder(x)), target) * len(rho) / 2
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        JEPA.update_target_encoder(model, 0.0)  # type: ignore[arg-type]
        now = model.modes()
        crossed = reached.isnan() & (now >= aim)
        reached[crossed] = (dt * (step - 1 + (aim - before) / (now - before)))[crossed]
        if not reached.isnan().any():
            break
        before = now
    return reached


def jepa_time(slope: float, rho: float, depth: int, eps: float) -> float:
    """Integral of da / (slope a^n (1 - a / rho)), n = 2L, from eps^(1/L) to the share, in closed form."""
    start, end, n = eps ** (1 / depth), rho * SHARE ** (1 / depth), 2 * depth
    powers = sum(rho**-j * (start ** -(n - 1 - j) - end ** -(n - 1 - j)) / (n - 1 - j) for j in range(n - 1))
    logs = math.log(end / start) - math.log((1 - end / rho) / (1 - start / rho))
    return (powers + rho ** -(n - 1) * logs) / slope


def mae_time(slope: float, rho: float, depth: int, eps: float) -> float:
    """Integral of da / (a^L (slope - a^(L+1) slope / rho))."""
    start, end = eps ** (1 / depth), rho ** (1 / (depth + 1)) * SHARE ** (1 / depth)
    return quad(lambda a: 1 / (a**depth * slope * (1 - a ** (depth + 1) / rho)), start, end)[0]


def test_closed_form_times_are_the_published_ones() -> None:
    ours = [jepa_time(1, rho, 2, 0.02) for rho in (0.9, 0.6, 0.3)]
    assert ours == pytest.approx([156.56, 184.27, 281.32], abs=0.01)
    assert [mae_time(1, rho, 2, 0.02) for rho in (0.9, 0.6, 0.3)] == pytest.approx([6.56, 6.48, 6.31], abs=0.01)


def test_modes_of_equal_slope_are_learned_at_the_closed_forms_times() -> None:
    rho = [0.9, 0.6, 0.3]
    expected = [jepa_time(1, r, 2, 0.02) for r in rho]
    assert times([1, 1, 1], rho, 2, 0.02, dt=0.05, steps=6000, jepa=True).tolist() == pytest.approx(expected, rel=0.01)
    assert expected == sorted(expected)  # the regression coefficient sets the order
    expected = [mae_time(1, r, 2, 0.02) for r in rho]
    assert times([1, 1, 1], rho, 2, 0.02, dt=0.005, steps=1500, jepa=False).tolist() == pytest.approx(expected, rel=0.01)


RATIOS = {1: (0.900, 0.772), 2: (1.102, 0.835), 3: (1.308, 0.850), 4: (1.514, 0.854)}


@pytest.mark.parametrize("depth", RATIOS)
def test_jepa_flips_the_order_of_two_modes_from_two_layers_on_and_mae_never(depth: int) -> None:
    slope, rho, eps = [1.0, 0.85], [0.5, 0.9], EPS_OF_DEPTH[depth]
    for jepa, formula, ratio in zip((True, False), (jepa_time, mae_time), RATIOS[depth], strict=True):
        expected = [formula(s, r, depth, eps) for s, r in zip(slope, rho, strict=True)]
        assert expected[0] / expected[1] == pytest.approx(ratio, abs=0.0006)
        reached = times(slope, rho, depth, eps, dt=max(expected) / 3000, steps=4000, jepa=jepa)
        assert reached.tolist() == pytest.approx(expected, rel=0.01)
        assert bool(reached[0] > reached[1]) == (jepa and depth >= 2)


def test_a_linear_jepa_ends_at_the_regression_coefficient_to_the_power_of_its_depth() -> None:
    x, y = data([1.0, 1.0, 0.8], [0.9, 0.7, 0.5])
    model = Linear(3, 2, 0.1)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(1500):
        with torch.no_grad():
            target = model.target_encoder(y)
        sgd.zero_grad()
        (LOSSES["l2"](model.predictor(model.encoder(x)), target) * 3 / 2).backward()
        sgd.step()
        JEPA.update_target_encoder(model, 0.0)  # type: ignore[arg-type]
    expected = torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64)
    torch.testing.assert_close(model.modes(), expected**2, rtol=1e-4, atol=0)
    torch.testing.assert_close(model.predictor.weight.detach().diagonal(), expected, rtol=1e-4, atol=0)
