"""Pretraining: the beginning of a new run, or of one that goes on."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any

from jepakit.artifacts import checkpoint
from jepakit.artifacts.init import Start
from jepakit.artifacts.run import Run
from jepakit.artifacts.teacher import with_teacher
from jepakit.config.choice import Choice
from jepakit.config.config import Config, resolve
from jepakit.config.released_yaml import ReleasedYaml
from jepakit.core import distributed, ranks
from jepakit.core.distributed import AgreedError
from jepakit.core.errors import UserError, checked
from jepakit.data.labels.table import GivenTable
from jepakit.data.labels.table_labels import with_table
from jepakit.data.opening import GivenImages, absolute, given_images, is_in_memory, open_source
from jepakit.data.sources import Source
from jepakit.model.encoder import Encoder
from jepakit.training.beginning import Beginning, beginning, chosen_settings, given_settings
from jepakit.training.free_settings import require_free, with_free_settings
from jepakit.training.hooks import Hooks, OnCheckpoint, OnLog
from jepakit.training.loop import train
from jepakit.training.step import Training

log = logging.getLogger("jepakit")


@checked
def pretrain(
    data: GivenImages | None = None,
    out: str | Path | None = None,
    recipe: str | None = None,
    method: str | None = None,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    resume: Run | str | Path | None = None,
    init_from: Run | str | Path | None = None,
    overwrite: bool = False,
    table: GivenTable | None = None,
    set: Sequence[str] | str | None = None,
    on_log: OnLog | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    **settings: Any,
) -> Run:
    """Pretrain an encoder; all settings as on the command line.

    data: a folder of images, 'emoji', or all else that `open_source` takes; or images that Python holds (`held_source`), to be
    given again on a resume; out: the run's folder; recipe, method: names; config: a YAML file, or its content;
    with neither recipe nor config, settings that suit the images are chosen; resume: a run to go on with instead (then only
    `run` settings may differ, and data, where the same images lie elsewhere now); init_from: weights to begin from, all that
    `jepakit.load` takes (`init.parts` says which parts); table: a .csv, .tsv or .parquet file that tells labels, groups and
    the split of the images, with labels, groups, splits, image, as_ and listed beside it (docs/data.md); set:
    'group.key=value' words; settings: settings as keywords, such as optim={"lr": 1e-3}, seed=1. on_log(row): called with each
    row of metrics; on_checkpoint(path, step): once each checkpoint is saved, that of step 0 too. What they raise ends the run,
    which can be resumed from its last checkpoint.
    Raises UserError for anything the user can mend. Returns the run, finished or, after SIGINT or SIGTERM, saved.
    """
    given, hooks = given_settings(set, settings, table, init_from), Hooks(on_log, on_checkpoint)
    with distributed.process_group():
        if resume is not None:
            if any((out, recipe, method, config, init_from)):
                raise UserError(
                    "--resume goes on with the run's own settings: leave out out, recipe, method, config and init-from"
                )
            return _resume(distributed.agreed(partial(Run.open, resume)), given, data, hooks)
        _allow_silence(given)
        if out is None:
            raise UserError("where shall the run go? give --out RUN (a new folder), or --resume RUN")
        job = _job(data, recipe, method, config, given)
        ours, saved = distributed.from_main(partial(_begun_by, job, out))
        if ours and saved:  # torchrun, or the queue, started the same command again
            return _resume(Run(out), {}, data, hooks)
        overwrite = overwrite or ours  # killed before its first checkpoint

        def chosen() -> tuple[Config, Source, Choice | ReleasedYaml, Start | None]:
            distributed.doing("while the images were opened")
            Run.new(out, overwrite=overwrite)  # says what is wrong with the place before any work is done
            return chosen_settings(data, recipe, method, config, given)

        create = partial(Run.create, out, overwrite=overwrite, job=job)
        return _begin(beginning(*distributed.agreed(chosen)), out, create, hooks)


def _allow_silence(given: Mapping[str, Any]) -> None:
    """What a caller's words say of it, before they are checked."""
    run = given.get("run")
    seconds = run.get("timeout_seconds") if isinstance(run, Mapping) else None
    if isinstance(seconds, int | float) and seconds > 0:
        distributed.allow_silence(seconds)


def _job(data: GivenImages | None, *asked: object) -> str | None:
    """The name of the launch by torchrun, or of the job of a queue, and of what was asked for; None where it has none.

    A job may begin one run after another: only the same words go on with a run of it.
    """
    images = os.fspath(data) if isinstance(data, str | os.PathLike) else type(data).__name__
    name = ranks.job()
    return name and f"{name} {sha256(repr((images, asked)).encode()).hexdigest()[:16]}"


def _begun_by(job: str | None, out: str | Path) -> tuple[bool, bool]:
    """Whether a folder holds a run that this job began with the same words, and whether it has a checkpoint to go on from."""
    run = Run(out)
    return job is not None and run.job() == job, bool(checkpoint.steps(run.checkpoints))


def _begin(begun: Beginning, out: str | Path, create: Callable[[Config], Run], hooks: Hooks) -> Run:
    """The run's folder, the first lines of its log, a first checkpoint, and the training."""
    training = begun.training
    _require_alike(training, out)
    run = distributed.from_main(partial(create, training.config))
    with _held(run):
        begun.say()
        if begun.taken:
            distributed.from_main(partial(begun.taken.save, run.path))
        if not hooks.save(training, run):  # so that there is always something to go on from
            raise AgreedError(f"no checkpoint can be written to {run.path} (run.log says why): make room, start with --overwrite")
        return train(training, run, hooks)


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """Hold a run's folder, by rank 0, and write the log there. Raises UserError if somebody else does."""
    with ExitStack() as held:

        def hold() -> None:
            held.enter_context(run.lock())

        distributed.from_main(hold)
        held.enter_context(run.logged())
        yield


def _require_alike(training: Training, out: str | Path) -> None:
    """Raises AgreedError where the processes of a run were told different things, or see other images."""
    if distributed.world_size() > 1:
        told = {"--out": str(Path(out).absolute()), "what the images are called": training.identity.names}
        groups = training.config.model_dump(mode="json").items()
        settings = {
            f"{group}.{key}" if key else group: repr(value)
            for group, values in groups
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        distributed.require_alike(told | settings)


def _resume(run: Run, changes: Mapping[str, Any], data: GivenImages | None, hooks: Hooks) -> Run:
    name, opened = (None, None) if data is None else given_images(data)
    changes = changes if name is None else {**changes, "data": name}

    def free() -> None:
        require_free(changes, own := run.config)
        distributed.allow_silence(own.run.timeout_seconds)
        _allow_silence(changes)

    distributed.agreed(free)
    with _held(run):
        training = distributed.agreed(partial(_restored, run, changes, opened))
        _require_alike(training, run.path)
        steps_found = distributed.told([training.step])
        if (steps_found != training.step).any():
            raise AgreedError(f"the processes read checkpoints of steps {sorted({*steps_found.flat})}: is {run.path} one folder?")
        distributed.from_main(partial(_go_on, run, training))
        log.info("resumed at step %d of %d", training.step, training.steps)
        return train(training, run, hooks)


def _restored(run: Run, changes: Mapping[str, Any], opened: Source | None) -> Training:
    """The newest good checkpoint of a run, taken up, with changes to settings that may change. Raises UserError."""
    distributed.doing("while the checkpoint was read")
    again = f"; where they have moved, --resume {quote(str(run.path))} --data NEW goes on"
    found, edited = checkpoint.load_newest(run.checkpoints, finite=True), run.config
    own = resolve(found.state["config"], where=str(run.checkpoints))  # verified, unlike config.yaml
    if with_free_settings(own, edited) != edited:
        log.warning("%s was edited since the run began: going on with the run's own settings", run.path / "config.yaml")
    config = resolve(with_free_settings(own, edited).model_dump(), changes)
    if not config.data:
        raise UserError("which images? give --data, where those lie that the run began with")
    config = config.model_copy(update={"data": absolute(config.data), "table": config.table.absolute()})
    config, teacher = _teacher_of(config, run)
    source = with_table(opened, config.table) if opened else _open_images(config, run, "" if "data" in changes else again)
    training = Training.prepare(config, source, teacher, step=found.state["step"])
    training.restore(found)
    return training


def _go_on(run: Run, training: Training) -> None:
    """The run's folder as it was at the step that is gone on from, with the settings of now."""
    edited = run.config
    if with_free_settings(edited, training.config) != edited:
        run.rewrite(with_free_settings(edited, training.config))
    checkpoint.set_aside(run.checkpoints, training.step)
    run.rewind(training.step)
    run.gone_on(training.step)


def _teacher_of(config: Config, run: Run) -> tuple[Config, Encoder | None]:
    """`with_teacher` of a run that goes on, whose teacher may have moved."""
    try:
        return with_teacher(config)
    except UserError as error:
        again = f"--resume {quote(str(run.path))} target.teacher=NEW goes on"
        raise UserError(f"{error}; target.teacher is read again: where it has moved, {again}") from None


def _open_images(config: Config, run: Run, hint: str) -> Source:
    """A run's images. Raises UserError, with a hint, where they cannot be had."""
    if is_in_memory(config.data):
        raise UserError(
            f"the run's images were {config.data}: only Python can give them again, "
            f"jepakit.pretrain(resume={str(run.path)!r}, data=...)"
        )
    try:
        where = {"images": config.images, "table": config.table}
        return open_source(str(config.data), most_pixels=config.images.max_pixels, **where)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{error}{hint}") from None
