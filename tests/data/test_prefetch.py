"""Stores that are slow, fail or hang: a slow one changes no batch, a failing one is named, and none keeps the process."""

import io
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import parquet, remote
from jepakit.data.formats import prefetch as fetched
from jepakit.data.formats.parquet import ParquetSource, parquet_files
from jepakit.data.formats.prefetch import PrefetchCache
from jepakit.data.formats.remote import DataPaths
from jepakit.data.formats.shards import ShardSource, shards_of
from jepakit.data.loader import Loader, TooManyBadImagesError
from jepakit.data.sources import Source
from jepakit.data.threads import StuckError
from jepakit.model.images import ImageSettings
from jepakit.model.masking.masks import MultiBlock
from test_data import noise, same

EACH, SHARDS = 8, 6  # images of a shard or row group, and how many there are


class Slow(MemoryFileSystem):  # type: ignore[misc]
    """A store that calls `before` with a path at each request, and gives a few bytes at a time with `pause` between."""

    protocol = "slow"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    pause = 0.0
    parts = 12

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.before: Callable[[str], None] = lambda path: None

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        self.asked.append(rpath)
        self.before(rpath)
        data = self.cat_file(rpath)
        step = -(-len(data) // self.parts)
        with open(lpath, "wb", buffering=0) as file:
            for start in range(0, len(data), step):
                time.sleep(self.pause)
                file.write(data[start : start + step])

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        self.asked.append(path)
        self.before(path)
        return Drops(super()._open(path, *args, **options), self)


class Drops:
    def __init__(self, file: Any, store: Slow) -> None:
        self.file, self.store = file, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Drops":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.seek(0)  # memory's files are one for all

    def read(self, size: int) -> Any:
        time.sleep(self.store.pause)
        return self.file.read(size)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(20, 24, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(seeds: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for seed in seeds:
            member, data = tarfile.TarInfo(f"{seed:04}.png"), png(seed)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def in_shards(store: Slow, count: int = SHARDS) -> ShardSource:
    for k in range(count):
        store.pipe(f"/s-{k}.tar", tar(range(EACH * k, EACH * (k + 1))))
    source = shards_of(DataPaths(store, tuple(f"/s-{k}.tar" for k in range(count))), "x", None)
    assert source.fetched is not None
    source.fetched._copies.clear()  # of indexing
    store.asked.clear()
    return source


def in_groups(store: Slow, count: int = SHARDS) -> ParquetSource:
    for k in range(count):
        images = [{"bytes": png(seed), "path": None} for seed in range(EACH * k, EACH * (k + 1))]
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"image": images}), buffer)
        store.pipe(f"/s-{k}.parquet", buffer.getvalue())
    source = parquet_files(DataPaths(store, tuple(f"/s-{k}.parquet" for k in range(count))), "x", None)
    assert isinstance(source, ParquetSource)
    store.asked.clear()
    return source


KINDS: tuple[Callable[..., Any], ...] = (in_shards, in_groups)


def kept_of(source: Any) -> PrefetchCache[Any]:
    kept: PrefetchCache[Any] = source._groups if isinstance(source, ParquetSource) else source.fetched
    return kept


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Slow, "store", {})
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))


def loader(source: Source, seconds: float, **more: Any) -> Loader:
    images = ImageSettings(size=16, **more)
    return Loader(source, images, MultiBlock(min_keep=2), (4, 4), 16, 0, threads=4, read_timeout_seconds=seconds)


# ---- slow


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_takes_longer_for_a_shard_than_an_image_may_take_changes_no_batch(
    kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = list(loader(kind(Slow()), 60.0)(0, 3))
    monkeypatch.setattr(parquet, "_PART", 200)  # bytes, of some 2 000
    store = Slow()
    made = loader(kind(store), 0.8)  # which looks at a few images first
    kept_of(made.source)._copies.clear()
    store.asked.clear()
    store.pause = 0.1  # more than 1 s a shard
    assert all(same(a, b) for a, b in zip(made(0, 3), straight, strict=True))
    assert made.bad == {}
    assert len(store.asked) <= 2 * SHARDS  # in order of need, and each about once


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_waited_for_is_there_and_no_read_asks_the_store(kind: Callable[..., Any]) -> None:
    store = Slow()
    source = kind(store)
    ids = np.array([17, 3, 18, 40, 2])
    source.wait_for(ids, 30.0)
    assert [path.split(".")[0] for path in sorted(store.asked)] == ["/s-0", "/s-2", "/s-5"]
    source.wait_for(ids, 30.0)
    assert [source.raw(int(i)) for i in ids] == [png(int(i)) for i in ids]
    assert len(store.asked) == 3


def test_of_more_than_can_be_held_the_first_are_waited_for() -> None:
    store = Slow()
    source = in_shards(store, 12)
    assert source.fetched is not None
    source.wait_for(np.arange(12 * EACH)[::-1].copy(), 30.0)
    capacity = source.fetched.capacity
    assert sorted(source.fetched._copies) == list(range(12 - capacity, 12)) and len(store.asked) == capacity
    room = in_groups(Slow())
    room._groups.capacity = 1  # byte: one at least
    room.wait_for(np.array([9, 1]), 30.0)
    assert list(room._groups._copies) == [1]


# ---- failing


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_fails_is_asked_for_once_by_whoever_waits_and_named_by_each_of_its_images(kind: Callable[..., Any]) -> None:
    store = Slow()
    source = kind(store)

    def refuse(path: str) -> None:
        if path.startswith("/s-1."):
            raise ConnectionResetError("reset by peer")

    store.before = refuse
    for _ in range(2):
        source.wait_for(np.arange(SHARDS * EACH), 30.0)
    with ThreadPoolExecutor(8) as pool:

        def read(index: int) -> str:
            try:
                return str(source.raw(index) == png(index))
            except BadImageError as error:
                return str(error)

        said = list(pool.map(read, range(SHARDS * EACH)))
    assert len([path for path in store.asked if path.startswith("/s-1.")]) == 4  # with three more tries
    assert len(set(said[EACH : 2 * EACH])) == 1 and "reset by peer" in said[EACH]
    assert set(said[:EACH] + said[2 * EACH :]) == {"True"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pause_before_another_try_is_no_silence(kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.6, 0.6, 0.6))
    store = Slow()
    source = kind(store)

    def twice(path: str) -> None:
        if len(store.asked) <= 2:
            raise TimeoutError("overloaded")

    store.before = twice
    source.wait_for(np.array([0]), 0.3)
    assert 0 in kept_of(source)._copies


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_told_many_times_does_not_grow_nor_hold_on_to_what_its_hearers_had(kind: Callable[..., Any]) -> None:
    class Large:
        pass

    store = Slow()
    source = kind(store)
    brought = threading.Barrier(8)

    def refuse(path: str) -> None:
        raise OSError("away")

    store.before = refuse
    held: list[weakref.ref[Large]] = []

    def read() -> tuple[str, int]:
        pixels = Large()
        held.append(weakref.ref(pixels))
        try:
            source.raw(0)
        except BadImageError as error:
            return str(error), len(traceback.extract_tb(error.__traceback__))
        raise AssertionError

    def first() -> tuple[str, int]:
        brought.wait(30)
        return read()

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: first(), range(8)))
    told += [read() for _ in range(300)]
    assert len({text for text, _ in told}) == 1 and max(frames for _, frames in told) < 12
    assert not any(ref() for ref in held)


def test_a_reader_who_is_interrupted_can_read_again() -> None:
    tries: list[int] = []

    def fetch(index: int) -> int:
        tries.append(index)
        if len(tries) == 1:
            raise KeyboardInterrupt
        return index

    kept = PrefetchCache(fetch, lambda index: 1, 2, 1, "test")
    with pytest.raises(KeyboardInterrupt):
        kept.item(5)
    assert kept.item(5) == 5


# ---- hanging


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_never_answers_ends_a_run_and_not_with_a_silence(kind: Callable[..., Any]) -> None:
    store, answer = Slow(), threading.Event()
    made = loader(kind(store), 0.1, max_bad=0.5)
    kept_of(made.source)._copies.clear()
    store.before = lambda path: (answer.wait(60), None)[1]
    try:
        with pytest.raises((StuckError, TooManyBadImagesError)):
            list(made(0, 2))
    finally:
        answer.set()


def test_one_shard_that_hangs_does_not_keep_those_that_come_from_being_read() -> None:
    store, answer = Slow(), threading.Event()
    source = in_shards(store)
    store.before = lambda path: (answer.wait(60) if path == "/s-1.tar" else None, None)[1]
    try:
        source.wait_for(np.arange(SHARDS * EACH), 0.3)
        assert [source.raw(i) for i in (0, 16, 47)] == [png(0), png(16), png(47)]
    finally:
        answer.set()


def test_a_process_ends_while_a_row_group_hangs(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(0), png(1)]}), tmp_path / "x.parquet", row_group_size=1)
    code = """
import sys, threading, numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from jepakit.data.formats import parquet
from jepakit.data.formats.remote import DataPaths
parquet.LEAVE = 0.2
store, begun = MemoryFileSystem(), threading.Event()
store.pipe("/x.parquet", open(sys.argv[1], "rb").read())
source = parquet.parquet_files(DataPaths(store, ("/x.parquet",)), "x", None)
store._open = lambda *args, **options: (begun.set(), threading.Event().wait())
source.prefetch(np.arange(2))
begun.wait()
source.wait_for(np.arange(2), 0.2)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.parquet")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# ---- what is kept


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.integers(1, 12),
    st.sets(st.integers(0, 7)),
    st.lists(
        st.tuples(st.sampled_from(["item", "prefetch", "wait_for"]), st.lists(st.integers(0, 7), min_size=1, max_size=5)),
        max_size=8,
    ),
)
def test_things_are_right_within_their_room_and_there_when_they_were_waited_for(
    sizes: list[int], room: int, failing: set[int], asked: list[tuple[str, list[int]]]
) -> None:
    over: list[int] = []
    lock = threading.Lock()
    under_way: set[int] = set()

    def fetch(index: int) -> int:
        with lock:
            under_way.add(index)
            size = sum(sizes[i] for i in under_way)
            if len(under_way) > 1 and size > room:
                over.append(size)
        time.sleep(0)
        with lock:
            under_way.remove(index)
        if index in failing:
            raise UserError(f"no {index}")
        return -index

    kept = PrefetchCache(fetch, lambda index: sizes[index], room, 2, "test")
    for what, some in asked:
        indices = [index % len(sizes) for index in some]
        if what == "prefetch":
            kept.prefetch(indices)
            continue
        if what == "wait_for":
            kept.wait_for(indices, 30.0)
            first = indices[0]
            assert first in failing or first in kept._copies
        for index in indices:
            if index in failing:
                with pytest.raises(UserError, match=f"no {index}"):
                    kept.item(index)
            else:
                assert kept.item(index) == -index
        here = [sizes[-index] for index in kept._copies.values()]
        assert len(here) == 1 or sum(here) <= room
    assert not over
    assert fetched.PATIENCE > 30  # or what fails would have been tried again
