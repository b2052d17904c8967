"""Image files on disk: all below a folder, or those that a list names."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from jepakit.data import splits
from jepakit.data.decode import SUFFIXES, file_bytes
from jepakit.data.sources import Labels, Source
from jepakit.errors import UserError, plain

log = logging.getLogger("jepakit")
SAID = 3  # of folders that cannot be read


@dataclass(eq=False)
class FilesSource(Source):
    """Image files named by a list, as paths below a folder. Raises UserError for others, and for files that are not there."""

    root: Path
    files: list[str]
    labels: Labels | None
    held_out: NDArray[np.bool_] | None = None

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


class FolderSource(FilesSource):
    """All images below a folder, in the order of their paths; sub-folders are labels where each image lies in one.

    Raises UserError where there are none. Sub-folders that cannot be read are left out, with one warning.
    """

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise UserError(f"no such folder: {root}")
        if not root.is_dir():
            raise UserError(f"{root} is a file; give the folder that holds the images")
        self.files, unread = _images(str(root))
        if unread:
            some = ", ".join(plain(f"{folder or '.'} ({reason})") for folder, reason in unread[:SAID])
            more = ", ..." if len(unread) > SAID else ""
            log.warning("%s: %d of its folders cannot be read, so their images are left out: %s%s", root, len(unread), some, more)
        if not self.files:
            raise UserError(f"no images in {root} (looked for {', '.join(sorted(SUFFIXES))}, in sub-folders too)")
        self.name, self.root = str(root), root
        self.labels, self.held_out, self.notes = _folder_labels(self.files)


def _images(root: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Images below a folder, as paths from there, sorted by their parts; and folders that cannot be read, and why.

    Followed folders are remembered by their real path, so that a link to a parent ends.
    """
    found: list[str] = []
    unread: list[tuple[str, str]] = []
    seen: set[str] = set()
    ahead: list[tuple[str, str]] = [("", os.path.realpath(root))]  # path from the root, and its real one if it is a folder
    while ahead:
        path, real = ahead.pop()
        if not real:
            found.append(path)
        elif real not in seen:
            seen.add(real)
            try:
                ahead += reversed(_entries(os.path.join(root, path), path, real))
            except OSError as error:
                unread.append((path, error.strerror or type(error).__name__))
    return found, unread


def _entries(folder: str, path: str, real: str) -> list[tuple[str, str]]:
    """Images and folders of a folder, by name, each as its path from the root and, of a folder, its real one."""
    here = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
                is_image = os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file()
            except PermissionError:  # where a link leads: told when it is to be read
                is_folder = True
            except OSError:  # a link to itself
                continue
            if is_folder:
                at = os.path.join(real, entry.name)
                here.append((entry.name, os.path.realpath(at) if entry.is_symlink() else at))
            elif is_image:
                here.append((entry.name, ""))
    return [(f"{path}/{name}" if path else name, real) for name, real in sorted(here)]


def _folder_labels(files: list[str]) -> tuple[Labels | None, NDArray[np.bool_] | None, tuple[str, ...]]:
    """Classes and parts by folders (`splits`), and what is guessed; none where an image lies in no folder, or all in one."""
    if any("/" not in file for file in files):
        return None, None, ()
    place: dict[str, int] = {}
    folders = (file.rpartition("/")[0] for file in files)
    places = np.fromiter((place.setdefault(folder, len(place)) for folder in folders), np.int64, len(files))
    told = splits.of_folders([*place], np.bincount(places).tolist())
    classes, values = splits.class_values(told.classes, places, None, "")
    parts = told.parts or ["train"] * len(place)
    labels = splits.split_labels("folder", classes, values, parts, places) if len(classes) > 1 else None
    return labels, splits.held_out(parts, places), told.notes
