"""Image files on disk: all below a folder, or those that a list names."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from jepakit.data.decode import SUFFIXES, file_bytes
from jepakit.data.sources import Labels, Source, fifths
from jepakit.errors import UserError


@dataclass
class FilesSource(Source):
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

    def raw(self, index: int) -> bytes:
        return file_bytes(self.root / self.files[index])

    def title(self, index: int) -> str:
        return self.files[index]


def leaves(entry: str) -> bool:
    """Whether a path of a list may lead out of the folder that it counts from: it is absolute, or has '..' in it."""
    return os.path.isabs(entry) or (".." in entry and ".." in PurePath(entry).parts)  # the quick question first, of millions


class FolderSource(Source):
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

    def raw(self, index: int) -> bytes:
        return file_bytes(self.paths[index])

    def title(self, index: int) -> str:
        return str(self.paths[index].relative_to(self.root))


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
