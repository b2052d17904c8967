"""Pascal VOC's folders: label images of SegmentationClass/, or the boxes of Annotations/, by the lists of ImageSets/."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jepakit.core.errors import UserError, line_of
from jepakit.data.decoding.decode import SUFFIXES
from jepakit.evaluation.dense.label_folders import image_files, label_values, pairs_by_name
from jepakit.evaluation.dense.label_images import LABEL_SUFFIXES
from jepakit.evaluation.dense.objects import class_map, in_box
from jepakit.evaluation.dense.pairs import BACKGROUND, IGNORED, LabelledFolder, Pair, PixelClasses, fifth_held_out
from jepakit.model.images import MOST_PIXELS

VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_MOST_BYTES = 1 << 24  # of one XML file


def voc_folder(root: Path) -> Path | None:
    """The folder with JPEGImages/: root itself, or one below root or root/VOCdevkit if it is the only one."""
    places = [root, *sorted(root.glob("*/")), *sorted(root.glob("VOCdevkit/*/"))]
    found = [place for place in places if (place / "JPEGImages").is_dir()]
    if root in found:
        return root
    if len(found) > 1:
        raise UserError(f"{root} has several VOC folders ({', '.join(place.name for place in found)}): give one of them")
    return found[0] if found else None


def voc_segmentation(
    root: Path, zero_is_other: bool | None, ignore: tuple[int, ...] | None, class_list: Path | None
) -> LabelledFolder | None:
    """VOC's label images, by ImageSets/Segmentation/{train,val}.txt: 0 is the background, a class, and 255 is ignored.

    Without a list of classes a folder called VOC2012 or the like has VOC's own names. None where it has no
    SegmentationClass/. Raises UserError.
    """
    folder = root / "SegmentationClass"
    if not folder.is_dir():
        return None
    values, names, notes = label_values(root, zero_is_other, ignore, class_list, default=False)
    images, labels = image_files(root / "JPEGImages", SUFFIXES), image_files(folder, LABEL_SUFFIXES)
    images = {name: path for name, path in images.items() if name in labels}  # most of VOC's images have none
    pairs = {pair.image.stem: pair for pair in pairs_by_name(images, labels, values, (root / "JPEGImages", folder))}
    first = int(values.zero_is_other)
    if re.fullmatch(r"VOC20\d\d", root.resolve().name) and not names:
        names = VOC_CLASSES[first:]
    return _by_lists(root / "ImageSets" / "Segmentation", pairs, names, notes, first)


def voc_boxes(root: Path) -> LabelledFolder | None:
    """The boxes of Annotations/NAME.xml as classes of pixels, by ImageSets/Main/{train,val}.txt; None where there are none.

    'difficult' ones are ignored, as in VOC's own scores. Raises UserError for files that are no such XML.
    """
    folder = root / "Annotations"
    if not folder.is_dir():
        return None
    images, files = image_files(root / "JPEGImages", SUFFIXES), image_files(folder, (".xml",))
    if missing := sorted(files.keys() - images.keys()):
        raise UserError(f"{files[missing[0]]} has no image of its name in {root / 'JPEGImages'}")
    read = {name: _read_xml(path) for name, path in files.items()}
    classes = (BACKGROUND, *sorted({each.name for boxes in read.values() for each in boxes.objects}))
    pairs = {
        name: Pair(images[name], str(files[name]), partial(_classes_of, boxes, {c: i for i, c in enumerate(classes)}))
        for name, boxes in read.items()
    }
    return _by_lists(root / "ImageSets" / "Main", pairs, classes, ())


def _by_lists(
    lists: Path, pairs: dict[str, Pair], classes: tuple[str, ...], notes: tuple[str, ...], first: int = 0
) -> LabelledFolder:
    """Pairs by train.txt and val.txt (or test.txt) of a folder; every fifth is held out where it has no such two."""
    found = {name: lists / f"{name}.txt" for name in ("train", "val", "test") if (lists / f"{name}.txt").is_file()}
    held = next((name for name in ("val", "test") if name in found), None)
    if "train" not in found or held is None:
        return fifth_held_out([pairs[name] for name in sorted(pairs)], classes, notes, first)
    train, test = (
        [line.split()[0] for line in found[name].read_text(encoding="utf-8").splitlines() if line.strip()]
        for name in ("train", held)
    )
    for name, listed in (("train", train), (held, test)):
        if missing := next((each for each in listed if each not in pairs), None):
            raise UserError(f"{found[name]} lists '{missing}', of which the folder has no labels or no image")
    return LabelledFolder(tuple(pairs[name] for name in train), tuple(pairs[name] for name in test), classes, notes, first)


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax: pixels counted from 1, the last one in it
    difficult: bool


@dataclass(frozen=True)
class _Boxes:
    height: int
    width: int
    objects: tuple[_Object, ...]


def _classes_of(boxes: _Boxes, places: dict[str, int]) -> PixelClasses:
    h, w = boxes.height, boxes.width
    filled = ((each, in_box(h, w, each.box[0] - 1, each.box[1] - 1, each.box[2], each.box[3])) for each in boxes.objects)
    return class_map(h, w, ((inside, IGNORED if each.difficult else places[each.name]) for each, inside in filled))


def _read_xml(path: Path) -> _Boxes:
    try:
        content = path.read_bytes()
        if len(content) > _MOST_BYTES or b"<!ENTITY" in content or b"<!DOCTYPE" in content:
            raise ValueError("larger than any, or with declarations of its own")
        tree = ElementTree.fromstring(content)
        height, width = (int(_text(tree, f"size/{side}")) for side in ("height", "width"))
        if not 0 < height * width <= MOST_PIXELS or min(height, width) < 1:
            raise ValueError(f"its size is {height} x {width}")
        return _Boxes(height, width, tuple(map(_object, tree.iter("object"))))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no annotation as VOC's: {line_of(error)}") from None


def _object(found: ElementTree.Element) -> _Object:
    left, top, right, bottom = (float(_text(found, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not (left <= right and top <= bottom and abs(left) + abs(top) + abs(right) + abs(bottom) < float("inf")):
        raise ValueError(f"a box from {left}, {top} to {right}, {bottom}")
    return _Object(_text(found, "name"), (left, top, right, bottom), found.findtext("difficult", "0").strip() == "1")


def _text(found: ElementTree.Element, path: str) -> str:
    text = (found.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"no {path} in it")
    return text
