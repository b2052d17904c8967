"""What a study's runs are trained and judged on, and by which tasks."""

import logging
from pathlib import Path

from jepakit.core.errors import UserError
from jepakit.data.opening import absolute
from jepakit.data.sources import Source
from jepakit.evaluation.split import labelled, train_and_test

log = logging.getLogger("jepakit")


def two_sets(data: str | Path | None) -> tuple[str | Path | None, str | None]:
    """What to pretrain on, and what to judge on: left/ and probe/ of a folder that has both, as benchmarks/textures.py makes
    it; else the images themselves, and none."""
    folder = Path(data).expanduser() if data else None
    if folder and (folder / "left").is_dir() and (folder / "probe").is_dir():
        return folder / "left", absolute(str(folder / "probe"))
    return data, None


def possible_tasks(source: Source, tasks: str) -> str:
    """Of these tasks, what the images and labels allow."""
    try:
        if source.labels is None:
            raise UserError(f"{source.name} has no labels")
        train_and_test(source, source.labels, labelled(source, source.labels))
    except UserError as error:
        log.warning("%s: cells are judged by RankMe alone", error)
        tasks = "rankme"
    return tasks
