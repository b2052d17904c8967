"""Training steps by one process and by several: time, what of it is communication, and bytes sent against what `plan` says.

    python benchmarks/scale.py                                   # two processes of a thread each, on a CPU: minutes
    python benchmarks/scale.py --device cuda --processes 8 --set encoder.size=base images.size=224 encoder.patch_size=16 \\
        optim.batch_size=1024
    python benchmarks/scale.py --smoke                           # that it runs, and the bytes

Rounds of launches, of one process and of several by torchrun in turns, each of the same global batches. Steps are those on which
nothing is logged, from the exchange of whether to stop to the end of the update. Of several processes every other step is
silent: the same work, but each process keeps its gradients and its rows' statistics to itself; what such a step lacks is the
communication that nothing hides. Figures are medians over all steps of all rounds. Bytes are what the system counts on the
process's own TCP connections (gloo's); NCCL's do not pass there. Writes docs/evidence/scale.json.
"""

import argparse
import json
import os
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported

import numpy as np
import torch
import torch.distributed as dist

from jepakit.config.config import given_layer
from jepakit.config.recipes import settings
from jepakit.core import distributed
from jepakit.core.files import save_json
from jepakit.core.ranks import is_main
from jepakit.data.sources import ArraySource
from jepakit.planning.plan import plan
from jepakit.training.step import Training

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "scale.json"
METHODS = ("ijepa", "c_jepa")
SETTINGS = ["images.size=64", "encoder.size=tiny", "encoder.patch_size=8", "predictor.width=96", "predictor.depth=6"]
SETTINGS += ["masking.min_keep=4", "optim.batch_size=64", "run.threads=1", "run.loader_threads=1", "run.precision=fp32"]
SMALL = ["images.size=32", "encoder.depth=1", "predictor.depth=1", "optim.batch_size=8"]
SENT, ACKNOWLEDGED = 200, 120  # where Linux's TCP_INFO has them, in bytes; the first not before 4.19
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
Row = dict[str, Any]


def bytes_sent() -> int:
    """What this process has sent over TCP until now."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                total += _sent_by(socket.socket(fileno=os.dup(int(name))))
    return total


def _sent_by(connection: socket.socket) -> int:
    with connection:
        if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
            return 0
        about = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("Q", about, SENT if len(about) >= SENT + 8 else ACKNOWLEDGED)[0])


@contextmanager
def silent(model: Any) -> Iterator[None]:
    """Nothing passes between the processes in here."""
    with mock.patch.object(dist, "is_initialized", return_value=False), model.no_sync():
        yield


def measured(words: list[str], steps: int) -> Row:
    """Seconds of each step of this process, of those that are silent, and the bytes of the others."""
    given = given_layer([*words, f"optim.steps={4 * steps}", "optim.warmup_steps=1"], {})
    config = settings("small", given.pop("method"), given)  # as `plan` has it: a method is more than its name
    side, draw = config.images.height_width, np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2 * config.optim.batch_size, *side, config.images.channels), dtype=np.uint8)
    training = Training.prepare(config, ArraySource("random images", pixels, None))
    kinds: dict[str, list[float]] = {"together": [], "silent": []}
    sent = list[int]()
    with distributed.time_limit(config.run.timeout_seconds):
        training.share()
        several, batches = (
            distributed.world_size() > 1,
            training.loader(0, 2 + (2 if distributed.world_size() > 1 else 1) * steps),
        )
        for number, batch in enumerate(batches):
            kind = "silent" if several and number % 2 else "together"
            before = bytes_sent() if several else 0
            seconds = _step(training, batch, kind)
            if number >= 2:  # the first ones make what the others find
                kinds[kind].append(seconds)
                sent += [bytes_sent() - before] if kind == "together" else []
    everyone = distributed.told_objects({"seconds": kinds, "bytes": statistics.median(sent)})
    return {"device": str(training.device), "seconds": everyone[0]["seconds"], "bytes": max(each["bytes"] for each in everyone)}


def _step(training: Training, batch: Any, kind: str) -> float:
    """An update as the loop of a run has it. Seconds."""
    started = time.perf_counter()
    own = [len(masks.targets) for masks in batch.masks]
    counts = distributed.told([0, 0, *own])[:, 2:].T.tolist()
    with ExitStack() as stack:
        if kind == "silent":
            stack.enter_context(silent(training.model))
        on_cpu = training.device.type == "cpu"
        training.train_step(batch, training.schedule.at(training.step), check=on_cpu, rows=False, counts=counts)
    training.step += 1
    if not on_cpu:
        torch.cuda.synchronize(training.device)
    return time.perf_counter() - started


def launch(processes: int, words: list[str], steps: int) -> Row:
    """`measured` in so many processes of their own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        own = [__file__, "--child", str(out), "--steps", str(steps), "--set", *words]
        subprocess.run([sys.executable, *torchrun, *own], check=True, env={**os.environ, **ENVIRONMENT})
        return dict(json.loads(out.read_text()))


def compared(words: list[str], processes: int, steps: int, rounds: int) -> Row:
    """One process and several, in turns."""
    rows: dict[int, list[Row]] = {1: [], processes: []}
    for _ in range(rounds):
        for count, found in rows.items():
            found.append(launch(count, words, steps))
    seconds = {n: [s for row in found for s in row["seconds"]["together"]] for n, found in rows.items()}
    quiet = statistics.median(s for row in rows[processes] for s in row["seconds"]["silent"])
    one, several = (statistics.median(seconds[n]) for n in (1, processes))
    speed = plan("small", device="A100-80", devices=processes, set=words).speed
    assert speed is not None and speed.between is not None
    sent = statistics.median(row["bytes"] for row in rows[processes]) if rows[1][0]["device"] == "cpu" else None
    return {
        "settings": words,
        "device": rows[1][0]["device"],
        "processes": processes,
        "steps": len(seconds[1]),
        "milliseconds_of_one": round(1e3 * one, 1),
        "milliseconds": round(1e3 * several, 1),
        "faster": round(one / several, 2),
        "communication": round(1 - quiet / several, 3),
        "bytes_sent": sent,
        "bytes_planned": speed.between.sent_by_device,
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="of each kind in a launch")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--set", nargs="*", default=[], help="settings over those of the benchmark")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path, default=EVIDENCE)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with distributed.process_group():
            row = measured(args.set, args.steps)
        if is_main():
            args.child.write_text(json.dumps(row))
        return
    steps, rounds, small = (3, 1, SMALL) if args.smoke else (args.steps, args.rounds, [])
    own = ["run.device=auto"] if args.device == "cuda" else [f"run.device={args.device}"]
    rows = []
    for method in args.methods.split(",")[: 1 if args.smoke else None]:
        rows.append(row := compared([f"method={method}", *SETTINGS, *own, *small, *args.set], args.processes, steps, rounds))
        print(json.dumps(row), flush=True)
        if row["bytes_sent"] is not None and not 0.9 < row["bytes_sent"] / row["bytes_planned"] < 1.1:
            sys.exit(f"{method}: {row['bytes_sent']:,} bytes are sent, and {row['bytes_planned']:,} were planned")
    if not args.smoke:
        save_json(args.json, {"command": "python benchmarks/scale.py", "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
