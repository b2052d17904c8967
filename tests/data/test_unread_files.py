"""What of the user's data is not used, or taken by a guess, is said with its count and what to do."""

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jepakit
from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import FORMATS, SUFFIXES, decode
from jepakit.data.decoding.file_kinds import ARCHIVES, IMAGE_KINDS, PLAIN, TABLES, VIDEOS, ending_of, kind_of
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.folder import FolderSource
from jepakit.data.opening import open_source
from jepakit.data.sets.listed import EUROSAT
from jepakit.data.sets.scenes import write
from jepakit.planning.check import check

FAST = [
    "encoder.width=16",
    "encoder.patch_size=4",
    "encoder.depth=1",
    "encoder.heads=1",
    "predictor.width=16",
    "predictor.depth=1",
    "predictor.heads=1",
    "images.size=16",
    "masking.min_keep=2",
    "optim.batch_size=2",
    "optim.steps=1",
    "optim.warmup_steps=0",
    "run.threads=1",
    "run.probe_images=0",
]
HEADS = {  # as the formats' specifications begin them
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0mif1avif",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
    "jxl": b"\0\0\0\x0cJXL \r\n\x87\n",
    "dcm": bytes(128) + b"DICM",
    "exr": b"v/1\x01\x02\0\0\0",
    "psd": b"8BPS\0\x01",
    "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "fits": b"SIMPLE  =                    T",
}


def photo(seed: int = 0, side: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def put(path: Path, image: Image.Image | None = None, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or photo(sum(path.name.encode()))).save(path, kind)


def note_of(notes: tuple[str, ...], *words: str) -> str:
    """The one note that holds these words."""
    (found,) = [note for note in notes if all(word in note for word in words)]
    return found


# ---- files


def test_every_name_of_a_format_that_is_read_is_known() -> None:
    Image.init()
    pillow = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "JPEG", "MPO", "DIB")}
    assert pillow <= SUFFIXES and not SUFFIXES & (IMAGE_KINDS | VIDEOS | ARCHIVES | TABLES | PLAIN)
    others = set(Image.registered_extensions()) - pillow - {".bufr", ".pdf", ".grib", ".h5", ".hdf", ".mpg", ".mpeg"}
    rare = {".blp", ".flc", ".fli", ".ftc", ".ftu", ".gbr", ".iim", ".im", ".msp", ".palm", ".pxr"}
    assert others - rare <= IMAGE_KINDS


@pytest.mark.parametrize("ending", sorted(SUFFIXES))
def test_each_of_them_is_read_in_any_case(tmp_path: Path, ending: str) -> None:
    kind = {"p": "PPM", "t": "TIFF", "b": "BMP", "g": "GIF", "w": "WEBP", "d": "BMP"}.get(ending[1], "JPEG")
    kind = {".png": "PNG", ".apng": "PNG", ".gtiff": "TIFF", ".btf": "TIFF"}.get(ending, kind)
    put(tmp_path / f"a{ending}", kind=kind)
    put(tmp_path / f"b{ending.upper()}", kind=kind)
    source = FolderSource(tmp_path)
    assert len(source) == 2 and source.notes == () and source.read(1).shape == (20, 20, 3)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / f"b{ending.upper()}", "x" + ending)
    assert len(open_source(str(tmp_path / "x.tar"))) == 1


def test_images_of_other_formats_are_counted_and_named_in_check_and_pretrain(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / "d" / f"{i}.jpg")
    for i in range(20):
        (tmp_path / "d" / f"{i:02}.HEIC").write_bytes(HEADS["heic"])
    for name in ("e/x.dcm", "e/y.dcm", "brain.nii.gz", "raw.DNG"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"II*\0")
    (tmp_path / "d" / "._0.jpg").write_bytes(b"no image")
    said, volumes = open_source(str(tmp_path / "d")).notes
    assert said.startswith("21 files left out: .heic 20, .dng 1 (") and "convert them to JPEG, PNG" in said
    assert volumes.startswith("3 files left out: .dcm 2, .nii.gz 1 (") and "images.axis=z" in volumes
    assert check(tmp_path / "d", "small", set=["optim.batch_size=2"]).notes == (said, volumes)
    jepakit.pretrain(data=tmp_path / "d", out=tmp_path / "run", recipe="small", set=FAST)
    assert said in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize("ending", sorted(HEADS))
def test_a_folder_of_nothing_that_is_read_says_what_it_holds(tmp_path: Path, ending: str) -> None:
    for i in range(3):
        (tmp_path / f"{i}.{ending}").write_bytes(HEADS[ending])
    said = rf"3 files left out: \.{ending} 3 \(0\.{ending}, .*convert them"
    said = "3 DICOM files left out, holding no image" if ending == "dcm" else said  # which is read as a volume
    with pytest.raises(UserError, match=f"no images in .*{said}"):
        open_source(str(tmp_path))
    assert kind_of(HEADS[ending])
    with pytest.raises(BadImageError, match=r"none of JPEG, .* convert it"):  # under the name of a JPEG
        decode(HEADS[ending] + bytes(200))


def test_images_without_an_ending_or_with_a_wrong_one_are_found_by_their_first_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    for name in ("one", "two", "three.jpg_large", "four.jpg.1", "five.dat", "six.jpg?width=100", "seven.heic"):
        put(tmp_path / name)
    (tmp_path / "IM_0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "LICENSE").write_text("x")
    source = FolderSource(tmp_path)
    assert len(source) == 1
    (said,) = source.notes
    assert said.startswith("9 files left out: no known ending 6, .dat 1, .heic 1, .jpg_large 1 (")
    assert "among which are images (DICOM, JPEG) under another ending: give them that of their format" in said


def test_what_plainly_is_no_image_is_not_worth_a_word_until_it_is_many(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / f"{i}.jpg")
    for name in ("README.md", "notes.txt", "LICENSE", "run.py", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    assert FolderSource(tmp_path).notes == ()
    for i in range(1000):
        (tmp_path / f"{i}.xml").write_text("x")
    (said,) = FolderSource(tmp_path).notes
    assert said.startswith("1,005 other files not read: .xml 1,000, ")


def test_archives_tables_videos_and_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    for name in ("x.zip", "y.tar.gz", "z.tar", "clip.MP4", "more.parquet", "labels.csv"):
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "b.jpg")
    notes = FolderSource(tmp_path).notes
    assert len(notes) == 5
    assert note_of(notes, "unpack them").startswith("3 files left out: .tar 1, .tar.gz 1, .zip 1 (z.tar, y.tar.gz, x.zip)")
    assert note_of(notes, "videos").startswith("1 file left out: .mp4 1 (clip.MP4)")
    assert note_of(notes, "1 link left out (b.jpg)") and note_of(notes, "1 file left out: .parquet 1 (more.parquet)")
    assert note_of(notes, "labels.csv may tell labels and is not read")


def test_endings_are_words() -> None:
    names = {"a.HEIC": ".heic", "a.nii.gz": ".nii.gz", "a.tar.gz": ".tar.gz", "a.csv.gz": ".csv", "a-ubyte.gz": ".gz"}
    names |= {"a": "", "a.0001": "", "a.jpg?w=1": "", ".hidden": "", "a.": "", "a.b c": "", "IMG.3fr": ".3fr"}
    assert {name: ending_of(name) for name in names} == names


def test_a_pack_tells_what_its_source_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        put(tmp_path / "d" / f"{i}.jpg")
    (tmp_path / "d" / "x.heic").write_bytes(HEADS["heic"])
    (tmp_path / "d" / "y.jpg").write_bytes(b"broken")
    jepakit.pack(tmp_path / "d", tmp_path / "p", max_bad=1)
    notes = open_source(str(tmp_path / "p")).notes
    assert note_of(notes, "1 file left out: .heic 1") in caplog.text and note_of(
        notes, "1 of 4 images could not be read", "y.jpg"
    )


# ---- folders


def mask(seed: int = 0, side: int = 40) -> Image.Image:
    y, x = np.mgrid[:side, :side]
    return Image.fromarray((np.hypot(y - 20, x - 15 - seed) < 9).astype(np.uint8) * 255)


def levels(seed: int = 0) -> Image.Image:
    """Numbers of classes, each anywhere."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 4, (40, 40), np.uint8))


@pytest.mark.parametrize(
    "images, masks, elsewhere",
    [
        ("images/{}.jpg", "masks/{}.png", "images"),
        ("imgs/{}.jpg", "labels/{}.png", "imgs"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "JPEGImages"),
        ("train/images/{}.jpg", "train/GT/{}.png", "train/images"),
        ("images/training/{}.jpg", "annotations/training/{}.png", "images/training"),
        ("leftImg8bit/aachen/{}_leftImg8bit.png", "gtFine/aachen/{}_gtFine_labelIds.png", "leftImg8bit/aachen"),
        ("{}.jpg", "{}_mask.png", ""),
        ("{}/x.tif", "{}/x_mask_1.tif", ""),
        ("a/img_{}.png", "a/img_{}-seg.png", ""),
        ("data/benign ({}).png", "data/benign ({})_mask.png", ""),
    ],
)
@pytest.mark.parametrize("look", [mask, levels])
def test_masks_are_told_from_images_and_are_no_class(
    tmp_path: Path, images: str, masks: str, elsewhere: str, look: Callable[[int], Image.Image]
) -> None:
    for i in range(6):
        put(tmp_path / images.format(i), photo(i, 40), "PNG")
        put(tmp_path / masks.format(i), look(i), "PNG")
    source = FolderSource(tmp_path)
    said = note_of(source.notes, "6 of 12 images look like masks")
    assert len(source) == 12
    assert said.endswith(f"give --data {tmp_path / elsewhere}" if elsewhere else "move them out of the folder")
    if source.labels is not None:
        assert not {*source.labels.classes} & {"masks", "labels", "images", "imgs", "JPEGImages", "annotations", "gtFine"}


def test_words_alone_make_no_mask(tmp_path: Path) -> None:
    for name in ("with_mask", "without_mask", "labels"):
        for i in range(5):
            put(tmp_path / name / f"{i}_mask.png", photo(i, 40), "PNG")
    source = FolderSource(tmp_path)
    assert source.notes == () and source.labels is not None
    assert source.labels.classes == ("labels", "with_mask", "without_mask")


def test_classes_of_flat_pictures_are_classes_where_no_images_lie_elsewhere(tmp_path: Path) -> None:
    for name in ("with_mask", "without_mask"):
        for i in range(3):
            put(tmp_path / name / f"{i}.png", mask(i), "PNG")
    source = FolderSource(tmp_path)
    assert source.labels is not None and source.labels.classes == ("with_mask", "without_mask")
    assert [note.split(" (")[0] for note in source.notes] == ["6 of 6 images look like masks"]


def test_a_folder_called_images_is_no_class(tmp_path: Path) -> None:
    for name in ("images", "depth", "thermal"):
        for i in range(5):
            put(tmp_path / name / f"{i}.png", photo(i, 40), "PNG")
    source = FolderSource(tmp_path)
    (said,) = source.notes
    assert source.labels is None and said.startswith("sub-folders are not taken for classes: images is called as if")


@pytest.mark.parametrize("names", ["original fake", "RGB infrared", "left_images right_images"])
def test_a_class_may_be_called_as_if_it_held_all_images(tmp_path: Path, names: str) -> None:
    first, second = names.split()
    for i in range(5):
        put(tmp_path / first / f"a{i}.png", photo(i, 40), "PNG")
        put(tmp_path / second / f"b{i}.png", photo(i, 40), "PNG")
    source = FolderSource(tmp_path)
    assert source.labels is not None and {*source.labels.classes} == {first, second}
    assert source.notes == (f"{first} is taken for a class, though it is called as if it held all images",)
    for i in range(5):
        (tmp_path / second / f"b{i}.png").rename(tmp_path / second / f"a{i}.png")
    source = FolderSource(tmp_path)
    (said,) = source.notes
    assert source.labels is None and said.endswith(f"{second} beside it holds the same names")


def test_one_stray_image_has_no_label_and_takes_none_from_others(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            put(tmp_path / name / f"{i}.jpg")
    put(tmp_path / "cover.jpg")
    source = FolderSource(tmp_path)
    (said,) = source.notes
    assert said.startswith("1 image lies in no class folder, and so without a label") and source.labels is not None
    labels = dict(zip(source.files, source.labels.values.tolist(), strict=True))
    assert labels.pop("cover.jpg") == -1 and labels == {file: int(file[0] == "d") for file in labels}
    assert sorted(file for file, test in zip(source.files, source.labels.test, strict=True) if test) == ["cat/4.jpg", "dog/4.jpg"]
    for i in range(12):
        put(tmp_path / f"{i}.jpg")
    source = FolderSource(tmp_path)
    (said,) = source.notes
    assert source.labels is None and "13 of 23 images lie in none of them (cat, dog)" in said


def test_a_stray_image_beside_the_parts_of_a_split_is_in_none(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            put(tmp_path / part / name / "x.jpg")
    put(tmp_path / "cover.jpg")
    source = FolderSource(tmp_path)
    assert source.held_out is not None and source.labels is not None
    assert [source.files[i] for i in np.flatnonzero(source.held_out)] == ["test/cat/x.jpg", "test/dog/x.jpg"]
    assert source.labels.values[source.files.index("cover.jpg")] == -1 and "1 image lies in no class folder" in source.notes[-1]


def test_folders_of_one_image_each_are_names_of_things(tmp_path: Path) -> None:
    for i in range(8):
        put(tmp_path / f"id{i}" / "x.jpg")
    source = FolderSource(tmp_path)
    (said,) = source.notes
    assert source.labels is None and "each of the 8 holds one image (id0, id1, id2, ...)" in said
    put(tmp_path / "id0" / "y.jpg")
    source = FolderSource(tmp_path)
    (said,) = source.notes
    assert source.labels is not None and said.startswith("7 of 8 classes have one image (id1, id2, id3, ...)")


# ---- tar shards


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def bytes_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_what_a_shard_holds_beside_images_is_said_from_the_kept_index_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k in range(2):
        members = {f"{k}{i}.jpg": bytes_of(photo(i), "JPEG") for i in range(3)}
        members |= {f"{k}{i}.heic": HEADS["heic"] for i in range(3, 8)} | {f"{k}8.bin": members[f"{k}0.jpg"], f"{k}.zip": b"PK"}
        members |= {f"{k}{i}.json": b'{"caption": "a cat"}' for i in range(3)} | {f"{k}0.seg.png": bytes_of(mask())}
        members |= {f"__MACOSX/._{k}0.jpg": b"x", f".{k}.heic": b"x"}
        shard(tmp_path / f"{k}.tar", members)
    first, again = (open_source(str(tmp_path / "{0,1}.tar")) for _ in range(2))
    assert len(first) == 6 and first.notes == again.notes and len(first.notes) == 5
    assert note_of(first.notes, "convert").startswith("10 files left out: .heic 10 (03.heic, 04.heic, 05.heic, ...), images of")
    assert note_of(first.notes, "(JPEG) under another ending").startswith("2 files left out: .bin 2 (08.bin, 18.bin)")
    assert note_of(first.notes, "2 files left out: .zip 2", "unpack") and note_of(
        first.notes, "2 images whose sample has another"
    )
    assert note_of(first.notes, "no labels are found in files beside images (.json 6)", "'class'")


def test_a_shard_of_nothing_that_is_read_says_what_it_holds(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", {f"{i}.avif": HEADS["avif"] for i in range(4)})
    with pytest.raises(UserError, match=r"no images in .*4 files left out: \.avif 4 "):
        open_source(str(path))


def test_masks_and_kinds_of_labels_in_a_shard(tmp_path: Path) -> None:
    members = {f"images/{i}.png": bytes_of(photo(i, 40)) for i in range(5)} | {
        f"masks/{i}.png": bytes_of(mask(i)) for i in range(5)
    }
    source = open_source(str(shard(tmp_path / "masks.tar", members)))
    assert source.labels is None and len(source.notes) == 2
    assert "5 of 10 images look like masks (masks/)" in source.notes[0] and "masks holds masks" in source.notes[1]
    members = {f"{kind}/{i}.png": bytes_of(photo(i)) for kind in "ab" for i in range(5)} | {"a/0.cls": b"3", "b/0.cls": b"4"}
    path = shard(tmp_path / "both.tar", members)
    assert open_source(str(path)).notes == ("labels are 'label'; it has 'folder' too: --labels NAME takes another",)
    assert open_source(str(path), "folder").notes == open_source(str(path), "label").notes == ()


# ---- tables and arrays


def png(seed: int) -> bytes:
    return bytes_of(photo(seed))


def tables_of(tmp_path: Path, columns: dict[str, Any]) -> list[Path]:
    """The same columns as Parquet and as Arrow."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table(columns)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return [tmp_path / "x.parquet", tmp_path / "x.arrow"]


def test_further_columns_of_images_and_rows_without_one_are_said(tmp_path: Path) -> None:
    images: list[Any] = [{"bytes": png(i), "path": f"{i}.png"} for i in range(8)]
    images[3] = images[5] = None
    depth, views = [png(i) for i in range(8)], [[png(0), png(1)]] * 8
    for path in tables_of(tmp_path, {"depth": depth, "image": images, "views": views, "label": [0, 1] * 4}):
        notes = open_source(str(path)).notes
        assert len(notes) == 2
        assert note_of(notes, "images are column 'image'; 'depth', 'views' may hold images too and are not used")
        assert "2 rows have no image (null)" in note_of(notes, "images.max_bad")
    for path in tables_of(tmp_path, {"png": [*depth[:7], None], "label": [0, 1] * 4}):
        (said,) = open_source(str(path)).notes
        assert said.startswith("1 row has no image (null)")
    for path in tables_of(tmp_path, {"image": images[:3], "label": [0, 1, 1], "width": [1, 2, 3]}):
        assert open_source(str(path)).notes == ()


@pytest.mark.parametrize(
    "columns, labels, words",
    [
        ({"label": [1.0, 0.0, float("nan"), 2.0]}, [1, 0, -1, 2], "column 'label': labels are floats, taken as the whole"),
        ({"label": [0.5, 0.0, 1.0, 2.0]}, None, "numbers with fractions"),
        ({"label": [[0, 1], [1, 0], [1, 0], [0, 1]]}, None, "column 'label' is not taken for labels, being a list"),
        ({"fine_label": [0, 1, 2, 3], "label": [0, 0, 1, 1]}, [0, 0, 1, 1], "labels are 'label'; it has 'fine_label' too"),
        ({"species": ["a", "b", "a", "b"], "id": [1, 2, 3, 4]}, None, "none of 'species' is called 'label'; --labels NAME"),
        ({"target": [0.0, 1.0, 1.0, 0.0]}, None, "none of 'target' is called 'label'; --labels NAME"),
        ({"category": [[0, 1], [1, 0], [1, 0], [0, 1]]}, None, "column 'category' is not taken for labels, being a list"),
        ({"label": [0, 1, 0, 1], "id": [1, 2, 3, 4], "score": [0.5, 1.0, 2.0, 3.0]}, [0, 1, 0, 1], ""),
    ],
)
def test_columns_that_look_like_labels(tmp_path: Path, columns: dict[str, Any], labels: list[int] | None, words: str) -> None:
    for path in tables_of(tmp_path, {"image": [png(i) for i in range(4)], **columns}):
        source = open_source(str(path))
        assert (source.labels.values.tolist() if source.labels else None) == labels
        assert words in "".join(source.notes) and len(source.notes) == bool(words)


X = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
ONE_HOT = np.eye(3, dtype=np.float32)[[0, 2, 1, 1, 0, 2]]


@pytest.mark.parametrize(
    "arrays, labels, words",
    [
        ({"labels": np.arange(5)}, None, "'labels' (5,) is not taken for labels: there are 6 images"),
        ({"y": np.array([0.0, 2, 1, np.nan, 0, 2])}, [0, 2, 1, -1, 0, 2], "taken as the whole numbers"),
        ({"y": np.array([0.5, 2, 1, 1, 0, 2])}, None, "fractions"),
        ({"labels": ONE_HOT}, [0, 2, 1, 1, 0, 2], "taken as the place of the one"),
        ({"labels": ONE_HOT.astype(bool)}, [0, 2, 1, 1, 0, 2], "taken as the place of the one"),
        ({"labels": ONE_HOT + ONE_HOT[::-1]}, None, "several numbers for each image"),
        ({"labels": np.array(["a", "b", None, "a", "b", "a"], object)}, None, "of objects"),
        ({"species": np.array([0, 1, 0, 1, 0, 1])}, None, "'species' may be such; --labels NAME takes one"),
        ({"category": np.array([0.0, 2, 1, 1, 0, 2])}, None, "'category' may be such; --labels NAME takes one"),
        ({"category": ONE_HOT}, None, "'category' may be such; --labels NAME takes one"),
        ({"category": np.arange(5)}, None, "'category' (5,) is not taken for labels: there are 6 images"),
        ({"category": ONE_HOT / 2}, None, "several numbers for each image"),
        ({"y": np.array([0, 1] * 3), "age": np.linspace(0, 1, 6)}, [0, 1] * 3, ""),
        ({"id": np.arange(6)}, None, ""),
        ({"y": np.array([0, 1] * 3), "target": np.array([1, 0] * 3)}, [0, 1] * 3, "labels are 'y'; it has 'target' too"),
        ({"y": np.array([0, 1] * 3), "masks": X[..., 0]}, [0, 1] * 3, "'masks' (6, 8, 8) uint8 may hold images too"),
        ({"y_test": np.array([0, 1] * 3)}, None, "there are no images of its part"),
    ],
)
def test_arrays_that_look_like_labels(tmp_path: Path, arrays: dict[str, Any], labels: list[int] | None, words: str) -> None:
    np.savez(tmp_path / "x.npz", images=X, **arrays)
    source = open_source(str(tmp_path / "x.npz"))
    assert (source.labels.values.tolist() if source.labels else None) == labels
    assert words in "".join(source.notes) and len(source.notes) == bool(words)


def test_files_beside_a_sets_own_are_said(tmp_path: Path) -> None:
    (parquet, arrow), members = tables_of(tmp_path, {"image": [png(i) for i in range(4)]}), {f"{i}.png": png(i) for i in range(4)}
    np.savez(tmp_path / "x.npz", images=X)
    for own in (parquet, arrow, tmp_path / "x.npz", shard(tmp_path / "x.tar", members)):
        folder = tmp_path / own.suffix[1:]
        folder.mkdir()
        own.rename(folder / own.name)
        for name in ("y.tar.gz", "README.md", "_SUCCESS"):
            (folder / name).write_bytes(b"x")
        (said,) = open_source(str(folder)).notes
        assert said.startswith("1 file left out: .tar.gz 1 (y.tar.gz), archives")
        assert open_source(str(folder / own.name)).notes == ()


@pytest.mark.parametrize(
    "ending, tell", [("json", '{{"label": {}.0}}'), ("json", '{{"label": {}}}'), ("cls", "{}.0"), ("cls", "{}")]
)
def test_whole_numbers_written_as_floats_are_labels_of_a_shard(tmp_path: Path, ending: str, tell: str) -> None:
    members = {f"{i}.png": png(i) for i in range(4)} | {f"{i}.{ending}": tell.format(i % 2).encode() for i in range(4)}
    source = open_source(str(shard(tmp_path / "x.tar", members)))
    assert source.labels is not None and source.labels.classes == ("0", "1") and source.labels.values.tolist() == [0, 1, 0, 1]


def test_files_of_a_shard_that_are_called_like_labels_are_counted(tmp_path: Path) -> None:
    members = {f"{i}.png": png(i) for i in range(2)} | {f"{i}.{k}": b"1" for i in range(2) for k in ("label", "cls2", "txt")}
    (said,) = open_source(str(shard(tmp_path / "x.tar", members))).notes
    assert said.startswith("no labels are found in files beside images (.cls2 2, .label 2, .txt 2): a label is what")
    (said,) = open_source(str(shard(tmp_path / "y.tar", members | {f"{i}.cls": b"%d" % i for i in range(2)}))).notes
    assert said.startswith("no labels are found in further files beside images (.cls2 2, .label 2): ")


def test_a_shard_or_table_that_names_no_part_beside_others_that_do_is_said(tmp_path: Path) -> None:
    (table, arrow) = tables_of(tmp_path, {"image": [png(i) for i in range(4)]})
    tar = shard(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(4)})
    for own in (table, arrow, tar):
        for name in ("train-0", "test-0", "extra-0"):
            (tmp_path / own.suffix[1:]).mkdir(exist_ok=True)
            (tmp_path / own.suffix[1:] / f"{name}{own.suffix}").write_bytes(own.read_bytes())
        source = open_source(str(tmp_path / own.suffix[1:]))
        assert source.notes == (f"4 images of extra-0{own.suffix} count as train: the name tells no part, beside others that do",)
        assert source.held_out is not None and source.held_out.sum() == 4


@pytest.mark.parametrize("labels", [np.array([0.0, 2, 1, 1, 0, 2]), ONE_HOT, np.array([0, 2, 1, 1, 0, 2])])
def test_labels_of_any_name_are_taken_where_asked_for_and_have_their_names(tmp_path: Path, labels: Any) -> None:
    np.savez(tmp_path / "x.npz", X, labels)
    assert open_source(str(tmp_path / "x.npz")).notes == ("no labels are taken: 'arr_1' may be such; --labels NAME takes one",)
    found = open_source(str(tmp_path / "x.npz"), "arr_1").labels
    assert found is not None and found.values.tolist() == [0, 2, 1, 1, 0, 2]
    np.savez(tmp_path / "y.npz", images=X, labels=labels, class_names=np.array(["cat", "dog", "eel"]))
    found = open_source(str(tmp_path / "y.npz")).labels
    assert found is not None and found.classes == ("cat", "dog", "eel") and found.values.tolist() == [0, 2, 1, 1, 0, 2]


def test_what_is_asked_for_as_labels_and_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=X, category=np.arange(5), soft=ONE_HOT / 2)
    with pytest.raises(UserError, match=r"'category' \(5,\) is not taken for labels: there are 6 images"):
        open_source(str(tmp_path / "x.npz"), "category")
    with pytest.raises(UserError, match=r"'soft' .* several numbers for each image"):
        open_source(str(tmp_path / "x.npz"), "soft")
    columns = {"image": [png(i) for i in range(4)], "hot": [[0, 1]] * 4, "part": [0.5] * 4, "whole": [0.0, 1.0, 0.0, 1.0]}
    for path in tables_of(tmp_path, columns):
        with pytest.raises(UserError, match="column 'hot' is not taken for labels, being a list in each row"):
            open_source(str(path), "hot")
        with pytest.raises(UserError, match="column 'part' is not taken for labels, as it holds numbers with fractions"):
            open_source(str(path), "part")
        found = open_source(str(path), "whole").labels
        assert found is not None and found.values.tolist() == [0, 1, 0, 1]


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def a_cifar(root: Path) -> None:
    root.mkdir(parents=True)
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (root / name).write_bytes(pickle.dumps(batch, 2))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a", b"b"]}, 2))
    (root / "readme.html").write_text("x")


def a_cifar100(root: Path) -> None:
    root.mkdir(parents=True)
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1], b"coarse_labels": [0, 0]}
    for name in ("train", "test"):
        (root / name).write_bytes(pickle.dumps(batch, 2))
    (root / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b"], b"coarse_label_names": [b"c"]}, 2))


def a_mnist(root: Path) -> None:
    root.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", np.zeros((3, 8, 8), np.uint8)), ("labels-idx1", np.arange(3, dtype=np.uint8))):
            (root / f"{part}-{name}-ubyte").write_bytes(idx(array))
            (root / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))  # as it came


def a_eurosat(root: Path) -> None:
    for name in EUROSAT:
        put(root / name / f"{name}_1.jpg")


def a_food101(root: Path) -> None:
    for i in range(2):
        put(root / "images" / "pie" / f"{i}.jpg")
    (root / "meta").mkdir()
    for i, part in enumerate(("train", "test")):
        (root / "meta" / f"{part}.txt").write_text(f"pie/{i}\n")


def a_sun397(root: Path) -> None:
    for i in range(4):
        put(root / "a" / "abbey" / f"sun_{i}.jpg")


def an_imagenet(root: Path) -> None:
    for part in ("train", "val"):
        for name in ("n00000001", "n00000002"):
            put(root / part / name / f"{part}.JPEG")


def a_linked_imagenet(root: Path) -> None:
    """Its folders are links to a place that lies below the same root."""
    an_imagenet(root / "at")
    for part in ("train", "val"):
        os.symlink(root / "at" / part, root / part)


def a_clevr(root: Path) -> None:
    write(root, 10, 16, 0)


def a_pack(root: Path) -> None:
    np.savez(root.parent / "x.npz", images=X)
    jepakit.pack(root.parent / "x.npz", root)


@pytest.mark.parametrize(
    "made",
    [a_cifar, a_cifar100, a_mnist, a_eurosat, a_food101, a_sun397, an_imagenet, a_linked_imagenet, a_clevr, a_pack],
)
def test_every_layout_says_what_lies_beside_it_and_nothing_of_its_own(tmp_path: Path, made: Callable[[Path], None]) -> None:
    root = tmp_path / "set"
    made(root)
    before = open_source(str(root))
    assert "left out" not in " ".join(before.notes) and "not read" not in " ".join(before.notes)
    for i in range(2):
        put(root / f"extra{i}.png", kind="PNG")
    put(root / "more" / "of" / "them.tiff", kind="TIFF")
    (root / "x.heic").write_bytes(HEADS["heic"])
    after = open_source(str(root))
    assert [after.title(i) for i in range(len(after))] == [before.title(i) for i in range(len(before))]
    assert {*before.notes} < {*after.notes} and len(after.notes) == len(before.notes) + 2
    words = "3 files left out: .png 2, .tiff 1 (extra0.png, more/of/them.tiff, ...), images beside the set's own"
    assert note_of(after.notes, words) and note_of(after.notes, "1 file left out: .heic 1 (x.heic), images of formats")


def test_images_beside_a_saved_set_are_said_and_beside_tables_they_are_the_set(tmp_path: Path) -> None:
    (parquet, arrow), rows = tables_of(tmp_path, {"image": [png(i) for i in range(4)]}), 4
    np.savez(tmp_path / "x.npz", images=X)
    for own in (parquet, arrow, tmp_path / "x.npz"):
        folder = tmp_path / own.suffix[1:]
        folder.mkdir()
        own.rename(folder / own.name)
        put(folder / "extra.png", kind="PNG")
        state = own == arrow
        if state:
            (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
        source = open_source(str(folder))
        (said,) = source.notes
        assert len(source) == (rows if state else 1)
        left = ".png 1 (extra.png), images beside the set's own" if state else f"{own.suffix} 1 ({own.name}), which may hold"
        assert said.startswith(f"1 file left out: {left}")
