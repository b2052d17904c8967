"""`jepakit data check`: a folder with known contents gives exactly what is in it, and says what a pretraining would say."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import jepakit
from jepakit import cli
from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import read_image
from jepakit.data.formats import pack as packing
from jepakit.data.formats.pack import pack
from jepakit.data.formats.pack_format import INDEX
from jepakit.data.sources import ArraySource, Blocks, Labels, Source
from jepakit.planning.check import check
from jepakit.planning.check_results import Checked, check_table

ORIENTATION = 0x0112
FITS = ["optim.batch_size=4", "images.max_bad=0.2"]  # of the set below, 2 of 14 are broken


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save(path: Path, width: int, height: int, seed: int, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 4, seed=seed), "RGBA").convert(mode).save(path, **options)
    return path


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve readable images of which four are copies, and two broken ones; train and test, cat and dog."""
    root = tmp_path_factory.mktemp("known") / "photos"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save(root / "train/cat/0.jpg", 100, 80, 0)
    save(root / "train/cat/1.jpg", 100, 70, 1, exif=exif)  # shown as 70 x 100
    save(root / "train/cat/2.jpg", 120, 90, 2, "L")
    save(root / "train/cat/3.jpg", 90, 90, 3, "CMYK")
    save(root / "train/dog/0.png", 70, 300, 4, "RGBA")  # more than three times as high as wide
    save(root / "train/dog/1.png", 64, 64, 5, "P")
    Image.fromarray(noise(80, 80, seed=6, dtype=np.uint16)).save(root / "train/dog/2.png")
    save(root / "train/dog/3.png", 40, 50, 7)  # small
    save(root / "test/dog/0.webp", 200, 100, 8, lossless=True)
    save(root / "test/cat/0.bmp", 66, 65, 9)
    original = (root / "train/cat/0.jpg").read_bytes()
    (root / "train/dog/9-copy.jpg").write_bytes(original)
    (root / "test/cat/copy.jpg").write_bytes(original)  # a leak
    (root / "test/cat/cut\x1b[2J.png").write_bytes((root / "train/dog/1.png").read_bytes()[:100])
    (root / "test/dog/empty.jpg").write_bytes(b"")
    return root


def test_a_known_folder_gives_exactly_what_is_in_it(known: Path) -> None:
    found = check(known, set=FITS, threads=3)
    assert (found.samples, found.turned, found.altered) == (14, 1, ())
    assert found.formats == {"JPEG": 6, "PNG": 4, "BMP": 1, "WEBP": 1}
    assert found.modes == {
        "RGB as 3 x uint8": 7,
        "CMYK as 3 x uint8": 1,
        "I;16 as 1 x uint16": 1,
        "L as 3 x uint8": 1,
        "P as 3 x uint8": 1,
        "RGBA as 3 x uint8": 1,
    }
    assert found.sizes == {"smallest": (40, 50), "median": (100, 80), "largest": (70, 300)}
    # 40 64 65 70 70 80 80 80 80 90 90 100
    assert found.short_sides == {"0%": 40, "5%": 40, "25%": 65, "50%": 80, "75%": 80, "95%": 100, "100%": 100}
    titles = ("test/cat/copy.jpg", "train/cat/0.jpg", "train/dog/9-copy.jpg")
    assert asdict(found.duplicates) == {"groups": 1, "copies": 2, "largest": ((3, titles),), "leaking_groups": 1, "leaked": 1}
    assert found.labels is not None and asdict(found.labels) == {
        "name": "folder",
        "classes": 2,
        "smallest": ("cat", 7),
        "largest": ("cat", 7),
        "unlabelled": 0,
        "test": 5,
        "kind": "class",
        "span": None,
        "each": ({"name": "cat", "train": 4, "test": 3, "unknown": 0}, {"name": "dog", "train": 5, "test": 2, "unknown": 0}),
        "quantiles": {},
        "groups": None,
    }
    assert [title for title, _ in found.bad] == ["test/cat/cut\x1b[2J.png", "test/dog/empty.jpg"]
    assert found.bad[1][1] == "empty file" and found.bad[0][1]
    assert asdict(found.fit) == {
        "recipe": "small",
        "size": (64, 64),
        "channels": 3,
        "batch_size": 4,
        "max_bad": 0.2,
        "steps": 2,  # of the nine images in train/
        "left_over": 1,
        "smaller": 1,
        "elongated": 1,
        "longest": 4.29,
        "other_bands": {},
    }
    assert found.stops == () and found.verdict == "fine for recipe small: 12 images, 2 steps an epoch"


def test_the_json_is_the_python_value_and_threads_change_nothing(known: Path, tmp_path: Path) -> None:
    found = [check(known, json=tmp_path / f"{threads}.json", threads=threads, set=FITS) for threads in (1, 4)]
    assert found[0] == found[1] == jepakit.check(str(known), set=FITS)
    for threads in (1, 4):
        assert json.loads((tmp_path / f"{threads}.json").read_text()) == json.loads(json.dumps(asdict(found[0])))


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "check", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_table_is_aligned_narrow_and_ends_with_the_verdict(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said([str(known), *FITS], capsys)
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 100 and "\x1b" not in out
    assert lines[-1].split(None, 1) == ["verdict", "fine for recipe small: 12 images, 2 steps an epoch"]
    assert all(re.match(r"(\S.{0,16}| {17}) \S", line) for line in lines), out
    for words in ("JPEG: 6, PNG: 4, BMP: 1, WEBP: 1", "smallest 40x50, median 100x80", "3 x test/cat/copy.jpg, train/cat/0.jpg"):
        assert words in out
    assert "cut\\x1b[2J.png" in out and "empty.jpg: empty file" in out and "1 test image in training" in " ".join(out.split())


# ---- exit codes: 1 where a pretraining would stop, as it then does


def settled(data: Path | str, tmp_path: Path, *words: str, recipe: str | None = None) -> tuple[Checked, str]:
    """What check says, and how a pretraining ends ('' if it does not stop)."""
    shape = "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
    tiny = [*shape.split(), "images.size=16", "masking.min_keep=2", "optim.epochs=1", "run.threads=1", *words]
    stop = ""
    try:
        jepakit.pretrain(data, tmp_path / "run", recipe, method="ijepa", overwrite=True, set=tiny)
    except UserError as error:
        stop = str(error)
    return check(data, recipe, set=[*tiny, "method=ijepa"]), stop


@pytest.mark.parametrize("broken, max_bad, stops", [(1, 0.0, False), (3, 0.1, True), (3, 0.15, False), (2, 0.01, True)])
def test_too_many_broken_images_stop_check_and_pretraining_alike(
    tmp_path: Path, broken: int, max_bad: float, stops: bool
) -> None:
    for i in range(20):
        path = save(tmp_path / f"photos/{i:02}.png", 20, 20, i)
        if 0 < i <= broken:
            path.write_bytes(b"no image")
    found, stop = settled(tmp_path / "photos", tmp_path, "optim.batch_size=4", f"images.max_bad={max_bad}")
    assert bool(found.stops) is bool(stop) is stops
    if stops:
        assert f"{broken} of 20" in found.verdict and f"{broken} of 20" in stop
        share = re.search(r"images\.max_bad=([\d.]+)\Z", found.verdict)
        assert share is not None
        again, stop = settled(tmp_path / "photos", tmp_path, "optim.batch_size=4", f"images.max_bad={share[1]}")
        assert not again.stops and not stop


def test_a_batch_larger_than_the_set_stops_with_one_that_works(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"photos/{i}.png", 20, 20, i)
    found, stop = settled(tmp_path / "photos", tmp_path, "optim.batch_size=8")
    assert "set optim.batch_size=4 or less" in stop and "set optim.batch_size=4 or less" in found.verdict
    found, stop = settled(tmp_path / "photos", tmp_path, "optim.batch_size=4")
    assert not stop and not found.stops and (found.fit.steps, found.fit.left_over) == (1, 1)


def test_other_bands_stop_with_the_number_to_set(tmp_path: Path) -> None:
    (tmp_path / "bands").mkdir()
    for i in range(6):
        pixels = noise(20, 20, 13, seed=i, dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"bands/{i}.tif", pixels, photometric="minisblack", planarconfig="contig")
    found, stop = settled(tmp_path / "bands", tmp_path, "optim.batch_size=4", recipe="small")
    assert "set images.channels=13" in stop and "set images.channels=13" in found.verdict
    assert found.fit.other_bands == {"13": 6} and found.modes == {"13 x uint16": 6} and found.formats == {"TIFF": 6}
    for words, recipe in (["images.channels=13"], "small"), ([], None):  # without a recipe they are chosen
        found, stop = settled(tmp_path / "bands", tmp_path, "optim.batch_size=4", *words, recipe=recipe)
        assert not stop and not found.stops and (found.fit.channels, found.fit.other_bands) == (13, {})


def test_exit_codes(known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said([str(known), "--json", str(tmp_path / "found.json")], capsys)
    assert code == 1 and "verdict           a pretraining with recipe small would stop" in out
    assert json.loads((tmp_path / "found.json").read_text())["stops"]
    for mistake in (
        [str(tmp_path / "gone")],
        [str(known), "--recipe", "smal"],
        [str(known), "--labels", "kind"],
        [str(known), "images.siz=3"],
        [str(known), "images.size=65"],
        [str(known), "--threads", "0"],
        [str(known), "--json", str(tmp_path / "no/such.json"), *FITS],
        [],
    ):
        code, out, err = said(mistake, capsys)
        assert code == 2 and not out
        assert [line for line in err.splitlines() if not line.startswith("checking")][-1].startswith("error: "), err


def test_a_recipe_and_settings_are_those_of_pretrain(known: Path) -> None:
    assert check(known, "demo").fit.size == (32, 32) and check(known, set=["recipe=demo"]).fit.recipe == "demo"
    fit = check(known, "ijepa_vitb16", set=["optim.batch_size=8", "images.size=[96,112]", "masking.compat=none"]).fit
    assert (fit.recipe, fit.size, fit.batch_size) == ("ijepa_vitb16", (112, 96), 8)
    assert fit.smaller == 11  # all but 200 x 100


def test_images_smaller_than_the_settings_are_said_with_a_size_that_none_is(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / f"{i}.png", 45 + i, 60, i)
    found = check(tmp_path, "small", set=["optim.batch_size=4"])
    assert found.fit.smaller == 8 and not found.stops and found.verdict.endswith("set images.size=40 for none to be")
    assert check(tmp_path, set=["optim.batch_size=4", "images.size=40"]).fit.smaller == 0


# ---- what is looked at


def test_a_set_of_pixels(tmp_path: Path) -> None:
    found = check("emoji", "demo")
    assert found.formats == {"pixels": 6384} and found.modes == {"3 x uint8": 6384} and found.bad == ()
    assert found.sizes == dict.fromkeys(("smallest", "median", "largest"), (32, 32))
    assert found.labels is not None and found.labels.classes == 9 and not found.stops


def test_what_is_not_labelled_is_counted_and_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(8, 4, 4, 3)
    images[5], images[7] = images[1], images[2]  # 5 is a test image without a part; 7 one with
    values, test = np.array([0, 0, 1, 1, 1, -1, 0, 1]), np.arange(8) >= 5
    source = ArraySource("set", images, Labels("class", ("a", "b", "c"), values, test))
    monkeypatch.setattr("jepakit.config.choice.open_source", lambda data, labels, **_: source)
    found = check("set", set=["optim.batch_size=4"])
    assert (found.duplicates.groups, found.duplicates.leaking_groups, found.duplicates.leaked) == (2, 1, 1)
    assert found.labels is not None and (found.labels.unlabelled, found.labels.test) == (1, 2)
    assert (found.labels.smallest, found.labels.largest) == (("c", 0), ("b", 4))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_duplicates_are_counted_as_plain_python_counts_them(kinds: list[int]) -> None:
    source = ArraySource("set", noise(6, 3, 5, 3)[kinds], None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jepakit.config.choice.open_source", lambda data, labels, **_: source)
        found = check("set", threads=1).duplicates
    groups = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in set(kinds)}
    double = sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group[0]))
    assert (found.groups, found.copies) == (len(double), sum(len(group) - 1 for group in double))
    assert found.largest == tuple((len(group), tuple(map(str, group[:3]))) for group in double[:5])


def test_alike_bytes_of_another_shape_or_depth_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shapes(ArraySource):
        def raw(self, index: int) -> NDArray[Any]:
            return [np.zeros((4, 6, 1), np.uint8), np.zeros((6, 4, 1), np.uint8), np.zeros((4, 3, 1), np.uint16)][index]

    source = Shapes("set", noise(3, 1, 1, 1), None)
    monkeypatch.setattr("jepakit.config.choice.open_source", lambda data, labels, **_: source)
    assert check("set").duplicates.groups == 0


def test_a_live_photos_second_picture_and_a_broken_exif_are_jpegs_all_the_same(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(20, 30, 3, seed=i)) for i in range(2)]
    frames[0].save(tmp_path / "live.jpg", "MPO", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    found = check(tmp_path)
    assert found.formats == {"JPEG": 2} and found.turned == 0 and not found.bad


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", [1, 2, 3, 6, 8])
def test_turned_is_what_training_turns(tmp_path: Path, kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    smooth = Image.fromarray(np.add.outer(np.arange(20) * 6, np.arange(30) * 4).astype(np.uint8))
    smooth.save(tmp_path / "a.png", kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    shown = read_image(tmp_path / "a.png")
    moved = shown.shape != (20, 30, 3) or np.abs(shown - np.asarray(smooth.convert("RGB")).astype(float)).mean() > 10
    assert check(tmp_path).turned == int(moved) == int(turn > 1)


def test_the_limit_of_pixels_is_that_of_the_settings_from_the_first_look_on(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no readable image .*images.max_pixels=100:"):
        check(known, set=["images.max_pixels=100"])
    monkeypatch.setattr("jepakit.data.opening.require_readable.__defaults__", (100,))
    monkeypatch.setattr(Source.read, "__defaults__", (100,))  # as if no image had fewer than what is usual
    assert len(check(known, set=[*FITS, "images.max_pixels=30000"]).bad) == 2


@pytest.mark.parametrize("blocks", [None, Blocks(np.array([0, 30, 60]), at_once=1, sequential=True)])
def test_only_a_source_of_blocks_is_told_what_comes(monkeypatch: pytest.MonkeyPatch, blocks: Blocks | None) -> None:
    told, waited = [], []

    class Far(ArraySource):
        def prefetch(self, ids: NDArray[np.int64]) -> None:
            told.extend(ids.tolist())

        def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
            waited.extend(ids.tolist())

    source = Far("far", noise(60, 4, 4, 3), None)
    source.blocks = blocks
    monkeypatch.setattr("jepakit.config.choice.open_source", lambda data, labels, **_: source)
    check("far", "small", set=["optim.batch_size=4"])
    assert waited == ([] if blocks is None else list(range(60))) and {*told} == {*waited}


def test_an_image_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = Event()

    class Hangs(ArraySource):
        def raw(self, index: int) -> NDArray[Any]:
            if index == 3:
                never.wait(30)
            pixels: NDArray[Any] = super().raw(index)
            return pixels

    monkeypatch.setattr("jepakit.config.choice.open_source", lambda data, labels, **_: Hangs("set", noise(9, 4, 4, 3), None))
    try:
        found = check("set", threads=2, set=["optim.batch_size=4", "run.read_timeout_seconds=0.3"])
        assert found.bad == (("3", "no answer within 0.3 s"),) and not found.stops
    finally:
        never.set()


# ---- packs


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packing, "_PART", 5000)
    for i in range(12):
        save(tmp_path / f"photos/{i:02}.png", 33, 29, i)
    return pack(tmp_path / "photos", tmp_path / "packed")


def test_a_whole_pack_is_fine(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said([str(packed), "optim.batch_size=4"], capsys)
    assert code == 0 and "pixels: 12" in out and "3 x uint8: 12" in out and "altered" not in out


def test_a_flipped_byte_is_found_and_its_image_and_file_are_named(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packed / "images-00002.bin"
    offset = int(np.fromfile(packed / "index-00002.bin", INDEX)["offset"][1])
    data = bytearray(path.read_bytes())
    data[offset + 7] ^= 4
    path.write_bytes(data)
    found = check(packed, set=["optim.batch_size=4"])
    assert found.bad == (("05.png", "not as it was packed (crc32)"),) and found.altered == ("images-00002.bin",)
    code, out, _ = said([str(packed), "optim.batch_size=4"], capsys)
    assert code == 1 and "images-00002.bin has changed since it was packed" in " ".join(out.split())


def test_a_flipped_byte_between_images_is_found_too(packed: Path) -> None:
    index = np.fromfile(packed / "index-00000.bin", INDEX)[0]
    end = int(index["offset"]) + int(index["height"]) * int(index["width"]) * 3
    path = packed / "images-00000.bin"
    data = bytearray(path.read_bytes())
    assert data[end] == 0
    data[end] = 1
    path.write_bytes(data)
    found = check(packed, set=["optim.batch_size=4"])
    assert found.bad == () and found.altered == ("images-00000.bin",) and found.stops


# ---- the table


def test_a_long_list_is_cut_and_says_so(tmp_path: Path) -> None:
    save(tmp_path / "good.png", 20, 20, 0)
    for i in range(25):
        (tmp_path / f"{'x' * 120}{i:02}.png").write_bytes(b"no image")
    found = check(tmp_path)
    table = check_table(found)
    assert len(found.bad) == 25 and table.count("xxx.png") + table.count(".png: ") >= 20
    assert "and 5 more: --json FILE names all" in table and max(map(len, table.splitlines())) <= 100


def test_help_of_both_verbs_needs_no_torch() -> None:
    code = (
        "import sys\nfrom jepakit import cli\n"
        "for verb in ('check', 'pack'):\n"
        "    try: cli.main(['data', verb, '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "SRC" in done.stdout, done.stderr
