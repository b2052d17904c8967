"""With a batch passed in parts, what is logged and checked is of the whole batch (that the update is, test_resume.py says)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from jepakit.config.config import method_layer, overrides, resolve
from jepakit.core import distributed
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource
from jepakit.model.jepa import JEPA, Output
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.masking.packed_masks import Masks
from jepakit.training.logs import step_row
from jepakit.training.step import Training

TINY = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=24 "
    "masking.min_keep=2 optim.batch_size=16 optim.lr=3e-3 run.threads=1 run.precision=fp32 optim.steps=9 data=made "
    # blocks of one size, so that the mean of the parts' means is the mean; a large epsilon, so that rounding stays small
    "masking.target_scale=[0.25,0.25] masking.target_aspect=[1,1] optim.eps=0.01"
)


def prepared(method: str, *words: str) -> Training:
    images = np.random.default_rng(0).integers(0, 256, (48, 24, 24, 3), dtype=np.uint8)
    images[:24] //= 3  # halves of an epoch's order that differ
    config = resolve(method_layer(method), overrides([*TINY.split(), *words]))
    return Training.prepare(config, ArraySource("made", images, None))


def rows(method: str, *words: str) -> list[dict[str, float]]:
    training, found = prepared(method, *words), []
    for batch in training.loader(0, 3):
        out, norm = training.train_step(batch, now := training.schedule.at(training.step), check=True, rows=True)
        training.step += 1
        found.append(step_row(training.step, batch, out, norm, now))
    return found


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("method, words", [("ijepa", ()), ("ec_ijepa", ("masking.draws=2",)), ("mae_pixels", ())])
def test_every_logged_value_is_that_of_the_whole_batch(method: str, words: tuple[str, ...], parts: int) -> None:
    whole, split = rows(method, *words), rows(method, *words, f"optim.accumulate={parts}")
    assert {"loss", "loss/prediction", "grad_norm", "target_std", "prediction_std", "effective_rank"} < whole[0].keys()
    for one, other in zip(whole, split, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=2e-4, abs=1e-6, nan_ok=True), name


def test_rows_are_fixed_for_a_part_whether_of_a_process_or_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JEPA, "compile_blocks", lambda self: None)
    fixed = ("ijepa", "run.compile=true", "run.fixed_rows=true")
    whole, half = prepared(*fixed), prepared(*fixed, "optim.accumulate=2")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    of_two = prepared(*fixed).jepa
    for name in ("encoder", "predictor"):
        rows, fewer, all_rows = (getattr(jepa, name).row_multiple for jepa in (of_two, half.jepa, whole.jepa))
        assert rows == fewer < 0.8 * all_rows


def test_where_a_regulariser_sees_a_part_the_logged_terms_are_the_means_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Output] = []
    real = JEPA.forward

    def spying(*args: Any, **kwargs: Any) -> Output:
        seen.append(real(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(JEPA, "forward", spying)
    words = ("optim.accumulate=4", "masking.target_scale=[0.1,0.3]", "regularizer.projector=[]")
    training = prepared("c_jepa", *words)
    batch = training.loader.batch(0)
    out, norm = training.train_step(batch, training.schedule.at(0), check=True)
    row = step_row(1, batch, out, norm, training.schedule.at(0))
    assert len(seen) == 4 and set(out.terms) == {"prediction", "sim", "std", "cov"}
    assert row["loss"] == pytest.approx(np.mean([part.loss.item() for part in seen])) != seen[-1].loss.item()
    for name in out.terms:
        assert row[f"loss/{name}"] == pytest.approx(np.mean([part.terms[name].item() for part in seen]))
    assert row["loss"] == pytest.approx(sum(row[f"loss/{name}"] for name in out.terms))
    everything = torch.cat([part.targets for part in seen])
    assert row["target_std"] == pytest.approx(everything.std(0).mean().item())
    assert row["target_tokens"] == pytest.approx(np.concatenate([masks.target_lengths for masks in batch.masks]).mean())


@pytest.mark.parametrize("which", range(4))
def test_a_loss_that_is_no_number_is_found_in_any_part(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = JEPA.forward, iter(range(100))

    def broken(*args: Any, **kwargs: Any) -> Output:
        out: Output = real(*args, **kwargs)
        return replace(out, loss=out.loss + (float("inf") if next(calls) == which else 0))  # its gradient stays as it was

    monkeypatch.setattr(JEPA, "forward", broken)
    training = prepared("ijepa", "optim.accumulate=4")
    before = {name: value.clone() for name, value in training.jepa.state_dict().items()}
    with pytest.raises(UserError, match="the loss is inf"):
        training.train_step(training.loader.batch(0), training.schedule.at(0), check=True, rows=False)
    assert all(torch.equal(value, before[name]) for name, value in training.jepa.state_dict().items())


def test_a_step_that_is_not_logged_holds_no_row_of_its_parts() -> None:
    training = prepared("ijepa", "optim.accumulate=4")
    batch = training.loader.batch(0)
    out, _ = training.train_step(batch, training.schedule.at(0), check=True, rows=False)
    assert all(x.untyped_storage().nbytes() == 0 for x in (out.predictions, out.targets, out.context, out.features))


@pytest.mark.parametrize("draws", [1, 3])
def test_masks_of_parts_joined_are_those_of_the_batch(draws: int) -> None:
    whole = MultiBlock(min_keep=2, draws=draws).sample((6, 6), np.arange(10), seed=0)
    joined = Masks.joined([whole.of_images(slice(0, 3)), whole.of_images(slice(3, 4)), whole.of_images(slice(4, 10))])
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(joined, name), value, err_msg=name)
