"""The plain step that ours is measured against: it is the released one, and ours does the same."""

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
from jepakit.config.config import method_layer, overrides
from jepakit.config.optim import Optim, Schedule, optimizer
from jepakit.config.recipes import settings
from jepakit.data.sets.emoji import EmojiSource
from jepakit.model.images import normalise, turned
from jepakit.model.masking.masks import MultiBlock
from jepakit.training.step import Training
from oracle import ARRAYS, CASE, DRAWS, ORACLE

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from plain import Dense, Plain, PlainStep, collate, positions
from step_ablations import ABLATIONS, padded
from step_cases import SMOKE, OurStep, batch_of

OPTIM = Optim(epochs=5, warmup_epochs=2, lr=1e-3, start_lr=2e-4, final_lr=1e-6, weight_decay=0.04, final_weight_decay=0.4)
SCHEDULE = Schedule(OPTIM, 10)
COLLATOR: dict[str, Any] = ORACLE["collator_draws"]


def plain(dtype: torch.dtype = torch.float64) -> Plain:
    model = Plain(oracle.METHOD, (8, 8))
    model.load_state_dict(oracle.model(dtype).state_dict())
    return model.to(dtype)


def masks() -> Dense:
    return Dense.trimmed(oracle.masks())


# --- the released code's golden numbers ------------------------------------------------------------------------------


def test_forward_and_loss() -> None:
    model, images = plain(), oracle.images()
    assert float(model(images, masks()).detach()) == pytest.approx(CASE["loss"], rel=1e-9)
    for ours, theirs in [
        (model.encoder(images, masks().context), "context"),
        (model.target_encoder(images), "target_encoder_full"),
        (model.targets(images, masks()), "target_layernormed_selected"),
        (model.predictions(images, masks()), "prediction"),  # block by block, image by image, as released
    ]:
        stored = ARRAYS[theirs]  # in float32
        np.testing.assert_allclose(ours.detach().numpy(), stored, rtol=0, atol=1e-6 * np.abs(stored).max())


def test_every_gradient() -> None:
    model = plain()
    model(oracle.images(), masks()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(gradients) == set(CASE["grad"])
    for name, gradient in gradients.items():
        assert gradient is not None
        oracle.check(gradient, CASE["grad"][name], 1e-9)
    assert all(p.grad is None for p in model.target_encoder.parameters())


def test_one_step_then_six() -> None:
    model = plain()
    step = PlainStep(model)
    for number, row in enumerate(CASE["trajectory"]):
        loss = step.step(oracle.images(number), masks(), SCHEDULE.at(number))
        assert loss == pytest.approx(row["loss"], rel=1e-9)
        if number == 0:
            again = float(model(oracle.images(0), masks()).detach())
            assert again == pytest.approx(CASE["loss_after_one_step_same_batch"], rel=1e-9)
            for name, value in model.state_dict().items():
                oracle.check(value, CASE["after_one_step"][name.replace("target_encoder.", "target.")], 1e-9)


@pytest.mark.parametrize("name", ORACLE["pos_embed"]["tables"])
def test_positions(name: str) -> None:
    width, grid = name.split("_")
    rows, columns = map(int, grid.split("x"))
    oracle.check(positions(int(width), (rows, columns)), ORACLE["pos_embed"]["tables"][name], 1e-6)  # float32


@pytest.mark.parametrize("name", ["paper_224_14", "paper_224_16"])
def test_collator_draw_for_draw(name: str) -> None:
    case = COLLATOR[name]
    side = 224 // int(name[-2:])
    generator = torch.Generator().manual_seed(case["torch_manual_seed"])  # its state runs on from batch to batch
    for step in range(len(case["batches"])):
        drawn = collate(MultiBlock(compat="released"), (side, side), case["batch_size"], step, generator)
        assert drawn.context.tolist() == DRAWS[f"{name}.b{step}.enc"][0].tolist()
        assert torch.stack(drawn.targets).tolist() == DRAWS[f"{name}.b{step}.pred"].tolist()


# --- ours --------------------------------------------------------------------------------------------------------------


def test_ours_has_the_same_loss_over_six_steps() -> None:
    jepa, theirs = oracle.model(torch.float32), PlainStep(plain(torch.float32))
    ours = OurStep(jepa, optimizer(jepa, OPTIM), torch.float32)
    for number in range(6):
        images, now = oracle.images(number, torch.float32), SCHEDULE.at(number)
        assert float(ours.step(images, oracle.masks(), now)) == pytest.approx(theirs.step(images, masks(), now), rel=1e-6)
    for p, expected in zip(jepa.target_encoder.parameters(), theirs.model.target_encoder.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_measured_step_is_the_one_that_trains() -> None:
    words = [
        "encoder.depth=1",
        "predictor.depth=1",
        "optim.batch_size=4",
        "optim.steps=20",
        "run.threads=1",
        "run.precision=fp32",
    ]
    config = settings("demo", None, {}, method_layer("ijepa"), overrides(words))
    training = Training.prepare(config, EmojiSource())
    batch, now = next(iter(training.loader(0, 1))), training.schedule.at(0)
    jepa = deepcopy(training.jepa)
    pixels = normalise(turned(batch.images, batch.turns[0]), config.images)
    loss = OurStep(jepa, optimizer(jepa, config.optim), training.dtype).step(pixels, batch.masks[0], now)
    out, _ = training.train_step(batch, now, check=True)
    assert torch.equal(loss, out.loss.detach())
    for name, value in training.jepa.state_dict().items():
        assert torch.equal(value, jepa.state_dict()[name]), name


def test_the_three_forms_of_a_batchs_masks_are_the_same_draws() -> None:
    batch = batch_of(SMOKE, 0)
    shortest = batch.full.context_lengths.min()
    assert len({*batch.full.context_lengths}) > 1
    starts = batch.full.context_lengths.cumsum() - batch.full.context_lengths
    expected = [batch.full.context[first : first + shortest].tolist() for first in starts]
    assert batch.trimmed.context.reshape(SMOKE.batch, -1).tolist() == expected
    assert batch.dense.context.tolist() == expected
    targets = torch.from_numpy(batch.full.targets).view(SMOKE.batch, 4, -1).transpose(0, 1)
    assert torch.equal(torch.stack(batch.dense.targets), targets)
    assert np.array_equal(batch.trimmed.targets, batch.full.targets)


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "contexts padded"])
@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_a_thing_done_the_plain_way_gives_the_same_losses(name: str, precision: str, rtol: float) -> None:
    ours, changed = OurStep.of(SMOKE, precision), OurStep.of(SMOKE, precision)
    for number in range(3):
        batch, now = batch_of(SMOKE, number), SCHEDULE.at(number)
        expected = float(ours.step(batch.images, batch.full, now))
        with ABLATIONS[name](changed):
            assert float(changed.step(batch.images, batch.full, now)) == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "called"), [("AdamW not fused", "torch._fused_adamw_"), ("average in a loop", "torch._foreach_lerp_")]
)
def test_what_an_ablation_switches_off_is_off(name: str, called: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original: Callable[..., Any] = getattr(torch, called.removeprefix("torch."))

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(called)
        return original(*args, **kwargs)

    monkeypatch.setattr(called, counted)
    batch, now, ours = batch_of(SMOKE, 0), SCHEDULE.at(5), OurStep.of(SMOKE, precision)
    with ABLATIONS[name](ours):
        ours.step(batch.images, batch.full, now)
    assert not calls
    ours.step(batch.images, batch.full, now)
    assert calls


def test_padding_repeats_a_contexts_own_patches() -> None:
    masks = batch_of(SMOKE, 0).full
    longest = masks.context_lengths.max()
    rows = padded(masks).context.reshape(SMOKE.batch, longest)
    for row, own in zip(rows, np.split(masks.context, masks.context_lengths.cumsum()[:-1]), strict=True):
        assert row[: len(own)].tolist() == own.tolist()
        assert set(row) == set(own)
