"""Volumes below a folder as a source of slices: which files are volumes, their slices in order, each volume a group of labels."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.decoding.file_kinds import HEAD_BYTES, PLAIN, kind_of
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.formats.prefetch import PrefetchCache
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.classes import folder_classes
from jepakit.data.sources import Blocks, Labels, Source
from jepakit.data.unread_files import head_of, plural, some
from jepakit.data.volumes.dicom import dicom_volumes
from jepakit.data.volumes.nifti import Nifti
from jepakit.data.volumes.stacks import ArrayVolume, TiffStack
from jepakit.data.volumes.volume import Volume, VolumeKind, percentiles_of, shown_as, volume_or_broken
from jepakit.model.images import ImageSettings

VOLUME_MEMORY = 1 << 30  # bytes of decoded volumes in memory
_ENDINGS: dict[str, VolumeKind] = {
    **dict.fromkeys((".nii", ".nii.gz"), "NIfTI"),
    **dict.fromkeys((".dcm", ".dicom", ".ima"), "DICOM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".npy", ".npz"), "array"),
}
_ALWAYS = ("NIfTI", "DICOM")  # that are volumes also where images.axis does not say so
_NEEDS: dict[VolumeKind, str] = {"NIfTI": "nibabel", "DICOM": "pydicom", "TIFF": "tifffile"}
_READERS: dict[VolumeKind, Callable[..., Volume]] = {"NIfTI": Nifti, "TIFF": TiffStack, "array": ArrayVolume}


class VolumeSource(Source):
    """Slices of volumes, one volume after the other. A volume that costs a decode for each slice is decoded once per pass, as
    samples then go by blocks, which are volumes."""

    def __init__(self, root: Path, volumes: list[Volume], images: ImageSettings, notes: tuple[str, ...] = ()) -> None:
        self.name, self.root, self.volumes, self.window = str(root), root, volumes, images.window
        starts = np.cumsum([0, *(volume.count for volume in volumes)], dtype=np.int64)
        whole = np.array([volume.whole for volume in volumes])
        bytes_each = max(1.0, float(np.mean([volume.nbytes for volume in volumes])))
        sequential = bool(2 * whole.sum() > len(volumes)) and sum(volume.nbytes for volume in volumes) > VOLUME_MEMORY
        self.blocks: Blocks = Blocks(starts, max(1, int(VOLUME_MEMORY / 2 / bytes_each)), sequential)
        self._decoded = PrefetchCache(
            lambda i: volumes[i].load(), lambda i: volumes[i].nbytes, VOLUME_MEMORY, 1, "jepakit-volume"
        )
        self._percentiles: dict[int, tuple[float, float]] = {}
        self._lock = Lock()
        self.labels, self.held_out, guessed = self._by_folder()
        self.notes = (*notes, *guessed)

    def __len__(self) -> int:
        return int(self.blocks.starts[-1])

    @property
    def volume_of(self) -> NDArray[np.int64]:
        """The volume of each slice (n,)."""
        return np.repeat(np.arange(len(self.volumes)), np.diff(self.blocks.starts))

    def raw(self, index: int) -> Pixels:
        """A slice (H, W, C), through images.window. Raises BadImageError."""
        number = int(self.blocks.of(np.array(index)))
        volume = self.volumes[number]
        loaded = self._decoded.item(number) if volume.whole else None
        plane = volume.plane(index - int(self.blocks.starts[number]), loaded)
        return shown_as(plane, self.window, partial(self._percentiles_of, number, loaded))

    def title(self, index: int) -> str:
        number = int(self.blocks.of(np.array(index)))
        return self.volumes[number].title(index - int(self.blocks.starts[number]))

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Begin to decode the volumes of these samples, in this order, as many as fit in VOLUME_MEMORY."""
        self._decoded.prefetch(number for number in self.blocks.of(ids).tolist() if self.volumes[number].whole)

    def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
        """For the volumes of these samples that are decoded whole, as many as fit in VOLUME_MEMORY."""
        numbers = [number for number in dict.fromkeys(self.blocks.of(ids).tolist()) if self.volumes[number].whole]
        if numbers:
            self._decoded.wait_for(numbers, seconds)

    def _percentiles_of(self, number: int, loaded: Any) -> tuple[float, float]:
        with self._lock:
            if number in self._percentiles:
                return self._percentiles[number]
        volume = self.volumes[number]
        found = percentiles_of(lambda index: volume.plane(index, loaded), volume.count)
        with self._lock:
            return self._percentiles.setdefault(number, found)

    def _by_folder(self) -> tuple[Labels | None, NDArray[np.bool_] | None, tuple[str, ...]]:
        """Classes and parts by the folders that volumes lie in, each volume a group; and what is guessed."""
        names = [volume.name for volume in self.volumes]
        place: dict[str, int] = {}
        places = np.array([place.setdefault(name.rpartition("/")[0], len(place)) for name in names], np.int64)
        layout = folder_classes([*place], places, (), names.__getitem__)
        classes, values = splits.class_values(layout.classes, places, None, "")
        parts, of = layout.parts or ["train"] * len(place), self.volume_of
        held = splits.held_out_parts(parts, places)
        labels = None
        if len(classes) > 1:
            each = splits.split_labels("folder", classes, values, parts, places)  # of volumes, so that no split divides one
            labels = replace(each, values=each.values[of], test=each.test[of], groups=of, group_names=tuple(names))
        return labels, None if held is None else held[of], layout.notes


def volumes_at(root: Path, images: ImageSettings) -> Source | None:
    """The volumes that lie at `root`, a file or a folder; None where there are none.

    NIfTI and DICOM are volumes always (cut along z), TIFF and arrays where images.axis is given. Where it is not, images beside
    volumes are the set, as before there was an axis. Raises UserError where what reads them is not installed.
    """
    if not root.exists():
        return None
    found, others = _files(root, images.axis is not None)
    if not found or (others and images.axis is None):
        return None
    for kind in sorted({kind for kind, _, _ in found}):
        if kind in _NEEDS and not find_spec(_NEEDS[kind]):
            raise UserError(f"{root} holds {kind} volumes, which need {_NEEDS[kind]}: pip install 'jepakit[volumes]'")
    axis, most = images.axis or "z", images.max_pixels
    volumes: list[Volume] = [
        volume_or_broken(title, partial(_READERS[kind], path, title, axis, images.every, most))
        for kind, path, title in found
        if kind != "DICOM"
    ]
    series, without = dicom_volumes([(path, title) for kind, path, title in found if kind == "DICOM"], axis, images.every, most)
    volumes += series
    notes: tuple[str, ...] = (
        (f"{plural(without, 'DICOM file')} left out, holding no image (structures, segmentations, doses, reports, directories)",)
        if without
        else ()
    )
    if apart := [volume.name for volume in volumes if volume.others]:
        pages = (
            f"{plural(sum(volume.others for volume in volumes), 'page')} of {plural(len(apart), 'TIFF')} ({some(apart)}) left out"
        )
        notes = (*notes, f"{pages}, being of another size or kind than the first")
    if others:
        left = f"{plural(len(others), 'image file')} left out ({some(others)}), as images.axis asks for volumes"
        notes = (*notes, f"{left}: give a folder that holds just them to use them")
    if not volumes:
        raise UserError(f"no images in {root}; {plain(notes[0])}")
    return VolumeSource(root, sorted(volumes, key=lambda volume: volume.name.split("/")), images, notes)


def _files(root: Path, stacks: bool) -> tuple[list[tuple[VolumeKind, Path, str]], list[str]]:
    """Volumes below a folder, or the one file, each with its title; and images that are none, one of which suffices if not
    `stacks`, in which TIFF and arrays are volumes too."""
    if root.is_file():
        kind = _kind(str(root), root.name, stacks)
        return ([(kind, root, root.name)] if kind else []), []
    found: list[tuple[VolumeKind, Path, str]] = []
    others: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):  # folders that cannot be read are passed over
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:  # a link in a circle
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            path = os.path.join(folder, name)
            title = os.path.relpath(path, root).replace(os.sep, "/")
            if name.startswith("."):
                continue
            if kind := _kind(path, name, stacks):
                found.append((kind, Path(path), title))
            elif os.path.splitext(name)[1].lower() in SUFFIXES:
                others.append(title)
                if not stacks:
                    return found, others
    return found, others


def _kind(path: str, name: str, stacks: bool) -> VolumeKind | None:
    """What kind of volume a file is, by its ending, or for DICOM by its head; None for none."""
    lower = name.lower()
    ending = ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]
    kind = _ENDINGS.get(ending)
    if kind is not None:
        return kind if stacks or kind in _ALWAYS else None
    if ending in PLAIN or ending in SUFFIXES:
        return None
    return "DICOM" if len(head := head_of(path)) == HEAD_BYTES and kind_of(head) == "DICOM" else None
