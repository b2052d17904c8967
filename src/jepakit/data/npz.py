"""Images that lie in NumPy's files: an .npz, an .npy, or a folder of such; mapped unless compressed, and never unpickled.

Arrays are told apart by their names and shapes: 'images' and 'labels', Keras' x_train and y_train, MedMNIST's train_images.
"""

import math
import os
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data import splits, tables
from jepakit.data.decode import SUFFIXES
from jepakit.data.findings import Finding
from jepakit.data.pixels import MOST_PIXELS, BadImageError, Pixels
from jepakit.data.sources import Labels, Source
from jepakit.errors import UserError, line_of

IMAGES = ("images", "image", "x", "data", "imgs", "img")  # names without their word for the split; looked for first
LABELS = ("labels", "label", "y", "targets", "target", "classes", "class")
COLOURS = (1, 3, 4)  # axes of these lengths are channels
MOST_FILES = 64
UNDERSTOOD = "(n, H, W), (n, H, W, C) or (n, C, H, W) of uint8, uint16 or floats, called 'images', 'x' or 'train_images'"


@dataclass(frozen=True)
class Stored:
    """An array as its header describes it, and how to have it: mapped, or read into memory."""

    shape: tuple[int, ...]
    dtype: Any
    mapped: bool
    load: Callable[[], NDArray[Any]]

    @property
    def is_images(self) -> bool:
        kind, size = self.dtype.kind, self.dtype.itemsize
        pixels = (kind == "u" and size <= 2) or (kind == "f" and size <= 8)
        axes = len(self.shape) == 4 or (len(self.shape) == 3 and self.shape[2] not in COLOURS)  # else it is one image
        return pixels and axes and min(self.shape) > 0

    def is_labels(self, rows: int) -> bool:
        """Whether it has a number or a word for each row: (n,) or (n, 1)."""
        return self.dtype.kind in "iubUS" and self.shape in ((rows,), (rows, 1))


@dataclass(eq=False)
class NumpySource(Source):
    """Images of arrays (n, H, W), (n, H, W, C) or (n, C, H, W); floats are read as float32."""

    name: str
    arrays: list[NDArray[Any]]
    titles: list[str]
    starts: NDArray[np.int64]  # first sample of each array, and the number of samples
    labels: Labels | None
    held_out: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def raw(self, index: int) -> Pixels:
        part, row = self._place(index)
        pixels = self.arrays[part][row]
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        elif channels_first(self.arrays[part].shape):
            pixels = pixels.transpose(1, 2, 0)
        with np.errstate(over="ignore"):  # said below
            kind = np.dtype(np.float32) if pixels.dtype.kind == "f" else pixels.dtype.newbyteorder("=")
            pixels = np.array(pixels, kind, order="C")
        if kind.kind == "f" and not np.isfinite(pixels).all():
            raise BadImageError("holds values that are not finite")
        return pixels

    def read(self, index: int, most_pixels: int = MOST_PIXELS, told: list[Finding] | None = None) -> Pixels:
        shape = self.arrays[self._place(index)[0]].shape
        height, width = shape[2:4] if len(shape) == 4 and channels_first(shape) else shape[1:3]
        if height * width > most_pixels:  # before any is copied
            raise BadImageError(f"{width}x{height} is more than images.max_pixels={most_pixels}")
        return self.raw(index)

    def title(self, index: int) -> str:
        part, row = self._place(index)
        return f"{self.titles[part]}:{row}"

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return part, index - int(self.starts[part])


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images (n, ., ., .) are (n, C, H, W): by 1, 3 or 4 channels there and not last, or fewer than square sides."""
    _, first, middle, last = shape
    return last not in COLOURS and (first in COLOURS or first < middle == last)


def npz(root: Path, labels: str | None) -> Source | None:
    """An .npz or .npy file, or a folder of one, of .npz files for train and test, or of .npy files. Raises UserError."""
    files = _files(root)
    if not files:
        return None
    arrays: dict[str, Stored] = {}
    for path in files:
        apart = f"{splits.split_of(path.name)}_" if len(files) > 1 and path.suffix == ".npz" else ""
        found = _members(path) if path.suffix == ".npz" else {path.stem: _array(path)}
        arrays |= {apart + key: array for key, array in found.items()}
    images, others = _images(root, arrays)
    size = sum(_size(arrays[key]) for key in images.values() if not arrays[key].mapped)
    if size > tables.most_bytes():
        raise UserError(f"{root}: its images take {size >> 20} MiB, too much for memory: save them by np.savez, or as .npy")
    rows = [arrays[key].shape[0] for key in images.values()]
    found_labels = _labels(str(root), images, others, arrays, labels)
    starts = np.cumsum([0, *rows], dtype=np.int64)
    held_out = splits.held_out([split or "train" for split in images], np.repeat(np.arange(len(rows)), rows))
    loaded = [arrays[key].load() for key in images.values()]
    return NumpySource(str(root), loaded, [*images.values()], starts, found_labels, held_out)


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix in (".npz", ".npy") else []
    found = []
    with os.scandir(root) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or path.suffix.lower() in SUFFIXES:
                return []
            if path.suffix in (".npz", ".npy"):
                found.append(path)
    kinds = {path.suffix for path in found}
    parts = [splits.split_of(path.name) for path in found]
    apart = None not in parts and len(set(parts)) == len(parts)
    one_set = len(found) == 1 or kinds == {".npy"} or (kinds == {".npz"} and apart)
    return sorted(found) if one_set and len(found) <= MOST_FILES else []


def _size(array: Stored) -> int:
    return math.prod(array.shape) * int(array.dtype.itemsize)


def _array(path: Path) -> Stored:
    """The array of an .npy file, mapped. Raises UserError."""
    try:
        with path.open("rb") as file:
            shape, order, dtype = _header(file)
            offset, size = file.tell(), path.stat().st_size
        return _mapped(path, offset, size - offset, shape, order, dtype)
    except Exception as error:  # whatever bytes a file holds, and whatever they provoke in NumPy
        raise UserError(f"{path} cannot be read as NumPy's: {line_of(error)}") from None


def _members(path: Path) -> dict[str, Stored]:
    """The arrays of an .npz file by name: mapped where they are stored as they are. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename[:-4]: _member(path, archive, info) for info in inside}
    except Exception as error:  # whatever bytes a file holds, and whatever they provoke in zipfile and NumPy
        raise UserError(f"{path} cannot be read as NumPy's: {line_of(error)}") from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
    with archive.open(info) as file:
        shape, order, dtype = _header(file)
        head = file.tell()
    if head + math.prod(shape) * dtype.itemsize != info.file_size and not dtype.hasobject:
        raise ValueError(f"{info.filename!r} claims {shape} {dtype} in {info.file_size} bytes")
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as whole:
            whole.seek(info.header_offset + 26)  # a zip's local header: 30 bytes, of which the last 4 are lengths of what follows
            name, extra = (int.from_bytes(whole.read(2), "little") for _ in range(2))
            offset = info.header_offset + 30 + name + extra + head
        return _mapped(path, offset, path.stat().st_size - offset, shape, order, dtype)
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{info.filename!r} is compressed in a way that NumPy does not know")

    def load() -> NDArray[Any]:
        try:
            if info.file_size > tables.most_bytes():
                raise ValueError("it takes too much memory")
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-any-return]
        except Exception as error:  # as above
            raise UserError(f"{path} cannot be read as NumPy's: {info.filename!r}: {line_of(error)}") from None

    return Stored(shape, dtype, False, load)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], Any, Any]:
    """Shape, order ('C' or 'F') and dtype of what follows. Raises whatever NumPy does."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is none for images or labels")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"it claims the shape {shape}")
    return shape, "F" if fortran else "C", dtype


def _mapped(path: Path, offset: int, room: int, shape: tuple[int, ...], order: Any, dtype: Any) -> Stored:
    if math.prod(shape) * dtype.itemsize > room and not dtype.hasobject:
        raise ValueError(f"it is cut, or claims too much: {shape} {dtype} in {room} bytes")

    def load() -> NDArray[Any]:
        return np.memmap(path, dtype, "r", offset, shape, order) if math.prod(shape) else np.empty(shape, dtype)

    return Stored(shape, dtype, True, load)


Names = dict[str, str]  # of arrays by their split, '' for none


def _images(root: Path, arrays: dict[str, Stored]) -> tuple[Names, dict[str, Names]]:
    """Which arrays are the images, and the others, by their names without the word for the split. Raises UserError."""
    named: dict[str, Names] = {}
    for key in arrays:
        words = re.split(r"[-_.\s]+", key.lower())
        split = next((part for word in words if (part := splits.part_of_word(word))), "")
        base = "_".join(word for word in words if splits.part_of_word(word) != split or not split)
        named.setdefault(base, {}).setdefault(split, key)
    fit = {base: {s: key for s, key in keys.items() if arrays[key].is_images} for base, keys in named.items()}
    fit = {base: keys for base, keys in fit.items() if keys}
    chosen = next((base for base in IMAGES if base in fit), None) or (next(iter(fit)) if len(fit) == 1 else None)
    if chosen is not None:
        return fit[chosen], {base: keys for base, keys in named.items() if base != chosen}
    several = f"several arrays that could be images ({', '.join(map(repr, fit))}): call one of them 'images'"
    seen = [f"{key!r} {array.shape} {_kind(array)}" for key, array in arrays.items()]
    nothing = f"no array of images; they are {UNDERSTOOD}, and it has {', '.join(seen[:12]) or 'none'}"
    raise UserError(f"{root} has {several if fit else nothing}")


def _kind(array: Stored) -> str:
    return "of objects, which are not read as they may run code" if array.dtype.hasobject else str(array.dtype)


def _labels(name: str, images: Names, others: dict[str, Names], arrays: dict[str, Stored], labels: str | None) -> Labels | None:
    rows = {split: arrays[key].shape[0] for split, key in images.items()}
    fit = {
        base: shared
        for base, keys in others.items()
        if (shared := {s: key for s, key in keys.items() if s in rows})
        and all(arrays[key].is_labels(rows[split]) for split, key in shared.items())
    }
    named = {base: names for base in fit if (names := _class_names(base, fit[base], others, arrays))}
    chosen = tables.likely(list(fit), LABELS, named, labels, name)
    if not chosen:
        return None
    parts = [_encoded(arrays[fit[chosen][s]].load()) if s in fit[chosen] else ([], np.full(n, -1)) for s, n in rows.items()]
    unique, codes = splits.merged(parts)
    classes, values = splits.class_values(unique, codes, named.get(chosen), f"{name}, array '{chosen}'")
    places = np.repeat(np.arange(len(rows)), [*rows.values()])
    return splits.split_labels(chosen, classes, values, [split or "train" for split in rows], places)


def _class_names(base: str, keys: Names, others: dict[str, Names], arrays: dict[str, Stored]) -> list[str]:
    """Names of numbers: 'groups' of 'group', 'label_names' of 'label' or 'labels', and 'class_names' of any label."""
    if any(arrays[key].dtype.kind not in "iu" for key in keys.values()):
        return []
    likely = [f"{base}s", f"{base}_names", f"{base.removesuffix('s')}_names", *(["class_names"] if base in LABELS else [])]
    for key in (others[word][""] for word in likely if "" in others.get(word, {})):
        if arrays[key].dtype.kind in "US" and len(arrays[key].shape) == 1:
            names: list[str] = _text(arrays[key].load()).tolist()
            if len(set(names)) == len(names):  # else a word for each image
                return names
    return []


def _encoded(array: NDArray[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    unique, codes = np.unique(_text(array.reshape(-1)), return_inverse=True)
    return unique.tolist(), codes.astype(np.int64)


def _text(array: NDArray[Any]) -> NDArray[Any]:
    """Names as NumPy's text. Raises UserError for numbers beyond Unicode's last, of which Python can make no text."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "U" and array.size:
        letters = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view(np.uint32)
        if letters.max(initial=0) > sys.maxunicode:
            raise UserError("an array of names holds numbers that are no letters: save it anew")
    return array
