"""Orders, threads that hang, views, processes, and what is measured in the data."""

import json
import tarfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare

from jepakit.config.config import overrides, resolve
from jepakit.config.recipes import settings as recipe_settings
from jepakit.core import rng
from jepakit.core.errors import UserError
from jepakit.data.crops import draw_turns
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.formats.folder import FolderSource
from jepakit.data.formats.pack import pack
from jepakit.data.loader import Loader, TooManyBadImagesError
from jepakit.data.opening import open_source
from jepakit.data.order import order
from jepakit.data.sources import ArraySource, Blocks, Source, groups_at_hand, spread_places
from jepakit.data.statistics import channel_statistics, fitted
from jepakit.data.threads import StuckError, run_parallel
from jepakit.model.images import ImageSettings, all_turns, normalise, turned, turned_back
from jepakit.model.masking.masks import MultiBlock
from test_data import folder, noise, same

LAW = MultiBlock(min_keep=2)
SMALL = ImageSettings(size=16, max_bad=0.5)
WHOLE: dict[str, Any] = {"size": 8, "crop_scale": (1, 1), "crop_aspect": (1, 1)}
SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


def blocks_of(sizes: list[int], at_once: int = 2, *, sequential: bool = True) -> Blocks:
    return Blocks(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), at_once, sequential)


def loader(source: Source, images: ImageSettings = SMALL, batch_size: int = 8, **more: Any) -> Loader:
    return Loader(source, images, LAW, (4, 4), batch_size, 0, **more)


def shades(count: int, blocks: Blocks | None = None) -> ArraySource:
    """Images of one shade each, that of their index, left half of it brighter by 100."""
    images = np.zeros((count, 8, 8, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    images[:, :, :4] += 100
    source = ArraySource("shades", images, None)
    source.blocks = blocks
    return source


# ---- order


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(1, 5), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_an_epoch_by_blocks_is_a_permutation_that_opens_each_block_once_and_few_at_a_time(
    sizes: list[int], at_once: int, seed: int, epoch: int
) -> None:
    blocks, count = blocks_of(sizes, at_once), sum(sizes)
    ids = order(seed, epoch, count, blocks)
    assert sorted(ids.tolist()) == list(range(count))
    block = np.searchsorted(blocks.starts, ids, side="right") - 1
    spans = [(np.flatnonzero(block == b)[0], np.flatnonzero(block == b)[-1]) for b in np.unique(block)]
    assert max(sum(first <= place <= last for first, last in spans) for place in range(count)) <= at_once


def test_orders_differ_by_epoch_and_seed_and_mix_blocks() -> None:
    blocks = blocks_of([50] * 8, at_once=4)
    a, b, c = (order(seed, epoch, 400, blocks) for seed, epoch in ((0, 0), (0, 1), (1, 0)))
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    first = np.searchsorted(blocks.starts, a[:200], side="right") - 1
    assert len(set(first.tolist())) == 4 and len(set(first[:20].tolist())) >= 3
    assert np.array_equal(order(0, 0, 400, blocks_of([50] * 8, at_once=4)), a)  # a value, not an object


def test_an_order_by_blocks_is_uniform_over_places() -> None:
    blocks = blocks_of([4] * 6, at_once=2)
    places = np.array([np.argsort(order(seed, 0, 24, blocks)) for seed in range(3000)])
    assert np.abs(places.mean(0) - 11.5).max() < 5 * np.sqrt((24**2 - 1) / 12 / 3000)


@pytest.mark.parametrize(
    ("shuffle", "sequential", "by_blocks"), [("auto", True, True), ("auto", False, False), ("full", True, False)]
)
def test_the_storage_or_the_user_says_what_the_order_goes_by(shuffle: str, sequential: bool, by_blocks: bool) -> None:
    blocks = blocks_of([10, 10, 10], sequential=sequential)
    made = loader(shades(30, blocks), ImageSettings(size=8, shuffle=shuffle), batch_size=10)
    np.testing.assert_array_equal(made.ids(0), order(0, 0, 30, blocks if by_blocks else None)[:10])
    assert fitted(made.images, made.source).shuffle == ("blocks" if by_blocks else "full")


def test_a_source_is_told_what_comes_next_before_it_is_asked() -> None:
    said: list[np.ndarray] = []

    class Told(ArraySource):
        def prefetch(self, ids: np.ndarray) -> None:
            said.append(ids)

        def raw(self, index: int) -> Pixels:
            assert any(index in ids for ids in said)
            return super().raw(index)

    source = Told("told", shades(30).images, None)
    source.blocks = blocks_of([10, 10, 10])
    said.append(np.arange(30))  # the look at some images before a run
    made = loader(source, ImageSettings(size=8), batch_size=7)
    said.clear()
    for step in range(4):
        made.batch(step)
        np.testing.assert_array_equal(said[-1][:7], made.ids(step))
    np.testing.assert_array_equal(said[-1], np.concatenate([order(0, 0, 30, source.blocks)[21:], order(0, 1, 30, source.blocks)]))


# ---- threads


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 6))
def test_every_item_is_done_once(count: int, threads: int) -> None:
    done: list[tuple[int, int]] = []
    run_parallel(count, lambda i: i * i, lambda i, x: done.append((i, x)), threads=threads, seconds=60, late=lambda i: None)
    assert sorted(done) == [(i, i * i) for i in range(count)]


def test_the_first_error_is_raised_and_the_rest_is_left() -> None:
    seen: list[int] = []

    def work(i: int) -> None:
        seen.append(i)
        if i == 3:
            raise UserError("three")

    with pytest.raises(UserError, match="three"):
        run_parallel(10_000, work, lambda i, x: None, threads=2, seconds=60, late=lambda i: None)
    assert len(seen) < 10_000


def test_an_item_that_hangs_is_given_up_tried_again_and_never_put_late() -> None:
    go, late, put = threading.Event(), [], []

    def work(i: int) -> str:
        if i == 2 and not late:
            go.wait(30)
            return "late"
        return "good"

    run_parallel(5, work, lambda i, x: put.append((i, x)), threads=2, seconds=0.2, late=late.append)
    go.set()
    time.sleep(0.1)
    assert late == [2] and sorted(put) == [(i, "good") for i in range(5)]


def test_a_storage_that_never_answers_ends_in_one_sentence() -> None:
    go = threading.Event()
    with pytest.raises(StuckError, match="does not answer"):
        run_parallel(100, lambda i: go.wait(60), lambda i, x: None, threads=8, seconds=0.05, late=lambda i: None)
    go.set()


# ---- batches


def hangs(index: int, go: threading.Event) -> ArraySource:
    class Hanging(ArraySource):
        asked = 0

        def raw(self, index_: int) -> Pixels:
            if index_ == index:
                Hanging.asked += 1
                go.wait(60)
            return super().raw(index_)

    return Hanging("hanging", shades(40).images, None)


def test_a_read_that_hangs_is_a_bad_image_replaced_as_any_other_and_not_tried_again() -> None:
    go = threading.Event()
    broken = shades(40)
    broken.raw = lambda index: bad() if index == 5 else shades(40).raw(index)  # type: ignore[method-assign]

    def bad() -> Pixels:
        raise BadImageError("broken")

    source = hangs(5, go)
    made = loader(source, read_timeout_seconds=0.3)
    batches, expected = list(made(0, 10)), list(loader(broken)(0, 10))  # two epochs
    go.set()
    assert all(same(a, b) for a, b in zip(batches, expected, strict=True))
    assert made.bad == {5: "no answer within 0.3 s"} and source.asked == 1  # type: ignore[attr-defined]


def test_hanging_reads_too_count_against_max_bad() -> None:
    go = threading.Event()
    images = ImageSettings(size=8, max_bad=0.05)

    class Dead(ArraySource):
        def raw(self, index: int) -> Pixels:
            if index % 4 == 1:
                go.wait(60)
            return super().raw(index)

    made = loader(Dead("dead", shades(40).images, None), images, read_timeout_seconds=0.1)
    with pytest.raises(TooManyBadImagesError, match=r"3 of 40 images"):
        list(made(0, 5))
    go.set()


def test_files_that_vanish_or_are_locked_while_a_run_goes_on_are_bad_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource(folder(tmp_path, 24))
    made = loader(source)
    made.batch(0)
    (source.root / source.files[3]).unlink()
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "007.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert len(list(made(3, 9))) == 6
    assert made.bad == {3: "No such file or directory", 7: "Permission denied"}


def of_process(root: str, process: int, processes: int, parts: int) -> list[Any]:
    made = Loader(
        FolderSource(Path(root)),
        ImageSettings(size=16, symmetry="mirror"),
        LAW,
        (4, 4),
        8,
        3,
        parts,
        process=process,
        processes=processes,
    )
    batches = [made.batch(step) for step in range(4)]
    return [(b.images.numpy(), b.turns[0].numpy(), [vars(m) for m in b.masks]) for b in batches]  # type: ignore[union-attr]


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_share_the_batch_of_one(tmp_path: Path, parts: int) -> None:
    root = str(folder(tmp_path, 20))
    whole = of_process(root, 0, 1, parts)
    for processes in (2, 4):
        told = [of_process(root, process, processes, parts) for process in range(processes)]
        for step in range(4):
            rows = len(whole[step][0]) // parts
            for kind in (0, 1):  # images, mirrored: part by part, process by process
                shape = whole[step][kind].shape
                split = [told[p][step][kind].reshape(parts, rows // processes, *shape[1:]) for p in range(processes)]
                np.testing.assert_array_equal(np.concatenate(split, 1).reshape(shape), whole[step][kind])
            for part in range(parts):
                for name in ("context", "targets", "context_lengths", "target_lengths"):
                    pieces = [told[p][step][2][part][name] for p in range(processes)]
                    np.testing.assert_array_equal(np.concatenate(pieces), whole[step][2][part][name])


def test_a_batch_that_processes_cannot_share_is_one_sentence() -> None:
    with pytest.raises(UserError, match="batch_size=8 cannot be shared evenly by 3 processes"):
        loader(shades(40), processes=3)


def test_views_are_crops_of_the_same_images_and_the_first_is_the_only_one_of_others(tmp_path: Path) -> None:
    source, images = FolderSource(folder(tmp_path, 20)), ImageSettings(size=16, symmetry="mirror")
    own = images.model_copy(update={"target_crop": "own"})
    one, two = loader(source, images).batch(1), loader(source, own).batch(1)
    assert len(one.views) == 1 and len(two.views) == 2 and torch.equal(two.views[0], one.images) and two.images is two.views[0]
    assert not torch.equal(two.views[0], two.views[1])
    shade = loader(shades(40), ImageSettings(target_crop="own", **WHOLE)).batch(0)
    assert all(torch.equal(view, shade.images) for view in shade.views)  # whole images have one view
    law = ImageSettings(symmetry="mirror", target_crop="own", **WHOLE)
    turns = [loader(shades(40), law).batch(step).turns for step in range(5)]
    a, b = (torch.cat([t[view] for t in turns if t[view] is not None]) for view in (0, 1))  # type: ignore[misc]
    assert 8 < (a != b).sum() < 32 and 8 < a.sum() < 32 and 8 < b.sum() < 32  # of 40, each a fair coin


def test_the_target_encoders_own_crop_is_the_same_for_any_threads_shares_and_start_and_costs_no_second_read(
    tmp_path: Path,
) -> None:
    path = folder(tmp_path, 20)
    law = ImageSettings(size=16, symmetry="mirror", target_crop="own")
    straight = list(loader(FolderSource(path), law)(0, 5))  # two epochs and a step
    for first in (0, 2):
        for threads in (1, 2, 4):
            made = loader(FolderSource(path), law, threads=threads)
            assert all(same(a, b) for a, b in zip(made(first, 5), straight[first:], strict=True))
    shares = [loader(FolderSource(path), law, process=p, processes=4) for p in range(4)]
    for view in (0, 1):
        assert torch.equal(torch.cat([share.batch(3).views[view] for share in shares]), straight[3].views[view])
    plain = list(loader(FolderSource(path), ImageSettings(size=16, symmetry="mirror"))(0, 5))
    for own, one in zip(straight, plain, strict=True):  # the encoder's is that of a run without
        assert torch.equal(own.views[0], one.images) and torch.equal(own.turns[0], one.turns[0])  # type: ignore[arg-type]
        assert same(replace(own, views=one.views, turns=one.turns), one)
        assert len(own.views) == 2 and len(one.views) == len(one.turns) == 1
    source = CountingSource("counted", shades(20).images, None)
    made = loader(source, law)
    source.reads = 0
    made.batch(0)
    assert source.reads == 8


@dataclass
class CountingSource(ArraySource):
    reads: int = 0

    def raw(self, index: int) -> Pixels:
        self.reads += 1
        return super().raw(index)


def test_a_square_has_eight_turns_and_each_is_undone() -> None:
    square = torch.arange(9).view(1, 1, 3, 3).expand(8, -1, -1, -1)
    ways = all_turns("d4")
    shown = turned(square, ways)
    expected = {np.rot90(side, k).tobytes() for side in (square[0, 0].numpy(), square[0, 0].numpy().T) for k in range(4)}
    assert {image.numpy().tobytes() for image in shown[:, 0]} == expected and len(expected) == 8
    assert torch.equal(shown[0], square[0]) and torch.equal(turned_back(shown, ways), square)
    assert torch.equal(turned(square[:2], all_turns("mirror"))[1], square[0].flip(2)) and all_turns(None).shape == (1, 0)
    with pytest.raises(ValueError, match="of 3x4 would come out as 4x3"):
        turned(torch.zeros(8, 1, 3, 4), ways)


def test_turns_are_drawn_evenly_mirror_as_flips_were_and_quarter_turns_once_for_all_views() -> None:
    ids = np.arange(16000)
    d4, mirror = (draw_turns(symmetry, 5, 1, ids) for symmetry in ("d4", "mirror"))  # type: ignore[arg-type]
    assert d4 is not None and mirror is not None and draw_turns(None, 5, 1, ids) is None
    counts = np.bincount((d4.long() * torch.tensor([1, 2, 4])).sum(1).numpy(), minlength=8)
    assert chisquare(counts).pvalue > 1e-4
    for view, stream in ((0, "flip"), (1, "flip 1")):  # images.flip=true drew these
        before = rng.uniform(rng.keys(5, stream, 1, ids), 1)[:, 0] < 0.5
        assert np.array_equal(draw_turns("mirror", 5, 1, ids, view)[:, 0], before)  # type: ignore[index]
    assert torch.equal(draw_turns("d4", 5, 1, ids, 1), d4)  # type: ignore[arg-type]
    some = np.array([77, 3])
    assert torch.equal(draw_turns("d4", 5, 1, some), d4[some])  # type: ignore[arg-type]
    batch = loader(shades(40), ImageSettings(size=16, symmetry="d4", target_crop="own")).batch(1)
    assert batch.turns[0] is not None and torch.equal(batch.turns[0], batch.turns[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["images.size=[16,32] images.symmetry=d4 encoder.patch_size=8", "images.symmetry=d5"])
def test_a_symmetry_that_is_none_or_that_images_do_not_have_is_one_sentence(words: str) -> None:
    with pytest.raises(UserError, match=r"images\.symmetry: |images\.size=32"):
        resolve(overrides(words))


def test_flips_mirror_left_to_right_those_that_they_name() -> None:
    x = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    out = turned(x, torch.tensor([[False], [True]]))
    assert torch.equal(out[0], x[0]) and out[1, 0, 0].tolist() == x[1, 0, 0].tolist()[::-1]
    assert turned(x, None) is x
    batch = loader(shades(40), ImageSettings(symmetry="mirror", **WHOLE)).batch(0)
    shown = turned(batch.images, batch.turns[0])
    bright_left = shown[:, 0, 0, 0] > shown[:, 0, 0, -1]
    assert torch.equal(bright_left, ~batch.turns[0][:, 0])  # type: ignore[operator]


# ---- what is measured


def random_images(root: Path, count: int = 30) -> FolderSource:
    root.mkdir(exist_ok=True)
    for i in range(count):
        pixels = (noise(10 + i, 12 + i // 2, seed=i) * np.array([1, 0.5, 0.1])).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    return FolderSource(root)


def test_mean_and_deviation_are_those_of_the_channels_each_image_counting_the_same(tmp_path: Path) -> None:
    source = random_images(tmp_path)
    mean, std, count = channel_statistics(ImageSettings(), source)
    means = np.array([(source.read(i) / 255).mean((0, 1)) for i in range(30)])
    squares = np.array([((source.read(i) / 255) ** 2).mean((0, 1)) for i in range(30)])
    np.testing.assert_allclose(mean, means.mean(0), atol=6e-5)
    np.testing.assert_allclose(std, np.sqrt(squares.mean(0) - means.mean(0) ** 2), atol=6e-5)
    assert count == 30
    assert channel_statistics(ImageSettings(), source, threads=7) == (mean, std, count)


def test_what_is_given_is_kept_and_what_is_not_is_measured(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = random_images(tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    source = FolderSource(tmp_path / "images")
    mean, std, _ = channel_statistics(ImageSettings(), source)
    for told, wanted in (
        ({}, (mean, std)),
        ({"mean": (0.1, 0.2, 0.3)}, ((0.1, 0.2, 0.3), std)),
        ({"std": (1, 2, 3)}, (mean, (1, 2, 3))),
    ):
        found = fitted(resolve({"images": told}).images, source)
        assert (found.mean, found.std) == wanted
        assert fitted(found, random_images(tmp_path / "others", 3)) == found  # once measured, it stays
    x = torch.cat([normalise(torch.from_numpy(source.read(i)).permute(2, 0, 1)[None], found).flatten(2) for i in range(30)], 2)
    assert x.shape[1] == 3


def test_a_channel_that_never_changes_has_a_deviation_of_one_level() -> None:
    mean, std, _ = channel_statistics(ImageSettings(), ArraySource("flat", np.full((5, 4, 4, 3), 51, np.uint8), None))
    assert mean == (0.2,) * 3 and std == (round(1 / 255, 4),) * 3


def test_deep_images_are_measured_in_units_of_white() -> None:
    deep = np.full((6, 4, 4, 5), 2500, np.uint16)
    deep[:, :2] = 7500
    images = ImageSettings(channels=5, white=10_000)
    found = channel_statistics(images, ArraySource("deep", deep, None))
    assert found == ((0.5,) * 5, (0.25,) * 5, 6)


def test_a_sample_of_dear_blocks_opens_four() -> None:
    blocks = blocks_of([100] * 50)
    source = shades(200)
    source.images = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (5000, 1, 1, 3))
    source.blocks = blocks
    some = spread_places(source, 64)
    assert len(set((some // 100).tolist())) == 4 and len(some) == len(set(some.tolist())) == 64
    source.blocks = blocks_of([100] * 50, sequential=False)
    assert len(set((spread_places(source, 64) // 100).tolist())) == 50


def test_a_source_with_no_image_of_the_right_bands_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"set images\.channels=13"):
        fitted(ImageSettings(), ArraySource("bands", np.zeros((4, 4, 4, 13), np.uint8), None))


# ---- every source


def in_a_folder(root: Path, images: list[np.ndarray]) -> str:
    (root / "plain").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / "plain" / f"{i:02}.png")
    return str(root / "plain")


def in_tars(root: Path, images: list[np.ndarray]) -> str:
    folder = Path(in_a_folder(root, images))
    for shard in range(3):
        with tarfile.open(root / f"part-{shard}.tar", "w") as archive:
            for path in sorted(folder.iterdir())[4 * shard : 4 * shard + 4]:
                archive.add(path, path.name)
    return str(root / "part-{0..2}.tar")


def in_memory_far_away(root: Path, images: list[np.ndarray]) -> str:
    far = fsspec.filesystem("memory")
    in_tars(root, images)
    for path in root.glob("part-*.tar"):
        far.pipe(f"/{root.name}/{path.name}", path.read_bytes())
    return f"memory://{root.name}/part-*.tar"


def in_parquet(root: Path, images: list[np.ndarray]) -> str:
    folder = Path(in_a_folder(root, images))
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.iterdir())]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), root / "all.parquet", row_group_size=4)
    return str(root / "all.parquet")


def in_arrow(root: Path, images: list[np.ndarray]) -> str:
    folder = Path(in_a_folder(root, images))
    (root / "saved").mkdir()
    table = pyarrow.table({"image": [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.iterdir())]})
    with pyarrow.ipc.new_stream(root / "saved" / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    (root / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return str(root / "saved")


def in_npz(root: Path, images: list[np.ndarray]) -> str:
    root.mkdir(parents=True)
    np.savez(root / "all.npz", images=np.stack(images))
    return str(root / "all.npz")


def in_a_pack(root: Path, images: list[np.ndarray]) -> str:
    return str(pack(in_a_folder(root, images), root / "packed", size=64))


PLACES = (in_a_folder, in_tars, in_memory_far_away, in_parquet, in_arrow, in_npz, in_a_pack)


@pytest.fixture(scope="module")
def batches_of_a_folder(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    source = open_source(in_a_folder(tmp_path_factory.mktemp("first"), [noise(20, 24, seed=i) for i in range(12)]))
    return list(loader(source, ImageSettings(size=16, symmetry="mirror"), batch_size=4)(0, 7))


@pytest.mark.parametrize("place", PLACES)
def test_every_source_gives_the_same_batches_from_every_step_on(
    tmp_path: Path, place: Any, batches_of_a_folder: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_source(place(tmp_path / "here", [noise(20, 24, seed=i) for i in range(12)]))
    for first in range(7):  # two epochs and a step: also from the middle of one
        for threads in (1, 2, 4):
            made = loader(source, ImageSettings(size=16, symmetry="mirror", shuffle="full"), batch_size=4, threads=threads)
            assert all(same(a, b) for a, b in zip(made(first, 7), batches_of_a_folder[first:], strict=True))
    for processes in (2, 4):
        shares = [
            loader(
                source, ImageSettings(size=16, symmetry="mirror", shuffle="full"), batch_size=4, process=p, processes=processes
            ).batch(1)
            for p in range(processes)
        ]
        assert torch.equal(torch.cat([share.images for share in shares]), batches_of_a_folder[1].images)


@pytest.mark.parametrize("place", [p for p in PLACES if p in (in_tars, in_memory_far_away, in_parquet, in_arrow)])
def test_streamed_block_by_block_too_batches_are_the_same_from_every_step_on(
    tmp_path: Path, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    at = place(tmp_path / "here", [noise(20, 24, seed=i) for i in range(12)])
    source, images = open_source(at), ImageSettings(size=16, shuffle="blocks")
    assert source.blocks is not None and source.blocks.starts.tolist() == [0, 4, 8, 12]
    straight = list(loader(source, images, batch_size=3)(0, 9))
    for first in range(9):
        again = open_source(at)  # nothing kept from before
        for one_at_a_time in (False, True):
            if one_at_a_time:
                again.blocks = Blocks(source.blocks.starts, 1, True)
                expected = list(loader(again, images, batch_size=3)(0, 9))[first:]
            else:
                expected = straight[first:]
            made = loader(again, images, batch_size=3, threads=1 + first % 4)
            assert all(same(a, b) for a, b in zip(made(first, 9), expected, strict=True))
    narrow = loader(again, images, batch_size=4)
    assert all(len(set((narrow.ids(step) // 4).tolist())) == 1 for step in range(6))


# ---- found by review


def test_the_late_error_of_a_read_that_was_given_up_leaves_no_row_empty() -> None:
    late, put, go = [], [], threading.Event()

    def work(i: int) -> int:
        if i == 0 and not late:
            go.wait(30)
            raise BadImageError("an error that comes late")
        time.sleep(0.02)
        if late:
            go.set()  # the error comes while others wait
        return i

    run_parallel(40, work, lambda i, x: put.append(x), threads=2, seconds=0.2, late=late.append)
    assert sorted(put) == list(range(40)) and late == [0]


def test_reads_that_hang_are_counted_over_batches_while_they_hang() -> None:
    go = threading.Event()

    def hang() -> None:
        given_up: list[int] = []
        run_parallel(
            2, lambda i: None if i in given_up else go.wait(60), lambda i, x: None, threads=2, seconds=0.05, late=given_up.append
        )

    with pytest.raises(StuckError):
        for _ in range(20):
            hang()
    go.set()
    time.sleep(0.2)
    hang()  # they came back: there is nothing to complain of


def test_a_look_at_an_image_that_hangs_is_no_longer_than_its_time() -> None:
    go = threading.Event()
    source = hangs(0, go)
    begun = time.monotonic()
    made = loader(source, read_timeout_seconds=0.2)  # looks at the first image
    assert fitted(ImageSettings(**WHOLE), source, seconds=0.2).std != ImageSettings().std
    assert time.monotonic() - begun < 20
    go.set()
    assert made.batch(0).images.shape == (8, 3, 16, 16)


def test_a_loop_that_is_left_does_not_wait_for_a_read_that_hangs() -> None:
    go = threading.Event()
    source = hangs(int(loader(shades(40)).ids(2)[0]), go)
    made = loader(source, read_timeout_seconds=60)
    batches = made(0, 5)
    next(batches)
    begun = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 20
    go.set()


def test_images_that_were_mended_no_longer_count_and_the_limit_holds_after_a_resume(tmp_path: Path) -> None:
    source = FolderSource(folder(tmp_path, 40, broken=(1, 2, 3, 4)))
    images = ImageSettings(size=16, max_bad=0.05)
    again = loader(source, images, bad={1: "broken", 2: "broken", 3: "broken"})
    with pytest.raises(TooManyBadImagesError, match="3 of 40"):
        again.look_again()
    for i in (1, 2, 3):
        Image.fromarray(noise(20, 20, seed=i)).save(tmp_path / f"{i:03}.png")
    again.bad = {1: "broken", 2: "broken", 3: "broken"}
    again.look_again()
    assert not again.bad
    assert len(list(again(0, 5))) == 5 and set(again.bad) == {4}


def test_a_larger_limit_of_pixels_reaches_every_read(tmp_path: Path) -> None:
    folder(tmp_path, 4)
    with pytest.raises(UserError, match=r"images\.max_pixels=100"):
        open_source(str(tmp_path), most_pixels=100)
    made = loader(open_source(str(tmp_path)), ImageSettings(size=16, max_pixels=500, max_bad=1), batch_size=2)
    made.batch(0)
    assert made.bad and all("images.max_pixels=500" in reason for reason in made.bad.values())


@pytest.mark.parametrize("law", [MultiBlock(min_keep=2, compat="released"), MultiBlock(min_keep=2, draws=2)])
def test_processes_share_the_masks_of_one_also_where_a_law_draws_for_a_whole_batch(law: MultiBlock) -> None:
    def masks(process: int, processes: int) -> list[Any]:
        made = Loader(shades(40), ImageSettings(size=32), law, (8, 8), 8, 0, process=process, processes=processes)
        return [made.batch(step).masks[0] for step in range(3)]

    alone, shared = masks(0, 1), [masks(p, 4) for p in range(4)]
    for step in range(3):
        for name in ("context", "targets", "context_lengths", "target_lengths"):
            assert np.array_equal(np.concatenate([getattr(m[step], name) for m in shared]), getattr(alone[step], name))
        for p in range(4):
            part = shared[p][step]
            assert part.images == 2 and len(part.image_of_draw) == len(part.context_lengths) == part.draw_of_block.max() + 1


def test_an_order_by_blocks_is_not_written_down_where_there_are_none() -> None:
    assert fitted(ImageSettings(shuffle="blocks"), shades(40)).shuffle == "full"


def test_other_channels_leave_a_recipes_statistics_behind() -> None:
    config = recipe_settings("ijepa_vitl16", None, {"images": {"channels": 13}})
    assert not {"mean", "std"} & config.images.model_fields_set and len(config.images.mean) == 13
    given = recipe_settings("ijepa_vitl16", None, {"images": {"channels": 1, "mean": [0.1]}})
    assert given.images.mean == (0.1,)


def test_rows_are_read_in_groups_of_as_many_blocks_as_are_held() -> None:
    source, ids = shades(30, blocks_of([3] * 10, at_once=2)), np.array([29, 0, 15, 1, 16, 27, 9])
    groups = groups_at_hand(source, ids)
    assert sorted(row for rows in groups for row in rows) == list(range(7))
    assert all(len(set((ids[rows] // 3).tolist())) <= 2 for rows in groups) and len(groups) == 2
    source.blocks = blocks_of([3] * 10, at_once=2, sequential=False)
    assert groups_at_hand(source, ids) == [list(range(7))]
