"""Copies of remote files that are kept: whole or not at all, within a limit, what was used longest ago going first."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from jepakit.core.errors import UserError
from jepakit.data.formats import disk_cache as filecache
from jepakit.data.formats.disk_cache import cached_copy
from jepakit.data.opening import open_source
from test_shards import images, tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JEPAKIT_CACHE_GIB", "1")
    monkeypatch.setattr(filecache, "FREE", 0.0)
    return tmp_path / "home" / "jepakit" / "files"


def put(name: str, size: int = 100) -> Path | None:
    return cached_copy(name, size, lambda path: path.write_bytes(bytes(size)) and None)


def never(path: Path) -> None:
    raise AssertionError("it is here")


def test_a_file_is_fetched_once_and_again_where_its_name_is_another(cache: Path) -> None:
    first = put("a")
    assert first is not None and first.parent == cache and cached_copy("a", 100, never) == first
    assert put("a of another stamp") != first and len(os.listdir(cache)) == 2
    first.write_bytes(b"cut")  # whatever did that
    assert put("a") == first and first.stat().st_size == 100


def test_what_was_used_longest_ago_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JEPAKIT_CACHE_GIB", str(300 / 2**30))
    paths = {}
    for age, name in enumerate("abc"):
        paths[name] = put(name)
        os.utime(paths[name], (age, age))  # type: ignore[arg-type]
    assert cached_copy("a", 100, never)  # now used last
    with paths["b"].open("rb") as still:  # type: ignore[union-attr]
        assert put("d") and cached_copy("a", 100, never) and cached_copy("c", 100, never)
        assert len(os.listdir(cache)) == 3 and not paths["b"].exists()  # type: ignore[union-attr]
        assert still.read() == bytes(100)  # who reads it reads on
    assert put("large", 301) is None and len(os.listdir(cache)) == 3  # nothing goes for what cannot be kept


def test_an_interrupted_fetch_leaves_nothing_and_the_drafts_of_others_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(path: Path) -> None:
        path.write_bytes(bytes(50))
        raise OSError(errno.EIO, "gone")

    with pytest.raises(OSError, match="gone"):
        cached_copy("a", 100, breaks)
    with pytest.raises(OSError, match="50 of its 100 bytes"):
        cached_copy("a", 100, lambda path: path.write_bytes(bytes(50)) and None)
    assert os.listdir(cache) == []
    monkeypatch.setenv("JEPAKIT_CACHE_GIB", str(250 / 2**30))
    for name, age in ((".tmp-now", 0.0), (".tmp-old", 2 * filecache.ABANDONED)):
        (cache / name).write_bytes(bytes(100))
        os.utime(cache / name, (time.time() - age,) * 2)
    assert put("a") and put("b") and {".tmp-now"} == {n for n in os.listdir(cache) if n.startswith(".tmp-")}


@pytest.mark.parametrize("said", ["x", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JEPAKIT_CACHE_GIB", said)
    with pytest.raises(UserError, match="JEPAKIT_CACHE_GIB"):
        put("a")


class Counting:
    """How often each file of fsspec's memory is fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        kind, counted = type(fsspec.filesystem("memory")), self.asked
        get = kind.get_file

        def get_file(fs: Any, path: str, *rest: Any, **more: Any) -> Any:
            counted.append(path)
            return get(fs, path, *rest, **more)

        monkeypatch.setattr(kind, "get_file", get_file)


def test_shards_are_fetched_once_for_their_index_and_for_all_epochs_and_runs(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    memory, counting = fsspec.filesystem("memory"), Counting(monkeypatch)
    for k in range(12):
        memory.pipe(f"/kept/s-{k:02}.tar", tar(images(4 * k, 4)))
    for _ in range(2):  # two runs
        source = open_source("memory://kept/s-{00..11}.tar")
        for _ in range(2):  # two epochs, more shards than are open at a time
            assert all(source.raw(i)[:4] == b"\x89PNG" for i in range(len(source)))  # type: ignore[index]
    assert sorted(counting.asked) == [f"/kept/s-{k:02}.tar" for k in range(12)] and len(os.listdir(cache)) == 12
    memory.pipe("/kept/s-03.tar", tar(images(100, 5)))  # another content
    assert len(open_source("memory://kept/s-{00..11}.tar")) == 49 and counting.asked[12:] == ["/kept/s-03.tar"]
    memory.rm("/kept", recursive=True)


def test_a_full_disk_keeps_nothing_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = fsspec.filesystem("memory")
    for k in range(3):
        memory.pipe(f"/full/s-{k}.tar", tar(images(4 * k, 4)))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jepakit.data.formats.disk_cache.tempfile.mkstemp", full)
    source = open_source("memory://full/s-{0..2}.tar")
    assert len({source.raw(i) for i in range(12)}) == 12 and caplog.text.count("are not kept") == 1
    memory.rm("/full", recursive=True)
