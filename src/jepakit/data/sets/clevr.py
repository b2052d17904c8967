"""CLEVR's two label sets of representation benchmarks, and the set in its own layout: counting, and nearest distance.

Scenes: Johnson et al., "CLEVR", CVPR 2017. Labels: VTAB (Zhai et al., arXiv 1910.04867), tasks "count_all" and
"closest_object_distance"; VISSL's bisection gives the same labels.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jepakit.core.errors import UserError, nearest
from jepakit.data.decoding.decode import file_bytes
from jepakit.data.formats.folder import unused
from jepakit.data.sources import Labels, Source, by_default

Scene = Mapping[str, Any]  # as in CLEVR's scenes files: "objects", each with "pixel_coords" [x, y, depth], and more
FEWEST, MOST = 3, 10  # objects of a scene
BOUNDS = (8.0, 8.5, 9.0, 9.5, 10.0, 100.0)  # upper bounds of the distance classes, each within its class
CLASSES = {
    "count": tuple(str(n) for n in range(FEWEST, MOST + 1)),
    "distance": ("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "over 10"),
}


def count_label(scene: Scene) -> int:
    """Number of objects, 3 to 10, as one of 8 classes. Raises UserError outside these."""
    count = len(scene["objects"])
    if not FEWEST <= count <= MOST:
        raise UserError(f"{_title(scene)} has {count} objects, and CLEVR's scenes have {FEWEST} to {MOST}")
    return count - FEWEST


def distance_label(scene: Scene) -> int:
    """Depth of the nearest object, one of 6 classes: label i for BOUNDS[i-1] < depth <= BOUNDS[i].

    Raises UserError without objects, or for a depth that is not in (0, 100].
    """
    if not scene["objects"]:
        raise UserError(f"{_title(scene)} has no objects, so that none is the nearest")
    depths = [float(thing["pixel_coords"][2]) for thing in scene["objects"]]
    depth = math.nan if any(map(math.isnan, depths)) else min(depths)
    if not 0 < depth <= BOUNDS[-1]:
        raise UserError(f"{_title(scene)} has its nearest object at distance {depth:g}, which is not in (0, {BOUNDS[-1]:g}]")
    return bisect_left(BOUNDS, depth)


_LABELS: dict[str, Callable[[Scene], int]] = {"count": count_label, "distance": distance_label}


def label_name(labels: str | None, name_of_set: str) -> str:
    """The label set that is asked for, "count" if none. Raises UserError for one that is not in LABELS."""
    name = labels or "count"
    if name not in _LABELS:
        raise UserError(f"{name_of_set} has no labels '{name}': choose from {', '.join(_LABELS)}{nearest(name, _LABELS)}")
    return name


class ClevrSource(Source):
    """CLEVR_v1.0 as it is unpacked: its train images, and its val images as test (those of test have no scenes).

    labels: "count" or "distance". Raises UserError for unknown labels and for a folder that is not whole.
    """

    def __init__(self, root: Path, labels: str | None = None) -> None:
        name = label_name(labels, "CLEVR")
        if not root.is_dir():
            raise UserError(f"no such folder: {root}")
        train, val = (_samples(root, split, _LABELS[name]) for split in ("train", "val"))
        self.name, self.root = str(root), root
        self._files = [file for file, _ in train + val]
        values = np.array([label for _, label in train + val], np.int64)
        self.labels: Labels | None = Labels(name, CLASSES[name], values, np.arange(len(values)) >= len(train), whole_image=True)
        self.notes = (*by_default(labels, name, tuple(_LABELS)), *_unused(root, [("train", len(train)), ("val", len(val))]))
        self.notes += unused(root, [f"images/{path.parent.name}/{path.name}" for path in root.glob("images/*/*.png")], len(self))

    def __len__(self) -> int:
        return len(self._files)

    def raw(self, index: int) -> bytes:
        return file_bytes(self.root / "images" / self._files[index])

    def title(self, index: int) -> str:
        return self._files[index]


def clevr(root: Path, labels: str | None) -> Source | None:
    """CLEVR v1.0: images/, and scenes/ with its JSON files; label 'count' or 'distance'."""
    if (root / "images").is_dir() and any((root / "scenes").glob("CLEVR_*.json")):
        return ClevrSource(root, labels)
    return None


def _unused(root: Path, used: list[tuple[str, int]]) -> tuple[str, ...]:
    """What to say of images of which no scenes tell."""
    have = dict(used)
    counts: dict[str, int] = {}
    for folder in sorted((root / "images").iterdir()):
        count = sum(path.suffix == ".png" for path in folder.iterdir()) if folder.is_dir() else 0
        if count > have.get(folder.name, 0):
            counts[folder.name] = count - have.get(folder.name, 0)
    some = ", ".join(f"images/{name} {count:,}" for name, count in counts.items())
    return (f"{sum(counts.values()):,} images left out, of which no scenes tell: {some}",) if counts else ()


def _samples(root: Path, split: str, label: Callable[[Scene], int]) -> list[tuple[str, int]]:
    """(split/image, label) of each scene, in the file's order. Raises UserError."""
    path, folder = root / "scenes" / f"CLEVR_{split}_scenes.json", root / "images" / split
    scenes = _scenes(path, label)
    try:
        there = {file.name for file in folder.iterdir()}  # one listing; asking for 70 000 files one by one is slow on a network
    except OSError:
        raise UserError(f"no folder {folder}, which {path.name} speaks of: unpack the images of CLEVR_v1.0 there") from None
    missing = [file for file, _ in scenes if file not in there]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(scenes)} images that {path.name} names, the first is {missing[0]}"
        )
    return [(f"{split}/{file}", value) for file, value in scenes]


def _scenes(path: Path, label: Callable[[Scene], int]) -> list[tuple[str, int]]:
    """(image, label) of each scene of a file. Raises UserError."""

    def name_and_label(found: dict[str, Any]) -> Any:
        # the parser calls this for each {...} as it closes, so that no more than one scene is ever held in full
        return (str(found["image_filename"]), label(found)) if "objects" in found else found

    try:
        scenes: list[tuple[str, int]] = json.loads(path.read_bytes(), object_hook=name_and_label)["scenes"]
        if not all(isinstance(scene, tuple) for scene in scenes):
            raise ValueError("a scene has no objects")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read {path} ({reason}): give the folder of CLEVR_v1.0, with its images and scenes") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is not a scenes file of CLEVR, or is broken ({type(error).__name__}: {error})") from None
    if not scenes:
        raise UserError(f"{path} has no scenes")
    return scenes


def _title(scene: Scene) -> str:
    return f"the scene of {scene['image_filename']}" if "image_filename" in scene else "the scene"
