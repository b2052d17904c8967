"""Where the images of a tar archive lie in it: read off its headers once, and kept in the user's cache folder.

Nothing is unpacked, and names are only words: what a member is called, or points to, has no effect.
"""

import hashlib
import json
import os
import re
import tarfile
from array import array
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.decoding.file_kinds import HEAD_BYTES
from jepakit.data.formats.disk_cache import cache_folder, written_aside
from jepakit.data.formats.prefetch import OpenFile
from jepakit.data.unread_files import LeftOut

VERSION = 5  # of what is cached
MOST_HEADER = 1 << 17  # bytes of headers that one member may have
MOST_LABEL = 1 << 16  # bytes of a .cls or .json file that may hold a label
LONGEST = 256  # characters of a label
ENDING = re.compile(r"\.(?![0-9])")  # between the parts of a name that tell what a file is
_WHOLE_FLOAT = re.compile(r"^([+-]?[0-9]{1,18})\.0*$")  # a whole number that is written as a float
DIGITS = re.compile(rb"[0-9]{257}")  # in a header these would take tarfile's patterns quadratic time
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


@dataclass(frozen=True, eq=False)
class Words:
    """A word of each of n images, or none: `places` (n,) int32 are indices into `table`, or -1."""

    table: tuple[str, ...]
    places: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The n images of a tar, in its order: their bytes begin at offsets (n,) and are sizes (n,) long, both int64.

    names: all names after each other, in UTF-8; ends (n,) int64: where each ends. labels: of the .cls or .json file beside
    each image. folders: the path of the folder of each, as in 'train/cat'. cut: why reading ended early, '' if it did not.
    others: how many images are left out because their sample has another; links: how many because they are links.
    left: other files that are left out, as `LeftOut` stores it.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]
    labels: Words
    folders: Words
    cut: str
    others: int
    links: int
    left: Any


class _Headers:
    """What tarfile reads headers through: never more of a member's than MOST_HEADER, whatever length they state."""

    def __init__(self, file: OpenFile) -> None:
        self.file, self.at, self.left = file, 0, MOST_HEADER

    def tell(self) -> int:
        return self.at

    def seek(self, at: int) -> None:
        if at < 0:
            raise tarfile.ReadError("a negative length")
        self.at = at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError("a header that is too long")
        data = self.file.read(size, self.at)
        if size > tarfile.BLOCKSIZE and DIGITS.search(data):
            raise tarfile.ReadError("a header with an endless number")
        self.at, self.left = self.at + len(data), self.left - size
        return data


def tar_index(file: OpenFile, name: str) -> TarIndex:
    """The images of an open tar. Raises UserError if it is none; one that breaks off is read up to there."""
    offsets, sizes, ends, names = array("q"), array("q"), array("q"), bytearray()
    labels: dict[str, int] = {}  # each label and its place in their table
    label_of: dict[str, int] = {}  # the place, by key
    links, left = 0, LeftOut()
    members = _members(file, name)
    while True:
        try:
            info = next(members)
        except StopIteration as end:
            cut = str(end.value)
            break
        parts = [part for part in info.name.split("/") if part not in ("", ".")]
        if not parts or any(part[0] == "." and part != ".." for part in parts):
            continue
        title, ending = "/".join(parts), parts[-1].partition(".")[2].lower()
        is_image = os.path.splitext(title)[1].lower() in SUFFIXES
        if not info.isreg() or info.issparse():
            links += is_image and (info.issym() or info.islnk())
        elif ending in ("cls", "json"):
            label = _label(file.read(info.size, info.offset_data), ending) if info.size <= MOST_LABEL else ""
            if not label:
                left.add(title, bytes)
            elif ending == "cls" or _key(title) not in label_of:
                label_of[_key(title)] = labels.setdefault(label, len(labels))
        elif is_image:
            offsets.append(info.offset_data)
            sizes.append(info.size)
            names += title.encode(errors="surrogateescape")
            ends.append(len(names))
        else:
            left.add(title, partial(file.read, min(info.size, HEAD_BYTES), info.offset_data))
    kept, text, last = _one_a_sample(bytes(names), np.array(ends, np.int64))
    labelled = [label_of.get(_key(title), -1) for title in split_names(text, last)]
    folders: dict[str, int] = {"": -1}
    in_folders = [folders.setdefault(title.rpartition("/")[0], len(folders) - 1) for title in split_names(text, last)]
    words = Words(tuple(labels), np.array(labelled, np.int32)), Words(tuple(folders)[1:], np.array(in_folders, np.int32))
    lie, more = np.array([offsets, sizes], np.int64)[:, kept], len(ends) - len(last)
    return TarIndex(lie[0], lie[1], text, last, *words, cut, more, links, left.stored)


def _one_a_sample(names: bytes, ends: NDArray[np.int64]) -> tuple[NDArray[np.bool_], bytes, NDArray[np.int64]]:
    """Keeps one image of each sample: the first with a plain ending ('jpg', not 'seg.png'), or else the first.

    Returns which are kept (n,), and names and ends of these, as of TarIndex.
    Images of a sample have one name up to the first dot that no digit follows: '000.jpg' and '000.seg.png', but not
    'film.0001.png' and 'film.0002.png'.
    """
    samples, more = np.empty(len(ends), np.int64), np.empty(len(ends), np.bool_)
    for i, title in enumerate(split_names(names, ends)):
        folder, _, base = title.rpartition("/")
        stem, *endings = ENDING.split(base)
        samples[i], more[i] = hash((folder, stem)), len(endings) > 1  # 64 bits: no two of a shard's millions agree
    plain_first = np.argsort(more, kind="stable")
    kept = np.zeros(len(ends), np.bool_)
    kept[plain_first[np.unique(samples[plain_first], return_index=True)[1]]] = True
    lengths = np.diff(ends, prepend=0)
    return kept, np.frombuffer(names, np.uint8)[np.repeat(kept, lengths)].tobytes(), np.cumsum(lengths[kept])


def split_names(names: bytes, ends: NDArray[np.int64]) -> Generator[str, None, None]:
    """The names, one by one, of a text of all and the place where each ends."""
    start = 0
    for end in ends.tolist():
        yield names[start:end].decode(errors="surrogateescape")
        start = end


def _key(title: str) -> str:
    """What the files of one sample share: the name up to the first dot of its last part."""
    head, slash, base = title.rpartition("/")
    return head + slash + base.partition(".")[0]


def _label(data: bytes, ending: str) -> str:
    """The label that a .cls or .json file holds, '' if none."""
    try:
        value: Any = data.decode().strip()
        if ending == "json":
            found = json.loads(value)
            value = next((found[key] for key in ("label", "class", "cls") if key in found), "") if isinstance(found, dict) else ""
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > LONGEST:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else ""
    return _WHOLE_FLOAT.sub(r"\1", value) if isinstance(value, str) else str(value)


def _members(file: OpenFile, name: str) -> Generator[tarfile.TarInfo, None, str]:
    """Yields the members that are complete, returns why it ended early, '' if it did not. Raises UserError if it is no tar."""
    headers = _Headers(file)
    try:
        stream: Any = headers
        tar: Any = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
    except Exception:  # tarfile's errors are of many kinds where a header is broken
        if file.read(8, 0).startswith(_PACKED):
            raise UserError(f"{name} is compressed, so that no image can be read by itself: unpack it to a plain .tar") from None
        raise UserError(f"{name} is no tar archive: leave it out, or fetch it again") from None
    at = 0
    while True:
        headers.left = MOST_HEADER
        try:
            info = tar.next()
        except Exception as error:
            return f"broken after byte {at} ({type(error).__name__}: {error})"
        if info is None:
            break
        if tar.offset <= at or info.size < 0:
            return f"broken after byte {at} (a header that leads back)"
        if info.isreg() and not info.issparse() and info.offset_data + info.size > file.size:
            return f"cut off in {info.name!r}"
        at = tar.offset
        tar.members.clear()  # it would keep them all
        tar.pax_headers = {}
        yield info
    end = file.read(tarfile.BLOCKSIZE, tar.offset)
    if len(end) < tarfile.BLOCKSIZE:
        return f"cut off after byte {at}"
    return f"broken after byte {at}" if any(end) else ""


def cached_index(address: str, stamp: str) -> TarIndex | None:
    """The index of the tar at an address from the cache, if it has that of the same stamp."""
    try:
        with np.load(_kept_at(address), allow_pickle=False) as file:
            meta = json.loads(file["meta"].tobytes())
            if (meta["version"], meta["stamp"]) != (VERSION, stamp):
                return None
            (offsets, sizes, ends), (labels, folders) = file["lies"], file["words"]
            words = Words(tuple(meta["labels"]), labels), Words(tuple(meta["folders"]), folders)
            return TarIndex(offsets, sizes, file["names"].tobytes(), ends, *words, meta["cut"], *meta["left"])
    except Exception:  # whatever a broken file provokes: it is made again
        return None


def new_index(address: str, stamp: str, file: OpenFile, name: str) -> tuple[TarIndex, str]:
    """The index of an open tar, from now on in the cache; and why it cannot be kept there, '' if it is. Raises UserError."""
    index = tar_index(file, name)
    left = [index.others, index.links, index.left]
    tables = {"labels": index.labels.table, "folders": index.folders.table}
    meta = json.dumps({"version": VERSION, "stamp": stamp, "cut": index.cut, "left": left, **tables}).encode()
    try:
        with written_aside(_kept_at(address)) as draft, draft.open("wb") as out:
            np.savez(
                out,
                meta=np.frombuffer(meta, np.uint8),
                lies=np.stack([index.offsets, index.sizes, index.ends]),
                words=np.stack([index.labels.places, index.folders.places]),
                names=np.frombuffer(index.names, np.uint8),
            )
    except OSError as error:
        return index, str(error)
    return index, ""


def _kept_at(address: str) -> Path:
    return cache_folder("shards") / f"{hashlib.sha256(address.encode(errors='surrogateescape')).hexdigest()[:40]}.npz"
