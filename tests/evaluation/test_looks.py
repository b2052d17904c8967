"""What is read beside the training batches, for looks, evaluation and pictures: block by block, within the loader's time."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jepakit.artifacts.load import build_jepa
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.formats.shards import ShardSource
from jepakit.data.opening import open_source
from jepakit.data.samples import read_ahead, read_many
from jepakit.data.sources import ArraySource, Labels
from jepakit.data.threads import StoppedError, StuckError
from jepakit.evaluation import features
from jepakit.evaluation.dense import patch_tokens
from jepakit.evaluation.features import RAW, extract
from jepakit.evaluation.pictures import save_pictures
from jepakit.evaluation.probes.finetune import finetune
from jepakit.evaluation.probes.finetune_recipe import FineTuning
from jepakit.evaluation.probes.spectrum import LiDAR, lidar_rows
from jepakit.evaluation.tasks import _readable
from jepakit.model.encoder import Encoder
from jepakit.training.online_probe import OnlineProbe
from jepakit.training.train import pretrain
from test_prefetch import EACH, Slow, alone, in_shards, png
from test_resume import TINY

assert alone  # a fixture
SIDE = {"images": {"size": 16, "shuffle": "blocks"}, "encoder": {"patch_size": 4}, "masking": {"min_keep": 2}}
SMALL = {"encoder": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}, "predictor": {"width": 8, "depth": 1}}


def config_of(**run: Any) -> Any:
    return settings("small", "ijepa", {**SIDE, **SMALL, "run": {"probe_images": 20, "precision": "fp32", **run}})


@pytest.fixture(autouse=True)
def one_store(alone: None) -> None:
    """No store and no cache of another test."""


# ---- looks


@pytest.mark.parametrize("labelled", [False, True])
def test_a_look_fetches_few_shards_and_each_once_and_has_the_images_of_a_local_copy(tmp_path: Path, labelled: bool) -> None:
    store, count = Slow(), 30
    source = in_shards(store, count)
    (tmp_path / "local").mkdir()
    for k in range(count):
        (tmp_path / "local" / f"s-{k}.tar").write_bytes(store.cat_file(f"/s-{k}.tar"))
    local = open_source(str(tmp_path / "local"))
    if labelled:
        test = np.arange(len(source)) % 3 == 2
        source.labels = local.labels = Labels("x", ("a", "b"), np.arange(len(source)) % 2, test)  # type: ignore[misc]
    here = OnlineProbe.prepare(config_of(), local, 100)
    store.asked.clear()
    there = OnlineProbe.prepare(config_of(), source, 100)
    assert here is not None and there is not None and len(there.images) == 20
    assert torch.equal(here.images, there.images) and torch.equal(here.test, there.test)
    assert int(there.test.sum()) == (6 if labelled else 0)
    of_train, of_test = (4, 4) if labelled else (4, 0)  # shards that hold as many as are asked for, four at least
    assert len(store.asked) == len(set(store.asked)) <= of_train + of_test


def test_a_look_at_more_than_can_be_held_fetches_each_shard_once() -> None:
    store = Slow()
    source = in_shards(store, 30)
    look = OnlineProbe.prepare(config_of(probe_images=25 * EACH - 3), source, 100)
    assert look is not None and len(look.images) == 25 * EACH - 3
    assert len(store.asked) == len(set(store.asked)) == 25


def test_a_look_at_shards_that_never_come_ends_when_it_is_asked_to() -> None:
    store, answer, stop = Slow(), threading.Event(), threading.Event()
    source = in_shards(store)
    store.before = lambda path: (stop.set(), answer.wait(60), None)[2]
    try:
        with pytest.raises(StoppedError):
            OnlineProbe.prepare(config_of(), source, 100, stop)
    finally:
        answer.set()


class Hanging(ArraySource):
    """Pixels, of which some never come."""

    def __init__(self, count: int, hang: set[int]) -> None:
        draw = np.random.default_rng(0)
        labels = Labels("x", ("a", "b"), np.arange(count) % 2, np.arange(count) % 4 == 3)
        super().__init__("hanging", draw.integers(0, 256, (count, 20, 20, 3), dtype=np.uint8), labels)
        self.hang, self.asked, self.answer = hang, threading.Event(), threading.Event()

    def raw(self, index: int) -> Pixels:
        if index in self.hang:
            self.asked.set()
            self.answer.wait(60)
            raise BadImageError("too late")
        return super().raw(index)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    source = Hanging(40, {5, 18})
    yield source
    source.answer.set()


def test_a_look_leaves_out_what_does_not_come_in_time_and_a_dead_storage_is_said(hanging: Hanging) -> None:
    hanging.labels = None
    look = OnlineProbe.prepare(config_of(probe_images=40, read_timeout_seconds=0.2), hanging, 100)
    assert look is not None and len(look.images) == 38
    hanging.hang = set(range(40))
    with pytest.raises(StuckError):
        OnlineProbe.prepare(config_of(probe_images=40, read_timeout_seconds=0.1, loader_threads=16), hanging, 100)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_first_look_ends_the_run_politely(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    answer, real = threading.Event(), features.evaluation_view

    def hang(*of: Any) -> Tensor:
        os.kill(os.getpid(), number)
        answer.wait(60)
        return real(*of)

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "jepakit"):
        patch.setattr("jepakit.training.online_probe.evaluation_view", hang)
        run = pretrain(tmp_path, tmp_path / "run", method="ijepa", set=[*TINY, "run.loader_threads=1"])
    answer.set()
    assert not run.finished and "stopped at step 0 of" in caplog.text and f"--resume {run.path}" in caplog.text
    assert pretrain(resume=run.path).finished


# ---- evaluation and pictures


def encoder() -> Encoder:
    config = config_of()
    return Encoder(build_jepa(config).encoder, config.images, None).requires_grad_(False).eval()


def left_out(caplog: pytest.LogCaptureFixture) -> list[str]:
    return sorted(r.getMessage() for r in caplog.records if "left out" in r.getMessage())


def test_features_leave_out_what_does_not_come_in_time(hanging: Hanging, caplog: pytest.LogCaptureFixture) -> None:
    e = encoder()
    with caplog.at_level(logging.WARNING, "jepakit"):
        found, ids = extract(hanging, {"e": e}, seconds=0.2)
        assert _readable(hanging, np.arange(40), e.images, 0.2).tolist() == ids.tolist()
    assert ids.tolist() == [i for i in range(40) if i not in (5, 18)]
    said = [f"left out of the evaluation: {i}: no answer within 0.2 s" for i in (18, 5)]
    assert left_out(caplog) == sorted([*said, *said])
    hanging.hang = set()
    whole, _ = extract(hanging, {"e": e})
    for name in ("e", RAW):
        torch.testing.assert_close(found[name].last, whole[name].last[ids], rtol=1e-5, atol=1e-6)


def test_lidar_leaves_out_what_does_not_come_in_time(hanging: Hanging, caplog: pytest.LogCaptureFixture) -> None:
    law, few = config_of().masking, LiDAR(images=40, views=2)
    with caplog.at_level(logging.WARNING, "jepakit"):
        rows = lidar_rows(hanging, {"e": encoder()}, law, few, seconds=0.2)
    assert rows[0]["n"] == 38 and len(left_out(caplog)) == 2


def test_pictures_show_what_comes(hanging: Hanging, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, places = config_of(read_timeout_seconds=0.2), np.arange(40)
    hanging.hang = {0}
    with caplog.at_level(logging.WARNING, "jepakit"):
        save_pictures(tmp_path / "p.npz", config, hanging, torch.randn(40, 8), places)
    assert "0: no answer within 0.2 s" in caplog.text
    with np.load(tmp_path / "p.npz") as saved:
        assert not saved["images"][0].any() and all(image.any() for image in saved["images"][1:])


def test_fine_tuning_names_what_no_longer_comes(hanging: Hanging) -> None:
    few = FineTuning(epochs=1, batch_size=20, warmup_epochs=0, drop_path=0)
    rows = np.arange(40)[:20], np.arange(40)[20:]
    with pytest.raises(UserError, match=r"fine-tuning: (5|18) cannot be read: no answer within 0\.2 s"):
        finetune(encoder(), hanging, *rows, hanging.labels.values, 2, few, seconds=0.2)  # type: ignore[union-attr]


def test_segmentation_names_a_file_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(patch_tokens, "read_image", lambda path: answer.wait(60))
    try:
        with pytest.raises(UserError, match=r"x\.png cannot be read: no answer within 0\.2 s"):
            patch_tokens.PatchTokens(encoder(), seconds=0.2).read(tmp_path / "x.png")
    finally:
        answer.set()


def test_evaluation_of_shards_fetches_each_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Slow()
    source: ShardSource = in_shards(store, 20)
    _, ids = extract(source, {"e": encoder()})
    assert len(ids) == 20 * EACH and set(store.asked) == {f"/s-{k}.tar" for k in range(20)}
    assert len(store.asked) <= 20 + 4  # of four some images are looked at first, for their bands


# ---- the two of them


def test_what_is_read_comes_in_the_order_that_was_asked_for() -> None:
    source, ids = in_shards(Slow(), 10), np.random.default_rng(0).permutation(10 * EACH)
    assert read_many(source, ids, source.raw) == [png(int(i)) for i in ids]
    assert read_many(source, ids[:0], source.raw) == []


def test_what_is_made_ahead_comes_in_order_ends_with_its_error_and_is_left_alone() -> None:
    made: list[int] = []

    def items(last: int) -> Iterator[int]:
        for i in range(last):
            made.append(i)
            yield i
        raise UserError("the end")

    with pytest.raises(UserError, match="the end"):
        assert [*read_ahead(items(5))]
    assert made == list(range(5)) and next(read_ahead(iter([ValueError("an item")]))).args == ("an item",)
    made.clear()
    for i in read_ahead(items(1000)):
        if i == 3:
            break
    assert len(made) < 10
