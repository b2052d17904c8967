"""Image files on disk: all below a folder, or those that a list names."""

import os
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, plain
from jepakit.data.decoding.decode import SUFFIXES, file_bytes
from jepakit.data.labels import split_words as splits
from jepakit.data.labels.classes import folder_classes
from jepakit.data.labels.segmentation_masks import MaskFolders, masks_among, note_of
from jepakit.data.sources import Labels, Source, evenly
from jepakit.data.unread_files import Ending, LeftOut, head_of, plural, some


@dataclass(eq=False)
class FilesSource(Source):
    """Image files named by a list, as paths below a folder. Raises UserError for others, and for files that are not there."""

    root: Path
    files: list[str]
    labels: Labels | None
    held_out: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name = str(self.root)
        if not self.files:
            raise UserError(f"no images in {self.root}")
        outside = next((file for file in self.files if leaves(file)), None)
        if outside is not None:
            raise UserError(f"{self.root}: its lists name '{outside}', which may lie outside of the folder: give paths below it")
        for index in evenly(len(self), 64):  # a look at some: lists can name a million
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
        self.files, left, unread = _images(str(root))
        notes = left.notes(len(self.files))
        if unread:
            reasons = [plain(f"{folder or '.'} ({reason})") for folder, reason in unread]
            notes += (f"{plural(len(unread), 'folder')} cannot be read, so that images there are left out: {some(reasons)}",)
        if not self.files:
            said = "".join(f"; {note}" for note in notes)
            raise UserError(f"no images in {root} (looked for {', '.join(sorted(SUFFIXES))}, in sub-folders too){plain(said)}")
        self.name, self.root = str(root), root
        self.labels, self.held_out, guessed = self._by_folder()
        self.notes = (*notes, *guessed)

    def _by_folder(self) -> tuple[Labels | None, NDArray[np.bool_] | None, tuple[str, ...]]:
        """Classes and parts by folders, and what is guessed."""
        place: dict[str, int] = {}
        folders = (file.rpartition("/")[0] for file in self.files)
        places = np.fromiter((place.setdefault(folder, len(place)) for folder in folders), np.int64, len(self))
        masks = masks_among(self.title, [*place], places, self.read)
        layout = folder_classes([*place], places, masks.folders, self.title)
        classes, values = splits.class_values(layout.classes, places, None, "")
        parts = layout.parts or ["train"] * len(place)
        labels = splits.split_labels("folder", classes, values, parts, places) if len(classes) > 1 else None
        return labels, splits.held_out_parts(parts, places), (*note_of(masks, len(self), self._others(masks)), *layout.notes)

    def _others(self, masks: MaskFolders) -> str:
        """The path of the folder that holds all other images and no mask; '' if there is none."""
        if not len(masks.ids):
            return ""
        are = set(masks.ids.tolist())
        others = {file.rpartition("/")[0] for index, file in enumerate(self.files) if index not in are}
        common = os.path.commonpath(others) if others and "" not in others else ""
        inside = common and not any(self.files[index].startswith(f"{common}/") for index in are)
        return str(self.root / common) if inside else ""


def unused(root: Path, own: Iterable[str], images: int) -> tuple[str, ...]:
    """What to say of other files below the folder of a set of so many images. own: the set's files, as paths from there."""
    real = cache(lambda folder: os.path.realpath(os.path.join(root, folder)))  # a link may lead to where they lie
    are = {(real(folder), name) for folder, _, name in (path.rpartition("/") for path in own)}
    found, left, _ = _images(str(root), are)
    for path in found:
        folder, _, name = path.rpartition("/")
        if (real(folder), name) not in are:
            left.add(path, bytes)
    left.labels = Ending()  # such a set has labels of its own
    return left.notes(images)


def _images(root: str, own: Set[tuple[str, str]] = frozenset()) -> tuple[list[str], LeftOut, list[tuple[str, str]]]:
    """Images below a folder, as paths from there, sorted by their parts; other files; folders that cannot be read, and why.

    own: other files that are known, as pairs of the real path of their folder and their name.
    Followed folders are remembered by their real path, so that a link to a parent ends.
    """
    found: list[str] = []
    left = LeftOut()
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
                ahead += reversed(_entries(root, path, real, left, own))
            except OSError as error:
                unread.append((path, error.strerror or type(error).__name__))
    return found, left, unread


def _entries(root: str, folder: str, real: str, left: LeftOut, own: Set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Images and folders of a folder, by name, each as its path from the root and, of a folder, its real one; '' of an image."""
    here, others = [], []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            name, path = entry.name, f"{folder}/{entry.name}" if folder else entry.name
            if name.startswith("."):
                continue
            by_name = os.path.splitext(name)[1].lower() in SUFFIXES
            try:
                is_file = entry.is_file()
                is_folder = not is_file and entry.is_dir()
            except PermissionError:  # where a link leads: said when it is to be read
                is_folder, is_file = True, False
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder:
                at = os.path.join(real, name)
                here.append((path, os.path.realpath(at) if entry.is_symlink() else at))
            elif is_file and by_name:
                here.append((path, ""))
            elif is_file and (real, name) not in own:
                others.append(path)
            elif by_name and entry.is_symlink():
                left.links.add(path)
    for path in sorted(others):
        left.add(path, partial(head_of, os.path.join(root, path)))
    return sorted(here)
