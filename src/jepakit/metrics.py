"""Numbers that tell a representation from a collapsed one, from features alone. n samples, q views, D features."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EPS = 1e-7  # RankMe's, for float32 features


def rankme(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885, equation 1): effective rank of features (n, D), uncentred, in float64.

    exp of the entropy of the singular values over their sum, epsilon added after; between 1 and min(n, D).
    """
    return _effective_rank(torch.linalg.svdvals(features.detach().double().cpu()), EPS)


def lidar(features: Tensor, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (arXiv 2312.04000, section 4): effective rank of the linear discriminant matrix of views (n, q, D), float64.

    n images act as classes, q views of each; delta is added to the within-class covariance.
    """
    e = features.detach().double().cpu()
    n, q, width = e.shape
    centre = e.mean(1)
    between = centre - centre.mean(0)
    within = (e - centre[:, None]).flatten(0, 1)
    sigma_b = between.T @ between / (n - 1)
    sigma_w = within.T @ within / (n * (q - 1)) + delta * torch.eye(width, dtype=e.dtype)
    # the eigenvalues of Sw^-1/2 Sb Sw^-1/2 are those of L^-1 Sb L^-T for Sw = L L^T
    factor = torch.linalg.cholesky(sigma_w)
    half = torch.linalg.solve_triangular(factor, sigma_b, upper=False)
    matrix = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return _effective_rank(torch.linalg.eigvalsh((matrix + matrix.T) / 2).clamp(min=0), eps)


def _effective_rank(spectrum: Tensor, eps: float) -> float:
    p = spectrum / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny) + eps
    return float(torch.exp(-(p * p.log()).sum()))


def position_share(targets: Tensor, index: NDArray[np.int64]) -> float:
    """Share of the variance of targets (S, D) that their patch index (S,) alone explains, 1 = all of it.

    One-way analysis of variance with positions as groups, adjusted for their number, so that position-free targets
    have 0 in expectation (the adjusted R^2).
    """
    x = targets.detach().double().cpu()
    x = x - x.mean(0)
    group = torch.from_numpy(np.unique(index, return_inverse=True)[1])
    count = torch.bincount(group).double()
    sums = torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add_(0, group, x)
    total = float(x.square().sum())
    if total == 0 or len(x) <= len(count):
        return float("nan")
    unexplained = 1 - float((sums.square().sum(1) / count).sum()) / total
    return 1 - unexplained * (len(x) - 1) / (len(x) - len(count))
