"""The packed cache: images decoded and shrunk once, cropped from a memory map without decoding (layout: pack_format.py)."""

import hashlib
import re
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.formats.folder import unused
from jepakit.data.formats.pack_format import (
    ALIGNED,
    CLASSES,
    DEPTHS,
    INDEX,
    LABELS_FILE,
    MANIFEST,
    PART_KINDS,
    UNFINISHED,
    File,
    Labelled,
    Manifest,
    Part,
    Texts,
    manifest_of,
    part_path,
)
from jepakit.data.sources import Labels, Source, pick


@dataclass
class PackedSource(Source):
    """Images of a pack. Pixels are views of memory maps; a map is private, so that nothing writes to the files.

    Lengths are checked before files are mapped. What is left: reading what another program cuts off a file after that
    ends the process with a bus error (SIGBUS), which Python cannot catch. `jepakit data pack` itself never cuts a file.
    """

    root: Path
    manifest: Manifest
    labels: Labels | None
    index: list[NDArray[Any]]  # INDEX records of each part
    titles: list[Texts]
    maps: list[NDArray[np.uint8]]
    held_out: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        self.name, self.notes = str(self.root), self.manifest.notes
        if bad := self.manifest.bad:
            some = ", ".join(entry.title for entry in bad[:3]) + ", ..." * (len(bad) > 3)
            self.notes += (f"{len(bad):,} of {self.manifest.samples:,} images could not be read and were not packed: {some}",)
        self.by_place = re.fullmatch(r"(.*:)?\d+", self.titles[0][0]) is not None  # packed from arrays or tables
        *self._firsts, self._count = np.cumsum([0, *(part.count for part in self.manifest.parts)]).tolist()

    def __len__(self) -> int:
        return int(self._count)

    def raw(self, index: int) -> Pixels:
        part, row = self._place(index)
        offset, height, width, channels, depth, _ = self.index[part].item(row)
        return np.ndarray((height, width, channels), DEPTHS[depth], self.maps[part], offset)  # type: ignore[arg-type]

    def title(self, index: int) -> str:
        part, row = self._place(index)
        return self.titles[part][row]

    def intact(self, index: int) -> bool:
        """Whether an image's bytes are those that were packed (crc32)."""
        part, row = self._place(index)
        return zlib.crc32(self.raw(index).data) == int(self.index[part]["crc32"][row])

    def _place(self, index: int) -> tuple[int, int]:
        """The part that holds a sample, and the sample's row in it."""
        part = bisect_right(self._firsts, index) - 1
        return part, index - self._firsts[part]

    def unchanged(self, part: int) -> bool:
        """Whether a file of images is what was written (sha256); index, titles and labels were checked at the opening."""
        with part_path(self.root, "images", part).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.manifest.parts[part].images.sha256


def packed(root: Path, labels: str | None) -> Source | None:
    """The source of a folder that `jepakit data pack` wrote; None for other folders.

    Raises UserError where it is packed in part, where a file is not what was written, and for labels that it does not have.
    """
    if (root / UNFINISHED).is_file() and not (root / MANIFEST).is_file():
        try:
            half = manifest_of(root / UNFINISHED)
        except UserError:  # some other program's
            return None
        raise UserError(f"{root} is packed in part; go on with: {plain(half.command)} --out {quote(str(root))}")
    if not (root / MANIFEST).is_file() or not any(part_path(root, kind, 0).exists() for kind in PART_KINDS):
        return None
    manifest = manifest_of(root / MANIFEST)
    pick(labels, (manifest.labels.name,) if manifest.labels else (), str(root))
    if not manifest.parts:
        raise UserError(f"{root} is a pack of no images")
    numbered = list(enumerate(manifest.parts))
    index = [records(root, number, part) for number, part in numbered]
    titles = [_texts(part_path(root, "titles", number), part.titles, part.count) for number, part in numbered]
    found = _labels(root, manifest, manifest.labels) if manifest.labels else None
    maps = [_mapped(root, number, part) for number, part in numbered]
    source = PackedSource(root, manifest, found, index, titles, maps, _held_out(manifest))
    own = [part_path(root, kind, number).name for kind in PART_KINDS for number, _ in numbered]
    source.notes += unused(root, [MANIFEST, CLASSES, *own], len(source))
    return source


def _mapped(root: Path, number: int, part: Part) -> NDArray[np.uint8]:
    """A file's bytes. torch's map, unlike numpy's, keeps no file open: a large set has more parts than a process has files."""
    path = part_path(root, "images", number)
    require_length(path, part.images)  # reading a map beyond the file's end would kill the process
    mapped: NDArray[np.uint8] = torch.from_file(str(path), shared=False, size=part.images.bytes, dtype=torch.uint8).numpy()
    return mapped


def records(root: Path, number: int, part: Part) -> NDArray[Any]:
    """Verified INDEX records (count,) of a part, each of which lies in its file of images. Raises UserError."""
    path = part_path(root, "index", number)
    rows = _rows(path, part.index, part.count, INDEX)
    sides = [rows[name].astype(np.float64) for name in ("height", "width", "channels")]  # their product can be above 2^64
    sizes = np.prod(sides, 0) * np.take([depth.itemsize for depth in DEPTHS], rows["depth"], mode="clip")
    inside = (rows["offset"] <= part.images.bytes) & (sizes > 0) & (sizes <= part.images.bytes - rows["offset"].astype(float))
    if not (inside & (rows["offset"] % ALIGNED == 0) & (rows["depth"] < len(DEPTHS))).all():
        raise _broken(path, "has records of no image in its file")
    return rows


def _rows(path: Path, file: File, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """The verified records (count,) of a file. Raises UserError."""
    content = _content(path, file)
    if len(content) != count * kind.itemsize:
        raise _broken(path, f"holds no {count} records")
    return np.frombuffer(content, kind)


def _content(path: Path, file: File) -> bytes:
    """The verified bytes of a file. Raises UserError."""
    require_length(path, file)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _broken(path, "has changed since it was written (sha256)")
    return content


def require_length(path: Path, file: File) -> None:
    """Raises UserError where a file is missing, or is longer or shorter than it was written."""
    have = path.stat().st_size if path.is_file() else None
    if have != file.bytes:
        raise _broken(path, "is missing" if have is None else f"has {have:,} bytes, not {file.bytes:,}")


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: copy the pack again, or pack the images again with --overwrite")


def _held_out(manifest: Manifest) -> NDArray[np.bool_] | None:
    """What the source's own split keeps from training, of the images that are packed."""
    held = np.zeros(manifest.samples, np.bool_)
    for start, end in manifest.held_out or ():
        held[start:end] = True
    return np.delete(held, [entry.index for entry in manifest.bad]) if held.any() else None


def _texts(path: Path, file: File, count: int) -> Texts:
    found = Texts.parsed(_content(path, file), count)
    if found is None:
        raise _broken(path, f"holds no {count} texts")
    return found


def _part_labels(path: Path, part: Part) -> NDArray[Any]:
    if part.labels is None:
        raise _broken(path, f"holds no {part.count} records")
    return _rows(path, part.labels, part.count, LABELS_FILE)


def _labels(root: Path, manifest: Manifest, said: Labelled) -> Labels:
    classes = _texts(root / CLASSES, said.names, said.classes)
    parts = enumerate(manifest.parts)
    rows = np.concatenate([_part_labels(part_path(root, "labels", number), part) for number, part in parts])
    if rows["value"].min() < -1 or rows["value"].max() >= len(classes):
        raise _broken(root / CLASSES, "lacks classes that labels name")
    clusters = rows["cluster"].astype(np.int64) if said.clusters else None
    names, values = tuple(classes[i] for i in range(len(classes))), rows["value"].astype(np.int64)
    own = manifest.held_out is None  # an old pack may have come from a set with a split; others tell it apart from labels
    return Labels(said.name, names, values, rows["test"].astype(bool), clusters, said.whole, own, said.apart)
