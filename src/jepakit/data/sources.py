"""Where images come from: the embedded set, or a folder. A source has a length, labels if any, and reads by index."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decode import SUFFIXES, BadImageError, Pixels, read_image
from jepakit.data.emoji import Emoji, emoji, held_out
from jepakit.errors import UserError


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
        """(H, W, 3) uint8; raises BadImageError."""
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

    def require_readable(self) -> None:
        """Raises UserError if none of a sample of up to 64 files can be read."""
        reason = ""
        for index in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int):
            try:
                self.read(int(index))
                return
            except BadImageError as error:
                reason = f"{self.title(int(index))}: {error}"
        raise UserError(f"no readable image in {self.root}; the last one tried: {reason}")


def fingerprint(source: Source) -> str:
    """What changes when samples come, go or change places: sha256 of their names in order."""
    names = "\n".join(source.title(index) for index in range(len(source)))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def open_source(data: str, labels: str | None = None) -> Source:
    """The source that `data` names: 'emoji' or a folder; `labels` picks one of several that a set has. Raises UserError."""
    source: Source
    if data == "emoji":
        source = EmojiSource()
    else:
        source = FolderSource(Path(data))
        source.require_readable()
    if labels and (source.labels is None or source.labels.name != labels):
        have = f"'{source.labels.name}'" if source.labels else "no labels"
        raise UserError(f"{source.name} has {have}, not '{labels}'")
    return source


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
    rank = np.zeros(len(values), np.int64)  # place within the class, in the order of paths
    for c in range(len(classes)):
        rank[values == c] = np.arange((values == c).sum())
    return Labels("folder", classes, values, rank % 5 == 4)
