"""What a run says of itself at a logged step, and where it is written."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from jepakit.config import Config
from jepakit.data.loader import Batch
from jepakit.errors import UserError
from jepakit.masks import Masks
from jepakit.metrics import content_cosines, position_share, rankme
from jepakit.model import Output
from jepakit.optim import Now
from jepakit.run import Run

log = logging.getLogger("jepakit")


def step_row(step: int, batch: Batch, out: Output, norm: Tensor, now: Now) -> dict[str, float]:
    """What a logged step says of the whole batch. Standard deviations are over its tokens, the mean over features."""
    masks = Masks.joined(batch.masks)
    image = np.repeat(masks.image_of_draw[masks.draw_of_block], masks.target_lengths)
    own, other = content_cosines(out.predictions, out.targets, masks.targets, image)
    return {
        "step": step,
        "epoch": batch.epoch,
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
def metrics_writer(run: Run, config: Config) -> Iterator[Any]:
    """A function that appends a row to metrics.jsonl, and to tensorboard/ if asked for."""
    board: Any = summary_writer()(str(run.path / "tensorboard")) if config.run.tensorboard else None

    def write(row: dict[str, Any]) -> None:
        try:
            with (run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a full disk: the run is worth more than a line
            log.warning("metrics of step %d NOT written: %s", row["step"], error)
        for name, value in row.items() if board else ():
            if isinstance(value, int | float):
                board.add_scalar(name, value, int(row["step"]))

    yield write
    if board:
        board.close()


def summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("run.tensorboard needs an extra: pip install 'jepakit[tensorboard]'") from None
    return SummaryWriter
