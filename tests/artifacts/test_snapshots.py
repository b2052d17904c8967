"""Snapshots: the encoder of many steps, taken wherever a run is, and verified like checkpoints."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import jepakit
from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import load_checkpoint, step_name, steps
from jepakit.artifacts.load import jepa_from_checkpoint, load
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.evaluation.tasks import evaluate
from jepakit.training.train import pretrain

TINY = (  # noqa: SIM905
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 optim.lr=3e-3 run.threads=1 run.log_every_steps=3 run.probe_images=0 "
    "run.precision=fp32 optim.steps=12"
).split()
KEEP = ["run.save_every_steps=4", "run.keep_checkpoints=1", "run.keep_every_steps=3"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(20):
        place = folder / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain(photos, tmp_path_factory.mktemp("runs") / "kept", method="c_jepa", set=[*TINY, *KEEP])


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, with each step's checkpoint and no snapshots."""
    all_steps = ["run.save_every_steps=1", "run.keep_checkpoints=99"]
    return pretrain(photos, tmp_path_factory.mktemp("runs") / "whole", method="c_jepa", set=[*TINY, *all_steps])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_snapshot_is_that_steps_judged_encoder_to_the_bit_and_the_run_is_the_same(run: Run, whole: Run) -> None:
    assert steps(run.snapshots) == [12, 9, 6, 3] and steps(run.checkpoints) == [12] and run.kept_steps() == [3, 6, 9, 12]
    for step in (3, 6, 9, 12):
        kept = load_checkpoint(run.snapshots / step_name(step))
        jepa = jepa_from_checkpoint(f"{whole.path}@{step}")
        assert [*kept.tensors] == ["encoder"] and kept.state["step"] == step
        assert same(kept.tensors["encoder"], jepa.target_encoder.state_dict())
    ends = (load_checkpoint(each.checkpoints / step_name(12)).tensors for each in (run, whole))
    for a, b in zip(*(tensors.values() for tensors in ends), strict=True):
        assert same(a, b)


def test_a_snapshot_is_taken_wherever_a_run_is(run: Run, photos: Path, tmp_path: Path) -> None:
    at, snapshot = f"{run.path}@3", load_checkpoint(run.snapshots / step_name(3)).tensors["encoder"]
    assert same(dict(load(at).vit.state_dict()), snapshot) and load(at).which == "target_encoder"
    assert not same(dict(load(run).vit.state_dict()), snapshot)
    found = evaluate(at, tasks="knn")["knn"]
    assert [row["name"] for row in found][:2] == ["target encoder", "untrained encoder"]
    assert (run.path / "evaluation" / step_name(3) / "knn.json").is_file()
    jepakit.embed(at, photos, tmp_path / "v.npz")
    images = sorted(photos.rglob("*.png"))
    with np.load(tmp_path / "v.npz") as file:
        vectors = next(file[name] for name in file.files if file[name].ndim == 2)
    np.testing.assert_allclose(vectors, load(at).embed(images).numpy(), rtol=1e-4, atol=1e-5)
    jepakit.export(at, "hf", tmp_path / "out")
    assert same(dict(load(tmp_path / "out").vit.state_dict()), snapshot)
    begun = pretrain(photos, tmp_path / "begun", set=[*TINY, "optim.steps=1"], init_from=at, method="ijepa")
    first = load_checkpoint(begun.checkpoints / step_name(0)).tensors["model"]
    assert torch.equal(first["encoder.blocks.0.attn.qkv.weight"], snapshot["blocks.0.attn.qkv.weight"])
    taught = pretrain(photos, tmp_path / "taught", set=[*TINY, "optim.steps=1", f"target.teacher={at}"], method="ijepa")
    assert taught.finished and taught.config.target.teacher == at  # type: ignore[union-attr]


def test_what_a_snapshot_has_not_is_said(run: Run) -> None:
    with pytest.raises(UserError, match="a predictor has a checkpoint"):
        jepa_from_checkpoint(f"{run.path}@3")
    with pytest.raises(UserError, match="of the target encoder alone, not also the encoder"):
        load(f"{run.path}@3", which="encoder")
    with pytest.raises(UserError, match=r"no checkpoint or snapshot of step '5': there are 3, 6, 9, 12 .*run\.keep_every_steps"):
        load(f"{run.path}@5")


def test_a_byte_that_changed_is_noticed(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    weights = tmp_path / "run" / "snapshots" / step_name(6) / "encoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"step-00000006: encoder\.safetensors has changed"):
        load(tmp_path / "run@6")


def test_a_stopped_run_leaves_the_same_snapshots(run: Run, photos: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(path: Path, step: int) -> None:
        if step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(photos, tmp_path / "run", method="c_jepa", set=[*TINY, *KEEP], on_checkpoint=kill)
    assert Run(tmp_path / "run").kept_steps() == [3, 4]
    again = pretrain(resume=tmp_path / "run")
    assert steps(again.snapshots) == steps(run.snapshots)
    for step in steps(run.snapshots):
        ours, theirs = (load_checkpoint(each.snapshots / step_name(step)).tensors["encoder"] for each in (again, run))
        assert same(ours, theirs)


def test_with_pixels_first_a_snapshot_is_of_the_encoder_that_its_step_is_judged_by(photos: Path, tmp_path: Path) -> None:
    run = pretrain(photos, tmp_path / "run", method="ijepa", set=[*TINY, *KEEP, "target.pixels_first=6"])
    assert [load(f"{run.path}@{step}").which for step in (3, 6, 9, 12)] == [
        "encoder",
        "encoder",
        "target_encoder",
        "target_encoder",
    ]


def test_a_snapshot_that_cannot_be_written_is_said_and_the_run_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*of: object) -> None:
        raise OSError(28, "No space left on device")

    real = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", lambda t, p: full() if p.name == "encoder.safetensors" else real(t, p))
    with caplog.at_level(logging.WARNING, "jepakit"):
        run = pretrain(photos, tmp_path / "run", method="ijepa", set=[*TINY, *KEEP])
    assert run.finished and "snapshot of step 3 NOT saved" in caplog.text and not [*run.snapshots.iterdir()]
