"""The loop of a run's steps, to the end or to a signal."""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from shlex import quote
from threading import Event

from safetensors import SafetensorError

from jepakit.artifacts.hf import save_model
from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.run import Run
from jepakit.config.phases import kept_at_change
from jepakit.core import distributed, parallel
from jepakit.core.distributed import AgreedError
from jepakit.core.errors import UserError
from jepakit.core.ranks import is_main
from jepakit.core.signals import signals
from jepakit.data.loader import Batch
from jepakit.data.threads import StoppedError
from jepakit.model.jepa import JEPA
from jepakit.training.hooks import Hooks
from jepakit.training.online_probe import OnlineProbe
from jepakit.training.step import Training
from jepakit.training.watch import watch

log = logging.getLogger("jepakit")
CHANGE = "step %d: features are predicted from here on, not pixels; kept: the encoder's weights%s"


@dataclass
class _Stop:
    """Whether this process was asked to stop, and whether all know of it: they stop after the same step."""

    asked: Event = field(default_factory=Event)
    agreed: bool = False

    def is_set(self) -> bool:
        return self.agreed or (distributed.world_size() == 1 and self.asked.is_set())


def train(training: Training, run: Run, hooks: Hooks) -> Run:
    """Train to the end, or to a signal; leaves a checkpoint and the model either way. Raises UserError, LostRankError."""
    stop, again = _Stop(), f"jepakit pretrain --resume {quote(str(run.path))}"

    def ask_to_stop(by: str) -> None:
        stop.asked.set()
        log.warning("%s: saving after this step", by)

    with signals(ask_to_stop), distributed.time_limit(training.config.run.timeout_seconds):
        online = None
        if is_main():
            with suppress(StoppedError):
                online = OnlineProbe.prepare(training.config, training.source, training.loader.steps_per_epoch, stop.asked)
        training.share()
        saved = _train_phase(training, run, online, stop, hooks)
        while training.step == training.phase.end < training.steps and not stop.is_set():
            training = training.next_phase()
            training.share()
            log.info(CHANGE, training.step, "".join(f", {name}" for name in kept_at_change(training.config)))
            saved = _train_phase(training, run, online, stop, hooks)
        if stop.is_set() and saved:
            log.info("stopped at step %d of %d; go on with: %s", training.step, training.steps, again)
        if not saved:
            raise AgreedError(f"step {training.step} could not be saved (run.log says why): make room, then go on with: {again}")
        distributed.from_main(partial(_export, training.whole_jepa(), training, run, again))
    if training.step == training.steps:
        log.info("finished: %d steps; %d bad images", training.steps, len(training.loader.bad))
    return run


def _train_phase(training: Training, run: Run, online: OnlineProbe | None, stop: _Stop, hooks: Hooks) -> bool:
    """Train to the phase's end, or until `stop` is set. False where the last step could not be saved."""
    config, end, saved = training.config, training.phase.end, True
    watching = watch(run, config, training.phase, online, training.steps, training.step, hooks.on_log)
    with watching as watched, closing(_batches(training, run, stop, hooks)) as batches:
        first = training.whole_jepa() if not training.step else None
        if online and watched.fresh and not stop.is_set() and not (training.step and config.init.path):  # not read again
            watched.start(first or build_jepa(training.phase.config).to(training.device), training.dtype)
        for batch, counts in () if stop.is_set() else batches:
            done = training.step + 1
            log_now = done % config.run.log_every_steps == 0 or done == end
            save_now = done % config.run.save_every_steps == 0 or done == end or stop.is_set()
            keep_now = config.run.keep_every_steps is not None and done % config.run.keep_every_steps == 0
            now = training.schedule.at(training.step)
            check = log_now or save_now or keep_now or training.device.type == "cpu"  # reading the loss makes CUDA wait
            out, norm = training.train_step(batch, now, check=check, rows=log_now, counts=counts)
            training.step = done
            if log_now or save_now or keep_now:
                training.agree_on_bad_images()
            if log_now:
                whole, jepa = batch.with_all_masks(), _to_probe(training, online)
                if is_main():
                    watched.log(done, whole, out, norm, now, jepa, training.dtype)
            save_now = save_now or stop.is_set()  # asked to stop meanwhile
            if keep_now or save_now:
                training.require_finite(out, norm)
            if keep_now:  # before the checkpoint that a run goes on from, so that none is missing
                training.save_snapshot(run)
            if save_now:
                saved = hooks.save(training, run)
            if stop.is_set():
                break
    return saved


def _to_probe(training: Training, online: OnlineProbe | None) -> JEPA:
    """The model for the online probe: where weights are sharded, whole only if a probe is due."""
    due = training.step == training.steps or (online is not None and online.due(training.step))
    if parallel.is_sharded(training.jepa) and not distributed.from_main(lambda: due):
        return training.jepa
    return training.whole_jepa()


def _export(jepa: JEPA, training: Training, run: Run, again: str) -> None:
    """Write the run's encoder for others to load. Raises UserError where it cannot be written."""
    try:
        save_model(jepa, training.config.images, run.path / "model")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{run.path / 'model'} cannot be written ({error}): make room, then: {again}") from None


def _batches(training: Training, run: Run, stop: _Stop, hooks: Hooks) -> Generator[tuple[Batch, list[list[int]]]]:
    """The batches still to come, once all processes have theirs; `stop` is set where one of them was asked to.

    With each batch, target patches of its micro-batches, by process. Where batches cannot be made (too many bad images, no
    answer), what was learnt is saved.
    """
    with closing(training.loader(training.step, training.phase.end)) as made:
        for step in range(training.step, training.phase.end):
            distributed.doing(f"in step {step + 1}")
            batch, error = _next(made)
            targets = [len(masks.targets) for masks in batch.masks] if batch else [0] * training.config.optim.accumulate
            everyone = distributed.told([stop.asked.is_set(), error is not None, *targets])
            if everyone[:, 1].any():
                _save_what_was_learnt(training, run, hooks)
                if error and distributed.world_size() == 1:
                    raise error
                distributed.raise_first(str(error or ""))
            stop.agreed = bool(everyone[:, 0].any())
            assert batch is not None
            yield batch, everyone[:, 2:].T.tolist()


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, UserError | None]:
    try:
        return next(batches), None
    except UserError as error:
        return None, error


def _save_what_was_learnt(training: Training, run: Run, hooks: Hooks) -> None:
    try:
        if hooks.save(training, run):
            log.info("saved at step %d; to go on: jepakit pretrain --resume %s", training.step, quote(str(run.path)))
    except UserError as error:  # what was learnt is no use; the first error is raised all the same
        log.warning("%s", error)
