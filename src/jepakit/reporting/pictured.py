"""Reads RUN/pictures/, whose files `jepakit report` makes first; `jepakit.pictures.run_pictures` describes them.

n gallery images, r x c patches of the grid, H heads.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from .figures import data_uri
from .whole_files import DamagedFileError, T, fitting, read_arrays, read_json

_FORMAT = 1
_HEAT = colormaps["magma"]
_SMALL = 96  # pixels of a tile's longer side, up to which it is shown larger
_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
_EMPTY: NDArray[Any] = np.empty(0)


@dataclass(frozen=True)
class RunPictures:
    """What is there of one run: about (its parts by name, and what is missing) and arrays."""

    folder: Path
    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def part(self, name: str) -> Mapping[str, Any]:
        """What is said of one part; empty where it is not there."""
        part = self.about.get(name)
        return part if isinstance(part, Mapping) else {}

    def array(self, name: str) -> NDArray[Any]:
        """An array; an empty one where it is not there."""
        return self.arrays.get(name, _EMPTY)

    def atlas(self, name: str) -> dict[str, Any]:
        """A part's file of tiles for the page: src, tile [height, width], columns, rows, count; small: few pixels, to be seen."""
        about, file = self.part(name), self._file(name)
        tile, columns, count = [*map(int, about["tile"])], int(about["columns"]), len(self.tiles(name))
        src = f"data:{_KINDS[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
        rows, small = -(-count // columns), max(tile) <= _SMALL
        return {"src": src, "tile": tile, "columns": columns, "count": count, "rows": rows, "small": small}

    def tiles(self, name: str) -> NDArray[np.uint8]:
        """The tiles of a part's atlas, (count, height, width, 3)."""
        about = self.part(name)
        (height, width), columns, count = map(int, about["tile"]), int(about["columns"]), int(about["count"])
        sheet = np.asarray(Image.open(self._file(name)).convert("RGB"))
        parted = sheet.reshape(-(-count // columns), height, columns, width, 3).swapaxes(1, 2)
        return parted.reshape(-1, height, width, 3)[:count]

    def titles(self, name: str, key: str = "titles") -> list[str]:
        """What a part says of each of its images."""
        return [*map(str, self.part(name)[key])]

    def _file(self, name: str) -> Path:
        return self.folder / Path(self.part(name)["file"]).name


def read_pictured(path: Path) -> RunPictures | None:
    """The pictures whose about.json is at `path`; None where they are of another format. Raises DamagedFileError."""
    about = read_json(path)
    if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
        return None
    try:
        return RunPictures(path.parent, about, read_arrays(path.with_name("arrays.npz")))
    except DamagedFileError as error:
        raise DamagedFileError(f"is of arrays.npz, which {error}") from None


def made_of(own: RunPictures | None, part: str, make: Callable[[RunPictures], T]) -> tuple[T | None, list[str]]:
    """What is made of a part, None where it is not there; and what to say where its files do not fit each other."""
    if own is None or not own.part(part):
        return None, []
    try:
        return fitting(lambda: make(own)), []
    except DamagedFileError:
        return None, [f"{part}: the files in pictures/ do not fit each other; once the folder is gone they are made anew"]


def heat_uri(values: NDArray[Any], low: float, high: float) -> str:
    """A map (r, c) as a picture of that many pixels."""
    return data_uri(heat(values, low, high))


def heat(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """A map (r, c) as colours (r, c, 4), from dark (`low`) to bright (`high`); transparent where it is NaN."""
    shares = np.clip((values.astype(np.float64) - low) / (high - low if high > low else 1.0), 0, 1)
    coloured: NDArray[np.uint8] = (_HEAT(np.nan_to_num(shares)) * 255).round().astype(np.uint8)
    coloured[..., 3] = np.where(np.isnan(values), 0, 255)
    return coloured


def places(atlas: Mapping[str, Any]) -> list[str]:
    """Where each tile of an atlas lies, as CSS wants it: background-position in per cent."""
    columns, rows = atlas["columns"], atlas["rows"]
    return [
        f"{100 * (i % columns) / max(1, columns - 1):.4f}% {100 * (i // columns) / max(1, rows - 1):.4f}%"
        for i in range(atlas["count"])
    ]


def as_base64(values: NDArray[Any]) -> str:
    """The bytes of an array, little-endian, for a script."""
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def missing_parts(pictured: RunPictures | None, words: Sequence[str]) -> list[str]:
    """Sentences on what is missing, of those that begin with one of these words."""
    said = pictured.about.get("missing") if pictured else None
    return [str(each) for each in said if str(each).startswith(tuple(words))] if isinstance(said, list) else []
