"""Bad files of every kind: each is refused with a reason, in little memory and time, wherever it lies; and good ones are not."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from badfiles import TRACE, BadFile, bad_files, encoded, pixels, tiff
from jepakit.data.decoding.decode import decode, read_image
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.folder import FolderSource
from jepakit.data.opening import open_source
from jepakit.data.sources import Source
from jepakit.training.train import pretrain

MOST = 200 << 20  # bytes that a bad file may take
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, which jepakit silences and pytest does not

ALONE = """
import json, re, resource, sys
from badfiles import bad_files
from jepakit.data.decoding.decode import decode
from jepakit.data.decoding.pixels import BadImageError
files, found = bad_files(), {}
for file in files[:3]:  # libraries are loaded
    try:
        decode(file.data)
    except BadImageError:
        pass
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]),) * 2)
for file in files:
    print(file.name, file=sys.stderr, flush=True)
    try:
        decode(file.data, findings=[])  # as data check does: what a look for more finds, it finds in bad files, too
        found[file.name] = ""
    except BadImageError as error:
        found[file.name] = str(error)
print(json.dumps(found))
"""


@cache
def said() -> dict[str, str]:
    """What a process that may take little says of each file; "" where it decodes."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(MOST)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    found: dict[str, str] = json.loads(done.stdout)
    return found


def outcome(source: Source, index: int) -> str:
    try:
        source.read(index)
        return ""
    except BadImageError as error:
        return str(error)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is Linux's")
@pytest.mark.parametrize("file", bad_files(), ids=lambda file: file.name)
def test_a_bad_file_is_refused_with_a_reason_and_a_good_one_is_not(file: BadFile) -> None:
    reason = said()[file.name]
    assert "\n" not in reason and "more memory than there is" not in reason
    if file.reason == "":
        assert not reason
    elif file.reason is not None:
        assert re.search(file.reason, reason)
    assert not TRACE.exists()


def test_there_are_many_kinds() -> None:
    assert sum(bool(file.reason) for file in bad_files()) >= 45


def test_a_folder_says_of_each_what_decoding_says(tmp_path: Path) -> None:
    for file in bad_files():
        (tmp_path / file.name).write_bytes(file.data)
    source = FolderSource(tmp_path)
    assert {source.title(i): outcome(source, i) for i in range(len(source))} == said()


def test_so_does_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jepakit.data.formats.shards")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for file in (BadFile("0.png", encoded("PNG"), ""), *bad_files()):
            member = tarfile.TarInfo(file.name)
            member.size = len(file.data)
            tar.addfile(member, io.BytesIO(file.data))
    source = open_source(str(tmp_path / "0.tar"))
    assert len(source) == len(bad_files()) + 1
    assert [outcome(source, i + 1) for i in range(len(bad_files()))] == [said()[file.name] for file in bad_files()]


def test_so_does_a_row_of_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": file.data, "path": file.name} for file in bad_files() if file.data]  # without bytes it is the path's
    pq.write_table(pa.table({"image": rows}), tmp_path / "0.parquet", row_group_size=40)
    source = open_source(str(tmp_path / "0.parquet"))
    assert [outcome(source, i) for i in range(len(source))] == [said()[row["path"]] for row in rows]


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    def refuse(path: Path, reason: str) -> None:
        with pytest.raises(BadImageError, match=reason):
            read_image(path)

    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    refuse(tmp_path / "nowhere.jpg", "No such file")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    refuse(tmp_path / "itself.jpg", "symbolic links")
    (tmp_path / "folder.jpg").mkdir()
    refuse(tmp_path / "folder.jpg", "a directory, not a file")
    os.mkfifo(tmp_path / "pipe.jpg")
    refuse(tmp_path / "pipe.jpg", "not a file")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    refuse(tmp_path / "endless.jpg", "not a file")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(5 << 30)  # takes no room on the disk
    refuse(tmp_path / "huge.jpg", r"5\.0 GiB")
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    source = open_source(str(tmp_path))
    assert [source.title(i) for i in range(len(source)) if not outcome(source, i)] == ["good.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_bad_one(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded("PNG"))
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(BadImageError, match="Permission denied"):
        read_image(tmp_path / "secret.png")


def test_a_run_over_all_of_them_goes_through_and_names_each_bad_one_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    names = {f"{i:03} {file.name}": file.name for i, file in enumerate(bad_files())}
    for (name, _), file in zip(names.items(), bad_files(), strict=True):
        (tmp_path / "data" / name).write_bytes(file.data)
        (tmp_path / "data" / f"{name[:3]} z, a good one.png").write_bytes(encoded("PNG"))  # that takes its place
    steps = 3 * (len(list((tmp_path / "data").iterdir())) // 8)  # three epochs: each leaves out fewer than a batch
    shape = "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
    small = f"{shape} images.size=16 images.max_bad=1 masking.min_keep=2 optim.batch_size=8 optim.steps={steps} run.threads=2"
    assert pretrain("data", "run", method="ijepa", set=small.split()).finished
    log = (tmp_path / "run" / "run.log").read_text()
    named = re.findall(r"WARNING bad image \d+: ([^:]+): ", log)
    assert sorted(named) == sorted(name for name, plain in names.items() if said()[plain])
    assert not TRACE.exists() and "Traceback" not in log


# ---- what was found, beside the files above


def test_a_good_jpeg_is_decoded_whatever_follows_its_end() -> None:
    whole = encoded("JPEG")
    for more in (b"\0", b"\xff" * 7, bytes(5000), whole, b"\xff\xda" * 9):
        np.testing.assert_array_equal(decode(whole + more), decode(whole))


def test_heights_below_zero_are_not_cut_off() -> None:
    """Pillow reads 16 bits with a sign too, and as numbers that had become 0 here."""
    with pytest.raises(BadImageError, match="bands of int16"):
        decode(tiff(np.full((4, 4), -5, np.int16)))
    np.testing.assert_array_equal(decode(tiff(np.full((4, 4), 5, np.uint16))), np.full((4, 4, 1), 5))


def test_strips_that_are_not_there_are_not_black() -> None:
    whole = tiff(pixels(16), photometric="rgb", rowsperstrip=4)
    np.testing.assert_array_equal(decode(whole), pixels(16))
    entry = bytes([17, 1, 4, 0])  # offsets of strips, as 32-bit numbers
    two = whole.replace(entry + bytes([4, 0, 0, 0]), entry + bytes([2, 0, 0, 0]))
    with pytest.raises(BadImageError, match="2 of 4 strips"):
        decode(two)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientations_are_found_where_pillow_finds_them(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image, said = Image.fromarray(pixels(16)[:12]), PngImagePlugin.PngInfo()
    said.add_text("Raw profile type exif", "\nexif\n  99\n" + exif.tobytes().hex())  # ImageMagick's way
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    cmyk = Image.fromarray(pixels(16, 4)[:12], "CMYK")
    for data in (
        encoded("PNG", image, pnginfo=said),
        encoded("PNG", image, pnginfo=text),
        encoded("WEBP", image, lossless=True, xmp=xmp.encode()),
        encoded("WEBP", image, lossless=True, exif=b"Exif\0\0" + exif.tobytes()),
        encoded("TIFF", image, exif=exif),
        encoded("TIFF", image, exif=exif, compression="tiff_lzw"),
        encoded("JPEG", cmyk, exif=exif),
    ):
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        np.testing.assert_array_equal(decode(data), expected)


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAULTY = """
import json, os, signal, sys, time
from dataclasses import asdict
from pathlib import Path
import fuzz
kept = []
def read(files, place):
    match place.name:
        case "3": os.kill(os.getpid(), signal.SIGSEGV)
        case "5": time.sleep(99)
        case "7": bytes([1]) * (100 << 20)
        case "9": raise KeyError("x")
        case number if number.isdigit() and int(number) > 10: kept.append(b"x" * (1 << 20))
    return True
fuzz.LONGEST, fuzz.MOST = 3, 80 << 20
fuzz.FORMATS["faulty"] = fuzz.Format(lambda: [{"": bytes(99)}], read)
os.environ["XDG_CACHE_HOME"] = sys.argv[1]
print(json.dumps(asdict(fuzz.fuzz("faulty", 50, 0, Path(sys.argv[1])))))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(BENCHMARKS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux for what a process takes")
def test_a_short_fuzz_finds_nothing(tmp_path: Path) -> None:
    images, figures = "jpeg,png,webp,bmp,gif,tiff,bands,ppm", tmp_path / "figures.json"
    options = ["--formats", images, "--files", "150", "--json", str(figures), "--out", str(tmp_path)]
    done = run(str(BENCHMARKS / "fuzz.py"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in json.loads(figures.read_text())["formats"].values():
        assert row["decoded"] + row["refused"] == 150 and row["decoded"] > 5


@pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux for what a process takes")
def test_the_fuzz_sees_a_crash_a_hang_memory_a_wrong_exception_and_a_leak_and_keeps_the_files(tmp_path: Path) -> None:
    done = run("-c", FAULTY, str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[kind] for kind in ("crashes", "hangs", "memory", "wrong")] == [1, 1, 1, 1]
    assert 25 < found["leak_mb"] < 60 and 100 < found["peak_mb"] < 150
    assert found["decoded"] + found["refused"] == 50 - 3
    kept = {path.name for path in tmp_path.iterdir() if (path / "image").is_file()}
    assert kept == {"faulty-3-crash", "faulty-5-hang", "faulty-7-memory", "faulty-9-KeyError"}
