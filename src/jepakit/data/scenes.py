"""Small scenes in CLEVR's manner, drawn here: 3 to 10 solids on a plane, labelled by their number and the nearest one's depth.

A stand-in for CLEVR where it is not at hand, not a copy: one fixed camera, square images, a ray caster in place of
Blender. The scenes' form, sizes, colours and gaps are CLEVR's (Johnson et al., CVPR 2017, supplement); number and
nearest depth are drawn first, apart from each other and each uniform over its classes, so that neither tells the other.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jepakit.data.clevr import BOUNDS, CLASSES, FEWEST, MOST, Scene, label_name
from jepakit.data.decode import Pixels
from jepakit.data.sources import Labels
from jepakit.errors import UserError
from jepakit.files import whole
from jepakit.rng import keys, uniform

Floats = NDArray[np.floating]  # float32 where there is an array of it: half the time of float64

COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
SHAPES, SIZES, MATERIALS = ("sphere", "cube", "cylinder"), {"small": 0.35, "large": 0.7}, ("rubber", "metal")
GAP = 0.25  # at least, between the footprints' circles
SEEN = 0.25  # at least, of an object's pixels

TILT, HEIGHT, WIDTH = math.radians(40), 6.6, 0.38  # the camera's downward angle, its height, tan of half its field
CAMERA = np.array([0.0, -HEIGHT / math.tan(TILT), HEIGHT])  # its axis meets the plane in the origin
AXES = np.array([[1, 0, 0], [0, math.sin(TILT), math.cos(TILT)], [0, math.cos(TILT), -math.sin(TILT)]])  # right, up, forward
NEAREST, FARTHEST, LAST = 7.5, 14.0, 10.5  # depths: of any object, and the nearest object's at most

_TRIES, _RESTARTS, _SEEN_SIDE = 30, 60, 96


def project(position: Any, size: int) -> tuple[float, float, float]:
    """A point (3,) of the world -> x from the left and y from the top in pixels, and depth along the camera's axis."""
    right, up, depth = AXES @ (np.asarray(position) - CAMERA)
    half = size / 2
    return float(half + half * right / depth / WIDTH), float(half - half * up / depth / WIDTH), float(depth)


def plan(seed: int, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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
    counts, depths = plan(seed, np.array([index]))
    for restart in range(_RESTARTS):
        objects = _placed(seed, index, restart, int(counts[0]), float(depths[0]), size)
        if objects:
            break
    else:
        raise RuntimeError(f"no room for the objects of scene {index} of seed {seed}")
    u = uniform(keys(seed, "lights", np.array([index])), 6)[0]
    split = "val" if held_out(np.array([index]))[0] else "train"
    return {
        "split": split,
        "image_index": index,
        "image_filename": f"CLEVR_{split}_{index:06d}.png",
        "light": [float(-0.9 + 0.6 * u[0]), float(-0.8 + 0.5 * u[1]), 1.0],  # towards it
        # darker than some objects and brighter than others: else brightness alone tells where objects are, and how many
        "ground": [float(0.2 + 0.55 * u[2] + 0.1 * tint) for tint in u[3:]],
        "objects": objects,
    }


def held_out(indices: NDArray[np.int64]) -> NDArray[np.bool_]:
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
                hit = _cast(new, _SEEN_SIDE)  # few rays, hence the margin below
                if (_shares([*hits, hit], _SEEN_SIDE) >= SEEN + 0.05).all():
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


@dataclass(frozen=True)
class Hit:
    """What rays see of one object in a box of the image: depth (h, w), inf where nothing, and normal (3, h, w)."""

    box: tuple[slice, slice]
    depth: Floats
    normal: Floats


@lru_cache(maxsize=8)
def _rays(side: int) -> Floats:
    """(3, side, side): directions through the middles of pixels, one unit of depth long."""
    middle = ((np.arange(side) + 0.5) * 2 / side - 1) * WIDTH
    right, up = np.meshgrid(middle, -middle)
    rays: Floats = np.tensordot(AXES.T, np.stack([right, up, np.ones_like(up)]), 1).astype(np.float32)
    rays.setflags(write=False)
    return rays


def _cast(thing: Scene, side: int) -> Hit:
    radius = SIZES[thing["size"]]
    position = np.array(thing["3d_coords"])
    box = _box(position, radius * 1.5, side)
    rays, eye = _rays(side)[:, *box], (CAMERA - position).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        if thing["shape"] == "sphere":
            depth, _ = _quadric(rays, eye, radius, 3)
            return Hit(box, depth, (eye[:, None, None] + depth * rays) / radius)
        turn = math.radians(thing["rotation"])
        spin = np.array([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0], [0, 0, 1]], np.float32)
        rays, eye = _turned(spin, rays), spin @ eye
        depth, normal = _cube(rays, eye, radius / math.sqrt(2)) if thing["shape"] == "cube" else _cylinder(rays, eye, radius)
        return Hit(box, depth, _turned(spin.T, normal))


def _turned(matrix: Floats, vectors: Floats) -> Floats:
    """(3, 3), (3, h, w) -> (3, h, w); many times faster than einsum's or tensordot's way for these sizes."""
    return np.asarray((matrix @ vectors.reshape(3, -1)).reshape(vectors.shape))


def _box(position: NDArray[np.float64], reach: float, side: int) -> tuple[slice, slice]:
    """Rows and columns that a ball of radius `reach` can be seen in."""
    right, up, depth = AXES @ (position - CAMERA)
    slices = []
    for middle in (-up / depth, right / depth):
        half = reach * math.sqrt(1 + middle**2) / max(depth - reach, 0.01)  # |p/q - c/d| <= this for |p - c, q - d| <= reach
        ends = ((middle + np.array([-half, half])) / WIDTH + 1) * side / 2
        low, high = np.clip(ends, 0, side)
        slices.append(slice(math.floor(low), math.ceil(high)))
    return slices[0], slices[1]


def _dot(a: Floats, b: Floats) -> Floats:
    """Over the first axis, plane by plane: for two or three planes that is faster than a reduction."""
    return np.asarray(sum((x * y for x, y in zip(a[1:], b[1:], strict=True)), a[0] * b[0]))


def _quadric(rays: Floats, eye: Floats, radius: float, axes: int) -> tuple[Floats, Floats]:
    """Depths where rays enter and leave a ball (axes 3) or an upright cylinder without ends (2); inf, -inf if never."""
    a, b = _dot(rays[:axes], rays[:axes]), _dot(eye[:axes], rays[:axes])
    b /= a
    inside = b**2 - (_dot(eye[:axes], eye[:axes]) - radius**2) / a
    root = np.sqrt(np.maximum(inside, 0))
    return np.where(inside > 0, -b - root, np.inf), np.where(inside > 0, root - b, -np.inf)


def _cube(rays: Floats, eye: Floats, half: float) -> tuple[Floats, Floats]:
    """Depth and normal of an upright cube by slabs, in its own axes."""
    enter = (-np.sign(rays) * half - eye[:, None, None]) / rays
    leave = (np.sign(rays) * half - eye[:, None, None]) / rays
    depth = enter.max(0)
    face = np.arange(3)[:, None, None] == enter.argmax(0)
    return np.where(depth < leave.min(0), depth, np.inf), np.where(face, -np.sign(rays), np.float32(0))


def _cylinder(rays: Floats, eye: Floats, radius: float) -> tuple[Floats, Floats]:
    """Depth and normal of an upright cylinder as high as wide, seen from above."""
    enter, leave = _quadric(rays, eye, radius, 2)
    top, bottom = (radius - eye[2]) / rays[2], (-radius - eye[2]) / rays[2]
    depth = np.maximum(enter, top)
    lid = top > enter
    normal = (eye[:, None, None] + depth * rays) / radius
    normal[:2, lid], normal[2] = 0, lid
    return np.where(depth < np.minimum(leave, bottom), depth, np.inf), normal


def _front(hits: Sequence[Hit], side: int) -> tuple[Floats, NDArray[np.int64]]:
    """Depth and owner (side, side): which object is nearest at a pixel, len(hits) for the plane."""
    depth = -np.float32(HEIGHT) / _rays(side)[2]
    owner = np.full((side, side), len(hits))
    for k, hit in enumerate(hits):
        nearer = hit.depth < depth[hit.box]
        depth[hit.box][nearer] = hit.depth[nearer]
        owner[hit.box][nearer] = k
    return depth, owner


def _shares(hits: Sequence[Hit], side: int) -> NDArray[np.float64]:
    seen = np.bincount(_front(hits, side)[1].ravel(), minlength=len(hits) + 1)[:-1]
    return np.asarray(seen / [max(int(np.isfinite(hit.depth).sum()), 1) for hit in hits])


def shares(described: Scene, side: int = 256) -> NDArray[np.float64]:
    """(n,): of the pixels that each object would take alone, how many it has; by `side` x `side` rays."""
    return _shares([_cast(thing, side) for thing in described["objects"]], side)


def render(described: Scene, size: int) -> Pixels:
    """(size, size, 3) uint8: the scene by ray casting, four rays a pixel; soft shadows as if of balls."""
    side = size * 2
    objects = described["objects"]
    hits = [_cast(thing, side) for thing in objects]
    depth, owner = _front(hits, side)
    light = np.array(described.get("light", (-0.6, -0.55, 1.0)), np.float32)
    light /= np.linalg.norm(light)
    rays = _rays(side)
    points = CAMERA.astype(np.float32)[:, None, None] + depth * rays
    lit, sky = _shadows(objects, points, owner, light)
    fade = 1.1 - 0.05 * np.hypot(points[0] * 0.8, points[1] - 0.3)  # a plane that is brighter in the middle
    ground = np.array(described.get("ground", (0.7, 0.7, 0.7)), np.float32)
    image = ground[:, None, None] * (fade * (0.45 * sky + 0.65 * lit * light[2]))
    for k, (thing, hit) in enumerate(zip(objects, hits, strict=True)):
        mine = owner[hit.box] == k
        image[:, *hit.box][:, mine] = _shaded(thing, hit.normal[:, mine], rays[:, *hit.box][:, mine], lit[hit.box][mine], light)
    image = image[:, ::2] + image[:, 1::2]
    image = image[..., ::2] + image[..., 1::2]
    return np.ascontiguousarray((image / 4 * 255 + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _shadows(objects: Sequence[Scene], points: Floats, owner: NDArray[np.int64], light: Floats) -> tuple[Floats, Floats]:
    """How much of the light (h, w) and of the sky (h, w) reaches the points (3, h, w), in [0, 1]."""
    lit, sky = np.ones_like(points[0]), np.ones_like(points[0])
    for k, thing in enumerate(objects):
        radius = SIZES[thing["size"]] * (0.85 if thing["shape"] == "cube" else 1)
        position = np.array(thing["3d_coords"])
        box = _box(position, 3 * radius, len(lit))
        to = (position.astype(np.float32)[:, None, None] - points[:, *box]) / radius
        far2, along = _dot(to, to), _dot(light, to)
        other = owner[box] != k
        beside = np.sqrt(np.maximum(far2 - along**2, 0))  # from the ball's middle to the way to the light
        lit[box] *= 1 - 0.7 * np.clip(2.5 - 2 * beside, 0, 1) * np.clip(3 - along, 0, 1) * (other & (along > 0))
        sky[box] *= 1 - 0.6 * other * np.maximum(np.maximum(far2, 1) ** -2 - 3.0**-4, 0)
    return lit, sky


def _shaded(thing: Scene, normal: Floats, rays: Floats, lit: Floats, light: Floats) -> Floats:
    """Colours (3, m) of m points: sky from above, the light, and its reflection; metal mirrors a bright sky."""
    color = np.array(COLORS[thing["color"]], np.float32)[:, None] / 255
    away = -rays / np.sqrt(_dot(rays, rays))
    diffuse = lit * np.maximum(_dot(light, normal), 0)
    mirrored = 2 * _dot(normal, away) * normal - away
    shine = np.maximum(_dot(light, mirrored), 0) * lit
    if thing["material"] == "metal":
        room = np.clip(0.5 + 1.2 * mirrored[2], 0.25, 1.3)
        return np.asarray(color * (0.2 + 0.45 * room + 0.5 * diffuse) + 0.85 * shine**24)
    return np.asarray(color * (0.45 + 0.15 * normal[2] + 0.75 * diffuse) + 0.12 * shine**6)


class SceneSource:
    """`n` scenes, drawn when they are read; every fifth is held out. labels: "count" or "distance".

    Raises UserError for unknown labels, fewer than 5 scenes or images below 16 pixels.
    """

    name = "scenes"

    def __init__(self, n: int = 4000, size: int = 64, seed: int = 0, labels: str | None = None) -> None:
        _require(n, size)
        name, indices = label_name(labels), np.arange(n)
        counts, depths = plan(seed, indices)
        values = counts - FEWEST if name == "count" else np.searchsorted(BOUNDS, depths).astype(np.int64)
        self.labels: Labels | None = Labels(name, CLASSES[name], values, held_out(indices), whole=True)
        self.n, self.size, self.seed = n, size, seed

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> Pixels:
        return render(scene(self.seed, range(self.n)[index], self.size), self.size)

    def title(self, index: int) -> str:
        return f"scene {index} of seed {self.seed}, {self.size} px"


def write(folder: Path, n: int, size: int, seed: int) -> None:
    """Draw `n` scenes into a new folder in CLEVR's layout, for `ClevrSource`. Raises UserError, as for a folder in use."""
    _require(n, size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use: give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as draft:
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
            (draft / "scenes" / f"CLEVR_{split}_scenes.json").write_text(text)


def _require(n: int, size: int) -> None:
    if n < 5 or size < 16:
        raise UserError(f"cannot draw {n} scenes of {size} px: give at least 5 (every fifth is for testing) and 16 px")
