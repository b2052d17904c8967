"""When one of several processes fails, hangs or was told something else: the same bits in the end, or a sentence why not."""

import json
import os
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore, ProcessGroupGloo

from jepakit.artifacts.checkpoint import steps
from jepakit.artifacts.run import Run
from jepakit.core import distributed, parallel
from jepakit.core.distributed import AgreedError, LostRankError
from jepakit.core.errors import UserError
from jepakit.core.meeting import Heartbeats
from launch import SMALL, ended, forked, made_images, module, started, torchrun, until, workers_of

LENGTH = 200
WAITED = "Unable to shutdown process"  # torchrun's, after half a minute in which one that hangs was left to it
ENDS_IN = 30  # seconds: five are the time-out, five at most are for the others to report
TWO, JEPAKIT = ("--nproc-per-node", "2"), module("jepakit")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    made_images(folder)
    return folder


def pretraining(place: Path, out: str, *words: str) -> list[str]:
    """The words after jepakit's."""
    how = [*SMALL, f"optim.steps={LENGTH}", "run.save_every_steps=10", *words]
    return ["pretrain", "--data", str(place / "waves.npz"), "--recipe", "demo", "--out", str(place / out), *how]


def newest(run: Run) -> int:
    return max(steps(run.checkpoints), default=-1)


def times_resumed(run: Run) -> int:
    return (run.path / "run.log").read_text().count("resumed at step")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{run.config.optim.steps:08d}" / "model.safetensors")


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(1500)])])
def test_killed_ranks_and_a_corrupt_checkpoint_leave_no_trace_in_the_bits(place: Path, kills: int) -> None:
    length = f"optim.steps={40 + 16 * kills}"
    with forked([*TWO, JEPAKIT, *pretraining(place, "whole", "--overwrite", length)], place / "whole.txt") as process:
        assert ended(process, 120) == 0, (place / "whole.txt").read_text()[-2000:]
    run, rng = Run(place / f"killed{kills}"), random.Random(0)
    words = [*TWO, "--max-restarts", str(kills), JEPAKIT, *pretraining(place, run.path.name, length)]
    with forked(words, place / "killed.txt") as process:
        for number in range(kills):
            begun = newest(run)
            until(lambda begun=begun: newest(run) > max(begun, 0))  # type: ignore[misc]
            if number == kills // 2:
                file = run.checkpoints / f"step-{newest(run):08d}" / "model.safetensors"
                content = bytearray(file.read_bytes())
                content[-1] ^= 1
                file.write_bytes(content)
            os.kill(rng.choice(workers_of(process.pid)), signal.SIGKILL)
            until(lambda number=number: times_resumed(run) > number, 60)  # type: ignore[misc]
        assert ended(process, 120) == 0, (place / "killed.txt").read_text()[-2000:]
    said = (run.path / "run.log").read_text()
    assert times_resumed(run) == kills and "is corrupt, falling back to the one before" in said
    one, other = weights(Run(place / "whole")), weights(run)
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert [row["loss"] for row in run.metrics()] == [row["loss"] for row in Run(place / "whole").metrics()]


def test_a_rank_that_hangs_is_named_and_the_group_ends(place: Path) -> None:
    run = Run(place / "hung")
    words = pretraining(place, "hung", "run.timeout_seconds=5")
    with started([*torchrun(2), JEPAKIT, *words], place / "hung.txt") as process:
        until(lambda: newest(run) >= 20)
        worker = max(workers_of(process.pid))  # the one of rank 1, which was started last
        os.kill(worker, signal.SIGSTOP)
        assert process.wait(ENDS_IN) != 0
    said = (place / "hung.txt").read_text()
    assert f"rank 1 ({os.uname().nodename}, process {worker}) ended or hangs in step " in said, said[-2000:]
    assert WAITED not in said


def test_whatever_gloo_says_of_a_silent_rank_is_known_as_the_groups_error() -> None:
    """Of several all-reduces on their way, as of a backward pass, the first runs out of time, and closes what the others use."""
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        ours, _silent = pool.map(lambda rank: ProcessGroupGloo(store, rank, 2, timedelta(seconds=0.5)), range(2))
    said = set()
    for work in [ours.allreduce([torch.ones(1)]) for _ in range(3)]:
        with pytest.raises(RuntimeError) as error:
            work.wait()
        said.add(str(error.value))
        assert distributed._is_of_group(error.value), error.value
    assert len(said) > 1


SLOWLY = """
import sys, time
from importlib import import_module
from pathlib import Path
from jepakit.training.train import pretrain

beginning, place = import_module("jepakit.training.beginning"), Path(sys.argv[2])
fitted = beginning.fitted

def slowly(*given, **how):
    place.with_suffix(".measuring").touch()
    time.sleep(7)
    return fitted(*given, **how)

beginning.fitted = slowly
pretrain(sys.argv[1], place, "demo", set=sys.argv[3:])
"""


@pytest.mark.long
@pytest.mark.parametrize("hangs", [0, 1])
def test_a_rank_that_hangs_before_the_first_step_is_named(place: Path, hangs: int) -> None:
    """While rank 0 measures the images, for longer than a rank may be silent."""
    out, script = place / f"early{hangs}", place / "slowly.py"
    script.write_text(SLOWLY)
    words = [str(place / "waves.npz"), str(out), *SMALL, "run.timeout_seconds=5"]
    with started([*torchrun(2), str(script), *words], log := out.with_suffix(".txt")) as process:
        until(out.with_suffix(".measuring").exists)
        worker = sorted(workers_of(process.pid))[hangs]
        os.kill(worker, signal.SIGSTOP)
        assert process.wait(ENDS_IN) != 0
    said = log.read_text()
    named = f"rank {hangs} ({os.uname().nodename}, process {worker}) ended or hangs while the images were measured: "
    assert f"{named}no sign of life for run.timeout_seconds=5" in said, said[-2000:]
    assert WAITED not in said
    assert f"rank {1 - hangs} (" not in said and not out.exists()


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(place: Path) -> None:
    which = signal.SIGUSR1  # SIGTERM: test_distributed.py
    run = Run(place / which.name)
    with forked([*TWO, JEPAKIT, *pretraining(place, which.name)], place / f"{which.name}.txt") as process:
        until(lambda: newest(run) >= 20)
        os.kill(max(workers_of(process.pid)), which)
        assert ended(process, 60) == 0, (place / f"{which.name}.txt").read_text()[-2000:]
    said = (run.path / "run.log").read_text()
    assert f"rank 1: {which.name}: saving after this step" in said and f"stopped at step {newest(run)} of {LENGTH}" in said
    assert json.loads((run.checkpoints / f"step-{newest(run):08d}" / "state.json").read_text())["step"] == newest(run)


OWN_GROUP = """
import sys
import torch.distributed as dist
from jepakit.training.train import pretrain

def fail(row):
    raise KeyError("mine")

dist.init_process_group("gloo")
pretrain(sys.argv[1], sys.argv[2] + "-first", "demo", set=[*sys.argv[3:], "optim.steps=2", "optim.warmup_steps=1"])
dist.barrier()
print(f"still {dist.get_world_size()} processes", flush=True)
pretrain(sys.argv[1], sys.argv[2], "demo", set=sys.argv[3:], on_log=fail)
"""


def test_the_error_of_one_rank_is_what_the_others_say(place: Path) -> None:
    """A caller's hook, which only rank 0 has, raises; in a process group of the caller's, which an earlier run left as it was."""
    script = place / "hook.py"
    script.write_text(OWN_GROUP)
    words = [str(place / "waves.npz"), str(place / "hook"), *SMALL]
    with started([*torchrun(2), script, *words], place / "hook.txt") as process:
        assert process.wait(90) == 1
    said = (place / "hook.txt").read_text()
    assert Run(place / "hook-first").finished and said.count("still 2 processes") == 2
    assert "LostRankError: rank 0 ended: KeyError: 'mine'" in said and "hangs" not in said, said[-3000:]


@pytest.mark.parametrize(
    "words, shell, sentence",
    [
        (["optim.batch_size=25"], "", "optim.batch_size=25 cannot be shared evenly by 2 processes"),
        ([], '[ $RANK = 1 ] && set -- "${@/%wrong/other}"', "--out differs between processes: "),
    ],
)
def test_what_the_ranks_cannot_do_together_is_said_once(place: Path, words: list[str], shell: str, sentence: str) -> None:
    script = place / "rank.sh"
    script.write_text(f'{shell}\nexec {sys.executable} "$@"\n')
    command = [*torchrun(2, "--no-python"), "bash", str(script), JEPAKIT, *pretraining(place, "wrong", *words)]
    with started(command, place / "said.txt") as process:
        assert process.wait(90) == 1  # torchrun's own
    said = (place / "said.txt").read_text()
    (place / "said.txt").unlink()
    assert said.count("error: ") == 1 and f"error: {sentence}" in said, said[-3000:]
    assert "exitcode  : 2" in said and not (place / "wrong").exists() and not (place / "other").exists()


def test_a_store_that_is_gone_is_said_and_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun's first machine keeps it."""
    server = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    beats = Heartbeats(server.clone(), 0, 2, 20.0)
    monkeypatch.setattr(distributed, "_store", server.clone())
    monkeypatch.setattr(distributed, "_beats", beats)
    del server
    with pytest.raises(KeyError, match="mine"), distributed._naming_the_lost("why"):
        raise KeyError("mine")
    gone = "torchrun, or the machine that it began on, ended"
    with pytest.raises(LostRankError, match=gone), distributed._naming_the_lost("the connection broke"):
        beats.meet()
    beats.end()


def test_two_ranks_on_one_gpu_and_a_torch_without_nccl_are_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: 3)
    device = torch.device("cuda", 1)
    monkeypatch.setattr(parallel, "told_objects", lambda own: [("a", 0, True), ("a", 1, True), ("a", 1, True)])
    with pytest.raises(AgreedError, match=r"ranks 1 and 2 are both on cuda:1 of a: leave run.device at auto"):
        parallel.require_own_device(device)
    monkeypatch.setattr(parallel, "told_objects", lambda own: [("a", 0, True), ("a", 1, False), ("b", 1, True)])
    with pytest.raises(AgreedError, match="built without NCCL"):
        parallel.require_own_device(device)


def test_a_process_group_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for name, value in {"is_initialized": True, "get_rank": 1, "get_backend": "nccl", "get_backend_config": "cuda:nccl"}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    sentence = "has 2 processes here, of which RANK and WORLD_SIZE say otherwise: start them with torchrun"
    for given in ({}, {"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "4"}):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=sentence), distributed.process_group():
            pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="can talk by nccl alone: leave out"), distributed.process_group():
        pass
