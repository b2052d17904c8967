"""The row of metrics of a logged step, and its writer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from jepakit.artifacts.run import Run, json_line
from jepakit.config.config import Config
from jepakit.config.optim import ScheduleValues
from jepakit.core.files import append
from jepakit.core.ranks import is_main
from jepakit.data.loader import Batch
from jepakit.model.jepa import Output
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.metrics import content_cosines, position_share, rankme
from jepakit.training.trackers import WriteRow, tracker_writers

log = logging.getLogger("jepakit")


def step_row(step: int, batch: Batch, out: Output, norm: Tensor, now: ScheduleValues) -> dict[str, float]:
    """The metrics of a step, of the whole batch. Standard deviations are over its tokens, then averaged over features."""
    masks = Masks.joined(batch.masks)
    image = np.repeat(masks.image_of_draw[masks.draw_of_block], masks.target_lengths)
    own, other = content_cosines(out.predictions, out.targets, masks.targets, image)
    return {
        "step": step,
        "epoch": batch.epoch,
        "batch_crc32": batch.crc32,
        "loss": float(out.loss.detach()),
        **{f"loss/{name}": float(term.detach()) for name, term in out.terms.items()},
        "lr": now.lr,
        "weight_decay": now.weight_decay,
        "momentum": now.momentum,
        "grad_norm": float(norm),
        "target_std": float(out.targets.detach().float().std(0).mean()),
        "prediction_std": float(out.predictions.detach().float().std(0).mean()),
        "effective_rank": rankme(out.features),
        "position_share": position_share(out.targets, masks.targets),
        "own_cosine": own,
        "other_cosine": other,
        "context_tokens": float(masks.context_lengths.mean()),
        "target_tokens": float(masks.target_lengths.mean()),
    }


@contextmanager
def metrics_writer(run: Run, config: Config, step: int) -> Iterator[WriteRow]:
    """A function that appends a row to metrics.jsonl, and gives it to trackers; step: that which the run goes on from."""
    if not is_main():
        yield lambda row: None
        return
    full = False

    def write(row: dict[str, Any]) -> None:
        nonlocal full
        try:
            append(run.path / "metrics.jsonl", json_line(row))
            for tracker in trackers:
                tracker(row)
            if full:
                log.warning("metrics are written again, from step %d on", row["step"])
            full = False
        except OSError as error:  # a full disk: the run is worth more than a line
            if not full:
                log.warning("metrics NOT written from step %d on: %s", row["step"], error)
            full = True

    with tracker_writers(run, config, step) as trackers:
        yield write
