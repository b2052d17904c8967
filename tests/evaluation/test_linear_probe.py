"""Linear probes with LARS and SGD, against plain implementations with one torch module a head."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit.config.recipes import IMAGENET_IMAGES
from jepakit.evaluation.probes.linear_probe import (
    TRANSFER,
    TRANSFER_CLEVR,
    LinearHeads,
    LinearProbe,
    decay,
    linear_probe,
    update,
)

RATES = [(0.5, 0.0), (0.5, 5e-3), (10.0, 5e-4), (200.0, 0.0), (200.0, 0.1)]
TRAINED = {"lr": (0.1, 1.0), "weight_decay": (0.0, 5e-3), "epochs": 20, "keep_path": False}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clouds(n: int, classes: int, width: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.from_numpy(np.random.RandomState(seed).randint(0, classes, n))
    return 3 * normal(classes, width, seed=99)[labels] + spread * normal(n, width, seed=seed + 1), labels


def probed(*given: Any, **more: Any) -> tuple[Tensor, dict[str, Any]]:
    """The classes that a probe names, and its account."""
    scores, about = linear_probe(*given, **more)
    return scores.argmax(1), about


def share(predicted: Tensor, truth: Tensor) -> float:
    return float((predicted == truth).double().mean())


class PlainLARS:
    """LARS as MAE has it, one parameter after the other: g + wd w, times .001 |w| / |g|, momentum .9; vectors as they are."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.momentum = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        for p, v in zip(self.parameters, self.momentum, strict=True):
            assert p.grad is not None
            g = p.grad.clone()
            if p.ndim > 1:
                g += self.weight_decay * p
                w_norm, g_norm = float(p.square().sum().sqrt()), float(g.square().sum().sqrt())
                g *= 0.001 * w_norm / g_norm if w_norm > 0 and g_norm > 0 else 1.0
            v.copy_(0.9 * v + g)
            p -= self.lr * factor * v


def stepped(optimizer: str, steps: int = 20) -> tuple[Tensor, Tensor, list[nn.Linear]]:
    """Weights (G, D, K) and biases (G, K) by `update`, and the same heads by a plain optimiser each."""
    x, labels = clouds(60, 3, 5, spread=4)
    weight, bias = normal(len(RATES), 5, 3, seed=3), torch.zeros(len(RATES), 3)
    weight[0] = 0  # LARS: no size to be relative to
    heads = [nn.Linear(5, 3) for _ in RATES]
    judges = []
    for head, start, (lr, wd) in zip(heads, weight, RATES, strict=True):
        head.weight.data, head.bias.data = start.T.clone(), torch.zeros(3)
        groups = [{"params": [head.weight], "weight_decay": wd}, {"params": [head.bias], "weight_decay": 0.0}]
        plain = PlainLARS([head.weight, head.bias], lr, wd)
        judges.append(plain if optimizer == "lars" else torch.optim.SGD(groups, lr=lr / 100, momentum=0.9, nesterov=True))
    rates = torch.tensor([lr for lr, _ in RATES]) / (1 if optimizer == "lars" else 100)
    decays = torch.tensor([wd for _, wd in RATES])
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(steps):
        gradients = []
        for head, judge in zip(heads, judges, strict=True):
            head.zero_grad()
            F.cross_entropy(head(x), labels).backward()
            gradients.append((head.weight.grad.T.clone(), head.bias.grad.clone()))  # type: ignore[union-attr]
            judge.step()
        for p, v, g in zip((weight, bias), momenta, zip(*gradients, strict=True), strict=True):
            update(p, torch.stack(g), v, rates, decays, optimizer)
    return weight, bias, heads


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_twenty_steps_of_stacked_heads_are_those_of_a_plain_optimiser_each(optimizer: str) -> None:
    weight, bias, heads = stepped(optimizer)
    for g, head in enumerate(heads):
        scale = float(head.weight.detach().abs().max())
        np.testing.assert_allclose(weight[g].T, head.weight.detach(), rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(bias[g], head.bias.detach(), rtol=1e-4, atol=1e-5 * max(1, float(bias[g].abs().max())))


def test_one_step_of_lars_worked_by_hand() -> None:
    w, b = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[2.0]])  # |w| = 5
    v, u = torch.zeros_like(w), torch.zeros_like(b)
    rate, wd = torch.tensor([10.0]), torch.tensor([0.5])
    update(w, torch.tensor([[[-1.5], [-1.0]]]), v, rate, wd, "lars")  # g + wd w = (0, 1): trust .001 * 5 / 1
    update(b, torch.tensor([[7.0]]), u, rate, wd, "lars")
    assert v.flatten().tolist() == pytest.approx([0, 0.005]) and w.flatten().tolist() == pytest.approx([3, 3.95])
    assert u.item() == 7 and b.item() == -68  # neither decay nor trust
    update(w, -0.5 * w, v, rate, wd, "lars")  # nothing is left of g: momentum alone, trust 1
    assert w.flatten().tolist() == pytest.approx([3, 3.95 - 10 * 0.0045])


def test_a_step_of_lars_on_a_weight_does_not_feel_the_size_of_the_gradient() -> None:
    g, moved = normal(1, 4, 3, seed=1), []
    for scale in (1e-6, 1.0, 1e6):
        w, v = normal(1, 4, 3), torch.zeros(1, 4, 3)
        update(w, scale * g, v, torch.tensor([2.0]), torch.zeros(1), "lars")
        moved.append(w - normal(1, 4, 3))
        assert float(moved[-1].norm()) == pytest.approx(2 * 0.001 * float(normal(1, 4, 3).norm()), rel=1e-4)
    np.testing.assert_allclose(moved[0], moved[2], atol=1e-6)


# ---- the rate


def test_the_rate_falls_to_a_tenth_at_each_milestone_and_not_a_step_before() -> None:
    drops = (0.3, 0.6, 0.9)
    shares = {0.0: 1, 0.299: 1, 0.3: 0.1, 0.599: 0.1, 0.6: 0.01, 0.899: 0.01, 0.9: 0.001, 1.0: 0.001}
    for done, factor in shares.items():
        assert decay(done, drops) == pytest.approx(factor, rel=1e-12), done


@pytest.mark.parametrize("per_epoch", [1, 3, 7, 200])
def test_vissls_rate_falls_after_8_16_and_24_of_28_epochs_for_any_number_of_steps(per_epoch: int) -> None:
    total = 28 * per_epoch
    factors = [decay(step / total, TRANSFER.drops) for step in range(total)]
    assert TRANSFER.epochs == 28 and factors == pytest.approx(
        np.repeat([1, 0.1, 0.01, 0.001], np.array([8, 8, 8, 4]) * per_epoch)
    )


def test_the_cosine_goes_from_one_to_a_hundredth() -> None:
    assert TRANSFER_CLEVR.drops is None and TRANSFER_CLEVR.epochs == 50
    assert decay(0, None) == 1 and decay(1, None) == pytest.approx(0.01) and decay(0.5, None) == pytest.approx(0.505)
    values = [decay(done, None) for done in np.linspace(0, 1, 101)]
    assert all(a > b for a, b in itertools.pairwise(values))


def test_on_a_small_set_rate_times_steps_is_what_it_is_on_imagenet_for_weights_alone() -> None:
    x = normal(640, 4)
    for settings in (LinearProbe(), LinearProbe(keep_path=False), TRANSFER):
        bank = LinearHeads(x, "linear", "last", settings, 3, 0)
        steps = 640 // bank.batch * settings.epochs
        per_batch = torch.tensor(list(itertools.product(settings.lr, settings.weight_decay)))[:, 0] * bank.batch / 256
        assert torch.allclose(bank.lr, per_batch)
        factor = IMAGENET_IMAGES / 640 if settings == LinearProbe() else 1.0
        assert bank.longer == pytest.approx(factor)
        if settings == LinearProbe():  # lr x steps, as with any batch that divides ImageNet
            assert torch.allclose(bank.lr * bank.longer * steps, per_batch / bank.batch * IMAGENET_IMAGES * settings.epochs)


# ---- training


def plain_logits(kind: str, settings: LinearProbe, x: Tensor, labels: Tensor, seen: Tensor) -> list[Tensor]:
    """Logits of each head, trained by itself on all samples at once."""
    found = []
    for lr, wd in itertools.product(settings.lr, settings.weight_decay):
        head = nn.Linear(x.shape[1], int(labels.max()) + 1)
        start = LinearHeads(x, kind, "last", settings, int(labels.max()) + 1, 0).parameters[0]
        head.weight.data, head.bias.data = start[0].T.clone(), torch.zeros_like(head.bias)
        norm = {"linear": nn.Identity(), "bn": nn.BatchNorm1d(x.shape[1], affine=False)}.get(kind) or nn.BatchNorm1d(x.shape[1])
        vectors = [head.bias, *norm.parameters()]
        lr = lr * len(x) / 256
        groups = [{"params": [head.weight], "weight_decay": wd}, {"params": vectors, "weight_decay": 0.0}]
        judge = PlainLARS([head.weight, *vectors], lr, wd)
        sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        for step in range(settings.epochs):
            factor = 0.01 + 0.99 * (1 + math.cos(math.pi * step / settings.epochs)) / 2
            head.zero_grad()
            norm.zero_grad()
            F.cross_entropy(head(norm(x)), labels).backward()
            if settings.optimizer == "lars":
                judge.step(factor)
            else:
                for group in sgd.param_groups:
                    group["lr"] = lr * factor
                sgd.step()
        norm.eval()
        found.append(head(norm(seen)).detach())
    return found


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.parametrize("kind", ["linear", "bn", "bn_affine"])
def test_training_is_that_of_torch_modules(kind: str, optimizer: str) -> None:
    x, labels = clouds(32, 3, 6, spread=4)  # a batch is all of so few, so that an order there is none
    seen = clouds(200, 3, 6, spread=4, seed=5)[0]
    scale = 30.0 if optimizer == "lars" else 1.0  # of rates: a step of LARS is a thousandth of the weights
    settings = LinearProbe(optimizer=optimizer, drops=None, **(TRAINED | {"lr": (0.1 * scale, scale)}))  # type: ignore[arg-type]
    bank = LinearHeads(x, kind, "last", settings, 3, 0).fit(labels)
    weight, bias, scale_of, shift_of = (*bank.parameters, torch.ones(4, 6), torch.zeros(4, 6))[:4]
    z = seen if kind == "linear" else (seen - bank.mean) / (bank.variance + 1e-5).sqrt()
    logits = torch.einsum("gmd,gdk->gmk", z * scale_of[:, None] + shift_of[:, None], weight) + bias[:, None]
    for ours, theirs in zip(logits, plain_logits(kind, settings, x, labels, seen), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert torch.equal(bank.predict(seen), logits.argmax(2))


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.parametrize("kind", ["linear", "bn", "bn_affine"])
def test_heads_trained_together_are_the_heads_trained_alone(kind: str, optimizer: str) -> None:
    x, labels = clouds(150, 4, 7, spread=3)
    settings = LinearProbe(optimizer=optimizer, **TRAINED)  # type: ignore[arg-type]
    together = LinearHeads(x, kind, "last", settings, 4, 0).fit(labels)
    assert len(together.grid) == 4 and together.batch < len(x)
    for g, head in enumerate(together.grid):
        alone = settings.model_copy(update={"lr": (head.lr,), "weight_decay": (head.weight_decay,)})
        for ours, theirs in zip(
            together.parameters, LinearHeads(x, kind, "last", alone, 4, 0).fit(labels).parameters, strict=True
        ):
            np.testing.assert_allclose(ours[g], theirs[0], rtol=1e-4, atol=1e-6)


def test_an_epoch_sees_each_sample_once_in_a_new_order_of_whole_batches() -> None:
    bank = LinearHeads(normal(640, 3), "bn", "last", LinearProbe(epochs=4), 2, 0)
    steps = list(bank._steps())
    assert len(steps) == 4 * (640 // bank.batch) and {len(rows) for _, rows in steps} == {bank.batch}
    epochs = np.concatenate([rows for _, rows in steps]).reshape(4, -1)
    for order in epochs:
        np.testing.assert_array_equal(np.sort(order), np.arange(640))
    assert len({tuple(order) for order in epochs}) == 4


def test_heads_behind_a_batch_norm_do_not_feel_the_scale_of_a_feature() -> None:
    x, labels = clouds(200, 3, 6, spread=5)
    seen = clouds(300, 3, 6, spread=5, seed=7)[0]
    stretch, shift = torch.tensor([1e3, 10.0, 1.0, 0.5, 0.1, 30.0]), 50 * normal(6)
    settings = LinearProbe(**TRAINED)  # type: ignore[arg-type]

    def predicted(kind: str, scaled: bool) -> Tensor:
        a, b = (s * stretch + shift if scaled else s for s in (x, seen))
        return LinearHeads(a, kind, "last", settings, 3, 0).fit(labels).predict(b)

    assert share(predicted("bn", True), predicted("bn", False)) > 0.995  # rounding and epsilon may turn a close one
    assert share(predicted("linear", True), predicted("linear", False)) < 0.95


# ---- the protocol


@pytest.mark.parametrize("settings", [LinearProbe(), TRANSFER, TRANSFER_CLEVR], ids=["papers", "transfer", "clevr"])
@pytest.mark.parametrize("n", [30, 400])
def test_what_a_line_divides_is_told_apart_without_a_mistake(settings: LinearProbe, n: int) -> None:
    x, labels = clouds(n + 200, 4, 16, spread=0.3)
    predicted, about = probed({"last": x[:n]}, labels[:n], {"last": x[n:]}, labels[n:], settings)
    assert share(predicted, labels[n:]) == 1 and about["best_on_test"] == 1
    assert predicted.dtype == torch.int64 and predicted.shape == (200,)


def test_labels_that_say_nothing_are_guessed_by_chance() -> None:
    x, labels = normal(1200, 8), torch.from_numpy(np.random.RandomState(1).randint(0, 4, 1200))
    x[:, 2] = 1  # and a constant does no harm
    predicted, about = probed({"last": x[:400]}, labels[:400], {"last": x[400:]}, labels[400:], LinearProbe(epochs=10))
    assert abs(share(predicted, labels[400:]) - 0.25) < 5 * (0.25 * 0.75 / 800) ** 0.5
    assert about["best_on_test"] > share(predicted, labels[400:]) - 1e-6


def layered(n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    x, labels = clouds(n, 3, 6, spread=6, seed=seed)
    return {"last": x, "last4": torch.cat([x, 10 * normal(n, 9, seed=seed + 50)], 1)}, labels


def test_every_head_of_the_grid_is_told_of_and_the_chosen_one_is_the_best_on_the_held_fifth() -> None:
    train, labels = layered(250, 0)
    test, truth = layered(300, 1)
    settings = LinearProbe(epochs=5)
    predicted, about = probed(train, labels, test, truth, settings)
    grid = set(itertools.product(("last", "last4"), ("linear", "bn"), settings.lr, settings.weight_decay))
    assert {(h["layers"], h["kind"], h["lr"], h["weight_decay"]) for h in about["heads"]} == grid and len(about["heads"]) == 24
    held = [h["accuracy"]["held"] for h in about["heads"]]
    assert about["head"]["accuracy"]["held"] == max(held) > min(held)
    assert about["head"]["accuracy"]["test"] == pytest.approx(share(predicted, truth), abs=1e-4)
    assert about["best_on_test"] == pytest.approx(max(h["accuracy"]["test"] for h in about["heads"]), abs=1e-4)
    assert about["best_on_test"] >= share(predicted, truth) - 1e-6


def test_the_choice_does_not_look_at_the_test_set() -> None:
    train, labels = layered(250, 0)
    chosen = []
    for seed in range(4):
        test, truth = layered(100, seed)
        if seed:
            truth = truth.roll(seed)  # other labels, under which another head is best
        _, about = probed(train, labels, test, truth, LinearProbe(epochs=5))
        chosen.append(
            (*(about["head"][key] for key in ("layers", "kind", "lr", "weight_decay")), about["head"]["accuracy"]["held"])
        )
        chosen[-1] += (tuple(h["accuracy"]["held"] for h in about["heads"]),)
    assert len(set(chosen)) == 1


def test_the_head_that_the_test_set_likes_best_is_not_the_answer() -> None:
    """In training only 'last' tells, in the test set only 'last4': a choice by the test set would be right each time."""
    signal, labels = clouds(250, 3, 6, spread=0.3)
    seen, truth = clouds(200, 3, 6, spread=0.3, seed=3)
    train = {"last": signal, "last4": signal + 8 * normal(250, 6, seed=8)}
    test = {"last": seen.roll(1, 0), "last4": seen}
    predicted, about = probed(train, labels, test, truth, LinearProbe(epochs=20))
    assert about["head"]["layers"] == "last" and share(predicted, truth) < 0.6 < about["best_on_test"]


def test_the_held_accuracy_is_that_of_heads_trained_without_the_held_fifth() -> None:
    train, labels = layered(255, 0)
    order = torch.cat([(labels == c).nonzero().flatten()[:70] for c in range(3)])  # class by class: each fifth of each is held
    train, labels = {name: x[order] for name, x in train.items()}, labels[order]
    assert labels.bincount().tolist() == [70, 70, 70]
    settings = LinearProbe(epochs=5)
    _, about = probed(train, labels, train, labels, settings)
    held = torch.arange(210) % 5 == 4
    parts = [{name: x[where] for name, x in train.items()} for where in (~held, held)]
    _, again = probed(parts[0], labels[~held], parts[1], labels[held], settings)
    assert [h["accuracy"]["held"] for h in about["heads"]] == [h["accuracy"]["test"] for h in again["heads"]]


def test_the_held_fifth_has_something_of_every_class_in_whatever_order_the_samples_come() -> None:
    x, labels = 3 * normal(5, 16, seed=99).repeat(30, 1) + 0.3 * normal(150, 16), torch.arange(5).repeat(30)
    _, about = probed({"last": x}, labels, {"last": x}, labels, LinearProbe())
    assert about["head"]["accuracy"]["held"] == 1


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_a_handful_of_samples_is_no_error_and_leaves_no_number_that_is_none(n: int) -> None:
    x, labels = clouds(40, 2, 4, spread=0.1)
    labels[:2] = torch.tensor([0, 1])
    predicted, about = probed({"last": x[:n]}, labels[:n], {"last": x[n:]}, labels[n:], LinearProbe(epochs=3))
    assert set(predicted.tolist()) <= {0, 1}
    assert all(math.isfinite(value) for head in about["heads"] for value in head["accuracy"].values())


def test_a_probe_is_a_function_of_the_seed() -> None:
    train, labels = layered(200, 0)
    test, truth = layered(100, 1)
    torch.manual_seed(1)
    one, about = probed(train, labels, test, truth, LinearProbe(epochs=2), seed=3)
    torch.manual_seed(2)
    two, again = probed(train, labels, test, truth, LinearProbe(epochs=2), seed=3)
    assert torch.equal(one, two) and about == again
