"""k nearest neighbours by cosine, votes weighted by exp(similarity / T) (Wu et al. 2018; DINO's k = 20, T = .07)."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024


def neighbours(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows in train (n, D) of the k nearest of each of test (m, D): (m, k), (m, k)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    found = [(part @ train.T).topk(min(k, len(train)), dim=1) for part in test.split(CHUNK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def knn(train: Tensor, labels: Tensor, test: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Predicted labels (m,) of test (m, D) from train (n, D) with labels (n,)."""
    similarity, index = neighbours(train, test, k)
    votes = torch.zeros(len(test), int(labels.max()) + 1, dtype=similarity.dtype)
    votes.scatter_add_(1, labels[index], ((similarity - similarity[:, :1]) / temperature).exp())
    return votes.argmax(1)
