"""Labelled sets in the layouts they are handed out in, and images of any number and depth of bands."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from bomb import Bomb
from jepakit.artifacts.hf import load_hf, save_model
from jepakit.artifacts.load import build_jepa
from jepakit.config.config import resolve
from jepakit.core.errors import UserError
from jepakit.data.crops import BandsError, centre_crop, channels_of, resize, stacked, to_show
from jepakit.data.decoding.decode import decode, read_image
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import parquet as parquet_files
from jepakit.data.formats.folder import FolderSource
from jepakit.data.loader import Loader, TooManyBadImagesError
from jepakit.data.opening import open_source
from jepakit.data.sets.known_sets import labelled_set
from jepakit.data.sets.listed import EUROSAT
from jepakit.data.sources import Labels, Source, fingerprint
from jepakit.model.images import ImageSettings, normalise
from jepakit.model.masking.masks import MultiBlock

LAW = MultiBlock(min_keep=2)


def draw(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def image(path: Path, seed: int = 0, side: int = 8) -> None:
    """A lossless image under any name: what a file is, is not read off its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(side, side, 3, seed=seed)).save(path, "PNG")


def labels_of(source: Source) -> Labels:
    assert source.labels is not None
    assert len(source) == len(source.labels.values) == len(source.labels.test)
    return source.labels


def by_title(source: Source) -> dict[str, tuple[int, bool]]:
    labels = labels_of(source)
    return {source.title(i): (int(labels.values[i]), bool(labels.test[i])) for i in range(len(source))}


# ---- CIFAR


def old_pickle(data: NDArray[np.uint8], key: bytes, values: list[int]) -> bytes:
    """The form that Python 2 wrote CIFAR's batches in: text as byte strings (opcodes U and T), no framing."""

    def text(word: bytes) -> bytes:
        return b"U" + bytes([len(word)]) + word

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"K" + bytes([len(data)]) + b"M\0\x0c\x86"  # (n, 3072)
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<I", data.size) + data.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([v]) for v in values) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(key) + numbers + b"u."


def cifar10(root: Path, each: int = 2) -> list[tuple[NDArray[np.uint8], list[int]]]:
    root.mkdir(parents=True)
    batches = []
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data, values = draw(each, 3072, seed=i), [(i + j) % 10 for j in range(each)]
        content = pickle.dumps({b"data": data, b"labels": values}, 2) if i % 2 else old_pickle(data, b"labels", values)
        (root / name).write_bytes(content)
        batches.append((data, values))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"c{i}".encode() for i in range(10)]}, 2))
    return batches


def test_cifar_10_is_read_channel_by_channel_and_its_test_batch_is_held_out(tmp_path: Path) -> None:
    batches = cifar10(tmp_path / "data" / "cifar-10-batches-py")
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"the archive may lie beside")
    source = open_source(str(tmp_path / "data"))
    labels = labels_of(source)
    assert len(source) == 12 and labels.name == "class" and labels.classes == tuple(f"c{i}" for i in range(10))
    assert labels.test.tolist() == [False] * 10 + [True] * 2
    assert labels.values.tolist() == [v for _, values in batches for v in values]
    row = batches[2][0][1]  # the second image of the third batch: red, green, blue planes, each row by row
    pixels = source.read(5)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert [pixels[1, 3, c] for c in range(3)] == [row[1024 * c + 32 + 3] for c in range(3)]


def test_cifar_100_has_fine_labels_unless_coarse_ones_are_asked_for(tmp_path: Path) -> None:
    for name, n in (("train", 3), ("test", 2)):
        fine, coarse = [7 * i for i in range(n)], [i + 1 for i in range(n)]
        (tmp_path / name).write_bytes(
            pickle.dumps(
                {b"data": draw(n, 3072), b"fine_labels": fine, b"coarse_labels": coarse, b"filenames": [b"x.png"] * n}, 2
            )
        )
    names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    (tmp_path / "meta").write_bytes(pickle.dumps(names, 2))
    for asked, name, values, n in ((None, "fine", [0, 7, 14, 0, 7], 100), ("coarse", "coarse", [1, 2, 3, 1, 2], 20)):
        labels = labels_of(open_source(str(tmp_path), asked))
        assert (labels.name, labels.values.tolist(), len(labels.classes)) == (name, values, n)
        assert labels.test.tolist() == [False, False, False, True, True]
    with pytest.raises(UserError, match=r"'fine' and 'coarse', not 'course'; did you mean 'coarse'\?"):
        open_source(str(tmp_path), "course")


@pytest.mark.parametrize("place", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_would_do_something_is_refused_and_does_nothing(tmp_path: Path, place: str) -> None:
    root, trace = tmp_path / "cifar", tmp_path / "ran"
    cifar10(root)
    bombs: list[bytes] = [
        pickle.dumps({b"data": Bomb(trace)}),
        b'cbuiltins\neval\n(S\'__import__("os").mkdir(' + repr(str(trace)).encode() + b")'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\ndecode\n(S'x'\nS'hex'\ntR.",
    ]
    for bomb in bombs:
        (root / place).write_bytes(bomb)
        with pytest.raises(UserError, match="nothing in it was run") as caught:
            open_source(str(root))
        assert place in str(caught.value) and "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(bombs[0])
    assert trace.exists()  # the bomb is a real one


def test_broken_or_missing_cifar_files_are_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "cifar"
    cifar10(root)
    whole = (root / "data_batch_2").read_bytes()
    for content in (
        whole[:500],
        b"",
        b"hello",
        pickle.dumps([1]),
        pickle.dumps({b"labels": [1]}),
        b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.",
    ):
        (root / "data_batch_2").write_bytes(content)
        with pytest.raises(UserError, match="data_batch_2"):
            open_source(str(root))
    (root / "data_batch_2").write_bytes(pickle.dumps({b"data": draw(1, 3072), b"labels": [10]}, 2))
    with pytest.raises(UserError, match="labels from 0 to 10 for 10 classes"):
        open_source(str(root))
    (root / "data_batch_2").unlink()
    with pytest.raises(UserError, match="lacks data_batch_2"):
        open_source(str(root))


# ---- idx


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("spelling", ["{}-{}-ubyte", "{}-{}-ubyte.gz", "{}.{}-ubyte", "{}-{}.ubyte"])
def test_idx_files_are_gray_images_and_repeated_where_three_channels_are_wanted(tmp_path: Path, spelling: str) -> None:
    arrays = {"train": (draw(5, 28, 28), [3, 0, 4, 1, 2]), "t10k": (draw(3, 28, 28, seed=1), [4, 4, 0])}
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, (x, y) in arrays.items():
        for kind, content in (("images", idx(x)), ("labels", idx(np.array(y, np.uint8)))):
            name = spelling.format(f"{part}-{kind}", "idx3" if kind == "images" else "idx1")
            (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = open_source(str(tmp_path))
    labels = labels_of(source)
    assert labels.values.tolist() == [3, 0, 4, 1, 2, 4, 4, 0] and labels.classes == ("0", "1", "2", "3", "4")
    assert labels.test.tolist() == [False] * 5 + [True] * 3
    np.testing.assert_array_equal(source.read(6), arrays["t10k"][0][1][..., None])
    for channels in (1, 3):
        images = ImageSettings(size=28, channels=channels, crop_scale=(1, 1), crop_aspect=(1, 1))
        made = Loader(source, images, LAW, (7, 7), 8, 0)
        batch = made.batch(0)
        assert batch.images.shape == (8, channels, 28, 28) and batch.images.dtype == torch.uint8
        whole = np.concatenate([x for x, _ in arrays.values()])[made.ids(0)]
        np.testing.assert_array_equal(batch.images.numpy(), np.repeat(whole[:, None], channels, 1))


def test_broken_idx_files_are_one_sentence(tmp_path: Path) -> None:
    good = {
        "train-images-idx3-ubyte": idx(draw(4, 6, 6)),
        "train-labels-idx1-ubyte": idx(np.zeros(4, np.uint8)),
        "t10k-images-idx3-ubyte": idx(draw(2, 6, 6)),
        "t10k-labels-idx1-ubyte": idx(np.zeros(2, np.uint8)),
    }
    mistakes: list[tuple[str, bytes | None, str]] = [
        ("train-images-idx3-ubyte", good["train-images-idx3-ubyte"][:-1], "cut: it should hold 4 x 6 x 6"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\3" + good["train-images-idx3-ubyte"][4:], "no idx file"),
        ("train-images-idx3-ubyte", b"\0\0\x08\3" + b"\xff" * 12, "claims"),
        ("train-labels-idx1-ubyte", idx(np.zeros(3, np.uint8)), "a label each"),
        ("t10k-images-idx3-ubyte", idx(draw(2, 5, 6)), "t10k"),
        ("t10k-labels-idx1-ubyte", None, "lacks t10k-labels-idx1-ubyte"),
    ]
    for name, content, words in mistakes:
        for other, whole in good.items():
            (tmp_path / other).write_bytes(whole)
        (tmp_path / name).write_bytes(content) if content is not None else (tmp_path / name).unlink()
        with pytest.raises(UserError, match=words):
            open_source(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(good["train-images-idx3-ubyte"])[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        open_source(str(tmp_path))


# ---- sets of files


def test_eurosat_takes_a_class_names_as_strings_first_1000_train_next_500_test(tmp_path: Path) -> None:
    root = tmp_path / "2750"
    for name in EUROSAT:
        image(root / name / f"{name}_1.jpg", seed=len(name))
    for i in range(2, 1601):
        (root / "River" / f"River_{i}.jpg").touch()
    source = open_source(str(tmp_path))
    found = by_title(source)
    assert len(source) == 1609 and labels_of(source).classes == EUROSAT
    river = {title: part for title, part in found.items() if title.startswith("River/")}
    assert sum(part == (8, False) for part in river.values()) == 1000
    assert sum(part == (8, True) for part in river.values()) == 500
    assert sum(part == (-1, False) for part in river.values()) == 100
    order = sorted(f"River_{i}.jpg" for i in range(1, 1601))  # River_1, River_10, River_100, River_1000, ...
    assert order[:4] == ["River_1.jpg", "River_10.jpg", "River_100.jpg", "River_1000.jpg"]
    assert [found[f"River/{order[i]}"] for i in (999, 1000, 1499, 1500)] == [(8, False), (8, True), (8, True), (-1, False)]
    assert found["River/River_2.jpg"] == (8, False)  # by number it would be the second; by name it is the 712th
    np.testing.assert_array_equal(source.read(0), draw(8, 8, 3, seed=len("AnnualCrop")))


def eurosat_bands(root: Path, side: int = 16) -> Source:
    """Two images a class; band b of class c is 100 * (c + 1) * b everywhere, as Sentinel-2's reflectances times 10 000."""
    for c, name in enumerate(EUROSAT):
        (root / name).mkdir(parents=True)
        for i in (1, 2):
            bands = np.broadcast_to(100 * (c + 1) * np.arange(13), (side, side, 13)).astype(np.uint16)
            tifffile.imwrite(root / name / f"{name}_{i}.tif", bands, photometric="minisblack", planarconfig="contig")
    return open_source(str(root))


def test_thirteen_bands_reach_the_model_as_hand_computed_floats(tmp_path: Path) -> None:
    source = eurosat_bands(tmp_path)
    assert source.read(7).shape == (16, 16, 13) and source.read(7).dtype == np.uint16
    layers = {"channels": 13, "size": 8, "white": 10_000.0}
    shape = {"width": 16, "depth": 1, "heads": 2, "patch_size": 2}
    config = resolve({"images": layers, "encoder": shape, "predictor": {"width": 8, "depth": 1}, "masking": {"min_keep": 2}})
    assert config.images.mean == (0.5,) * 13 and config.images.std == (0.25,) * 13
    made = Loader(source, config.images, config.masking, config.grid, 6, 0)
    batch = made.batch(0)
    x = normalise(batch.images, config.images)
    assert x.shape == (6, 13, 8, 8) and x.dtype == torch.float32
    classes = labels_of(source).values[made.ids(0)]
    expected = (100 * (classes[:, None] + 1) * np.arange(13) / 10_000 - 0.5) / 0.25
    np.testing.assert_allclose(x.numpy(), np.broadcast_to(expected[..., None, None], x.shape), atol=1e-5)
    out = build_jepa(config)(x, batch.masks[0])
    assert bool(torch.isfinite(out.loss)) and float(out.loss.detach()) > 0


def test_food_101_is_split_by_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "food-101"
    for i, name in enumerate(["waffles/7", "apple_pie/12", "apple_pie/3", "waffles/1"]):
        image(root / "images" / f"{name}.jpg", seed=i)
    (root / "meta").mkdir()
    (root / "meta" / "train.txt").write_text("waffles/7\napple_pie/12\n")
    (root / "meta" / "test.txt").write_text("apple_pie/3\nwaffles/1\n")
    source = open_source(str(tmp_path))
    assert labels_of(source).classes == ("apple_pie", "waffles")
    assert by_title(source) == {
        "images/waffles/7.jpg": (1, False),
        "images/apple_pie/12.jpg": (0, False),
        "images/apple_pie/3.jpg": (0, True),
        "images/waffles/1.jpg": (1, True),
    }
    np.testing.assert_array_equal(source.read(2), draw(8, 8, 3, seed=2))
    (root / "images" / "waffles" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks images/waffles/1\.jpg"):
        open_source(str(root))
    (root / "meta" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*test\.txt"):
        open_source(str(root))


def sun(root: Path) -> None:
    for name, count in (("a/abbey", 10), ("a/apartment_building/outdoor", 25), ("c/cave", 4)):
        for i in range(count):
            image(root / name / f"sun_{i:03}.jpg", seed=i, side=4)
    (root / "README.txt").write_text("SUN397")


def test_sun397_holds_a_fifth_of_each_class_out_and_leaves_a_tenth_unused(tmp_path: Path) -> None:
    sun(tmp_path / "SUN397")
    source = open_source(str(tmp_path / "SUN397"))
    labels = labels_of(source)
    assert labels.classes == ("abbey", "apartment_building/outdoor", "cave")
    parts = {}
    for name in ("a/abbey", "a/apartment_building/outdoor", "c/cave"):
        mine = [part for title, part in by_title(source).items() if title.startswith(name)]
        parts[name] = tuple(sum(test is held and value != -1 for value, test in mine) for held in (False, True))
        assert sum(value == -1 and not test for value, test in mine) == len(mine) - sum(parts[name])
    assert parts == {
        "a/abbey": (7, 2),  # of 10: 7, 1 unused, 2
        "a/apartment_building/outdoor": (18, 5),  # of 25: round(17.5) = 18 to even, round(2.5) = 2, the rest
        "c/cave": (3, 1),  # of 4: round(2.8), round(.4), the rest
    }
    again = open_source(str(tmp_path))  # one folder up: the same draw
    np.testing.assert_array_equal(labels_of(again).test, labels.test)
    held = np.nonzero(labels.test[labels.values == 1])[0]
    assert held.tolist() != list(range(len(held))) and held[-1] - held[0] > len(held)  # drawn, not cut off an end


@pytest.mark.parametrize("place", ["SUN397", "SUN397/Partitions", ".", "Partitions"])
def test_sun397_honours_the_official_lists_beside_it(tmp_path: Path, place: str) -> None:
    sun(tmp_path / "SUN397")
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / "Training_01.txt").write_text("/a/abbey/sun_000.jpg\n/c/cave/sun_001.jpg\n")
    (folder / "Testing_01.txt").write_text("/a/apartment_building/outdoor/sun_003.jpg\n")
    found = {title: part for title, part in by_title(open_source(str(tmp_path / "SUN397"))).items() if part != (-1, False)}
    assert found == {
        "a/abbey/sun_000.jpg": (0, False),
        "c/cave/sun_001.jpg": (2, False),
        "a/apartment_building/outdoor/sun_003.jpg": (1, True),
    }


@pytest.mark.parametrize("folder", ["data/vision/torralba/deeplearning/images256", "images256"])
def test_places205_is_split_by_its_lists(tmp_path: Path, folder: str) -> None:
    names = ["b/bar/gsun_1.jpg", "a/abbey/gsun_2.jpg", "a/apartment_building/outdoor/gsun_3.jpg", "a/abbey/gsun_4.jpg"]
    for i, name in enumerate(names):
        image(tmp_path / folder / name, seed=i)
    lists = tmp_path / "trainvalsplit_places205"
    lists.mkdir()
    (lists / "train_places205.csv").write_text(f"{names[0]} 2\n{names[1]} 0\n{names[2]} 1\n")
    (lists / "val_places205.csv").write_text(f"{names[3]} 0\n")
    source = open_source(str(tmp_path))
    assert labels_of(source).classes == ("abbey", "apartment_building/outdoor", "bar")
    assert list(by_title(source).values()) == [(2, False), (0, False), (1, False), (0, True)]
    np.testing.assert_array_equal(source.read(3), draw(8, 8, 3, seed=3))
    (lists / "val_places205.csv").write_text("a/abbey/gsun_4.jpg\n")
    with pytest.raises(UserError, match=r"val_places205\.csv, line 1: expected 'path label'"):
        open_source(str(tmp_path))
    (lists / "val_places205.csv").write_text(f"{names[3]} 7\n")
    with pytest.raises(UserError, match="numbers from 0 to 3"):
        open_source(str(tmp_path))


def coco(files: list[tuple[int, str, int]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name} for i, name, _ in files],
        "annotations": [{"id": 9, "image_id": i, "category_id": c} for i, _, c in reversed(files)],  # order does not tell
        "categories": [{"id": 30, "name": "Quercus"}, {"id": 4, "name": "Fagus"}],
    }


def test_inaturalist_joins_images_and_annotations_by_their_ids(tmp_path: Path) -> None:
    train = [(11, "train_val2018/Plantae/4/a.jpg", 4), (12, "train_val2018/Plantae/30/b.jpg", 30)]
    val = [(5, "train_val2018/Plantae/30/c.jpg", 30)]
    for i, (_, name, _) in enumerate(train + val):
        image(tmp_path / name, seed=i)
    for name, files in (("train2018.json", train), ("val2018.json", val)):
        (tmp_path / name).write_text(json.dumps(coco(files)))
    source = open_source(str(tmp_path))
    assert labels_of(source).classes == ("Fagus", "Quercus")  # in the order of their ids
    assert list(by_title(source).values()) == [(0, False), (1, False), (1, True)]
    np.testing.assert_array_equal(source.read(2), draw(8, 8, 3, seed=2))
    for content in ("{}", "[1]", "{", json.dumps(coco([*val, (6, "x.jpg", 99)])), json.dumps({**coco(val), "annotations": []})):
        (tmp_path / "val2018.json").write_text(content)
        with pytest.raises(UserError) as caught:
            open_source(str(tmp_path))
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("way", ["absolute", "up", "up and back"])
@pytest.mark.parametrize("layout", ["food", "places", "inaturalist"])
def test_lists_that_lead_out_of_their_folder_are_refused(tmp_path: Path, layout: str, way: str) -> None:
    root = tmp_path / "set"
    image(tmp_path / "secret.jpg")
    image(root / "images" / "a" / "1.jpg")
    image(root / "images256" / "a" / "1.jpg")
    climb = "../../secret" if layout != "inaturalist" else "../secret"
    entry = {"absolute": str(tmp_path / "secret"), "up": climb, "up and back": "a/../a/1"}[way]
    lists = root / {"food": "meta", "places": "trainvalsplit_places205"}.get(layout, "")
    lists.mkdir(exist_ok=True)
    if layout == "food":
        (lists / "train.txt").write_text("a/1\n")
        (lists / "test.txt").write_text(f"{entry}\n")
    elif layout == "places":
        (lists / "train_places205.csv").write_text("a/1.jpg 0\n")
        (lists / "val_places205.csv").write_text(f"{entry}.jpg 0\n")
    else:
        for name, file in (("train2018.json", "images/a/1.jpg"), ("val2018.json", f"{entry}.jpg")):
            (root / name).write_text(json.dumps(coco([(1, file, 4)])))
    with pytest.raises(UserError) as caught:
        open_source(str(root))
    assert f"{entry}.jpg" in str(caught.value) and "outside" in str(caught.value)


def test_dots_in_a_name_are_no_way_out(tmp_path: Path) -> None:
    names = [(1, "a..b/1..2.jpg", 4), (2, "..c/...jpg", 30)]
    for _, name, _ in names:
        image(tmp_path / name)
    for name in ("train2018.json", "val2018.json"):
        (tmp_path / name).write_text(json.dumps(coco(names)))
    assert len(open_source(str(tmp_path))) == 4


def test_what_is_no_plain_file_is_a_bad_image_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", Path("/dev/null")):
        with pytest.raises(BadImageError, match="not a file"):
            read_image(path)
    with pytest.raises(BadImageError):
        read_image(tmp_path / "a\0b.jpg")


WNIDS = ("n01440764", "n02102040")


def test_imagenet_in_class_folders(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for w, name in enumerate(WNIDS):
            for i in range(count):
                image(tmp_path / part / name / f"{name}_{i}.JPEG", seed=10 * w + i)
    source = open_source(str(tmp_path))
    labels = labels_of(source)
    assert labels.name == "class" and labels.classes == WNIDS
    assert labels.values.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1] and labels.test.tolist() == [False] * 6 + [True] * 4
    np.testing.assert_array_equal(source.read(9), draw(8, 8, 3, seed=11))


def test_imagenet_as_kaggle_packs_it_needs_its_list_of_val_classes(tmp_path: Path) -> None:
    base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for i, name in enumerate(WNIDS):
        image(base / "train" / name / f"{name}_1.JPEG", seed=i)
        image(base / "val" / f"ILSVRC2012_val_0000000{i + 1}.JPEG", seed=5 + i)
    with pytest.raises(UserError, match=r"val is flat.*class folders.*LOC_val_solution\.csv"):
        open_source(str(tmp_path))
    solution = tmp_path / "LOC_val_solution.csv"
    lines = ["ImageId,PredictionString", "ILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8"]
    solution.write_text("\n".join([*lines, "ILSVRC2012_val_00000001,n02102040 1 2 3 4", ""]))
    for root in (tmp_path, tmp_path / "ILSVRC", base):
        found = by_title(open_source(str(root)))
        assert found["val/ILSVRC2012_val_00000001.JPEG"] == (1, True) and found["val/ILSVRC2012_val_00000002.JPEG"] == (0, True)
        assert found["train/n02102040/n02102040_1.JPEG"] == (1, False) and len(found) == 4
    solution.write_text("ImageId,PredictionString\n")
    with pytest.raises(UserError, match="has no class of train"):
        open_source(str(tmp_path))


# ---- Parquet


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(6, 6, 3, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def table(seeds: list[int], names: list[str] | None = None, struct_: bool = True, **columns: list[Any]) -> pa.Table:
    data = [{"bytes": png(s), "path": f"{s}.png"} for s in seeds] if struct_ else [png(s) for s in seeds]
    made = pa.table({"image": data, **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}) if names else made


def test_parquet_in_hugging_faces_layout_is_read_at_random_and_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("a data set")
    pq.write_table(
        table([0, 1, 2, 3, 4], ["cat", "dog", "eel"], label=[0, 1, 1, 0, 2]),
        tmp_path / "data/train-00000-of-00002.parquet",
        row_group_size=2,
    )
    pq.write_table(table([5, 6], ["cat", "dog", "eel"], label=[2, None]), tmp_path / "data/train-00001-of-00002.parquet")
    pq.write_table(table([7, 8, 9], ["cat", "dog", "eel"], label=[0, -1, 1]), tmp_path / "data/validation-00000-of-00001.parquet")
    source = open_source(str(tmp_path))
    labels = labels_of(source)
    assert labels.name == "label" and labels.classes == ("cat", "dog", "eel")
    assert labels.values.tolist() == [0, 1, 1, 0, 2, 2, -1, 0, -1, 1]
    assert labels.test.tolist() == [False] * 7 + [True] * 3
    order = np.random.default_rng(0).integers(0, 10, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in zip(order, pool.map(source.read, order), strict=True):
            np.testing.assert_array_equal(pixels, draw(6, 6, 3, seed=index))
    assert source.title(4) == "train-00000-of-00002.parquet:4" and source.title(6) == "train-00001-of-00002.parquet:1"
    assert len({source.title(i) for i in range(10)}) == 10 and fingerprint(source) == fingerprint(open_source(str(tmp_path)))


def test_parquet_labels_are_numbers_or_text_and_any_column_of_them_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    columns: dict[str, list[Any]] = {"label": ["b", "a", None, "b", "a", "b", "a"], "year": [1999, 7, 7, 2001, 1999, 7, 7]}
    pq.write_table(table(list(range(7)), struct_=False, weight=[0.5] * 7, **columns), path)
    labels = labels_of(open_source(str(path)))
    assert labels.classes == ("a", "b") and labels.values.tolist() == [1, 0, -1, 1, 0, 1, 0]
    assert not labels.test.any()  # no class has five
    year = labels_of(open_source(str(path), "year"))
    assert year.classes == ("7", "1999", "2001") and year.values.tolist() == [1, 0, 0, 2, 1, 0, 0]
    with pytest.raises(UserError, match="column 'weight' is not taken for labels, as it holds numbers with fractions"):
        open_source(str(path), "weight")
    np.testing.assert_array_equal(open_source(str(path)).read(3), draw(6, 6, 3, seed=3))
    pq.write_table(table([1, 2]), path)
    assert open_source(str(path)).labels is None
    with pytest.raises(UserError, match="has no labels, not 'label'"):
        open_source(str(path), "label")


def test_with_test_and_validation_only_one_is_held_out_the_one_that_has_labels(tmp_path: Path) -> None:
    for name, values in (("train", [0, 1]), ("test", [1, 0]), ("validation", [0, 0])):
        pq.write_table(table([0, 1], label=values), tmp_path / f"{name}-00000-of-00001.parquet")
    labels = labels_of(open_source(str(tmp_path)))  # files in the order of their names: test, train, validation
    assert labels.test.tolist() == [True] * 2 + [False] * 4 and labels.values.tolist() == [1, 0, 0, 1, -1, -1]
    pq.write_table(table([0, 1], label=[-1, -1]), tmp_path / "test-00000-of-00001.parquet")  # as ImageNet's is handed out
    labels = labels_of(open_source(str(tmp_path)))
    assert labels.test.tolist() == [False] * 4 + [True] * 2 and labels.values.tolist() == [-1, -1, 0, 1, 0, 0]


def test_where_all_labels_of_the_test_files_are_hidden_a_fifth_of_train_is_held_out(tmp_path: Path) -> None:
    train = [0, 1, 0, 0, 0, 1, 0, -1, 1, 1, 1]
    pq.write_table(table(list(range(11)), ["a", "b"], label=train), tmp_path / "train-00000-of-00001.parquet")
    pq.write_table(table([11, 12], ["a", "b"], label=[-1, None]), tmp_path / "test-00000-of-00001.parquet")
    labels = labels_of(open_source(str(tmp_path)))  # test comes first
    assert labels.values.tolist() == [-1, -1, *train]
    assert (labels.test.nonzero()[0] - 2).tolist() == [6, 10]  # the fifth of each class


def test_a_path_in_parquet_stays_below_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    image(tmp_path / "secret.png", seed=1)
    image(root / "below" / "1.png", seed=2)
    paths = ["below/1.png", "../secret.png", str(tmp_path / "secret.png"), "below/../../secret.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": column}), root / "x.parquet")
    source = open_source(str(root / "x.parquet"))
    np.testing.assert_array_equal(source.read(0), draw(8, 8, 3, seed=2))
    for index in (1, 2, 3):
        with pytest.raises(BadImageError, match="outside") as caught:
            source.read(index)
        assert paths[index] in str(caught.value)


@pytest.mark.parametrize("room", [0, 1000, 1 << 20])
def test_parquet_keeps_no_more_bytes_than_it_may_and_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(parquet_files, "KEPT", room)
    pq.write_table(table(list(range(20))), tmp_path / "x.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "x.parquet"))
    assert isinstance(source, parquet_files.ParquetSource)
    order = np.random.default_rng(0).integers(0, 20, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in zip(order, pool.map(source.read, order), strict=True):
            np.testing.assert_array_equal(pixels, draw(6, 6, 3, seed=index))
    kept = [group.nbytes for group in source._groups._copies.values()]
    assert sum(kept) <= room or len(kept) == 1  # the one in use is always there
    assert len(kept) == {0: 1, 1 << 20: 10}.get(room, len(kept)) and len(kept) >= 1


def test_parquet_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: path.write_bytes(b"PAR1 this is none"), "cannot be read"),
        (lambda: pq.write_table(pa.table({"text": ["a"]}), path), "no column of images"),
        (lambda: pq.write_table(table([1])[:0], path), "no rows"),
        (lambda: pq.write_table(table([1], ["only"], label=[3]), path), "label 3 of 1 named classes"),
        (
            lambda: (pq.write_table(table([1]), path), pq.write_table(table([1], label=[0]), tmp_path / "y.parquet")),
            "other columns",
        ),
    ]
    for make, words in mistakes:
        make()
        with pytest.raises(UserError, match=words) as caught:
            open_source(str(tmp_path))
        assert "\n" not in str(caught.value)
    (tmp_path / "y.parquet").unlink()
    pq.write_table(
        pa.table(
            {"image": [{"bytes": None, "path": "gone.png"}, {"bytes": b"no image", "path": None}, {"bytes": png(4), "path": ""}]}
        ),
        path,
    )
    source = open_source(str(path))
    for index in (0, 1):
        with pytest.raises(BadImageError):
            source.read(index)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'jepakit\[parquet\]'"):
        open_source(str(path))


# ---- what is recognised


def test_clevr_is_recognised_and_the_drawn_scenes_have_a_name(tmp_path: Path) -> None:
    root = tmp_path / "CLEVR_v1.0"
    for part, count in (("train", 3), ("val", 4)):
        name = f"CLEVR_{part}_000000.png"
        image(root / "images" / part / name)
        things = [{"pixel_coords": [1, 1, 9.2]}] * count
        (root / "scenes").mkdir(exist_ok=True)
        scenes = {"scenes": [{"image_filename": name, "objects": things}]}
        (root / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps(scenes))
    labels = labels_of(open_source(str(tmp_path), "count"))
    assert labels.name == "count" and labels.values.tolist() == [0, 1] and labels.test.tolist() == [False, True]
    assert labels_of(open_source(str(root), "distance")).name == "distance"
    assert labels_of(open_source("scenes", "distance")).name == "distance"


def test_a_plain_folder_stays_one_whatever_its_sub_folders_are_called(tmp_path: Path) -> None:
    for name in (
        "images/x.png",
        "scenes/y.png",
        "train/a.png",
        "test/b.png",
        "2750/c.png",
        "River/d.png",
        "a/e.png",
        "index/f.png",
    ):
        image(tmp_path / name)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "index.parquet")
    assert labelled_set(tmp_path) is None and isinstance(open_source(str(tmp_path)), FolderSource)
    cifar10(tmp_path / "photos" / "cifar")
    image(tmp_path / "photos" / "mine.png")
    assert isinstance(open_source(str(tmp_path / "photos")), FolderSource)  # a set among one's own images is not the folder
    assert labelled_set(tmp_path / "gone") is None


def test_labels_that_a_set_does_not_have_are_named_with_those_it_has(tmp_path: Path) -> None:
    image(tmp_path / "flat" / "x.png")
    with pytest.raises(UserError, match="'group', not 'groop'; did you mean 'group'"):
        open_source("emoji", "groop")
    with pytest.raises(UserError, match="no labels, not 'class'"):
        open_source(str(tmp_path / "flat"), "class")
    assert labels_of(open_source("emoji", "group")).name == "group"


# ---- bands


def test_statistics_follow_the_number_of_channels() -> None:
    assert ImageSettings().mean == (0.485, 0.456, 0.406) and ImageSettings().std == (0.229, 0.224, 0.225)
    assert ImageSettings(channels=2).mean == (0.5, 0.5) and ImageSettings(channels=1).std == (0.25,)
    assert ImageSettings(channels=2, mean=(0.1, 0.2)).std == (0.25, 0.25)
    for wrong, words in (
        ({"channels": 2, "mean": [0.5]}, r"images.*mean: 1 numbers for images\.channels=2"),
        ({"std": [1.0, 1.0]}, r"std: 2 numbers for images\.channels=3"),
        ({"channels": 0}, r"images\.channels.*greater than or equal to 1"),
        ({"channels": "many"}, r"images\.channels"),
        ({"white": 0}, r"images\.white"),
    ):
        with pytest.raises(UserError, match=words):
            resolve({"images": wrong})
    again = resolve(json.loads(resolve({"images": {"channels": 5}}).model_dump_json()))
    assert again.images.mean == (0.5,) * 5


def test_gray_and_colour_turn_into_each_other_as_in_pillow_and_nothing_else_does() -> None:
    colour = draw(40, 50, 3)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(channels_of(colour, ImageSettings(channels=1))[..., 0], luma)
    gray = draw(9, 7, 1)
    np.testing.assert_array_equal(channels_of(gray, ImageSettings()), np.asarray(Image.fromarray(gray[..., 0]).convert("RGB")))
    assert channels_of(colour, ImageSettings()) is colour  # as it is, at no cost
    np.testing.assert_array_equal(channels_of(channels_of(gray, ImageSettings()), ImageSettings(channels=1)), gray)
    deep = colour.astype(np.uint16) * 257  # 255 -> 65535
    np.testing.assert_allclose(channels_of(deep, ImageSettings(channels=1))[..., 0] * 255, luma, atol=0.51)
    for have, want in ((13, 3), (3, 13), (4, 3), (2, 1), (1, 2)):
        with pytest.raises(BandsError, match=rf"{have} bands?, and images\.channels is {want}; set images\.channels={have}"):
            channels_of(draw(4, 4, have), ImageSettings(channels=want))


def test_deep_values_are_in_units_of_white() -> None:
    values = np.array([[[0], [10_000], [65_535]]], np.uint16)
    for white, expected in ((None, [0, 10_000 / 65_535, 1]), (10_000.0, [0, 1, 6.5535])):
        got = channels_of(values, ImageSettings(channels=1, white=white))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got[0, :, 0], expected, rtol=1e-6)
    floats = np.array([[[0.25], [2.0]]], np.float32)
    np.testing.assert_array_equal(channels_of(floats, ImageSettings(channels=1)), floats)
    np.testing.assert_array_equal(channels_of(floats, ImageSettings(channels=1, white=2.0)), floats / 2)
    shallow = draw(3, 3, 1)
    assert channels_of(shallow, ImageSettings(channels=1, white=2.0)) is shallow


@pytest.mark.parametrize("size", [(8, 8), (13, 40)])
def test_bands_are_resized_one_by_one_as_pillow_does(size: tuple[int, int]) -> None:
    bytes_, deep = draw(23, 31, 13), draw(23, 31, 5, dtype=np.uint16)
    got = resize(bytes_, *size)
    assert got.dtype == torch.uint8 and got.shape == (13, *size)
    for b in range(13):
        expected = np.asarray(Image.fromarray(bytes_[..., b]).resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.abs(got[b].numpy().astype(int) - expected).max() <= 2
    floats = channels_of(deep, ImageSettings(channels=5))
    got = centre_crop(floats[:, :23], *size) if size == (8, 8) else resize(floats, *size)
    source = floats[:, :23] if size == (8, 8) else floats
    for b in range(5):
        expected = np.asarray(Image.fromarray(source[..., b]).resize(size[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_allclose(got[b].numpy(), expected, atol=2e-6)


def test_floats_are_normalised_without_a_255() -> None:
    s = ImageSettings(channels=2, mean=(0.5, 0.1), std=(0.25, 0.5))
    x = torch.tensor([0.75, 0.6]).view(1, 2, 1, 1)
    np.testing.assert_allclose(normalise(x, s).flatten(), [1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(normalise(torch.full((1, 2, 1, 1), 255, dtype=torch.uint8), s).flatten(), [2.0, 1.8], rtol=1e-6)


def test_a_batch_of_both_depths_holds_the_same_values(tmp_path: Path) -> None:
    gray = draw(8, 8)
    for i in range(4):
        Image.fromarray(gray if i % 2 else gray.astype(np.uint16) * 257).save(tmp_path / f"{i}.png")
    images = ImageSettings(size=8, channels=1, crop_scale=(1, 1), crop_aspect=(1, 1))
    batch = Loader(FolderSource(tmp_path), images, LAW, (4, 4), 4, 0).batch(0)
    assert batch.images.dtype == torch.float32
    np.testing.assert_allclose(batch.images.numpy(), np.broadcast_to(gray / 255, (4, 1, 8, 8)), atol=1e-6)
    alike = stacked([torch.zeros(1, 2, 2, dtype=torch.uint8)] * 3)
    assert alike.dtype == torch.uint8 and alike.shape == (3, 1, 2, 2)


def test_a_wrong_number_of_channels_is_said_before_the_run_and_one_odd_image_is_a_bad_one(tmp_path: Path) -> None:
    source = eurosat_bands(tmp_path / "all")
    with pytest.raises(UserError, match=r"13 bands, and images\.channels is 3; set images\.channels=13") as caught:
        Loader(source, ImageSettings(size=8), LAW, (4, 4), 4, 0)
    assert not isinstance(caught.value, TooManyBadImagesError) and str(tmp_path) in str(caught.value)
    for i in range(8):
        image(tmp_path / "most" / f"{i}.png", seed=i)
    tifffile.imwrite(tmp_path / "most" / "0.tif", draw(8, 8, 13), photometric="minisblack", planarconfig="contig")
    made = Loader(FolderSource(tmp_path / "most"), ImageSettings(size=8), LAW, (4, 4), 9, 0)
    assert made.batch(0).images.shape == (9, 3, 8, 8)
    assert list(made.bad.values()) == ["has 13 bands, and images.channels is 3; set images.channels=13"]


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_of_many_bands_is_read_whole_however_it_is_laid_out(order: str, dtype: Any) -> None:
    bands = draw(6, 9, 13, dtype=dtype)
    for options in ({}, {"compression": "zlib", "predictor": True}, {"bigtiff": True}, {"tile": (16, 16)}):
        together = decode(tiff(bands, planarconfig="contig", byteorder=order, **options))
        apart = decode(tiff(bands.transpose(2, 0, 1), planarconfig="separate", byteorder=order, **options))
        for pixels in (together, apart):
            assert pixels.dtype == np.dtype(dtype) and pixels.flags.writeable and pixels.flags.c_contiguous
            np.testing.assert_array_equal(pixels, bands)


def test_deep_colour_floats_and_a_fourth_band_keep_what_they_hold() -> None:
    deep, floats, four = draw(5, 5, 3, dtype=np.uint16), np.random.default_rng(0).random((5, 5)), draw(5, 5, 4)
    np.testing.assert_array_equal(decode(tiff(deep, photometric="rgb")), deep)
    np.testing.assert_array_equal(decode(tiff(floats)), floats.astype(np.float32)[..., None])
    np.testing.assert_array_equal(decode(tiff(four, photometric="rgb", extrasamples=["unspecified"])), four)  # RGB and infrared
    clear = decode(tiff(np.where(np.arange(4) == 3, 0, four).astype(np.uint8), photometric="rgb", extrasamples=["unassalpha"]))
    assert clear.shape == (5, 5, 3) and (clear == 255).all()  # an alpha is none: it lies on white
    plain = draw(5, 5, 3)
    np.testing.assert_array_equal(decode(tiff(plain, photometric="rgb")), plain)


def test_a_tiff_that_cannot_be_used_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holes = np.ones((4, 4, 2), np.float32)
    holes[0, 0, 0] = np.nan
    whole = tiff(draw(30, 30, 13), planarconfig="contig")
    for data, words in (
        (tiff(draw(4, 4, 5, dtype=np.int16), planarconfig="contig"), "int16"),
        (tiff(holes, planarconfig="contig"), "not finite"),
        (whole[: len(whole) // 2], "."),
        (b"II*\0" + bytes(20), "."),
    ):
        with pytest.raises(BadImageError, match=words):
            decode(data)
    at = whole.index(struct.pack("<HHI", 256, 4, 1))  # ImageWidth, then ImageLength, in entries of twelve bytes
    bomb = bytearray(whole)
    for entry in (at, at + 12):
        bomb[entry + 8 : entry + 12] = struct.pack("<I", 60_000)
    with pytest.raises(BadImageError, match="bomb"):
        decode(bytes(bomb))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadImageError, match=r"pip install 'jepakit\[tiff\]'"):
        decode(whole)
    (tmp_path / "x.tif").write_bytes(whole)
    with pytest.raises(UserError, match=r"no readable image.*pip install 'jepakit\[tiff\]'"):
        open_source(str(tmp_path))


def test_an_exported_encoder_keeps_its_bands_and_their_scale(tmp_path: Path) -> None:
    shape = {"width": 16, "depth": 1, "heads": 2, "patch_size": 2}
    statistics = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [1.0, 2.0, 3.0, 4.0]}
    images = {"channels": 4, "size": 8, "white": 10_000.0, **statistics}
    config = resolve({"images": images, "encoder": shape, "predictor": {"width": 8, "depth": 1}, "masking": {"min_keep": 2}})
    save_model(build_jepa(config), config.images, tmp_path)
    encoder = load_hf(tmp_path, None)
    assert encoder.images.channels == 4 and encoder.images.white == 10_000
    assert (encoder.images.mean, encoder.images.std) == (config.images.mean, config.images.std)
    assert encoder.embed(encoder.normalise(torch.rand(2, 4, 8, 8))).shape == (2, 16)


def test_any_image_can_be_looked_at() -> None:
    colour = torch.from_numpy(draw(3, 4, 4))
    assert torch.equal(to_show(colour), colour)
    bands = torch.tensor([0.0, 0.1, 0.2, 0.1]).view(4, 1, 1) * torch.tensor([[[1.0, 0.5]]])
    assert to_show(bands).tolist() == [[[128, 64]]] * 3  # the mean .1 of at most .2: 127.5, and half of it
