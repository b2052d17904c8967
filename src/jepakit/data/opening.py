"""From what the user names to a source of images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from jepakit.core.errors import UserError, plain
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.formats.folder import FolderSource
from jepakit.data.formats.remote import PATTERN_SIGNS, DataPaths, NothingThereError, above, expand, is_pattern, is_remote, shown
from jepakit.data.formats.shards import shards_of
from jepakit.data.labels.table import TableSettings
from jepakit.data.labels.table_labels import listed_images, with_table
from jepakit.data.samples import errors_of_all
from jepakit.data.sets.emoji import EmojiSource
from jepakit.data.sets.known_sets import labelled_set
from jepakit.data.sources import Source, pick
from jepakit.data.volumes.source import VolumeSource, volumes_at
from jepakit.model.images import MOST_PIXELS, ImageSettings

GivenImages = str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | Tensor | Dataset[Any]  # what verbs take as data
NAMED = ("emoji", "scenes")  # sets that need no path
MEMORY_PREFIX = "in memory: "  # begins what a run notes of images that Python held
SECONDS = 60.0  # in which a look at an image must come back
_KINDS = (".parquet", ".tar")  # of files that an address or a pattern may name


def named(data: str | os.PathLike[str]) -> str:
    """What names images, as text, '~' expanded. Raises UserError for arrays and the like."""
    try:
        return os.path.expanduser(os.fsdecode(data))
    except TypeError:
        raise UserError(
            f"images are named by a path, a pattern, an address or a set's name, not by a {type(data).__name__}: here "
            f"arrays go into a file first, numpy.savez('images.npz', images=...)"
        ) from None


def given_images(data: object, labels: str | None = None) -> tuple[str, Source | None]:
    """What names the images of a verb's `data`, and, where Python holds them, their source. Raises UserError."""
    if isinstance(data, str | os.PathLike):
        return named(data), None
    from jepakit.data.sets.held import held_source

    source = held_source(data, labels)
    require_readable(source)
    return f"{MEMORY_PREFIX}{source.name}", source


def is_in_memory(name: str | None) -> bool:
    """Whether a run's `data` says that Python held its images."""
    return bool(name) and str(name).startswith(MEMORY_PREFIX)


def open_source(
    data: str | os.PathLike[str],
    labels: str | None = None,
    most_pixels: int = MOST_PIXELS,
    *,
    images: ImageSettings | None = None,
    table: TableSettings | None = None,
) -> Source:
    """The source that `data` names.

    'emoji', 'scenes'; a labelled set in its usual layout (`sets`), or a folder of images or volumes; a pattern or an address of
    .tar or .parquet files. `labels` picks one of several that a set has, or columns of the table where one is named. images: how
    volumes are cut into slices, along z where it does not say; with images.axis TIFF and arrays are volumes too. table: what is
    known of the images. Raises UserError.
    """
    source: Source
    if table and table.file:
        return _told_by_table(data, labels, most_pixels, images, table)
    data = named(data)
    if is_in_memory(data):
        was = data.removeprefix(MEMORY_PREFIX)
        raise UserError(f"the images were in Python's memory, {was}: give them again from Python, as data=")
    if data == "scenes":
        from jepakit.data.sets.scenes import SceneSource

        return SceneSource(labels=labels)
    if data == "emoji":
        source = EmojiSource()
    else:
        law = images or ImageSettings(max_pixels=most_pixels)
        afar = is_remote(data) or is_pattern(data)
        found = _files(data, labels) if afar else _at_path(Path(data), labels, law)
        source = found or FolderSource(Path(data))
        if images and images.axis and not isinstance(source, VolumeSource):
            source.notes += (f"images.axis={images.axis} has no effect: {source.name} holds no volumes",)
        require_readable(source, most_pixels)
        if found is not None:
            return found  # it has picked its labels
    pick(labels, (source.labels.name,) if source.labels else (), source.name)
    return source


def _told_by_table(
    data: str | os.PathLike[str], labels: str | None, most_pixels: int, images: ImageSettings | None, table: TableSettings
) -> Source:
    """The images that `data` names, or those of them that a table lists, with what it tells of them. Raises UserError."""
    if table.listed:
        source = listed_images(named(data), table)
        require_readable(source, most_pixels)
    else:
        source = open_source(data, None, most_pixels, images=images)
    return with_table(source, table.model_copy(update={"labels": labels}) if labels else table)


def open_given(
    place: str, opened: Source | None, labels: str | None, images: ImageSettings, table: TableSettings | None
) -> Source:
    """What `given_images` found, as a source with its labels, a table's where one is named. Raises UserError as `open_source`."""
    if opened is None:
        return open_source(place, labels, images=images, table=table)
    if table:
        with_table(opened, table.model_copy(update={"labels": labels}) if labels else table)
    return opened


def _at_path(path: Path, labels: str | None, images: ImageSettings) -> Source | None:
    """What lies at a path, other than a plain folder of images. Raises UserError."""
    source = volumes_at(path, images) if images.axis else None
    source = source or labelled_set(path, labels) or (None if images.axis else volumes_at(path, images))
    if isinstance(source, VolumeSource):
        pick(labels, (source.labels.name,) if source.labels else (), source.name)
    return source


def absolute(data: str) -> str:
    """The same from any working folder: named sets and addresses as they are, a path or a pattern from the root."""
    if data in NAMED or is_in_memory(data) or is_remote(data):
        return data
    path = named(data)
    if not is_pattern(data):
        return str(Path(path).resolve())
    fixed = path.rfind("/", 0, min(path.index(sign) for sign in PATTERN_SIGNS if sign in path)) + 1
    return os.path.join(Path(path[:fixed]).resolve(), path[fixed:])


def _files(data: str, labels: str | None) -> Source:
    """Files that a pattern or an address names. Raises UserError."""
    name, places = shown(data), _places(data)
    kinds = {os.path.splitext(shown(path))[1].lower() for path in places.paths}
    if kinds == {".tar"}:
        return shards_of(places, name, labels)
    if kinds == {".parquet"}:
        from jepakit.data.formats.parquet import parquet_files

        return parquet_files(places, name, labels)
    if kinds & SUFFIXES and places.local:
        raise UserError(f"{name} names image files: give the folder that holds them, {above(places.paths)}")
    have = " and ".join(sorted(kind or "no ending" for kind in kinds))
    raise UserError(f"{name} names files of {have}: give .tar files or .parquet files, as in 'images-{{000..146}}.tar'")


def _places(data: str) -> DataPaths:
    """What an address names; for a data set of the Hugging Face Hub its Parquet files, else its tars."""
    path = data.removeprefix("hf://datasets/")
    if path == data or is_pattern(data) or os.path.splitext(data)[1].lower() in _KINDS:
        return expand(data)
    for kind in _KINDS:
        try:
            return expand(f"{data.rstrip('/')}/**/*{kind}")
        except NothingThereError:
            continue
    raise UserError(f"{data} holds no .parquet and no .tar files that you may read: check its name, and log in if it is private")


def require_readable(source: Source, most_pixels: int = MOST_PIXELS) -> None:
    """Raises UserError if none of a sample of up to 64 images can be read, each in SECONDS."""
    if errors := errors_of_all(source, 64, lambda index: source.read(index, most_pixels), SECONDS):
        index, error = errors[-1]
        reason = plain(f"{source.title(index)}: {error}")
        raise UserError(f"no readable image in {source.name}; the last one tried: {reason}")
