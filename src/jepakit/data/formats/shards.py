"""Shards: images in tar archives, in the layout of WebDataset, read where they lie in the archive; here or afar."""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.core.progress import progress
from jepakit.data.decoding.decode import MOST_FILE_BYTES, SUFFIXES
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.prefetch import Fetched, OpenFile
from jepakit.data.formats.remote import DataPaths, is_permanent, natural, reason_of, shown, titles_below, with_retries
from jepakit.data.formats.tars import TarIndex, cached_index, new_index
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.classes import folder_classes
from jepakit.data.labels.segmentation_masks import NO_MASKS, masks_among, note_of
from jepakit.data.sources import Blocks, Labels, Source, by_default, pick
from jepakit.data.unread_files import LeftOut, beside

T = TypeVar("T")
log = logging.getLogger("jepakit")
TOGETHER = 4  # shards that are read at a time; as many again are fetched meanwhile
OPEN = 64  # local shards open at a time
QUIET = 3.0  # seconds of indexing before its progress is shown
COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # refused when they are read
TELLING = re.compile(r"\.(cls\d*|json|txt|labels?|class(es)?|targets?|categor(y|ies))")  # endings of files that may tell labels
CAPTIONS = (".json", ".txt")
# what tells one content from another, as the back-ends call it
STAMPS = {"size", "mtime", "created", "etag", "md5", "last-modified", "lastmodified", "last_modified", "blob_id", "generation"}
STAMPS |= {"content-md5", "digest", "md5hash", "crc32c"}


@dataclass
class ShardSource(Source):
    """Images of tar archives. Reading is safe from several threads.

    files (k,): the number of each shard among the files; starts (k + 1,): the first image of each; offsets and sizes (n,):
    where the bytes of each image lie in its shard; text: all names, and ends (n,): where each ends.
    """

    name: str
    shards: tuple[str, ...]
    file: Callable[[int], OpenFile]
    files: NDArray[np.int64]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    text: bytes
    ends: NDArray[np.int64]
    labels: Labels | None
    fetched: Fetched | None
    held_out: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.blocks: Blocks = Blocks(self.starts, TOGETHER, sequential=self.fetched is not None)

    def __len__(self) -> int:
        return len(self.sizes)

    def raw(self, index: int) -> bytes:
        size = int(self.sizes[index])
        if size > MOST_FILE_BYTES:
            raise BadImageError(f"{size} bytes are too many for an image")
        try:
            data = self.file(int(self.files[self._shard(index)])).read(size, int(self.offsets[index]))
        except OSError as error:
            raise BadImageError(error.strerror or str(error)) from None
        if len(data) < size:
            raise BadImageError("the shard is cut off")
        return data

    def title(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        name = self.text[start : int(self.ends[index])].decode(errors="surrogateescape")
        return f"{self.shards[self._shard(index)]}:{plain(name)}"  # a name may be made for a terminal

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        if self.fetched is not None:
            self.fetched.prefetch(self.files[self.blocks.of(ids)].tolist())

    def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
        if self.fetched is not None:
            self.fetched.wait_for(self.files[self.blocks.of(ids)].tolist(), seconds)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1


def tar_shards(path: Path, labels: str | None) -> Source | None:
    """A .tar file, or a folder that holds them and no images, or folders of them named as splits.

    Labels: 'label' by .cls or .json files of the same key, or 'folder'. Raises UserError.
    """
    is_tar = path.is_file() and path.name.lower().endswith((".tar", *COMPRESSED))
    found = [path] if is_tar else _tars(path) if path.is_dir() else []
    if not found:
        return None
    source = shards_of(DataPaths(LocalFileSystem(), natural(map(os.path.abspath, found))), str(path), labels)
    source.notes += beside(found, len(source)) if path.is_dir() else ()
    return source


def _tars(root: Path) -> list[Path]:
    """The .tar files of a folder, or of folders of splits in it."""
    here: list[Path] = []
    folders: list[Path] = []
    with os.scandir(root) as entries:
        for entry in entries:
            kind = os.path.splitext(entry.name)[1].lower()
            if kind in SUFFIXES:  # archives may also lie beside what they held
                return []
            if not entry.name.startswith("."):
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif kind == ".tar" and entry.is_file():
                    here.append(Path(entry.path))
    if here or not all(splits.split_of(folder / "x.tar") for folder in folders):
        return [] if folders else here
    return [path for folder in folders for path in _tars(folder)]


def shards_of(places: DataPaths, name: str, labels: str | None) -> ShardSource:
    """The source of these shards. Raises UserError for one that is no tar or cannot be read, and if none holds images."""
    fetched = None if places.local else Fetched(places, 2 * TOGETHER, lambda i: _stamp(places, i)[0])
    file = fetched.file if fetched else lru_cache(OPEN)(lambda i: OpenFile(places.paths[i]))
    indexes = _indexes(places, file, name)
    missing = _missing(places, indexes)
    used = [i for i, index in enumerate(indexes) if len(index.sizes)]
    if not used:
        said = "".join(f"; {plain(note)}" for note in missing)
        raise UserError(f"no images in {name} (looked for {', '.join(sorted(SUFFIXES))}){said}")
    found, titles = [indexes[i] for i in used], titles_below(places.paths)
    source = ShardSource(
        name=name,
        shards=tuple(titles[i] for i in used),
        file=file,
        files=np.array(used, np.int64),
        starts=np.cumsum([0, *(len(index.sizes) for index in found)], dtype=np.int64),
        offsets=np.concatenate([index.offsets for index in found]),
        sizes=np.concatenate([index.sizes for index in found]),
        text=b"".join(index.names for index in found),
        ends=np.cumsum(np.concatenate([np.diff(index.ends, prepend=0) for index in found])),
        labels=None,
        fetched=fetched,
        notes=missing,
    )
    _take_labels(source, found, labels)
    return source


def _indexes(places: DataPaths, file: Callable[[int], OpenFile], name: str) -> list[TarIndex]:
    """The index of each shard, kept from an earlier opening or read now. Raises UserError."""
    addresses = [str(places.fs.unstrip_protocol(path)) for path in places.paths]

    def known(i: int) -> tuple[str, int | None, TarIndex | None]:
        stamp, size = _stamp(places, i)
        return stamp, size, cached_index(addresses[i], stamp)

    stamps, sizes, indexes = zip(*_by_threads(places, known, range(len(addresses)), "looking at shards"), strict=True)
    new = [i for i, index in enumerate(indexes) if index is None]
    if new and not places.local:
        of = [sizes[i] for i in new]
        said = "" if None in of else f", {sum(size or 0 for size in of) / 1e6:,.0f} MB"
        log.info("%s: %d of %d shards are fetched whole for an index of what they hold%s", name, len(new), len(indexes), said)
    read = _by_threads(
        places, lambda i: new_index(addresses[i], stamps[i], file(i), shown(places.paths[i])), new, "indexing shards"
    )
    lost = [why for _, why in read if why]
    if lost:
        said = "%s: the index of %d shards cannot be kept, so that each opening reads them anew: %s; set XDG_CACHE_HOME"
        log.warning(said, name, len(lost), lost[0])
    found = iter(read)
    return [next(found)[0] if index is None else index for index in indexes]


def _by_threads(places: DataPaths, work: Callable[[int], T], numbers: Sequence[int], title: str) -> list[T]:
    """What `work` gives for each of these shards, in their order; progress is shown where it takes long. Raises UserError."""

    def worked(i: int) -> T:
        path = shown(places.paths[i])
        try:
            return work(i)
        except UserError:
            raise
        except BadImageError as error:
            raise UserError(f"a shard cannot be read: {error}") from None
        except Exception as error:  # each back-end raises its own
            if is_permanent(error):
                raise UserError(f"the shard {path} is not found: check the pattern, and that you may read it") from None
            raise UserError(f"the shard {path} cannot be read: {reason_of(error)}") from None

    started, report = time.monotonic(), None
    results = []
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(TOGETHER)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for result in pool.map(worked, numbers):
            results.append(result)
            if report is None and time.monotonic() - started > QUIET:
                report = stack.enter_context(progress(title, len(numbers), len(results)))
            if report is not None:
                report(len(results))
    return results


def _stamp(places: DataPaths, i: int) -> tuple[str, int | None]:
    """Text that changes when a file does: its size, and its time or the server's mark; and the size, None where it is unknown."""
    path = places.paths[i]
    if places.local:
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}", status.st_size
    info = with_retries(lambda: places.fs.info(path))
    marks = sorted((key.lower(), str(value)) for key, value in info.items() if key.lower() in STAMPS and value is not None)
    return repr(marks if len(marks) > 1 else [*marks, places.fs.ukey(path)]), info.get("size")


def _missing(places: DataPaths, indexes: list[TarIndex]) -> tuple[str, ...]:
    """Notes for the user on what these shards hold that is not used."""
    cut = [(path, index.cut) for path, index in zip(places.paths, indexes, strict=True) if index.cut]
    notes = [
        f"{len(cut)} of {len(indexes)} shards break off: {shown(path)} is {why}; images before that are used, fetch the shard "
        f"again for the others"
        for path, why in cut[:1]
    ]
    others, links = sum(index.others for index in indexes), sum(index.links for index in indexes)
    if others:
        notes.append(f"left out are {others:,} images whose sample has another (what shares a name up to its dot is one)")
    if links:
        notes.append(f"left out are {links:,} links to images: pack the images themselves")
    return (*notes, *LeftOut.merged(index.left for index in indexes).notes(sum(len(index.sizes) for index in indexes)))


def _take_labels(source: ShardSource, indexes: list[TarIndex], labels: str | None) -> None:
    """Set a source's labels and held-out samples, and add notes on what of them is a guess. Raises UserError."""
    words, codes = splits.merged((index.labels.table, index.labels.places) for index in indexes)
    folders, lies = splits.merged((index.folders.table, index.folders.places) for index in indexes)
    lies, folders = np.where(lies < 0, len(folders), lies), [*folders, ""]  # the last: in no folder
    masks = NO_MASKS if source.fetched else masks_among(source.title, folders, lies, source.read)
    of = folder_classes(folders, lies, masks.folders, source.title)
    choices = (*(("label",) if words else ()), *(("folder",) if len({*of.classes} - {None}) > 1 else ()))
    chosen = pick(labels, choices, source.name)
    parts, places = of.parts, lies
    if not parts:
        rows = np.diff(source.starts)
        parts, places = splits.parts(source.shards), np.repeat(np.arange(len(indexes)), rows)
        source.notes += splits.unnamed(source.shards, rows.tolist())
    source.held_out = splits.held_out_parts(parts, places)
    source.notes += (*note_of(masks, len(source), ""), *by_default(labels, chosen, choices))
    if chosen != "label":
        source.notes += of.notes
    source.notes += _no_labels(indexes, chosen == "label")
    if not chosen:
        return
    unique, codes = (_numbers(words), codes) if chosen == "label" else (of.classes, lies)
    classes, values = splits.class_values(unique, codes, None, source.name)
    source.labels = splits.split_labels(chosen, classes, values, parts, places)


def _no_labels(indexes: list[TarIndex], labelled: bool) -> tuple[str, ...]:
    """A note on files whose endings promise labels but that give none; labelled: others do, and captions are not spoken of."""
    left = LeftOut.merged(index.left for index in indexes)
    endings = sorted(ending for ending in left.of if TELLING.fullmatch(ending) and not (labelled and ending in CAPTIONS))
    counts = ", ".join(f"{ending} {left.count(ending):,}" for ending in endings)
    files = "further files" if labelled else "files"
    how = "a label is what a .cls file holds, or a .json under 'label', 'class' or 'cls'"
    return (f"no labels are found in {files} beside images ({counts}): {how}",) if endings else ()


def _numbers(words: list[str]) -> list[int] | list[str]:
    """Words as numbers if all are, so that 10 comes after 9."""
    return [int(word) for word in words] if all(re.fullmatch(r"[+-]?[0-9]{1,18}", word) for word in words) else words
