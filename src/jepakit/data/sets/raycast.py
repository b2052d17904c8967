"""A ray caster for CLEVR's solids: spheres, cubes and cylinders on a plane, seen by one fixed camera.

h, w rows and columns of rays; a depth is along the camera's axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data.decoding.pixels import Pixels
from jepakit.data.sets.clevr import Scene

_Floats = NDArray[np.floating]  # float32 where there is an array of it: half the time of float64

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
SIZES = {"small": 0.35, "large": 0.7}

TILT, HEIGHT, WIDTH = math.radians(40), 6.6, 0.38  # the camera's downward angle, its height, tan of half its field
CAMERA = np.array([0.0, -HEIGHT / math.tan(TILT), HEIGHT])  # its axis meets the plane in the origin
AXES = np.array([[1, 0, 0], [0, math.sin(TILT), math.cos(TILT)], [0, math.cos(TILT), -math.sin(TILT)]])  # right, up, forward


def project(position: Any, size: int) -> tuple[float, float, float]:
    """A point (3,) of the world -> x from the left and y from the top in pixels, and depth along the camera's axis."""
    right, up, depth = AXES @ (np.asarray(position) - CAMERA)
    half = size / 2
    return float(half + half * right / depth / WIDTH), float(half - half * up / depth / WIDTH), float(depth)


@dataclass(frozen=True)
class Hit:
    """What rays see of one object in a box of the image: depth (h, w), inf where nothing, and normal (3, h, w)."""

    box: tuple[slice, slice]
    depth: _Floats
    normal: _Floats


@lru_cache(maxsize=8)
def _rays(side: int) -> _Floats:
    """(3, side, side): directions through the middles of pixels, one unit of depth long."""
    middle = ((np.arange(side) + 0.5) * 2 / side - 1) * WIDTH
    right, up = np.meshgrid(middle, -middle)
    rays: _Floats = np.tensordot(AXES.T, np.stack([right, up, np.ones_like(up)]), 1).astype(np.float32)
    rays.setflags(write=False)
    return rays


def cast(thing: Scene, side: int) -> Hit:
    """What `side` x `side` rays see of one object, as if it were alone."""
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


def _turned(matrix: _Floats, vectors: _Floats) -> _Floats:
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


def _dot(a: _Floats, b: _Floats) -> _Floats:
    """Over the first axis, plane by plane: for two or three planes that is faster than a reduction."""
    return np.asarray(sum((x * y for x, y in zip(a[1:], b[1:], strict=True)), a[0] * b[0]))


def _quadric(rays: _Floats, eye: _Floats, radius: float, axes: int) -> tuple[_Floats, _Floats]:
    """Depths where rays enter and leave a ball (axes 3) or an upright cylinder without ends (2); inf, -inf if never."""
    a, b = _dot(rays[:axes], rays[:axes]), _dot(eye[:axes], rays[:axes])
    b /= a
    inside = b**2 - (_dot(eye[:axes], eye[:axes]) - radius**2) / a
    root = np.sqrt(np.maximum(inside, 0))
    return np.where(inside > 0, -b - root, np.inf), np.where(inside > 0, root - b, -np.inf)


def _cube(rays: _Floats, eye: _Floats, half: float) -> tuple[_Floats, _Floats]:
    """Depth and normal of an upright cube by slabs, in its own axes."""
    enter = (-np.sign(rays) * half - eye[:, None, None]) / rays
    leave = (np.sign(rays) * half - eye[:, None, None]) / rays
    depth = enter.max(0)
    face = np.arange(3)[:, None, None] == enter.argmax(0)
    return np.where(depth < leave.min(0), depth, np.inf), np.where(face, -np.sign(rays), np.float32(0))


def _cylinder(rays: _Floats, eye: _Floats, radius: float) -> tuple[_Floats, _Floats]:
    """Depth and normal of an upright cylinder as high as wide, seen from above."""
    enter, leave = _quadric(rays, eye, radius, 2)
    top, bottom = (radius - eye[2]) / rays[2], (-radius - eye[2]) / rays[2]
    depth = np.maximum(enter, top)
    lid = top > enter
    normal = (eye[:, None, None] + depth * rays) / radius
    normal[:2, lid], normal[2] = 0, lid
    return np.where(depth < np.minimum(leave, bottom), depth, np.inf), normal


def _front(hits: Sequence[Hit], side: int) -> tuple[_Floats, NDArray[np.int64]]:
    """Depth and owner (side, side): which object is nearest at a pixel, len(hits) for the plane."""
    depth = -np.float32(HEIGHT) / _rays(side)[2]
    owner = np.full((side, side), len(hits))
    for k, hit in enumerate(hits):
        nearer = hit.depth < depth[hit.box]
        depth[hit.box][nearer] = hit.depth[nearer]
        owner[hit.box][nearer] = k
    return depth, owner


def shares_of(hits: Sequence[Hit], side: int) -> NDArray[np.float64]:
    """(n,): of the rays that hit each object, the share that hits nothing before it."""
    seen = np.bincount(_front(hits, side)[1].ravel(), minlength=len(hits) + 1)[:-1]
    return np.asarray(seen / [max(int(np.isfinite(hit.depth).sum()), 1) for hit in hits])


def shares(described: Scene, side: int = 256) -> NDArray[np.float64]:
    """(n,): of the pixels that each object would take alone, how many it has; by `side` x `side` rays."""
    return shares_of([cast(thing, side) for thing in described["objects"]], side)


def render(described: Scene, size: int) -> Pixels:
    """(size, size, 3) uint8: the scene by ray casting, four rays a pixel; soft shadows as if of balls."""
    side = size * 2
    objects = described["objects"]
    hits = [cast(thing, side) for thing in objects]
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


def _shadows(objects: Sequence[Scene], points: _Floats, owner: NDArray[np.int64], light: _Floats) -> tuple[_Floats, _Floats]:
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


def _shaded(thing: Scene, normal: _Floats, rays: _Floats, lit: _Floats, light: _Floats) -> _Floats:
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
