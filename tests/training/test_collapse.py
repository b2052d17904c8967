"""The collapse doctor against collapses made on purpose, and against runs that are well."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepakit.config.config import method_layer, overrides, resolve
from jepakit.data.sources import ArraySource
from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.training.collapse import COSINE_GAP, FULL, MEDIAN_ROWS, POSITION, RANK, Doctor, diagnose
from jepakit.training.logs import step_row
from jepakit.training.step import Training

TINY = (
    "encoder.width=32 encoder.depth=2 encoder.heads=2 encoder.patch_size=4 predictor.width=32 predictor.depth=1 images.size=24 "
    "masking.min_keep=4 optim.batch_size=32 optim.lr=2e-3 optim.start_lr=1e-3 optim.ema_momentum=.97 "
    "optim.final_ema_momentum=.99 optim.warmup_steps=10 run.threads=1 run.precision=fp32 data=made"
)
VICREG = "regularizer.weight=.04 regularizer.tensor=context_pooled regularizer.sim=0 regularizer.projector=[]"
NO_AVERAGE = "optim.ema_momentum=0 optim.final_ema_momentum=0"
TINY_CONTEXTS = "masking.min_keep=1 masking.target_scale=[.4,.6] masking.context_scale=[.02,.05]"
SETTLED = 60


def blobs(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth coloured fields: a target can be told from its surroundings, and every place is like every other."""
    draw = np.random.default_rng(seed)
    field = torch.from_numpy(draw.normal(size=(n, 3, 3, 3)).astype(np.float32))
    x = F.interpolate(field, (24, 24), mode="bicubic", align_corners=True).permute(0, 2, 3, 1).numpy()
    return (128 + 90 * x).clip(0, 255).astype(np.uint8)


def one_image(n: int) -> NDArray[np.uint8]:
    """The same image with a little noise: only the place of a patch tells what is on it."""
    noise = 3 * np.random.default_rng(1).normal(size=(n, 24, 24, 3))
    return (blobs(1)[0] + noise).clip(0, 255).astype(np.uint8)


class NoStop(JEPA):
    """The target is the encoder itself, and its gradient counts."""

    def encode_target(self, patches: Tensor, masks: Masks, given: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return JEPA.encode_target.__wrapped__(self, patches, masks, given)  # type: ignore[attr-defined,no-any-return]


def trained(method: str, words: str, images: NDArray[np.uint8], steps: int, no_stop: bool = False) -> tuple[set[str], list[Any]]:
    """Kinds of alarms over a run that is logged each 4 steps, and its rows."""
    given = overrides([*TINY.split(), *words.split(), f"optim.steps={steps}"])
    training = Training.prepare(resolve(method_layer(method), given), ArraySource("made", images, None))
    if no_stop:
        training.jepa.__class__, training.jepa.target_encoder = NoStop, training.jepa.encoder
    doctor, rows, kinds = Doctor(True, SETTLED, []), [], set()
    for batch in training.loader(0, steps):
        out, norm = training.train_step(batch, now := training.schedule.at(training.step), check=True)
        training.step += 1
        if training.step % 4 == 0:
            rows.append(step_row(training.step, batch, out, norm, now))
            kinds |= {alarm.kind for alarm in doctor.examine(rows[-1])}
    return kinds, rows


@pytest.mark.parametrize("method", ["ec_c_jepa", pytest.param("c_jepa", marks=pytest.mark.long)])
def test_a_run_that_learns_raises_no_alarm(method: str) -> None:
    kinds, rows = trained(method, VICREG, blobs(256), 240)
    assert not kinds
    assert rows[-1]["effective_rank"] > 1.5 * rows[0]["effective_rank"]
    assert rows[-1]["own_cosine"] - rows[-1]["other_cosine"] > 2 * COSINE_GAP


def test_without_average_and_stop_gradient_targets_become_one_vector_and_the_doctor_says_full() -> None:
    kinds, rows = trained("ijepa", NO_AVERAGE, blobs(256), 120, no_stop=True)
    assert "full" in kinds
    assert rows[-1]["target_std"] < FULL and rows[-1]["loss"] < 0.1 * rows[0]["loss"]  # the loss alone would look fine


def test_plain_i_jepa_on_few_images_loses_directions_and_the_doctor_says_so() -> None:
    kinds, rows = trained("ijepa", "", blobs(256), 120)
    assert "dimensional" in kinds
    assert rows[-1]["effective_rank"] < RANK * rows[0]["effective_rank"]


def test_contexts_too_small_to_tell_anything_leave_position_or_few_directions() -> None:
    kinds, rows = trained("ijepa", TINY_CONTEXTS, blobs(256), 120)
    assert kinds and kinds <= {"positional", "dimensional", "full"}
    assert rows[-1]["context_tokens"] < 3
    assert rows[-1]["own_cosine"] - rows[-1]["other_cosine"] < COSINE_GAP  # what is predicted is the place


@pytest.mark.parametrize("method, words", [("ijepa", ""), ("c_jepa", VICREG)])
def test_images_that_are_all_alike_teach_position_and_the_doctor_says_how_much(method: str, words: str) -> None:
    whole = "images.crop_scale=[1,1] images.crop_aspect=[1,1]"
    kinds, rows = trained(method, f"{words} {whole}", one_image(256), 100)
    assert "positional" in kinds
    assert rows[-1]["position_share"] > 0.95
    (alarm,) = [a for a in diagnose(rows, SETTLED) if a.kind == "positional"]
    assert f"targets are {np.median([row['position_share'] for row in rows[-MEDIAN_ROWS:]]):.0%} position" in alarm.words
    assert "try " in alarm.words


# ---- the rule itself, by hand

WELL = {"target_std": 0.8, "effective_rank": 10.0, "position_share": 0.5, "own_cosine": 0.9, "other_cosine": 0.6}


def rows_of(**changes: float) -> list[dict[str, float]]:
    return [{"step": 10.0, **WELL}] + [{"step": 10.0 * k, **WELL, **changes} for k in range(2, 2 + MEDIAN_ROWS)]


@pytest.mark.parametrize(
    "changes, kinds",
    [
        ({}, []),
        ({"target_std": FULL - 0.01}, ["full"]),
        ({"target_std": FULL + 0.01}, []),
        ({"effective_rank": 10 * RANK - 0.1}, ["dimensional"]),
        ({"effective_rank": 10 * RANK + 0.1}, []),
        ({"target_std": 0.01, "effective_rank": 1.0}, ["full"]),  # one vector has one direction: said once
        ({"position_share": POSITION + 0.01}, ["positional"]),
        ({"position_share": POSITION - 0.01}, []),
        ({"other_cosine": 0.9 - COSINE_GAP / 2}, ["positional"]),
        ({"other_cosine": 0.9 - 2 * COSINE_GAP}, []),
        ({"own_cosine": float("nan"), "position_share": float("nan")}, []),
    ],
)
def test_each_sign_has_its_threshold(changes: dict[str, float], kinds: list[str]) -> None:
    assert [alarm.kind for alarm in diagnose(rows_of(**changes))] == kinds


def test_position_is_no_alarm_before_the_run_has_settled() -> None:
    rows = rows_of(position_share=0.99)
    assert not diagnose(rows, from_step=int(rows[-1]["step"]) + 1) and diagnose(rows, from_step=int(rows[-1]["step"]))


def test_one_strange_batch_is_no_alarm_and_a_kind_is_told_once_also_after_a_resume() -> None:
    doctor = Doctor(True, 0, [])
    odd = {**WELL, "target_std": 0.0}
    assert not any(doctor.examine({"step": k, **(odd if k == 7 else WELL)}) for k in range(1, 20))
    told = [doctor.examine({"step": k, **odd}) for k in range(20, 40)]
    assert [len(alarms) for alarms in told].count(1) == 1 and sum(map(len, told)) == 1
    again = Doctor(True, 0, [{"step": k, **(WELL if k < 20 else odd)} for k in range(1, 40)])
    assert not again.examine({"step": 40, **odd})  # told before the stop


def test_rows_of_an_older_run_that_lack_a_sign_are_no_error() -> None:
    old = [{k: v for k, v in row.items() if "cosine" not in k} for row in rows_of(target_std=0.01)]
    assert [alarm.kind for alarm in diagnose(old)] == ["full"]


def test_pixel_targets_cannot_collapse_so_there_is_nothing_to_say() -> None:
    doctor = Doctor(False, 0, [])
    assert not any(doctor.examine({"step": k, **WELL, "target_std": 0.0}) for k in range(20))
