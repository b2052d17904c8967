"""Linear probes as the papers train them: many heads at once, in one pass over cached features, with LARS or SGD.

Several labels at once have a sigmoid each. n samples, D features, K classes or labels, G heads that differ in rate and decay.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from jepakit.config.recipes import IMAGENET_IMAGES
from jepakit.core.settings import Settings
from jepakit.evaluation.metrics import goodness
from jepakit.evaluation.probes.logistic import as_predictions, validation_fifth
from jepakit.evaluation.storage import copy_rows

TRUST = 0.001


class LinearProbe(Settings):
    """A linear protocol. The defaults are I-JEPA's and EC-IJEPA's on ImageNet (science: I-JEPA A.2, EC-IJEPA tables 6-7)."""

    optimizer: Literal["lars", "sgd"] = Field("lars", description="LARS, or SGD with Nesterov's momentum")
    lr: tuple[float, ...] = Field((0.01, 0.05, 0.001), min_length=1, description="learning rates tried, for 256 images a step")
    weight_decay: tuple[float, ...] = Field((0.0, 5e-4), min_length=1, description="weight decays tried")
    heads: tuple[Literal["linear", "bn", "bn_affine"], ...] = Field(
        ("linear", "bn"), min_length=1, description="before the linear map: nothing, batch norm without or with affine"
    )
    layers: tuple[Literal["last", "last4"], ...] = Field(
        ("last", "last4"), min_length=1, description="features: last block, last four"
    )
    epochs: int = Field(50, ge=1, description="passes over the training samples")
    drops: tuple[float, ...] | None = Field(
        (0.3, 0.6, 0.9), description="shares of the run at which the rate falls to a tenth; none: cosine to a hundredth"
    )
    batch_size: int = Field(16384, ge=2, description="at most; small sets take an eighth of their samples")
    keep_path: bool = Field(
        True, description="on sets smaller than ImageNet, raise the rate so that lr x steps stays what it is there"
    )


# VISSL's transfer recipe (science: EC-IJEPA table 8); CLEVR's is as long as the papers say, with a cosine
TRANSFER = LinearProbe(
    optimizer="sgd",
    lr=(0.01,),
    weight_decay=(5e-4,),
    heads=("linear", "bn_affine"),
    epochs=28,
    drops=(8 / 28, 16 / 28, 24 / 28),
    batch_size=256,
    keep_path=False,
)
TRANSFER_CLEVR = TRANSFER.model_copy(update={"epochs": 50, "drops": None})


@dataclass(frozen=True)
class Head:
    """One of the grid: how it was trained, and its figures where they were measured."""

    layers: str
    kind: str
    lr: float
    weight_decay: float
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def account(self) -> dict[str, Any]:
        """As a result has it."""
        trained = {name: getattr(self, name) for name in ("layers", "kind", "lr", "weight_decay")}
        return {**trained, **self.figures}


def linear_probe(
    train: dict[str, Tensor],
    labels: Tensor,
    test: dict[str, Tensor],
    truth: Tensor,
    settings: LinearProbe,
    seed: int = 0,
    *,
    metric: str = "accuracy",
    held: NDArray[np.bool_] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Logits (m, K) of the head that did best by the metric on a fifth of the training samples, and an account of all heads.

    train, test: features by layer, (n, D) and (m, D); labels (n,), truth (m,) int64, or (n, K), (m, K) of 0, 1, NaN; held (n,):
    the fifth, where it is not `validation_fifth`. The papers report the head that is best on the test set, which is optimistic
    by the choice: it stands in the account as `best_on_test`.
    """
    validation = torch.from_numpy(validation_fifth(labels.numpy()) if held is None else held)
    learnt = ~validation
    if not validation.any():  # of a handful none can be spared: the heads are told apart by what they learnt
        validation = learnt
    classes = int(torch.cat([labels, truth]).max()) + 1 if labels.ndim == 1 else labels.shape[1]
    there = [layers for layers in settings.layers if layers in train] or ["last"]  # baselines have no last four

    def banks(x: dict[str, Tensor]) -> list[LinearHeads]:
        return [LinearHeads(x[layers], kind, layers, settings, classes, seed) for layers in there for kind in settings.heads]

    first = banks({layers: copy_rows(x, learnt.nonzero().flatten()) for layers, x in train.items()})
    asked = {layers: copy_rows(x, validation.nonzero().flatten()) for layers, x in train.items()}
    on_validation = [
        value for bank in first for value in bank.fit(labels[learnt]).judged(asked[bank.layers], labels[validation], metric)
    ]
    trained = banks(train)
    on_test = [value for bank in trained for value in bank.fit(labels).judged(test[bank.layers], truth, metric)]
    heads = [(bank, place) for bank in trained for place in range(len(bank.grid))]
    for (bank, place), h, t in zip(heads, on_validation, on_test, strict=True):
        bank.grid[place].figures[metric] = {"held": round(h, 4), "test": round(t, 4)}
    best = int(np.argmax(on_validation))
    bank, place = heads[best]
    accounts = [bank.grid[place].account for bank, place in heads]
    return bank.scores(test[bank.layers], place), {"head": accounts[best], "best_on_test": max(on_test), "heads": accounts}


class LinearHeads:
    """Heads on the same features that share their batch norm: weight (G, D, K), bias (G, K), perhaps scale and shift (G, D)."""

    def __init__(self, x: Tensor, kind: str, layers: str, settings: LinearProbe, classes: int, seed: int) -> None:
        self.x, self.kind, self.layers, self.settings, self.seed = x, kind, layers, settings, seed
        self.batch = max(2, min(settings.batch_size, len(x), max(32, len(x) // 8)))
        pairs = list(itertools.product(settings.lr, settings.weight_decay))
        self.grid = [Head(layers, kind, lr, wd) for lr, wd in pairs]
        self.lr = torch.tensor([lr * self.batch / 256 for lr, _ in pairs])
        raised = settings.keep_path and settings.optimizer == "lars"  # of weights: a step of LARS is relative to their size
        self.longer = max(1.0, IMAGENET_IMAGES / len(x)) if raised else 1.0  # the papers' rates are meant for so many steps
        self.weight_decay = torch.tensor([wd for _, wd in pairs])
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(x.shape[1], classes, generator=generator).mul_(0.01).expand(len(pairs), -1, -1).clone()
        self.parameters = [weight, torch.zeros(len(pairs), classes)]
        if kind == "bn_affine":
            self.parameters += [torch.ones(len(pairs), x.shape[1]), torch.zeros(len(pairs), x.shape[1])]
        self.mean, self.variance = torch.zeros(x.shape[1]), torch.ones(x.shape[1])

    def fit(self, labels: Tensor) -> "LinearHeads":
        """Train all heads; returns itself."""
        momenta = [torch.zeros_like(p) for p in self.parameters]
        for factor, rows in self._steps():
            x, y = self._normalised(self.x.index_select(0, rows), train=True), labels.index_select(0, rows)
            for p, g, v in zip(self.parameters, self.gradients(x, y), momenta, strict=True):
                lr = self.lr * factor * (self.longer if p.ndim > 2 else 1)
                update(p, g, v, lr, self.weight_decay, self.settings.optimizer)
        return self

    def gradients(self, x: Tensor, labels: Tensor) -> list[Tensor]:
        """Of the mean cross-entropy of (B, D) with labels (B,), for each head its own: by hand, at half of autograd's cost.

        Of several labels (B, K), the sum of their mean binary cross-entropies; a NaN adds nothing.
        """
        weight, _, *affine = self.parameters
        if labels.ndim == 1:
            error = self._logits(x).softmax(2)  # d loss / d logits = softmax - one-hot
            error[:, torch.arange(len(x)), labels] -= 1
        else:
            error = (self._logits(x).sigmoid() - labels.nan_to_num().to(x.dtype)) * ~labels.isnan()
        error /= len(x)
        if not affine:
            together = x.T @ error.transpose(0, 1).flatten(1)
            return [together.unflatten(1, (len(weight), -1)).transpose(0, 1), error.sum(1)]
        scaled = x * affine[0][:, None] + affine[1][:, None]
        back = error @ weight.transpose(1, 2)
        return [scaled.transpose(1, 2) @ error, error.sum(1), (back * x).sum(1), back.sum(1)]

    def predict(self, x: Tensor) -> Tensor:
        """Predicted classes (G, m)."""
        predicted = [self._logits(self._normalised(batch, train=False)).argmax(2) for batch in x.split(4096)]
        return torch.cat(predicted, 1)

    def scores(self, x: Tensor, place: int) -> Tensor:
        """Logits (m, K) of one head of the grid."""
        return torch.cat([self._logits(self._normalised(batch, train=False))[place] for batch in x.split(4096)])

    def judged(self, x: Tensor, truth: Tensor, metric: str) -> list[float]:
        """The metric of each head on x (m, D) with truth (m,) or (m, K)."""
        if metric == "accuracy":
            return [float(share) for share in (self.predict(x) == truth).float().mean(1)]
        each = (self.scores(x, place) for place in range(len(self.grid)))
        return [goodness(metric, as_predictions(one, truth, logits=True), truth.numpy()) for one in each]

    def _steps(self) -> Iterator[tuple[float, Tensor]]:
        """The rate's factor and the samples of each step: whole batches of a new order each epoch."""
        per_epoch = max(1, len(self.x) // self.batch)
        total = per_epoch * self.settings.epochs
        for step in range(total):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(len(self.x)))
            yield decay(step / total, self.settings.drops), order[place * self.batch : (place + 1) * self.batch]

    def _normalised(self, x: Tensor, *, train: bool) -> Tensor:
        if self.kind == "linear":
            return x
        return F.batch_norm(x, self.mean, self.variance, training=train, momentum=0.1, eps=1e-5)

    def _logits(self, x: Tensor) -> Tensor:
        """(G, B, K)"""
        weight, bias, *affine = self.parameters
        if affine:
            return torch.baddbmm(bias[:, None], x * affine[0][:, None] + affine[1][:, None], weight)
        together = x @ weight.transpose(0, 1).flatten(1)  # heads side by side: one product for all
        return together.unflatten(1, (len(weight), -1)).transpose(0, 1) + bias[:, None]  # type: ignore[no-any-return]


def decay(done: float, drops: tuple[float, ...] | None) -> float:
    """Factor of the learning rate after a share of the run: a tenth at each drop, or a cosine from 1 to .01."""
    if drops is None:
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
    return float(0.1 ** sum(done >= drop for drop in drops))


def update(p: Tensor, g: Tensor, v: Tensor, lr: Tensor, weight_decay: Tensor, optimizer: str, momentum: float = 0.9) -> None:
    """One step in place of stacked parameters (G, ...), each head by its own lr and weight decay (G,); v is the momentum.

    LARS (You et al. 2017, in MAE's form): g + wd w, times trust |w| / |g|, then momentum; neither decay nor trust for
    vectors. SGD (VISSL): decay on weights only, Nesterov's momentum.
    """
    shape = (-1, *[1] * (p.ndim - 1))
    if p.ndim > 2:
        g = g + weight_decay.view(shape) * p
        if optimizer == "lars":
            w_norm, g_norm = p.flatten(1).norm(dim=1), g.flatten(1).norm(dim=1)
            trust = torch.where((w_norm > 0) & (g_norm > 0), TRUST * w_norm / g_norm, torch.ones_like(w_norm))
            g = g * trust.view(shape)
    v.mul_(momentum).add_(g)
    step = v if optimizer == "lars" else g + momentum * v
    p.sub_(lr.view(shape) * step)
