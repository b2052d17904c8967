"""Files of a set that are not read: counted by their endings, and said with what to do about them."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.decoding.file_kinds import (
    ARCHIVES,
    HEAD_BYTES,
    IMAGE_KINDS,
    PLAIN,
    READ,
    TABLES,
    TELLING_BYTES,
    VIDEOS,
    ending_of,
    kind_of,
)

_NAMED = 3  # files or columns in a sentence
_ENDINGS = 6  # in a sentence
_OPENED = 8  # files of an ending whose first bytes are read, and every one whose number is a power of two
MOST = 64  # endings of which files are opened
MANY = 10  # other files that are worth a word, and a tenth of the images
_VOLUMES = frozenset((".nii", ".nii.gz", ".dcm", ".dicom", ".ima"))
_GROUPS = {"beside": SUFFIXES, "unread": IMAGE_KINDS, "archives": ARCHIVES, "tables": TABLES, "videos": VIDEOS}
_KNOWN = SUFFIXES | PLAIN | ARCHIVES | TABLES | VIDEOS
_ADVICE = {
    "beside": "images beside the set's own, which does not name them: give a folder that holds just them to use them",
    "unread": "images of formats that are not read: convert them to JPEG, PNG or TIFF",
    "volumes": "volumes, which are read from a folder without other images, or with images.axis=z instead of those",
    "misnamed": "among which are images ({kinds}) under another ending: give them that of their format",
    "archives": "archives, in which images are not looked for: unpack them",
    "tables": "which may hold images: give one by itself to use it",
    "videos": "videos: save frames of them as images to use them",
}
_OF_LABELS = re.compile(
    r"(?i)(^|[\W_])(labels?|class(es)?|annotations?|metadata|targets?|categor(y|ies)|train|test|val)([\W_]|$)"
)


@dataclass
class Ending:
    """Files of one ending. names: the first few; kinds: formats of images among those that were opened; images: their names."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= _NAMED:
            self.names.append(name)

    def open(self, name: str, head: bytes) -> None:
        """Note the format of a file by its first bytes, if it is an image's."""
        if kind := kind_of(head):
            self.kinds += [kind] * (kind not in self.kinds)
            self.images += [name] * (len(self.images) < _NAMED)

    def join(self, other: "Ending") -> None:
        self.count += other.count
        self.names, self.images = (self.names + other.names)[:_NAMED], (self.images + other.images)[:_NAMED]
        self.kinds += [kind for kind in other.kinds if kind not in self.kinds]


class LeftOut:
    """Files that are not read. of: by their endings; links: those that lead nowhere; labels: those that may hold labels."""

    def __init__(self) -> None:
        self.of: dict[str, Ending] = {}
        self.links, self.labels = Ending(), Ending()

    def add(self, path: str, head: Callable[[], bytes]) -> None:
        """Count a file; head: reads its first HEAD_BYTES, called for some of the files. Raises what `head` raises."""
        ending = ending_of(path)
        found = self.of.get(ending) or self.of.setdefault(ending if len(self.of) < 4 * MOST else "", Ending())
        found.add(path)
        n = found.count
        if ending not in _KNOWN and (n <= _OPENED or not n & (n - 1)) and len(self.of) <= MOST:
            found.open(path, head())
        if ending in TELLING_BYTES and _OF_LABELS.search(path.rpartition("/")[2].rpartition(".")[0]):
            self.labels.add(path)

    def count(self, ending: str) -> int:
        return self.of[ending].count if ending in self.of else 0

    def notes(self, images: int) -> tuple[str, ...]:
        """A sentence for each kind of what is left out beside so many images."""
        groups: dict[str, list[str]] = {}
        for ending in sorted(self.of, key=lambda ending: (-self.of[ending].count, ending)):
            groups.setdefault(self._group(ending), []).append(ending)
        notes = [self._note(groups[key], advice) for key, advice in _ADVICE.items() if key in groups]
        if n := self.links.count:
            notes.append(f"{plural(n, 'link')} left out ({some(self.links.names, n)}), leading nowhere: fetch what they point to")
        if n := self.labels.count:
            which = f"{some(self.labels.names, n)} may tell labels and {'is' if n == 1 else 'are'} not read"
            notes.append(f"{which}: labels are told by folders, one for each class, or by a table given as --table FILE.csv")
        others = groups.get("", [])
        if (count := sum(self.of[ending].count for ending in others)) >= max(MANY, images / 10):
            notes.append(f"{plural(count, 'other file')} not read: {self._counts(others)}")
        return tuple(notes)

    def _group(self, ending: str) -> str:
        kinds = {*self.of[ending].kinds}
        if ending in _VOLUMES:
            return "volumes"
        if ending in IMAGE_KINDS:  # cameras' raw files and slides are TIFFs of their own
            return "misnamed" if kinds and kinds <= READ - {"TIFF"} else "unread"
        if kinds:
            return "misnamed" if kinds & READ else "unread"
        return next((group for group, endings in _GROUPS.items() if ending in endings), "")

    def _note(self, endings: list[str], advice: str) -> str:
        each = [self.of[ending] for ending in endings]
        count, first = sum(found.count for found in each), 1 if len(each) > 1 else _NAMED
        names = some([name for found in each for name in (found.images or found.names)[:first]], count)
        kinds = ", ".join(sorted({kind for found in each for kind in found.kinds}))
        return f"{plural(count, 'file')} left out: {self._counts(endings)} ({names}), {advice.format(kinds=kinds)}"

    def _counts(self, endings: list[str]) -> str:
        counts = [f"{ending or 'no known ending'} {self.of[ending].count:,}" for ending in endings]
        return some(counts, most=_ENDINGS)

    @property
    def stored(self) -> Any:
        """What `merged` takes, as JSON can hold it; without links."""
        return {"of": {ending: asdict(found) for ending, found in self.of.items()}, "labels": asdict(self.labels)}

    @classmethod
    def merged(cls, stored: Iterable[Any]) -> "LeftOut":
        """The sum of several as they were stored. Raises whatever a broken one provokes."""
        total = cls()
        for one in stored:
            for ending, found in one["of"].items():
                total.of.setdefault(ending, Ending()).join(Ending(**found))
            total.labels.join(Ending(**one["labels"]))
        return total


def beside(files: Iterable[Path], images: int) -> tuple[str, ...]:
    """Notes of the other files in the folders that a set's own files, of so many images, lie in."""
    own, left = {*files}, LeftOut()
    for folder in sorted({path.parent for path in own}):
        for path in sorted(folder.iterdir()):
            if path.name[0] not in "._" and path not in own and path.is_file():
                left.add(path.name, partial(head_of, str(path)))
    left.labels = Ending()  # a set of such files has labels of its own
    return left.notes(images)


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def some(names: Sequence[str], count: int | None = None, most: int = _NAMED) -> str:
    """The first names, and '...' where there are more; count: how many there are, if more than are given."""
    count = len(names) if count is None else count
    return ", ".join([*names[:most], *(["..."] if count > len(names[:most]) else [])])


def head_of(path: str) -> bytes:
    """The first HEAD_BYTES of a file; b'' where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
