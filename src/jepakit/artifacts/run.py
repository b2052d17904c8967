"""A run: the folder that holds all that one pretraining left, and the only thing that verbs share."""

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepakit.artifacts.checkpoint import step_name, steps
from jepakit.config.config import Config, read_yaml, resolve, to_yaml
from jepakit.core.environment import environment
from jepakit.core.errors import UserError
from jepakit.core.files import append, atomic_write, finite, load_json, locked, save_json, user_path
from jepakit.core.ranks import rank

if TYPE_CHECKING:
    from jepakit.model.encoder import Encoder

log = logging.getLogger("jepakit")
ENVIRONMENT = "environment.json"
CONTENTS = (
    "config.yaml",
    ENVIRONMENT,
    "init.json",
    "metrics.jsonl",
    "run.log",
    "tensorboard",
    "wandb",
    "checkpoints",
    "snapshots",
    "model",
    "evaluation",
    "pictures",
    "report.html",
    ".lock",
)


@dataclass(frozen=True, init=False)
class Run:
    """The folder of a run, and what can be read from it."""

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", user_path(path, "the run"))

    def __fspath__(self) -> str:
        """So that a run can be given wherever a path can."""
        return str(self.path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """An existing run. Raises UserError where there is none."""
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise UserError(f"{run.path} is not a run: it has no config.yaml; jepakit pretrain --out {run.path} makes one")
        return run

    @classmethod
    def new(cls, path: str | os.PathLike[str], *, overwrite: bool) -> "Run":
        """A run to be made. Raises UserError where `path` holds one (unless `overwrite`), or anything else."""
        run = cls(user_path(path, "out"))
        if run.path.exists() and not run.path.is_dir():
            raise UserError(f"--out {run.path} is a file; give a new folder")
        there = run.contents()
        if "config.yaml" in there and not overwrite:
            raise UserError(f"{run.path} holds a run: go on with --resume {run.path}, or replace it with --overwrite")
        known = CONTENTS if run.is_ours() else (".lock",)  # without its settings nothing here is known to be a run's
        others = [name for name in there if name not in known and not name.startswith(".tmp-")]  # those a kill may leave
        if others:
            raise UserError(f"{run.path} holds other files ({others[0]}); give a folder of its own")
        return run

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Config, *, overwrite: bool, job: str | None = None) -> "Run":
        """Make a new run's folder; job: what began it. Raises UserError as `new` does, and where nothing can be written."""
        run = cls.new(path, overwrite=overwrite)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            with run.lock():
                for name in [
                    n for n in run.contents() if n not in (".lock", "config.yaml")
                ]:  # the settings mark the folder to the end
                    place = run.path / name
                    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
                with atomic_write(run.path / "config.yaml") as draft:
                    draft.write_text(to_yaml(config), encoding="utf-8")
                save_json(run.path / ENVIRONMENT, {"job": job, **environment()})
        except OSError as error:
            raise UserError(f"cannot write {run.path}: {error.strerror}") from None
        return run

    def job(self) -> str | None:
        """The launch of torchrun, or the job of a queue, that began the run; None where none did."""
        return self.environment().get("job")

    def environment(self) -> dict[str, Any]:
        """What the run was begun with, and each time gone on with (`core.environment`); empty where that is not known."""
        try:
            said = load_json(self.path / ENVIRONMENT)
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def gone_on(self, step: int) -> None:
        """Note that the run goes on from a step, and with what. Raises UserError where it cannot be written."""
        before = self.environment()
        again = [*before.get("resumed", []), {"step": step, **environment()}]
        try:
            save_json(self.path / ENVIRONMENT, {**before, "resumed": again})
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    def contents(self) -> list[str]:
        """Names of what lies in the folder."""
        return sorted(p.name for p in self.path.iterdir()) if self.path.exists() else []

    def is_ours(self) -> bool:
        """Whether the folder's config.yaml is a run's, not some other program's."""
        try:
            return {"encoder", "optim", "run"} <= read_yaml(self.path / "config.yaml").keys()
        except UserError:
            return False

    @property
    def config(self) -> Config:
        """The resolved settings of the run."""
        path = self.path / "config.yaml"
        return resolve(read_yaml(path), where=str(path))

    def rewrite(self, config: Config) -> None:
        """Replace the run's settings. Raises UserError where they cannot be written."""
        try:
            with atomic_write(self.path / "config.yaml") as draft:
                draft.write_text(to_yaml(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """The encoder alone, every run.keep_every_steps."""
        return self.path / "snapshots"

    def kept_steps(self) -> list[int]:
        """Steps of which the encoder is kept, in a checkpoint or a snapshot, oldest first."""
        return sorted({*steps(self.checkpoints), *steps(self.snapshots)})

    def at_step(self, step: int) -> Path:
        """The checkpoint of one of `kept_steps`, or its snapshot where there is no checkpoint any more."""
        whole = self.checkpoints / step_name(step)
        return whole if whole.is_dir() else self.snapshots / step_name(step)

    @property
    def finished(self) -> bool:
        """Whether the newest checkpoint is that of the last step."""
        return bool(self.state.get("finished"))

    @property
    def state(self) -> dict[str, Any]:
        """What the newest checkpoint says of itself, not verified; empty where there is none that can be read."""
        found = steps(self.checkpoints)
        try:
            said = load_json(self.checkpoints / step_name(found[0]) / "state.json") if found else {}
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, one mapping each, NaN for what was not finite; a line that a kill cut short is left out."""
        path = self.path / "metrics.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows.append({key: math.nan if value is None else value for key, value in row.items()})
        return rows

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps after a checkpoint: they will be logged again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        try:
            with atomic_write(self.path / "metrics.jsonl") as draft:
                draft.write_text("".join(map(json_line, rows)), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    def encoder(self) -> "Encoder":
        """The encoder of the newest checkpoint, to use (which one: `Method.which`)."""
        from jepakit.artifacts.load import load

        return load(self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; UserError if another process does."""
        with locked(self.path):
            yield

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write the log to run.log too: rank 0 all of it, other processes their warnings."""
        handler, own = _Log(self.path / "run.log"), rank()
        who = f" rank {own}:" if own else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s{who} %(message)s"))
        handler.setLevel(logging.WARNING if own else logging.INFO)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()


class _Log(logging.Handler):
    """Appends to a file; says once that it cannot."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.full = path, False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            append(self.path, self.format(record) + "\n")
            self.full = False
        except OSError as error:
            if not self.full:
                print(f"{self.path} NOT written: {error.strerror}", file=sys.stderr)
            self.full = True


def json_line(row: Mapping[str, Any]) -> str:
    """A row of metrics.jsonl; null for numbers that are not finite."""
    return json.dumps(finite(row), allow_nan=False) + "\n"
