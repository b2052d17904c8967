"""VISReg (arXiv 2606.02572): a batch's features are pushed towards N(0, I), with how large they are apart from how they lie.

    L = L_JEPA + weight * (scale + center + shape)
    scale = mean over k of (1 - sigma_k)^2,   center = mean over k of mu_k^2
    shape = mean over directions a and ranks i of (sort(zhat . a)_i - Phi^-1(i / (N + 1)))^2,   zhat = (z - mu) / sg(sigma)

sg: no gradient passes. shape is the squared Wasserstein distance of the slices from a normal's. N are the draws of one
micro-batch (`optim.accumulate`) on one process. N samples, K directions, d features.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from jepakit.core.parallel import gathered
from jepakit.core.settings import Settings
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.regularizers.sigreg import directions
from jepakit.model.regularizers.vicreg import pooled

SIGMA_EPS = 1e-4  # added to the deviations that features are divided by


class VISReg(Settings):
    """The three weights and the number of directions are the released code's; `weight` is of this house, for JEPA's loss."""

    kind: Literal["visreg"] = "visreg"
    tensor: Literal["context_pooled", "pred_blocks"] = Field(
        "context_pooled", description="what is to be normal: the pooled context, or each pooled prediction block, mean over them"
    )
    weight: float = Field(0.003, ge=0, description="of the whole regulariser; not yet tuned")
    scale: float = Field(1.0, ge=0, description="weight of the term that asks for standard deviations of 1")
    center: float = Field(1.0, ge=0, description="weight of the term that asks for means of 0")
    shape: float = Field(1.0, ge=0, description="weight of the sliced Wasserstein distance from a normal")
    directions: int = Field(256, ge=1, description="random directions, new ones at each step (VISReg's training: 4096)")
    projector: tuple[int, ...] = Field((), description="widths of the MLP before the statistics; empty: none")

    def terms(
        self, context: Tensor, predictions: Tensor, targets: Tensor, masks: Masks, project: nn.Module, seed: int = 0
    ) -> dict[str, Tensor]:
        """Weighted terms scale, center, shape from context (S, D) and predictions (S', D) of `masks`, in float32.

        `seed`: of the directions. Raises UserError where blocks are asked for and images have different numbers of them.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            z = pooled(context, predictions, masks, project, of_context=self.tensor == "context_pooled")
            z = gathered(z).transpose(0, 1)  # ranks of slices are among those of all processes
            centred, sigma = z - z.mean(-2, keepdim=True), z.std(-2, correction=0)
            zhat = centred / (sigma.detach()[..., None, :] + SIGMA_EPS)
            raw = {
                "scale": self.scale * (1 - sigma).square().mean(),
                "center": self.center * z.mean(-2).square().mean(),
                "shape": self.shape * sliced_wasserstein(zhat @ directions(z.shape[-1], self.directions, seed).to(z)),
            }
        return {name: self.weight * term for name, term in raw.items()}


def sliced_wasserstein(x: Tensor) -> Tensor:
    """Mean squared distance of N sorted samples of K slices (..., N, K) from the normal's quantiles i / (N + 1), i = 1 ... N."""
    n = x.shape[-2]
    quantiles: Tensor = torch.special.ndtri(torch.arange(1, n + 1, dtype=x.dtype, device=x.device) / (n + 1))
    return (x.sort(-2).values - quantiles[:, None]).square().mean()
