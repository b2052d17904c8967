"""Labelled sets of image files, split by lists of their own or by the rule that is usual for them."""

import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from posixpath import join  # an absolute path stays one, to be refused
from typing import Any

import numpy as np

from jepakit.core import rng
from jepakit.core.errors import UserError, line_of
from jepakit.core.files import load_json
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.data.formats.folder import FilesSource, unused
from jepakit.data.sources import Labels, Source, pick

EUROSAT = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
EUROSAT_TRAIN, EUROSAT_TEST = 1000, 500
PLACES_IMAGES = ("data/vision/torralba/deeplearning/images256", "images256")
DEEP = 4  # folders in folders that a set has at most
_Row = tuple[str, Hashable, bool]  # path below the root, key of its class (None: no part of the split), held out


def eurosat(root: Path, labels: str | None) -> Source | None:
    """EuroSAT (Helber et al. 2019), RGB or all 13 bands: ten class folders; label 'class'.

    VISSL's split: a class's file names sorted as strings (X_1, X_10, X_100, ... before X_2), the first 1000 train, the next
    500 test, the rest no part of it.
    """
    if not all((root / name).is_dir() for name in EUROSAT):
        return None
    rows: list[_Row] = []
    for name in EUROSAT:
        for rank, file in enumerate(_images(root / name)):
            inside = rank < EUROSAT_TRAIN + EUROSAT_TEST
            rows.append((f"{name}/{file}", name if inside else None, inside and rank >= EUROSAT_TRAIN))
    return _source(root, labels, {name: name for name in EUROSAT}, rows)


def food101(root: Path, labels: str | None) -> Source | None:
    """Food-101 (Bossard et al. 2014): images/CLASS/ID.jpg with meta/train.txt and meta/test.txt of CLASS/ID; label 'class'."""
    lists = root / "meta" / "train.txt", root / "meta" / "test.txt"
    if not ((root / "images").is_dir() and lists[0].is_file()):
        return None
    lines = [(line, line.partition("/")[0], bool(test)) for test, path in enumerate(lists) for line in _lines(path)]
    rows = [(join("images", f"{line}.jpg"), name, test) for line, name, test in lines]
    return _source(root, labels, {name: name for name in sorted({name for _, name, _ in lines})}, rows)


def sun397(root: Path, labels: str | None) -> Source | None:
    """SUN397 (Xiao et al. 2010): L/CLASS[/KIND]/sun_*.jpg, L a letter; label 'class'.

    With the official Training_01.txt and Testing_01.txt in this folder, the one above, or Partitions/ in either, those; images
    of neither have no part. Else VISSL's shares by our own draw: of a class of n, its files sorted as strings and permuted by
    `rng.permutation(0, 'sun397/CLASS', 0, n)`, the first round(.7 n) train, the next round(.1 n) no part, the rest test.
    """
    letters = sorted(entry for entry in os.listdir(root) if len(entry) == 1 and (root / entry).is_dir()) if root.is_dir() else []
    first = next((file for letter in letters[:1] for _, file in _below(root, letter)), "")
    if not first.startswith("sun_"):
        return None
    by_class: dict[str, list[str]] = {}
    for letter in letters:
        for folder, file in _below(root, letter):
            by_class.setdefault(folder, []).append(file)
    rows: list[_Row] = []
    official = _official_sun(root)
    for name in sorted(by_class):
        files = sorted(by_class[name])
        order = rng.permutation(0, f"sun397/{name}", 0, len(files)).argsort()  # each file's place in the draw
        train = round(0.7 * len(files))
        unused = train + round(0.1 * len(files))
        for file, place in zip(files, order, strict=True):
            part = official.get(f"{name}/{file}", 0) if official else 1 if place < train else 0 if place < unused else 2
            rows.append((f"{name}/{file}", name if part else None, part == 2))
    return _source(root, labels, {name: name.partition("/")[2] for name in sorted(by_class)}, rows)


def places205(root: Path, labels: str | None) -> Source | None:
    """Places205 (Zhou et al. 2014): trainvalsplit_places205/{train,val}_places205.csv of 'path label'; val is held out."""
    folder = root / "trainvalsplit_places205"
    if not (folder / "train_places205.csv").is_file():
        return None
    images = next((place for place in PLACES_IMAGES if (root / place).is_dir()), None)
    if images is None:
        raise UserError(f"{root} has Places205's lists and none of its images: they belong into {' or '.join(PLACES_IMAGES)}")
    rows: list[_Row] = []
    names: dict[int, str] = {}
    for test, part in enumerate(("train", "val")):
        path = folder / f"{part}_places205.csv"
        for number, line in enumerate(_lines(path), 1):
            name, _, label = line.rpartition(" ")
            if not name or not label.isascii() or not label.isdigit():
                raise UserError(f"{path}, line {number}: expected 'path label', got '{line[:80]}'")
            rows.append((join(images, name), int(label), bool(test)))
            names.setdefault(int(label), "/".join(name.split("/")[:-1]).removeprefix(f"{name[:1]}/"))
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{folder}: labels are not the numbers from 0 to {len(names) - 1}")
    return _source(root, labels, dict(sorted(names.items())), rows)


def inaturalist(root: Path, labels: str | None) -> Source | None:
    """iNaturalist 2018: train2018.json and val2018.json in COCO's form; val is held out; label 'class'."""
    paths = root / "train2018.json", root / "val2018.json"
    if not paths[0].is_file():
        return None
    names: dict[int, str] = {}
    rows: list[_Row] = []
    for test, path in enumerate(paths):
        try:
            content: Any = load_json(path)
            names |= {entry["id"]: str(entry.get("name", entry["id"])) for entry in content["categories"]}
            category = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
            rows += [(str(entry["file_name"]), category[entry["id"]], bool(test)) for entry in content["images"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else line_of(error)
            raise UserError(
                f"{path} is not readable as iNaturalist's list of images, annotations and categories: {what}"
            ) from None
    for _, identity, _ in rows:
        if identity not in names:
            raise UserError(f"{root}: category {identity} of an image is in no list of categories")
    return _source(root, labels, dict(sorted(names.items())), rows)


def imagenet(root: Path, labels: str | None) -> Source | None:
    """ImageNet: train/WNID/*.JPEG and val/WNID/*.JPEG, here or in ILSVRC/Data/CLS-LOC; val is held out; label 'class'.

    There val may be flat, with LOC_val_solution.csv in this folder or one above.
    """
    base = next((b for b in (root, root / "ILSVRC/Data/CLS-LOC", root / "Data/CLS-LOC") if (b / "train").is_dir()), None)
    if base is None or not (base / "val").is_dir():
        return None
    classes = {name: name for name in sorted(os.listdir(base / "train")) if re.fullmatch(r"n\d{8}", name)}
    if not classes:
        return None
    rows: list[_Row] = [(f"train/{name}/{file}", name, False) for name in classes for file in _images(base / "train" / name)]
    folders = sorted(classes.keys() & os.listdir(base / "val"))
    if folders:
        rows += [(f"val/{name}/{file}", name, True) for name in folders for file in _images(base / "val" / name)]
    else:
        solution = _val_solution(base)
        for file in _images(base / "val"):
            name = solution.get(Path(file).stem, "")
            if name not in classes:
                raise UserError(f"{base / 'val' / file} has no class of train/ in LOC_val_solution.csv")
            rows.append((f"val/{file}", name, True))
    test = [f"test/{file}" for file in _images(base / "test")] if (base / "test").is_dir() else []
    notes = (f"{len(test):,} images of test/ left out, as no list tells their classes",) if test else ()
    return _source(base, labels, classes, rows, notes, test)


def _source(
    root: Path,
    labels: str | None,
    classes: Mapping[Any, str],
    rows: Sequence[_Row],
    notes: tuple[str, ...] = (),
    noted: Sequence[str] = (),
) -> Source:
    """The set of these rows. classes: names by key, in order; noted: other files, which `notes` speak of."""
    pick(labels, ("class",), str(root))
    place = {key: i for i, key in enumerate(classes)}
    values = np.array([place.get(key, -1) for _, key, _ in rows], np.int64)
    found = Labels("class", tuple(classes.values()), values, np.array([held_out for *_, held_out in rows], bool))
    source = FilesSource(root, [file for file, _, _ in rows], found)
    source.notes = (*notes, *unused(root, [*source.files, *noted], len(source)))
    return source


def _images(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted as strings."""
    names = (entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)


def _below(root: Path, folder: str) -> Iterable[tuple[str, str]]:
    """(folder, file) of every image below a folder of root, folders with / whatever the system writes."""
    for place, below, files in os.walk(root / folder):
        below.sort()
        if len(Path(place).relative_to(root).parts) > DEEP:  # no set of these; and walk calls itself
            below.clear()
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith("."):
                yield Path(place).relative_to(root).as_posix(), file


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None


def _official_sun(root: Path) -> dict[str, int]:
    """File -> 1 (train) or 2 (test) of the first official partition; empty where it is not there."""
    for folder in (root, root / "Partitions", root.parent, root.parent / "Partitions"):
        lists = folder / "Training_01.txt", folder / "Testing_01.txt"
        if all(path.is_file() for path in lists):
            return {line.lstrip("/"): part for part, path in enumerate(lists, 1) for line in _lines(path)}
    return {}


def _val_solution(base: Path) -> dict[str, str]:
    """Image -> WNID, from lines 'ImageId,WNID x y x y WNID ...'."""
    for folder in (base, *list(base.parents)[:3]):
        path = folder / "LOC_val_solution.csv"
        if path.is_file():
            pairs = (line.partition(",") for line in _lines(path))
            return {image: boxes.split(" ")[0] for image, _, boxes in pairs}
    raise UserError(f"{base / 'val'} is flat: sort its images into class folders as train/ has them, or add LOC_val_solution.csv")
