"""Runs that earlier versions began go on as they would have."""

import json
import shutil
from pathlib import Path

import pytest

from jepakit.artifacts.checkpoint import load_checkpoint
from jepakit.artifacts.run import Run
from jepakit.training.train import pretrain

BEFORE = Path(__file__).parent / "run_at_add374c"  # stopped at step 4 of 8, with what its own version then made of the rest


def test_a_run_that_an_earlier_version_began_ends_as_it_would_have_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(BEFORE, folder, symlinks=True)
    expected = json.loads((folder / "expected.json").read_text())
    run = pretrain(resume=folder)
    assert run.finished and run.config.optim.steps == 8
    assert [row["step"] for row in run.metrics()] == [*range(1, 9)]
    assert [row["loss"] for row in run.metrics()[4:]] == pytest.approx(expected["loss"], rel=1e-4)  # another CPU rounds otherwise
    tensors = load_checkpoint(Run.open(folder).checkpoints / "latest").tensors["model"]
    assert {name: float(value.double().norm()) for name, value in tensors.items()} == pytest.approx(expected["norms"], rel=1e-3)
