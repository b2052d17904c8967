"""Starts processes by torchrun; and is what they run: several pretrainings, one after the other.

`started` does it as a user would. `forked` does it from a server that has torch and jepakit imported, which saves each process
some seconds of a core.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

# Adam with its own epsilon makes large differences of gradients that are nothing but rounding
SMALL = [
    *("images.size=24", "encoder.patch_size=4", "encoder.width=32", "encoder.depth=2", "encoder.heads=2", "predictor.width=16"),
    *(
        "predictor.depth=2",
        "masking.min_keep=3",
        "optim.steps=20",
        "optim.batch_size=24",
        "optim.warmup_steps=4",
        "optim.eps=0.01",
    ),
    *("run.threads=1", "run.precision=fp32", "run.probe_images=0", "run.loader_threads=1", "run.log_every_steps=5"),
    *("run.save_every_steps=10", "run.timeout_seconds=60", "optim.eps=0.01"),
]


QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}


def made_images(folder: Path) -> Path:
    """An npz of 96 pictures of 24 pixels: waves, each of a direction, a place and colours of its own."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:24, :24] / 24
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(-3, 3, (96, 3))]
    colours, grounds = rng.uniform(-80, 80, (2, 96, 1, 1, 3))
    images = np.stack(waves)[..., None] * colours + grounds + 128
    np.savez(folder / "waves.npz", images=images.clip(0, 255).astype(np.uint8))
    return folder / "waves.npz"


def torchrun(processes: int, *more: str) -> list[str]:
    """The words before the program."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *more]


def module(name: str) -> str:
    """The file that `python -m NAME` runs."""
    spec = find_spec(f"{name}.__main__")
    assert spec and spec.origin
    return spec.origin


@contextmanager
def started(command: Sequence[str | Path], log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, running, what it says in a file; it and its children are gone at the end."""
    env = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1", **environment}
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
    try:
        yield process
    finally:
        kill_workers(process.pid)
        process.kill()
        process.wait(30)


@contextmanager
def forked(words: Sequence[str | Path], log: Path) -> Iterator[BaseProcess]:
    """torchrun with these words, the first script's file among them, running; what it says in a file; all gone at the end."""
    server = get_context("forkserver")
    server.set_forkserver_preload(["jepakit.cli", "jepakit.training.train", "jepakit.evaluation.tasks", "torch.distributed.run"])
    process = server.Process(target=_torchrun, args=([str(word) for word in words], str(log), os.getcwd()))
    process.start()
    assert process.pid
    try:
        yield process
    finally:
        kill_workers(process.pid)
        process.kill()
        process.join(30)


def _torchrun(words: list[str], log: str, place: str) -> None:
    """In a process of the server: its workers are forks of it, with all that it has imported."""
    os.setsid()
    os.chdir(place)
    with open(log, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ |= QUIET
    from torch.distributed.run import main

    main(["--standalone", "--run-path", "--start-method", "fork", *words])


def ended(process: BaseProcess, seconds: float) -> int | None:
    """The exit status, once it has ended; None where that takes longer."""
    process.join(seconds)
    return process.exitcode


def workers_of(pid: int) -> list[int]:
    """The processes that torchrun runs at the moment."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill_workers(pid: int) -> None:
    """End what torchrun runs, which has a session of its own."""
    for worker in workers_of(pid):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def until(ready: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def ran(processes: int, cases: Sequence[dict[str, Any]], folder: Path, *more: str) -> None:
    """Each case in as many processes, one after the other, in one launch; more: words for torchrun."""
    (folder / "cases.json").write_text(json.dumps(list(cases)))
    words = ["--nproc-per-node", str(processes), *more, __file__, folder / "cases.json"]
    with forked(words, folder / "log.txt") as process:
        code = ended(process, 280)
    assert code == 0, (folder / "log.txt").read_text()[-3000:]


def run_case(case: dict[str, Any]) -> None:
    """out, data, set: of `pretrain`; or resume. stop_at: a step at which rank 0 gets SIGTERM; gradients: a file for the first.

    blocked: where the model is to be written there is a file, and each process notes its error in OUT-RANK.txt.
    words: of the command line, which ends with `code` (2); call: a function by its module and name, with these keywords.
    """
    from jepakit.training.train import pretrain

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == case["stop_at"]:
            os.kill(os.getpid(), signal.SIGTERM)

    on_log = stop if "stop_at" in case else None
    if "words" in case:
        _command(case["words"], case.get("code", 2))
    elif "call" in case:
        module, name = case.pop("call")
        getattr(import_module(module), name)(**case)
    elif "gradients" in case:
        _gradients(case)
    elif "blocked" in case:
        _blocked(case)
    elif "resume" in case:
        pretrain(resume=case["resume"], set=case.get("set"), on_log=on_log)
    else:
        pretrain(case["data"], case["out"], "demo", set=[*SMALL, *case["set"]], on_log=on_log)


def _blocked(case: dict[str, Any]) -> None:
    from jepakit.core.distributed import AgreedError
    from jepakit.core.ranks import rank
    from jepakit.training.train import pretrain

    try:
        how: dict[str, Any] = {"on_checkpoint": lambda *_: (Path(case["out"]) / "model").touch()}
        pretrain(case["data"], case["out"], "demo", set=[*SMALL, *case["set"]], **how)
    except AgreedError as error:
        Path(f"{case['out']}-{rank()}.txt").write_text(str(error))


def _command(words: list[str], code: int) -> None:
    from jepakit import cli

    try:
        cli.main(words)
    except SystemExit as error:
        assert error.code == code
    else:
        assert code == 0


def _gradients(case: dict[str, Any]) -> None:
    from jepakit.config.config import overrides, resolve
    from jepakit.core import distributed
    from jepakit.core.ranks import is_main
    from jepakit.data.opening import open_source
    from jepakit.training.step import Training

    config = resolve({"recipe": "demo", "data": case["data"]}, overrides([*SMALL, *case["set"]]))
    training = Training.prepare(config, open_source(case["data"]))
    training.jepa.double()  # so that a mistake is not taken for rounding
    (masks, images), *_ = training._micro_batches(batch := training.loader.batch(0))
    counts = distributed.told([len(batch.masks[0].targets)])[:, 0].tolist()
    with distributed.time_limit(60):
        training.share()
        training.model(images.double(), masks, counts=counts).weighted(counts).loss.backward()
    if is_main():
        grads = {name: p.grad for name, p in training.jepa.trained_parameters() if p.grad is not None}
        save_file(grads, case["gradients"])


if __name__ == "__main__":
    from jepakit.core import distributed

    with distributed.process_group():
        for each in json.loads(Path(sys.argv[1]).read_text()):
            run_case(each)
