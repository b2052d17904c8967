"""Training steps by one process and by several: time, what of it is communication, and bytes sent against what `plan` says.

    python benchmarks/scale.py                                   # two processes of a thread each, on a CPU: minutes
    python benchmarks/scale.py --device cuda --processes 8 --set encoder.size=base images.size=224 encoder.patch_size=16 \\
        optim.batch_size=1024
    python benchmarks/scale.py --smoke                           # that it runs, and the bytes

Rounds of launches in turns: one process; several by torchrun, of the same global batches; and, as a control, as many that have
nothing to do with each other, each of the whole batch: how much more they do together than one alone is the ceiling of what any
processes can reach on these cores. Steps are those on which nothing is logged, from the exchange of whether to stop to the end of
the update. Of several processes every other step is silent: the same work, but each process keeps its gradients and its rows'
statistics to itself; what such a step lacks is the communication that nothing hides. Figures are quartiles over all steps of all
rounds, of wall time and of CPU time (all threads of all processes), which other work on the cores changes less. Bytes are what
the system counts on the process's own TCP connections (gloo's); NCCL's do not pass there. Writes docs/evidence/scale.json.
"""

import argparse
import json
import os
import shlex
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
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
from jepakit.core.device import cores
from jepakit.core.environment import cpu_name
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
PATIENCE_SECONDS = 600.0
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


def measured(words: list[str], steps: int, ready: Callable[[], None]) -> Row:
    """Seconds of each step of this process and of all processes' cores, apart for those that are silent; bytes of the others."""
    given = given_layer([*words, f"optim.steps={4 * steps}", "optim.warmup_steps=1"], {})
    config = settings("small", given.pop("method"), given)  # as `plan` has it: a method is more than its name
    side, draw = config.images.height_width, np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2 * config.optim.batch_size, *side, config.images.channels), dtype=np.uint8)
    training = Training.prepare(config, ArraySource("random images", pixels, None))
    kinds: dict[str, list[tuple[float, float]]] = {"together": [], "silent": []}
    sent = list[int]()
    ready()
    with distributed.time_limit(config.run.timeout_seconds):
        training.share()
        several = distributed.world_size() > 1
        for number, batch in enumerate(training.loader(0, 2 + (1 + several) * steps)):
            kind = "silent" if several and number % 2 else "together"
            before = bytes_sent() if several else 0
            seconds = _step(training, batch, kind)
            if number >= 2:  # the first ones make what the others find
                kinds[kind].append(seconds)
                sent += [bytes_sent() - before] if kind == "together" else []
    everyone = distributed.told_objects({"seconds": kinds, "bytes": statistics.median(sent)})
    return {
        "device": str(training.device),
        "seconds": {kind: [wall for wall, _ in found] for kind, found in kinds.items()},
        "cpu": {kind: np.sum([each["seconds"][kind] for each in everyone], 0)[:, 1].tolist() for kind in kinds if kinds[kind]},
        "bytes": max(each["bytes"] for each in everyone),
    }


def _step(training: Training, batch: Any, kind: str) -> tuple[float, float]:
    """An update as the loop of a run has it. Seconds, and those of this process's threads on cores."""
    started, used = time.perf_counter(), time.process_time()
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
    return time.perf_counter() - started, time.process_time() - used


def launch(words: list[str], steps: int, processes: int = 1, *, alone: int = 1) -> list[Row]:
    """`measured` in so many processes by torchrun; or, alone, of so many that begin together and know nothing of each other."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{number}.json" for number in range(alone)]
        own = [sys.executable, *torchrun, __file__, "--steps", str(steps), "--alone", str(alone)]
        environment = {**os.environ, **ENVIRONMENT}
        children = [subprocess.Popen([*own, "--child", str(out), "--set", *words], env=environment) for out in outs]
        codes = [child.wait() for child in children]
        if any(codes):
            sys.exit("a measurement failed")
        return [json.loads(out.read_text()) for out in outs]


def begin_together(out: Path, alone: int) -> None:
    """Wait until as many processes are here; not for ever, as one may have failed."""
    out.with_suffix(".ready").touch()
    until = time.monotonic() + PATIENCE_SECONDS
    while len([*out.parent.glob("*.ready")]) < alone:
        if time.monotonic() > until:
            sys.exit("another process did not come")
        time.sleep(0.01)


def quartiles(rows: list[Row], what: str, kind: str = "together") -> list[float]:
    """Milliseconds: lower quartile, median, upper quartile over steps of all rows."""
    return [round(1e3 * float(x), 1) for x in np.quantile([s for row in rows for s in row[what][kind]], [0.25, 0.5, 0.75])]


def compared(words: list[str], processes: int, steps: int, rounds: int) -> Row:
    """One process, several, and as many apart, in turns."""
    one, several, apart = list[Row](), list[Row](), list[Row]()
    for _ in range(rounds):
        one += launch(words, steps)
        several += launch(words, steps, processes)
        apart += launch(words, steps, alone=processes)
    speed = plan("small", device="A100-80", devices=processes, set=words).speed
    assert speed is not None and speed.between is not None
    wall = {name: quartiles(rows, "seconds") for name, rows in {"one": one, "together": several, "apart": apart}.items()}
    wall["silent"] = quartiles(several, "seconds", "silent")
    cpu = {"one": quartiles(one, "cpu"), "together": quartiles(several, "cpu"), "silent": quartiles(several, "cpu", "silent")}
    faster, ceiling = wall["one"][1] / wall["together"][1], processes * wall["one"][1] / wall["apart"][1]
    return {
        "settings": words,
        "device": one[0]["device"],
        "processes": processes,
        "steps": steps * rounds,
        "milliseconds": wall,
        "cpu_milliseconds": cpu,
        "faster": round(faster, 2),
        "ceiling": round(ceiling, 2),
        "share_of_ceiling": round(faster / ceiling, 3),
        "communication": round(1 - wall["silent"][1] / wall["together"][1], 3),
        "communication_cpu": round(1 - cpu["silent"][1] / cpu["together"][1], 3),
        "work_of_one": round(cpu["together"][1] / cpu["one"][1], 3),
        "bytes_sent": statistics.median(row["bytes"] for row in several) if one[0]["device"] == "cpu" else None,
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
    parser.add_argument("--alone", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with distributed.process_group():
            row = measured(args.set, args.steps, partial(begin_together, args.child, args.alone))
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
        on = {"torch": torch.__version__, "processor": cpu_name(), "cores": cores()}
        save_json(args.json, {"command": shlex.join(["python", *sys.argv]), **on, "rows": rows})


if __name__ == "__main__":
    main()
