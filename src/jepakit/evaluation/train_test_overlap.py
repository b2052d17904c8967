"""Whether pretraining saw the images that an evaluation tests on: an accuracy on such is no test."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.config.config import Config, resolve
from jepakit.core.errors import UserError
from jepakit.data.formats.folder import FilesSource
from jepakit.data.identity import Identity
from jepakit.data.opening import absolute, is_in_memory, open_source
from jepakit.data.sources import Source
from jepakit.data.training_part import TrainingPart, training_part


@dataclass(frozen=True)
class PretrainingRecord:
    """What an encoder was trained on: its run's settings, and the identity of the images that it saw, where it was noted."""

    config: Config
    identity: Identity | None

    @classmethod
    def from_state(cls, state: Mapping[str, Any], where: str) -> "PretrainingRecord | None":
        """From a checkpoint's state; None where it has no config. Raises UserError for a config that is not valid."""
        config = state.get("config")
        return cls(resolve(config, where=where), Identity.from_state(state)) if isinstance(config, Mapping) else None


def seen_in_training(trained: PretrainingRecord, source: Source, place: str, *, listed: bool = False) -> NDArray[np.bool_] | None:
    """Whether a run was trained on each sample of a source, (n,), which was opened from `place`; None where that is not known.

    The source is the run's own if its place is the same, or if its training part has the same identity (`Identity.is_of`).
    Otherwise, if both are folders of files and one lies in the other, paths of files are compared. listed: the source is the
    images that a table names, not all that lie there.
    """
    config, identity = trained.config, trained.identity
    same_place = absolute(place) == config.data and not is_in_memory(place)  # what Python holds has no place of its own
    first = source  # with the labels that pretraining went by
    try:
        by_labels = config.images.split == "train" and (config.table.file or listed or _in_fifths(source))
        if same_place and (by_labels or config.table.listed):
            first = open_source(place, images=config.images, table=config.table)
        trained_on = training_part(first, config.images)
    except UserError:
        trained_on = source
    if same_place or (identity is not None and identity.is_of(trained_on)):
        if listed or (first is not source and config.table.listed):  # places are not the same in both
            titles = {trained_on.title(i) for i in range(len(trained_on))}
            return np.array([source.title(i) in titles for i in range(len(source))], np.bool_)
        seen = np.ones(len(source), np.bool_)
        if isinstance(trained_on, TrainingPart):
            seen = np.zeros(len(source), np.bool_)
            seen[trained_on.ids] = True
        return seen
    if not isinstance(source, FilesSource) or not config.data or not Path(config.data).is_dir():
        return None
    ours, theirs = os.path.realpath(source.root), os.path.realpath(config.data)
    if os.path.commonpath([ours, theirs]) not in (ours, theirs):
        return None
    pretraining_source = open_source(config.data, images=config.images, table=config.table)
    trained_on = training_part(pretraining_source, config.images)
    if not isinstance(pretraining_source, FilesSource):
        return None
    files = {os.path.join(theirs, trained_on.title(i)) for i in range(len(trained_on))}
    return np.array([os.path.join(ours, file) in files for file in source.files], np.bool_)


def _in_fifths(source: Source) -> bool:
    """Whether what is held out depends on which labels are taken."""
    return source.labels is not None and not source.labels.own_split
