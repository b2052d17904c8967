"""Labels of pixels as users have them: VOC's, COCO's and other folders, lists of classes, objects filled in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.evaluation.dense.annotated import open_annotated, open_boxes
from jepakit.evaluation.dense.label_images import LabelValues, read_class_list, read_labels
from jepakit.evaluation.dense.objects import class_map, in_box, in_polygon, in_runs
from jepakit.evaluation.dense.pairs import IGNORED
from jepakit.evaluation.dense.segmentation import boxes, segmentation
from jepakit.evaluation.results import results_table
from test_dense import COLOURS, encoder, label_map, save

ONE = {"epochs": 20, "lrs": [0.01]}


def told(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- objects, filled in


def test_a_pixel_is_in_a_box_if_its_centre_is() -> None:
    inside = in_box(4, 5, 1.0, 0.6, 3.0, 2.5)  # centres of columns 1, 2; of rows 1 alone (0.5 < 0.6, 2.5 is no more in it)
    np.testing.assert_array_equal(np.argwhere(inside), [[1, 1], [1, 2]])
    assert in_box(4, 5, -9, -9, 99, 99).all() and not in_box(4, 5, 2.6, 0, 3.4, 4).any()


def test_polygons_are_filled_as_matplotlib_tells_of_each_pixels_centre() -> None:
    random = np.random.RandomState(0)
    centres = np.stack([grid.ravel() + 0.5 for grid in np.mgrid[:30, :40][::-1]], 1)
    for corners in (3, 4, 9):
        for _ in range(20):
            points = random.uniform(-8, 45, (corners, 2))
            winding = Outline(points).contains_points(centres).reshape(30, 40)
            ours = in_polygon(30, 40, points.ravel().tolist())
            if corners == 3:  # larger ones cross themselves, where matplotlib's rule is another
                np.testing.assert_array_equal(ours, winding)
            assert not (ours & ~winding).any() or corners > 3
    np.testing.assert_array_equal(in_polygon(4, 4, [1, 1, 3, 1, 3, 3, 1, 3]), in_box(4, 4, 1, 1, 3, 3))
    star = in_polygon(9, 9, [0, 0, 9, 9, 9, 0, 0, 9])  # two triangles of one line: even-odd leaves the sides out
    assert star[4, 1] and not star[1, 4]


def compressed(counts: list[int]) -> str:
    """COCO's string of run lengths, as rleToString in its maskApi.c writes it."""
    text = ""
    for place, count in enumerate(counts):
        value, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | (32 if more else 0)) + 48)
    return text


def test_run_lengths_go_down_columns_and_their_string_is_the_list() -> None:
    np.testing.assert_array_equal(in_runs(2, 3, [1, 2, 3]), [[False, True, False], [True, False, False]])
    random = np.random.RandomState(0)
    for _ in range(50):
        flat = random.rand(random.randint(1, 900)) < random.rand()
        ends = np.flatnonzero(np.diff(flat.astype(int))) + 1
        counts = np.diff([0, *ends, len(flat)]).tolist()
        counts = [0, *counts] if flat[0] else counts
        np.testing.assert_array_equal(in_runs(1, len(flat), counts)[0], flat)
        np.testing.assert_array_equal(in_runs(1, len(flat), compressed(counts))[0], flat)
    assert compressed([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"  # the example in COCO's own source


@pytest.mark.parametrize("bad", [[5], [7, -1], [1 << 40], "o", "zzzzzzzzzz", "\x00", "ü"])
def test_run_lengths_of_another_image_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError):
        in_runs(2, 3, bad)


def test_pixels_in_objects_of_two_classes_or_in_an_ignored_one_have_none_whatever_the_order() -> None:
    a, b, c = in_box(1, 6, 0, 0, 3, 1), in_box(1, 6, 2, 0, 5, 1), in_box(1, 6, 4, 0, 6, 1)
    objects = [(a, 1), (a, 1), (b, 2), (c, IGNORED)]
    for order in (objects, objects[::-1]):
        np.testing.assert_array_equal(class_map(1, 6, order), [[1, 1, IGNORED, 2, IGNORED, IGNORED]])


# ---- values and lists


def test_values_that_a_list_names_are_the_classes_and_255_may_be_one(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 255], [255, 0]], np.uint8))
    (tmp_path / "classes.txt").write_text("Pixel Value, Class\n0: sound\n255: crack in it\n")
    values, names = read_class_list(tmp_path / "classes.txt", None)
    assert (values, names) == ((0, 255), ("sound", "crack in it"))
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png", LabelValues(True, None, values)), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png", LabelValues(True, (0,), values)), [[-1, 1], [1, -1]])


def test_the_labels_own_ignore_value_replaces_255(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 7], [255, 1]], np.uint8))
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png", LabelValues(False, (7, 0))), [[-1, -1], [255, 1]])
    said = told(read_labels, tmp_path / "m.png", LabelValues(True, None, (1, 2)))
    assert "value 7" in said and "segmentation.ignore=[7]" in said


def test_ade20ks_own_list_is_read_and_names_alone_need_a_first_value(tmp_path: Path) -> None:
    path = tmp_path / "objectInfo150.txt"
    path.write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11664\t1172\twall\n2\t0.1\t6046\t612\tbuilding, edifice\n")
    assert read_class_list(path, None) == ((1, 2), ("wall", "building, edifice"))
    path.write_text("# mine\nsky\ntree\n\n")
    assert read_class_list(path, False) == ((0, 1), ("sky", "tree"))
    assert read_class_list(path, True) == ((1, 2), ("sky", "tree"))
    assert "zero_is_other=false" in told(read_class_list, path, None)
    path.write_text("1 sky\ntree\n2 sea\n")
    assert "lines with a number and lines without" in told(read_class_list, path, None)
    path.write_text("1 sky\n1 tree\n")
    assert "value 1 stands there twice" in told(read_class_list, path, None)


# ---- folders


def maps(count: int) -> list[NDArray[np.uint8]]:
    random = np.random.RandomState(0)
    return [label_map(random) for _ in range(count)]


def test_masks_beside_images_without_a_split_hold_out_every_fifth_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, labels in enumerate(maps(10)):
        save(tmp_path / "imgs" / f"{i:02d}.png", COLOURS[labels])
        save(tmp_path / "masks" / f"{i:02d}_mask.png", labels)
    with caplog.at_level("INFO", "jepakit"):
        found = open_annotated(tmp_path)
    assert [pair.image.stem for pair in found.test] == ["04", "09"] and len(found.train) == 8
    assert found.names == ("1", "2") and "every fifth" in caplog.text and "label 0 is no class" in caplog.text
    assert open_annotated(tmp_path, zero_is_other=False).names == ("0", "1", "2")


def test_parts_may_stand_above_images_and_masks_and_test_goes_before_validation(tmp_path: Path) -> None:
    for i, labels in enumerate(maps(9)):
        part = ("train", "valid", "test")[max(0, i - 6)]
        save(tmp_path / part / "images" / f"{i}.png", COLOURS[labels])
        save(tmp_path / part / "labels" / f"{i}.png", np.repeat(labels[..., None], 3, 2))  # gray, saved as RGB
    (tmp_path / "classes.txt").write_text("1 left\n2 right\n")
    found = open_annotated(tmp_path)
    assert [pair.image.stem for pair in found.test] == ["8"] and len(found.train) == 7 and found.names == ("left", "right")


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    for i in range(10):
        labels = np.zeros((8, 8), np.uint8)
        labels[i % 4 :, :3] = 255
        save(tmp_path / "images" / f"{i}.png", COLOURS[labels // 255])
        save(tmp_path / "masks" / f"{i}.png", labels)
    assert "no pixel" in told(open_annotated, tmp_path) and "a list of classes names it" in told(open_annotated, tmp_path)
    (tmp_path / "classes.txt").write_text("0 sound\n255 crack\n")
    assert open_annotated(tmp_path).names == ("sound", "crack")
    (tmp_path / "classes.txt").write_text("255 crack\n")
    assert "of one class, 'crack'" in told(open_annotated, tmp_path)
    (tmp_path / "gt").mkdir()
    assert "several folders of labels (gt, masks)" in told(open_annotated, tmp_path)


# ---- VOC


def xml(objects: str, size: str = "<width>32</width><height>24</height>") -> str:
    return f"<annotation><size>{size}<depth>3</depth></size>{objects}</annotation>"


def box(name: str, *sides: int, difficult: int = 0) -> str:
    ends = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{ends}</bndbox></object>"


def voc(root: Path) -> Path:
    """Ten images; labels 0, 1 and 2, a rim of 255; boxes: the left part a cat, but for the first row."""
    base = root / "VOCdevkit" / "VOC2012"
    for i, labels in enumerate(maps(10)):
        save(base / "JPEGImages" / f"{i}.jpg", COLOURS[labels])
        edge = int((labels[10] == 1).sum())
        marked = labels.copy()
        marked[:, edge - 1] = 255
        if i != 7:  # most of VOC's images have no label image
            save(base / "SegmentationClass" / f"{i}.png", marked, "P")
        path = base / "Annotations" / f"{i}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml(box("cat", 1, 2, edge, 24) + box("dog", 31, 1, 32, 2, difficult=i % 2)))
    for task, lists in {"Segmentation": ("012345", "689"), "Main": ("0123456", "789")}.items():
        (base / "ImageSets" / task).mkdir(parents=True)
        for part, names in zip(("train", "val"), lists, strict=True):
            (base / "ImageSets" / task / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def test_vocs_masks_have_a_background_ignore_255_and_go_by_its_lists(tmp_path: Path) -> None:
    found = open_annotated(voc(tmp_path))
    assert [pair.image.stem for pair in found.test] == ["6", "8", "9"]
    assert found.names[:3] == ("background", "aeroplane", "bicycle") and found.classes == 21
    raw = np.array(Image.open(tmp_path / "VOCdevkit/VOC2012/SegmentationClass/6.png"))
    np.testing.assert_array_equal(found.test[0].read(), np.where(raw == 255, -1, raw.astype(int)))
    rows = segmentation({"e": encoder()}, tmp_path, **ONE)
    assert rows[1]["miou"] > 0.6 and rows[1]["per_class"][3] is None and rows[1]["images_with"][:4] == [3, 3, 3, 0]
    assert "IoU of each class: background " in results_table({"segmentation": rows})


def test_vocs_boxes_are_counted_from_one_and_difficult_ones_ignored(tmp_path: Path) -> None:
    found = open_boxes(voc(tmp_path))
    assert found.names == ("background", "cat", "dog") and [pair.image.stem for pair in found.test] == ["7", "8", "9"]
    edge = int((maps(10)[7][10] == 1).sum())
    by_hand = np.zeros((24, 32), int)
    by_hand[1:, :edge] = 1
    by_hand[:2, 30:] = -1
    np.testing.assert_array_equal(found.test[0].read(), by_hand)
    assert found.test[1].read()[0, 31] == 2
    rows = {row["name"]: row for row in boxes({"e": encoder()}, tmp_path, **ONE)}
    assert rows["raw pixels"]["per_class"][1] > 0.8 > rows["majority class"]["miou"]


@pytest.mark.parametrize(
    "content, said",
    {
        "an entity": ('<!DOCTYPE a [<!ENTITY b "c">]>' + xml(""), "declarations"),
        "cut": (xml("")[:-5], "no annotation as VOC's"),
        "a box without a side": (xml("<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>"), "no bndbox/ymin"),
        "a box inside out": (xml(box("cat", 9, 1, 3, 4)), "a box from 9.0, 1.0 to 3.0, 4.0"),
        "a bomb": (xml("", "<width>999999</width><height>999999</height>"), "its size is 999999 x 999999"),
    }.values(),
)
def test_xml_that_is_none_of_vocs_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = voc(tmp_path) / "VOCdevkit/VOC2012/Annotations/3.xml"
    path.write_text(content)
    message = told(open_boxes, tmp_path)
    assert "3.xml" in message and said in message


# ---- COCO


def coco(root: Path, layout: str = "coco") -> Path:
    """Twelve images of 24 x 32: a polygon of the left half (category 9), a box of run lengths (4), a crowd in a corner."""
    for part, year, places in (("train", "train2017", range(9)), ("val", "val2017", range(9, 12))):
        images, objects = [], []
        for i in places:
            labels = np.ones((24, 32), np.uint8)
            labels[:, 16:] = 0
            labels[4:12, 20:28] = 2
            folder = root / year if layout == "coco" else root / part
            save(folder / f"{i}.jpg", COLOURS[labels])
            images.append({"id": 100 + i, "file_name": f"{i}.jpg", "height": 24, "width": 32})
            runs = np.diff([0, *(np.flatnonzero(np.diff((labels == 2).T.ravel().astype(int))) + 1), 24 * 32]).tolist()
            each = [
                {"category_id": 9, "segmentation": [[0, 0, 16, 0, 16, 24, 0, 24]], "bbox": [0, 0, 16, 24]},
                {"category_id": 4, "segmentation": {"size": [24, 32], "counts": compressed(runs)}, "bbox": [20, 4, 8, 8]},
                {"category_id": 4, "iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [0, 2, 766]}, "bbox": [0, 0, 1, 2]},
            ]
            objects += [{"id": 10 * i + k, "image_id": 100 + i, "iscrowd": 0, **one} for k, one in enumerate(each)]
        categories = [{"id": 9, "name": "field"}, {"id": 4, "name": "pond"}]
        file = root / "annotations" / f"instances_{year}.json" if layout == "coco" else root / part / "_annotations.coco.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return root


@pytest.mark.parametrize("layout", ["coco", "parts"])
def test_cocos_masks_and_boxes_are_classes_by_their_ids_and_crowds_are_ignored(tmp_path: Path, layout: str) -> None:
    coco(tmp_path, layout)
    by_hand = np.zeros((24, 32), int)
    by_hand[:, :16], by_hand[4:12, 20:28], by_hand[:2, 0] = 2, 1, -1
    for found in (open_annotated(tmp_path), open_boxes(tmp_path)):
        assert found.names == ("background", "pond", "field") and (len(found.train), len(found.test)) == (9, 3)
        np.testing.assert_array_equal(found.test[0].read(), by_hand)
    rows = segmentation({"e": encoder()}, tmp_path, **ONE)
    assert rows[1]["miou"] > rows[2]["miou"] + 0.3 and rows[1]["classes"] == ["background", "pond", "field"]


def test_what_is_wrong_in_cocos_json_is_told_in_one_sentence(tmp_path: Path) -> None:
    file = coco(tmp_path) / "annotations" / "instances_train2017.json"
    whole = json.loads(file.read_text())

    def with_first(**changes: Any) -> str:
        first = {**whole["annotations"][0], **changes}
        file.write_text(json.dumps({**whole, "annotations": [first, *whole["annotations"][1:]]}))
        return told(open_annotated, tmp_path)

    assert "has no segmentation: --tasks boxes" in with_first(segmentation=[])
    assert "three corners" in with_first(segmentation=[[1, 2, 3]])
    assert "no 77" in with_first(category_id=77)
    assert "image_id 5" in with_first(image_id=5)
    assert "do not sum" in with_first(segmentation={"size": [1, 1], "counts": [1]})
    file.write_text("{")
    assert "no JSON as COCO's" in told(open_annotated, tmp_path)
    file.write_text(json.dumps({**whole, "images": [{**image, "file_name": "no.jpg"} for image in whole["images"]]}))
    assert "'no.jpg' is in none of" in told(open_annotated, tmp_path)
    file.write_text(json.dumps({**whole, "images": [{**image, "height": 10**9} for image in whole["images"]]}))
    assert "its size is given" in told(open_boxes, tmp_path)


def test_boxes_need_a_folder_that_has_some(tmp_path: Path) -> None:
    assert "no boxes in" in told(open_boxes, tmp_path) and "VOC's folders" in told(open_annotated, tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    assert "no SegmentationClass" in told(open_annotated, tmp_path)
