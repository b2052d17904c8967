"""Shards: images in tar archives, in the layout of WebDataset, read where they lie in the archive; here or afar."""

import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from jepakit.data.decode import SUFFIXES
from jepakit.data.fetched import Fetched, OpenFile
from jepakit.data.pixels import BadImageError
from jepakit.data.remote import Places, expand, is_pattern, is_remote, lasts, natural, patiently, shown
from jepakit.data.sources import Blocks, Labels, Source, fifths, pick
from jepakit.data.tars import TarIndex, Words, cached_index
from jepakit.errors import UserError, line_of, plain
from jepakit.progress import progress

log = logging.getLogger("jepakit")
TOGETHER = 4  # shards that are read at a time; as many again are fetched meanwhile
OPEN = 64  # local shards open at a time
MOST_BYTES = 1 << 30  # of one image's file
QUIET = 3.0  # seconds of indexing before its progress is shown
COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
TRAIN, TEST, VALIDATION = 0, 1, 2
PARTS = {"train": TRAIN, "test": TEST, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}
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

    def __post_init__(self) -> None:
        self.blocks = Blocks(self.starts, TOGETHER, dear=self.fetched is not None)

    def __len__(self) -> int:
        return len(self.sizes)

    def raw(self, index: int) -> bytes:
        size = int(self.sizes[index])
        if size > MOST_BYTES:
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

    def soon(self, ids: NDArray[np.int64]) -> None:
        if self.fetched is not None:
            self.fetched.soon(self.files[np.searchsorted(self.starts, ids, side="right") - 1].tolist())

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1


def tar_shards(data: str | Path, labels: str | None) -> Source | None:
    """A .tar file, a pattern of them, or a folder that holds them and no images, or folders of them named as splits.

    Labels: 'label' by .cls or .json files of the same key, or 'folder'. Raises UserError.
    """
    name, path = str(data), Path(data)
    if is_remote(name) or is_pattern(name):
        return shards_of(expand(name), shown(name), labels)
    if not path.is_file():
        found = _tars(path) if path.is_dir() else []
    elif path.name.lower().endswith(COMPRESSED):
        raise UserError(f"{path} is compressed, so that no image can be read by itself: unpack it")
    else:
        found = [path] if path.suffix.lower() == ".tar" else []
    return shards_of(Places(LocalFileSystem(), natural(os.path.abspath(path) for path in found)), name, labels) if found else None


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
    if here or any(_part(folder.name) is None for folder in folders):
        return [] if folders else here
    return [path for folder in folders for path in _tars(folder)]


def shards_of(places: Places, name: str, labels: str | None) -> ShardSource:
    """The source of these shards. Raises UserError for one that is no tar or cannot be read, and if none holds images."""
    fetched = None if places.local else Fetched(places, 2 * TOGETHER)
    file = fetched.file if fetched else lru_cache(OPEN)(lambda i: OpenFile(places.paths[i]))
    indexes = _indexes(places, file)
    _say_cut(places, indexes)
    used = [i for i, index in enumerate(indexes) if len(index.sizes)]
    if not used:
        raise UserError(f"no images in {name} (looked for {', '.join(sorted(SUFFIXES))}); unpack archives that lie in archives")
    found, titles = [indexes[i] for i in used], _titles(places.paths)
    starts = np.cumsum([0, *(len(index.sizes) for index in found)]).astype(np.int64)
    lengths = np.cumsum([0, *(len(index.names) for index in found)])
    return ShardSource(
        name=name,
        shards=tuple(titles[i] for i in used),
        file=file,
        files=np.array(used, np.int64),
        starts=starts,
        offsets=np.concatenate([index.offsets for index in found]),
        sizes=np.concatenate([index.sizes for index in found]),
        text=b"".join(index.names for index in found),
        ends=np.concatenate([index.ends + before for index, before in zip(found, lengths, strict=False)]),
        labels=_labels(found, [_part_of(places.paths[i]) for i in used], labels, name),
        fetched=fetched,
    )


def _indexes(places: Places, file: Callable[[int], OpenFile]) -> list[TarIndex]:
    """The index of each shard, by a few threads; how far they are is shown where it takes long. Raises UserError."""

    def index(i: int) -> TarIndex:
        path = shown(places.paths[i])
        try:
            stamp, address = _stamp(places, i), str(places.fs.unstrip_protocol(places.paths[i]))
            return cached_index(address, stamp, lambda: file(i), path)
        except UserError:
            raise
        except BadImageError as error:
            raise UserError(f"a shard cannot be read: {error}") from None
        except Exception as error:  # each back-end raises its own
            if lasts(error):
                raise UserError(f"the shard {path} is not found: check the pattern, and that you may read it") from None
            raise UserError(f"the shard {path} cannot be read: {shown(line_of(error)) or type(error).__name__}") from None

    pool, started = ThreadPoolExecutor(TOGETHER), time.monotonic()
    try:
        indexes = [pool.submit(index, i) for i in range(len(places.paths))]
        with ExitStack() as stack:
            report = None
            for done, ready in enumerate(as_completed(indexes), 1):
                ready.result()
                if report is None and time.monotonic() - started > QUIET:
                    report = stack.enter_context(progress("indexing shards", len(indexes), done))
                if report is not None:
                    report(done)
        return [ready.result() for ready in indexes]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stamp(places: Places, i: int) -> str:
    """What changes when a file does: its size, and its time or the server's mark for what it holds."""
    path = places.paths[i]
    if places.local:
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    info = patiently(lambda: places.fs.info(path))
    marks = sorted((key.lower(), str(value)) for key, value in info.items() if key.lower() in STAMPS and value is not None)
    return repr(marks if len(marks) > 1 else [*marks, places.fs.ukey(path)])


def _say_cut(places: Places, indexes: list[TarIndex]) -> None:
    cut = [(path, index.cut) for path, index in zip(places.paths, indexes, strict=True) if index.cut]
    if cut:
        said = "%d of %d shards break off: %s is %s; images before that are used, fetch the shard again for the others"
        log.warning(said, len(cut), len(indexes), shown(cut[0][0]), cut[0][1])


def _titles(paths: tuple[str, ...]) -> list[str]:
    """What to call each shard wherever it lies: its path below the folder that all lie in."""
    parts = [shown(path).split("/") for path in paths]
    shared = 0
    for level in zip(*(part[:-1] for part in parts), strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _part(name: str) -> int | None:
    """The part of a set that a word of a name tells."""
    return next((PARTS[word] for word in re.split("[^a-z]+", name.lower()) if word in PARTS), None)


def _part_of(path: str) -> int:
    """The part that a shard's name tells, or its folder's; TRAIN for none."""
    *_, folder, name = ["", *shown(path).split("/")]
    return next((part for part in (_part(name), _part(folder)) if part is not None), TRAIN)


def _labels(indexes: list[TarIndex], parts: list[int], labels: str | None, name: str) -> Labels | None:
    counts = [len(index.sizes) for index in indexes]
    split = np.repeat(np.array(parts, np.int8), counts)
    label = _merged([index.labels for index in indexes])
    folder = _merged([index.folders for index in indexes])
    tops = {word.split("/")[0] for word in folder.table}
    if "train" in tops and len(tops) > 1 and tops <= PARTS.keys() and all("/" in word for word in folder.table):
        split = np.array([PARTS[word.split("/")[0]] for word in folder.table], np.int8)[folder.places]
        folder = _renamed(folder, [word.split("/")[1] for word in folder.table])
    else:
        folder = _renamed(folder, [word.split("/")[0] for word in folder.table])
    by_folder = bool((folder.places >= 0).all()) and len(folder.table) > 1
    choices = (*(("label",) if label.table else ()), *(("folder",) if by_folder else ()))
    chosen = pick(labels, choices, name)
    if not chosen:
        return None
    classes, values = _classes(label if chosen == "label" else folder)
    return Labels(chosen, classes, values, _held_out(values, split))


def _merged(words: list[Words]) -> Words:
    table: dict[str, int] = {}
    places = []
    for some in words:
        place = [table.setdefault(word, len(table)) for word in some.table]
        places.append(np.array([*place, -1], np.int32)[some.places])  # -1 is the last
    return Words(tuple(table), np.concatenate(places))


def _renamed(words: Words, names: list[str]) -> Words:
    return _merged([Words(tuple(names), words.places)])


def _classes(words: Words) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Sorted classes and each image's place in them: as numbers if all are, of which those below 0 are no label."""
    numbers = all(re.fullmatch(r"[+-]?[0-9]{1,18}", word) for word in words.table)
    texts = [str(int(word)) if numbers else word for word in words.table]
    classes = sorted((text for text in set(texts) if not (numbers and text[0] == "-")), key=int if numbers else None)
    place = {text: i for i, text in enumerate(classes)}
    values = np.array([*(place.get(text, -1) for text in texts), -1], np.int64)[words.places]
    return tuple(classes), values


def _held_out(values: NDArray[np.int64], split: NDArray[np.int8]) -> NDArray[np.bool_]:
    """The test part, or else the validation, or fifths; with both, `values` of the validation become -1."""
    held = next((part for part in (TEST, VALIDATION) if (values[split == part] >= 0).any()), TRAIN)
    if held == TRAIN or not (values[split == TRAIN] >= 0).any():
        return fifths(values)
    values[(split != TRAIN) & (split != held)] = -1
    test: NDArray[np.bool_] = split == held
    return test
