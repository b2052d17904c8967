"""The packed cache: what is read is what was packed, exactly; kills, threads and full disks change nothing."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
from jepakit.data.crops import resize
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import pack as packing
from jepakit.data.formats import pack_format as packfiles
from jepakit.data.formats.pack_format import INDEX, Texts
from jepakit.data.formats.pack_shrink import in_order, shrunk
from jepakit.data.formats.pack_source import PackedSource
from jepakit.data.opening import open_source
from jepakit.data.sets.emoji import EmojiSource
from jepakit.data.sources import ArraySource, Blocks, Labels, Source, fingerprint

SIZE = 16
SHAPE = "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
TINY = f"{SHAPE} images.size=16 masking.min_keep=2 optim.batch_size=8 optim.steps=3 run.threads=1 run.log_every_steps=1".split()


def pack(data: Path | str, out: Path, size: int = 256, **options: Any) -> Path:
    """As the verb, but for sets of which many are broken."""
    return packing.pack(data, out, size, **{"max_bad": 0.3, **options})


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def photos(root: Path, count: int = 24, *, broken: tuple[int, ...] = (), seed: int = 0) -> Path:
    """Two classes of images of many sizes, some smaller than SIZE."""
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(10 + 3 * i, 40 - i, 3, seed=seed + i)).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:60])
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every byte of a folder, but for the empty lock."""
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if path.name != ".lock"}


def opened(root: Path) -> PackedSource:
    source = open_source(str(root))
    assert isinstance(source, PackedSource)
    return source


def labels_of(source: Source) -> Labels:
    assert source.labels is not None
    return source.labels


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_PART", 3000)  # a few images


@pytest.fixture
def straight(tmp_path: Path, small_files: None) -> dict[str, bytes]:
    """What packing `photos` leaves when nothing disturbs it."""
    photos(tmp_path / "photos", broken=(5, 23))
    return contents(pack(tmp_path / "photos", tmp_path / "straight", SIZE))


# ---- what is read is what was packed


def test_a_pack_holds_each_original_shrunk_by_the_resize_of_training(tmp_path: Path, small_files: None) -> None:
    source = open_source(str(photos(tmp_path / "photos")))
    found = opened(pack(tmp_path / "photos", tmp_path / "packed", SIZE))
    assert len(found) == len(source) == 24 and len(found.manifest.parts) > 3
    for i in range(24):
        pixels, have = source.read(i), found.read(i)
        height, width = pixels.shape[:2]
        if min(height, width) <= SIZE:  # never enlarged: as it was
            np.testing.assert_array_equal(have, pixels)
            continue
        assert min(have.shape[:2]) == SIZE and abs(max(have.shape[:2]) - max(height, width) * SIZE / min(height, width)) <= 0.5
        np.testing.assert_array_equal(have, resize(pixels, *have.shape[:2]).permute(1, 2, 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 5), st.integers(1, 64), st.sampled_from([np.uint8, np.uint16]))
def test_shrinking_keeps_depth_aspect_and_range_and_never_enlarges(h: int, w: int, bands: int, size: int, dtype: Any) -> None:
    pixels = noise(h, w, bands, seed=h + w, dtype=dtype)
    small = shrunk(pixels, size)
    assert small.dtype == dtype and small.shape[2] == bands and small.flags.c_contiguous
    assert min(small.shape[:2]) == min(size, h, w)
    scale = min(1.0, size / min(h, w))
    assert abs(small.shape[0] - h * scale) <= 0.5 and abs(small.shape[1] - w * scale) <= 0.5
    assert (small.min((0, 1)) >= pixels.min((0, 1))).all() and (small.max((0, 1)) <= pixels.max((0, 1))).all()
    if dtype == np.uint16:  # rounded, nothing else: the same image in floats is at most half a level away
        floats = shrunk(pixels.astype(np.float32), size)
        assert floats.dtype == np.float32 and np.abs(small - floats).max() <= 0.5


def test_deep_images_and_many_bands_keep_their_depth(tmp_path: Path) -> None:
    bands = {
        "a": noise(20, 30, 13, dtype=np.uint16),
        "b": noise(40, 30, 2, seed=1).astype(np.float32) / 7,
        "c": noise(12, 12, 5, seed=2),
        "d": noise(33, 21, 1, seed=3, dtype=np.uint16),
    }
    (tmp_path / "deep").mkdir()
    for name, pixels in bands.items():
        contiguous = {"planarconfig": "contig"} if pixels.shape[2] > 1 else {}
        tifffile.imwrite(tmp_path / f"deep/{name}.tif", pixels.squeeze(), photometric="minisblack", **contiguous)
    found = opened(pack(tmp_path / "deep", tmp_path / "packed", SIZE))
    for i, pixels in enumerate(bands.values()):
        assert found.read(i).dtype == pixels.dtype
        np.testing.assert_array_equal(found.read(i), shrunk(pixels, SIZE))


def test_labels_split_classes_clusters_and_titles_are_those_of_the_source(tmp_path: Path) -> None:
    source, found = EmojiSource(), opened(pack("emoji", tmp_path / "packed", 32))
    ours, theirs = labels_of(found), labels_of(source)
    for name in ("values", "test", "groups"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.name, ours.classes, ours.whole_image) == (theirs.name, theirs.classes, theirs.whole_image)
    assert fingerprint(found) == fingerprint(source) and len(found) == len(source)
    assert all(found.title(i) == source.title(i) and np.array_equal(found.read(i), source.read(i)) for i in range(0, 6384, 7))
    assert open_source(str(tmp_path / "packed"), "group").labels is not None
    with pytest.raises(UserError, match="'group', not 'grop'; did you mean"):
        open_source(str(tmp_path / "packed"), "grop")


@pytest.mark.parametrize("whole, clusters", [(True, True), (False, False)])
def test_what_labels_say_of_themselves_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, clusters: bool
) -> None:
    source = open_source(str(photos(tmp_path / "photos", 10)))
    group = np.arange(10) // 2 if clusters else None
    classes = ("naïve\n", "b\udcff")  # as a folder's name may be
    values = np.array([0, 1, -1, 1, 0, -1, 1, 0, 0, 1])
    source.labels = Labels("kind", classes, values, np.arange(10) % 3 == 0, group, whole)
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    labels = labels_of(opened(pack("photos", tmp_path / "packed", SIZE)))
    assert labels.classes == classes and labels.whole_image is whole and labels.values.tolist() == values.tolist()
    assert labels.test.tolist() == (np.arange(10) % 3 == 0).tolist()
    assert (labels.groups is None) is (group is None) and (group is None or np.array_equal(labels.groups, group))


def test_a_set_without_labels_has_none_when_packed(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(3):
        Image.fromarray(noise(9, 9, 3, seed=i)).save(tmp_path / f"flat/{i}.png")
    found = opened(pack(tmp_path / "flat", tmp_path / "packed"))
    assert found.labels is None and [found.title(i) for i in range(3)] == ["0.png", "1.png", "2.png"]


def test_bad_images_are_left_out_named_and_the_rest_keep_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(str(photos(tmp_path / "photos", 20, broken=(0, 7, 19))))
    (tmp_path / "photos/a/004.png").rename(tmp_path / "photos/a/004\x1b[2J.png")
    source = open_source(str(tmp_path / "photos"))
    (tmp_path / "photos/a/002.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "jepakit"):
        found = opened(pack(tmp_path / "photos", tmp_path / "packed", SIZE))
    bad = {entry.index: entry for entry in found.manifest.bad}
    assert [entry.title for entry in bad.values()] == ["a/000.png", "a/002.png", "b/007.png", "b/019.png"]
    assert bad[1].reason == "empty file" and all(entry.title in caplog.text for entry in bad.values())
    good = [i for i in range(20) if i not in bad]
    assert [found.title(i) for i in range(len(found))] == [source.title(i) for i in good]
    np.testing.assert_array_equal(labels_of(found).values, labels_of(source).values[good])
    np.testing.assert_array_equal(labels_of(found).test, labels_of(source).test[good])
    assert "\x1b" not in caplog.text and "\x1b" not in (tmp_path / "packed/pack.json").read_text()


def test_too_many_bad_images_stop_and_leave_what_can_be_gone_on_with(
    tmp_path: Path, straight: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "packed"
    with pytest.raises(UserError, match=r"2 of 24 images cannot be read, more than --max-bad 0.01"):
        pack(tmp_path / "photos", out, SIZE, max_bad=0.01)
    assert "images-00002.bin" in contents(out) and "pack.json" not in contents(out)
    assert contents(pack(tmp_path / "photos", out, SIZE, max_bad=2 / 24)) == straight


def test_a_source_that_goes_away_does_not_make_a_pack_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(photos(tmp_path / "photos")))
    whole = contents(packing.pack(tmp_path / "photos", tmp_path / "whole", SIZE))
    real = source.raw

    def away(index: int) -> Any:
        if index > 13:
            raise BadImageError("No such device")
        return real(index)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "open_source", lambda data, labels, **_: source)
        patch.setattr(source, "raw", away)
        with pytest.raises(UserError, match="cannot be read"):
            packing.pack(tmp_path / "photos", tmp_path / "packed", SIZE)
    assert contents(packing.pack(tmp_path / "photos", tmp_path / "packed", SIZE)) == whole


def test_an_image_that_was_bad_and_is_mended_asks_for_another_pack(tmp_path: Path, straight: dict[str, bytes]) -> None:
    shutil.copy(tmp_path / "photos/a/000.png", tmp_path / "photos/b/005.png")
    with pytest.raises(UserError, match=r"lacks b/005.png, which can be read now: .*--overwrite"):
        pack(tmp_path / "photos", tmp_path / "straight", SIZE)
    assert contents(tmp_path / "straight") == straight


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_texts_are_kept_whatever_they_hold(texts: list[str]) -> None:
    found = Texts.parsed(Texts.of(texts).stored, len(texts))
    assert found is not None and [found[i] for i in range(len(found))] == texts


def test_pixels_are_views_of_the_map_that_no_file_is_kept_open_for_and_nothing_writes_to(tmp_path: Path) -> None:
    root = pack("emoji", tmp_path / "packed")
    before = len(os.listdir("/proc/self/fd"))
    found, stored = opened(root), contents(root)
    assert len(os.listdir("/proc/self/fd")) == before
    pixels = found.raw(3)
    assert not pixels.flags.owndata and pixels.flags.writeable and pixels.flags.aligned  # torch warns of read-only arrays
    pixels[:] = 0
    assert contents(root) == stored


def test_a_run_from_a_pack_learns_what_a_run_from_the_files_does(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 16)
    runs = [tmp_path / "photos", pack(tmp_path / "photos", tmp_path / "packed", 64)]  # none is shrunk: the same pixels
    rows = []
    for i, data in enumerate(runs):
        run = jepakit.pretrain(data, tmp_path / f"run{i}", method="ijepa", set=TINY)
        assert run.finished
        rows.append([(row["step"], row["loss"], row["grad_norm"]) for row in run.metrics() if "loss" in row])
    assert rows[0] == rows[1] and len(rows[0]) == 3


# ---- the same bytes


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path, straight: dict[str, bytes], threads: int) -> None:
    assert contents(pack(tmp_path / "photos", tmp_path / "again", SIZE, threads=threads)) == straight


def test_stopped_at_any_point_it_goes_on_to_the_same_bytes(
    tmp_path: Path, straight: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop before or after each file is on the disk, again and again: each life gets as far as one more file."""
    out, left, lives = tmp_path / "stopped", 0, 0
    real: Callable[[Any], None] = packfiles._sync

    def stopping(file: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0 and lives % 2:
            raise KeyboardInterrupt
        real(file)
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(packfiles, "_sync", stopping)
    while not (out / "pack.json").is_file():
        lives, left = lives + 1, 1 + lives % 13
        try:
            pack(tmp_path / "photos", out, SIZE, threads=2)
        except KeyboardInterrupt:
            if (out / "unfinished.json").is_file():
                with pytest.raises(UserError, match=r"in part; go on with: jepakit data pack .*photos --size 16 .*--out .*stop"):
                    open_source(str(out))
        assert lives < 200
    left = 10**6
    assert contents(pack(tmp_path / "photos", out, SIZE)) == straight and lives > 5


SCRIPT = """
import sys, time
from jepakit.data.formats import pack, pack_format as packfiles
pack._PART = 3000
write = packfiles.store
def slow(path, content):
    time.sleep(0.05)
    return write(path, content)
packfiles.store = pack.store = slow
pack.pack(sys.argv[1], sys.argv[2], 16, max_bad=0.3)
"""


def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path, straight: dict[str, bytes]) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "photos", out], stderr=subprocess.DEVNULL)
    while not (out / "index-00001.bin").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "pack.json").exists()
    assert contents(pack(tmp_path / "photos", out, SIZE)) == straight


def test_a_full_disk_is_one_sentence_and_packing_goes_on_when_there_is_room(
    tmp_path: Path, straight: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, iter(range(10**6))

    def full(handle: int) -> None:
        if next(calls) == 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*go on with: jepakit data pack") as caught:
        pack(tmp_path / "photos", tmp_path / "full", SIZE)
    assert "\n" not in str(caught.value)
    kept = contents(tmp_path / "full")
    assert "images-00000.bin" in kept and "pack.json" not in kept and not [name for name in kept if name.startswith(".tmp")]
    assert contents(pack(tmp_path / "photos", tmp_path / "full", SIZE)) == straight


def test_what_would_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "photos", 8)
    usage = shutil.disk_usage(tmp_path)._replace(free=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs about .* MB, and its disk has 0.0 MB free"):
        pack(tmp_path / "photos", tmp_path / "packed", SIZE)
    assert not contents(tmp_path / "packed")


def test_a_finished_pack_is_left_as_it_is(tmp_path: Path, straight: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "straight"
    times = {path: path.stat().st_mtime_ns for path in root.iterdir() if path.name != ".lock"}
    with caplog.at_level(logging.INFO, "jepakit"):
        pack(tmp_path / "photos", root, SIZE)
    assert "is packed already (22 images compared): 22 images" in caplog.text
    assert times == {path: path.stat().st_mtime_ns for path in times} and contents(root) == straight


# ---- what is refused


def refused(tmp_path: Path, words: str, data: Path | str | None = None, size: int = SIZE, **options: Any) -> None:
    before = contents(tmp_path / "packed")
    with pytest.raises(UserError, match=words) as caught:
        pack(data or tmp_path / "photos", tmp_path / "packed", size, **options)
    assert "\n" not in str(caught.value) and contents(tmp_path / "packed") == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_pack_is_refused_and_replaced_on_demand(tmp_path: Path, small_files: None, finished: bool) -> None:
    root = pack(photos(tmp_path / "photos"), tmp_path / "packed", SIZE)
    if not finished:
        (root / "pack.json").rename(root / "unfinished.json")
    refused(tmp_path, "another pack .*--size 16.*--overwrite", size=8)
    refused(tmp_path, "another pack", max_pixels=10**6)
    refused(tmp_path, "another pack", data=photos(tmp_path / "more", 25))
    refused(tmp_path, "another pack", data="emoji")
    refused(tmp_path, "packed from other images", data=photos(tmp_path / "alike", seed=100))  # the same names
    fresh = contents(pack(tmp_path / "photos", tmp_path / "fresh", 8))
    assert contents(pack(tmp_path / "photos", root, 8, overwrite=True)) == fresh


def test_changed_labels_make_another_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(photos(tmp_path / "photos", 8)))
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    pack(tmp_path / "photos", tmp_path / "packed", SIZE)
    labels_of(source).values[3] = 1
    refused(tmp_path, "another pack")


@pytest.mark.parametrize("overwrite", [True, False])
def test_nothing_of_anybody_elses_is_touched(tmp_path: Path, overwrite: bool) -> None:
    photos(tmp_path / "photos", 4)
    (tmp_path / "packed").mkdir()
    for name in ("thesis.txt", "images-00000.bin", ".tmp-thesis"):
        (tmp_path / "packed" / name).write_text("precious")
        refused(tmp_path, "holds other files", overwrite=overwrite)
        assert not (tmp_path / "packed/.lock").exists()
        (tmp_path / "packed" / name).unlink()
    (tmp_path / "packed/pack.json").write_text('{"name": "theirs"}')
    refused(tmp_path, "pack.json is no manifest", overwrite=overwrite)
    (tmp_path / "packed/pack.json").unlink()
    pack(tmp_path / "photos", tmp_path / "packed", SIZE)
    (tmp_path / "packed/thesis.txt").write_text("precious")
    refused(tmp_path, "thesis.txt", overwrite=overwrite)


def test_a_pack_is_not_packed_onto_itself(tmp_path: Path) -> None:
    pack(photos(tmp_path / "photos", 4), tmp_path / "packed", SIZE)
    refused(tmp_path, "is what is to be packed", data=tmp_path / "packed", overwrite=True)
    again = opened(pack(tmp_path / "packed", tmp_path / "smaller", 8))
    assert len(again) == 4 and min(again.read(3).shape[:2]) == 8


def test_other_programs_files_of_our_names_do_not_make_a_folder_a_pack(tmp_path: Path) -> None:
    for name in ("pack.json", "unfinished.json"):
        (photos(tmp_path / name, 4) / name).write_text('{"name": "theirs"}')
        assert len(open_source(str(tmp_path / name))) == 4


def test_two_at_a_time_do_not_write_to_one_folder(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 4)
    (tmp_path / "packed").mkdir()
    with (tmp_path / "packed/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(tmp_path, "another process is writing")


def test_a_file_for_a_folder_and_numbers_below_one_are_refused(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 4)
    (tmp_path / "file").write_text("x")
    for words, options in (
        ("--size 0", {"size": 0}),
        ("--threads 0", {"threads": 0}),
        ("is a file; give a new folder", {"out": tmp_path / "file"}),
    ):
        with pytest.raises(UserError, match=words):
            pack(tmp_path / "photos", **{"out": tmp_path / "packed", **options})  # type: ignore[arg-type]


# ---- a pack that is broken


@pytest.mark.parametrize("kind", ["images", "index", "titles", "labels"])
@pytest.mark.parametrize("harm", ["cut", "longer", "gone"])
def test_a_file_that_is_not_as_long_as_promised_is_found_at_the_opening(
    tmp_path: Path, straight: dict[str, bytes], kind: str, harm: str
) -> None:
    path = tmp_path / "straight" / f"{kind}-00001.bin"
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if harm == "cut" else path.read_bytes() + b"x")
    with pytest.raises(UserError, match=f"{kind}-00001.bin (has|is missing)"):
        open_source(str(tmp_path / "straight"))
    with pytest.raises(UserError, match=f"{kind}-00001.bin (has|is missing)"):
        pack(tmp_path / "photos", tmp_path / "straight", SIZE)


@pytest.mark.parametrize("name", ["index-00000.bin", "titles-00001.bin", "labels-00000.bin", "classes.bin"])
def test_a_changed_byte_beside_the_images_is_found_at_the_opening(tmp_path: Path, straight: dict[str, bytes], name: str) -> None:
    data = bytearray(straight[name])
    data[-1] ^= 1
    (tmp_path / "straight" / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} has changed"):
        open_source(str(tmp_path / "straight"))


def forged(root: Path, name: str, content: bytes) -> None:
    """Another file with a manifest that vouches for it."""
    kind, number = name.removesuffix(".bin").split("-")
    manifest = json.loads((root / "pack.json").read_text())
    manifest["parts"][int(number)][kind] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (root / "pack.json").write_text(json.dumps(manifest))
    (root / name).write_bytes(content)


@pytest.mark.parametrize(
    "column, value",
    [
        ("offset", 2**64 - 64),
        ("offset", 64 * 10**6),
        ("offset", 8),
        ("height", 2**32 - 1),
        ("width", 0),
        ("depth", 7),
        ("channels", 65535),
    ],
)
def test_a_record_that_points_outside_of_its_file_is_refused(
    tmp_path: Path, straight: dict[str, bytes], column: str, value: int
) -> None:
    rows = np.frombuffer(straight["index-00001.bin"], INDEX).copy()
    rows[column][-1] = value
    forged(tmp_path / "straight", "index-00001.bin", rows.tobytes())
    with pytest.raises(UserError, match=r"index-00001.bin has records of no image"):
        open_source(str(tmp_path / "straight"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A pack of three images, and its good index."""
    root = tmp_path_factory.mktemp("three")
    pack(photos(root / "photos", 3), root / "packed", SIZE)
    return root / "packed", (root / "packed/index-00000.bin").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_forged_index_reads_outside_of_its_file(three: tuple[Path, bytes], data: st.DataObject) -> None:
    root, index = three
    whole = (root / "images-00000.bin").stat().st_size
    rows = np.frombuffer(index, INDEX).copy()
    sides = st.sampled_from([0, 1, 2, 16, 255, 65535, 2**16, 2**31, 2**32 - 1])
    row = rows[data.draw(st.integers(0, 2))]
    row["offset"] = data.draw(st.sampled_from([0, 64, 128, whole - whole % 64, whole, 2**53, 2**63, 2**64 - 64]))
    row["height"], row["width"] = data.draw(sides), data.draw(sides)
    row["channels"], row["depth"] = data.draw(st.sampled_from([0, 1, 3, 65535])), data.draw(st.integers(0, 3))
    forged(root, "index-00000.bin", rows.tobytes())
    try:
        found = opened(root)
    except UserError:
        return
    for i, (offset, height, width, channels, depth, _) in enumerate(rows.tolist()):
        size = height * width * channels * (1, 2, 4)[depth]
        assert size > 0 and offset + size <= whole
        assert found.read(i).nbytes == len(found.read(i).tobytes()) == size


def test_a_forged_manifest_is_one_sentence(tmp_path: Path, straight: dict[str, bytes]) -> None:
    path = tmp_path / "straight/pack.json"
    good = json.loads(straight["pack.json"])
    forgeries = ["", "[", "[" * 10**5, "null", "{}"]
    for key, value in (("parts", []), ("parts", None), ("samples", "x"), ("labels", {"name": 3}), ("format", 2), ("\x1b[2J", 1)):
        forgeries.append(json.dumps({**good, key: value}))
    part = good["parts"][0]
    for other in ({"count": 0}, {"count": 10**30}, {"count": part["count"] + 1}, {"images": {"bytes": -1, "sha256": ""}}):
        forgeries.append(json.dumps({**good, "parts": [{**part, **other}]}))
    forgeries.append(json.dumps({**good, "labels": {**good["labels"], "classes": 10**18}}))
    forgeries.append(json.dumps({**good, "labels": {**good["labels"], "classes": 0}}))
    for text in forgeries:
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            open_source(str(tmp_path / "straight"))
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


# ---- a pack and its source


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("changed", [0, 1, 11, 22])
def test_any_image_that_changed_in_place_is_found_in_a_small_pack(
    tmp_path: Path, straight: dict[str, bytes], finished: bool, changed: int
) -> None:
    shutil.copytree(tmp_path / "straight", tmp_path / "packed")
    if not finished:
        (tmp_path / "packed/pack.json").rename(tmp_path / "packed/unfinished.json")
    path = tmp_path / "photos" / "ab"[changed % 2] / f"{changed:03}.png"
    Image.fromarray(noise(10 + 3 * changed, 40 - changed, 3, seed=1000)).save(path)
    refused(tmp_path, f"packed from other images: {path.parent.name}/{path.name} has changed")
    path.unlink()
    path.write_bytes(b"no image")
    refused(tmp_path, f"packed from other images: {path.parent.name}/{path.name} cannot be read now")


@pytest.mark.parametrize("parts", [3, 9])
def test_images_of_every_part_of_a_large_pack_are_compared_and_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, parts: int
) -> None:
    images = noise(parts * 10, 8, 8, 3)
    source = ArraySource("set", images, None)
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    monkeypatch.setattr(packing, "_PART", 10 * 192)  # ten images
    monkeypatch.setattr(packing, "COMPARED", 6)
    pack("set", tmp_path / "packed", SIZE)
    with caplog.at_level(logging.INFO, "jepakit"):
        pack("set", tmp_path / "packed", SIZE)
    assert f"({max(6, parts)} images compared)" in caplog.text
    for part in range(parts):
        kept = images.copy()
        images[part * 10 : part * 10 + 10] ^= 1  # one part of the source is another
        refused(tmp_path, "packed from other images", data="set")
        images[:] = kept


def test_comparing_reads_few_blocks_of_a_source_whose_blocks_are_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = set[int]()

    class Far(ArraySource):
        blocks = Blocks(np.arange(0, 121, 10), at_once=2, sequential=True)

        def raw(self, index: int) -> Any:
            read.add(index // 10)
            return super().raw(index)

    source = Far("far", noise(120, 8, 8, 3), None)
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    monkeypatch.setattr(packing, "_PART", 10 * 192)
    pack("far", tmp_path / "packed", SIZE)
    assert read == set(range(12))
    read.clear()
    pack("far", tmp_path / "packed", SIZE)
    assert 0 < len(read) <= 5
    source.images[0] ^= 1
    refused(tmp_path, "packed from other images", data="far")


def test_a_source_of_blocks_is_told_what_comes_and_waited_for_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, waited = list[set[int]](), set[int]()

    class Far(ArraySource):
        blocks: Blocks | None = Blocks(np.arange(0, 121, 40), at_once=2, sequential=True)

        def raw(self, index: int) -> Any:
            assert index in waited
            return super().raw(index)

        def prefetch(self, ids: NDArray[np.int64]) -> None:
            told.append(set((ids // 40).tolist()))

        def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
            assert set((ids // 40).tolist()) <= told[-1] and seconds > 0
            waited.update(ids.tolist())

    source = Far("far", noise(120, 8, 8, 3), None)
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    pack("far", tmp_path / "packed", SIZE, threads=2)
    assert waited == set(range(120)) and {0, 1, 2} in told and all(blocks <= {0, 1, 2} for blocks in told)
    source.blocks, told[:] = None, []
    pack("far", tmp_path / "other", SIZE)
    assert told == []


def test_what_to_go_on_with_works_from_another_folder_and_has_all_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packing, "_PART", 3000)
    photos(tmp_path / "my photos", 12, broken=(6, 7, 8))
    monkeypatch.chdir(tmp_path)
    asked = {"labels": "folder", "threads": 2, "max_bad": 0.125, "max_pixels": 10**6}
    with pytest.raises(UserError, match=r"more than --max-bad 0\.125"):
        pack("my photos", tmp_path / "packed", SIZE, **asked)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        open_source("../packed")
    words = shlex.split(str(caught.value).split("go on with: ")[1])
    assert words[:4] == ["jepakit", "data", "pack", str(tmp_path / "my photos")]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert options == {
        "--size": "16",
        "--labels": "folder",
        "--threads": "2",
        "--max-bad": "0.125",
        "--max-pixels": "1000000",
        "--out": "../packed",
    }
    with pytest.raises(SystemExit):  # all of it is understood: the same three images are broken
        cli.main(words[1:])
    for path in (tmp_path / "my photos").rglob("00[678].png"):
        shutil.copy(tmp_path / "my photos/a/000.png", path)
    cli.main(words[1:])
    assert len(opened(tmp_path / "packed")) == 12


def test_what_was_asked_of_the_command_is_not_in_the_pack(tmp_path: Path, straight: dict[str, bytes]) -> None:
    for asked in ({"max_bad": 0.5}, {"threads": 3}):
        assert contents(pack(tmp_path / "photos", tmp_path / f"{asked}", SIZE, **asked)) == straight
    assert json.loads(straight["pack.json"])["source"] == str(tmp_path / "photos")


def test_the_limit_of_pixels_can_be_raised_and_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "photos", 8)
    with pytest.raises(UserError, match=r"no readable image .*images.max_pixels=100:"):
        pack(tmp_path / "photos", tmp_path / "packed", SIZE, max_pixels=100)
    monkeypatch.setattr("jepakit.data.opening.require_readable.__defaults__", (100,))
    monkeypatch.setattr(Source.read, "__defaults__", (100,))  # as if no image had fewer than what is usual
    assert len(opened(pack(tmp_path / "photos", tmp_path / "packed", SIZE, max_pixels=10**4))) == 8


def test_a_manifest_whose_parts_do_not_add_up_is_refused(tmp_path: Path, straight: dict[str, bytes]) -> None:
    good = json.loads(straight["pack.json"])
    first, second, *others = good["parts"]
    bad = good["bad"][0]
    forgeries: tuple[dict[str, Any], ...] = (
        {"parts": [{**first, "end": 10**30}]},
        {"parts": [{**first, "end": first["end"] - 1}, second, *others]},
        {"parts": [second, first, *others]},
        {"samples": first["end"]},
        {"bad": []},
        {"bad": [{**bad, "index": -1}]},
        {"bad": [{**bad, "index": 10**30}]},
        {"bad": [bad, *good["bad"]]},
    )
    for other in forgeries:
        (tmp_path / "straight/pack.json").write_text(json.dumps({**good, **other}))
        with pytest.raises(UserError, match=r"pack.json is no manifest .*do not add up"):
            open_source(str(tmp_path / "straight"))
        with pytest.raises(UserError, match=r"pack.json is no manifest .*do not add up"):
            pack(tmp_path / "photos", tmp_path / "straight", SIZE)


# ---- work in order


@pytest.mark.parametrize("threads", [1, 3])
def test_an_image_that_hangs_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    source = open_source(str(photos(tmp_path / "photos", 20)))
    never, real = Event(), source.raw

    def raw(index: int) -> Any:
        if index == 7:
            never.wait(30)
        return real(index)

    monkeypatch.setattr("jepakit.data.formats.pack_shrink.SECONDS", 0.3)
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    monkeypatch.setattr(source, "raw", raw)
    try:
        found = opened(pack(tmp_path / "photos", tmp_path / "packed", SIZE, threads=threads))
        assert [(entry.title, entry.reason) for entry in found.manifest.bad] == [("a/014.png", "no answer within 0.3 s")]
        assert "bad image: a/014.png: no answer within 0.3 s (left out)" in caplog.text
        assert [found.title(i) for i in range(19)] == [source.title(i) for i in range(20) if i != 7]
        stored = contents(tmp_path / "packed")
        assert contents(pack(tmp_path / "photos", tmp_path / "packed", SIZE)) == stored  # without waiting for it again
    finally:
        never.set()


def test_storage_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, never = open_source(str(photos(tmp_path / "photos"))), Event()
    monkeypatch.setattr("jepakit.data.formats.pack_shrink.SECONDS", 0.1)
    monkeypatch.setattr(packing, "open_source", lambda data, labels, **_: source)
    monkeypatch.setattr(source, "raw", lambda index: never.wait(30))
    try:
        with pytest.raises(
            UserError, match=r"the storage does not answer\); .* go on with: jepakit data pack .*photos"
        ) as caught:
            pack(tmp_path / "photos", tmp_path / "packed", SIZE, threads=8, max_bad=1.0)
        assert "\n" not in str(caught.value)
    finally:
        never.set()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 6), st.none() | st.integers(0, 39), st.booleans())
def test_work_is_taken_in_order_and_nothing_after_an_error(count: int, threads: int, fails: int | None, taking: bool) -> None:
    ids, found = np.arange(100, 100 + count), list[tuple[int, int | str]]()

    def work(index: int) -> int:
        if not taking and index - 100 == fails:
            raise UserError("no room")
        return index**2

    def take(index: int, value: int | str) -> None:
        if taking and index - 100 == fails:
            raise UserError("no room")
        found.append((index, value))

    try:
        in_order(ids, work, take, threads, 10.0)
        assert (fails is None or fails >= count) and len(found) == count
    except UserError:
        assert fails is not None and len(found) <= fails
    assert found == [(100 + i, (100 + i) ** 2) for i in range(len(found))]


def test_nothing_is_taken_once_the_caller_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    puts, found = list[Callable[[int, int], None]](), list[int]()

    def each(count: int, work: Any, put: Callable[[int, int], None], **_: Any) -> None:
        puts.append(put)
        put(0, 5)
        raise KeyboardInterrupt  # while another thread is at work

    monkeypatch.setattr("jepakit.data.formats.pack_shrink.run_parallel", each)
    with pytest.raises(KeyboardInterrupt):
        in_order(np.arange(3), lambda index: index, lambda index, value: found.append(index), 2, 1.0)
    puts[0](1, 6)
    assert found == [0]
