"""Pretraining: the step, the loop around it, and the way back after a stop.

All that varies is a function of the step, so a checkpoint is weights, optimiser and step.
"""

import logging
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import Checkpoint
from jepakit.artifacts.hf import save_model
from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.run import Run
from jepakit.config.choice import Choice, resolve_with_data
from jepakit.config.config import Config, grouped, layer_from, merge, method_layer, overrides, read_yaml, resolve
from jepakit.config.optim import Now, Schedule, gradient_norm, optimizer, set_now
from jepakit.core import rng
from jepakit.core.device import device_of, lowered, precision_of, use_cpu
from jepakit.core.errors import UserError, checked, plain
from jepakit.core.files import local
from jepakit.core.signals import signals
from jepakit.data.findings import Tally
from jepakit.data.identity import Identity, require_same
from jepakit.data.loader import Batch, Loader
from jepakit.data.opening import absolute, named, open_source
from jepakit.data.sources import Source
from jepakit.data.statistics import fitted, measured_instead
from jepakit.data.threads import StoppedError
from jepakit.data.training_part import split_sentences, training_part
from jepakit.model.images import mirrored, normalise
from jepakit.model.jepa import JEPA, Output
from jepakit.training.logs import summary_writer
from jepakit.training.online import Online
from jepakit.training.watch import Watch, watch

log = logging.getLogger("jepakit")
ROWS_FROM = 64  # batches of masks by which fixed rows are chosen
LAST_IS_GOOD = (
    "the last checkpoint is good. Resume with run.precision=fp32, or start a new run with a lower optim.lr, optim.clip_grad=1 "
    "or more optim.warmup_epochs"
)


@checked
def pretrain(
    data: str | Path | None = None,
    out: str | Path | None = None,
    recipe: str | None = None,
    method: str | None = None,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    resume: Run | str | Path | None = None,
    overwrite: bool = False,
    set: Sequence[str] | str | None = None,
    **groups: Any,
) -> Run:
    """Pretrain an encoder; all settings as on the command line.

    data: a folder of images, or 'emoji'; out: the run's folder; recipe, method: names; config: a YAML file, or its content;
    with neither recipe nor config, settings that suit the images are chosen; resume: a run to go on with instead (then only
    `run` settings may differ, and data, where the same images lie elsewhere now); set: 'group.key=value' words; groups:
    settings as keywords, such as optim={"lr": 1e-3}, seed=1.
    Raises UserError for anything the user can mend. Returns the run, finished or, after SIGINT or SIGTERM, saved.
    """
    given = merge(overrides(set), grouped(groups, "settings"))
    if resume is not None:
        if any((out, recipe, method, config)):
            raise UserError("--resume goes on with the run's own settings: leave out out, recipe, method and config")
        return _resume(Run.open(resume), given if data is None else {**given, "data": named(data)})
    if out is None:
        raise UserError("where shall the run go? give --out RUN (a new folder), or --resume RUN")
    Run.new(out, overwrite=overwrite)  # says what is wrong with the place before any work is done
    chosen, source, choice = _chosen(data, recipe, method, config, given)
    threads, seconds = chosen.run.loader_threads, chosen.run.read_timeout_seconds
    part, given_images, tally = training_part(source, chosen.images), chosen.images, Tally()
    images = fitted(given_images, part, threads=threads, seconds=seconds, tally=tally)
    chosen = chosen.model_copy(update={"images": images})
    training = Training.prepare(chosen, source)
    run = Run.create(out, chosen, overwrite=overwrite)
    with run.lock(), run.logged():
        choice.say(log)
        o, name = chosen.optim, chosen.method or "a method of your own"
        log.info(
            "%s on %s: %d images, %d steps of %d",
            name,
            plain(source.name),
            len(part),
            training.schedule.steps,
            o.batch_size,
        )
        said, *warnings = split_sentences(source, chosen.images)
        log.info("%s", said)
        told = (*measured_instead(given_images, images), *tally.notes(part, len(part)))
        for warning in (*warnings, *source.notes, *told):
            log.warning("%s", plain(warning))
        if not training.save(run):  # so that there is always something to go on from
            raise UserError(f"no checkpoint can be written to {run.path} (run.log says why): make room, start with --overwrite")
        return training.go(run)


def _chosen(
    data: str | Path | None,
    recipe: str | None,
    method: str | None,
    config: str | Path | Mapping[str, Any] | None,
    given: dict[str, Any],
) -> tuple[Config, Source, Choice]:
    """The settings of a new run: recipe, then method, then the file, then the command line's words; and its images."""
    file = layer_from(config, "config") if isinstance(config, Mapping) else read_yaml(local(config, "config")) if config else {}
    asked_recipe, asked_method = given.pop("recipe", None), given.pop("method", None)
    recipe, method = recipe or asked_recipe, method or asked_method
    if recipe and file.get("recipe") not in (None, recipe):
        raise UserError(f"the config holds recipe {file['recipe']}, not {recipe}: leave out --recipe, or 'recipe' in the file")
    layers = [file, method_layer(method) if method else {}, given, {} if data is None else {"data": named(data)}]
    return resolve_with_data(recipe or file.get("recipe") or ("small" if config else None), file.get("method"), *layers)


def _resume(run: Run, changes: Mapping[str, Any]) -> Run:
    fixed = [key for key in changes if key not in ("run", "data") and not (key == "images" and set(changes[key]) == {"max_bad"})]
    if fixed:
        length = fixed[0] == "optim" and {"epochs", "steps"} & {*changes["optim"]}
        why = (
            ": its length is fixed from the start, as the schedules run to its end; another length is a new run" if length else ""
        )
        raise UserError(
            f"--resume goes on with the run's own settings; only run.* and images.max_bad may change, and data where the "
            f"images have moved, not {fixed[0]}{why}"
        )
    with run.lock(), run.logged():
        found, edited = checkpoint.load_newest(run.checkpoints, finite=True), run.config
        again = f"; where they have moved, --resume {quote(str(run.path))} --data NEW goes on"
        own = resolve(found.state["config"], where=str(run.checkpoints))  # verified, unlike config.yaml
        if with_free_settings(own, edited) != edited:
            log.warning("%s was edited since the run began: going on with the run's own settings", run.path / "config.yaml")
        config = resolve(with_free_settings(own, edited).model_dump(), changes)
        if not config.data:
            raise UserError("which images? give --data, where those lie that the run began with")
        config = config.model_copy(update={"data": absolute(config.data)})
        training = Training.prepare(config, _open_images(config, "" if "data" in changes else again))
        training.restore(found)
        if with_free_settings(edited, config) != edited:
            run.rewrite(with_free_settings(edited, config))
        checkpoint.set_aside(run.checkpoints, training.step)
        run.rewind(training.step)
        log.info("resumed at step %d of %d", training.step, training.schedule.steps)
        return training.go(run)


def with_free_settings(config: Config, other: Config) -> Config:
    """A config with another's values of what may change when a run goes on: how it runs, and where its images are."""
    images = config.images.model_copy(update={"max_bad": other.images.max_bad})
    return config.model_copy(update={"run": other.run, "data": other.data, "images": images})


def _open_images(config: Config, hint: str) -> Source:
    """A run's images. Raises UserError, with a hint, where they cannot be had."""
    try:
        return open_source(str(config.data), most_pixels=config.images.max_pixels)
    except UserError as error:
        raise UserError(f"{error}{hint}") from None


@dataclass
class Training:
    """What a run holds in memory. `step` updates are done."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    jepa: JEPA
    adamw: torch.optim.AdamW
    source: Source  # all of it; the loader's is what is trained on
    loader: Loader
    schedule: Schedule
    identity: Identity
    step: int = 0
    stop: Event = field(default_factory=Event)  # set when a signal asks for an end

    @classmethod
    def prepare(cls, config: Config, source: Source) -> "Training":
        """Everything that can be wrong is found here, before anything is written."""
        config.masking.check(config.grid)
        device = device_of(config.run.device)
        use_cpu(config.run.threads)
        o = config.optim
        part = training_part(source, config.images)
        loader = Loader(
            part,
            config.images,
            config.masking,
            config.grid,
            o.batch_size,
            config.seed,
            micro_batches=o.accumulate,
            threads=config.run.loader_threads,
            read_timeout_seconds=config.run.read_timeout_seconds,
            pin=device.type == "cuda",
        )
        jepa = build_jepa(config).to(device)
        if config.run.recompute:
            jepa.recompute_blocks()
        if config.run.fixed_rows:
            at_a_time = np.arange(o.batch_size // o.accumulate)
            law = partial(config.masking.sample, config.grid, at_a_time, seed=config.seed)
            jepa.fix_rows([law(epoch=i, step=i) for i in range(ROWS_FROM)])
        if config.run.compile:
            jepa.compile_blocks()
        if config.run.tensorboard:
            summary_writer()
        dtype, schedule = precision_of(config.run.precision, device), Schedule(o, loader.steps_per_epoch)
        if schedule.warmup >= schedule.steps:
            log.warning("warm-up takes %d of %d steps: the learning rate never reaches optim.lr", schedule.warmup, schedule.steps)
        return cls(config, device, dtype, jepa, optimizer(jepa, o), source, loader, schedule, Identity.of(part))

    def go(self, run: Run) -> Run:
        """Train to the end, or to a signal; leaves a checkpoint and the model either way."""
        total, settings_, warmup = self.schedule.steps, self.config.run, self.schedule.warmup
        saved, again = True, f"jepakit pretrain --resume {quote(str(run.path))}"
        watched = self._watched(run, total, warmup)
        with signals(self._ask_to_stop), watched as watching, closing(self._batches(run)) as batches:
            if watching.fresh and not self.stop.is_set():
                watching.start(self.jepa if not self.step else build_jepa(self.config).to(self.device), self.dtype)
            for batch in () if self.stop.is_set() else batches:
                done = self.step + 1
                log_now = done % settings_.log_every_steps == 0 or done == total
                save_now = done % settings_.save_every_steps == 0 or done == total
                now = self.schedule.at(self.step)
                check = log_now or save_now or self.device.type == "cpu"  # a look at the loss makes CUDA wait
                out, norm = self.train_step(batch, now, check=check, rows=log_now)
                self.step = done
                if log_now:
                    watching.log(done, batch, out, norm, now, self.jepa, self.dtype)
                if save_now or self.stop.is_set():
                    self._require_finite(out, norm)
                    saved = self.save(run)
                if self.stop.is_set():
                    break
            if self.stop.is_set() and saved:
                log.info("stopped at step %d of %d; go on with: %s", self.step, total, again)
        if not saved:
            raise UserError(f"step {self.step} could not be saved (run.log says why): make room, then go on with: {again}")
        try:
            save_model(self.jepa, self.config.images, run.path / "model")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{run.path / 'model'} cannot be written ({error}): make room, then: {again}") from None
        if self.step == total:
            log.info("finished: %d steps; %d bad images", total, len(self.loader.bad))
        return run

    @contextmanager
    def _watched(self, run: Run, total: int, warmup: int) -> Iterator[Watch]:
        online = None
        with suppress(StoppedError):
            online = Online.prepare(self.config, self.source, self.loader.steps_per_epoch, self.stop)
        with watch(run, self.config, online, total, warmup, self.step) as watching:
            yield watching

    def train_step(self, batch: Batch, now: Now, *, check: bool, rows: bool = True) -> tuple[Output, Tensor]:
        """One update: forward, backward, AdamW, average of the target encoder. Gives the batch's output and gradient's norm.

        rows: where a batch comes in parts, hold the predictions, targets and features of all; else its loss and terms alone.
        """
        set_now(self.adamw, now)
        self.adamw.zero_grad(set_to_none=True)
        if self.config.run.fixed_rows:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs left may be overwritten
        micro_batches, outputs = len(batch.masks), list[Output]()
        views = [mirrored(v.to(self.device, non_blocking=True), m) for v, m in zip(batch.views, batch.mirrored, strict=True)]
        for masks, *shown in zip(batch.masks, *(view.chunk(micro_batches) for view in views), strict=True):
            images, *of_target = (normalise(view, self.config.images) for view in shown)
            with lowered(self.device, self.dtype):
                out = self.jepa(images, masks, *of_target, seed=rng.torch_seed(self.config.seed, "directions", batch.step))
            (out.loss / micro_batches).backward()
            outputs.append(out.detached(rows=rows) if micro_batches > 1 else out)
        out = Output.joined(outputs) if micro_batches > 1 else out
        norm = gradient_norm(self.jepa, self.config.optim.clip_grad)
        if check:
            self._require_finite(out, norm)
        self.adamw.step()
        self.jepa.update_target_encoder(now.momentum)
        return out, norm

    def _ask_to_stop(self, by: str) -> None:
        self.stop.set()
        log.warning("%s: saving after this step", by)

    def _batches(self, run: Run) -> Generator[Batch]:
        """The batches still to come. Where they cannot be made (too many bad images, no answer), what was learnt is saved."""
        try:
            yield from self.loader(self.step, self.schedule.steps)
        except UserError:
            try:
                if self.save(run):
                    log.info("saved at step %d; to go on: jepakit pretrain --resume %s", self.step, quote(str(run.path)))
            except UserError as error:  # what was learnt is no use; the first error is raised all the same
                log.warning("%s", error)
            raise

    def _require_finite(self, out: Output, norm: Tensor) -> None:
        loss = float(out.loss.detach())
        if math.isfinite(loss + float(norm)):
            return
        raise UserError(
            f"at step {self.step} the loss is {loss:g} and the gradient's norm {float(norm):g}; nothing of this step was "
            f"kept, {LAST_IS_GOOD}"
        )

    def save(self, run: Run) -> bool:
        """A checkpoint of this step. False, with a warning, if it cannot be written; UserError where weights are not finite."""
        names: dict[Tensor, str] = {p: name for name, p in self.jepa.trained_parameters()}
        moments = {f"{names[p]}.{key}": value for p, state in self.adamw.state.items() for key, value in state.items()}
        state = {
            "step": self.step,
            "finished": self.step == self.schedule.steps,
            "images": len(self.loader.source),
            "names": self.identity.names,
            "content": self.identity.content,
            "bad": {str(k): v for k, v in self.loader.bad_now().items()},
            "torch": torch.__version__,
            "config": self.config.model_dump(mode="json"),
        }
        tensors = {"model": self.jepa.state_dict(), **({"optimizer": moments} if moments else {})}
        if bad := checkpoint.not_finite(tensors):
            raise UserError(f"at step {self.step} {bad} is not finite: the step is not saved, {LAST_IS_GOOD}")
        return checkpoint.save(run.checkpoints, self.step, Checkpoint(tensors, state), self.config.run.keep_checkpoints)

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
        self.jepa.load_state_dict(found.tensors["model"])
        moments = found.tensors.get("optimizer", {})
        for name, p in self.jepa.trained_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
            if keys:
                self.adamw.state[p] = {key: moments[f"{name}.{key}"].to(p.device) for key in keys}
        self.loader.bad = {int(k): v for k, v in found.state["bad"].items()}
        self.loader.look_again()
        self.step = int(found.state["step"])
