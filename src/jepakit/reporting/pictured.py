"""Reads RUN/pictures/, whose files `jepakit report` makes first; `jepakit.pictures.run_pictures` describes them.

n gallery images, r x c patches of the grid, H heads.
"""

import base64
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from .figures import data_uri

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
        return self.about.get(name) or {}

    def array(self, name: str) -> NDArray[Any]:
        """An array; an empty one where it is not there."""
        return self.arrays.get(name, _EMPTY)

    def atlas(self, name: str) -> dict[str, Any]:
        """A part's file of tiles for the page: src, tile [height, width], columns, rows, count; small: few pixels, to be seen."""
        about = self.part(name)
        file = self.folder / Path(about["file"]).name
        src = f"data:{_KINDS[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
        kept = {key: about[key] for key in ("tile", "columns", "count")}
        return {"src": src, **kept, "rows": -(-about["count"] // about["columns"]), "small": max(about["tile"]) <= _SMALL}


def read_pictured(run: Path) -> RunPictures | None:
    """The pictures of a run's folder; None where there are none that can be read."""
    folder = run / "pictures"
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
            return None
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            return RunPictures(folder, about, {name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def heat_uri(values: NDArray[Any], low: float, high: float) -> str:
    """A map (r, c) as a picture of that many pixels, from dark (`low`) to bright (`high`); transparent where it is NaN."""
    shares = np.clip((values.astype(np.float64) - low) / (high - low if high > low else 1.0), 0, 1)
    coloured = (_HEAT(np.nan_to_num(shares)) * 255).round().astype(np.uint8)
    coloured[..., 3] = np.where(np.isnan(values), 0, 255)
    return data_uri(coloured)


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
    return [] if pictured is None else [each for each in pictured.about.get("missing", ()) if each.startswith(tuple(words))]
