"""A caller's functions that a run calls as it goes; no part of its settings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepakit.artifacts.checkpoint import step_name
from jepakit.artifacts.run import Run
from jepakit.core.ranks import is_main
from jepakit.training.step import Training

OnLog = Callable[[dict[str, Any]], object]
OnCheckpoint = Callable[[Path, int], object]


@dataclass(frozen=True)
class Hooks:
    """on_log(row): after each row of metrics is written; on_checkpoint(path, step): after each checkpoint is saved."""

    on_log: OnLog | None = None
    on_checkpoint: OnCheckpoint | None = None

    def save(self, training: Training, run: Run) -> bool:
        """`Training.save`, and what is to be called then. Raises whatever that raises; the checkpoint is good."""
        saved = training.save(run)
        if saved and self.on_checkpoint and is_main():
            self.on_checkpoint(run.checkpoints / step_name(training.step), training.step)
        return saved
