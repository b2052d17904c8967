"""COCO's JSON: masks (polygons, run lengths) or boxes of objects, as classes of pixels."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jepakit.core.errors import UserError, line_of, plain
from jepakit.data.labels.split_words import split_of
from jepakit.data.unread_files import some
from jepakit.evaluation.dense.objects import Inside, class_map, in_box, in_polygon, in_runs
from jepakit.evaluation.dense.pairs import BACKGROUND, IGNORED, LabelledFolder, Pair, PixelClasses, fifth_held_out
from jepakit.model.images import MOST_PIXELS

_TOP = re.compile(r"(?i)_?(instances|annotations)|.*coco")
_KEYS = ("images", "annotations", "categories")


def coco_files(root: Path) -> dict[str, Path]:
    """COCO's files of a folder by part of the split; 'train' alone where their names tell none; {} where there are none.

    annotations/instances_train2017.json and its like, PART/_annotations.coco.json, or on top of the folder train.json,
    annotations.json and their like. Of several for one part those called instances count. Raises UserError where that leaves
    several.
    """
    found: dict[str, list[Path]] = {}
    tops = [path for path in root.glob("*.json") if split_of(path.name) or _TOP.match(path.name)]
    for path in sorted([*root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json"), *tops]):
        if not path.name.startswith(("captions_", "person_keypoints_", "image_info_", "panoptic_", "stuff_", ".")):
            found.setdefault(split_of(path.relative_to(root)) or "train", []).append(path)
    chosen = {part: [p for p in paths if p.name.startswith("instances")] or paths for part, paths in found.items()}
    if several := next((paths for paths in chosen.values() if len(paths) > 1), None):
        raise UserError(f"{root} has several files for one part ({some([p.name for p in several])}): leave one for each part")
    return {part: paths[0] for part, paths in chosen.items()}


def coco(root: Path, boxes: bool) -> LabelledFolder | None:
    """Objects of COCO's files as classes of pixels, background first; None where a folder has no such file.

    boxes: of boxes, filled; else of masks. Crowds are ignored, as in COCO's scores. Raises UserError for what is no such JSON,
    for objects without a mask, and for images that are not there.
    """
    files = coco_files(root)
    if not files:
        return None
    read = {part: _read(path) for part, path in files.items()}
    held = next((part for part in ("test", "validation") if part in read and read[part]["annotations"]), None)
    names = {each["id"]: str(each["name"]) for one in read.values() for each in one["categories"]}
    order = {key: place for place, key in enumerate(sorted(names), start=1)}
    classes = (BACKGROUND, *(names[key] for key in order))
    parts = {part: list(_pairs(root, files[part], read[part], order, boxes)) for part in ("train", held) if part in read}
    if held is None or "train" not in parts:
        return fifth_held_out([pair for pairs in parts.values() for pair in pairs], classes)
    return LabelledFolder(tuple(parts["train"]), tuple(parts[held]), classes)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
        whole = isinstance(content, dict) and all(
            isinstance(content.get(key), list) and all(isinstance(each, dict) for each in content[key]) for key in _KEYS
        )
        if not whole:
            raise ValueError(f"it has no lists of {', '.join(_KEYS)}")
        if no_number := next((e for e in content["categories"] if not isinstance(e.get("id"), int) or "name" not in e), None):
            raise ValueError(f"a category {no_number} without id or name")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON as COCO's: {line_of(error)}") from None
    return content  # type: ignore[no-any-return]


def _pairs(
    root: Path, file: Path, content: Mapping[str, list[dict[str, Any]]], order: Mapping[int, int], boxes: bool
) -> Iterator[Pair]:
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for each in content["annotations"]:
        by_image.setdefault(each.get("image_id"), []).append(each)
    if lost := by_image.keys() - {image.get("id") for image in content["images"]}:
        raise UserError(f"{file}: annotations of {len(lost)} images that it does not list, as image_id {next(iter(lost))}")
    folder = _folder(root, file, content["images"])
    for image in content["images"]:
        path, where = folder / str(image.get("file_name")), f"{file}, image {plain(str(image.get('file_name')))}"
        yield Pair(path, where, partial(_classes_of, image, by_image.get(image.get("id"), []), order, boxes, where))


def _folder(root: Path, file: Path, images: list[dict[str, Any]]) -> Path:
    """Where the images lie: beside the file, on top, in images/, or in the folder of the file's part (train2017/)."""
    part = file.stem.rpartition("_")[2]
    tops = [file.parent, root, root / "images"]
    places = [*tops, *(top / part for top in tops[1:]), *(top / kind for top in tops[1:] for kind in ("train", "val", "data"))]
    name = str(images[0].get("file_name")) if images else ""
    found = next((place for place in places if name and (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{file}: its first image '{plain(name)}' is in none of {', '.join(map(str, dict.fromkeys(places)))}")
    return found


def _classes_of(
    image: Mapping[str, Any], objects: list[dict[str, Any]], order: Mapping[int, int], boxes: bool, where: str
) -> PixelClasses:
    height, width = image.get("height"), image.get("width")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 and height * width <= MOST_PIXELS):
        raise UserError(f"{where}: its size is given as {height} x {width}")

    def inside() -> Iterator[tuple[Inside, int]]:
        for each in objects:
            try:
                place = IGNORED if each.get("iscrowd") else order[each["category_id"]]
                yield _of_box(height, width, each["bbox"]) if boxes else _of_mask(height, width, each), place
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                told = f"no {error}" if isinstance(error, KeyError) else line_of(error)
                raise UserError(f"{where}, annotation {each.get('id')}: {told}") from None

    return class_map(height, width, inside())


def _of_box(height: int, width: int, box: list[float]) -> Inside:
    left, top, across, down = map(float, box)
    if not (across >= 0 and down >= 0 and abs(left) + abs(top) + across + down < float("inf")):
        raise ValueError(f"bbox {box}")
    return in_box(height, width, left, top, left + across, top + down)


def _of_mask(height: int, width: int, each: Mapping[str, Any]) -> Inside:
    found = each.get("segmentation")
    if not found:
        raise ValueError("it has no segmentation: --tasks boxes takes boxes as labels")
    if isinstance(found, Mapping):
        return in_runs(height, width, found["counts"])
    inside = in_polygon(height, width, found[0])
    for part in found[1:]:
        inside |= in_polygon(height, width, part)
    return inside
