"""Labelled sets, recognised by what lies in their folder: each layout is a function that gives a source, or None.

The folder may also be one that holds nothing but the set's own, as archives unpack it.
"""

import os
from collections.abc import Callable
from pathlib import Path

from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.formats.arrow import arrow
from jepakit.data.formats.npz import npz
from jepakit.data.formats.pack_source import packed
from jepakit.data.formats.parquet import parquet
from jepakit.data.formats.shards import tar_shards
from jepakit.data.sets.arrays import cifar10, cifar100, mnist
from jepakit.data.sets.clevr import clevr
from jepakit.data.sets.listed import eurosat, food101, imagenet, inaturalist, places205, sun397
from jepakit.data.sources import Source

LAYOUTS: tuple[Callable[[Path, str | None], Source | None], ...] = (
    packed,
    clevr,
    cifar10,
    cifar100,
    mnist,
    eurosat,
    food101,
    sun397,
    places205,
    inaturalist,
    imagenet,
    parquet,
    arrow,
    npz,
    tar_shards,
)
_DEEPEST = 8  # folders in folders that an archive may unpack to


def labelled_set(root: Path, labels: str | None = None) -> Source | None:
    """The set that lies at `root`, in its usual layout; None where none is recognised. Raises UserError."""
    place: Path | None = root
    for _ in range(_DEEPEST):
        if place is None or not place.exists():
            return None
        try:
            for layout in LAYOUTS:
                source = layout(place, labels)
                if source is not None:
                    return source
            place = _only_folder(place)
        except OSError as error:
            raise UserError(f"cannot read {error.filename or place}: {error.strerror}") from None
    return None


def _only_folder(root: Path) -> Path | None:
    """The one sub-folder of a folder that has no images of its own."""
    if not root.is_dir():
        return None
    only: str | None = None
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if only is not None:
                    return None
                only = entry.path
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                return None
    return None if only is None else Path(only)
