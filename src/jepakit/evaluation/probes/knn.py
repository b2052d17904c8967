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
    """Predicted labels (m,) of test (m, D) from train (n, D) with labels (n,)."""
    classes = int(labels.max()) + 1
    predicted = []
    for chunk in test.split(CHUNK):
        similarity, index = _nearest(train, chunk, k)
        votes = torch.zeros(len(chunk), classes, dtype=similarity.dtype)
        votes.scatter_add_(1, labels[index], ((similarity - similarity[:, :1]) / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


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
