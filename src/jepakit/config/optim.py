"""AdamW and the schedules of I-JEPA (section A.1; the released code), as functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from jepakit.core.settings import Settings
from jepakit.core.torch_private import AdamW


class Optim(Settings):
    """Optimiser and schedules. Values at a step are linear in warm-up, then cosine; momentum is linear."""

    epochs: float = Field(100, gt=0, description="passes over the data")
    steps: int | None = Field(None, ge=1, description="updates; takes the place of epochs")
    batch_size: int = Field(64, ge=2, description="images an update (global)")
    accumulate: int = Field(
        1, ge=1, description="micro-batches per update, passed one after the other; the loss is the mean of theirs"
    )
    lr: float = Field(1e-3, gt=0, description="learning rate after warm-up")
    start_lr: float = Field(2e-4, ge=0, description="learning rate at the first step")
    final_lr: float = Field(1e-6, ge=0, description="learning rate at the last step")
    warmup_epochs: float = Field(10, ge=0, description="passes over which the learning rate rises")
    warmup_steps: int | None = Field(None, ge=0, description="the same in updates; takes the place of warmup_epochs")
    weight_decay: float = Field(0.04, ge=0, description="weight decay at the first step")
    final_weight_decay: float = Field(0.4, ge=0, description="weight decay at the last step")
    weight_decay_schedule: Literal["cosine", "linear"] = Field("cosine", description="released code: cosine; paper: linear")
    ema_momentum: float = Field(0.996, ge=0, le=1, description="of the target encoder's average at the first step")
    final_ema_momentum: float = Field(1.0, ge=0, le=1, description="the same at the last step")
    schedule_scale: float = Field(1.0, ge=1, description="schedules stretched beyond the run by this factor (ipe_scale)")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient; none: no clipping")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second decay")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")

    @model_validator(mode="after")
    def _divides(self) -> "Optim":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


@dataclass(frozen=True)
class ScheduleValues:
    """What varies with time, at one step."""

    lr: float
    weight_decay: float
    momentum: float


@dataclass(frozen=True)
class Schedule:
    """Values at each of `steps` updates, at `steps_per_epoch` to a pass; start: the run's step at which they begin."""

    optim: Optim
    steps_per_epoch: int
    start: int = 0

    @property
    def steps(self) -> int:
        """Updates that it is for."""
        return self.optim.steps or max(1, round(self.optim.epochs * self.steps_per_epoch))

    @property
    def warmup(self) -> int:
        """Updates over which the learning rate rises."""
        given = self.optim.warmup_steps
        return int(self.optim.warmup_epochs * self.steps_per_epoch) if given is None else given

    def at(self, step: int) -> ScheduleValues:
        """Values for the run's update number `step`, counted from 0."""
        step -= self.start
        o, stretched = self.optim, self.optim.schedule_scale * self.steps
        total = int(stretched)  # the released code rounds for lr and weight decay, not for the momentum
        warmup = self.warmup
        s = step + 1  # the released lr and weight decay count from 1, the momentum from 0
        if s < warmup:
            lr = o.start_lr + s / warmup * (o.lr - o.start_lr)
        else:
            lr = max(o.final_lr, o.final_lr + (o.lr - o.final_lr) * _cosine((s - warmup) / max(1, total - warmup)))
        share = 1 - _cosine(s / total) if o.weight_decay_schedule == "cosine" else s / total
        weight_decay = o.weight_decay + (o.final_weight_decay - o.weight_decay) * share
        return ScheduleValues(lr, weight_decay, o.ema_momentum + step / stretched * (o.final_ema_momentum - o.ema_momentum))


def _cosine(progress: float) -> float:
    """From 1 to 0 over progress 0..1, flat after."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW on what is trained, in two groups: matrices and the mask token decay, vectors do not (released code).

    Nor do learnt positions, which are vectors of places (timm, DINO).
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decays = {name: p.ndim > 1 and not name.endswith("positions") for name, p in trained.items()}
    decayed = [p for name, p in trained.items() if decays[name]]
    others = [p for name, p in trained.items() if not decays[name]]
    groups = [{"params": decayed, "decays": True}, {"params": others, "decays": False}]
    return AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def apply_schedule(adamw: torch.optim.AdamW, now: ScheduleValues) -> None:
    """Write the values of this step into the optimiser."""
    for group in adamw.param_groups:
        group["lr"], group["weight_decay"] = now.lr, now.weight_decay if group["decays"] else 0.0


def gradient_norm(model: nn.Module, clip: float | None) -> torch.Tensor:
    """Norm of all gradients, which are scaled down to `clip` where it is larger."""
    return nn.utils.clip_grad_norm_(model.parameters(), float("inf") if clip is None else clip)
