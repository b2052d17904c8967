"""Images that lie in NumPy's files: an .npz, an .npy, or a folder of such; mapped unless compressed, and never unpickled.

Arrays are told apart by their names and shapes: 'images' and 'labels', Keras' x_train and y_train, MedMNIST's train_images.
"""

import math
import os
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, line_of
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.decoding.pixels import BadImageError, Pixels, native
from jepakit.data.findings import Finding
from jepakit.data.formats import tables
from jepakit.data.formats.npz_labels import COLOUR_COUNTS, Names, Stored, array_labels, split_array
from jepakit.data.labels import split_words as splits
from jepakit.data.sources import Labels, Source
from jepakit.data.unread_files import beside, some
from jepakit.model.images import MOST_PIXELS

IMAGES = ("images", "image", "x", "data", "imgs", "img")  # names without their word for the split; looked for first
MOST_FILES = 64
UNDERSTOOD = "(n, H, W), (n, H, W, C) or (n, C, H, W) of uint8, uint16 or floats, called 'images', 'x' or 'train_images'"


@dataclass(eq=False)
class NumpySource(Source):
    """Images of arrays (n, H, W), (n, H, W, C) or (n, C, H, W); floats are read as float32."""

    name: str
    arrays: list[NDArray[Any]]
    titles: list[str]
    starts: NDArray[np.int64]  # first sample of each array, and the number of samples
    labels: Labels | None
    held_out: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    by_place = True

    def __len__(self) -> int:
        return int(self.starts[-1])

    def raw(self, index: int) -> Pixels:
        part, row = self._place(index)
        pixels = self.arrays[part][row]
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        elif channels_first(self.arrays[part].shape):
            pixels = pixels.transpose(1, 2, 0)
        return native(np.array(pixels, order="C"))  # a copy, as the file may be mapped

    def read(self, index: int, most_pixels: int = MOST_PIXELS, *, findings: list[Finding] | None = None) -> Pixels:
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
    return last not in COLOUR_COUNTS and (first in COLOUR_COUNTS or first < middle == last)


def npz(root: Path, labels: str | None) -> Source | None:
    """An .npz or .npy file, or a folder of one, of .npz files for train and test, or of .npy files. Raises UserError."""
    files = _files(root)
    if not files:
        return None
    arrays: dict[str, Stored] = {}
    for path in files:
        apart = f"{splits.split_of(path.name)}_" if len(files) > 1 and path.suffix == ".npz" else ""
        arrays |= {apart + key: array for key, array in stored_arrays(path).items()}
    images, others = _images(root, arrays)
    size = sum(arrays[key].nbytes for key in images.values() if not arrays[key].mapped)
    if size > tables.most_memory():
        raise UserError(f"{root}: its images take {size >> 20} MiB, too much for memory: save them by np.savez, or as .npy")
    rows = [arrays[key].shape[0] for key in images.values()]
    parts = [split or "train" for split in images], np.repeat(np.arange(len(rows)), rows)
    named_apart = splits.held_out_parts(*parts) is not None
    by_array, split_notes = (None, ()) if named_apart else split_array(others, arrays, len(parts[1]))
    parts = by_array or parts
    found_labels, label_notes = array_labels(str(root), images, others, arrays, labels, parts)
    starts = np.cumsum([0, *rows], dtype=np.int64)
    held_out = splits.held_out_parts(*parts)
    loaded = [arrays[key].load() for key in images.values()]
    notes = _unused(images, arrays) + split_notes + label_notes + (beside(files, sum(rows)) if root.is_dir() else ())
    return NumpySource(str(root), loaded, [*images.values()], starts, found_labels, held_out, notes)


def _files(root: Path) -> list[Path]:
    """The .npz and .npy files of a set that lies at `root`; [] where there is more than they, or more than one set."""
    if root.is_file():
        return [root] if root.suffix in (".npz", ".npy") else []
    found = []
    with os.scandir(root) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or path.suffix.lower() in SUFFIXES:  # at the first of many images
                return []
            if path.suffix in (".npz", ".npy"):
                found.append(path)
    kinds = {path.suffix for path in found}
    parts = [splits.split_of(path.name) for path in found]
    apart = None not in parts and len(set(parts)) == len(parts)
    one_set = len(found) == 1 or kinds == {".npy"} or (kinds == {".npz"} and apart)
    return sorted(found) if one_set and len(found) <= MOST_FILES else []


def stored_arrays(path: Path) -> dict[str, Stored]:
    """The arrays of an .npy or .npz file by name: mapped, or where they are compressed read by `load`. Raises UserError."""
    try:
        if path.suffix == ".npy":
            return {path.stem: _mapped(path, 0)}
        with zipfile.ZipFile(path) as archive:
            inside = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename[:-4]: _member(path, archive, info) for info in inside}
    except Exception as error:  # whatever bytes a file holds, and whatever they provoke in zipfile and NumPy
        raise UserError(f"{path} cannot be read as NumPy's: {line_of(error)}") from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
    """An array of an .npz file. Raises whatever zipfile and NumPy do."""
    with archive.open(info) as file:
        shape, _, dtype = _header(file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
    if size != info.file_size and not dtype.hasobject:
        raise ValueError(f"{info.filename!r} claims {shape} {dtype} in {info.file_size} bytes")
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as raw:
            raw.seek(info.header_offset + 26)  # of a zip's local header of 30 bytes, which ends with the lengths of what follows
            name, extra = struct.unpack("<HH", raw.read(4))
        return _mapped(path, info.header_offset + 30 + name + extra)
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{info.filename!r} is compressed in a way that NumPy does not know")

    def load() -> NDArray[Any]:
        try:
            if info.file_size > tables.most_memory():
                raise ValueError("it takes too much memory")
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-any-return]
        except Exception as error:  # as above
            raise UserError(f"{path} cannot be read as NumPy's: {info.filename!r}: {line_of(error)}") from None

    return Stored(shape, dtype, False, load)


def _mapped(path: Path, start: int) -> Stored:
    """The array whose header stands at that byte of a file. Raises whatever NumPy does, and ValueError where it is cut."""
    with path.open("rb") as file:
        file.seek(start)
        shape, order, dtype = _header(file)
        offset = file.tell()
        left = os.fstat(file.fileno()).st_size - offset
    if math.prod(shape) * dtype.itemsize > left and not dtype.hasobject:
        raise ValueError(f"it is cut, or claims too much: {shape} {dtype} in {left} bytes")

    def load() -> NDArray[Any]:
        return np.memmap(path, dtype, "r", offset, shape, order) if math.prod(shape) else np.empty(shape, dtype)

    return Stored(shape, dtype, True, load)


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


def _images(root: Path, arrays: dict[str, Stored]) -> tuple[Names, dict[str, Names]]:
    """Which arrays are the images, and the others, by their names without the word for the split. Raises UserError."""
    named: dict[str, Names] = {}
    for key in arrays:
        base, split = _base(key)
        named.setdefault(base, {}).setdefault(split, key)
    fit = {base: {s: key for s, key in keys.items() if arrays[key].is_images} for base, keys in named.items()}
    fit = {base: keys for base, keys in fit.items() if keys}
    chosen = next((base for base in IMAGES if base in fit), None) or (next(iter(fit)) if len(fit) == 1 else None)
    if chosen is not None:
        return fit[chosen], {base: keys for base, keys in named.items() if base != chosen}
    several = f"several arrays that could be images ({', '.join(map(repr, fit))}): call one of them 'images'"
    seen = [f"{key!r} {array.shape} {array.kind}" for key, array in arrays.items()]
    nothing = f"no array of images; they are {UNDERSTOOD}, and it has {', '.join(seen[:12]) or 'none'}"
    raise UserError(f"{root} has {several if fit else nothing}")


def _base(key: str) -> tuple[str, str]:
    """An array's name without its word for the split, and the split."""
    words = re.split(r"[-_.\s]+", key.lower())
    split = next((part for word in words if (part := splits.part_of_word(word))), "")
    return "_".join(word for word in words if splits.part_of_word(word) != split or not split), split


def _unused(images: Names, arrays: dict[str, Stored]) -> tuple[str, ...]:
    """What to say of other arrays that may be images."""
    others = [
        f"'{key}' {array.shape} {array.kind}"
        for key, array in arrays.items()
        if key not in images.values() and (array.is_images or (array.dtype.hasobject and _base(key)[0] in IMAGES))
    ]
    said = f"images are {some([*map(repr, images.values())])}; {some(others)} may hold images too"
    verb = "are" if others[1:] else "is"
    return (f"{said} and {verb} not used: save what is to be used as 'images', in a file of its own",) if others else ()
