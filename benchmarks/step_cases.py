"""What benchmarks step on: sizes of encoders, batches of emoji with their masks, and an update of ours.

Predictors are half as wide as the encoder and 6 deep, as I-JEPA's for ViT-B.
"""

import math
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from plain import Dense, Plain, PlainStep
from torch import Tensor

from jepakit.config.optim import Optim, Schedule, ScheduleValues, apply_schedule, gradient_norm, optimizer
from jepakit.core.device import autocast
from jepakit.data.sets.emoji import EmojiSource
from jepakit.model.images import IMAGENET, ImageSettings, normalise
from jepakit.model.jepa import JEPA
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import METHODS, Method

OPTIM = Optim(steps=300, warmup_steps=30)
SCHEDULE = Schedule(OPTIM, 1)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """An encoder of I-JEPA's table of sizes, on square images, and how many of them make a batch."""

    size: str
    pixels: int
    patch: int
    batch: int
    predictor_width: int
    min_keep: int = 10
    depth: int = 12
    predictor_depth: int = 6

    @property
    def grid(self) -> tuple[int, int]:
        return self.pixels // self.patch, self.pixels // self.patch

    def method(self, name: str = "ijepa") -> Method:
        encoder = {"size": self.size, "patch_size": self.patch, "depth": self.depth}
        return Method.model_validate(
            {**METHODS[name], "encoder": encoder, "predictor": {"width": self.predictor_width, "depth": self.predictor_depth}}
        )

    def jepa(self, device: torch.device = CPU) -> JEPA:
        torch.manual_seed(0)
        return JEPA(self.method(), self.grid).to(device)

    def plain(self, device: torch.device = CPU, autocast: bool | None = None) -> PlainStep:
        """The plain step, from the same weights."""
        model = Plain(self.method(), self.grid)
        model.load_state_dict(self.jepa().state_dict())
        return PlainStep(model.to(device), autocast)


CASES = {
    "tiny32": Case("tiny", 32, 4, 64, 96, min_keep=4),  # target blocks may have 9 patches there
    "tiny96": Case("tiny", 96, 8, 32, 96),
    "small96": Case("small", 96, 8, 16, 192),
    "base224": Case("base", 224, 16, 4, 384),
}
SMOKE = Case("tiny", 32, 4, 4, 96, min_keep=4, depth=2)


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, H, W), and the same draws of masks in three forms."""

    images: Tensor
    trimmed: Masks
    full: Masks
    dense: Dense


def batch_of(case: Case, step: int, device: torch.device = CPU) -> Batch:
    """Emoji, resized."""
    source, ids = EmojiSource(), np.arange(case.batch) + step * case.batch
    pixels = torch.from_numpy(np.stack([source.raw(int(i) % len(source)) for i in ids])).permute(0, 3, 1, 2)
    images = normalise(F.interpolate(pixels, case.pixels, mode="bilinear"), ImageSettings(mean=IMAGENET[0], std=IMAGENET[1]))
    law = MultiBlock(compat="released", min_keep=case.min_keep)
    trimmed = law.sample(case.grid, ids, seed=0, step=step)
    with mock.patch("jepakit.model.masking.masks_released._trim", lambda grids: grids):
        full = law.sample(case.grid, ids, seed=0, step=step)
    return Batch(images.to(device), trimmed, full, Dense.trimmed(full))


@dataclass(frozen=True)
class OurStep:
    """An update as `Training.train_step` takes it, from normalised images on."""

    jepa: JEPA
    adamw: torch.optim.AdamW
    dtype: torch.dtype

    @classmethod
    def of(cls, case: Case, precision: str, device: torch.device = CPU) -> "OurStep":
        jepa = case.jepa(device)
        return cls(jepa, optimizer(jepa, OPTIM), PRECISIONS[precision])

    def step(self, images: Tensor, masks: Masks, now: ScheduleValues) -> Tensor:
        """The loss of the batch, before the update."""
        apply_schedule(self.adamw, now)
        self.adamw.zero_grad(set_to_none=True)
        with autocast(images.device, self.dtype):
            out = self.jepa(images, masks)
        out.loss.backward()
        norm = gradient_norm(self.jepa, OPTIM.clip_grad)
        loss = out.loss.detach()
        if images.device == CPU:  # on CUDA a run looks at the loss only when it logs
            assert math.isfinite(float(loss) + float(norm))
        self.adamw.step()
        self.jepa.update_target_encoder(now.momentum)
        return loss
