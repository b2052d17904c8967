"""SIGReg, LeJEPA's regulariser (arXiv 2511.08544): pushes a batch's features towards N(0, I).

    L = L_JEPA + weight * mean over directions a of T(a . z_1, ..., a . z_N)
    T = N * integral |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,   phi_N(t) = mean over n of exp(i t x_n)   (Epps-Pulley)

T is not divided by N, as in LeJEPA's text and code: of normal samples it is about 1 for any N, of equal ones about .4 N or more.
N are the draws of one micro-batch (`optim.accumulate`) on one process. N samples, K directions, d features.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from jepakit.core.distributed import world_size
from jepakit.core.parallel import total
from jepakit.core.settings import Settings
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.regularizers.vicreg import pooled


class SIGReg(Settings):
    """Values are LeJEPA's, without its projector. It weighs (1 - lambda) * prediction + lambda * SIGReg; here lambda
    alone is added, so that the prediction term is that of all other methods: a ratio of .05 rather than .05 / .95."""

    kind: Literal["sigreg"] = "sigreg"
    tensor: Literal["context_pooled", "pred_blocks"] = Field(
        "context_pooled", description="what is to be normal: the pooled context, or each pooled prediction block, mean over them"
    )
    weight: float = Field(0.05, ge=0, description="of the term (LeJEPA's lambda)")
    directions: int = Field(256, ge=1, description="random directions, new ones at each step")
    knots: int = Field(17, ge=2, description="points of the trapezoid rule on [0, reach], the half that symmetry leaves")
    reach: float = Field(3.0, gt=0, description="end of the integral over t (LeJEPA's minimal code: 3, its paper: 5)")
    projector: tuple[int, ...] = Field((), description="widths of the MLP before the statistic; empty: none")

    def terms(
        self, context: Tensor, predictions: Tensor, targets: Tensor, masks: Masks, project: nn.Module, seed: int = 0
    ) -> dict[str, Tensor]:
        """The weighted term sigreg from context (S, D) and predictions (S', D) of `masks`, in float32. `seed`: of the directions.

        Raises UserError where blocks are asked for and images have different numbers of them.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            z = pooled(context, predictions, masks, project, of_context=self.tensor == "context_pooled").transpose(0, 1)
            unit = directions(z.shape[-1], self.directions, seed).to(z)
            statistic = epps_pulley(z @ unit, self.knots, self.reach)
        return {"sigreg": self.weight * statistic.mean()}


def directions(width: int, count: int, seed: int) -> Tensor:
    """Unit vectors, uniform over directions: (d, K). A function of the seed, alike on all devices and processes."""
    a = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(a, dim=0)


def epps_pulley(x: Tensor, knots: int = 17, reach: float = 3.0) -> Tensor:
    """T of N samples of all processes, (..., n, K) of each -> (..., K), integrated over [-reach, reach] by the trapezoid rule."""
    t = torch.linspace(0, reach, knots, dtype=x.dtype, device=x.device)
    normal, angle = (-t.square() / 2).exp(), x[..., None] * t
    cosine, sine = (total(part.mean(-3), alike=True) / world_size() for part in (angle.cos(), angle.sin()))
    error = (cosine - normal).square() + sine.square()
    return 2 * world_size() * x.shape[-2] * torch.trapezoid(error * normal, t)
