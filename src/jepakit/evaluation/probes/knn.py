"""k nearest neighbours by cosine, votes weighted by exp(similarity / T) (Wu et al. 2018; DINO's k = 20, T = .07)."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK, BLOCK = 1024, 8192  # rows of test and of train whose similarities are in memory at a time


def neighbours(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows in train (n, D) of the k nearest of each of test (m, D): (m, k), (m, k)."""
    found = [_nearest(train, chunk, k) for chunk in test.split(CHUNK)]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])


def knn(train: Tensor, labels: Tensor, test: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Predicted classes (m,) of test (m, D) from train (n, D) with labels (n,)."""
    return knn_scores(train, labels, test, k=k, temperature=temperature).argmax(1)


def knn_scores(
    train: Tensor, labels: Tensor, test: Tensor, *, classes: int | None = None, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The neighbours' weighted mean, float64: share of each class (m, K), of each of several labels (m, K), or number (m,).

    labels: places of classes (n,) int64, labels (n, K) of 0, 1, and NaN where not known, or numbers (n,). A neighbour whose
    label is not known has no vote on it; where none is known the share over all training samples is the answer.
    """
    k_classes = int(labels.max()) + 1 if classes is None and labels.dtype == torch.int64 else classes or 0
    found = []
    for chunk in test.split(CHUNK):
        similarity, index = _nearest(train, chunk, k)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        if labels.dtype == torch.int64:
            votes = torch.zeros(len(chunk), k_classes, dtype=similarity.dtype)
            votes = votes.scatter_add_(1, labels[index], weight).double()
            found.append(votes / votes.sum(1, keepdim=True))
        else:
            found.append(_weighted_mean(weight.double(), labels.double(), index))
    return torch.cat(found)


def _weighted_mean(weight: Tensor, labels: Tensor, index: Tensor) -> Tensor:
    """Of labels (n,) or (n, K) at index (b, k), by weight (b, k), without those that are NaN."""
    wanted = labels[index]
    known = ~wanted.isnan()
    weight = (weight if labels.ndim == 1 else weight[..., None]) * known
    total = weight.sum(1)
    return torch.where(total > 0, (weight * wanted.nan_to_num()).sum(1) / total, labels.nanmean(0))


def _nearest(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same for a few of test: block by block of train, of which the k nearest so far are kept."""
    test = F.normalize(test, dim=1)
    values, index = test.new_empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64)
    for start in range(0, len(train), BLOCK):
        similarity = test @ F.normalize(train[start : start + BLOCK], dim=1).T
        some = similarity.topk(min(k, similarity.shape[1]), dim=1)
        values, index = torch.cat([values, some.values], 1), torch.cat([index, some.indices + start], 1)
        best = values.topk(min(k, values.shape[1]), dim=1)
        values, index = best.values, index.gather(1, best.indices)
    return values, index
