"""Where images come from: the embedded set, a labelled set on disk, or a folder.

A source has a length, labels if any, and reads by index.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decode import SUFFIXES, BadImageError, Pixels, read_image
from jepakit.data.emoji import Emoji, emoji, held_out
from jepakit.errors import UserError, nearest


@dataclass(frozen=True)
class Labels:
    """What a probe can learn.

    values (n,): int64 in `classes`, or -1 for a sample that has no label or no part in the split; test (n,): held out.
    clusters (n,): samples of one number are not independent (one identity, one scene), so intervals resample them
    together. whole: the label speaks of the whole image, so that evaluation resizes it and crops nothing.
    """

    name: str
    classes: tuple[str, ...]
    values: NDArray[np.int64]
    test: NDArray[np.bool_]
    clusters: NDArray[np.int64] | None = None
    whole: bool = False


class Source(Protocol):
    """Images by index, and their labels if there are any."""

    name: str
    labels: Labels | None

    def __len__(self) -> int: ...

    def read(self, index: int) -> Pixels:
        """What is on disk, (H, W, C) uint8, uint16 or float32; raises BadImageError."""
        ...

    def title(self, index: int) -> str:
        """What to call a sample in a message."""
        ...


class EmojiSource:
    """The embedded set, labelled by emoji group; test identities are on no other side."""

    name = "emoji"

    def __init__(self) -> None:
        self._set: Emoji = emoji()
        identity = self._set.identity
        self.labels: Labels | None = Labels("group", self._set.groups, self._set.group, held_out(identity), identity)

    def __len__(self) -> int:
        return len(self._set.images)

    def read(self, index: int) -> Pixels:
        pixels: Pixels = self._set.images[index]
        return pixels

    def title(self, index: int) -> str:
        return self._set.identities[int(self._set.identity[index])]


@dataclass
class ArraySource:
    """Images that lie in memory: (n, H, W, C) uint8."""

    name: str
    images: NDArray[np.uint8]
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Pixels:
        pixels: Pixels = self.images[index]
        return pixels

    def title(self, index: int) -> str:
        return str(index)


@dataclass
class FilesSource:
    """Image files named by a list, as paths below a folder. Raises UserError for others, and for files that are not there."""

    root: Path
    files: list[str]
    labels: Labels | None

    def __post_init__(self) -> None:
        self.name = str(self.root)
        if not self.files:
            raise UserError(f"no images in {self.root}")
        outside = next((file for file in self.files if leaves(file)), None)
        if outside is not None:
            raise UserError(f"{self.root}: its lists name '{outside}', which may lie outside of the folder: give paths below it")
        for index in np.unique(np.linspace(0, len(self) - 1, 64).astype(int)):  # a look at some: lists can name a million
            if not (self.root / self.files[index]).is_file():
                raise UserError(f"{self.root} lacks {self.files[index]}, which its lists name: unpack all of the set's archives")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Pixels:
        return read_image(self.root / self.files[index])

    def title(self, index: int) -> str:
        return self.files[index]


def leaves(entry: str) -> bool:
    """Whether a path of a list may lead out of the folder that it counts from: it is absolute, or has '..' in it."""
    return os.path.isabs(entry) or (".." in entry and ".." in PurePath(entry).parts)  # the quick question first, of millions


class FolderSource:
    """All images below a folder, in the order of their paths; sub-folders are labels where each image lies in one."""

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise UserError(f"no such folder: {root}")
        if not root.is_dir():
            raise UserError(f"{root} is a file; give the folder that holds the images")
        # followed folders are remembered by their real path, so that a link to a parent ends
        self.paths = sorted(_images(root, set()))
        if not self.paths:
            raise UserError(f"no images in {root} (looked for {', '.join(sorted(SUFFIXES))}, in sub-folders too)")
        self.name, self.root = str(root), root
        self.labels = _folder_labels([p.relative_to(root) for p in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Pixels:
        return read_image(self.paths[index])

    def title(self, index: int) -> str:
        return str(self.paths[index].relative_to(self.root))


def require_readable(source: Source) -> None:
    """Raises UserError if none of a sample of up to 64 images can be read."""
    reason = ""
    for index in np.linspace(0, len(source) - 1, min(64, len(source))).astype(int):
        try:
            source.read(int(index))
            return
        except BadImageError as error:
            reason = f"{source.title(int(index))}: {error}"
    raise UserError(f"no readable image in {source.name}; the last one tried: {reason}")


def fingerprint(source: Source) -> str:
    """What changes when samples come, go or change places: sha256 of their names in order."""
    names = "\n".join(source.title(index) for index in range(len(source)))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


NAMED = ("emoji", "scenes")  # sets that need no path


def open_source(data: str, labels: str | None = None) -> Source:
    """The source that `data` names: 'emoji', 'scenes', a labelled set in its usual layout (`sets`), or a folder of images.

    `labels` picks one of several that a set has. Raises UserError.
    """
    if data == "scenes":
        from jepakit.data.scenes import SceneSource

        return SceneSource(labels=labels)
    source: Source
    if data == "emoji":
        source = EmojiSource()
    else:
        from jepakit.data.sets import labelled_set  # it builds on this module

        found = labelled_set(Path(data), labels)
        source = found or FolderSource(Path(data))
        require_readable(source)
        if found is not None:
            return found  # it has picked its labels
    pick(labels, (source.labels.name,) if source.labels else (), source.name)
    return source


def pick(labels: str | None, choices: tuple[str, ...], name: str) -> str:
    """`labels` if it is one of a set's kinds of labels, their first for None ('' if there is none). Raises UserError."""
    if labels and labels not in choices:
        have = " and ".join(f"'{choice}'" for choice in choices) or "no labels"
        raise UserError(f"{name} has {have}, not '{labels}'{nearest(labels, choices)}")
    return labels or next(iter(choices), "")


def fifths(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Held out where a set has no split of its own: every fifth of a class, in the order of the set; (n,) -> (n,)."""
    rank = np.zeros(len(values), np.int64)
    for value in np.unique(values):
        rank[values == value] = np.arange((values == value).sum())
    held: NDArray[np.bool_] = (rank % 5 == 4) & (values >= 0)
    return held


def _images(folder: Path, seen: set[Path]) -> list[Path]:
    real = folder.resolve()
    if real in seen:
        return []
    seen.add(real)
    found: list[Path] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _images(entry, seen)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            found.append(entry)
    return found


def _folder_labels(paths: list[Path]) -> Labels | None:
    """Top sub-folders as classes, a fifth of each held out; or, with train/ and val/ or test/ on top, those."""
    parts = [p.parts for p in paths]
    if any(len(p) < 2 for p in parts):
        return None
    tops = {p[0] for p in parts}
    split = "train" in tops and tops <= {"train", "val", "test"} and len(tops) > 1 and all(len(p) > 2 for p in parts)
    names = [p[1] if split else p[0] for p in parts]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        return None
    values = np.array([classes.index(n) for n in names], np.int64)
    if split:
        return Labels("folder", classes, values, np.array([p[0] != "train" for p in parts]))
    return Labels("folder", classes, values, fifths(values))
