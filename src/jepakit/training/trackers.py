"""Where the rows of metrics.jsonl are shown too, if asked for: TensorBoard, and Weights & Biases (W&B)."""

import importlib
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.config.run_settings import RunSettings
from jepakit.core.errors import UserError, line_of
from jepakit.core.files import load_json, save_json

log = logging.getLogger("jepakit")
WriteRow = Callable[[dict[str, Any]], None]
_WAIT_SECONDS = 30  # for an answer of W&B's server


def require_trackers(run: RunSettings) -> None:
    """Raises UserError, with what to install, where the package of a tracker that is asked for is missing."""
    if run.tensorboard:
        summary_writer()
    if run.wandb:
        wandb_module()


@contextmanager
def tracker_writers(run: Run, config: Config, step: int) -> Iterator[list[WriteRow]]:
    """A function for each tracker that is asked for, which takes a row; step: that which the run goes on from."""
    with ExitStack() as stack:
        writers = []
        if config.run.tensorboard:
            writers.append(stack.enter_context(_tensorboard_writer(run, step)))
        if config.run.wandb:
            writers.append(stack.enter_context(_wandb_writer(run, config)))
        yield writers


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """What of a row is a curve: not the alarms' words."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def summary_writer() -> Any:
    """TensorBoard's writer. Raises UserError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("run.tensorboard needs an extra: pip install 'jepakit[tensorboard]'") from None
    return SummaryWriter


def wandb_module() -> Any:
    """The package wandb. Raises UserError where it is missing."""
    try:
        module = importlib.import_module("wandb")
    except ImportError:
        module = None
    if not hasattr(module, "init"):  # a folder wandb/ that its runs left is imported as an empty package
        raise UserError("run.wandb needs an extra: pip install 'jepakit[wandb]'")
    return module


@contextmanager
def _tensorboard_writer(run: Run, step: int) -> Iterator[WriteRow]:
    # what was logged after the checkpoint will be logged again: TensorBoard drops it
    board = summary_writer()(str(run.path / "tensorboard"), purge_step=step + 1)

    def write(row: dict[str, Any]) -> None:
        for name, value in numbers(row).items():
            board.add_scalar(name, value, int(row["step"]))

    yield write
    with suppress(OSError):
        board.close()


@contextmanager
def _wandb_writer(run: Run, config: Config) -> Iterator[WriteRow]:
    """Rows to the W&B run of this run: each once, those from before it was asked for too.

    W&B cannot take rows back: after a resume from an earlier checkpoint, those that it has already are not sent again.
    """
    place = run.path / "wandb" / "jepakit.json"  # the id, and the last step that was sent
    identity, sent = _stored(place, run.path.resolve().name)
    wandb = wandb_module()
    tracked = _opened(wandb, run, identity, config)
    if tracked is not None and not tracked.offline:
        log.info("W&B shows the run at %s", tracked.url)

    def write(row: dict[str, Any]) -> None:
        nonlocal tracked, sent
        if tracked is None or row["step"] <= sent:
            return
        try:
            tracked.log(numbers(row), step=int(row["step"]))
            sent = int(row["step"])
            save_json(place, {"id": identity, "step": sent})
        except Exception as error:  # the run is worth more than what is shown of it
            log.warning("W&B gets no more rows, from step %d on: %s; metrics.jsonl has them", row["step"], line_of(error))
            tracked = None

    for row in run.metrics():
        write(row)
    failed = True
    try:
        yield write
        failed = False
    finally:
        if tracked is not None:
            with suppress(Exception):
                tracked.finish(exit_code=int(failed))


def _stored(place: Path, name: str) -> tuple[str, int]:
    """The id by which W&B knows the run, made once from its folder's name and chance, and the last step that was sent."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = load_json(place)
        return str(stored["id"]), int(stored["step"])
    # by chance: a run that takes the place of another, or has the same name elsewhere, is another run
    identity = f"{re.sub(r'[^a-zA-Z0-9_-]+', '-', name)[:40]}-{secrets.token_hex(4)}"
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        save_json(place, {"id": identity, "step": 0})
    return identity, 0


def _opened(wandb: Any, run: Run, identity: str, config: Config) -> Any:
    """W&B's run: online where there is a key and an answer, else offline; None where neither works. WANDB_* variables hold."""
    how: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", "jepakit"),
        "id": identity,
        "name": run.path.resolve().name,
        "dir": str(run.path),
        "resume": "allow",
        "config": config.model_dump(mode="json"),
        # what the user's shell and repository hold is not sent along
        "settings": wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, init_timeout=_WAIT_SECONDS),
    }
    try:
        if os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False):
            return wandb.init(**how)
        why = "no key: 'wandb login' stores one"
    except Exception as error:
        why = line_of(error)
        wandb.teardown()  # else the id counts as in use
    log.warning("W&B runs offline (%s); 'wandb sync %s' sends it later", why, run.path / "wandb" / f"offline-run-*-{identity}")
    try:
        return wandb.init(**how, mode="offline")
    except Exception as error:
        log.warning("W&B gets no rows: %s; metrics.jsonl has them", line_of(error))
        return None
