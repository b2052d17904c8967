"""The files of a packed cache: their layout, and how they are written.

    pack.json         the manifest, written last: what was packed, length and sha256 of every other file, and what was bad
    images-00000.bin  rows (H, W, C) of one image after the other, each image from a multiple of ALIGNED bytes
    index-00000.bin   an INDEX record for each image of it
    titles-00000.bin  their titles: n + 1 offsets (u8, from the first title's byte), then the titles in UTF-8
    labels-00000.bin  a LABELS_FILE record for each image, where the source has labels
    classes.bin       the names of their classes, in the form of titles

All numbers are little-endian.
"""

import hashlib
import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jepakit.core.errors import UserError, plain
from jepakit.core.files import atomic_write, sync
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.sources import Labels, Source, fingerprint
from jepakit.data.training_part import held_out
from jepakit.model.images import MOST_PIXELS

MANIFEST, UNFINISHED, CLASSES = "pack.json", "unfinished.json", "classes.bin"
PART_KINDS = ("images", "index", "titles", "labels")
ALIGNED = 64  # bytes
DEPTHS = (np.dtype("u1"), np.dtype("<u2"), np.dtype("<f4"))
INDEX = np.dtype([("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("channels", "<u2"), ("depth", "u1"), ("crc32", "<u4")])
LABELS_FILE = np.dtype([("value", "<i8"), ("test", "u1"), ("cluster", "<i8")])


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Stored):
    """What a file must be."""

    bytes: int = Field(ge=0)
    sha256: str


class Part(_Stored):
    """Files of one number: `count` images, the last of which was the source's sample `end` - 1."""

    end: int = Field(ge=1)
    count: int = Field(ge=1)
    images: File
    index: File
    titles: File
    labels: File | None = None


class Bad(_Stored):
    """A sample that was left out."""

    index: int
    title: str
    reason: str


class Labelled(_Stored):
    """What the labels of all images have in common. digest: sha256 of all that the source said of them."""

    name: str
    whole: bool
    clusters: bool
    digest: str
    classes: int = Field(ge=0)
    names: File
    apart: int = Field(0, ge=0)

    @classmethod
    def of(cls, labels: Labels) -> "Labelled":
        names, rows = Texts.of(labels.classes).stored, label_records(labels)
        digest = hashlib.sha256(b"".join([names, *(rows[column].tobytes() for column in LABELS_FILE.names or ())])).hexdigest()
        return cls(
            name=labels.name,
            whole=labels.whole_image,
            clusters=labels.groups is not None,
            digest=digest,
            classes=len(labels.classes),
            names=_file(names),
            apart=labels.apart,
        )


class Manifest(_Stored):
    """What was packed, at which size, and what came of it; all of it decides whether a pack that was stopped can go on.

    fingerprint: of the titles of all `samples` of the source. held_out: the samples that the source's own split keeps from
    training, as ranges (from, up to); None in packs of old, which did not say. notes: the source's, on data that it does not
    use, or guesses at. max_bad, threads: what was asked of the command where that is not its default, None once it is done.
    """

    format: Literal[1] = 1
    source: str
    fingerprint: str
    samples: int
    size: int
    max_pixels: int
    labels: Labelled | None
    parts: tuple[Part, ...] = ()
    bad: tuple[Bad, ...] = ()
    held_out: tuple[tuple[int, int], ...] | None = None
    notes: tuple[str, ...] = ()
    max_bad: float | None = Field(None, ge=0, le=1)
    threads: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _adds_up(self) -> "Manifest":
        """Every sample up to a part's end is packed or bad, once."""
        bad = [entry.index for entry in self.bad]
        ends = [0, *(part.end for part in self.parts)]
        counts = [b - a - (bisect_left(bad, b) - bisect_left(bad, a)) for a, b in pairwise(ends)]
        in_order = all(a < b for few in (ends, bad) for a, b in pairwise(few))
        inside = all(0 <= index < self.samples for index in (*bad, *(end - 1 for end in ends[1:])))
        if not (in_order and inside and counts == [part.count for part in self.parts]):
            raise ValueError("its parts do not add up")
        return self

    @classmethod
    def of(cls, source: Source, data: str, size: int, max_pixels: int) -> "Manifest":
        """For a source of which nothing is packed yet; data: what the user calls it."""
        labels = source.labels
        mask = np.zeros(len(source), np.bool_) if (held := held_out(source)) is None else held
        edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).tolist()
        return cls(
            source=plain(data),
            fingerprint=fingerprint(source),
            samples=len(source),
            size=size,
            max_pixels=max_pixels,
            labels=None if labels is None else Labelled.of(labels),
            held_out=tuple(zip(edges[::2], edges[1::2], strict=True)),
            notes=tuple(map(plain, source.notes)),
        )

    @property
    def count(self) -> int:
        """Images that are packed."""
        return sum(part.count for part in self.parts)

    @property
    def image_bytes(self) -> int:
        return sum(part.images.bytes for part in self.parts)

    @property
    def stored(self) -> bytes:
        return self.model_dump_json(indent=1).encode()

    @property
    def command(self) -> str:
        """What packs it, less --out."""
        labels = f" --labels {quote(self.labels.name)}" if self.labels else ""
        most = f" --max-pixels {self.max_pixels}" if self.max_pixels != MOST_PIXELS else ""
        few = f" --max-bad {self.max_bad}" if self.max_bad is not None else ""
        threads = f" --threads {self.threads}" if self.threads is not None else ""
        return f"jepakit data pack {quote(self.source)} --size {self.size}{labels}{most}{few}{threads}"


@dataclass(frozen=True, eq=False)
class Texts:
    """Many short texts in two arrays: offsets (n + 1,) into UTF-8."""

    offsets: NDArray[np.uint64]
    data: bytes

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        return cls(np.cumsum([0, *map(len, encoded)]).astype("<u8"), b"".join(encoded))

    @classmethod
    def parsed(cls, stored: bytes, count: int) -> "Texts | None":
        """None where these are not the bytes of so many texts."""
        head = 8 * (count + 1)
        if len(stored) < head:
            return None
        offsets, data = np.frombuffer(stored, "<u8", count + 1), stored[head:]
        fit = not offsets[0] and offsets[-1] == len(data) and bool((offsets[1:] >= offsets[:-1]).all())
        return cls(offsets, data) if fit else None

    @property
    def stored(self) -> bytes:
        return self.offsets.tobytes() + self.data

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        return self.data[self.offsets.item(row) : self.offsets.item(row + 1)].decode(errors="surrogateescape")


def part_path(root: Path, kind: str, number: int) -> Path:
    """A file of a part; kind: one of PART_KINDS."""
    return root / f"{kind}-{number:05}.bin"


def manifest_of(path: Path) -> Manifest:
    """The manifest in a file. Raises UserError."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = plain(".".join(map(str, first["loc"])))
        raise UserError(
            f"{path} is no manifest that this version of jepakit reads ({where + ': ' if where else ''}{first['msg']}): "
            f"pack the images again, to another folder"
        ) from None


def label_records(labels: Labels) -> NDArray[Any]:
    """A LABELS_FILE record for each sample (n,)."""
    rows = np.zeros(len(labels.values), LABELS_FILE)
    rows["value"], rows["test"] = labels.values, labels.test
    if labels.groups is not None:
        rows["cluster"] = labels.groups
    return rows


class Writer:
    """Writes the files of a part: the images as they come, all else at the end."""

    def __init__(self, root: Path, number: int) -> None:
        self.bytes, self._root, self._number = 0, root, number
        self._rows: list[tuple[int, ...]] = []
        self._titles: list[str] = []
        self._ids: list[int] = []
        self._sum = hashlib.sha256()
        self._path = part_path(root, "images", number)
        self._draft = self._path.with_name(f".tmp-{self._path.name}")
        self._file = self._draft.open("wb")

    def add(self, index: int, title: str, pixels: Pixels, crc32: int) -> None:
        """Write the pixels of a sample."""
        gap = -self.bytes % ALIGNED
        for piece in (bytes(gap), pixels.reshape(-1).view(np.uint8).data):
            self._file.write(piece)
            self._sum.update(piece)
        self._rows.append((self.bytes + gap, *pixels.shape, DEPTHS.index(pixels.dtype), crc32))
        self._titles.append(title)
        self._ids.append(index)
        self.bytes += gap + pixels.nbytes

    def close(self, labels: Labels | None) -> Part:
        """Put the files of the part in their places; labels: of all samples of the source."""
        with self._file:
            _sync(self._file)
        self._draft.replace(self._path)
        contents = {"index": np.array(self._rows, INDEX).tobytes(), "titles": Texts.of(self._titles).stored}
        if labels is not None:
            contents["labels"] = label_records(labels)[self._ids].tobytes()
        stored = {kind: store(part_path(self._root, kind, self._number), content) for kind, content in contents.items()}
        images = File(bytes=self.bytes, sha256=self._sum.hexdigest())
        return Part(end=self._ids[-1] + 1, count=len(self._ids), images=images, **stored)


def store(path: Path, content: bytes) -> File:
    """Write a file, all of it or none, and wait until it is on the disk."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        file.write(content)
        _sync(file)
    sync(path.parent)
    return _file(content)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _file(content: bytes) -> File:
    return File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
