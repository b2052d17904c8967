"""What a run reports while it goes: metrics, progress, the online probe, and the collapse doctor's alarms."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.config.optim import ScheduleValues
from jepakit.config.phases import Phase
from jepakit.core.progress import progress
from jepakit.data.loader import Batch
from jepakit.model.jepa import JEPA, Output
from jepakit.training.collapse import Doctor, position_counts_from
from jepakit.training.logs import metrics_writer, step_row
from jepakit.training.online_probe import OnlineProbe

log = logging.getLogger("jepakit")


@dataclass
class Watch:
    """The reports of a run from start or resume to stop. logged: the last step with a row; steps: those of the run."""

    config: Config
    doctor: Doctor
    online: OnlineProbe | None
    write: Callable[[dict[str, Any]], None]
    report: Callable[[int, str], None]
    logged: int
    steps: int
    fresh: bool  # nothing was logged before
    on_log: Callable[[dict[str, Any]], object] | None = None
    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    at_start: dict[str, float] = field(default_factory=dict)

    def start(self, jepa: JEPA, dtype: torch.dtype) -> None:
        """Probe the encoder as it begins; the first row holds the result."""
        seen = self.online.probe(jepa, self.config, dtype) if self.online else {}
        self.at_start = {f"{name}_at_start": value for name, value in seen.items()}
        self.last = time.monotonic()

    def log(
        self, step: int, batch: Batch, out: Output, norm: Tensor, now: ScheduleValues, jepa: JEPA, dtype: torch.dtype
    ) -> None:
        """Write a row of metrics, with the online probe if it is due, and the doctor's alarms."""
        moment = time.monotonic()
        rate = (step - self.logged) * self.config.optim.batch_size / max(1e-9, moment - self.last)
        row: dict[str, Any] = step_row(step, batch, out, norm, now)
        alarms = self.doctor.examine(row)
        row |= {"images_per_second": rate, "seconds": moment - self.started, **self.at_start, "settled": self.doctor.from_step}
        if self.online and (self.online.due(step) or step == self.steps):
            row |= self.online.probe(jepa, self.config, dtype)
            row["probe/seconds"] = time.monotonic() - moment
        for alarm in alarms:
            log.warning("%s collapse at step %d: %s", alarm.kind, step, alarm.words)
        alarm_lines = {"alarms": [f"{alarm.kind} collapse: {alarm.words}" for alarm in alarms]} if alarms else {}
        row |= alarm_lines
        self.write(row)
        if self.on_log:
            self.on_log(dict(row))
        self.report(step, f"loss {row['loss']:.4f}  {rate:.0f} images/s")
        self.last, self.logged, self.at_start = time.monotonic(), step, {}


@contextmanager
def watch(
    run: Run,
    whole: Config,
    phase: Phase,
    online: OnlineProbe | None,
    steps: int,
    step: int,
    on_log: Callable[[dict[str, Any]], object] | None = None,
) -> Iterator[Watch]:
    """Watch a phase of a run of so many steps, from a step on; the doctor knows what was logged of the phase before.

    whole: the run's settings, as trackers show them, whatever the phase.
    """
    rows, config = run.metrics(), phase.config
    from_step = phase.start + position_counts_from(phase.end - phase.start, phase.schedule.warmup)
    doctor = Doctor(config.target.learned, from_step, [row for row in rows if row["step"] > phase.start])
    with metrics_writer(run, whole, step) as write, progress("pretrain", steps, step) as report:
        yield Watch(config, doctor, online, write, report, step, steps, not rows, on_log)
