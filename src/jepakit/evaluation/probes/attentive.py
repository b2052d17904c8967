"""Attentive probe: a learned query reads frozen patch tokens by cross-attention, where a linear probe takes their mean.

The simple form, of CAE (arXiv 2202.03026, section 4) and AIM (arXiv 2401.08541): tokens standardised, one query, key and
value projections, several heads; then layer norm and a linear classifier. V-JEPA's probe (arXiv 2404.08471) puts a residual
and an MLP between, which are left out: they make a deeper, not a fairer, probe. n training samples, m test samples, T tokens,
D features, H heads, K classes, G learning rates, B samples of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jepakit.core import rng
from jepakit.core.errors import UserError
from jepakit.evaluation.features import moments
from jepakit.evaluation.metrics import LESS_IS_BETTER, goodness
from jepakit.evaluation.probes.logistic import as_predictions, validation_fifth
from jepakit.evaluation.probes.targets import loss_of, unscaled

_LRS = (1e-3, 3e-3, 1e-2)


class Probe(nn.Module):
    """Parameters of one probe. A key bias would move all scores of a head alike, so it is not there."""

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02, generator=generator))

        self.query, self.key = drawn(width), drawn(width, width)
        self.value, self.head = drawn(width, width), drawn(classes, width)
        self.value_bias, self.head_bias = (nn.Parameter(torch.zeros(n)) for n in (width, classes))
        self.norm_scale, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))


@dataclass(frozen=True)
class _Task:
    """What all probes share: settings, and mean and deviation (D,) of the training tokens' features."""

    classes: int
    heads: int
    epochs: int
    weight_decay: float
    batch: int
    seed: int
    mean: Tensor
    std: Tensor


def scores(tokens: Tensor, probes: Sequence[Probe], heads: int, mean: Tensor, std: Tensor) -> Tensor:
    """Class scores (G, B, K) of tokens (B, T, D) by each probe, features standardised by mean and deviation (D,).

    With one query q no token need be projected (arXiv 2506.10178, section 3): a head's scores are q·(W_k x) = (W_k'q)·x,
    what it reads is W_v (sum of a x). Standardising passes through both, as the weights a sum to 1 and scores may be shifted.
    """
    query, key, value, head, value_bias, head_bias, scale, bias = (
        torch.stack([getattr(p, name) for p in probes])
        for name in ("query", "key", "value", "head", "value_bias", "head_bias", "norm_scale", "norm_bias")
    )
    d = tokens.shape[2] // heads
    asked = torch.einsum("ghe,ghed->ghd", query.unflatten(1, (heads, d)), key.unflatten(1, (heads, d))) / d**0.5
    weights = (tokens @ (asked / std).flatten(0, 1).T).transpose(1, 2).softmax(2)  # (B, GH, T)
    pooled = ((weights @ tokens - mean) / std).unflatten(1, (len(probes), heads))
    read = torch.einsum("bghd,ghed->gbhe", pooled, value.unflatten(1, (heads, d))).flatten(2) + value_bias[:, None]
    normed = F.layer_norm(read, read.shape[-1:], eps=1e-6) * scale[:, None] + bias[:, None]
    return normed @ head.transpose(1, 2) + head_bias[:, None]


def attentive(
    train_tokens: Tensor,
    labels: Tensor,
    test_tokens: Tensor,
    classes: int,
    *,
    heads: int | None = None,
    epochs: int = 20,
    lrs: tuple[float, ...] = _LRS,
    weight_decay: float = 0.01,
    batch: int = 256,
    seed: int = 0,
    metric: str = "accuracy",
    held: NDArray[np.bool_] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Scores of test_tokens (m, T, D) from train_tokens (n, T, D), any float kind, with labels: logits (m, K) of classes (n,) or
    of several labels (n, K) of 0, 1, NaN; numbers (m,) from numbers (n,).

    AdamW, cosine to 0. The rates are trained together on four fifths of the training samples; the best by the metric on the last
    fifth, `held` (n,), (the smaller of two that do as well) on all. heads: one for 64 features unless given. With the scores
    comes what was chosen. The global random state is neither read nor moved. Raises UserError where heads do not divide D.
    """
    width = train_tokens.shape[2]
    heads = _heads(width) if heads is None else heads
    if heads < 1 or width % heads:
        raise UserError(f"attentive probe: {heads} heads do not divide tokens of {width} features")
    mean, variance = moments(train_tokens.split(batch))
    std = torch.where(variance > 1e-9 * mean.square(), variance.sqrt(), 1)  # 1 for a constant feature
    task = _Task(max(1, classes), heads, epochs, weight_decay, batch, seed, mean.float(), std.float())
    validation = torch.from_numpy(validation_fifth(labels.cpu().numpy()) if held is None else held)
    rate, about = lrs[len(lrs) // 2], {}
    if len(lrs) > 1 and validation.any():
        trials = _fitted(train_tokens, labels, (~validation).nonzero()[:, 0], lrs, task)
        found = (unscaled(one, labels[~validation]) for one in _scores(train_tokens[validation], trials, task))
        truth = labels[validation].cpu().numpy()
        good = [goodness(metric, as_predictions(one, labels, logits=True), truth) for one in found]
        rate = max(lrs, key=lambda lr: (good[lrs.index(lr)], -lr))
        sign = -1 if metric in LESS_IS_BETTER else 1
        about = {f"held_{metric}": {f"{lr:g}": sign * value for lr, value in zip(lrs, good, strict=True)}}
    probes = _fitted(train_tokens, labels, torch.arange(len(labels)), (rate,), task)
    settings = {"heads": heads, "epochs": epochs, "batch": batch, "weight_decay": weight_decay}
    return unscaled(_scores(test_tokens, probes, task)[0], labels), {"lr": rate, **about, **settings}


def _fitted(tokens: Tensor, labels: Tensor, rows: Tensor, rates: Sequence[float], task: _Task) -> list[Probe]:
    """A probe for each rate, trained on the same batches of `rows`, from the same start."""
    probes = [Probe(tokens.shape[2], task.classes, rng.torch_seed(task.seed, "attentive")) for _ in rates]
    adamw = _adamw(probes, rates, task.weight_decay)
    batches, loss = max(1, round(len(rows) / task.batch)), loss_of(labels[rows])
    for step in range(task.epochs * batches):
        epoch, place = divmod(step, batches)
        order = np.array_split(rng.permutation(task.seed, "attentive", epoch, len(rows)), batches)[place]
        rows_of_batch = rows[torch.from_numpy(order.copy())]
        for group in adamw.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * step / (task.epochs * batches)))
        found = scores(tokens.index_select(0, rows_of_batch).float(), probes, task.heads, task.mean, task.std)
        wanted = labels[rows_of_batch].expand(len(probes), *labels[rows_of_batch].shape)
        adamw.zero_grad()
        # the probes' losses are added, so that each has the gradient that it would have alone
        (loss(found.flatten(0, 1), wanted.flatten(0, 1)) / len(rows_of_batch)).backward()
        adamw.step()
    return probes


@torch.no_grad()
def _scores(tokens: Tensor, probes: Sequence[Probe], task: _Task) -> Tensor:
    """(G, m, K) by each probe."""
    return torch.cat([scores(x.float(), probes, task.heads, task.mean, task.std) for x in tokens.split(task.batch)], dim=1)


def _adamw(probes: Sequence[Probe], rates: Sequence[float], weight_decay: float) -> torch.optim.AdamW:
    """A rate for each probe; matrices decay, the query and biases do not."""
    groups = [
        {"params": [p for p in probe.parameters() if (p.ndim > 1) == decays], "rate": rate, "weight_decay": weight_decay * decays}
        for probe, rate in zip(probes, rates, strict=True)
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, fused=True)


def _heads(width: int) -> int:
    """The number that divides `width` and is nearest to one for 64 features, as in a ViT."""
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(h - width / 64))
