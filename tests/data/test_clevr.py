"""CLEVR's labels, its own layout, and the scenes that are drawn here."""

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import chi2_contingency, chisquare, spearmanr

from jepakit.core.errors import UserError
from jepakit.data.sets.clevr import CLASSES, ClevrSource, count_label, distance_label
from jepakit.data.sets.raycast import AXES, CAMERA, HEIGHT, SIZES, TILT, WIDTH, _rays, cast, project, render, shares
from jepakit.data.sets.scenes import GAP, SEEN_PIXELS, SceneSource, scene, scene_labels, write

EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)


def at(*depths: float) -> dict[str, Any]:
    return {"objects": [{"pixel_coords": [0, 0, depth]} for depth in depths]}


def thing(
    shape: str, depth: float, size: str = "large", color: str = "red", aside: float = 0.0, turn: float = 0.0
) -> dict[str, Any]:
    """An object whose middle is on the camera's axis, or beside it."""
    position = CAMERA + AXES[2] * depth + AXES[0] * aside
    return {
        "shape": shape,
        "size": size,
        "color": color,
        "material": "rubber",
        "rotation": turn,
        "3d_coords": position.tolist(),
        "pixel_coords": [0, 0, depth],
    }


def lifted(*things: dict[str, Any]) -> dict[str, Any]:
    return {"objects": list(things)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clevr") / "set"
    write(path, 15, 32, seed=3)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A set of its own for each test that breaks it."""
    for file in folder.rglob("*.*"):
        target = tmp_path / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path


# labels


def by_vtab(depth: float) -> int:
    """VTAB's own words: the greatest index whose threshold is below the distance."""
    thresholds = [0.0, *EDGES, 100.0]
    return max(i for i in range(len(thresholds)) if thresholds[i] - depth < 0)


@pytest.mark.parametrize("edge", [*EDGES, 100.0, 7.0, 8.25, 9.99, 50.0, 0.01])
def test_distance_classes_are_vtabs_on_each_edge_and_a_bit_beside_it(edge: float) -> None:
    for depth in (np.nextafter(edge, 0), edge, np.nextafter(edge, 200)):
        if depth <= 100:
            assert distance_label(at(float(depth), 60.0)) == by_vtab(min(float(depth), 60.0))
            assert distance_label(at(float(depth))) == by_vtab(float(depth))


def test_distance_classes_worked_by_hand_and_the_nearest_object_decides_wherever_it_stands() -> None:
    assert [distance_label(at(d)) for d in (8.0, 8.0001, 8.5, 9.0, 9.5, 10.0, 10.0001, 100.0)] == [0, 1, 1, 2, 3, 4, 5, 5]
    assert distance_label(at(11.0, 8.7, 12.0)) == distance_label(at(8.7, 12.0, 11.0)) == distance_label(at(12.0, 11.0, 8.7)) == 2


@pytest.mark.parametrize("depth", [100.0001, 0.0, -3.0, math.nan, math.inf])
def test_a_distance_that_is_in_no_class_is_refused(depth: float) -> None:
    with pytest.raises(UserError, match="distance"):
        distance_label(at(depth))
    with pytest.raises(UserError, match="no objects"):
        distance_label({"objects": [], "image_filename": "a.png"})


def test_a_depth_that_is_no_number_is_refused_wherever_it_stands() -> None:
    for depths in ((math.nan, 9.0), (9.0, math.nan)):
        with pytest.raises(UserError, match="distance nan"):
            distance_label(at(*depths))


def test_counts_from_3_to_10_are_classes_0_to_7_and_others_are_refused() -> None:
    assert [count_label(at(*[9.0] * n)) for n in range(3, 11)] == list(range(8))
    assert [CLASSES["count"][count_label(at(*[9.0] * n))] for n in (3, 10)] == ["3", "10"]
    for n in (0, 2, 11):
        with pytest.raises(UserError, match=rf"scene of x\.png has {n} objects"):
            count_label({**at(*[9.0] * n), "image_filename": "x.png"})


# CLEVR's layout


@pytest.mark.parametrize("labels", ["count", "distance"])
def test_a_written_folder_is_read_back_with_images_and_labels_of_the_scenes(folder: Path, labels: str) -> None:
    source = ClevrSource(folder, labels)
    assert source.labels is not None and source.labels.name == labels and source.labels.whole_image
    assert source.labels.classes == CLASSES[labels] and len(source) == 15
    numbers = [int(source.title(i)[-10:-4]) for i in range(15)]
    assert sorted(numbers) == list(range(15))
    for i, number in enumerate(numbers):
        described = scene(3, number, 32)
        assert source.labels.values[i] == (count_label if labels == "count" else distance_label)(described)
        assert source.labels.test[i] == (number % 5 == 4)
        assert source.title(i).startswith("val/" if number % 5 == 4 else "train/")
        np.testing.assert_array_equal(source.read(i), render(described, 32))


def test_written_scenes_have_the_fields_of_clevr(folder: Path) -> None:
    found = json.loads((folder / "scenes" / "CLEVR_val_scenes.json").read_text())
    assert found["info"]["split"] == "val" and [s["image_index"] for s in found["scenes"]] == [4, 9, 14]
    assert set(found["scenes"][0]) >= {"split", "image_index", "image_filename", "objects"}
    fields = {"3d_coords", "pixel_coords", "shape", "size", "color", "material", "rotation"}
    assert all(set(each) == fields for s in found["scenes"] for each in s["objects"])


def test_count_is_the_default_and_images_without_a_scene_are_left_out(copied: Path) -> None:
    (copied / "images" / "test").mkdir()
    Image.new("RGB", (8, 8)).save(copied / "images" / "test" / "CLEVR_test_000000.png")
    Image.new("RGB", (8, 8)).save(copied / "images" / "train" / "other.png")
    source = ClevrSource(copied)
    assert len(source) == 15 and source.labels is not None and source.labels.name == "count"


def test_unknown_labels_and_a_folder_that_is_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'distence'.*did you mean 'distance'"):
        ClevrSource(folder, "distence")
    with pytest.raises(UserError, match="no such folder"):
        ClevrSource(tmp_path / "none")


def test_missing_images_are_counted_and_the_first_is_named(copied: Path) -> None:
    for number in (6, 2, 11):
        (copied / "images" / "train" / f"CLEVR_train_{number:06d}.png").unlink()
    with pytest.raises(UserError, match=r"lacks 3 of 12 images .* CLEVR_train_000002\.png"):
        ClevrSource(copied)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_scenes_or_without_images_is_refused(copied: Path, split: str) -> None:
    path = copied / "scenes" / f"CLEVR_{split}_scenes.json"
    text = path.read_text()
    path.write_text(json.dumps({"info": {}, "scenes": []}))
    with pytest.raises(UserError, match=f"CLEVR_{split}_scenes.json has no scenes"):
        ClevrSource(copied)
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read .*CLEVR_{split}_scenes.json"):
        ClevrSource(copied)
    path.write_text(text)
    (copied / "images" / split).rename(copied / "images" / "elsewhere")
    with pytest.raises(UserError, match=f"no folder .*{split}"):
        ClevrSource(copied)


@pytest.mark.parametrize(
    "text",
    [
        '{"scenes": [{"objects"',
        "[]",
        '{"info": {}}',
        '{"scenes": [{"image_filename": "a.png"}]}',
        '{"scenes": [{"objects": [{}, {}, {}]}]}',
        '{"scenes": 3}',
        '{"scenes": [{"image_filename": "a.png", "objects": 3}]}',
        "\xff\xfe",
    ],
)
def test_a_broken_scenes_file_is_named_in_one_sentence(copied: Path, text: str) -> None:
    (copied / "scenes" / "CLEVR_val_scenes.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"CLEVR_val_scenes\.json is not a scenes file of CLEVR, or is broken"):
        ClevrSource(copied)


def test_a_scene_out_of_range_is_named_with_its_file(copied: Path) -> None:
    path = copied / "scenes" / "CLEVR_train_scenes.json"
    found = json.loads(path.read_text())
    found["scenes"][1]["objects"] = found["scenes"][1]["objects"][:1] * 11
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"CLEVR_train_scenes\.json: the scene of CLEVR_train_000001\.png has 11 objects"):
        ClevrSource(copied)
    ClevrSource(copied, "distance")  # which that scene has


def test_reading_scenes_takes_the_memory_of_their_text_not_of_their_objects(tmp_path: Path) -> None:
    fields = {
        "3d_coords": [0.1, 0.2, 0.3],
        "shape": "cube",
        "size": "large",
        "color": "red",
        "material": "metal",
        "rotation": 1.5,
    }
    few = list(range(10))
    for split, count in (("train", 600), ("val", 5)):
        (tmp_path / "images" / split).mkdir(parents=True)
        scenes = []
        for i in range(count):
            name = f"{split}{i}.png"
            (tmp_path / "images" / split / name).touch()
            objects = [{**fields, "pixel_coords": [i, k, 8 + k / 3]} for k in range(3 + i % 8)]
            relations = {word: [few] * len(objects) for word in ("left", "right", "front", "behind")}
            scenes.append({"image_filename": name, "objects": objects, "relationships": relations})
        (tmp_path / "scenes").mkdir(exist_ok=True)
        (tmp_path / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"info": {}, "scenes": scenes}))
    size = (tmp_path / "scenes" / "CLEVR_train_scenes.json").stat().st_size
    tracemalloc.start()
    source = ClevrSource(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.labels is not None and source.labels.values[:600].tolist() == [i % 8 for i in range(600)]
    assert peak < 2.6 * size  # bytes and text; parsed at once, this file takes more than 4 times its size on top


# the law of the scenes


def test_counts_and_nearest_classes_are_uniform_and_independent() -> None:
    counts, depths = scene_labels(5, np.arange(40_000))
    classes = np.array([by_vtab(d) for d in depths])
    assert chisquare(np.bincount(counts - 3, minlength=8)).pvalue > 1e-3
    assert chisquare(np.bincount(classes, minlength=6)).pvalue > 1e-3
    table = np.zeros((8, 6))
    np.add.at(table, (counts - 3, classes), 1)
    assert chi2_contingency(table).pvalue > 1e-3
    assert depths.min() > 7.5 and depths.max() <= 10.5


def test_scenes_keep_to_the_plan_and_their_labels_are_the_sources() -> None:
    count, distance = SceneSource(150, seed=9), SceneSource(150, seed=9, labels="distance")
    assert count.labels is not None and distance.labels is not None and count.labels.whole_image and distance.labels.whole_image
    assert count.labels.name == "count" and np.flatnonzero(count.labels.test).tolist() == list(range(4, 150, 5))
    described = [scene(9, i) for i in range(150)]
    assert [count_label(s) for s in described] == count.labels.values.tolist()
    assert [distance_label(s) for s in described] == distance.labels.values.tolist()
    assert set(count.labels.values) == set(range(8)) and set(distance.labels.values) == set(range(6))
    objects = [each for s in described for each in s["objects"]]
    assert {o["shape"] for o in objects} == {"sphere", "cube", "cylinder"} and len({o["color"] for o in objects}) == 8
    for field, value in (("size", "large"), ("material", "metal")):  # n is near 970: 5 deviations are 0.08
        assert abs(np.mean([o[field] == value for o in objects]) - 0.5) < 0.08


def test_a_scene_is_a_function_of_seed_and_index_in_any_order_of_reading() -> None:
    first = [scene(2, i) for i in (0, 1, 2)]
    source, other = SceneSource(8, 32, seed=2), SceneSource(20, 32, seed=2, labels="distance")
    forward = [source.read(i) for i in range(4)]
    backward = [other.read(i) for i in (3, 2, 1, 0)]
    np.testing.assert_array_equal(forward, backward[::-1])
    assert [scene(2, i) for i in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert scene(3, 0)["objects"] != first[0]["objects"] and first[0]["objects"] != first[1]["objects"]
    assert source.title(1) != source.title(2) and source.title(1) != SceneSource(8, 32, seed=3).title(1)


def test_objects_stand_on_the_plane_apart_from_each_other_and_where_pixel_coords_say() -> None:
    for index in range(40):
        objects = scene(0, index, 100)["objects"]
        for k, a in enumerate(objects):
            x, y, z = a["3d_coords"]
            assert z == pytest.approx(SIZES[a["size"]] / (math.sqrt(2) if a["shape"] == "cube" else 1))
            forward = (y - CAMERA[1]) * math.cos(TILT) + (HEIGHT - z) * math.sin(TILT)  # a pinhole camera by hand
            upward = (y - CAMERA[1]) * math.sin(TILT) - (HEIGHT - z) * math.cos(TILT)
            assert a["pixel_coords"] == pytest.approx(
                [50 + 50 * x / forward / WIDTH, 50 - 50 * upward / forward / WIDTH, forward]
            )
            for b in objects[:k]:
                assert math.dist(a["3d_coords"][:2], b["3d_coords"][:2]) >= SIZES[a["size"]] + SIZES[b["size"]] + GAP


def test_every_object_shows_a_quarter_of_itself_and_lies_within_the_image() -> None:
    for index in range(60):
        described = scene(1, index)
        assert shares(described).min() >= SEEN_PIXELS
        for each in described["objects"]:
            whole = picture(each, 96)
            assert not (whole[0].any() or whole[-1].any() or whole[:, 0].any() or whole[:, -1].any())


def test_lower_in_the_image_is_nearer_so_that_the_label_can_be_seen() -> None:
    described = [scene(4, i) for i in range(200)]
    lowest = [max(each["pixel_coords"][1] for each in s["objects"]) for s in described]
    nearest = [min(each["pixel_coords"][2] for each in s["objects"]) for s in described]
    assert spearmanr(lowest, nearest).statistic < -0.95


# drawing


def picture(each: dict[str, Any], side: int) -> NDArray[np.bool_]:
    """Where one object alone is seen."""
    hit = cast(each, side)
    seen = np.zeros((side, side), bool)
    seen[hit.box] = np.isfinite(hit.depth)
    return seen


@pytest.mark.parametrize("depth", [6.0, 8.0])
def test_a_ball_on_the_axis_is_a_disc_of_the_tangents_radius(depth: float) -> None:
    radius = math.tan(math.asin(0.7 / depth)) / WIDTH * 100  # in pixels of 200
    seen = picture(thing("sphere", depth), 200)
    assert seen.sum() == pytest.approx(math.pi * radius**2, rel=0.02)
    rows, columns = np.nonzero(seen)
    assert (rows.mean(), columns.mean()) == pytest.approx((99.5, 99.5), abs=0.1)


def inside(each: dict[str, Any], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n, 3) -> (n,), by the solids' definitions, turned by complex numbers."""
    r = SIZES[each["size"]]
    away = points - np.array(each["3d_coords"])
    if each["shape"] == "sphere":
        return np.asarray(np.linalg.norm(away, axis=1) <= r)
    if each["shape"] == "cylinder":
        return np.asarray((np.hypot(away[:, 0], away[:, 1]) <= r) & (abs(away[:, 2]) <= r))
    flat = (away[:, 0] + 1j * away[:, 1]) * np.exp(-1j * math.radians(each["rotation"]))
    return np.asarray(np.maximum(np.maximum(abs(flat.real), abs(flat.imag)), abs(away[:, 2])) <= r / math.sqrt(2))


@pytest.mark.parametrize(("shape", "turn"), [("sphere", 0.0), ("cube", 0.0), ("cube", 25.0), ("cube", 200.0), ("cylinder", 70.0)])
def test_rays_meet_the_solids_where_small_steps_along_them_first_get_inside(shape: str, turn: float) -> None:
    each, side, step = thing(shape, 6.5, aside=0.9, turn=turn), 28, 0.005
    hit = cast(each, side)
    found = np.full((side, side), np.inf)
    found[hit.box] = hit.depth
    normals = np.zeros((3, side, side))
    normals[:, *hit.box] = hit.normal
    steps = np.arange(5.0, 8.0, step)
    agreed = 0
    for row, column in np.ndindex(side, side):
        ray = _rays(side)[:, row, column].astype(float)
        within = inside(each, CAMERA + steps[:, None] * ray)
        if within.sum() >= 3:  # a ray that grazes an edge may fall between two steps
            assert -1e-3 <= steps[within.argmax()] - found[row, column] <= step + 1e-3
            met, normal = CAMERA + found[row, column] * ray, normals[:, row, column]
            assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-3) and normal @ ray < 0
            assert inside(each, met[None] - 0.01 * normal)[0] and not inside(each, met[None] + 0.01 * normal)[0]
            agreed += 1
        elif not within.any():
            assert found[row, column] == np.inf or not inside(each, (CAMERA + (found[row, column] + 0.01) * ray)[None])[0]
    assert agreed > 40


def test_a_nearer_object_hides_a_farther_one_in_either_order() -> None:
    front, back = thing("cube", 5.0, "small", "red"), thing("sphere", 6.0, "large", "blue")
    for described in (lifted(front, back), lifted(back, front)):
        image = render(described, 64).astype(int)
        middle, ring = image[30:34, 30:34].mean((0, 1)), image[32, 23]  # 8.5 pixels off: the cube ends at 5, the ball at 9.9
        assert middle[0] > 2 * middle[2] and ring[2] > 2 * ring[0]
    front, back = thing("cube", 7.0, "small", "red"), thing("sphere", 5.0, "large", "blue")
    middle = render(lifted(front, back), 64)[30:34, 30:34].astype(int).mean((0, 1))
    assert middle[2] > 2 * middle[0]


def test_the_seen_share_of_a_ball_behind_a_smaller_one_is_the_rings() -> None:
    near, far = math.tan(math.asin(0.35 / 5)), math.tan(math.asin(0.7 / 7))
    described = lifted(thing("sphere", 5.0, "small"), thing("sphere", 7.0))
    assert shares(described, 400) == pytest.approx([1, 1 - (near / far) ** 2], abs=0.01)


def test_an_object_twice_as_far_is_half_as_large_and_farther_ones_stand_higher() -> None:
    near, far = (picture(thing("cylinder", d), 400).any(0).sum() for d in (6.0, 12.0))
    assert near / far == pytest.approx(2, rel=0.06)
    heights = [project([0, y, 0.35], 64)[1] for y in (-2, 0, 2, 4)]
    assert heights == sorted(heights, reverse=True)


def test_images_are_uint8_of_any_size_with_edges_blended_and_the_color_that_is_said() -> None:
    for size in (16, 64, 65):
        image = render(scene(0, 1, size), size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
    for color, channel in (("red", 0), ("green", 1), ("blue", 2)):
        assert render(lifted(thing("sphere", 5.0, color=color)), 32)[16, 16].argmax() == channel
    coarse = render(scene(0, 1), 64).reshape(32, 2, 32, 2, 3).mean((1, 3))  # the same scene in half the size
    assert abs(coarse - render(scene(0, 1), 32)).mean() < 2


def test_a_shadow_falls_on_the_side_away_from_the_light() -> None:
    ball = scene(0, 0)["objects"][0] | {"shape": "sphere", "size": "large", "3d_coords": [0.0, 0.0, 0.7]}
    left, right = (render({"light": [x, 0.0, 0.8], "objects": [ball]}, 64).astype(int) for x in (-1.0, 1.0))
    x, y, _ = project([1.2, 0.0, 0.0], 64)
    assert left[int(y), int(x)].mean() < 0.75 * right[int(y), int(x)].mean()


# the folder


def test_a_folder_in_use_is_left_as_it_is_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="in use"):
        write(tmp_path / "mine", 5, 16, 0)
    with pytest.raises(UserError, match="in use"):
        write(tmp_path / "mine" / "notes.txt", 5, 16, 0)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    (tmp_path / "new").mkdir()
    write(tmp_path / "new", 5, 16, 0)
    assert len(ClevrSource(tmp_path / "new")) == 5 and not list(tmp_path.glob(".tmp*"))


def test_a_write_that_was_killed_leaves_no_set_and_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="no space"):
            write(tmp_path / "set", 5, 16, 0)
    assert not (tmp_path / "set").exists()
    write(tmp_path / "set", 6, 16, 0)
    assert len(ClevrSource(tmp_path / "set")) == 6


def test_too_few_scenes_or_pixels_and_unknown_labels_are_refused(tmp_path: Path) -> None:
    for n, size in ((4, 64), (10, 15)):
        with pytest.raises(UserError, match="cannot draw"):
            write(tmp_path / "x", n, size, 0)
        with pytest.raises(UserError, match="cannot draw"):
            SceneSource(n, size)
    with pytest.raises(UserError, match="did you mean 'count'"):
        SceneSource(labels="counts")


def test_labels_that_scenes_have_not_are_said_of_scenes() -> None:
    with pytest.raises(UserError, match=r"^scenes has no labels 'colour': choose from count, distance"):
        SceneSource(labels="colour")
