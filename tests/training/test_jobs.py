"""What the same launch by torchrun, or the same job of a queue, does at its second start; and which process it may kill."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jepakit.core import meeting, ranks
from jepakit.training.train import pretrain
from launch import SMALL, made_images


def test_only_the_same_words_go_on_with_the_run_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "job", lambda: "77")
    data, words = made_images(tmp_path), [*SMALL, "optim.steps=2"]
    run = pretrain(data, tmp_path / "run", "demo", set=words)
    pretrain(data, tmp_path / "run", "demo", set=words)
    assert "resumed at step 2 of 2" in (run.path / "run.log").read_text()
    pretrain(data, tmp_path / "run", "demo", set=[*words, "optim.steps=3"], overwrite=True)
    assert run.state["step"] == 3 and "resumed" not in (run.path / "run.log").read_text()
    shutil.rmtree(run.checkpoints)  # as a kill before the first one leaves it
    pretrain(data, tmp_path / "run", "demo", set=[*words, "optim.steps=3"])
    assert run.finished


def test_only_a_rank_of_the_same_torchrun_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"GROUP_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    other = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], env={**os.environ, "RANK": "1"}, stdin=-1, stdout=-1
    )
    assert other.stdout
    other.stdout.readline()
    assert meeting._is_here(other.pid, 1) and not meeting._is_here(other.pid, 0)
    monkeypatch.setenv("GROUP_RANK", "1")
    assert not meeting._is_here(other.pid, 1)
    other.communicate(b"\n")
