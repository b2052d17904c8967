"""The study `theory`: what is known in closed form of deep linear JEPAs (arXiv 2407.03475), against our loss and target encoder.

Encoder of L linear layers W, linear predictor V; covariances diag(s_i) and diag(l_i), rho_i = l_i / s_i. From a balanced
start of amplitude a0 = eps^(1/L) a layer and mode, gradient flow of the loss 1/2 E |V W x - target|^2 gives
    JEPA (target: stop-gradient of W y):  da/dt = a^(2L) (l - a s),          so a -> rho and W -> rho^L
    MAE  (target: y):                     da/dt = a^L (l - a^(L+1) s)
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import quad
from scipy.linalg import hadamard
from torch import Tensor, nn

from jepakit.core.files import atomic_write, save_json
from jepakit.model.jepa import JEPA
from jepakit.model.losses import LOSSES
from jepakit.study.comparison import ComparisonLine, as_data, comparison_table
from jepakit.study.comparison_figure import save_figure

EPS_OF_DEPTH = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005}  # far below the fixed points, rho^L
LEARNED_SHARE = 0.8  # of its own fixed point, at which a mode counts as learned
_RHO = (0.9, 0.6, 0.3)
_ROTATED = (0.95, 0.87, 0.79, 0.71, 0.63, 0.55)
CLOSED_FORM = "closed form"
_MEASURED = "time"


class LinearJEPA(nn.Module):
    """A JEPA of linear maps: an encoder of L layers, its target encoder, and one linear predictor."""

    def __init__(self, features: int, depth: int, eps: float, rotations: list[Tensor] | None = None) -> None:
        """rotations: of the encoder's layers, orthogonal; the start is balanced with any, aligned with the data without."""
        super().__init__()
        layers = [nn.Linear(features, features, bias=False, dtype=torch.float64) for _ in range(depth + 1)]
        eye = torch.eye(features, dtype=torch.float64)
        for layer, turn in zip(layers, [*(rotations or [eye] * depth), eye], strict=True):
            layer.weight.data = eps ** (1 / depth) * turn
        self.encoder, self.predictor = nn.Sequential(*layers[:-1]), layers[-1]
        self.target_encoder = deepcopy(self.encoder).requires_grad_(False)

    def encoder_map(self) -> Tensor:
        """(features, features): the encoder as one map."""
        weight = torch.eye(len(self.predictor.weight), dtype=torch.float64)
        for layer in [*self.encoder]:
            weight = layer.weight.detach() @ weight
        return weight


def linear_data(slope: list[float], rho: list[float]) -> tuple[Tensor, Tensor]:
    """x and y (samples, features) whose covariances are exact: E x x' = diag(slope / rho), E y x' = diag(slope)."""
    samples = 1 << len(rho).bit_length()
    signs = torch.from_numpy(hadamard(samples)).double()[:, 1 : len(rho) + 1]
    x = signs * (torch.tensor(slope, dtype=torch.float64) / torch.tensor(rho, dtype=torch.float64)).sqrt()
    return x, x * torch.tensor(rho, dtype=torch.float64)


def descend(model: LinearJEPA, x: Tensor, y: Tensor, sgd: torch.optim.Optimizer, *, jepa: bool) -> None:
    """One step of gradient descent on half the mean squared norm, the target encoder then a copy of the encoder."""
    with torch.no_grad():
        target = model.target_encoder(y) if jepa else y
    # ours is the mean over elements; the theory's is half the mean over samples of the squared norm
    loss = LOSSES["l2"](model.predictor(model.encoder(x)), target) * x.shape[1] / 2
    sgd.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    sgd.step()
    JEPA.update_target_encoder(model, 0.0)  # type: ignore[arg-type]


def learning_times(slope: list[float], rho: list[float], model: LinearJEPA, dt: float, steps: int, *, jepa: bool) -> Tensor:
    """(features,): when each mode reaches its share of its fixed point under gradient descent with steps dt; NaN: never."""
    x, y = linear_data(slope, rho)
    depth = len(model.encoder)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=dt)
    aim = LEARNED_SHARE * torch.tensor(rho, dtype=torch.float64) ** (depth if jepa else depth / (depth + 1))
    reached, before = torch.full_like(aim, math.nan), model.encoder_map().norm(dim=0)
    for step in range(1, steps + 1):
        descend(model, x, y, sgd, jepa=jepa)
        now = model.encoder_map().norm(dim=0)
        crossed = reached.isnan() & (now >= aim)
        reached[crossed] = (dt * (step - 1 + (aim - before) / (now - before)))[crossed]
        if not reached.isnan().any():
            break
        before = now
    return reached


def jepa_time(slope: float, rho: float, depth: int, eps: float) -> float:
    """Integral of da / (slope a^n (1 - a / rho)), n = 2L, from eps^(1/L) to the share, in closed form."""
    start, end, n = eps ** (1 / depth), rho * LEARNED_SHARE ** (1 / depth), 2 * depth
    powers = sum(rho**-j * (start ** -(n - 1 - j) - end ** -(n - 1 - j)) / (n - 1 - j) for j in range(n - 1))
    logs = math.log(end / start) - math.log((1 - end / rho) / (1 - start / rho))
    return float((powers + rho ** -(n - 1) * logs) / slope)


def mae_time(slope: float, rho: float, depth: int, eps: float) -> float:
    """Integral of da / (a^L (slope - a^(L+1) slope / rho))."""
    start, end = eps ** (1 / depth), rho ** (1 / (depth + 1)) * LEARNED_SHARE ** (1 / depth)
    integral: float = quad(lambda a: 1 / (a**depth * slope * (1 - a ** (depth + 1) / rho)), start, end)[0]
    return integral


def theory(out: Path, seeds: int, *, smoke: bool = False) -> list[dict[str, Any]]:
    """Write table.md, table.json and figure.svg to `out`, seconds of a core; returns the rows. smoke: coarser steps."""
    coarse = 4 if smoke else 1
    lines = [*_equal_slopes(coarse), *_flips(coarse), *_unaligned(seeds, coarse)]
    sources = {
        "JEPA": "depth 2, eps .02, equal slopes: a larger regression coefficient is learned first",
        "MAE": "the same: no order",
        "order flip, JEPA": "t(slope 1, rho .5) / t(slope .85, rho .9): above 1, the second comes first",
        "order flip, MAE": "the same of MAE: never above 1",
        "rotated": "depth 3, for which layers need not be aligned with the data: balanced is enough",
    }
    about = "Littwin et al., arXiv 2407.03475, by the package's own loss and target encoder; intervals where something is drawn."
    out.mkdir(parents=True, exist_ok=True)
    save_json(out / "table.json", as_data(lines))
    with atomic_write(out / "table.md") as draft:
        table = comparison_table(lines, sources, digits=2, beside=CLOSED_FORM)
        draft.write_text(f"# theory\n\n`jepakit study theory`\n\n{about}\n\n{table}\n", encoding="utf-8")
    save_figure(out / "figure.svg", lines, _MEASURED, CLOSED_FORM)
    return as_data(lines)


def _equal_slopes(coarse: int) -> list[ComparisonLine]:
    """Three modes of equal slope: when each is learned, by JEPA and by MAE."""
    lines, eps = [], EPS_OF_DEPTH[2]
    for name, formula, dt in (("JEPA", jepa_time, 0.05), ("MAE", mae_time, 0.005)):
        model = LinearJEPA(len(_RHO), 2, eps)
        measured = learning_times([1.0] * len(_RHO), list(_RHO), model, dt * coarse, 6000, jepa=name == "JEPA")
        for rho, time in zip(_RHO, measured.tolist(), strict=True):
            lines.append(ComparisonLine(name, f"rho {rho:g}", {_MEASURED: (time,)}, f"{formula(1, rho, 2, eps):.2f}"))
    return lines


def _flips(coarse: int) -> list[ComparisonLine]:
    """Two modes, the first of larger slope and smaller rho: the ratio of the times at which they are learned, by depth."""
    slope, rho, lines = [1.0, 0.85], [0.5, 0.9], []
    for name, formula in (("JEPA", jepa_time), ("MAE", mae_time)):
        for depth, eps in EPS_OF_DEPTH.items():
            expected = [formula(s, r, depth, eps) for s, r in zip(slope, rho, strict=True)]
            dt = max(expected) / 3000 * min(coarse, 2)  # dt slope rho^(2L - 1): 1.1 at most; from 2 on, rounding would grow
            first, second = learning_times(slope, rho, LinearJEPA(2, depth, eps), dt, 4000, jepa=name == "JEPA").tolist()
            lines.append(
                ComparisonLine(
                    f"order flip, {name}", f"depth {depth}", {_MEASURED: (first / second,)}, f"{expected[0] / expected[1]:.3f}"
                )
            )
    return lines


def _unaligned(seeds: int, coarse: int) -> list[ComparisonLine]:
    """Orthogonal first layers at random: balanced, not aligned; the times of modes of equal slope, a draw a seed."""
    times = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        turns = [torch.from_numpy(np.linalg.qr(generator.standard_normal((6, 6)))[0]) for _ in range(3)]
        model = LinearJEPA(6, 3, EPS_OF_DEPTH[2], turns)
        times.append(learning_times([1.0] * 6, list(_ROTATED), model, 0.05 * coarse, 20_000, jepa=True).tolist())
    by_mode = zip(_ROTATED, zip(*times, strict=True), strict=True)
    exact = [f"{jepa_time(1, rho, 3, EPS_OF_DEPTH[2]):.2f}" for rho in _ROTATED]
    return [
        ComparisonLine("rotated", f"rho {rho:g}", {_MEASURED: values}, closed)
        for (rho, values), closed in zip(by_mode, exact, strict=True)
    ]
