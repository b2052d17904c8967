"""A training step, ours beside the released code's written plainly (benchmarks/plain.py): time, memory, and the same loss.

    python benchmarks/step.py                          # four sizes, five rounds: an hour or so on two quiet cores
    python benchmarks/step.py --configs tiny32,tiny96 --rounds 7
    python benchmarks/step.py --smoke                  # seconds: that it runs
    python benchmarks/step.py --device cuda --configs base224

All ways run one after the other in one process, round by round, each on the round's own batch: CPU seconds with one thread,
then wall seconds with --threads; rates are of the CPU seconds. A figure is the median over rounds, a ratio the median of each
round's own. Masks are drawn by the released law, which trims them to the batch's shortest; 'full' are the same draws before
trimming, which the plain step cannot take: there too it gets the trimmed ones. Memory is what a process that runs one way only
grows by, model and all. The plain step shares our process, and so our setting of the C library's allocator; `alone` in the
evidence has it without, too.
Writes docs/evidence/step.json, a configuration as soon as it is done.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
sys.path.append(str(Path(__file__).parent))

import numpy as np
import torch
from plain import collate
from step_ablations import ABLATIONS
from step_cases import CASES, CPU, PRECISIONS, SCHEDULE, SMOKE, Batch, Case, OurStep, batch_of
from torch import Tensor

from jepakit.config.optim import ScheduleValues
from jepakit.core.device import configure_cpu, device_of
from jepakit.core.files import save_json
from jepakit.model.jepa import JEPA
from jepakit.model.masking.masks import MultiBlock

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "step.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way to take a step; its ratios are to the way `beside`. Only the main ways get a wall time."""

    name: str
    masks: str
    step: Callable[[Batch, ScheduleValues], object]
    beside: str = "plain"
    main: bool = True


def ways(case: Case, device: torch.device) -> list[Way]:
    """All ways, on two sets of weights: the plain step's and ours."""
    theirs = case.plain(device)
    found = [Way("plain", "trimmed", lambda b, now: theirs.step(b.images, b.dense, now))]
    first = OurStep.of(case, "fp32", device)
    conditioned = copy(first.jepa)  # of the same modules, for conditioning has no parameters
    conditioned.method = case.method("ec_ijepa")
    for name, dtype in PRECISIONS.items():

        def way(title: str, masks: str, *rest: Any, jepa: JEPA = first.jepa, change: Any = None, dtype: Any = dtype) -> Way:
            own = OurStep(jepa, first.adamw, dtype)

            def step(batch: Batch, now: ScheduleValues) -> object:
                with change(own) if change else ExitStack():
                    return own.step(batch.images, getattr(batch, masks), now)

            return Way(title, masks, step, *rest)

        full = f"ours {name}, full"
        found += [way(f"ours {name}, trimmed", "trimmed"), way(full, "full")]
        found.append(way(f"EC-IJEPA {name}, full", "full", full, jepa=conditioned))
        found += [way(f"{full}, {title}", "full", full, False, change=change) for title, change in ABLATIONS.items()]
    return found


def cost(device: torch.device, call: Callable[..., object], *args: Any) -> dict[str, float]:
    """CPU and wall milliseconds of a call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    call(*args)
    wait()
    return {"cpu": 1e3 * (time.process_time() - cpu), "wall": 1e3 * (time.perf_counter() - wall)}


def timed(case: Case, rounds: int, threads: int, device: torch.device) -> list[Row]:
    """A row for each way; a first round warms up."""
    all_ways = ways(case, device)
    named, found = {way.name: way for way in all_ways}, {way.name: list[Row]() for way in all_ways}
    for number in range(rounds + 1):
        batch, now = batch_of(case, number, device), SCHEDULE.at(number)
        for way in all_ways[:: -1 if number % 2 else 1]:
            torch.set_num_threads(1)
            times = {"cpu": cost(device, way.step, batch, now)["cpu"]}
            if way.beside != "plain":  # of a few percent, and the machine's pace drifts: its own neighbour
                times["cpu beside"] = cost(device, named[way.beside].step, batch, now)["cpu"]
            if way.main or device != CPU:
                torch.set_num_threads(threads)
                times["wall"] = cost(device, way.step, batch, now)["wall"]
            found[way.name].append({**times, "tokens": len(getattr(batch, way.masks).context)})
        print(f"round {number} of {rounds}: plain {found['plain'][-1]['cpu']:.0f} CPU ms", file=sys.stderr)
    return [summary(case, way, found[way.name][1:], found[way.beside][1:]) for way in all_ways]


def summary(case: Case, way: Way, own: list[Row], beside: list[Row]) -> Row:
    """Medians over rounds. times: how many times as long as the way beside it takes; the median, the least and the most."""
    result: Row = {"way": way.name, "beside": way.beside, "masks": way.masks}
    result["context_tokens"] = statistics.median(r["tokens"] for r in own)
    for clock in (c for c in ("cpu", "wall") if c in own[0]):
        ratios = [r[clock] / r.get(f"{clock} beside", b[clock]) for r, b in zip(own, beside, strict=True)]
        result[clock] = {
            "ms": round(statistics.median(r[clock] for r in own), 2),
            "images_per_s": round(statistics.median(1e3 * case.batch / r[clock] for r in own), 2),
            "tokens_per_s": round(statistics.median(1e3 * r["tokens"] / r[clock] for r in own), 1),
            "times": [round(f(ratios), 4) for f in (statistics.median, min, max)],
        }
        tokens = [r["tokens"] / b["tokens"] / ratio for r, b, ratio in zip(own, beside, ratios, strict=True)]
        result[clock]["tokens_per_s_times"] = round(statistics.median(tokens), 4)
    return result


def differences(case: Case, steps: int, device: torch.device) -> dict[str, float]:
    """Differences of the loss from the plain step's: relative ones, the largest in 6 steps of fp32; in bf16 after `steps`.

    As the plain step in bf16 is itself apart from that in fp32, ours in bf16 is set beside both.
    """
    batches = [batch_of(case, i, device) for i in range(8)]

    def losses(step: Callable[..., Any], masks: str, count: int) -> Tensor:
        each = ((batches[i % len(batches)], SCHEDULE.at(i)) for i in range(count))
        return torch.tensor([float(step(b.images, getattr(b, masks), now)) for b, now in each], dtype=torch.float64)

    plain = losses(case.plain(device).step, "dense", max(6, steps))
    found = {"fp32, most in 6 steps": losses(OurStep.of(case, "fp32", device).step, "trimmed", 6) / plain[:6] - 1}
    if steps:
        ours, lowered = losses(OurStep.of(case, "bf16", device).step, "trimmed", steps), case.plain(device, True).step
        plain_bf16 = losses(lowered, "dense", steps)
        for name, a, b in (
            ("bf16", ours, plain),
            ("plain in bf16", plain_bf16, plain),
            ("bf16 beside plain in bf16", ours, plain_bf16),
        ):
            found |= {f"{name}, after {steps} steps": (a / b - 1)[-1:], f"{name}, most, absolute": a - b}
    return {name: float(apart.abs().max()) for name, apart in found.items()}


def alone(case: Case, name: str, keep: bool, threads: int) -> Row:
    """A way in this process alone, on a CPU: what it grows by to the peak, and its CPU time.

    keep: have the C library keep what was freed, as our runs do.
    """
    batch = batch_of(case, 1)
    if keep:
        configure_cpu(threads)
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    if name == "plain":
        step, masks = case.plain().step, "dense"
    else:
        precision, masks = name.removeprefix("ours ").split(", ")
        step = OurStep.of(case, precision).step
    times = [cost(CPU, step, batch.images, getattr(batch, masks), SCHEDULE.at(i))["cpu"] for i in range(4)]
    peak = round(resident("VmHWM") - before)
    return {"way": name, "keeps_freed_memory": keep, "peak_mb": peak, "cpu_ms": round(statistics.median(times[1:]), 2)}


def resident(key: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most. (A child's ru_maxrss begins with its parent's.)"""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) * 1024 / 1e6


def masks_cost(rounds: int, sizes: tuple[int, ...] = (128, 256, 512), batches: int = 10) -> list[Row]:
    """CPU microseconds an image of mask sampling on 14x14, one thread, for each size of batch."""
    torch.set_num_threads(1)
    return [row for batch in sizes for row in _masks_cost(rounds, batch, batches)]


def _masks_cost(rounds: int, batch: int, batches: int) -> list[Row]:
    grid, released, ids = (14, 14), MultiBlock(compat="released"), np.arange(batch)
    laws: dict[str, Callable[[int], object]] = {
        "plain collator": lambda step: collate(released, grid, batch, step),
        "ours": lambda step: MultiBlock().sample(grid, ids, seed=0, epoch=step),
        "ours, compat=released": lambda step: released.sample(grid, ids, seed=0, step=step),
    }
    found: dict[str, list[float]] = {name: [] for name in laws}
    for number in range(rounds + 1):
        steps = range(number * batches, (number + 1) * batches)
        for name, law in laws.items():
            found[name].append(1e3 * cost(CPU, lambda law, steps: [law(s) for s in steps], law, steps)["cpu"] / batch / batches)
    rows = []
    for name, own in found.items():
        faster = statistics.median(b / o for b, o in list(zip(found["plain collator"], own, strict=True))[1:])
        rows.append(
            {"way": name, "batch": batch, "cpu_us_an_image": round(statistics.median(own[1:]), 2), "faster": round(faster, 2)}
        )
    return rows


def table(name: str, result: Row) -> str:
    """Markdown."""
    about, peaks = result["about"], {r["way"]: r["peak_mb"] for r in result["alone"] if r["keeps_freed_memory"]}
    lines = [
        f"{name}: {about['rounds']} rounds, {about['device']}",
        "",
        f"| | CPU ms, 1 thread | wall ms, {about['threads']} threads | images/s | context tokens/s | x plain | wall | MB |",
        "|" + "---|" * 8,
    ]
    beside = []
    for r in result["rows"]:
        cpu, wall = r["cpu"], r.get("wall")
        if r["beside"] != "plain":
            beside.append(f"| {r['way'].removeprefix(r['beside'] + ', ')} | {r['beside']} | {cpu['times'][0]:.3f} |")
            continue
        tokens = f"{cpu['tokens_per_s']:.0f} (x {cpu['tokens_per_s_times']:.2f})"
        cells = [f"{cpu['ms']:.0f}", f"{wall['ms']:.0f}", f"{cpu['images_per_s']:.1f}", tokens]
        cells += [f"{1 / clock['times'][0]:.2f}" for clock in (cpu, wall)]
        lines.append(f"| {r['way']} | {' | '.join(cells)} | {peaks.get(r['way'], '')} |")
    lines += ["", "| | beside | times its CPU ms |", "|" + "---|" * 3, *beside, ""]
    return "\n".join([*lines, "loss beside plain: " + json.dumps(result["losses"]), ""])


def measured(case: Case, rounds: int, threads: int, device: torch.device, *, smoke: bool) -> Row:
    """All of a configuration: where and how, losses, times, and each way in a process of its own."""
    names = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(names)} x {names[0]}"
    about = {"case": asdict(case), "rounds": rounds, "threads": threads, "device": name, "torch": torch.__version__}
    losses = differences(case, 60 if case.size == "tiny" and not smoke else 0, device)
    rows = timed(case, rounds, threads, device)
    apart = [(r["way"], True) for r in rows if r["way"].startswith("ours") and r["beside"] == "plain"]
    apart = apart[:1] if smoke else [("plain", False), ("plain", True), *apart] if device == CPU else []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rest = [pool.apply(alone, (case, way, keep, threads)) for way, keep in apart]
    return {"about": about, "losses": losses, "rows": rows, "alone": rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of the wall times; CPU times are of one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device, smoke = device_of(arguments.device), arguments.smoke
    rounds = 1 if smoke else arguments.rounds
    configure_cpu(arguments.threads)
    evidence = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name, case in {"smoke": SMOKE}.items() if smoke else [(name, CASES[name]) for name in arguments.configs.split(",")]:
        evidence[name] = measured(case, rounds, arguments.threads, device, smoke=smoke)
        print(table(name, evidence[name]), flush=True)
        if not smoke:
            save_json(arguments.out, evidence)
    evidence["masks"] = masks_cost(rounds)
    print(*evidence["masks"], sep="\n")
    if not smoke:
        save_json(arguments.out, evidence)


if __name__ == "__main__":
    main()
