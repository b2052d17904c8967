"""Parity with the released I-JEPA code, against stored numbers of a float64 run."""

import numpy as np
import pytest
import torch

import oracle
from jepakit.config.optim import Optim, Schedule, apply_schedule, gradient_norm, optimizer
from jepakit.model.vit import sincos
from oracle import ARRAYS, CASE, ORACLE

# optimiser settings of the oracle: 5 epochs of 10 steps
OPTIM = Optim(epochs=5, warmup_epochs=2, lr=1e-3, start_lr=2e-4, final_lr=1e-6, weight_decay=0.04, final_weight_decay=0.4)
PRECISIONS = [(torch.float64, 1e-9, 1e-6), (torch.float32, 1e-5, 1e-5)]  # dtype, scalars, stored float32 arrays


def by_block(rows: torch.Tensor) -> np.ndarray:
    """Ours is image by image, block by block; the released rows are block by block, image by image."""
    return rows.detach().double().view(3, 4, 12, 96).transpose(0, 1).reshape(12, 12, 96).numpy()


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_forward_and_loss(dtype: torch.dtype, rtol: float, atol: float) -> None:
    out = oracle.model(dtype)(oracle.images(dtype=dtype), oracle.masks())
    assert float(out.loss.detach()) == pytest.approx(CASE["loss"], rel=rtol)
    context = out.context.detach().double().view(3, 18, 96).numpy()
    for ours, theirs in [
        (context, "context"),
        (by_block(out.targets), "target_layernormed_selected"),
        (by_block(out.predictions), "prediction"),
    ]:
        np.testing.assert_allclose(ours, ARRAYS[theirs], rtol=0, atol=atol * np.abs(ARRAYS[theirs]).max())


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_every_gradient(dtype: torch.dtype, rtol: float, atol: float) -> None:
    jepa = oracle.model(dtype)
    jepa(oracle.images(dtype=dtype), oracle.masks()).loss.backward()
    gradients = {name: p.grad for name, p in jepa.trained_parameters()}
    assert set(gradients) == set(CASE["grad"])
    for name, gradient in gradients.items():
        assert gradient is not None
        oracle.check(gradient.view(CASE["parameters"][name]["shape"]), CASE["grad"][name], rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_one_step_then_six(dtype: torch.dtype, rtol: float) -> None:
    jepa, schedule = oracle.model(dtype), Schedule(OPTIM, 10)
    adamw = optimizer(jepa, OPTIM)
    for step, row in enumerate(CASE["trajectory"]):
        now = schedule.at(step)
        assert (now.lr, now.weight_decay, now.momentum) == pytest.approx((row["lr"], row["wd"], row["ema"]), rel=1e-12)
        apply_schedule(adamw, now)
        out = jepa(oracle.images(step, dtype), oracle.masks())
        assert float(out.loss.detach()) == pytest.approx(row["loss"], rel=rtol)
        adamw.zero_grad()
        out.loss.backward()
        gradient_norm(jepa, None)
        adamw.step()
        jepa.update_target_encoder(now.momentum)
        if step == 0:
            again = jepa(oracle.images(0, dtype), oracle.masks()).loss
            assert float(again.detach()) == pytest.approx(CASE["loss_after_one_step_same_batch"], rel=rtol)
            for name, value in jepa.state_dict().items():
                # Adam's first step turns the key biases' gradient, which is 0 but for rounding, into up to lr
                least_scale = 1.0 if dtype == torch.float32 else 1e-300
                oracle.check(value, CASE["after_one_step"][name.replace("target_encoder.", "target.")], rtol, least_scale)


@pytest.mark.parametrize("table", ORACLE["schedules"], ids=lambda t: f"{t['ipe']}x{t['epochs']}x{t['ipe_scale']}")
def test_schedules(table: dict) -> None:
    optim = OPTIM.model_copy(
        update={"epochs": table["epochs"], "warmup_epochs": table["warmup"], "schedule_scale": table["ipe_scale"]}
    )
    for step, lr, weight_decay, momentum in table["rows"]:
        now = Schedule(optim, table["ipe"]).at(step - 1)
        assert (now.lr, now.weight_decay, now.momentum) == pytest.approx((lr, weight_decay, momentum), rel=1e-12)


def test_schedule_of_the_paper_decays_weights_linearly() -> None:
    optim = OPTIM.model_copy(update={"weight_decay_schedule": "linear"})
    assert Schedule(optim, 10).at(24).weight_decay == pytest.approx(0.04 + 0.36 * 25 / 50)


@pytest.mark.parametrize("name", ORACLE["pos_embed"]["tables"])
def test_positions(name: str) -> None:
    width, grid = name.split("_")
    rows, columns = map(int, grid.split("x"))
    stats = ORACLE["pos_embed"]["tables"][name]
    oracle.check(torch.from_numpy(sincos(int(width), (rows, columns))), stats, 1e-12)


def test_parameters_cover_the_released_ones() -> None:
    jepa = oracle.model()
    ours = {name: list(value.shape) for name, value in jepa.state_dict().items() if not name.startswith("target")}
    theirs = {k: v["shape"] for k, v in CASE["parameters"].items() if not k.endswith("pos_embed")}
    assert ours == theirs
    decayed = {n for n, p in jepa.trained_parameters() if p.ndim > 1}
    assert decayed == {k for k, v in CASE["parameters"].items() if v["trainable"] and v["weight_decay"]}
