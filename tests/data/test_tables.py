"""Tables and arrays of images: Parquet here and afar, Arrow as `datasets` saves it, NumPy's files."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats import npz as npz_files
from jepakit.data.formats import parquet as parquet_module
from jepakit.data.formats import prefetch as fetched
from jepakit.data.formats import remote, tables
from jepakit.data.formats.arrow import ArrowSource, arrow
from jepakit.data.formats.npz import npz
from jepakit.data.formats.parquet import ParquetSource, parquet_files
from jepakit.data.formats.remote import DataPaths, expand
from jepakit.data.formats.tables import table_files
from jepakit.data.opening import open_source
from jepakit.data.order import order
from jepakit.data.sources import Labels, Source

Pixels = NDArray[Any]


def draw(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> Pixels:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(6, 6, 3, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def table(seeds: list[int], **columns: Any) -> pa.Table:
    return pa.table({"image": [{"bytes": png(s), "path": f"{s}.png"} for s in seeds], **columns})


def labels_of(source: Source) -> Labels:
    assert source.labels is not None
    assert len(source) == len(source.labels.values) == len(source.labels.test)
    return source.labels


def require_drawn(source: Source, seeds: list[int]) -> None:
    """What lies at each index is what was drawn, whoever asks and in whatever order."""
    assert len(source) == len(seeds)
    asked = np.random.default_rng(1).integers(0, len(seeds), 8 * len(seeds)).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in zip(asked, pool.map(source.read, asked), strict=True):
            np.testing.assert_array_equal(pixels, draw(6, 6, 3, seed=seeds[index]))
    assert len({source.title(i) for i in range(len(seeds))}) == len(seeds)


def test_the_same_images_are_the_same_pixels_and_labels_in_every_form(tmp_path: Path) -> None:
    whole = table(list(range(15)), label=[i % 3 for i in range(15)])
    for i in range(15):
        path = tmp_path / "folder" / str(i % 3) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    pq.write_table(whole, tmp_path / "x.parquet", row_group_size=4)
    stream(tmp_path / "x.arrow", whole)
    np.savez(tmp_path / "x.npz", images=np.stack([draw(6, 6, 3, seed=i) for i in range(15)]), labels=np.arange(15) % 3)
    folder = open_source(str(tmp_path / "folder"))
    place = {folder.title(i)[2:4]: i for i in range(15)}
    for name in ("x.parquet", "x.arrow", "x.npz"):
        source = open_source(str(tmp_path / name))
        require_drawn(source, list(range(15)))
        assert labels_of(source).classes == labels_of(folder).classes == ("0", "1", "2")
        for i in range(15):
            at = place[f"{i:02}"]
            np.testing.assert_array_equal(source.read(i), folder.read(at))
            for ours, theirs in ((source, folder),):
                assert labels_of(ours).values[i] == labels_of(theirs).values[at]
                assert labels_of(ours).test[i] == labels_of(theirs).test[at]


@pytest.mark.parametrize(
    "parts, held",
    [
        (("train", "val", "test"), "test"),
        (("train", "valid"), "valid"),
        (("Train", "val2017"), "val2017"),
        (("train2017", "validation", "extra_test"), "extra_test"),
        (("val", "test"), ""),
    ],
)
def test_a_split_is_told_by_the_same_words_and_means_the_same_in_every_form(
    tmp_path: Path, parts: tuple[str, ...], held: str
) -> None:
    """The class of each image, None for one that has no part, and whether it is held out."""
    seeds = {part: [10 * k + i for i in range(10)] for k, part in enumerate(parts)}
    with tarfile.open(tmp_path / "tree.tar", "w") as tree:
        for part, its in seeds.items():
            for form in ("folder", "shards", "parquet", "arrow", "npz"):
                (tmp_path / form).mkdir(exist_ok=True)
            for seed in its:
                path = tmp_path / "folder" / part / "ab"[seed % 2] / f"{seed}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(seed))
            content = table(its, label=["ab"[seed % 2] for seed in its])
            pq.write_table(content, tmp_path / "parquet" / f"{part}-00000.parquet")
            stream(tmp_path / "arrow" / f"set-{part}.arrow", content)
            images = np.stack([draw(6, 6, 3, seed=seed) for seed in its])
            np.savez(tmp_path / "npz" / f"{part}.npz", images=images, labels=np.array(["ab"[seed % 2] for seed in its]))
            with tarfile.open(tmp_path / "shards" / f"x-{part}-000.tar", "w") as shard:
                shard.add(tmp_path / "folder" / part / "a", "a")
                shard.add(tmp_path / "folder" / part / "b", "b")
        if "extra_test" not in parts:  # for a folder of classes, a name of several words may be a class's
            tree.add(tmp_path / "folder", ".")
    drawn = {draw(6, 6, 3, seed=seed).tobytes(): seed for its in seeds.values() for seed in its}
    part_of = {seed: part for part, its in seeds.items() for seed in its}
    fifth = {8, 9, 18, 19} if not held else set()
    expected = {
        seed: ("ab"[seed % 2] if part.lower().startswith("train") or held in (part, "") else None, part == held or seed in fifth)
        for seed, part in part_of.items()
    }
    forms = ["shards", "parquet", "arrow", "npz", *(["folder", "tree.tar"] if "extra_test" not in parts else [])]
    for form in forms:
        source = open_source(str(tmp_path / form))
        labels = labels_of(source)
        told = {
            drawn[source.read(i).tobytes()]: (labels.classes[value] if value >= 0 else None, bool(test))
            for i, (value, test) in enumerate(zip(labels.values, labels.test, strict=True))
        }
        assert told == expected, form


def test_the_folder_that_a_whole_set_lies_in_is_no_part_of_it(tmp_path: Path) -> None:
    root = tmp_path / "my test set"
    root.mkdir()
    for name in ("more", "train"):
        pq.write_table(table(list(range(5)), label=[0] * 5), root / f"{name}.parquet")
    assert labels_of(open_source(str(root))).test.nonzero()[0].tolist() == [4, 9]
    assert labels_of(open_source(f"{root}/*.parquet")).test.nonzero()[0].tolist() == [4, 9]


def test_a_link_that_leads_nowhere_hides_no_folder_of_a_split(tmp_path: Path) -> None:
    for name in ("train", "elsewhere"):
        (tmp_path / name).mkdir()
        pq.write_table(table(list(range(5)), label=[0] * 5), tmp_path / name / "x.parquet")
    (tmp_path / "test").symlink_to("elsewhere")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "nowhere").symlink_to("gone")
    assert table_files(tmp_path, "parquet") == [tmp_path / "test" / "x.parquet", tmp_path / "train" / "x.parquet"]


# ---- Parquet


def counted(source: Source, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each row group is read from now on."""
    assert isinstance(source, ParquetSource)
    reads: Counter[int] = Counter()
    read = source._read

    def counting(group: int) -> parquet_module.Group:
        reads[group] += 1
        return read(group)

    monkeypatch.setattr(source, "_read", counting)
    return reads


def finished() -> None:
    for thread in threading.enumerate():
        if thread.name == "jepakit-row-group":
            thread.join(30)
            assert not thread.is_alive()


def grouped(path: Path, count: int = 40, each: int = 4, **columns: Any) -> ParquetSource:
    pq.write_table(table(list(range(count)), **columns), path, row_group_size=each)
    source = open_source(str(path))
    assert isinstance(source, ParquetSource)
    for start in source.blocks.starts[:-1].tolist():  # the true sizes are known once a group was read
        source.read(start)
    return source


def emptied(source: ParquetSource) -> None:
    source._groups._copies.clear()


def test_an_epoch_in_order_of_its_blocks_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "KEPT", 6000)  # a group has about 1 000
    source = grouped(tmp_path / "x.parquet")
    assert source.blocks is not None and source.blocks.sequential and source.blocks.starts.tolist() == list(range(0, 41, 4))
    assert 1 <= source.blocks.at_once <= 3
    reads = counted(source, monkeypatch)
    for told in (False, True):
        emptied(source)
        ids = order(0, int(told), 40, source.blocks)
        for step in range(0, 40, 5):
            if told:
                source.prefetch(ids[step:][:20])
            with ThreadPoolExecutor(5) as pool:
                for index, pixels in zip(ids[step : step + 5], pool.map(source.read, ids[step : step + 5].tolist()), strict=True):
                    np.testing.assert_array_equal(pixels, draw(6, 6, 3, seed=int(index)))
        finished()
        assert reads == dict.fromkeys(range(10), 1 + told)


def test_what_was_told_of_is_there_before_it_is_asked_for_and_no_more_than_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = grouped(tmp_path / "x.parquet")
    emptied(source)
    reads = counted(source, monkeypatch)
    source.prefetch(np.array([21, 22, 1, 20, 39]))
    finished()
    assert dict(reads) == {5: 1, 0: 1, 9: 1} and list(reads) == [5, 0, 9]  # in the order of need
    for index in (20, 0, 39):
        np.testing.assert_array_equal(source.read(index), draw(6, 6, 3, seed=index))
    assert sum(reads.values()) == 3
    source._groups.capacity = int(2.5 * source.sizes[[5, 0, 9]].max())
    emptied(source)
    source.prefetch(np.arange(39, -1, -1))
    finished()
    assert set(source._groups._copies) == {9, 8}


@pytest.mark.parametrize("room", [0, 2500, 5000])
def test_row_groups_in_memory_stay_within_their_bound_whoever_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(parquet_module, "KEPT", room)
    source = grouped(tmp_path / "x.parquet")
    over: list[int] = []
    read = source._read

    def watched(group: int) -> parquet_module.Group:
        with source._groups._changed:
            there = [*source._groups._copies, *source._groups._under_way]
            size = int(source.sizes[there].sum())
            over.extend([size] if size > room and len(there) > 1 else [])
        return read(group)

    monkeypatch.setattr(source, "_read", watched)
    asked = np.random.default_rng(0).integers(0, 40, 400)

    def part(at: int) -> list[Pixels]:
        source.prefetch(asked[at : at + 60])
        return [source.read(int(index)) for index in asked[at : at + 50]]

    with ThreadPoolExecutor(8) as pool:
        found = [pixels for some in pool.map(part, range(0, 400, 50)) for pixels in some]
    finished()
    for index, pixels in zip(asked.tolist(), found, strict=True):
        np.testing.assert_array_equal(pixels, draw(6, 6, 3, seed=index))
    kept = [group.nbytes for group in source._groups._copies.values()]
    assert not over and (sum(kept) <= room or len(kept) == 1)


def test_a_row_group_that_many_ask_for_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = grouped(tmp_path / "x.parquet", 64, 32)
    emptied(source)
    reads = counted(source, monkeypatch)
    at_once = threading.Barrier(32)

    def ask(index: int) -> Pixels:
        at_once.wait(30)
        return source.read(index)

    with ThreadPoolExecutor(32) as pool:
        for index, pixels in enumerate(pool.map(ask, range(32))):
            np.testing.assert_array_equal(pixels, draw(6, 6, 3, seed=index))
    assert reads == {0: 1}


def test_reading_one_row_group_does_not_keep_another_from_being_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = grouped(tmp_path / "x.parquet")
    emptied(source)
    source.read(0)
    slow, begun, read = threading.Event(), threading.Event(), source._read

    def waiting(group: int) -> parquet_module.Group:
        begun.set()
        if group == 1:
            assert slow.wait(30)
        return read(group)

    monkeypatch.setattr(source, "_read", waiting)
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(source.read, 4)
        assert begun.wait(30)
        for index in (3, 8):  # one is kept, another is of the same file
            np.testing.assert_array_equal(pool.submit(source.read, index).result(30), draw(6, 6, 3, seed=index))
        assert not late.done()
        slow.set()
        np.testing.assert_array_equal(late.result(30), draw(6, 6, 3, seed=4))


def test_python_ends_in_peace_while_groups_are_read_in_the_background(tmp_path: Path) -> None:
    data = [{"bytes": os.urandom(20_000), "path": None} for _ in range(100)]
    pq.write_table(pa.table({"image": [{"bytes": png(0), "path": None}, *data]}), tmp_path / "x.parquet", row_group_size=2)
    code = (
        "import sys, numpy as np; from pathlib import Path; from jepakit.data.formats.parquet import parquet\n"
        "source = parquet(Path(sys.argv[1]), None); source.prefetch(np.arange(101)); source.read(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.parquet")], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """A store of its own whose files fail to open as often as told."""

    protocol = "flaky"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    failures = 0

    def _open(self, *args: Any, **options: Any) -> Any:
        if self.failures > 0:
            self.failures -= 1
            raise TimeoutError("no answer")
        return super()._open(*args, **options)


@contextmanager
def afar(paths: dict[str, pa.Table], monkeypatch: pytest.MonkeyPatch) -> Iterator[DataPaths]:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
    fs = Flaky()
    fs.store = {}  # type: ignore[misc]
    for path, content in paths.items():
        with fs.open(path, "wb") as file:
            pq.write_table(content, file, row_group_size=4)
    yield DataPaths(fs, tuple(paths))
    finished()


def test_parquet_afar_is_read_as_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "/set/train/0.parquet": table(list(range(9)), label=[i % 2 for i in range(9)]),
        "/set/test/0.parquet": table(list(range(9, 12)), label=[0, 1, 1]),
    }
    for path, content in parts.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True)
        pq.write_table(content, tmp_path / path[1:], row_group_size=4)
    here = parquet_files(expand(str(tmp_path / "set" / "t*" / "*.parquet")), "some", None)
    with afar(dict(sorted(parts.items())), monkeypatch) as places:
        there = parquet_files(places, "some", None)
        there.prefetch(np.arange(12))
        for source in (here, there, open_source(str(tmp_path / "set"))):
            require_drawn(source, [9, 10, 11, *range(9)])
            labels = labels_of(source)
            assert labels.values.tolist() == [0, 1, 1, *(i % 2 for i in range(9))]
            assert labels.test.tolist() == [True] * 3 + [False] * 9
            titles = [source.title(i) for i in range(12)]
            assert titles[2:4] == ["test/0.parquet:2", "train/0.parquet:0"]  # in every place the same, and each once
    assert here.blocks is not None and not here.blocks.sequential
    assert there.blocks is not None and there.blocks.sequential


def test_a_place_that_fails_now_and_then_is_asked_again_and_one_that_always_does_makes_bad_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with afar({"/x.parquet": table(list(range(8)))}, monkeypatch) as places:
        places.fs.failures = 2
        source = parquet_files(places, "some", None)
        places.fs.failures = 2
        np.testing.assert_array_equal(source.read(5), draw(6, 6, 3, seed=5))
        places.fs.failures = 1000
        np.testing.assert_array_equal(source.read(6), draw(6, 6, 3, seed=6))  # of the group that is here
        for index in (0, 1, 2):
            with pytest.raises(BadImageError, match="cannot be read: no answer"):
                source.read(index)
        assert places.fs.failures >= 990  # a group that failed is left alone for a while
        monkeypatch.setattr(fetched, "PATIENCE", 0.0)
        places.fs.failures = 0
        np.testing.assert_array_equal(source.read(0), draw(6, 6, 3, seed=0))
        places.fs.failures = 1000
        with pytest.raises(UserError, match=r"/x\.parquet cannot be read as Parquet: no answer"):
            parquet_files(places, "some", None)


def test_a_file_afar_that_is_cut_or_gone_later_makes_bad_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with afar({"/x.parquet": table(list(range(8)))}, monkeypatch) as places:
        source = parquet_files(places, "some", None)
        whole = places.fs.cat_file("/x.parquet")
        places.fs.pipe_file("/x.parquet", whole[: len(whole) // 8])
        with pytest.raises(BadImageError):
            source.read(7)
        places.fs.rm("/x.parquet")
        with pytest.raises(BadImageError):
            source.read(0)


def test_an_image_beside_a_table_is_read_from_local_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    lone = pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], kind)})
    (tmp_path / "a.png").write_bytes(png(3))
    pq.write_table(lone, tmp_path / "x.parquet")
    np.testing.assert_array_equal(open_source(str(tmp_path / "x.parquet")).read(0), draw(6, 6, 3, seed=3))
    with afar({"/x.parquet": lone}, monkeypatch) as places, pytest.raises(BadImageError, match=r"'a\.png'.*local folders only"):
        parquet_files(places, "some", None).read(0)


def test_a_few_bytes_that_stand_for_many_large_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = png(0) + bytes(1 << 20)
    few = pa.table({"image": pa.array([large] * 100, pa.binary())})  # one value, 100 references to it: 100 MB
    pq.write_table(few, tmp_path / "x.parquet", compression="zstd", dictionary_pagesize_limit=1 << 24)
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
    monkeypatch.setattr(tables, "most_memory", lambda: 20 << 20)
    source = parquet_files(expand(str(tmp_path / "x.parquet")), "some", None)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(BadImageError, match="more than 20 MiB: taken for a decompression bomb"):
        source.read(3)
    assert pa.default_memory_pool().max_memory() - before < 80 << 20


def test_without_labelled_images_to_train_on_every_fifth_is_held_out(tmp_path: Path) -> None:
    for part in ("test", "validation"):
        pq.write_table(table(list(range(5)), label=[0] * 5), tmp_path / f"{part}.parquet")
    labels = labels_of(open_source(str(tmp_path)))
    assert (labels.values == 0).all() and labels.test.nonzero()[0].tolist() == [4, 9]


# ---- Arrow


def stream(path: Path, content: pa.Table, kind: Callable[..., Any] = pa.ipc.new_stream, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, kind(file, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=3)


def saved(folder: Path, parts: list[pa.Table], names: list[str] | None = None, **state: Any) -> None:
    """As `save_to_disk` lays a Dataset out."""
    files = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        stream(folder / file, part)
    kept = {"_data_files": [{"filename": file} for file in files], "_fingerprint": "1", "_split": "train", "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(kept | state))
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    if names:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    (folder / "dataset_info.json").write_text(json.dumps({"builder_name": "x", "features": features}))


def test_a_saved_data_set_is_read_in_the_order_of_its_state(tmp_path: Path) -> None:
    parts = [table([0, 1, 2, 3, 4], label=[0, 1, 1, 0, 2]), table([5, 6], label=[2, None])]
    saved(tmp_path / "set", parts, ["cat", "dog", "eel"])
    source = open_source(str(tmp_path / "set"))
    require_drawn(source, list(range(7)))
    labels = labels_of(source)
    assert (labels.name, labels.classes, labels.values.tolist()) == ("label", ("cat", "dog", "eel"), [0, 1, 1, 0, 2, 2, -1])
    assert source.blocks is not None and not source.blocks.sequential and source.blocks.starts.tolist() == [0, 3, 5, 7]
    assert source.title(5) == "data-00001-of-00002.arrow:0"
    with pytest.raises(UserError, match="'label', not 'lable'; did you mean 'label'"):
        open_source(str(tmp_path / "set"), "lable")


def test_saved_splits_are_one_set_whose_test_is_held_out(tmp_path: Path) -> None:
    for split, seeds in (("train", [0, 1, 2]), ("validation", [3]), ("test", [4, 5])):
        saved(tmp_path / split, [table(seeds, label=[s % 2 for s in seeds])], ["even", "odd"])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    source = open_source(str(tmp_path))
    require_drawn(source, list(range(6)))
    labels = labels_of(source)
    assert labels.classes == ("even", "odd") and labels.values.tolist() == [0, 1, 0, -1, 0, 1]  # of two, one has no part
    assert labels.test.tolist() == [False] * 4 + [True] * 2
    assert source.title(3) == "validation/data-00000-of-00001.arrow:0"


def test_the_cache_of_datasets_is_read_without_what_was_computed_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "default" / "0.0.0" / "abc"
    stream(folder / "pets-train-00000-of-00002.arrow", table([0, 1], label=["a", "b"]))
    stream(folder / "pets-train-00001-of-00002.arrow", table([2], label=["b"]))
    stream(folder / "pets-test.arrow", table([3], label=["a"]))
    stream(folder / "cache-0123.arrow", pa.table({"indices": [2, 1]}))
    source = open_source(str(tmp_path))
    require_drawn(source, [3, 0, 1, 2])
    labels = labels_of(source)
    assert (
        labels.classes == ("a", "b") and labels.values.tolist() == [0, 0, 1, 1] and labels.test.tolist() == [True] + [False] * 3
    )


def test_both_formats_of_arrow_and_columns_of_any_kind_are_read(tmp_path: Path) -> None:
    label = pa.array(["b", None, "a", "b", "b"])
    for i, column in enumerate((label, label.dictionary_encode(), label.cast(pa.large_string()))):
        for kind in (pa.ipc.new_stream, pa.ipc.new_file):
            path = tmp_path / f"{i}.arrow"
            stream(path, table(list(range(5)), label=column), kind)
            source = open_source(str(path))
            require_drawn(source, list(range(5)))
            assert labels_of(source).classes == ("a", "b") and labels_of(source).values.tolist() == [1, -1, 0, 1, 1]
    named = pa.table({"image": pa.array([png(1), png(2)], pa.large_binary()), "label": [True, False]})
    features = {"image": {"_type": "Image"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    stream(path, named.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}))
    assert labels_of(open_source(str(path))).values.tolist() == [1, 0]
    require_drawn(open_source(str(path)), [1, 2])


def test_arrow_takes_no_memory_for_the_images(tmp_path: Path) -> None:
    stream(tmp_path / "x.arrow", pa.table({"image": [png(0) + bytes(1 << 20)] * 20}))
    before = pa.total_allocated_bytes()
    source = open_source(str(tmp_path / "x.arrow"))
    np.testing.assert_array_equal(source.read(19), draw(6, 6, 3))
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_an_arrow_file_cut_anywhere_is_one_sentence(tmp_path: Path) -> None:
    for kind in (pa.ipc.new_stream, pa.ipc.new_file):
        path = tmp_path / "x.arrow"
        stream(path, table([0, 1, 2, 3]), kind)
        whole = path.read_bytes()
        end = whole.rindex(b"\xff\xff\xff\xff\0\0\0\0") + 8  # of what is read: a footer comes after it
        for size in [*range(0, end, 41), *range(end - 16, end)]:
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match=r"x\.arrow cannot be read as Arrow, it may be cut"):
                arrow(path, None)


def test_arrow_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    good = [table([0, 1], label=[0, 1])]
    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: saved(root, good, _indices_files=[{"filename": "indices.arrow"}]), r"flatten_indices\(\)"),
        (lambda: saved(root, good, _data_files=[{"filename": "../secret.arrow"}]), "'../secret.arrow', which may lie outside"),
        (lambda: saved(root, good, _data_files=[{"filename": str(tmp_path / "secret.arrow")}]), "outside"),
        (lambda: saved(root, good, _data_files=[{"filename": "gone.arrow"}]), r"lacks gone\.arrow"),
        (lambda: saved(root, good, _data_files=7), "does not name its data"),
        (lambda: (root / "state.json").write_text("[" * 100_000), r"state\.json is no JSON"),
        (lambda: (root / "state.json").write_text("[]"), r"state\.json holds no mapping"),
        (lambda: saved(root, good, ["only"]), "label 1 of 1 named classes"),
        (lambda: saved(root, [pa.table({"text": ["a"]})]), "no column of images"),
        (lambda: saved(root, [good[0][:0]]), "no rows"),
        (lambda: saved(root, [good[0].append_column("image", good[0]["label"])]), "several columns of one name"),
        (lambda: saved(root, [pa.table({"no\nimages": [1]})]), r"among 'no\\nimages'"),
        (lambda: saved(root, [good[0], table([1])]), "other columns"),
        (lambda: (root / "dataset_dict.json").write_text('{"splits": ["."]}'), "other columns"),  # the folder itself, once
        (lambda: (root / "dataset_dict.json").write_text('{"splits": ["train"]}'), r"train lacks state\.json"),
        (lambda: (root / "dataset_dict.json").write_text('{"splits": [".."]}'), "outside"),
    ]
    stream(tmp_path / "secret.arrow", good[0])
    for make, words in mistakes:
        make()
        with pytest.raises(UserError, match=words) as caught:
            open_source(str(root))
        assert "\n" not in str(caught.value)
    for packing in ("zstd", "lz4"):
        stream(tmp_path / "x.arrow", good[0], compression=packing)
        with pytest.raises(UserError, match=r"x\.arrow is compressed"):
            open_source(str(tmp_path / "x.arrow"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'jepakit\[parquet\]'"):
        open_source(str(tmp_path / "x.arrow"))


def test_an_arrow_file_whose_offsets_lead_elsewhere_gives_bad_images(tmp_path: Path) -> None:
    images = pa.table({"image": pa.array([b"a" * 100, b"b" * 100, png(7)], pa.binary())})
    stream(tmp_path / "x.arrow", images)
    whole = (tmp_path / "x.arrow").read_bytes()
    offsets = np.array([0, 100, 200, 200 + len(png(7))], np.int32)
    for wrong in ([0, 1 << 30, 200, 300], [0, 100, -(1 << 20), 300], [1 << 30, 100, 200, 300], [300, 200, 100, 0]):
        (tmp_path / "x.arrow").write_bytes(whole.replace(offsets.tobytes(), np.array(wrong, np.int32).tobytes()))
        source = arrow(tmp_path / "x.arrow", None)
        assert isinstance(source, ArrowSource)
        for index in range(3):
            with pytest.raises(BadImageError, match="its record batch is broken"):
                source.read(index)


# ---- NumPy


def images_of(*shape: int, dtype: Any = np.uint8) -> Pixels:
    return draw(*shape, dtype=dtype) if np.dtype(dtype).kind == "u" else np.random.default_rng(0).random(shape).astype(dtype)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_keras_and_medmnists_names_are_splits(tmp_path: Path, save: Callable[..., None]) -> None:
    x, y = images_of(10, 7, 5), np.arange(10).reshape(-1, 1) % 3
    save(tmp_path / "keras.npz", x_train=x[:6], y_train=y[:6, 0], x_test=x[6:], y_test=y[6:, 0])
    parts = {"train": slice(0, 5), "val": slice(5, 6), "test": slice(6, 10)}
    save(
        tmp_path / "medmnist.npz",
        **{f"{s}_images": x[part] for s, part in parts.items()},
        **{f"{s}_labels": y[part].astype(np.uint8) for s, part in parts.items()},
    )
    for name, hidden in (("keras", False), ("medmnist", True)):
        source = open_source(str(tmp_path / f"{name}.npz"))
        labels = labels_of(source)
        for i in range(10):
            pixels = source.read(i)
            assert pixels.shape == (7, 5, 1) and pixels.dtype == np.uint8 and pixels.flags.writeable
            np.testing.assert_array_equal(pixels[..., 0], x[i])
        expected = y[:, 0].copy()
        expected[5] = -1 if hidden else expected[5]  # of a validation and a test, one has no part
        assert labels.classes == ("0", "1", "2") and labels.values.tolist() == expected.tolist()
        assert labels.test.tolist() == [False] * 6 + [True] * 4
        assert len({source.title(i) for i in range(10)}) == 10


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64, ">f8"])
@pytest.mark.parametrize(
    "shape, first",
    [
        ((5, 9, 7), None),
        ((5, 9, 7, 1), False),
        ((5, 9, 7, 3), False),
        ((5, 3, 9, 7), True),
        ((5, 1, 9, 7), True),
        ((5, 3, 4, 4), False),
        ((5, 13, 16, 16), True),
        ((5, 16, 16, 13), False),
    ],
)
def test_images_of_any_layout_and_depth_are_rows_columns_and_channels(
    tmp_path: Path, dtype: Any, shape: tuple[int, ...], first: bool | None
) -> None:
    x = images_of(*shape, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    expected = x[..., None] if first is None else x.transpose(0, 2, 3, 1) if first else x
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    np.savez(tmp_path / "x.npz", x)
    np.savez_compressed(tmp_path / "c.npz", data=x)
    for name in ("x.npy", "f.npy", "x.npz", "c.npz"):
        source = npz(tmp_path / name, None)
        assert source is not None and source.labels is None
        for i in range(5):
            pixels = source.read(i)
            assert pixels.dtype.isnative and pixels.flags.c_contiguous
            assert pixels.dtype == (np.float32 if np.dtype(dtype).kind == "f" else np.dtype(dtype).newbyteorder("="))
            np.testing.assert_array_equal(pixels, expected[i].astype(pixels.dtype))


def test_class_names_and_other_labels_are_found(tmp_path: Path) -> None:
    x = images_of(6, 5, 5)
    group = np.array([1, 0, 2, -1, 1, 1], np.int8)
    words = np.array([b"b", b"a", b"b", b"a", b"b", b"b"])
    np.savez(
        tmp_path / "x.npz", images=x, group=group, groups=["cat", "dog", "eel"], word=words, id=np.arange(6), w=np.zeros((6, 2))
    )
    labels = labels_of(open_source(str(tmp_path / "x.npz")))
    assert (labels.name, labels.classes) == ("group", ("cat", "dog", "eel")) and labels.values.tolist() == group.tolist()
    word = labels_of(open_source(str(tmp_path / "x.npz"), "word"))
    assert word.classes == ("a", "b") and word.values.tolist() == [1, 0, 1, 0, 1, 1]
    with pytest.raises(UserError, match=r"array 'w' \(6, 2\) is not taken for labels, as it has several numbers for each image"):
        open_source(str(tmp_path / "x.npz"), "w")
    np.savez(tmp_path / "x.npz", images=x, y=group, class_names=["cat", "dog"])
    with pytest.raises(UserError, match="array 'y': label 2 of 2 named classes"):
        open_source(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", images=x, id=np.arange(6))  # a number of each image is no class unless one says so
    assert open_source(str(tmp_path / "x.npz")).labels is None
    assert len(labels_of(open_source(str(tmp_path / "x.npz"), "id")).classes) == 6


def test_a_folder_of_numpys_files_is_a_set(tmp_path: Path) -> None:
    x, y = images_of(6, 5, 5, 3), np.array([0, 1, 0, 1, 0, 1])
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for folder in (one, two, three):
        folder.mkdir()
        (folder / "README.md").write_text("hello")
    np.savez(one / "any.npz", images=x, labels=y)
    np.savez(two / "train.npz", images=x[:4], labels=y[:4])
    np.savez_compressed(two / "test.npz", images=x[4:], labels=y[4:])
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        np.save(three / f"x_{name}.npy", x[part])
        np.save(three / f"y_{name}.npy", y[part])
    for folder, values in ((one, y), (two, [0, 1, 0, 1, 0, 1]), (three, [0, 1, 0, 1, 0, 1])):
        source = open_source(str(folder))
        assert len(source) == 6 and labels_of(source).values.tolist() == list(values)
        whole = {source.read(i).tobytes(): (int(labels_of(source).values[i]), bool(labels_of(source).test[i])) for i in range(6)}
        held = [4, 5] if folder != one else []
        assert whole == {x[i].tobytes(): (int(y[i]), i in held) for i in range(6)}
    Image.fromarray(x[0]).save(one / "mine.png")  # arrays beside images are not the folder
    assert len(open_source(str(one))) == 1


def test_values_that_are_not_finite_are_a_bad_image_each(tmp_path: Path) -> None:
    x = images_of(4, 5, 5, dtype=np.float64)
    x[1, 2, 2], x[2, 0, 0], x[3, 0, 0] = np.nan, np.inf, 1e300  # the last is infinite as float32
    np.save(tmp_path / "x.npy", x)
    source = open_source(str(tmp_path / "x.npy"))
    assert source.read(0).dtype == np.float32
    for index in (1, 2, 3):
        with pytest.raises(BadImageError, match="not finite"):
            source.read(index)


def test_large_arrays_are_mapped_unless_compressed_and_then_measured_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images_of(8, 16, 16, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", images=x)
    np.savez_compressed(tmp_path / "c.npz", images=x)
    monkeypatch.setattr(tables, "most_memory", lambda: x.nbytes - 1)
    for name in ("x.npy", "x.npz"):
        source = open_source(str(tmp_path / name))
        assert isinstance(source, npz_files.NumpySource) and isinstance(source.arrays[0], np.memmap)
    with pytest.raises(UserError, match=r"too much for memory: save them by np\.savez"):
        open_source(str(tmp_path / "c.npz"))


def test_an_image_of_more_pixels_than_may_be_is_refused_unread(tmp_path: Path) -> None:
    for shape in ((2, 12, 8), (2, 12, 8, 3), (2, 3, 12, 8)):
        np.save(tmp_path / "x.npy", images_of(*shape))
        source = open_source(str(tmp_path / "x.npy"))
        assert source.read(1, 96).shape[:2] == (12, 8)
        with pytest.raises(BadImageError, match=r"8x12 is more than images\.max_pixels=95"):
            source.read(1, 95)


def header(shape: tuple[Any, ...], descr: Any = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(1 << 40, 100, 100), (9, 100, 100), (-1, 5, 5), (1 << 70, 1 << 70, 3)])
def test_an_array_that_claims_what_it_does_not_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    data = header(shape) + bytes(1000)
    (tmp_path / "x.npy").write_bytes(data)
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / f"{packing}.npz", "w", packing) as archive:
            archive.writestr("images.npy", data)
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=f"{path.name} cannot be read as NumPy's: .*claims"):
            npz(path, None)


def test_arrays_of_objects_and_other_things_are_refused_in_one_sentence(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(ran),)

    path = tmp_path / "x.npz"
    x = images_of(4, 5, 5)
    trap = np.array([Trap()] * 4, object)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"images": trap}, r"no array of images.*'images' \(4,\) of objects, which are not read"),
        ({"images": x.astype(np.int64)}, r"no array of images.*uint8.*'images' \(4, 5, 5\) int64"),
        ({"a": x, "b": x}, "several arrays that could be images .'a', 'b'.: call one of them 'images'"),
        ({"one\n": x[:, :, :3], "empty": x[:0]}, r"no array of images.*'one\\n' \(4, 5, 3\)"),
        ({}, "no array of images.*it has none"),
    ]
    for arrays, words in mistakes:
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=words) as caught:
            open_source(str(path))
        assert "\n" not in str(caught.value)
    np.savez(path, images=x, labels=trap)
    assert open_source(str(path)).labels is None
    np.save(tmp_path / "x.npy", trap)
    with pytest.raises(UserError, match="of objects"):
        open_source(str(tmp_path / "x.npy"))
    for content in (b"", b"PK\3\4 no zip", b"\x93NUMPY\3\0"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.npz cannot be read as NumPy's"):
            open_source(str(path))
    np.savez_compressed(path, images=images_of(40, 50, 50))
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    with pytest.raises(UserError, match="cannot be read as NumPy's: 'images"):  # its checksum does not fit
        open_source(str(path))
    assert not ran.exists()


# ---- any bytes


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def as_stream(content: pa.Table, kind: Callable[..., Any], **options: Any) -> bytes:
    def write(buffer: io.BytesIO) -> None:
        with kind(buffer, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(content, max_chunksize=3)

    return written(write)


SMALL = table(list(range(7)), label=[0, 1, 2, None, 1, 0, 2], word=pa.array(list("abcabca")).dictionary_encode())
ARRAYS = {"images": images_of(6, 5, 5, 3), "labels": np.arange(6) % 2, "names": np.array(["a", "b"])}
SEEDS = [
    *((".parquet", written(lambda b, c=c: pq.write_table(SMALL, b, row_group_size=3, compression=c))) for c in ("none", "zstd")),
    (".arrow", as_stream(SMALL, pa.ipc.new_stream)),
    (".arrow", as_stream(SMALL, pa.ipc.new_stream, compression="lz4")),
    (".arrow", as_stream(SMALL, pa.ipc.new_file)),
    (".npz", written(lambda b: np.savez(b, **ARRAYS))),
    (".npz", written(lambda b: np.savez_compressed(b, **ARRAYS))),
    (".npy", written(lambda b: np.save(b, ARRAYS["images"]))),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(-1, 1), st.sampled_from([b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\x80", b"\1"])), max_size=5),
    st.floats(0, 4),
)
def test_any_bytes_give_pixels_a_bad_image_or_one_sentence(
    tmp_path: Path, seed: tuple[str, bytes], changes: list[tuple[float, bytes]], cut: float
) -> None:
    suffix, whole = seed
    data = bytearray(whole)
    for share, value in changes:
        at = int(abs(share) ** (4 if share < 0 else 1) * (len(data) - 1))
        at = len(data) - 1 - at if share < 0 else at  # the end is where a Parquet file and a zip say what they hold
        data[at : at + len(value)] = value
    path = tmp_path / f"x{suffix}"
    path.unlink(missing_ok=True)  # an older one may still be mapped
    path.write_bytes(data[: int(cut * len(data))] if cut < 1 else data)
    for labels in (None, "word" if suffix in (".parquet", ".arrow") else "labels"):
        try:
            source = open_source(str(path), labels)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        for index in range(min(len(source), 20)):
            try:
                assert source.read(index).ndim == 3
            except BadImageError as error:
                assert str(error)


def test_names_beyond_unicode_are_one_sentence(tmp_path: Path) -> None:
    """Found by the fuzz: Python can make no text of them."""
    names = np.array(["aa", "bb", "cc", "dd"])
    names.view(np.uint32)[3] = 0x110000
    np.savez(tmp_path / "x.npz", images=draw(4, 6, 6, 3), label=names)
    with pytest.raises(UserError, match="no letters"):
        npz(tmp_path / "x.npz", None)
