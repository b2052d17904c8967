"""Images in tar archives, and files from afar: random access, labels, what is broken, cut, slow, absent or hostile."""

import gc
import http.server
import io
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import prefetch as fetched
from jepakit.data.formats import remote, shards, tars
from jepakit.data.formats.prefetch import Fetched, OpenFile
from jepakit.data.formats.remote import DataPaths, braces, expand, is_pattern, is_remote, natural, shown
from jepakit.data.formats.shards import ShardSource, shards_of, tar_shards
from jepakit.data.opening import absolute, open_source
from jepakit.data.sources import fingerprint

REGISTRY: dict[str, Any] = sys.modules["fsspec.registry"]._registry  # fsspec.registry itself is a view of it
Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, an empty memory://, and no waiting."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.001, 0.002))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    yield


def png(seed: int, side: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(members: Members, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def images(start: int, count: int) -> Members:
    return [(f"{i:04}.png", png(i)) for i in range(start, start + count)]


def write(path: Path, members: Members, kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members, kind))
    return path


def opened(data: str | Path, labels: str | None = None) -> ShardSource:
    source = open_source(str(data), labels)
    assert isinstance(source, ShardSource)
    return source


def contents(source: ShardSource) -> dict[str, bytes]:
    return {source.title(i).partition(":")[2]: source.raw(i) for i in range(len(source))}


def labelling(source: ShardSource) -> dict[str, tuple[str | None, bool]]:
    labels = source.labels
    assert labels is not None and len(labels.values) == len(labels.test) == len(source)
    return {
        source.title(i).partition(":")[2]: (
            labels.classes[labels.values[i]] if labels.values[i] >= 0 else None,
            bool(labels.test[i]),
        )
        for i in range(len(source))
    }


# ---- what is in a tar


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_image_of_any_shard_is_the_file_that_was_put_in(tmp_path: Path, kind: int) -> None:
    long = "d" * 90 + "/" + "é" * 40 + ".png"  # more than a header's hundred bytes
    first = [*images(0, 3), ("note.txt", b"no image"), (long, png(70)), ("UPPER.PNG", png(71))]
    write(tmp_path / "s-2.tar", first, kind)
    write(tmp_path / "s-10.tar", images(100, 4), kind)
    source = opened(tmp_path)
    assert [source.title(i) for i in range(len(source))] == [
        *(f"s-2.tar:{name}" for name, _ in first if name != "note.txt"),
        *(f"s-10.tar:{name}" for name, _ in images(100, 4)),
    ]
    wanted = dict([*first, *images(100, 4)])
    for i in random.Random(0).sample(range(len(source)), len(source)):
        assert source.raw(i) == wanted[source.title(i).partition(":")[2]]
    assert source.blocks is not None and source.blocks.starts.tolist() == [0, 5, 9] and not source.blocks.sequential


def test_a_folder_a_local_tar_and_a_remote_one_hold_the_same_pixels(tmp_path: Path) -> None:
    members = [(f"{'ab'[i // 3]}/{i}.png", png(i, side=5 + i)) for i in range(6)]
    for name, data in members:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    local = write(tmp_path / "x.tar", members)
    fsspec.filesystem("memory").pipe("/x.tar", local.read_bytes())
    sources = [open_source(str(place)) for place in (tmp_path / "folder", local, "memory://x.tar")]
    for i in range(6):
        for source in sources[1:]:
            np.testing.assert_array_equal(source.read(i), sources[0].read(i))
    assert all(s.labels and s.labels.values.tolist() == [0, 0, 0, 1, 1, 1] for s in sources)
    assert fingerprint(sources[1]) == fingerprint(sources[2])
    assert [s.blocks.sequential for s in sources[1:] if s.blocks] == [False, True]


def test_only_plain_files_are_images_and_nothing_is_written_or_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    buffer = io.BytesIO()
    names = ["../out.png", "/abs.png", "a/../../up.png", "line\nbreak\x1b[31m.png"]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(png(1))
            file.addfile(info, io.BytesIO(png(1)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"kind{kind.decode()}.png")
            info.type, info.linkname = kind, str(secret)
            file.addfile(info)
        nul = tarfile.TarInfo("x.png")
        nul.pax_headers, nul.size = {"path": "nul\0.png"}, len(png(2))
        file.addfile(nul, io.BytesIO(png(2)))
        for hidden in ("._a.png", ".hidden/b.png", "__MACOSX/._c.png"):  # what macOS adds to a tar, and a folder skips
            file.addfile(tarfile.TarInfo(hidden), io.BytesIO())
    place = tmp_path / "in" / "deep"
    place.mkdir(parents=True)
    (place / "x.tar").write_bytes(buffer.getvalue())
    before = sorted(tmp_path.rglob("*"))
    source = opened(place / "x.tar")
    assert len(source) == 5
    assert [source.raw(i) for i in range(5)] == [png(1)] * 4 + [png(2)]
    assert all(source.title(i).isprintable() for i in range(5)) and source.title(0) == "x.tar:../out.png"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sparse_member_is_left_out(tmp_path: Path) -> None:
    if subprocess.run(["tar", "--version"], capture_output=True, check=False).stdout[:7] != b"tar (GN":
        pytest.skip("needs GNU tar")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.write(png(1))
        file.truncate(1 << 20)
    (tmp_path / "plain.png").write_bytes(png(2))
    for kind in ("gnu", "pax"):
        command = ["tar", "-cSf", f"{kind}.tar", f"--format={kind}", "sparse.png", "plain.png"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert contents(opened(tmp_path / f"{kind}.tar")) == {"plain.png": png(2)}


def test_a_million_names_are_not_a_million_objects() -> None:
    n = 20_000
    file = memory_file(tar([(f"class-{i % 100:03}/image-{i:08}.jpg", b"") for i in range(n)]))
    index = tars.tar_index(file, "x")
    arrays = (index.offsets, index.sizes, index.ends, index.labels.places, index.folders.places)
    assert sum(array.nbytes for array in arrays) + len(index.names) <= 70 * n
    assert len(index.folders.table) == 100 and next(tars.split_names(index.names, index.ends)) == "class-000/image-00000000.jpg"


def memory_file(data: bytes) -> OpenFile:
    handle = os.memfd_create("x")
    os.write(handle, data)
    try:
        return OpenFile(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


# ---- labels


def test_labels_are_the_cls_file_of_the_same_key(tmp_path: Path) -> None:
    members: Members = []
    for i, label in enumerate([b"10", b" 2\n", b"2", b"9", None, b"-1"]):
        members += [(f"{i}.v1.png", png(i))] + ([(f"{i}.cls", label)] if label is not None else [])
    source = opened(write(tmp_path / "x.tar", members))
    assert source.labels is not None and source.labels.classes == ("2", "9", "10")  # by number, not by letter
    got = [label for label, _ in labelling(source).values()]
    assert got == ["10", "2", "2", "9", None, None]


def test_labels_may_come_before_after_or_far_from_their_image_and_in_json(tmp_path: Path) -> None:
    members: Members = [
        ("b.json", json.dumps({"label": "dog", "n": 1}).encode()),
        ("a.png", png(0)),
        ("b.png", png(1)),
        ("c.png", png(2)),
        ("d.png", png(3)),
        ("e.png", png(4)),
        ("f.png", png(5)),
        ("sub/a.png", png(6)),
        ("a.json", b'{"class": "cat"}'),
        ("c.json", b'{"cls": "dog"}'),
        ("d.json", b"{broken"),
        ("e.json", b"[" * 30_000),
        ("f.json", b'{"label": {"x": 1}}'),
        ("sub/a.json", b" " * 70_000 + b'{"label": "too long a file"}'),
    ]
    got = labelling(opened(write(tmp_path / "x.tar", members)))
    assert [label for label, _ in got.values()] == ["cat", "dog", "dog", None, None, None, None]


def test_a_cls_file_goes_before_a_json_file_and_the_folder_can_be_asked_for(tmp_path: Path) -> None:
    members: Members = []
    for i in range(4):
        folder = "xy"[i % 2]
        members += [(f"{folder}/{i}.json", b'{"label": 7}'), (f"{folder}/{i}.png", png(i)), (f"{folder}/{i}.cls", b"%d" % i)]
    path = write(tmp_path / "x.tar", members)
    assert [label for label, _ in labelling(opened(path)).values()] == list("0123")
    assert [label for label, _ in labelling(opened(path, "folder")).values()] == list("xyxy")
    with pytest.raises(UserError, match=r"'label' and 'folder', not 'folders'; did you mean 'folder'\?"):
        open_source(str(path), "folders")


def test_folders_in_a_tar_are_labels_as_folders_on_disk_are(tmp_path: Path) -> None:
    split = [(f"./{part}/{kind}/{i}.png", png(i)) for part in ("train", "val") for kind in ("cat", "dog") for i in range(2)]
    got = labelling(opened(write(tmp_path / "split.tar", split)))
    assert set(got.values()) == {("cat", False), ("dog", False), ("cat", True), ("dog", True)}
    assert all(test == name.startswith("val") for name, (_, test) in got.items())
    plain = [(f"{kind}/{i}.png", png(i)) for kind in ("cat", "dog") for i in range(5)]
    got = labelling(opened(write(tmp_path / "plain.tar", plain)))
    assert [name for name, (_, test) in got.items() if test] == ["cat/4.png", "dog/4.png"]
    loose = opened(write(tmp_path / "loose.tar", [*plain, ("loose.png", png(0))]))
    assert labelling(loose) == got | {"loose.png": (None, False)} and "1 image lies in no class folder" in loose.notes[0]
    for members in (plain[:5], images(0, 3)):
        assert opened(write(tmp_path / "none.tar", members)).labels is None


@pytest.mark.parametrize(
    "names, held",
    [
        (("set-train-000.tar", "set-val-000.tar"), "val"),
        (("train/000.tar", "validation/000.tar"), "validation"),
        (("train-0.tar", "val-0.tar", "test-0.tar"), "test"),
    ],
)
def test_shards_named_as_splits_are_the_split(tmp_path: Path, names: tuple[str, ...], held: str) -> None:
    for k, name in enumerate(names):
        write(tmp_path / name, [m for i in range(4) for m in ((f"{k}{i}.png", png(i)), (f"{k}{i}.cls", b"%d" % (i % 2)))])
    source = opened(tmp_path)
    labels = source.labels
    assert labels is not None
    for i in range(len(source)):
        shard = source.title(i).partition(":")[0]
        assert labels.test[i] == (held in shard)
        assert (labels.values[i] >= 0) == ("train" in shard or held in shard)  # with a test, the validation has no part


def test_shards_of_one_split_hold_out_a_fifth(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / f"val-{k}.tar", [m for i in range(5) for m in ((f"{k}{i}.png", png(i)), (f"{k}{i}.cls", b"0"))])
    labels = opened(tmp_path).labels
    assert labels is not None and labels.test.sum() == 2 and (labels.values == 0).all()


@pytest.mark.parametrize("classes", [("cat", "dog"), ("2", "10"), ("007", "-1")])
def test_a_tree_has_the_same_labels_in_a_tar_as_on_disk(tmp_path: Path, classes: tuple[str, ...]) -> None:
    for parts in ([""], ["train/", "val/", "test/"], ["train/", "valid/"], ["val/", "test/"], ["train/"]):
        members = [(f"{part}{name}/{i}.png", png(i)) for part in parts for name in classes for i in range(5)]
        members += [("test/hidden.png", png(9))] if "valid/" in parts else []
        root = tmp_path / "".join(part[:-1] for part in parts)
        for name, data in members:
            path = root / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        folder, packed = open_source(str(root / "folder")), opened(write(root / "x.tar", sorted(members)))
        order = {packed.title(i).partition(":")[2]: i for i in range(len(packed))}
        places = [order[folder.title(i)] for i in range(len(folder))]
        assert folder.labels is not None and packed.labels is not None
        assert folder.labels.classes == packed.labels.classes == tuple(sorted(classes))
        assert folder.labels.values.tolist() == packed.labels.values[places].tolist()
        assert folder.labels.test.tolist() == packed.labels.test[places].tolist()


# ---- samples of several images


def test_of_the_images_of_a_sample_the_plain_one_is_taken_and_the_others_are_counted(
    tmp_path: Path, read_anew: list[str]
) -> None:
    first = ["0.seg.png", "0.png", "0.depth.png", "1.left.png", "1.right.png", "2.jpg", "2.png", "a/2.seg.png", "3.seg.png"]
    second = ["film.0001.png", "film.0002.png", "5.png", "film.0002.seg.png", "3.png"]  # a name is of its shard
    write(tmp_path / "x.tar", [*((name, name.encode() + png(1)) for name in first), ("0.cls", b"7"), ("2.cls", b"8")])
    write(tmp_path / "y.tar", [(name, name.encode() + png(1)) for name in second])
    for _ in range(2):
        source = shards_of(expand(f"{tmp_path}/*.tar"), "all", None)
        kept = ["0.png", "1.left.png", "2.jpg", "a/2.seg.png", "3.seg.png", "film.0001.png", "film.0002.png", "5.png", "3.png"]
        assert contents(source) == {name: name.encode() + png(1) for name in kept}
        assert [label for label, _ in labelling(source).values()] == ["7", None, "8", *[None] * 6]
        (said,) = source.notes
        assert said.startswith("left out are 5 images whose sample has another")
    assert len(read_anew) == 2


def test_links_to_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(0))
    os.link(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    (tmp_path / "in" / "c.png").symlink_to("a.png")
    (tmp_path / "in" / "d.txt").symlink_to("a.png")
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.add(tmp_path / "in", ".")
    source = opened(tmp_path / "x.tar")
    assert list(contents(source).values()) == [png(0)]
    (said,) = source.notes
    assert said.startswith("left out are 2 links to images")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", ".x", ".y.z", ".1"]), st.sampled_from(["png", "jpg"]))))
def test_every_sample_keeps_one_image_the_plainest_wherever_its_files_lie(names: list[tuple[str, str, str]]) -> None:
    index = tars.tar_index(memory_file(tar([(f"{key}{more}.{kind}", b"") for key, more, kind in names])), "x")
    best: dict[str, tuple[bool, int]] = {}
    for place, (key, more, _) in enumerate(names):
        name, worse = (key + more, False) if more == ".1" else (key, bool(more))
        best[name] = min(best.get(name, (True, len(names))), (worse, place))
    expected = ["{}{}.{}".format(*names[place]) for place in sorted(place for _, place in best.values())]
    assert list(tars.split_names(index.names, index.ends)) == expected and index.others == len(names) - len(expected)
    assert len(index.offsets) == len(index.sizes) == len(index.labels.places) == len(index.folders.places) == len(expected)


# ---- what is broken


def test_a_tar_cut_off_anywhere_gives_the_images_before_the_cut_and_says_so(tmp_path: Path) -> None:
    members = [("d" * 120 + f"/{i}.png", png(i)) for i in range(4)]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        whole = tar(members, kind)
        with tarfile.open(fileobj=io.BytesIO(whole)) as file:
            ends = [info.offset_data + info.size for info in file]
            padded = file.offset + 512
        path = tmp_path / "x.tar"
        for length in [*range(0, len(whole) + 1, 512), *range(7, len(whole), 997)]:
            path.write_bytes(whole[:length])
            complete = sum(end <= length for end in ends)
            if not complete:
                with pytest.raises(UserError, match=r"x\.tar"):
                    open_source(str(path))
                continue
            source = opened(path)
            assert list(contents(source).values()) == [data for _, data in members[:complete]]
            assert len(source.notes) == (length < padded), (length, source.notes)
            assert all("x.tar" in line and "break off" in line for line in source.notes)


def test_a_broken_header_in_the_middle_ends_the_shard_with_a_word(tmp_path: Path) -> None:
    data = bytearray(tar(images(0, 5)))
    third = data.index(b"0002.png")
    data[third : third + 512] = random.Random(0).randbytes(512)
    (tmp_path / "x.tar").write_bytes(data)
    write(tmp_path / "y.tar", images(10, 2))
    source = opened(tmp_path)
    assert list(contents(source)) == ["0000.png", "0001.png", "0010.png", "0011.png"]
    (said,) = source.notes
    assert "1 of 2 shards break off" in said and "x.tar" in said


def test_shards_without_images_have_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, members in (("a", []), ("b", images(0, 2)), ("c", [("x.txt", b"")]), ("d", images(5, 2))):
        write(tmp_path / "in" / f"{name}.tar", members)
    monkeypatch.chdir(tmp_path)
    source = opened("in")
    monkeypatch.chdir("/")
    assert source.blocks is not None and source.blocks.starts.tolist() == [0, 2, 4]
    assert [source.raw(i) for i in range(4)] == [png(i) for i in (0, 1, 5, 6)]
    assert source.title(2) == "d.tar:0005.png"


def test_a_shard_that_shrinks_while_it_is_read_is_a_bad_image(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", images(0, 3))
    source = opened(path)
    os.truncate(path, 600)
    with pytest.raises(BadImageError, match="the shard is cut off"):
        source.raw(2)


def test_what_is_no_tar_is_named_and_what_to_do(tmp_path: Path) -> None:
    good = write(tmp_path / "all" / "a.tar", images(0, 2))
    other = tmp_path / "all" / "b.tar"
    for content in (b"hello", b"", random.Random(1).randbytes(5000), b"<html>" * 300):
        other.write_bytes(content)
        with pytest.raises(UserError, match=r"b\.tar is no tar archive"):
            open_source(str(tmp_path / "all"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        file.add(good, "x.png")
    other.write_bytes(packed.getvalue())
    with pytest.raises(UserError, match=r"b\.tar is compressed.*unpack it"):
        open_source(str(tmp_path / "all"))
    for name in ("c.tar.gz", "c.tgz", "c.tar.zst"):
        (tmp_path / name).write_bytes(packed.getvalue())
        with pytest.raises(UserError, match=rf"{re.escape(name)} is compressed.*unpack it"):
            open_source(str(tmp_path / name))
    with pytest.raises(UserError, match=r"no images in .*d\.tar .*1 file left out: \.tar 1 \(inner\.tar\).*unpack"):
        open_source(str(write(tmp_path / "d.tar", [("inner.tar", good.read_bytes())])))
    with pytest.raises(UserError, match=r"no readable image in .*e\.tar; .*e\.tar:x\.png: none of"):
        open_source(str(write(tmp_path / "e.tar", [("x.png", b"text")])))


def test_archives_beside_images_or_folders_are_not_the_set(tmp_path: Path) -> None:
    write(tmp_path / "a" / "downloaded.tar", images(0, 2))
    for place in ("x.png", "cats/x.png"):
        path = tmp_path / "a" / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(0))
        source = open_source(str(tmp_path / "a"))
        assert len(source) == 1 and not isinstance(source, ShardSource)
        path.unlink()


def header(name: bytes = b"x.png", size: bytes = b"00000000010\0", kind: bytes = b"0") -> bytes:
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind)
    block = bytearray(bytes(block).ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def huge(value: int) -> bytes:
    return (value % (1 << 96)).to_bytes(12, "big") if value < 0 else b"\x80" + value.to_bytes(11, "big")


@pytest.mark.parametrize(
    "hostile",
    [
        header(size=huge(-512)),
        header(size=huge(-(1 << 20))),
        header(size=huge(1 << 70)),
        header(kind=b"x", size=huge(-512)),
        header(kind=b"L", size=huge(1 << 40)),
        header(kind=b"x", size=b"00010000000\0") + b"1" * (1 << 21),
        header(kind=b"x", size=b"00000200000\0") + b"1" * (1 << 16),
        header(kind=b"L", size=b"00000000000\0") * 3000,
        header(kind=b"g", size=b"00000000000\0") * 3000,
        header(kind=b"S") + b"\xff" * 512 * 400,
        header(kind=b"x", size=b"00000000036\0") + b"30 size=-99999999999999999999\n".ljust(512, b"\0") + header(),
        header(kind=b"x", size=b"00000000036\0") + b"30 GNU.sparse.major=1\n".ljust(512, b"\0") + header(),
    ],
    ids=range(12),
)
def test_headers_that_lead_back_nest_or_never_end_are_read_in_no_time_and_little_memory(tmp_path: Path, hostile: bytes) -> None:
    good = header(b"good.png", b"%011o\0" % len(png(0))) + png(0).ljust(-(-len(png(0)) // 512) * 512, b"\0")
    path = tmp_path / "x.tar"
    path.write_bytes(good + hostile + bytes(1024))
    source = opened(path)
    assert source.raw(0) == png(0)
    path.write_bytes(hostile + bytes(1024))
    with pytest.raises(UserError, match=r"x\.tar"):
        open_source(str(path))


def test_an_image_of_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", images(0, 1))
    with path.open("r+b") as file:
        data = header(b"big.png", huge(3 << 30))
        at = len(png(0)) // 512 * 512 + 1024
        file.seek(at)
        file.write(data)
        file.truncate(at + 512 + (3 << 30) + 1024)  # a file with a hole: takes no room
    source = opened(path)
    assert len(source) == 2
    with pytest.raises(BadImageError, match="too many for an image"):
        source.raw(1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mangled_tar_is_refused_in_a_sentence_or_gives_what_lies_in_it(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    members = [
        ("n" * 40 + "/" + "n" * 70 + "é.png", png(0)),
        ("a/b.png", png(1)),
        ("a/b.cls", b"3"),
        ("a/c.json", b'{"label": 1}'),
        ("a/c.png", png(2)),
    ]
    content = bytearray(tar(members, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        block = data.draw(st.integers(0, len(content) // 512 - 1)) * 512
        at = block + data.draw(st.one_of(st.integers(0, 511), st.integers(124, 160)))
        value = data.draw(st.binary(min_size=1, max_size=12))
        content[at : at + len(value)] = value
        if data.draw(st.booleans()):  # a checksum that fits lets the rest through
            head = bytearray(content[block : block + 512])
            head[148:156] = b" " * 8
            content[block + 148 : block + 156] = b"%06o\0 " % sum(head)
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    try:
        source = shards_of(expand(str(path)), "x", None)
    except UserError as error:
        assert "\n" not in str(error) and "x" in str(error)
        return
    for i in range(len(source)):
        assert source.raw(i) in bytes(content) and source.title(i).isprintable()


# ---- patterns and addresses


def test_braces_are_a_shells() -> None:
    for word in (
        "a{08..11}b",
        "{a,b}{1..3}",
        "x{a,b{1..2},}y",
        "{2..0}",
        "{a}",
        "{",
        "}{",
        "{a,b",
        "{1..2..3}",
        "{000..2}",
        "{}",
    ):
        said = subprocess.run(["bash", "-c", f"printf '%s\\n' {word}"], capture_output=True, text=True, check=True).stdout
        if word != "{1..2..3}":  # a step: not understood here
            assert list(braces(word)) == said.split("\n")[:-1], word
    with pytest.raises(UserError, match="more than 100000 files"):
        expand("memory://{0..999999999999999999}.tar")
    with pytest.raises(UserError, match="more than 100000 files"):
        expand("x-{0..999}{0..999}{0..999}.tar")


@given(st.lists(st.text("ab01290-/.", min_size=1), max_size=12), st.randoms())
def test_the_order_is_natural_and_does_not_depend_on_how_files_were_listed(paths: list[str], rng: random.Random) -> None:
    other = [*paths, *paths]
    rng.shuffle(other)
    assert natural(paths) == natural(other) and set(natural(paths)) == set(paths)


def test_numbers_count_as_numbers() -> None:
    assert natural(f"s-{i}.tar" for i in range(200)) == tuple(f"s-{i}.tar" for i in range(200))


def test_patterns_find_local_and_remote_files_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    assert MemoryFileSystem.store == {}
    for k in (0, 1, 2, 10):
        path = write(tmp_path / "deep" / f"s-{k:02}.tar", images(k * 10, 2))
        store.pipe(f"/deep/s-{k:02}.tar", path.read_bytes())
    store.pipe("/deep/other.txt", b"")
    for root in (f"{tmp_path}/", "memory://", f"file://{tmp_path}/"):
        for pattern, wanted in (
            ("deep/s-{00..02}.tar", ["00", "01", "02"]),
            ("deep/s-*.tar", ["00", "01", "02", "10"]),
            ("**/*.tar", ["00", "01", "02", "10"]),
            ("deep/s-0[12].tar", ["01", "02"]),
            ("deep/s-?0.tar", ["00", "10"]),
            ("deep/{s-10,s-0?}.tar", ["00", "01", "02", "10"]),
        ):
            source = opened(root + pattern)
            assert [source.title(i)[:8] for i in range(0, len(source), 2)] == [f"s-{n}.tar" for n in wanted], root + pattern
            assert expand(root + pattern).local == ("memory" not in root)
    assert len(opened("simplecache::memory://deep/s-{01,02}.tar")) == 4
    monkeypatch.chdir(tmp_path)
    assert len(opened("deep/s-{01,02}.tar")) == 4 and len(opened("deep/s-*.tar")) == 8
    (tmp_path / "is[1].tar").write_bytes((tmp_path / "deep" / "s-00.tar").read_bytes())
    assert not is_pattern("is[1].tar") and len(opened("is[1].tar")) == 2  # a file of that very name


def test_addresses_stay_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    root = tmp_path.resolve()
    for data in ("emoji", "scenes", "s3://bucket/x.tar", "simplecache::memory://x", "hf://datasets/a/b"):
        assert absolute(data) == data and is_remote(data) == (data not in ("emoji", "scenes"))
    assert absolute("link/x-{0..2}.tar") == f"{root}/real/x-{{0..2}}.tar"
    assert absolute("*/x.tar") == f"{root}/*/x.tar" and absolute("~/a?/b") == f"{root}/a?/b"
    assert absolute("link") == f"{root}/real" and absolute(str(root / "no")) == f"{root}/no"


def test_messages_say_what_is_wrong_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/a.txt", b"")
    store.pipe("/b.tar", tar(images(0, 2)))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for data, words in (
        ("memory://no*.tar", r"no file matches memory://no\*\.tar"),
        ("memory://no.tar", r"nothing is found at memory://no\.tar"),
        ("memory://a.txt", r"files of \.txt: give \.tar files or \.parquet files"),
        ("memory://{a.txt,b.tar}", r"files of \.tar and \.txt: give"),
        ("s3://bucket/*.tar", r"s3://bucket/\*\.tar needs another package to be reached: pip install s3fs"),
        ("https://u:secret@host/x.tar?sig=secret", r"https://host/x\.tar needs another .*pip install 'jepakit\[remote\]'"),
        ("nonsense://x.tar", "nonsense://x.tar cannot be reached: Protocol not known: nonsense"),
        (f"{tmp_path}/*.tar", "no file matches"),
        (f"{tmp_path}/x-{{1..2}}.tar", r"no such file: .*x-1\.tar"),
        ("{s3://a/x.tar,memory://b.tar}", "."),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_source(data)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert shown("s3://b/x?.tar") == "s3://b/x?.tar"


def test_the_hub_without_its_package_or_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for data in ("hf://datasets/owner/name", "hf://datasets/owner/name/*.tar", "hf://datasets/owner/name/x.tar"):
        with pytest.raises(UserError, match=r"hf://datasets/owner/name.* cannot be reached") as caught:
            open_source(data)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(REGISTRY, "hf")
    with pytest.raises(UserError, match=r"pip install 'jepakit\[remote\]'"):
        open_source("hf://datasets/owner/name")


def test_a_set_of_the_hub_is_its_parquet_files_or_its_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub(MemoryFileSystem):
        protocol = "hf"
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("hf://").strip("/")

    monkeypatch.setitem(REGISTRY, "hf", Hub)
    with pytest.raises(UserError, match=r"hf://datasets/o/n holds no \.parquet and no \.tar files"):
        open_source("hf://datasets/o/n")
    for place in ("a/train-0.tar", "train-1.tar"):
        Hub().pipe(f"/datasets/o/n/{place}", tar(images(0, 2)))
    source = opened("hf://datasets/o/n")
    assert [source.title(i) for i in (0, 2)] == ["a/train-0.tar:0000.png", "train-1.tar:0000.png"]


# ---- fetching


class Afar(MemoryFileSystem):
    """A place that counts what is fetched, and fails, cuts or waits as told."""

    protocol = "afar"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[str] = []
        self.fault: Callable[[str, int], None] = lambda path, before: None
        self.cut = 0

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        before = self.fetches.count(rpath)
        self.fetches.append(rpath)
        self.fault(rpath, before)
        data = self.cat_file(rpath)
        Path(lpath).write_bytes(data[: len(data) - self.cut])


def afar(count: int, each: int = 4) -> tuple[Afar, DataPaths]:
    fs = Afar()
    for k in range(count):
        fs.pipe(f"/s-{k}.tar", tar(images(each * k, each)))
    return fs, DataPaths(fs, tuple(f"/s-{k}.tar" for k in range(count)))


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.002)


def drafts(fetched: Fetched) -> list[str]:
    return os.listdir(fetched._folder.name)


def test_reads_from_many_threads_are_right_while_only_one_shard_is_held() -> None:
    fs, places = afar(5)
    fetched = Fetched(places, capacity=1)
    whole = {k: fs.cat_file(path) for k, path in enumerate(places.paths)}

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            k = rng.randrange(5)
            fetched.prefetch([rng.randrange(5)])
            file = fetched.file(k)
            at = rng.randrange(file.size)
            assert file.read(100, at) == whole[k][at : at + 100]
            assert len(fetched._copies) <= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))
    until(lambda: not fetched._under_way)
    assert drafts(fetched) == []


def test_a_copy_lasts_while_it_is_read_and_no_longer() -> None:
    _, places = afar(3)
    fetched = Fetched(places, capacity=1)
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    first = fetched.file(0)
    start = first.read(50, 0)
    fetched.file(1)
    fetched.file(2)
    assert list(fetched._copies) == [2] and first.read(50, 0) == start
    del first
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1


def test_threads_that_want_one_shard_fetch_it_once() -> None:
    fs, places = afar(1)
    fs.fault = lambda path, before: time.sleep(0.05)
    fetched = Fetched(places, capacity=2)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(file) for file in pool.map(lambda _: fetched.file(0), range(8))}) == 1
    assert fs.fetches == ["/s-0.tar"]


def test_the_last_used_and_the_soon_wanted_are_kept() -> None:
    fs, places = afar(5)
    fetched = Fetched(places, capacity=3)
    for k in (0, 1, 2, 0, 3):
        fetched.file(k)
    assert sorted(fetched._copies) == [0, 2, 3]
    fetched.prefetch([2, 4, 4, 2])
    until(lambda: 4 in fetched._copies)
    assert sorted(fetched._copies) == [2, 3, 4]
    fetched.file(1)
    assert sorted(fetched._copies) == [1, 2, 4]
    assert len(fs.fetches) == 6


def test_what_is_wanted_soon_is_fetched_behind_the_readers_back_in_order_and_no_more_than_fits() -> None:
    fs, places = afar(9)
    fs.pipe("/empty.tar", tar([("note.txt", b"")]))
    source = shards_of(DataPaths(fs, ("/empty.tar", *places.paths)), "x", None)
    fetched = source.fetched
    assert fetched is not None
    fs.fetches.clear()
    capacity = fetched.capacity
    ids = np.array([i for k in (6, 0, 7, 1, 2, 3, 4, 8, 5) for i in (4 * k + 1, 4 * k)])
    wanted = {6, 0, 7, 1, 2, 3, 4, 8}
    assert capacity == len(wanted)
    source.prefetch(ids)
    until(lambda: set(fetched._copies) == {k + 1 for k in wanted})  # the empty one is the first
    before = list(fs.fetches)
    assert [source.raw(int(i)) for i in ids[: 2 * capacity]] == [png(int(i)) for i in ids[: 2 * capacity]]
    assert fs.fetches == before  # no reader had to wait
    until(lambda: fetched._behind == 0)


@pytest.mark.parametrize("error", [OSError("reset by peer"), TimeoutError(), RuntimeError("as back-ends have it")])
def test_a_fault_that_passes_is_not_noticed(error: Exception) -> None:
    fs, places = afar(3)

    def fault(path: str, before: int) -> None:
        if before < 2:
            raise error

    fs.fault = fault
    source = shards_of(places, "x", None)
    assert [source.raw(i) for i in range(12)] == [png(i) for i in range(12)]


def test_a_shard_that_cannot_be_fetched_is_a_user_error_before_and_a_bad_image_while_a_run_goes_on() -> None:
    fs, places = afar(12)
    source = shards_of(places, "x", None)
    fetched = source.fetched
    assert fetched is not None

    def fault(path: str, before: int) -> None:
        if path == "/s-0.tar":
            raise ConnectionResetError("reset\nby peer")

    fs.fault = fault
    fs.fetches.clear()
    fetched._copies.clear()
    for i in range(4):
        with pytest.raises(BadImageError, match=r"s-0\.tar could not be fetched: reset$"):
            source.raw(i)
    assert fs.fetches == ["/s-0.tar"] * 4  # one and three more, then it is known for a while
    assert source.raw(4) == png(4)
    fs.fault = lambda path, before: None
    fetched._failed = {k: (then - remote.PATIENCE, error) for k, (then, error) in fetched._failed.items()}
    assert source.raw(0) == png(0)  # and tried again later
    fs.fault = fault
    remove_cache()
    with pytest.raises(UserError, match=r"a shard cannot be read: /s-0\.tar could not be fetched"):
        shards_of(places, "x", None)
    fs.rm("/s-3.tar")
    with pytest.raises(UserError, match=r"the shard /s-3\.tar is not found"):
        shards_of(DataPaths(fs, places.paths[1:]), "x", None)


def remove_cache() -> None:
    for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.npz"):
        path.unlink()


def test_a_transfer_that_breaks_off_is_not_taken_for_the_file() -> None:
    fs, places = afar(1)
    fs.cut = 10
    with pytest.raises(BadImageError, match=r"of its \d+ bytes came"):
        Fetched(places, 1).file(0)
    assert len(fs.fetches) == 4


def test_a_failure_behind_the_readers_back_ends_no_thread_and_is_told_to_the_reader() -> None:
    fs, places = afar(3)

    def fault(path: str, before: int) -> None:
        if path == "/s-0.tar":
            raise OSError("away")

    fs.fault = fault
    fetched = Fetched(places, capacity=3)
    fetched.prefetch([0, 1, 2])
    until(lambda: set(fetched._copies) == {1, 2} and fetched._behind == 0)
    with pytest.raises(BadImageError, match="away"):
        fetched.file(0)


def test_a_disk_without_room_says_where_and_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    _, places = afar(1)
    copies = Fetched(places, 1)
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    for _ in range(2):
        with pytest.raises(UserError, match=r"no room in .*; set TMPDIR to a folder on a larger disk"):
            copies.file(0)


def test_copies_go_with_the_process_however_it_ends(tmp_path: Path) -> None:
    script = """
import os, sys, fsspec
from jepakit.data.formats.prefetch import Fetched
from jepakit.data.formats.remote import expand
fsspec.filesystem("memory").pipe("/x.tar", b"x" * 100)
fetched = Fetched(expand("memory://x.tar"), 2)
print(fetched.file(0).read(3, 0).decode(), flush=True)
fetched.prefetch([0])
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""
    for end in ("ended", "killed"):
        done = subprocess.run(
            [sys.executable, "-c", script, end],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "xxx\n" and done.returncode == (-9 if end == "killed" else 0), done.stderr
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        if end == "ended":
            assert list(tmp_path.iterdir()) == []


# ---- the kept index


@pytest.fixture
def read_anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose headers were read."""
    names: list[str] = []
    real = tars.tar_index
    monkeypatch.setattr(tars, "tar_index", lambda file, name: (names.append(Path(name).name), real(file, name))[1])
    return names


def test_a_set_is_indexed_once_and_again_when_it_changes(tmp_path: Path, read_anew: list[str]) -> None:
    members: Members = [
        ("train/c\udce9/0.png", png(0)),
        ("train/c\udce9/0.cls", b"5"),
        ("val/d/1.png", png(1)),
        ("val/d/1.cls", b"6"),
    ]
    write(tmp_path / "x.tar", members)
    write(tmp_path / "y.tar", [("val/d/2.png", png(2))])

    def said() -> tuple[Any, ...]:
        source = opened(tmp_path)
        labels = source.labels
        assert labels is not None
        titles = [source.title(i) for i in range(len(source))]
        return titles, contents(source), labels.classes, labels.values.tolist(), labels.test.tolist()

    first = said()
    assert sorted(read_anew) == ["x.tar", "y.tar"] and first == said() == said()
    assert len(read_anew) == 2
    write(tmp_path / "y.tar", [("val/d/2.png", png(2)), ("val/d/3.png", png(3))])
    os.utime(tmp_path / "y.tar", ns=(1, 1))
    assert len(said()[0]) == 4 and read_anew[2:] == ["y.tar"]
    for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.npz"):
        whole = path.read_bytes()
        for broken in (
            b"",
            b"no archive",
            whole[:100],
            whole[: len(whole) // 2],
            whole.replace(b'"version": %d' % tars.VERSION, b'"version": 0'),
        ):
            path.write_bytes(broken)
            read_anew.clear()
            assert len(said()[0]) == 4 and len(read_anew) == 1
        assert path.read_bytes() == whole or len(path.read_bytes()) == len(whole)
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob(".tmp-*"))


def test_a_cut_is_said_from_the_kept_index_too(tmp_path: Path, read_anew: list[str]) -> None:
    path = write(tmp_path / "x.tar", images(0, 4))
    os.truncate(path, 3000)
    for _ in range(2):
        assert "\n".join(open_source(str(path)).notes).count("break off") == 1
    assert len(read_anew) == 1


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_anew: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.tar", images(0, 2))
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "sub"))
    assert len(opened(path)) == len(opened(path)) == 2 and len(read_anew) == 2
    write(tmp_path / "y.tar", images(5, 2))
    caplog.clear()
    assert len(opened(f"{tmp_path}/*.tar")) == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the index of 2 shards cannot be kept" in caplog.text and "set XDG_CACHE_HOME" in caplog.text
    read_anew[2:] = []
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert len(opened(path)) == len(opened(path)) == 2 and len(read_anew) == 3
    assert len(list((tmp_path / "home" / ".cache" / "jepakit").rglob("*.npz"))) == 1


def test_a_remote_set_is_fetched_to_be_indexed_only_the_first_time_and_when_it_changes(read_anew: list[str]) -> None:
    fs, places = afar(3)
    assert len(shards_of(places, "x", None)) == 12 and sorted(fs.fetches) == list(places.paths)
    assert len(shards_of(places, "x", None)) == 12 and len(fs.fetches) == len(read_anew) == 3
    fs.pipe("/s-1.tar", tar(images(50, 4)))  # of the same size
    source = shards_of(places, "x", None)
    assert fs.fetches[3:] == ["/s-1.tar"] and source.title(4) == "s-1.tar:0050.png"


def test_what_an_opening_fetches_is_said_before_it_does(caplog: pytest.LogCaptureFixture) -> None:
    fs, places = afar(3)
    fs.pipe("/s-1.tar", tar([("x.png", bytes(5_000_000))]))
    said: list[str] = []
    fs.fault = lambda path, before: said.append(caplog.text)
    with caplog.at_level(logging.INFO, "jepakit"):
        shards_of(places, "x", None)
        assert all("x: 3 of 3 shards are fetched whole for an index of what they hold, 5 MB" in text for text in said)
        assert len(said) == 3 and len(caplog.records) == 1
        caplog.clear()
        shards_of(places, "x", None)
        assert caplog.records == []
        fs.pipe("/s-2.tar", tar(images(50, 4)))
        shards_of(places, "x", None)
        assert "1 of 3 shards are fetched" in caplog.text and len(said) == 4


def test_a_long_indexing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.tar", images(k, 1))
    open_source(str(tmp_path))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(shards, "QUIET", -1.0)
    remove_cache()
    open_source(str(tmp_path))
    assert "indexing shards 3/3" in capsys.readouterr().err


# ---- the web


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; each answer only after two that the server is overloaded."""

    asked: ClassVar[list[str]] = []

    def send_head(self) -> Any:
        self.asked.append(f"{self.command} {self.path}")
        if self.asked.count(self.asked[-1]) < 3 and self.path.endswith(".tar"):
            return self.send_error(503)
        return super().send_head()

    def log_message(self, *args: Any) -> None:
        pass


def test_shards_on_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    for k in range(3):
        write(
            tmp_path / f"s-{k}.tar", [m for i in range(3) for m in ((f"{k}{i}.png", png(3 * k + i)), (f"{k}{i}.cls", b"%d" % i))]
        )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    root = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        for pattern in ("/s-{0..2}.tar", "/s-*.tar", "/s-{0..2}.tar?sig=abc"):
            source = opened(root + pattern)
            assert [source.raw(i) for i in (8, 0, 4)] == [png(8), png(0), png(4)]
            assert source.title(8) == "s-2.tar:22.png" and source.labels is not None and "sig" not in source.name
        with pytest.raises(UserError, match=r"nothing is found at http://127\.0\.0\.1:\d+/no\.tar"):
            open_source(f"{root}/no.tar")
        with pytest.raises(UserError, match=r"the shard http://.*/s-[3-7]\.tar is not found"):
            open_source(f"{root}/s-{{2..7}}.tar")
    finally:
        server.shutdown()
        server.server_close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="cannot be reached"):
            open_source(f"http://127.0.0.1:{free.getsockname()[1]}/x.tar")


def test_tar_shards_leaves_other_things_to_others(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(0))
    write(tmp_path / "in" / "x.tar", images(0, 1))
    for place in (tmp_path, tmp_path / "x.png", tmp_path / "absent", tmp_path / "in" / "*.tar", Path("memory://x.tar")):
        assert tar_shards(place, None) is None
