"""ViT-B/16, L/16 and H/14 at 224, and a tiny encoder at 64, on a CUDA device: images a second, share of peak, memory, parts.

    python benchmarks/gpu.py                     # under eight minutes on an H200
    python benchmarks/gpu.py --models base --steps 30
    python benchmarks/gpu.py --smoke             # a tiny encoder, on whatever device there is: that it runs

The plain step is the released code's (benchmarks/plain.py), which trims contexts; 'equal tokens' gives ours the trimmed masks
too, 'full' all of the context. Peak: the fastest product of 8192 x 8192 bf16 matrices in the same run. Utilisation: useful
FLOPs (jepakit.flops, real lengths) over time, over that peak. Loader: packed-size images from memory, decoded by nobody, so
what it waits for is cropping, masks and the copy. Writes docs/evidence/gpu.json.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
sys.path.append(str(Path(__file__).parent))

import numpy as np
import torch
from step_cases import OPTIM, SCHEDULE, SMOKE, Batch, Case, OurStep, batch_of

from jepakit.config.optim import apply_schedule, gradient_norm
from jepakit.core.device import autocast, configure_cpu, device_of
from jepakit.core.files import save_json
from jepakit.data.loader import Loader
from jepakit.data.sources import ArraySource
from jepakit.model.images import IMAGENET, ImageSettings, normalise
from jepakit.model.masking.masks import MultiBlock
from jepakit.planning import flops

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "gpu.json"
MODELS = {
    "tiny": Case("tiny", 64, 8, 256, 96, min_keep=6),  # small images: kernels so short that launching them takes the time
    "base": Case("base", 224, 16, 256, 384),
    "large": Case("large", 224, 16, 128, 384, depth=24, predictor_depth=12),
    "huge": Case("huge", 224, 14, 64, 384, depth=32, predictor_depth=12),
}
PARTS = ("encoder", "predictor", "target encoder", "backward", "optimiser and average")
Row = dict[str, Any]


class Clock:
    """Milliseconds of named parts of a step: CUDA's own events there, else the wall's."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.marks = device.type == "cuda", list[tuple[str, Any, Any]]()

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = self.now()
        yield
        self.marks.append((name, begun, self.now()))

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            with self.part(name):
                return call(*args, **more)

        return timed

    def totals(self) -> dict[str, float]:
        """Milliseconds of each part since the last call."""
        if self.cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, a, b in self.marks:
            found[name] = found.get(name, 0.0) + (a.elapsed_time(b) if self.cuda else 1e3 * (b - a))
        self.marks.clear()
        return found


def peak(device: torch.device) -> float:
    """TFLOP/s of the fastest of ten products of large bf16 matrices."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock, best = Clock(device), 0.0
    for _ in range(10):
        with clock.part("product"):
            for _ in range(10):
                a @ b
        best = max(best, 10 * 2 * n**3 / (1e-3 * clock.totals()["product"]) / 1e12)
    return best


def by_part(our: OurStep, clock: Clock, images: torch.Tensor, masks: Any) -> None:
    """`OurStep.step`, with a clock around each part."""
    now = SCHEDULE.at(1)
    jepa = our.jepa
    apply_schedule(our.adamw, now)
    our.adamw.zero_grad(set_to_none=True)
    with autocast(images.device, our.dtype):
        out = jepa(images, masks)
    with clock.part("backward"):
        out.loss.backward()
    with clock.part("optimiser and average"):
        gradient_norm(jepa, OPTIM.clip_grad)
        our.adamw.step()
        jepa.update_target_encoder(now.momentum)


def rate(device: torch.device, batches: list[Batch], step: Callable[[Batch], object], steps: int) -> dict[str, float]:
    """Median milliseconds of a step after three to warm up, and the most memory that it took beyond what lay there."""
    clock, found = Clock(device), []
    for i in range(min(3, steps)):
        step(batches[i % len(batches)])
    before = most = 0
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for i in range(steps):
        with clock.part("step"):
            step(batches[i % len(batches)])
        found.append(clock.totals()["step"])
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated()
    return {"ms": statistics.median(found), "peak_gb": most / 1e9, "activations_gb": (most - before) / 1e9}


def loader_wait(case: Case, device: torch.device, our: OurStep, steps: int, threads: int) -> float:
    """Share of the time of `steps` steps in which the device had to wait for its batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * case.batch, 256, 256, 3), np.uint8)
    images, law = ImageSettings(size=case.pixels, mean=IMAGENET[0], std=IMAGENET[1]), MultiBlock(min_keep=case.min_keep)
    pin = device.type == "cuda"
    source = ArraySource("memory", pixels, None)
    loader = Loader(source, images, law, case.grid, case.batch, 0, threads=threads, pin=pin)
    batches, waited, begun = loader(0, steps + 2), 0.0, 0.0
    for i in range(steps + 2):
        if i == 2:
            torch.cuda.synchronize() if pin else None
            waited, begun = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        our.step(normalise(batch.images.to(device, non_blocking=True), images), batch.masks[0], SCHEDULE.at(1))
    torch.cuda.synchronize() if pin else None
    return waited / (time.perf_counter() - begun)


def measured(case: Case, device: torch.device, steps: int, threads: int, most: float, *, compiled: bool) -> Row:
    """All ways of one model."""
    batches = [batch_of(case, i, device) for i in range(2)]
    now, rows = SCHEDULE.at(1), dict[str, Row]()

    def way(name: str, masks: str, step: Callable[[Batch], object], method: str = "ijepa") -> None:
        found = rate(device, batches, step, steps)
        useful = [flops.step(case.method(method), case.grid, 3, getattr(b, masks)).total for b in batches]
        per_step = statistics.mean(useful)
        rows[name] = {
            **found,
            "images_per_s": 1e3 * case.batch / found["ms"],
            "context_tokens": statistics.mean(getattr(b, masks).context_lengths.mean() for b in batches),
            "utilisation": per_step / (1e-3 * found["ms"]) / 1e12 / most,
        }

    way("plain, trimmed", "trimmed", plain_step(case, device))  # freed before ours is made
    our = OurStep.of(case, "bf16", device)
    way("ours, equal tokens", "trimmed", lambda b: our.step(b.images, b.trimmed, now))
    way("ours, full", "full", lambda b: our.step(b.images, b.full, now))
    plainly = our.jepa.method
    our.jepa.method = case.method("ec_ijepa")
    way("EC-IJEPA, full", "full", lambda b: our.step(b.images, b.full, now), "ec_ijepa")
    our.jepa.method = plainly
    wait = loader_wait(case, device, our, steps, threads)
    if compiled:
        our.jepa.compile_blocks()
        way("ours, equal tokens, compiled", "trimmed", lambda b: our.step(b.images, b.trimmed, now))
        way("ours, full, compiled", "full", lambda b: our.step(b.images, b.full, now))
        way("ours, full, fixed rows", "full", fixed_rows_step(case, device, batches))
    return {"batch": case.batch, "rows": rows, "shares": shares(our, batches, device, steps), "loader_wait": wait}


def plain_step(case: Case, device: torch.device) -> Callable[[Batch], object]:
    plain, now = case.plain(device), SCHEDULE.at(1)
    return lambda batch: plain.step(batch.images, batch.dense, now)


def fixed_rows_step(case: Case, device: torch.device, batches: list[Batch]) -> Callable[[Batch], object]:
    """As with run.compile and run.fixed_rows: graphs of the blocks, replayed."""
    our, now = OurStep.of(case, "bf16", device), SCHEDULE.at(1)
    our.jepa.fix_rows([b.full for b in batches])
    our.jepa.compile_blocks()

    def step(batch: Batch) -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return our.step(batch.images, batch.full, now)

    return step


def shares(our: OurStep, batches: list[Batch], device: torch.device, steps: int) -> dict[str, float]:
    """Share of each part in a step on full masks."""
    clock, jepa = Clock(device), our.jepa
    timed: Any = jepa
    timed.encode_context = clock.around("encoder", jepa.encode_context)
    timed.encode_target = clock.around("target encoder", jepa.encode_target)
    jepa.predictor.forward = clock.around("predictor", jepa.predictor.forward)
    try:
        for i in range(steps + 1):
            by_part(our, clock, batches[i % len(batches)].images, batches[i % len(batches)].full)
            if i == 0:
                clock.totals()
        total = clock.totals()
    finally:
        del timed.encode_context, timed.encode_target, jepa.predictor.forward
    return {name: total[name] / sum(total.values()) for name in PARTS}


def table(name: str, found: Row) -> str:
    plain = found["rows"]["plain, trimmed"]
    lines = [f"{name}, batch {found['batch']}"]
    lines += [
        f"  {way:30} {r['ms']:9.1f} ms {r['images_per_s']:9.0f} images/s {r['context_tokens']:6.1f} context tokens "
        f"{100 * r['utilisation']:5.1f} % of peak  {plain['ms'] / r['ms']:5.2f} x plain  {r['peak_gb']:6.1f} GB, "
        f"{r['activations_gb']:6.1f} of the step"
        for way, r in found["rows"].items()
    ]
    lines.append("  " + ", ".join(f"{part} {100 * share:.0f} %" for part, share in found["shares"].items()))
    ec = found["rows"]["EC-IJEPA, full"]["ms"] / found["rows"]["ours, full"]["ms"] - 1
    lines.append(f"  EC-IJEPA's overhead {100 * ec:.1f} %; waiting for the loader {100 * found['loader_wait']:.1f} %")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=12, help="of the loader")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device = device_of("auto")
    if device.type != "cuda" and not arguments.smoke:
        raise SystemExit("no CUDA device here; --smoke shows that it runs")
    configure_cpu(None)
    torch.backends.cuda.matmul.allow_tf32 = True
    models = {"smoke": SMOKE} if arguments.smoke else {name: MODELS[name] for name in arguments.models.split(",")}
    steps = 2 if arguments.smoke else arguments.steps
    most = peak(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    print(f"{name}, torch {torch.__version__}: {most:.0f} TFLOP/s")
    evidence: Row = {"device": name, "torch": torch.__version__, "peak_tflops": most}
    for model, case in models.items():
        compiled = not (arguments.smoke or arguments.no_compile)
        evidence[model] = measured(case, device, steps, 2 if arguments.smoke else arguments.threads, most, compiled=compiled)
        print(table(model, evidence[model]), flush=True)
        if not arguments.smoke:
            save_json(arguments.out, evidence)


if __name__ == "__main__":
    main()
