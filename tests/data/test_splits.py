"""Splits: the words by which sets name them, and that pretraining sees nothing that is held out."""

import hashlib
import io
import json
import logging
import pickle
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import jepakit
from jepakit.artifacts.run import Run
from jepakit.config.config import resolve
from jepakit.core.errors import UserError
from jepakit.data.formats.folder import FolderSource
from jepakit.data.formats.pack import pack
from jepakit.data.labels.folder_split import read_layout
from jepakit.data.labels.split_words import split_of
from jepakit.data.loader import Loader
from jepakit.data.opening import open_source
from jepakit.data.sets.emoji import EmojiSource
from jepakit.data.sources import ArraySource, Blocks, Labels, Source, every_fifth_held_out
from jepakit.data.training_part import TrainingPart, held_out, training_part, with_split
from jepakit.evaluation.results import results_table
from jepakit.evaluation.tasks import evaluate
from jepakit.model.images import ImageSettings
from jepakit.model.masking.masks import MultiBlock
from jepakit.planning.check import check
from jepakit.planning.check_results import check_table
from jepakit.training.step import Training
from jepakit.training.train import pretrain
from test_data import folder

TINY = [
    "encoder.width=16",
    "encoder.depth=1",
    "encoder.heads=2",
    "encoder.patch_size=4",
    "predictor.width=8",
    "predictor.depth=1",
    "images.size=16",
    "masking.min_keep=2",
    "optim.batch_size=4",
    "optim.steps=2",
    "optim.warmup_steps=1",
    "run.threads=1",
    "run.probe_images=0",
]


def told(root: Path) -> str:
    """Class of each image, in the order of paths; ! marks what is held out, - what has no label."""
    labels = FolderSource(root).labels
    assert labels is not None
    names = [labels.classes[value].replace(" ", "_") if value >= 0 else "-" for value in labels.values]
    return " ".join(name + "!" * bool(test) for name, test in zip(names, labels.test, strict=True))


# ---- words


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("train_images", "test_images"),
        ("trainset", "testset"),
        ("TrainData", "ValidationData"),
        ("Train Images", "Hold-Out"),
        ("train", "dev"),
        ("train", "eval"),
        ("train", "holdout"),
        ("train2017", "val2017"),
        ("training", "development"),
        ("train", "held_out"),
        ("Train", "heldout"),
        ("trainval", "test"),
        ("train_val", "test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train/images", "test/images"),
        ("Brain_Tumor_Train", "Brain_Tumor_Test"),
        ("cifar10-train", "cifar10-test"),
        ("train", "evaluation"),
    ],
)
@pytest.mark.parametrize("around", ["", "set/", "set/images/"])
def test_parts_are_known_by_their_words_and_are_no_classes(tmp_path: Path, train: str, held: str, around: str) -> None:
    for name in ("cat", "dog"):
        folder(tmp_path, 3, sub=f"{around}{train}/{name}")
        folder(tmp_path, 2, sub=f"{around}{held}/{name}")
    source = FolderSource(tmp_path)
    assert source.labels is not None and source.labels.classes == ("cat", "dog") and source.labels.own_split
    of_held = [source.title(i).removeprefix(around).startswith(held + "/") for i in range(len(source))]
    assert source.labels.test.tolist() == of_held and held_out(source).tolist() == of_held  # type: ignore[union-attr]
    assert source.notes == ()


@pytest.mark.parametrize(
    ("folders", "expected", "kept"),
    [
        ("cat/test, cat/train, dog/test, dog/train", "cat! cat dog! dog", 2),  # parts below the classes
        ("set/cat/Testing, set/cat/Training, set/dog/Testing, set/dog/Training", "cat! cat dog! dog", 2),
        ("set/a, set/b", "a b", 0),
        ("bus/a, train/b", "bus train", 0),  # a vehicle
        ("test tube/a, train station/b", "test_tube train_station", 0),
        ("train/a, train/b", "a b", 0),
        ("test/a, train/a, train/b, val/a", "a! a b -", 2),  # validation is kept from training too
        ("test, train/a, train/b", "- a b", 1),  # labels are hidden: still not trained on
        ("test, train/images/a, train/images/b", "- a b", 1),
        ("test/train, test/bus, train/bus, train/train", "bus! train! bus train", 2),  # vehicles in parts
    ],
)
def test_layouts_of_classes_and_parts(tmp_path: Path, folders: str, expected: str, kept: int) -> None:
    for place in folders.split(", "):
        folder(tmp_path, 1, sub=place)
    held = held_out(FolderSource(tmp_path))
    assert told(tmp_path) == expected and (0 if held is None else int(held.sum())) == kept


@pytest.mark.parametrize("third", ["unlabeled", "unlabeled/x", "seg_pred", "extra/a"])
def test_a_third_folder_beside_train_and_test_is_trained_on_and_said(tmp_path: Path, third: str) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        folder(tmp_path, 2, sub=place)
    folder(tmp_path, 3, sub=third)
    source = FolderSource(tmp_path)
    assert source.labels is not None and source.labels.classes == ("a", "b")
    apart = np.array([source.title(i).startswith(third) for i in range(len(source))])
    assert (source.labels.values[apart] == -1).all() and (source.labels.values[~apart] >= 0).all()
    assert held_out(source).sum() == 4 and not held_out(source)[apart].any()  # type: ignore[union-attr,index]
    assert len(source.notes) == 1 and f"3 images in {third.split('/')[0]}" in source.notes[0]


@pytest.mark.parametrize("names", ["train test", "trainA trainB testA testB", "Training Testing other"])
def test_parts_without_classes_are_a_split_without_labels(tmp_path: Path, names: str) -> None:
    for name in names.split():
        folder(tmp_path, 2, sub=name)
    source = FolderSource(tmp_path)
    held = held_out(source)
    assert source.labels is None and held is not None
    assert held.tolist() == [source.title(i).lower().startswith("test") for i in range(len(source))]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ("siteA/pos, siteA/neg, siteB/pos, siteB/neg", r"siteA, siteB are taken for the classes.*\(neg, pos\)"),
        ("cats_test/x, cats_train/x, dogs_test/x, dogs_train/x", "named like a split: call them train and test"),
        ("cats, dogs, test", "named like a split"),
        ("docs, set/train/a, set/train/b, set/val/a, set/val/b", r"docs, set are taken .* named like a split \(set/val\)"),
        ("d1/train/a, d1/train/b, d1/test/a, d1/test/b, d2/train/a, d2/train/b, d2/test/a, d2/test/b", "d1, d2 are taken for"),
        ("train/cat, train/dog, test/Cat, test/dog", "the classes Cat, cat differ in upper and lower case alone"),
    ],
)
def test_a_guess_at_the_classes_is_said(folders: str, words: str) -> None:
    (note,) = read_layout(folders.split(", ")).notes
    assert re.search(words, note)
    assert read_layout(["a/x", "b/y"]).notes == () and read_layout(["a", "b"]).notes == ()


@pytest.mark.parametrize("folders", ["train/n01/images, train/n02/images, val/images", "train/n01, train/n02, test/unknown"])
def test_a_part_whose_labels_are_hidden_lies_in_one_folder_that_is_no_class(folders: str) -> None:
    of = read_layout(folders.split(", "), [3, 3, 6])
    assert of.classes == ["n01", "n02", None] and of.parts[:2] == ["train", "train"] and of.parts[2] in ("test", "validation")
    (note,) = of.notes
    assert re.fullmatch(r"6 images of the (validation|test) part have no label: all lie in (images|unknown), .*", note)


def test_words_of_files_are_those_of_folders() -> None:
    of = {"train-000.tar": "train", "Testing-3.parquet": "test", "dev.npz": "validation", "x/eval/0.tar": "validation"}
    of |= {"holdout_1.parquet": "test", "trainset.npz": "train", "contest.tar": None, "trainer.tar": None, "device.npz": None}
    of |= {"held_out.npz": "test", "heldout-0.tar": "test", "trainval-0.tar": "train", "train_val-0.tar": "train"}
    assert {name: split_of(name) for name in of} == of


# ---- what is trained on


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(start + i), "path": None} for i in range(count)]


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), i % 256, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def in_a_folder(root: Path) -> Path:
    for part, count in (("train", 6), ("test", 2)):
        for c, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                (root / part / name / f"{i}.png").write_bytes(png(40 * c + i + 20 * (part == "test")))
    return root


def in_parquet(root: Path) -> Path:
    root.mkdir()
    for part, count, start in (("train", 12, 0), ("test", 4, 20)):
        table = pa.table({"image": rows(count, start), "label": [i % 2 for i in range(count)]})
        pq.write_table(table, root / f"{part}-00000-of-00001.parquet", row_group_size=3)
    return root


def in_tars(root: Path) -> Path:
    root.mkdir()
    for part, count, start in (("train", 12, 0), ("val", 4, 20)):
        with tarfile.open(root / f"{part}-0.tar", "w") as file:
            for i in range(count):
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(png(start + i))
                file.addfile(info, io.BytesIO(png(start + i)))
    return root


def in_npz(root: Path) -> Path:
    root.mkdir()
    shades = np.zeros((16, 20, 20, 3), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None, None]
    parts = {"x_train": shades[:12], "y_train": np.arange(12) % 2, "x_test": shades[:4] + 20, "y_test": np.arange(4) % 2}
    np.savez(root / "set.npz", **parts)
    return root / "set.npz"


def in_cifar(root: Path) -> Path:
    root.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for k, name in enumerate(names):
        pixels = np.full((3, 3072), 20 + k if name == "test_batch" else k, np.uint8)
        (root / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [0, 1, 2]}))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a", b"b", b"c"]}))
    return root


def in_a_pack(root: Path) -> Path:
    return pack(in_a_folder(root.with_name("raw")), root, 16)


def in_a_pack_of_parts_alone(root: Path) -> Path:
    return pack(in_tars(root.with_name("tars")), root, 16)


SETS = [in_a_folder, in_parquet, in_tars, in_npz, in_cifar, in_a_pack, in_a_pack_of_parts_alone]


@pytest.mark.parametrize("layout", SETS, ids=lambda layout: layout.__name__)
def test_of_a_set_with_a_split_of_its_own_no_held_out_image_is_seen(tmp_path: Path, layout: Any) -> None:
    source = open_source(str(layout(tmp_path / "set")))
    images = with_split(ImageSettings(size=16), source)
    assert images.split == "train"
    part, held = training_part(source, images), held_out(source)
    assert held is not None and len(part) == (~held).sum() == (15 if layout is in_cifar else 12)
    shades = {int(part.read(i).flat[0]) % 40 for i in range(len(part))}  # held-out images are 20 brighter
    assert max(shades) < 20 and any(int(source.read(int(i)).flat[0]) % 40 >= 20 for i in np.flatnonzero(held))
    for batch in Loader(part, images, MultiBlock(min_keep=2), (4, 4), 4, 0)(0, 6):
        assert set((batch.images.flatten(1)[:, 0] % 40).tolist()) <= shades
    everything = training_part(source, with_split(ImageSettings(size=16, split="all"), source))
    assert everything is source


def test_the_emoji_are_trained_on_without_the_identities_of_the_test() -> None:
    source = EmojiSource()
    part = training_part(source, with_split(ImageSettings(size=32), source))
    assert isinstance(part, TrainingPart) and source.labels is not None and source.labels.groups is not None
    identities = source.labels.groups
    assert not set(identities[part.ids]) & set(identities[source.labels.test]) and len(part) == (~source.labels.test).sum()


def test_without_a_split_of_its_own_all_is_trained_on_unless_it_is_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder(tmp_path / "own", 10, sub=name)
    source = FolderSource(tmp_path / "own")
    assert with_split(ImageSettings(), source).split == "all"
    part = training_part(source, with_split(ImageSettings(split="train"), source))
    assert source.labels is not None and len(part) == 16
    assert {part.title(i) for i in range(16)} == {source.title(int(i)) for i in np.flatnonzero(~source.labels.test)}
    folder(tmp_path / "flat", 4)
    with pytest.raises(UserError, match="neither a split of its own nor labels"):
        with_split(ImageSettings(split="train"), FolderSource(tmp_path / "flat"))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.data())
def test_blocks_of_a_part_are_those_of_the_whole_less_what_is_held_out(sizes: list[int], data: st.DataObject) -> None:
    n = sum(sizes)
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    source = ArraySource("s", np.zeros((n, 2, 2, 3), np.uint8), None)
    source.blocks = Blocks(np.cumsum([0, *sizes]), 2, True)
    part = TrainingPart(source, ids)
    assert part.blocks is not None and part.blocks.starts[-1] == len(ids) and (np.diff(part.blocks.starts) > 0).all()
    here, there = part.blocks.of(np.arange(len(ids))), source.blocks.of(ids)
    assert [len({*here[there == b]}) for b in {*there.tolist()}] == [1] * len({*there.tolist()})


def test_a_run_says_what_it_is_trained_on_and_writes_it_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = in_a_folder(tmp_path / "set")
    with caplog.at_level(logging.INFO, "jepakit"):
        run = pretrain(data, tmp_path / "run", set=TINY)
    assert run.config.images.split == "train"
    assert "images.split=train: 12 of 16 images are trained on; 4 are held out" in caplog.text
    assert "12 images, 2 steps of 4" in caplog.text
    with caplog.at_level(logging.INFO, "jepakit"):
        run = pretrain(data, tmp_path / "all", set=[*TINY, "images.split=all"])
    assert run.config.images.split == "all" and "4 of them are held out by the set's own split" in caplog.text
    assert "16 images, 2 steps of 4" in caplog.text
    table = check_table(check(data, set=TINY))
    assert "split             images.split=train: 12 of 16 images" in table and "3 steps an epoch" in table


def test_statistics_are_of_what_is_trained_on(tmp_path: Path) -> None:
    for part, shade in (("train", 0), ("test", 255)):
        for name in "ab":
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(tmp_path / "set" / part / name / f"{i}.png")
    assert pretrain(tmp_path / "set", tmp_path / "run", set=TINY).config.images.mean == (0, 0, 0)


def test_a_run_of_before_there_was_a_split_goes_on_with_all(tmp_path: Path) -> None:
    config = resolve({"images": {"size": 16}, "encoder": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}})
    assert config.images.split == "auto"
    training = Training.prepare(
        config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": 4})}), coloured()
    )
    assert len(training.loader.source) == 20


def coloured() -> Source:
    values = np.arange(20) % 2
    return ArraySource("s", np.zeros((20, 16, 16, 3), np.uint8), Labels("l", ("a", "b"), values, every_fifth_held_out(values)))


def test_resuming_sees_the_same_part(tmp_path: Path) -> None:
    data = in_a_folder(tmp_path / "set")
    run = pretrain(data, tmp_path / "run", set=TINY)
    (data / "test" / "a" / "0.png").unlink()  # held-out images are no part of the run
    assert pretrain(resume=run.path).finished
    assert Run.open(run.path).config.images.split == "train"


# ---- what evaluation says of it


def judged(run: Path | str, data: Path | str, **more: Any) -> tuple[int | None, str]:
    """Test images that pretraining saw, as recorded, and the table."""
    results = evaluate(run, data, ["knn"], **more)
    folder = Path(more.get("out") or Path(run) / "evaluation")
    return json.loads((folder / "knn.json").read_text())["seen_test"], results_table(results)


def test_results_say_whether_pretraining_saw_the_test_images(tmp_path: Path) -> None:
    data = in_a_folder(tmp_path / "set")
    held, everything = (pretrain(data, tmp_path / n, set=[*TINY, f"images.split={n}"]).path for n in ("train", "all"))
    assert judged(held, data)[0] == 0 and "pretraining saw" not in judged(held, data)[1]
    seen, table = judged(everything, data)
    assert seen == 4 and "pretraining saw 4 of the 4 test images" in table
    page = jepakit.report([everything]).read_text()
    assert "of which pretraining saw 4" in page
    moved = data.rename(tmp_path / "moved")  # the same images elsewhere
    assert judged(held, moved)[0] == 0 and judged(everything, moved)[0] == 4
    other = in_a_folder(tmp_path / "other")
    (other / "test" / "a" / "9.png").write_bytes(png(99))  # other images, of which nothing is known
    assert judged(everything, other)[0] is None
    model = jepakit.load(everything)
    assert model is not None and judged(everything / "model", other, out=tmp_path / "e")[0] is None  # no run: not known


def arrays(root: Path, form: str, start: int) -> Path:
    """20 images whose names are mere places; of another start they are others."""
    root.mkdir(exist_ok=True)
    pixels, labels = np.random.default_rng(start).integers(0, 256, (20, 16, 16, 3), np.uint8), np.arange(20) % 2
    if form == "parquet":
        shown = [{"bytes": png(start + i), "path": None} for i in range(20)]
        pq.write_table(pa.table({"image": shown, "label": labels}), root / "x.parquet")
        return root
    np.savez(root / "x.npz", images=pixels, labels=labels)
    return pack(root / "x.npz", root / "packed", 16) if form == "pack" else root / "x.npz"


@pytest.mark.parametrize("form", ["npz", "parquet", "pack"])
def test_images_whose_names_are_mere_places_are_told_apart_by_content(tmp_path: Path, form: str) -> None:
    a, same, other = (arrays(tmp_path / name, form, start) for name, start in (("a", 0), ("same", 0), ("other", 100)))
    run = pretrain(a, tmp_path / "run", set=TINY).path
    assert judged(run, same)[0] == judged(run, a)[0] == 4
    seen, table = judged(run, other)
    assert seen is None and "pretraining saw" not in table and "not known" not in table
    with pytest.raises(UserError, match="are not those that the run began with"):
        pretrain(other, resume=run)
    assert pretrain(same, resume=run).finished


def test_a_run_of_before_content_was_noted_goes_on_at_its_own_place_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, same = arrays(tmp_path / "a", "npz", 0), arrays(tmp_path / "same", "npz", 0)
    run = pretrain(data, tmp_path / "run", set=TINY)
    newest = run.checkpoints / "step-00000002"
    state = json.loads((newest / "state.json").read_text())
    assert len(state.pop("content")) == 16
    (newest / "state.json").write_text(json.dumps(state))
    sums = json.loads((newest / "manifest.json").read_text())
    sums["state.json"] = hashlib.sha256((newest / "state.json").read_bytes()).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(sums))
    assert judged(run.path, same)[0] is None and judged(run.path, data)[0] == 4
    with pytest.raises(UserError, match=r"cannot be told: put them where they were, .*x\.npz"):
        pretrain(same, resume=run)
    assert pretrain(resume=run).finished and "the run began before jepakit noted what its images hold" in caplog.text


def test_a_run_s_checkpoint_and_model_know_what_was_seen_and_a_copy_says_that_it_does_not(tmp_path: Path) -> None:
    data = in_a_folder(tmp_path / "set")
    run = pretrain(data, tmp_path / "run", set=[*TINY, "images.split=all"]).path
    for part in ("checkpoints/latest", "checkpoints/step-00000002", "model"):
        seen, table = judged(run / part, data, out=tmp_path / "e")
        assert seen == 4 and "pretraining saw 4 of the 4 test images" in table
    copy = shutil.copytree(run / "model", tmp_path / "copy")
    seen, table = judged(copy, data, out=tmp_path / "e")
    assert seen is None and "it is not known what this encoder was pretrained on" in table


def test_a_folder_within_the_run_s_images_or_around_them_is_compared_file_by_file(tmp_path: Path) -> None:
    for name in "ab":
        folder(tmp_path / "all" / "labelled", 10, sub=name)
    folder(tmp_path / "all" / "more", 5)
    run = pretrain(tmp_path / "all", tmp_path / "run", set=[*TINY, "images.split=all"]).path
    assert judged(run, tmp_path / "all" / "labelled")[0] == 4
    part = pretrain(tmp_path / "all" / "labelled" / "a", tmp_path / "part", set=TINY).path
    assert judged(part, tmp_path / "all" / "labelled")[0] == 2


def test_a_fifth_held_out_by_labels_is_seen_unless_it_is_kept_out(tmp_path: Path) -> None:
    for name in "ab":
        folder(tmp_path / "set", 10, sub=name)
    auto, kept = (pretrain(tmp_path / "set", tmp_path / n, set=[*TINY, f"images.split={n}"]).path for n in ("auto", "train"))
    assert judged(auto, tmp_path / "set")[0] == 4 and judged(kept, tmp_path / "set")[0] == 0


# ---- a set whose own test part has no labels, or a part more than it needs


def hidden(root: Path, form: str) -> Path:
    """20 labelled images to train on, and 6 to test on that have no labels."""
    if form == "npz":
        pixels = np.random.default_rng(0).integers(0, 256, (26, 20, 20, 3), np.uint8)
        np.savez(root / "set.npz", x_train=pixels[:20], y_train=np.arange(20) % 2, x_test=pixels[20:])
        return root / "set.npz"
    for name in ("cat", "dog"):
        folder(root / "set", 10, sub=f"train/{name}")
    folder(root / "set", 6, sub="test")
    return pack(root / "set", root / "packed", 16) if form == "pack" else root / "set"


@pytest.mark.parametrize("form", ["folder", "npz", "pack"])
def test_where_the_own_test_has_no_labels_what_is_tested_on_instead_is_held_out_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    data = hidden(tmp_path, form)
    source = open_source(str(data))
    held = held_out(source)
    assert source.labels is not None and held is not None and held.sum() == 6 and source.labels.test.sum() == 4
    part = training_part(source, with_split(ImageSettings(), source))
    assert isinstance(part, TrainingPart) and len(part) == 16 and not (held | source.labels.test)[part.ids].any()
    with caplog.at_level(logging.INFO, "jepakit"):
        run = pretrain(data, tmp_path / "run", set=TINY).path
    assert "16 of 26 images are trained on; 10 are held out, for evaluation: 6 by the set's own split, of which no" in caplog.text
    assert "and 4 more, a fifth of each class, which evaluate tests on instead" in caplog.text
    seen, table = judged(run, data)
    assert seen == 0 and "pretraining saw" not in table
    everything = pretrain(data, tmp_path / "all", set=[*TINY, "images.split=all"]).path
    assert "nor is what is measured on a fifth of each class" in caplog.text and judged(everything, data)[0] == 4


def test_fifths_of_other_labels_than_pretraining_went_by_were_seen(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 20, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, label=np.arange(20) % 2, other=np.arange(20) // 10)
    run = pretrain(tmp_path / "x.npz", tmp_path / "run", set=[*TINY, "images.split=train"]).path
    assert judged(run, tmp_path / "x.npz")[0] == 0
    other = open_source(str(tmp_path / "x.npz"), "other").labels
    first = open_source(str(tmp_path / "x.npz")).labels
    assert first is not None and other is not None
    assert judged(run, tmp_path / "x.npz", labels="other")[0] == int((other.test & ~first.test).sum()) > 0


@pytest.mark.parametrize("packed", [False, True])
def test_labels_of_a_validation_part_beside_a_test_are_not_counted_as_none(tmp_path: Path, packed: bool) -> None:
    for place in ("train/a", "train/b", "val/a", "val/b", "test/a", "test/b"):
        folder(tmp_path / "set", 3, sub=place)
    data = pack(tmp_path / "set", tmp_path / "packed", 16) if packed else tmp_path / "set"
    found = check(data, set=TINY)
    assert "6 labelled images of the validation part are used by no probe, as there is a test part" in found.split
    assert "0 without; 6 for testing" in check_table(found)


@pytest.mark.parametrize("inner", ["seg_{0}/seg_{0}", "{0}/images", "Tumor_{0}"])
def test_parts_in_a_shard_are_those_of_folders(tmp_path: Path, inner: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for part in ("train", "test"):
            for name in ("cat", "dog"):
                info = tarfile.TarInfo(f"{inner.format(part)}/{name}/0.png")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "x.tar"))
    assert source.labels is not None and source.labels.classes == ("cat", "dog") and source.notes == ()
    assert source.labels.test.tolist() == [False, False, True, True] == held_out(source).tolist()  # type: ignore[union-attr]


# ---- a column or an array that tells each row's part


def split_by_rows(root: Path, form: str, values: list[Any]) -> Path:
    """Images with labels, and such values as their 'split'."""
    n = len(values)
    if form == "npz":
        pixels = np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3), np.uint8)
        np.savez(root / "x.npz", images=pixels, labels=np.arange(n) % 2, split=np.array(values))
        return root / "x.npz"
    table = pa.table({"image": rows(n), "label": [i % 2 for i in range(n)], "split": values})
    if form == "parquet":
        pq.write_table(table, root / "train-0.parquet")
        return root / "train-0.parquet"
    with pa.OSFile(str(root / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return root / "x.arrow"


@pytest.mark.parametrize("form", ["npz", "parquet", "arrow"])
def test_a_column_called_split_is_the_split_and_no_label(tmp_path: Path, form: str) -> None:
    source = open_source(str(split_by_rows(tmp_path, form, ["train"] * 5 + ["Test", "Test"] + ["train"] * 3)))
    expected = [False] * 5 + [True] * 2 + [False] * 3
    assert source.labels is not None and source.labels.own_split and source.labels.test.tolist() == expected
    assert held_out(source).tolist() == expected and source.labels.values.tolist() == [0, 1] * 5  # type: ignore[union-attr]
    (said,) = source.notes
    assert re.fullmatch(r"the split is 'split' \((train 8, Test 2|Test 2, train 8)\)", said)


@pytest.mark.parametrize("form", ["npz", "parquet", "arrow"])
def test_other_values_of_a_column_called_split_have_no_part(tmp_path: Path, form: str) -> None:
    source = open_source(str(split_by_rows(tmp_path, form, ["train"] * 6 + ["test", "val"] + ["extra"] * 2)))
    assert source.labels is not None and source.labels.values.tolist() == [0, 1, 0, 1, 0, 1, 0, -1, -1, -1]
    assert held_out(source).nonzero()[0].tolist() == [6, 7] and source.labels.apart == 1  # type: ignore[union-attr]
    assert "; 2 images of other values have no part in it: trained on, and seen by no probe" in source.notes[0]


@pytest.mark.parametrize("form", ["npz", "parquet", "arrow"])
def test_a_column_called_split_that_tells_none_is_said(tmp_path: Path, form: str) -> None:
    source = open_source(str(split_by_rows(tmp_path, form, [0] * 5 + [1] * 5)))
    assert source.labels is not None and source.labels.name in ("label", "labels") and held_out(source) is None
    assert source.notes == ("'split' (0 5, 1 5) is not taken for a split, as its values are no words for train and test",)
