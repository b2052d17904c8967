"""Small scenes in CLEVR's manner, drawn here: 3 to 10 solids on a plane, labelled by their number and the nearest one's depth.

A stand-in for CLEVR where it is not at hand, not a copy: one fixed camera, square images, a ray caster in place of
Blender. The scenes' form, sizes, colours and gaps are CLEVR's (Johnson et al., CVPR 2017, supplement); number and
nearest depth are drawn first, apart from each other and each uniform over its classes, so that neither tells the other.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.core.files import atomic_write
from jepakit.core.rng import keys, uniform
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.sets.clevr import BOUNDS, CLASSES, FEWEST, MOST, Scene, label_name
from jepakit.data.sets.raycast import CAMERA, COLORS, HEIGHT, SIZES, TILT, WIDTH, Hit, cast, project, render, shares_of
from jepakit.data.sources import Labels, Source

SHAPES, MATERIALS = ("sphere", "cube", "cylinder"), ("rubber", "metal")
GAP = 0.25  # at least, between the footprints' circles
SEEN_PIXELS = 0.25  # at least, of an object's pixels

NEAREST, FARTHEST, LAST = 7.5, 14.0, 10.5  # depths: of any object, and the nearest object's at most

_TRIES, _RESTARTS, _SEEN_SIDE = 30, 60, 96


def scene_labels(seed: int, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number of objects (n,) and depth of the nearest (n,) of scenes: independent, classes of each equally likely."""
    u = uniform(keys(seed, "scenes", indices), 3)
    low, high = np.array([NEAREST, *BOUNDS[:-1]]), np.array([*BOUNDS[:-1], LAST])
    of = (u[:, 1] * len(low)).astype(np.int64)
    depth = high[of] - u[:, 2] * (high - low)[of]  # in (low, high], as the classes are
    return FEWEST + (u[:, 0] * (MOST - FEWEST + 1)).astype(np.int64), depth


def scene(seed: int, index: int, size: int = 64) -> dict[str, Any]:
    """Scene `index` of a seed in the form of CLEVR's scenes files; pixel_coords are of an image of `size`.

    A function of its arguments alone. Every object keeps SEEN of its pixels, all lie within the image.
    """
    counts, depths = scene_labels(seed, np.array([index]))
    for restart in range(_RESTARTS):
        objects = _placed(seed, index, restart, int(counts[0]), float(depths[0]), size)
        if objects:
            break
    else:
        raise RuntimeError(f"no room for the objects of scene {index} of seed {seed}")
    u = uniform(keys(seed, "lights", np.array([index])), 6)[0]
    split = "val" if held_out_scenes(np.array([index]))[0] else "train"
    return {
        "split": split,
        "image_index": index,
        "image_filename": f"CLEVR_{split}_{index:06d}.png",
        "light": [float(-0.9 + 0.6 * u[0]), float(-0.8 + 0.5 * u[1]), 1.0],  # towards it
        # darker than some objects and brighter than others: else brightness alone tells where objects are, and how many
        "ground": [float(0.2 + 0.55 * u[2] + 0.1 * tint) for tint in u[3:]],
        "objects": objects,
    }


def held_out_scenes(indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) -> (n,): every fifth scene is for testing."""
    return np.asarray(indices % 5 == 4)


def _placed(seed: int, index: int, restart: int, count: int, depth: float, size: int) -> list[dict[str, Any]]:
    """The objects, nearest first, or [] where one found no place in _TRIES."""
    what = uniform(keys(seed, "objects", np.array([index]), restart), count * 5).reshape(count, 5)
    where = uniform(keys(seed, "places", np.array([index]), restart), count * _TRIES * 2).reshape(count, _TRIES, 2)
    objects: list[dict[str, Any]] = []
    hits: list[Hit] = []
    for k in range(count):
        for x, y in where[k]:
            new = _object(what[k], depth if k == 0 else depth + (FARTHEST - depth) * (1 - y), 2 * x - 1, restart, size)
            if all(_apart(new, other) for other in objects):
                hit = cast(new, _SEEN_SIDE)  # few rays, hence the margin below
                if (shares_of([*hits, hit], _SEEN_SIDE) >= SEEN_PIXELS + 0.05).all():
                    objects, hits = [*objects, new], [*hits, hit]
                    break
        else:
            return []
    return objects


def _object(u: NDArray[np.float64], depth: float, aside: float, restart: int, size: int) -> dict[str, Any]:
    """u (5,) chooses what it is; aside in [-1, 1] where, from left to right of the image."""
    large = u[1] < 0.5 * 0.9**restart  # a full plane has room for small ones
    shape, name = SHAPES[int(u[0] * 3)], "large" if large else "small"
    radius = SIZES[name]
    z = radius / math.sqrt(2) if shape == "cube" else radius
    y = CAMERA[1] + (depth - (HEIGHT - z) * math.sin(TILT)) / math.cos(TILT)
    x = aside * (WIDTH * depth - 1.4 * radius)  # within the image
    position = [float(x), float(y), z]
    return {
        "shape": shape,
        "size": name,
        "color": list(COLORS)[int(u[2] * len(COLORS))],
        "material": MATERIALS[int(u[3] * 2)],
        "rotation": float(360 * u[4]),
        "3d_coords": position,
        "pixel_coords": [*project(position, size)[:2], float(depth)],
    }


def _apart(a: Scene, b: Scene) -> bool:
    distance = math.dist(a["3d_coords"][:2], b["3d_coords"][:2])
    return distance >= SIZES[a["size"]] + SIZES[b["size"]] + GAP


class SceneSource(Source):
    """`n` scenes, drawn when they are read; every fifth is held out. labels: "count" or "distance".

    Raises UserError for unknown labels, fewer than 5 scenes or images below 16 pixels.
    """

    name = "scenes"

    def __init__(self, n: int = 4000, size: int = 64, seed: int = 0, labels: str | None = None) -> None:
        _require(n, size)
        name, indices = label_name(labels, self.name), np.arange(n)
        counts, depths = scene_labels(seed, indices)
        values = counts - FEWEST if name == "count" else np.searchsorted(BOUNDS, depths).astype(np.int64)
        self.labels: Labels | None = Labels(name, CLASSES[name], values, held_out_scenes(indices), whole_image=True)
        self.n, self.size, self.seed = n, size, seed

    def __len__(self) -> int:
        return self.n

    def raw(self, index: int) -> Pixels:
        return render(scene(self.seed, range(self.n)[index], self.size), self.size)

    def title(self, index: int) -> str:
        return f"scene {index} of seed {self.seed}, {self.size} px"


def write(folder: Path, n: int, size: int, seed: int) -> None:
    """Draw `n` scenes into a new folder in CLEVR's layout, for `ClevrSource`. Raises UserError, as for a folder in use."""
    _require(n, size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use: give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder) as draft:
        shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
        scenes: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        for split in scenes:
            (draft / "images" / split).mkdir(parents=True)
        for index in range(n):
            new = scene(seed, index, size)
            Image.fromarray(render(new, size)).save(draft / "images" / new["split"] / new["image_filename"])
            scenes[new["split"]].append(new)
        (draft / "scenes").mkdir()
        for split, found in scenes.items():
            text = json.dumps({"info": {"split": split, "version": "jepakit scenes", "seed": seed}, "scenes": found})
            (draft / "scenes" / f"CLEVR_{split}_scenes.json").write_text(text, encoding="utf-8")


def _require(n: int, size: int) -> None:
    if n < 5 or size < 16:
        raise UserError(f"cannot draw {n} scenes of {size} px: give at least 5 (every fifth is for testing) and 16 px")
