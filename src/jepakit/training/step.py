"""The training step: the loss of a batch, AdamW, the average of the target encoder; and its state, to save and to restore.

All that varies in time is a function of the step, so a checkpoint is weights, optimiser and step.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import Checkpoint
from jepakit.artifacts.load import SNAPSHOT, build_jepa
from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.config.optim import Schedule, ScheduleValues, apply_schedule, gradient_norm, optimizer
from jepakit.config.phases import Phase, kept_at_change, phases, with_pixel_steps
from jepakit.core import distributed, parallel, rng
from jepakit.core.device import autocast, configure_cpu, device_of, precision_of
from jepakit.core.distributed import AgreedError
from jepakit.core.errors import UserError, plain
from jepakit.core.ranks import is_main, rank
from jepakit.data.identity import Identity, require_same
from jepakit.data.loader import Batch, Loader
from jepakit.data.opening import absolute
from jepakit.data.sources import Source
from jepakit.data.training_part import training_part
from jepakit.model.encoder import Encoder
from jepakit.model.images import normalise, turned
from jepakit.model.jepa import JEPA, Output
from jepakit.model.teacher import Teacher
from jepakit.training.trackers import require_trackers

log = logging.getLogger("jepakit")
ROWS_FROM = 64  # batches of masks by which fixed rows are chosen
LAST_IS_GOOD = (
    "the last checkpoint is good. Resume with run.precision=fp32, or start a new run with a lower optim.lr, optim.clip_grad=1 "
    "or more optim.warmup_epochs"
)


def loader_of(config: Config, part: Source, **how: Any) -> Loader:
    """A run's batches of the samples that it is trained on; how: what changes no batch, such as threads and processes."""
    o = config.optim
    return Loader(part, config.images, config.masking, config.grid, o.batch_size, config.seed, micro_batches=o.accumulate, **how)


@dataclass
class Training:
    """A run in memory: model, optimiser, data and schedule, after `step` updates."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    jepa: JEPA
    model: nn.Module  # `jepa`, with its gradients averaged over processes
    adamw: torch.optim.AdamW
    source: Source  # all of it; the loader's is what is trained on
    loader: Loader
    phase: Phase  # the part of the run that `jepa` is of
    steps: int  # of the run
    identity: Identity
    teacher: Teacher | None = None
    step: int = 0

    @property
    def schedule(self) -> Schedule:
        return self.phase.schedule

    @classmethod
    def prepare(cls, config: Config, source: Source, teacher: Encoder | None = None, *, step: int = 0) -> "Training":
        """The start of the phase of a run that has, or makes, a checkpoint of `step`.

        Raises UserError for all that can be wrong, before anything is written.
        """
        config.masking.check(config.grid)
        device = device_of(config.run.device)
        configure_cpu(config.run.threads)
        o = config.optim
        part = training_part(source, config.images)
        steps_per_epoch = len(part) // o.batch_size
        config = with_pixel_steps(config, steps_per_epoch)
        parts = phases(config, steps_per_epoch)
        phase = next(p for p in parts if step <= p.end)
        loader = loader_of(
            phase.config,
            part,
            threads=config.run.loader_threads,
            read_timeout_seconds=config.run.read_timeout_seconds,
            process=rank(),
            processes=distributed.world_size(),
            pin=device.type == "cuda",
        )
        jepa = build_jepa(phase.config).to(device)
        if config.run.recompute:
            jepa.recompute_blocks()
        if config.run.fixed_rows:
            at_a_time = np.arange(o.batch_size // o.accumulate // loader.processes)
            law = partial(config.masking.sample, config.grid, at_a_time, seed=config.seed)
            jepa.fix_rows([law(epoch=i, step=i) for i in range(ROWS_FROM)])
        if config.run.compile:
            jepa.compile_blocks()
        require_trackers(config.run)
        dtype, schedule = precision_of(config.run.precision, device), phase.schedule
        if schedule.warmup >= schedule.steps:
            log.warning("warm-up takes %d of %d steps: the learning rate never reaches optim.lr", schedule.warmup, schedule.steps)
        shown = Teacher(teacher, config.images, config.grid, config.target.layers).to(device) if teacher else None
        adamw, steps, identity = optimizer(jepa, o), parts[-1].end, Identity.of(part)
        return cls(config, device, dtype, jepa, jepa, adamw, source, loader, phase, steps, identity, shown)

    def share(self) -> None:
        """Train the model together with the other processes, if any. Raises AgreedError where devices do not allow it."""
        parallel.require_own_device(self.device)
        moments = self.moments()
        parts = self.jepa.parts_to_shard() if self.config.run.sharding == "full" else ()
        self.model = parallel.over_ranks(self.jepa, parts)
        if parallel.is_sharded(self.jepa):  # its parameters are others now
            self.adamw = optimizer(self.jepa, self.config.optim)
            self.set_moments(moments)

    def whole_jepa(self) -> JEPA:
        """The model with all of its weights in this process; sharded, a copy of rank 0's, elsewhere its empty form."""
        if not parallel.is_sharded(self.jepa):
            return self.jepa
        weights = parallel.whole(self.jepa.state_dict())
        jepa = build_jepa(self.phase.config)
        if is_main():
            jepa.load_state_dict(weights)
        return jepa.to(self.device)

    def next_phase(self) -> "Training":
        """The start of the phase after this one: its encoder, and the target encoder as a copy, are this one's.

        What else is kept, target.kept says; the rest is as at the start of a run.
        """
        after = Training.prepare(self.config, self.source, step=self.step + 1)
        after.step, after.loader.bad = self.step, self.loader.bad_now()
        kept = kept_at_change(self.config)
        weights = parallel.whole(self.jepa.encoder.state_dict())
        after.jepa.encoder.load_state_dict(weights)
        after.jepa.target_encoder.load_state_dict(weights)
        if "predictor" in kept:  # all but its last map, which is to another width
            own = parallel.whole(self.jepa.predictor.state_dict())
            after.jepa.predictor.load_state_dict({n: x for n, x in own.items() if "predictor_proj" not in n}, strict=False)
        if "moments" in kept:
            fresh = "predictor_proj" if "predictor" in kept else "predictor"
            after.set_moments({name: x for name, x in self.moments().items() if fresh not in name})
        return after

    def train_step(
        self, batch: Batch, now: ScheduleValues, *, check: bool, rows: bool = True, counts: list[list[int]] | None = None
    ) -> tuple[Output, Tensor]:
        """One update: theta by AdamW on the loss, then theta_bar <- m theta_bar + (1 - m) theta (I-JEPA, section 3).

        check: raise UserError where the loss or the gradient is not finite; rows: keep predictions, targets
        and features of micro-batches too, for the log; counts: target patches of each micro-batch, by process (else asked
        of all). Returns the whole batch's output, and the gradient's norm.
        """
        apply_schedule(self.adamw, now)
        self.adamw.zero_grad(set_to_none=True)
        if self.config.run.fixed_rows:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs left may be overwritten
        seed = rng.torch_seed(self.config.seed, "directions", batch.step)
        micro_batches, outputs = len(batch.masks), list[Output]()
        counts = counts or distributed.told([len(masks.targets) for masks in batch.masks]).T.tolist()
        for part, (masks, images, *target_images) in enumerate(self._micro_batches(batch)):
            with parallel.synchronised(self.model, part == micro_batches - 1):
                with autocast(self.device, self.dtype):
                    given = self.teacher([images, *target_images][-1]) if self.teacher else None
                    out = self.model(
                        images, masks, *target_images, teacher_features=given, seed=seed, part=part, counts=counts[part]
                    ).weighted(counts[part])
                (out.loss / micro_batches).backward()
            out = out.of_all(counts[part], rows=rows) if rows or check else out
            outputs.append(out.detached(rows=rows) if micro_batches > 1 else out)
        out = Output.joined(outputs) if micro_batches > 1 else out
        norm = gradient_norm(self.jepa, self.config.optim.clip_grad)
        if check:
            self.require_finite(out, norm)
        self.adamw.step()
        self.jepa.update_target_encoder(now.momentum)
        return out, norm

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Any, ...]]:
        """Yields (masks, images[, target_images]) of each micro-batch: normalised (B, C, H, W), on the device."""
        views = [turned(v.to(self.device, non_blocking=True), how) for v, how in zip(batch.views, batch.turns, strict=True)]
        for masks, *shown in zip(batch.masks, *(view.chunk(len(batch.masks)) for view in views), strict=True):
            yield masks, *(normalise(view, self.config.images) for view in shown)

    def agree_on_bad_images(self) -> None:
        """Every process knows all images that could not be read. Raises UserError where they are too many."""
        if distributed.world_size() > 1:
            self.loader.add_bad(distributed.told_objects(self.loader.bad_now()))

    def require_finite(self, out: Output, norm: Tensor) -> None:
        """Raises UserError, with what to do, unless the loss and the gradient's norm are finite."""
        loss = float(out.loss.detach())
        if math.isfinite(loss + float(norm)):
            return
        raise AgreedError(
            f"at step {self.step} the loss is {loss:g} and the gradient's norm {float(norm):g}; nothing of this step was "
            f"kept, {LAST_IS_GOOD}"
        )

    def save(self, run: Run) -> bool:
        """A checkpoint of this step, which rank 0 writes. False, with a warning, if it cannot be written; UserError where weights
        are not finite."""
        weights, moments = parallel.whole(self.jepa.state_dict()), parallel.whole(self.moments())
        tensors, keep = {"model": weights, **({"optimizer": moments} if moments else {})}, self.config.run.keep_checkpoints
        return self._written(tensors, lambda found: checkpoint.save(run.checkpoints, self.step, found, keep))

    def save_snapshot(self, run: Run) -> bool:
        """The encoder of this step alone, the one that is judged, which stays (run.keep_every_steps). Else as `save`."""
        tensors = {SNAPSHOT: parallel.whole(self.jepa.to_use.state_dict())}
        return self._written(tensors, lambda found: checkpoint.save_snapshot(run.snapshots, self.step, found))

    def _written(self, tensors: dict[str, dict[str, Tensor]], write: Callable[[Checkpoint], bool]) -> bool:
        """Have rank 0 write these, with what is to be known of the step. Raises UserError where they are not finite."""
        state = {
            "step": self.step,
            "finished": self.step == self.steps,
            "images": len(self.loader.source),
            "names": self.identity.names,
            "content": self.identity.content,
            "bad": {str(k): v for k, v in self.loader.bad_now().items()},
            "torch": torch.__version__,
            "config": self.config.model_dump(mode="json"),
            **({"teacher": self.teacher.digest} if self.teacher else {}),
        }

        def checked() -> bool:
            if bad := checkpoint.not_finite(tensors):
                raise UserError(f"at step {self.step} {bad} is not finite: the step is not saved, {LAST_IS_GOOD}")
            return write(Checkpoint(tensors, state))

        return distributed.from_main(checked)

    def restore(self, found: Checkpoint) -> None:
        """Take up a checkpoint. Raises UserError if the data are others."""
        source = self.loader.source
        if found.state["images"] != len(source):
            raise UserError(
                f"the run saw {found.state['images']} images and in {plain(source.name)} now there are {len(source)}: bring back "
                f"the same images, say with --data where they are, or start a new run"
            )
        own = absolute(found.state["config"].get("data") or "")
        before, moved_from = Identity.from_state(found.state), None if own == self.config.data else own
        require_same(before, self.identity, plain(source.name), moved_from)
        if self.teacher and self.teacher.digest != found.state.get("teacher"):
            raise UserError(
                "target.teacher holds other weights than when the run began: where those are now, say with --resume RUN "
                "target.teacher=PATH (PATH@STEP of a run that went on)"
            )
        self.jepa.load_state_dict(found.tensors["model"])
        self.set_moments(found.tensors.get("optimizer", {}))
        self.loader.bad = {int(k): v for k, v in found.state["bad"].items()}
        self.loader.look_again()
        self.step = int(found.state["step"])

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state by the names of the parameters: NAME.step, NAME.exp_avg, NAME.exp_avg_sq."""
        names: dict[Tensor, str] = {p: name for name, p in self.jepa.trained_parameters()}
        return {f"{names[p]}.{key}": value for p, state in self.adamw.state.items() for key, value in state.items()}

    def set_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take up what `moments` gave; parameters that it does not name have none."""
        for name, p in self.jepa.trained_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
            if keys:
                self.adamw.state[p] = {key: parallel.part_like(moments[f"{name}.{key}"], p) for key in keys}
