"""Stopped anywhere and gone on with, a run ends in the same bits as one that was never stopped."""

import errno
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jepakit import cli
from jepakit.artifacts import checkpoint
from jepakit.artifacts.load import load
from jepakit.artifacts.run import Run, json_line
from jepakit.config.config import overrides
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.core.files import append, save_json
from jepakit.core.signals import signals
from jepakit.data.loader import Loader
from jepakit.data.opening import open_source
from jepakit.data.threads import StuckError
from jepakit.training.step import Training
from jepakit.training.train import pretrain

STEPS = 60
TINY = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "images.max_bad=0.2 masking.min_keep=2 optim.batch_size=8 optim.lr=3e-3 run.threads=1 run.log_every_steps=3 "
    f"run.save_every_steps=4 optim.steps={STEPS}"
).split()
PROJECTOR = ["regularizer.projector=[8,8]", "regularizer.tensor=pred_blocks"]  # batch norm: buffers in the checkpoint
TIMED = ("images_per_second", "seconds", "probe/seconds")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(draw.integers(0, 256, (18 + i % 5, 20, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "13.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def straight(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An I-JEPA run that nobody disturbed."""
    return pretrain(str(photos), tmp_path_factory.mktemp("straight") / "run", method="ijepa", set=[*TINY, "run.precision=fp32"])


def final(run: Run) -> dict[str, Tensor]:
    """All tensors of the last step, the optimiser's too."""
    assert run.finished
    found = checkpoint.load_checkpoint(run.checkpoints / "latest")
    assert found.state["step"] == run.config.optim.steps
    return {f"{group}.{name}": value for group, part in found.tensors.items() for name, value in part.items()}


def same_bits(a: Run, b: Run) -> None:
    left, right = final(a), final(b)
    assert left.keys() == right.keys()
    differing = [name for name in left if left[name].dtype != right[name].dtype or not torch.equal(left[name], right[name])]
    assert not differing
    assert (a.path / "model/model.safetensors").read_bytes() == (b.path / "model/model.safetensors").read_bytes()


def rows(run: Run) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in lines]


def same_metrics(a: Run, b: Run) -> None:
    assert [row["step"] for row in rows(b)] == [*range(3, STEPS, 3), STEPS]
    assert json.dumps(rows(a)) == json.dumps(rows(b))  # as text: a number that is not one equals itself there


def command_line(arguments: list[str]) -> None:
    """The command line in a process of its own, its words thrown away."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    cli.main(arguments)


def trace(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written to, or another takes its place."""
    return (path.stat().st_ino, path.stat().st_size) if path.exists() else None


def killed_until_done(out: Path, start: list[str], seed: int) -> int:
    """Run to the end through kills at random moments; how many there were. Loader threads differ each time."""
    server = multiprocessing.get_context("forkserver")  # starts processes that have torch imported already
    server.set_forkserver_preload(["jepakit.cli", "jepakit.training.train"])
    draw, kills = random.Random(seed), 0
    for attempt in range(40):
        threads = f"run.loader_threads={1 + attempt % 4}"
        begun = (out / "checkpoints/latest").exists()
        if begun:
            arguments = ["pretrain", "--resume", str(out), threads]
        else:
            arguments = [*start, "--out", str(out), threads, *(["--overwrite"] if out.exists() else [])]
        process = server.Process(target=command_line, args=(arguments,))
        # every other kill waits for a checkpoint of this life, so that the run gets on however slow the machine is
        sign = out / ("checkpoints/latest/manifest.json" if kills % 2 else "run.log")
        before = trace(sign)
        process.start()
        while process.is_alive() and trace(sign) == before:
            time.sleep(0.002)
        process.join(draw.uniform(0, 0.3) if kills < 4 else 60)  # the first step takes .1 s, the others .01 s each
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0
            return kills
    raise AssertionError("the run does not come to its end")


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("ijepa", "fp32"),
        ("ec_c_jepa", "bf16"),
        pytest.param("ijepa", "bf16", marks=pytest.mark.long),
        pytest.param("ec_c_jepa", "fp32", marks=pytest.mark.long),
    ],
)
def test_kill_9_at_random_moments_changes_no_bit(
    photos: Path, tmp_path: Path, straight: Run, method: str, precision: str
) -> None:
    words = [*TINY, f"run.precision={precision}", *(PROJECTOR if method == "ec_c_jepa" else [])]
    if (method, precision) != ("ijepa", "fp32"):
        straight = pretrain(str(photos), tmp_path / "straight", method=method, set=words)
    out = tmp_path / "killed"
    kills = killed_until_done(out, ["pretrain", "--data", str(photos), "--method", method, *words], seed=len(method + precision))
    assert kills >= 2
    same_bits(straight, Run(out))
    same_metrics(straight, Run(out))
    assert not list(out.rglob(".tmp-*"))


def test_sigterm_saves_exits_0_and_prints_the_command_that_goes_on(photos: Path, tmp_path: Path, straight: Run) -> None:
    out = tmp_path / "a run"  # the printed command must survive a shell
    words = [*TINY, "run.precision=fp32", "run.save_every_steps=1000"]
    start = [sys.executable, "-m", "jepakit", "pretrain", "--data", str(photos), "--method", "ijepa", "--out", str(out), *words]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    step = checkpoint.load_newest(out / "checkpoints").state["step"]
    assert 3 <= step < STEPS and f"stopped at step {step} of {STEPS}" in said
    command = re.findall(r"go on with: jepakit (.*)", said)
    assert command and "Traceback" not in said
    assert (out / "model/model.safetensors").exists() and not Run(out).finished
    on = [sys.executable, "-m", "jepakit", *shlex.split(command[0])]
    again = subprocess.run(on, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    same_bits(straight, Run(out))
    same_metrics(straight, Run(out))


def on_a_full_disk(arguments: list[str], said: str) -> None:
    """The command line where no file may grow beyond 48 kB: a model fits, its optimiser's state does not."""
    words = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(words, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48_000, resource.RLIM_INFINITY))
    cli.main(arguments)


def test_a_disk_that_fills_up_costs_no_checkpoint_and_ends_in_one_sentence(photos: Path, tmp_path: Path, straight: Run) -> None:
    words = [*TINY, "run.precision=fp32", "run.log_every_steps=1"]
    said = tmp_path / "said"
    first = pretrain(str(photos), tmp_path / "first", method="ijepa", set=[*words, "run.save_every_steps=20"])
    server = multiprocessing.get_context("forkserver")
    for name in ("step-00000060", "latest"):
        subprocess.run(["rm", "-r", str(first.path / "checkpoints" / name)], check=True)
    process = server.Process(target=on_a_full_disk, args=(["pretrain", "--resume", str(first.path)], str(said)))
    process.start()
    process.join(60)
    lines = said.read_text().splitlines()
    assert process.exitcode == 2, lines
    assert lines[-1].startswith("error: step 60 could not be saved") and "--resume" in lines[-1]
    assert not any("Traceback" in line for line in lines) and any("NOT saved" in line for line in lines)
    assert checkpoint.steps(first.path / "checkpoints") == [40]
    same_bits(straight, pretrain(resume=first.path))  # there is room again


def copy(run: Run, out: Path) -> Run:
    subprocess.run(["cp", "-a", str(run.path), str(out)], check=True)
    return Run.open(out)


def test_resuming_a_finished_run_changes_nothing(straight: Run, tmp_path: Path) -> None:
    run = copy(straight, tmp_path / "run")
    again = pretrain(resume=run.path)
    assert again.finished
    same_bits(straight, again)
    same_metrics(straight, again)


@pytest.mark.parametrize("word", ["optim.lr=1", "optim.steps=50", "seed=1", "encoder.depth=2", "method=c_jepa"])
def test_a_resume_that_would_change_the_result_is_refused(straight: Run, word: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.path.rglob("*")}
    with pytest.raises(UserError, match=r"only run\.\* and images\.max_bad may change"):
        pretrain(resume=straight.path, set=[word])
    with pytest.raises(UserError, match="its length is fixed from the start"):
        pretrain(resume=straight.path, set=["optim.epochs=100"])
    with pytest.raises(UserError, match="leave out"):
        pretrain(resume=straight.path, method="ijepa")
    assert {p: p.stat().st_mtime_ns for p in straight.path.rglob("*")} == before


def test_a_resume_on_other_images_is_refused(photos: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", str(photos), str(tmp_path / "photos")], check=True)
    run = pretrain(str(tmp_path / "photos"), tmp_path / "run", method="ijepa", set=[*TINY, "optim.steps=2"])
    (tmp_path / "photos/29.png").unlink()
    with pytest.raises(UserError, match=r"30 images .* now there are 29"):
        pretrain(resume=run.path)
    assert run.finished


@pytest.mark.parametrize("by", ["option", "word", "relative", "link", "tilde", "edited"])
def test_a_run_goes_on_where_its_images_have_moved_to(
    by: str, photos: Path, tmp_path: Path, straight: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, new = copy(straight, tmp_path / "run"), tmp_path / "new"
    shutil.copytree(photos, new)
    (tmp_path / "link").symlink_to(new)
    run.rewrite(run.config.model_copy(update={"data": str(tmp_path / "old")}))
    shutil.rmtree(run.checkpoints / checkpoint.step_name(STEPS))
    with pytest.raises(UserError, match=r"no such folder: .*/old; where they have moved, --resume .* --data NEW"):
        pretrain(resume=run.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if by == "edited":
        text = (run.path / "config.yaml").read_text()
        (run.path / "config.yaml").write_text(text.replace(f"data: {tmp_path}/old", "data: ~/new  # moved"))
        pretrain(resume=run.path)
    elif by == "word":
        pretrain(resume=run.path, set=[f"data={new}"])
    else:
        pretrain({"option": new, "relative": "new", "link": tmp_path / "link", "tilde": "~/new"}[by], resume=run.path)
    same_bits(straight, run)
    assert run.config == straight.config.model_copy(update={"data": str(new)})
    assert checkpoint.load_checkpoint(run.checkpoints / checkpoint.step_name(STEPS)).state["config"]["data"] == str(new)
    assert "was edited" not in caplog.text
    assert pretrain(resume=run.path).finished  # by itself


def test_a_resume_with_other_images_is_refused_and_changes_nothing(photos: Path, tmp_path: Path, straight: Run) -> None:
    run = copy(straight, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "renamed")
    (tmp_path / "renamed/07.png").rename(tmp_path / "renamed/7.png")
    before = {p: (p.is_file() and p.read_bytes()) for p in run.path.rglob("*") if p.name != "run.log"}
    for data, words in (("emoji", "the run saw 30 images and in .* now there are"), (tmp_path / "renamed", "are not those")):
        with pytest.raises(UserError, match=words):
            pretrain(data, resume=run.path)
        with pytest.raises(UserError, match=words):
            pretrain(resume=run.path, set=f"data={data}")
    assert {p: (p.is_file() and p.read_bytes()) for p in run.path.rglob("*") if p.name != "run.log"} == before


def test_only_what_was_edited_is_said_to_be(straight: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = copy(straight, tmp_path / "run")
    shutil.rmtree(run.checkpoints / checkpoint.step_name(STEPS))
    with caplog.at_level(logging.WARNING, "jepakit"):
        pretrain(resume=run.path, set=["images.max_bad=0.5", "run.log_every_steps=5"])
        pretrain(resume=run.path)
        pretrain(resume=run.path, set="run.loader_threads=1")
    assert "was edited" not in caplog.text
    assert (run.config.images.max_bad, run.config.run.log_every_steps, run.config.run.loader_threads) == (0.5, 5, 1)
    same_bits(straight, run)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("lr: 0.003", "lr: 0.004"))
    with caplog.at_level(logging.WARNING, "jepakit"):
        pretrain(resume=run.path)
    assert caplog.text.count("was edited") == 1
    same_bits(straight, run)


def test_what_is_not_finite_is_null_in_json_and_no_number_when_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [{"step": 1, "a": math.nan, "b": 1.5}, {"step": 2, "a": math.inf, "alarms": ["x"]}, {"step": 3, "a": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(map(json_line, rows[:2])) + '{"step": 3, "a": NaN}\n{"step": 4, "a')

    def no_constant(text: str) -> float:
        raise AssertionError(text)

    def lines() -> list[str]:
        return (tmp_path / "metrics.jsonl").read_text().splitlines()

    assert [json.loads(line, parse_constant=no_constant) for line in lines()[:2]] == [
        {"step": 1, "a": None, "b": 1.5},
        {"step": 2, "a": None, "alarms": ["x"]},
    ]
    assert [row["step"] for row in run.metrics()] == [1, 2, 3] and all(math.isnan(row["a"]) for row in run.metrics())
    run.rewind(3)
    assert [json.loads(line, parse_constant=no_constant)["step"] for line in lines()] == [1, 2, 3]
    save_json(tmp_path / "x.json", {"a": [math.nan, (1, -math.inf)], "b": 2.0, "c": True})
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=no_constant) == {
        "a": [None, [1, None]],
        "b": 2.0,
        "c": True,
    }


def test_tensorboard_is_told_from_which_step_on_rows_come_again(
    straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []

    class Board:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert step >= opened[-1][1]

        def close(self) -> None: ...

    monkeypatch.setattr("jepakit.training.trackers.summary_writer", lambda: Board)
    run = copy(straight, tmp_path / "run")
    shutil.rmtree(run.checkpoints / checkpoint.step_name(STEPS))
    pretrain(resume=run.path, set=["run.tensorboard=true"])
    assert opened == [(str(run.path / "tensorboard"), STEPS - 4 + 1)]


def test_lines_are_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "rows", os.write
    append(path, "one\n")

    def on_a_full_disk(handle: int, data: bytes) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:3])

    monkeypatch.setattr("jepakit.core.files.os.write", on_a_full_disk)
    with pytest.raises(OSError, match="No space"):
        append(path, "a long line\n")
    monkeypatch.setattr("jepakit.core.files.os.write", write)
    assert path.read_text() == "one\n"
    append(path, "tw\udce9\n")  # a name that is no UTF-8
    path.write_bytes(path.read_bytes() + b"cut sho")
    append(path, "three\n")
    assert path.read_text() == "one\ntw\\udce9\ncut sho\nthree\n"


def test_a_full_disk_is_said_once_and_rows_are_whole_before_and_after(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    written = 0

    def full_for_a_while(path: Path, text: str) -> None:
        nonlocal written
        written += 1
        if 20 <= written < 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, text)

    monkeypatch.setattr("jepakit.training.logs.append", full_for_a_while)
    monkeypatch.setattr("jepakit.artifacts.run.append", full_for_a_while)
    with caplog.at_level(logging.WARNING, "jepakit"):
        run = pretrain(photos, tmp_path / "run", method="ijepa", set=[*TINY, "run.log_every_steps=1"])
    said = caplog.text + capfd.readouterr().err
    assert said.count("metrics NOT written from step") == 1 and said.count("metrics are written again") == 1
    assert said.count("run.log NOT written") == 1 and "Traceback" not in said and "Logging error" not in said
    steps = [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 1 and steps[-1] == STEPS and len(steps) < STEPS and steps == sorted({*steps})


def test_a_signal_that_a_program_in_c_hears_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    get, set_, asked = signal.getsignal, signal.signal, list[str]()

    def of_c(number: int) -> Any:  # what Python says of a handler that is not its own, and cannot set again
        return None if number == signal.SIGTERM else get(number)

    def setting(number: int, handler: Any) -> Any:
        assert number != signal.SIGTERM
        return set_(number, handler)

    monkeypatch.setattr(signal, "getsignal", of_c)
    monkeypatch.setattr(signal, "signal", setting)
    before = get(signal.SIGINT)
    with signals(asked.append):
        signal.raise_signal(signal.SIGINT)
    assert asked == ["SIGINT"] and get(signal.SIGINT) is before


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.3])
def test_a_second_ctrl_c_ends_in_one_line(photos: Path, tmp_path: Path, pause: float) -> None:
    words = [*TINY, "optim.steps=100000", "run.log_every_steps=1"]
    start = [
        sys.executable,
        "-m",
        "jepakit",
        "pretrain",
        "--data",
        str(photos),
        "--method",
        "ijepa",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen([*start, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, restore_signals=True)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130) and "Traceback" not in said, said
    assert said.splitlines()[-1].startswith("stopped")
    assert checkpoint.load_newest(tmp_path / "run/checkpoints").state["step"] >= 0


def test_a_corrupt_newest_checkpoint_falls_back_and_ends_in_the_same_bits(
    straight: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy(straight, tmp_path / "run")
    weights = run.checkpoints / checkpoint.step_name(STEPS) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 4
    weights.write_bytes(data)
    with caplog.at_level(logging.WARNING, "jepakit"):
        pretrain(resume=run.path)
    assert any(f"step {STEPS} is corrupt" in record.getMessage() for record in caplog.records)
    same_bits(straight, run)
    same_metrics(straight, run)


def test_with_every_checkpoint_corrupt_nothing_starts_from_zero(straight: Run, tmp_path: Path) -> None:
    run = copy(straight, tmp_path / "run")
    for folder in run.checkpoints.glob("step-*"):
        (folder / "state.json").write_text("{}")
    metrics = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        pretrain(resume=run.path)
    assert (run.path / "metrics.jsonl").read_bytes() == metrics


def test_a_runs_config_is_enough_to_repeat_it(straight: Run, tmp_path: Path) -> None:
    again = pretrain(config=straight.path / "config.yaml", out=tmp_path / "again")
    assert again.config == straight.config
    same_bits(straight, again)
    same_metrics(straight, again)


def test_another_seed_is_another_run(straight: Run, tmp_path: Path) -> None:
    other = pretrain(config=straight.path / "config.yaml", out=tmp_path / "other", seed=1)
    assert rows(other)[0]["loss"] != rows(straight)[0]["loss"]


def test_two_processes_never_write_one_run(straight: Run, tmp_path: Path) -> None:
    run = copy(straight, tmp_path / "run")
    with run.lock(), pytest.raises(UserError, match="another process"):
        pretrain(resume=run.path)


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_good(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    wild = ["optim.lr=1e30", "optim.start_lr=1e30", "optim.warmup_epochs=0", "run.save_every_steps=1", "run.precision=fp32"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", "--data", str(photos), "--method", "ijepa", "--out", str(out), *TINY, *wild])
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "optim.lr" in said[0] and "last checkpoint is good" in said[0]
    found = checkpoint.load_newest(out / "checkpoints")
    assert all(bool(torch.isfinite(value).all()) for value in found.tensors["model"].values())
    assert not Run(out).finished


def gradients_and_weights(photos: Path, accumulate: int) -> dict[str, Tensor]:
    # blocks of one size, so that the mean of the parts' means is the whole's mean; a large epsilon, so that AdamW's
    # update is a smooth function of the gradient; targets that are normalised one by one, not over the part they are in
    fixed = [
        "target.norm=layer",
        "masking.target_scale=[0.25,0.25]",
        "masking.target_aspect=[1,1]",
        "optim.eps=0.01",
        "run.precision=fp32",
    ]
    config = settings("small", "ijepa", overrides([*TINY, *fixed, f"optim.accumulate={accumulate}", f"data={photos}"]))
    training = Training.prepare(config, open_source(config.data))
    for batch in training.loader(0, 3):
        training.train_step(batch, training.schedule.at(training.step), check=True)
        training.step += 1
    grads = {f"gradient of {name}": p.grad for name, p in training.jepa.trained_parameters() if p.grad is not None}
    return {**grads, **training.jepa.state_dict()}


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_make_the_update_of_the_whole_batch(photos: Path, parts: int) -> None:
    whole, split = gradients_and_weights(photos, 1), gradients_and_weights(photos, parts)
    assert whole.keys() == split.keys() and len(whole) > 40
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_run_stopped_by_bad_images_is_saved_and_goes_on_with_a_higher_bound(photos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    for path in sorted(data.rglob("*.*"))[:3]:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="max_bad"):
        pretrain(data, out, method="ijepa", set=[*TINY, "images.max_bad=0.01"])
    assert pretrain(resume=out, set=["images.max_bad=0.5"]).finished


def test_other_images_of_the_same_number_are_refused(photos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    pretrain(data, out, method="ijepa", set=TINY)
    first = sorted(data.rglob("*.*"))[0]
    first.rename(first.with_name("zzz" + first.suffix))
    with pytest.raises(UserError, match="not those"):
        pretrain(resume=out)


def test_a_run_whose_storage_goes_away_is_saved_and_goes_on_when_it_is_back(
    photos: Path, straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Loader.batch

    def gone(self: Loader, step: int, *more: Any) -> Any:
        if step == 7:
            raise StuckError("the storage does not answer")
        return real(self, step, *more)

    monkeypatch.setattr(Loader, "batch", gone)
    with caplog.at_level(logging.INFO, "jepakit"), pytest.raises(StuckError, match="does not answer"):
        pretrain(photos, tmp_path / "run", method="ijepa", set=[*TINY, "run.precision=fp32"])
    assert (tmp_path / "run" / "checkpoints" / "step-00000007").is_dir()
    assert f"--resume {shlex.quote(str(tmp_path / 'run'))}" in caplog.text
    monkeypatch.undo()
    same_bits(pretrain(resume=tmp_path / "run"), straight)


def test_weights_that_are_no_numbers_are_not_saved_when_the_storage_goes_away(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on CUDA, where the loss is looked at on logged steps only: broken weights may be there when the data end."""
    words = [*TINY, "run.precision=fp32", "run.save_every_steps=100", "run.log_every_steps=100", "run.probe_images=0"]
    real_batch, real_step = Loader.batch, Training.train_step

    def gone(self: Loader, step: int, *more: Any) -> Any:
        if step == 5:
            raise StuckError("the storage does not answer")
        return real_batch(self, step, *more)

    def broken(self: Training, *args: Any, **more: Any) -> Any:
        found = real_step(self, *args, **more)
        if self.step == 4:
            next(iter(self.jepa.encoder.parameters())).data.view(-1)[0] = float("nan")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", gone)
        patch.setattr(Training, "train_step", broken)
        with caplog.at_level(logging.INFO, "jepakit"), pytest.raises(StuckError, match="does not answer"):
            pretrain(photos, tmp_path / "run", method="ijepa", set=words)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [0]
    assert "at step 5 model encoder." in caplog.text and "saved at step 5" not in caplog.text
    assert pretrain(resume=tmp_path / "run").finished


def test_a_run_whose_newest_checkpoint_is_no_number_goes_on_from_the_one_before(
    straight: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy(straight, tmp_path / "run")
    newest = checkpoint.load_newest(run.checkpoints)
    newest.tensors["model"]["encoder.norm.weight"][0] = float("nan")  # as an older version may have left it
    checkpoint.save(run.checkpoints, newest.state["step"], newest, keep=10)
    with caplog.at_level(logging.WARNING, "jepakit"):
        same_bits(straight, pretrain(resume=run.path))
    assert "falling back to the one before: its model encoder.norm.weight is not finite" in caplog.text


def test_a_save_takes_the_bad_images_while_threads_find_more(photos: Path, tmp_path: Path) -> None:
    config = settings("small", "ijepa", overrides([*TINY, f"data={photos}"]))
    training, found, stop = Training.prepare(config, open_source(config.data)), count(), threading.Event()
    training.loader.images = config.images.model_copy(update={"max_bad": 1.0})
    training.loader.bad = dict.fromkeys(range(-20_000, 0), "")

    def find() -> None:
        while not stop.is_set():
            with training.loader._lock:
                training.loader.bad[next(found)] = "broken"

    thread = threading.Thread(target=find)
    thread.start()
    try:
        for _ in range(3):
            assert training.save(Run(tmp_path))
    finally:
        stop.set()
        thread.join()
    assert checkpoint.load_newest(tmp_path / "checkpoints").state["bad"]["-1"] == ""


def test_a_run_without_links_resumes_to_the_same_bits(
    photos: Path, straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*of: Any, **more: Any) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    run = copy(straight, tmp_path / "run")  # a run of an older version, with its link
    shutil.rmtree(run.checkpoints / checkpoint.step_name(STEPS))
    same_bits(straight, pretrain(resume=run.path))
    assert (run.checkpoints / "latest").read_text() == checkpoint.step_name(STEPS)
    assert load(run.checkpoints / "latest").width == load(run.path).width
