"""Numbers that tell a representation from a collapsed one, from features alone. n samples, q views, D features."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

EPS = 1e-7  # RankMe's, for float32 features
ROUNDING = 1e-6  # of means over tokens in float32


class Gram:
    """Sum of x x^T over samples, all that RankMe needs: any number of samples in the memory of (D, D) float64."""

    def __init__(self) -> None:
        self.n, self.matrix = 0, torch.zeros(())

    def add(self, features: Tensor) -> "Gram":
        """Add features (n, D); returns self."""
        for part in features.detach().split(4096):
            x = part.cpu().double()
            self.matrix = self.matrix + x.T @ x
            self.n += len(x)
        return self

    def rankme(self, eps: float = EPS) -> float:
        """RankMe of all that was added. Singular values below 1e-7 or so of the largest are lost to rounding and count as 0."""
        squares = torch.linalg.eigvalsh(self.matrix)[-min(self.n, len(self.matrix)) :]  # the sum has min(n, D) terms
        squares[squares < len(squares) * torch.finfo(squares.dtype).eps * squares[-1]] = 0
        return _effective_rank(squares.sqrt(), eps)


def rankme(features: Tensor, eps: float = EPS) -> float:
    """RankMe (arXiv 2210.02885, equation 1): effective rank of features (n, D), uncentred, in float64.

    exp of the entropy of the singular values over their sum, epsilon added after; between 1 and min(n, D).
    """
    return _effective_rank(torch.linalg.svdvals(features.detach().cpu().double()), eps)


class Discriminant:
    """Scatter between and within images, all that LiDAR needs, from any number of images a few at a time."""

    def __init__(self) -> None:
        self.centres: list[Tensor] = []
        self.within_class, self.q = torch.zeros(()), 0

    def add(self, views: Tensor) -> "Discriminant":
        """Add views (n, q, D) of n more images; returns self. Raises ValueError for another q than before."""
        e = views.detach().cpu().double()
        if self.q not in (0, e.shape[1]):
            raise ValueError(f"{e.shape[1]} views of an image after {self.q} of others")
        self.q = e.shape[1]
        centre = e.mean(1)
        deviations = (e - centre[:, None]).flatten(0, 1)
        self.within_class = self.within_class + deviations.T @ deviations
        self.centres.append(centre)
        return self

    def lidar(self, delta: float = 1e-4, eps: float = 1e-8) -> float:
        """LiDAR of all that was added. Raises ValueError where delta is 0 and a direction does not vary within images."""
        centre = torch.cat(self.centres)
        n, width = centre.shape
        between = centre - centre.mean(0)
        if between.abs().max() <= ROUNDING * centre.abs().max():
            return 1.0  # one point, but for the rounding of float32, whose directions mean nothing
        sigma_b = between.T @ between / (n - 1)
        sigma_w = self.within_class / (n * (self.q - 1)) + delta * torch.eye(width, dtype=centre.dtype)
        # the eigenvalues of Sw^-1/2 Sb Sw^-1/2 are those of L^-1 Sb L^-T for Sw = L L^T
        try:
            factor = torch.linalg.cholesky(sigma_w)
        except RuntimeError:
            raise ValueError(f"the views of {n} images do not vary in every direction: LiDAR needs delta above 0") from None
        half = torch.linalg.solve_triangular(factor, sigma_b, upper=False)
        matrix = torch.linalg.solve_triangular(factor, half.T, upper=False)
        return _effective_rank(torch.linalg.eigvalsh((matrix + matrix.T) / 2).clamp(min=0), eps)


def lidar(features: Tensor, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (arXiv 2312.04000, section 4): effective rank of the linear discriminant matrix of views (n, q, D), float64.

    n images act as classes, q views of each; delta is added to the within-class covariance. Between 1 and min(n - 1, D).
    """
    return Discriminant().add(features).lidar(delta, eps)


def _effective_rank(spectrum: Tensor, eps: float) -> float:
    p = spectrum / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny) + eps
    return float(torch.exp(-(p * p.log()).sum()))


def position_share(targets: Tensor, index: NDArray[np.int64]) -> float:
    """Share of the variance of targets (S, D) that their patch index (S,) alone explains, 1 = all of it.

    One-way analysis of variance with positions as groups, adjusted for their number, so that position-free targets
    have 0 in expectation (the adjusted R^2).
    """
    x = targets.detach().cpu().double()
    x = x - x.mean(0)
    group = torch.from_numpy(np.unique(index, return_inverse=True)[1])
    count = torch.bincount(group).double()
    sums = torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add_(0, group, x)
    total = float(x.square().sum())
    if total == 0 or len(x) <= len(count):
        return float("nan")
    unexplained = 1 - float((sums.square().sum(1) / count).sum()) / total
    return 1 - unexplained * (len(x) - 1) / (len(x) - len(count))


def content_cosines(
    predictions: Tensor, targets: Tensor, index: NDArray[np.int64], image: NDArray[np.int64]
) -> tuple[float, float]:
    """Mean cosine of predictions (S, D) with their own targets (S, D), and with another image's target at the same patch.

    index, image (S,): each row's patch and image. If the two are alike, the predictor tells positions, not images. Rows for
    whose patch no other image's row is at hand are left out; NaN if all are.
    """
    p, t = (F.normalize(x.detach().cpu().double(), dim=1) for x in (predictions, targets))
    order = np.lexsort((image, index))  # by patch, then by image
    groups = np.split(order, np.nonzero(np.diff(index[order]))[0] + 1)
    own, other = [], []
    for rows in groups:
        half = -(-len(rows) // 2)  # half a group away: another image, unless one image fills half of the group
        partner = np.roll(rows, -half)
        kept = image[rows] != image[partner]
        own.append(rows[kept])
        other.append(partner[kept])
    mine, theirs = np.concatenate(own), np.concatenate(other)
    if not len(mine):
        return float("nan"), float("nan")
    return float((p[mine] * t[mine]).sum(1).mean()), float((p[mine] * t[theirs]).sum(1).mean())
