"""Pretraining: the step, the loop around it, and the way back after a stop.

All that varies is a function of the step, so a checkpoint is weights, optimiser and step.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from jepakit import checkpoint
from jepakit.checkpoint import Checkpoint
from jepakit.config import Config, merge, method_layer, overrides, read_yaml, resolve
from jepakit.data.crops import normalise
from jepakit.data.loader import Batch, Loader
from jepakit.data.sources import Source, open_source
from jepakit.device import device_of, precision_of, use_threads
from jepakit.errors import UserError
from jepakit.metrics import position_share, rankme
from jepakit.model import JEPA, Output
from jepakit.optim import Now, Schedule, gradient_norm, optimizer, set_now
from jepakit.progress import progress
from jepakit.recipes import settings
from jepakit.run import Run
from jepakit.weights import jepa_of, save_model

log = logging.getLogger("jepakit")


def pretrain(
    data: str | None = None,
    out: str | Path | None = None,
    recipe: str | None = None,
    method: str | None = None,
    *,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    set: list[str] | None = None,
    **groups: Any,
) -> Run:
    """Pretrain an encoder; all settings as on the command line.

    data: a folder of images, or 'emoji'; out: the run's folder; recipe, method: names; config: a YAML file;
    resume: a run to go on with instead (then only `run` settings may differ); set: 'group.key=value' words;
    groups: settings as keywords, such as optim={"lr": 1e-3}, seed=1.
    Raises UserError for anything the user can mend. Returns the run, finished or, after SIGINT or SIGTERM, saved.
    """
    given = merge(overrides(set or []), groups)
    if resume is not None:
        if any((data, out, recipe, method, config)):
            raise UserError(
                "--resume goes on with the run's own data and settings: leave out data, out, recipe, method and config"
            )
        return _resume(Run.open(resume), given)
    if out is None:
        raise UserError("where shall the run go? give --out RUN (a new folder), or --resume RUN")
    named = read_yaml(Path(config)) if config else {}
    asked_recipe, asked_method = given.pop("recipe", None), given.pop("method", None)
    recipe, method = recipe or asked_recipe, method or asked_method
    if recipe and named.get("recipe") not in (None, recipe):
        raise UserError(f"{config} holds recipe {named['recipe']}, not {recipe}: leave out --recipe, or 'recipe' in the file")
    over = [method_layer(method) if method else {}, given, {"data": data} if data else {}]  # the command line over the file
    chosen = settings(recipe or named.get("recipe"), named.get("method"), named, *over)
    training = Training.prepare(chosen, open_source(chosen.data))
    run = Run.create(out, chosen, overwrite=overwrite)
    with run.lock(), run.logged():
        log.info(
            "%s on %s: %d images, %d steps of %d",
            chosen.method,
            chosen.data,
            len(training.loader.source),
            training.schedule.steps,
            chosen.optim.batch_size,
        )
        if not training.save(run):  # so that there is always something to go on from
            raise UserError(f"no checkpoint can be written to {run.path} (run.log says why): make room, start with --overwrite")
        return training.go(run)


def _resume(run: Run, changes: Mapping[str, Any]) -> Run:
    fixed = sorted(set(changes) - {"run"})
    if fixed:
        raise UserError(f"--resume goes on with the run's own settings; only run.* may change, not {fixed[0]}")
    with run.lock(), run.logged():
        found = checkpoint.load_newest(run.checkpoints)
        config = resolve(found.state["config"], changes, where=str(run.checkpoints))  # verified, unlike config.yaml
        if config.model_copy(update={"run": run.config.run}) != run.config:
            log.warning("%s was edited since the run began: going on with the run's own settings", run.path / "config.yaml")
        training = Training.prepare(config, open_source(config.data))
        training.restore(found)
        run.rewind(training.step)
        log.info("resumed at step %d of %d", training.step, training.schedule.steps)
        return training.go(run)


@dataclass
class Training:
    """What a run holds in memory. `step` updates are done."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    jepa: JEPA
    adamw: torch.optim.AdamW
    loader: Loader
    schedule: Schedule
    step: int = 0
    stop: bool = field(default=False)

    @classmethod
    def prepare(cls, config: Config, source: Source) -> "Training":
        """Everything that can be wrong is found here, before anything is written."""
        config.masking.check(config.grid)
        device = device_of(config.run.device)
        use_threads(config.run.threads)
        o = config.optim
        loader = Loader(
            source,
            config.images,
            config.masking,
            config.grid,
            o.batch_size,
            config.seed,
            o.accumulate,
            config.run.loader_threads,
        )
        jepa = jepa_of(config).to(device)
        if config.run.compile:
            for block in (*jepa.encoder.blocks, *jepa.target_encoder.blocks, *jepa.predictor.predictor_blocks):
                block.compile(dynamic=True)
        if config.run.tensorboard:
            _summary_writer()
        dtype = precision_of(config.run.precision, device)
        return cls(config, device, dtype, jepa, optimizer(jepa, o), loader, Schedule(o, loader.steps_per_epoch))

    def go(self, run: Run) -> Run:
        """Train to the end, or to a signal; leaves a checkpoint and the model either way."""
        total, settings_ = self.schedule.steps, self.config.run
        started = last = time.monotonic()
        logged, saved, again = self.step, True, f"jepakit pretrain --resume {quote(str(run.path))}"
        with (
            _signals(self),
            _metrics_writer(run, self.config) as write,
            progress("pretrain", total, self.step) as report,
        ):
            for batch in self.loader(self.step, total):
                done = self.step + 1
                log_now = done % settings_.log_every_steps == 0 or done == total
                save_now = done % settings_.save_every_steps == 0 or done == total
                now = self.schedule.at(self.step)
                out, norm = self.train_step(batch, now, check=log_now or save_now or self.device.type == "cpu")
                self.step = done
                if log_now:
                    moment = time.monotonic()
                    rate = (done - logged) * self.config.optim.batch_size / (moment - last)
                    last, logged = moment, done
                    row = _row(self.step, batch, out, norm, now)
                    write(row | {"images_per_second": rate, "seconds": moment - started})
                    report(done, f"loss {row['loss']:.4f}  {rate:.0f} images/s")
                if save_now or self.stop:
                    saved = self.save(run)
                if self.stop and saved:
                    log.info("stopped at step %d of %d; go on with: %s", self.step, total, again)
                if self.stop:
                    break
        if not saved:
            raise UserError(f"step {self.step} could not be saved (run.log says why): make room, then go on with: {again}")
        try:
            save_model(self.jepa, self.config.images, run.path / "model")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{run.path / 'model'} cannot be written ({error}): make room, then: {again}") from None
        if self.step == total:
            log.info("finished: %d steps; %d bad images", total, len(self.loader.bad))
        return run

    def train_step(self, batch: Batch, now: Now, *, check: bool) -> tuple[Output, Tensor]:
        """One update: forward, backward, AdamW, average of the target encoder. The output is that of the last part."""
        set_now(self.adamw, now)
        self.adamw.zero_grad(set_to_none=True)
        parts = len(batch.masks)
        for images, masks in zip(batch.images.chunk(parts), batch.masks, strict=True):
            pixels = normalise(images.to(self.device, non_blocking=True), self.config.images)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                out = self.jepa(pixels, masks)
            (out.loss / parts).backward()
        norm = gradient_norm(self.jepa, self.config.optim.clip_grad)
        if check and not math.isfinite(float(out.loss.detach() + norm)):
            self._not_finite(float(out.loss.detach()), float(norm))
        self.adamw.step()
        self.jepa.update_target_encoder(now.momentum)
        return out, norm

    def _not_finite(self, loss: float, norm: float) -> None:
        raise UserError(
            f"at step {self.step} the loss is {loss:g} and the gradient's norm {norm:g}; nothing of this step was kept, the last "
            f"checkpoint is good. Try a lower optim.lr, optim.clip_grad=1, more optim.warmup_epochs, or run.precision=fp32"
        )

    def save(self, run: Run) -> bool:
        """A checkpoint of this step. False, with a warning, if it cannot be written."""
        names: dict[Tensor, str] = {p: name for name, p in self.jepa.trained_parameters()}
        moments = {f"{names[p]}.{key}": value for p, state in self.adamw.state.items() for key, value in state.items()}
        state = {
            "step": self.step,
            "finished": self.step == self.schedule.steps,
            "images": len(self.loader.source),
            "bad": {str(k): v for k, v in self.loader.bad.items()},
            "torch": torch.__version__,
            "config": self.config.model_dump(mode="json"),
        }
        tensors = {"model": self.jepa.state_dict(), **({"optimizer": moments} if moments else {})}
        return checkpoint.save(run.checkpoints, self.step, Checkpoint(tensors, state), self.config.run.keep_checkpoints)

    def restore(self, found: Checkpoint) -> None:
        """Take up a checkpoint. Raises UserError if the data are others."""
        if found.state["images"] != len(self.loader.source):
            raise UserError(
                f"the run saw {found.state['images']} images in {self.config.data}, now there are {len(self.loader.source)}: "
                f"bring back the same images, or start a new run"
            )
        self.jepa.load_state_dict(found.tensors["model"])
        moments = found.tensors.get("optimizer", {})
        for name, p in self.jepa.trained_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
            if keys:
                self.adamw.state[p] = {key: moments[f"{name}.{key}"].to(p.device) for key in keys}
        self.loader.bad = {int(k): v for k, v in found.state["bad"].items()}
        self.step = int(found.state["step"])


def _row(step: int, batch: Batch, out: Output, norm: Tensor, now: Now) -> dict[str, float]:
    """What a logged step says. Standard deviations are over the batch's tokens, the mean over features."""
    masks = batch.masks[-1]
    return {
        "step": step,
        "epoch": batch.epoch,
        "loss": float(out.loss.detach()),
        **{f"loss/{name}": float(term.detach()) for name, term in out.terms.items()},
        "lr": now.lr,
        "weight_decay": now.weight_decay,
        "momentum": now.momentum,
        "grad_norm": float(norm),
        "target_std": float(out.targets.float().std(0).mean()),
        "prediction_std": float(out.predictions.detach().float().std(0).mean()),
        "effective_rank": rankme(out.features),
        "position_share": position_share(out.targets, masks.targets),
        "context_tokens": float(masks.context_lengths.mean()),
        "target_tokens": float(masks.target_lengths.mean()),
    }


@contextmanager
def _metrics_writer(run: Run, config: Config) -> Iterator[Any]:
    """A function that appends a row to metrics.jsonl, and to tensorboard/ if asked for."""
    board: Any = _summary_writer()(str(run.path / "tensorboard")) if config.run.tensorboard else None

    def write(row: dict[str, float]) -> None:
        try:
            with (run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a full disk: the run is worth more than a line
            log.warning("metrics of step %d NOT written: %s", row["step"], error)
        for name, value in row.items() if board else ():
            board.add_scalar(name, value, int(row["step"]))

    yield write
    if board:
        board.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("run.tensorboard needs an extra: pip install 'jepakit[tensorboard]'") from None
    return SummaryWriter


@contextmanager
def _signals(training: Training) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop after the step; a second one stops at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if training.stop:
            raise KeyboardInterrupt
        training.stop = True
        log.warning("%s: saving after this step", signal.Signals(number).name)

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
