"""VICReg as C-JEPA adds it to I-JEPA (arXiv 2410.19560, equations 21-22; VICReg: arXiv 2105.04906, section 4).

    L = L_JEPA + weight * (sim * s + std * v + cov * c)

The sources disagree on the tensors that are compared; `tensor` offers the three readings. B images, M views, d features.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from jepakit.core.distributed import world_size
from jepakit.core.errors import UserError
from jepakit.core.parallel import mean_and_variance, total
from jepakit.core.settings import Settings
from jepakit.model.layout import segment_mean
from jepakit.model.losses import full_precision
from jepakit.model.masking.packed_masks import Masks

Reading = Literal["pred_blocks", "context_pooled", "pred_pairs"]


class VICReg(Settings):
    """Coefficients are the paper's; the projector is that of the only public implementation (the paper names none)."""

    kind: Literal["vicreg"] = "vicreg"
    tensor: Reading = Field(
        "pred_blocks", description="what is regularised: appendix algorithm 1, main text, or a public code's reading"
    )
    weight: float = Field(0.001, ge=0, description="of the whole regulariser (beta_vicreg, equation 21)")
    sim: float = Field(25.0, ge=0, description="weight of the invariance term")
    std: float = Field(25.0, ge=0, description="weight of the variance term")
    cov: float = Field(1.0, ge=0, description="weight of the covariance term")
    gamma: float = Field(1.0, gt=0, description="standard deviation that the variance term asks for")
    eps: float = Field(1e-4, gt=0, description="added to variances")
    halve_std: bool = Field(True, description="average the variance term over the two views (VICReg's code) rather than sum it")
    projector: tuple[int, ...] = Field((3072, 3072, 3072), description="widths of the MLP before the statistics; empty: none")

    def terms(
        self, context: Tensor, predictions: Tensor, targets: Tensor, masks: Masks, project: nn.Module, seed: int = 0
    ) -> dict[str, Tensor]:
        """Weighted terms sim, std, cov from context (S, D), predictions and targets (S', D) of `masks`, in float32.

        Nothing is drawn with `seed`. Raises UserError where blocks are to be compared and images have different numbers of them.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            z = pooled(context, predictions, masks, project, of_context=self.tensor == "context_pooled")
            if self.tensor == "pred_blocks":
                sim = invariance(z)
            else:
                of_predictions, of_targets = (
                    segment_mean(full_precision(x), masks.target_lengths) for x in (predictions, targets)
                )
                sim = F.mse_loss(project(of_predictions), project(of_targets)) if self.sim else z.new_zeros(())
            # VICReg's code has two views: it averages their variance terms and sums their covariance terms.
            views = z.unbind(1)
            pair = 1 if len(views) == 1 else 2
            std = torch.stack([variance(view, self.gamma, self.eps) for view in views]).mean() * (1 if self.halve_std else pair)
            cov = torch.stack([covariance(view) for view in views]).mean() * pair
        raw = {"sim": self.sim * sim, "std": self.std * std, "cov": self.cov * cov}
        return {name: self.weight * term for name, term in raw.items()}


def pooled(context: Tensor, predictions: Tensor, masks: Masks, project: nn.Module, *, of_context: bool) -> Tensor:
    """Projected means of each draw's context (S, D), one view, or of its predicted blocks (S', D), M views: (R, views, d).

    R are this process's draws; a projector's batch norm is over those of all.
    """
    if of_context:
        return project(segment_mean(full_precision(context), masks.context_lengths))[:, None]  # type: ignore[no-any-return]
    z = project(segment_mean(full_precision(predictions), masks.target_lengths))
    return z.unflatten(0, (-1, blocks_per_draw(masks)))  # type: ignore[no-any-return]


def invariance(z: Tensor) -> Tensor:
    """Mean squared difference over all ordered pairs i != j of M views (B, M, d); 0 for one view.

    The mean over pairs of |z_i - z_j|^2 is 2 M / (M - 1) times the mean over views of |z_i - mean|^2.
    """
    m = z.shape[1]
    return z.new_zeros(()) if m == 1 else z.var(1, unbiased=True).mean() * 2


def variance(z: Tensor, gamma: float, eps: float) -> Tensor:
    """Hinge on the standard deviation of each feature over the batch: (B, d) -> scalar (VICReg, equation 1).

    This and the covariance are of the rows of all processes, by sums over them: no process sees another's rows.
    """
    return F.relu(gamma - (mean_and_variance(z)[1] + eps).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances over d: (B, d) -> scalar (VICReg, equations 3-4)."""
    z = z - mean_and_variance(z)[0]
    matrix = total(z.T @ z, alike=True) / (world_size() * len(z) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]


def blocks_per_draw(masks: Masks) -> int:
    """M, where it is the same for all; else UserError."""
    blocks = np.bincount(masks.draw_of_block)
    if (blocks != blocks[0]).any():
        raise UserError("this regulariser compares target blocks: give every image the same number of them")
    return int(blocks[0])
