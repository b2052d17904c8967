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
evidence has it without, too. Predictors are half as wide as the encoder and 6 deep, as I-JEPA's for ViT-B.
Writes docs/evidence/step.json, a configuration as soon as it is done.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
sys.path.append(str(Path(__file__).parent))

import numpy as np
import torch
import torch.nn.functional as F
from plain import Dense, Plain, PlainStep, collate
from torch import Tensor

from jepakit.config.optim import Optim, Schedule, ScheduleValues, apply_schedule, gradient_norm, optimizer
from jepakit.core.device import autocast, configure_cpu, device_of
from jepakit.core.files import save_json
from jepakit.data.sets.emoji import EmojiSource
from jepakit.model import attention, layout, linear
from jepakit.model.images import IMAGENET, ImageSettings, normalise
from jepakit.model.jepa import JEPA
from jepakit.model.layout import Layout, take
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import METHODS, Method
from jepakit.model.vit import Block

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "step.json"
OPTIM = Optim(steps=300, warmup_steps=30)
SCHEDULE = Schedule(OPTIM, 1)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An encoder of I-JEPA's table of sizes, on square images, and how many of them make a batch."""

    size: str
    pixels: int
    patch: int
    batch: int
    predictor_width: int
    min_keep: int = 10
    depth: int = 12
    predictor_depth: int = 6

    @property
    def grid(self) -> tuple[int, int]:
        return self.pixels // self.patch, self.pixels // self.patch

    def method(self, name: str = "ijepa") -> Method:
        encoder = {"size": self.size, "patch_size": self.patch, "depth": self.depth}
        return Method.model_validate(
            {**METHODS[name], "encoder": encoder, "predictor": {"width": self.predictor_width, "depth": self.predictor_depth}}
        )

    def jepa(self, device: torch.device = CPU) -> JEPA:
        torch.manual_seed(0)
        return JEPA(self.method(), self.grid).to(device)

    def plain(self, device: torch.device = CPU, autocast: bool | None = None) -> PlainStep:
        """The plain step, from the same weights."""
        model = Plain(self.method(), self.grid)
        model.load_state_dict(self.jepa().state_dict())
        return PlainStep(model.to(device), autocast)


CASES = {
    "tiny32": Case("tiny", 32, 4, 64, 96, min_keep=4),  # target blocks may have 9 patches there
    "tiny96": Case("tiny", 96, 8, 32, 96),
    "small96": Case("small", 96, 8, 16, 192),
    "base224": Case("base", 224, 16, 4, 384),
}
SMOKE = Case("tiny", 32, 4, 4, 96, min_keep=4, depth=2)


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, H, W), and the same draws of masks in three forms."""

    images: Tensor
    trimmed: Masks
    full: Masks
    dense: Dense


def batch_of(case: Case, step: int, device: torch.device = CPU) -> Batch:
    """Emoji, resized."""
    source, ids = EmojiSource(), np.arange(case.batch) + step * case.batch
    pixels = torch.from_numpy(np.stack([source.raw(int(i) % len(source)) for i in ids])).permute(0, 3, 1, 2)
    images = normalise(F.interpolate(pixels, case.pixels, mode="bilinear"), ImageSettings(mean=IMAGENET[0], std=IMAGENET[1]))
    law = MultiBlock(compat="released", min_keep=case.min_keep)
    trimmed = law.sample(case.grid, ids, seed=0, step=step)
    with mock.patch("jepakit.model.masking.masks_released._trim", lambda grids: grids):
        full = law.sample(case.grid, ids, seed=0, step=step)
    return Batch(images.to(device), trimmed, full, Dense.trimmed(full))


@dataclass(frozen=True)
class OurStep:
    """An update as `Training.train_step` takes it, from normalised images on."""

    jepa: JEPA
    adamw: torch.optim.AdamW
    dtype: torch.dtype

    @classmethod
    def of(cls, case: Case, precision: str, device: torch.device = CPU) -> "OurStep":
        jepa = case.jepa(device)
        return cls(jepa, optimizer(jepa, OPTIM), PRECISIONS[precision])

    def step(self, images: Tensor, masks: Masks, now: ScheduleValues) -> Tensor:
        """The loss of the batch, before the update."""
        apply_schedule(self.adamw, now)
        self.adamw.zero_grad(set_to_none=True)
        with autocast(images.device, self.dtype):
            out = self.jepa(images, masks)
        out.loss.backward()
        norm = gradient_norm(self.jepa, OPTIM.clip_grad)
        loss = out.loss.detach()
        if images.device == CPU:  # on CUDA a run looks at the loss only when it logs
            assert math.isfinite(float(loss) + float(norm))
        self.adamw.step()
        self.jepa.update_target_encoder(now.momentum)
        return loss


# --- one thing of ours done the plain way --------------------------------------------------------------------------


def other_attention(step: OurStep) -> AbstractContextManager[Any]:
    """On a CPU: torch's fused kernel in bf16, attention written out in fp32."""
    fused, explicit, stack = F.scaled_dot_product_attention, attention._explicit, ExitStack()
    stack.enter_context(mock.patch.object(attention, "_explicit", lambda q, k, v, valid: fused(q, k, v, attn_mask=valid)))
    stack.enter_context(
        mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, attn_mask: explicit(q, k, v, attn_mask))
    )
    return stack


def default_adamw(step: OurStep) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for group in step.adamw.param_groups:
        stack.enter_context(mock.patch.dict(group, fused=None))
    return stack


def looped_average(step: OurStep) -> AbstractContextManager[Any]:
    @torch.no_grad()
    def update(jepa: JEPA, momentum: float) -> None:
        for average, p in zip(jepa.target_encoder.parameters(), jepa.encoder.parameters(), strict=True):
            average.mul_(momentum).add_((1 - momentum) * p)

    return mock.patch.object(JEPA, "update_target_encoder", update)


def embedded_first(step: OurStep) -> AbstractContextManager[Any]:
    """Embed every patch, then gather the context's."""

    def encode(encoder: Any, conditioning: None, patches: Tensor, masks: Masks, grid: tuple[int, int]) -> Tensor:
        n, device = grid[0] * grid[1], patches.device
        rows = torch.from_numpy(np.repeat(masks.image_of_draw * n, masks.context_lengths) + masks.context)
        tokens = encoder.embed(patches, torch.arange(n, device=device).repeat(masks.images))
        return encoder(tokens.index_select(0, rows.to(device)), Layout(masks.context_lengths, device))

    return mock.patch("jepakit.model.jepa.encode_windows", encode)


def stock_gathers(step: OurStep) -> AbstractContextManager[Any]:
    """torch's own backward of a gather and of a scatter, which add."""

    class Take:
        @staticmethod
        def apply(x: Tensor, index: Tensor) -> Tensor:
            return x.index_select(0, index)

    class Spread:
        @staticmethod
        def apply(x: Tensor, index: Tensor, rows: int) -> Tensor:
            return x.new_zeros(rows, *x.shape[1:]).index_copy(0, index, x)

    return mock.patch.multiple(layout, _Take=Take, _Spread=Spread)


def all_rows(step: OurStep) -> AbstractContextManager[Any]:
    """The predictor's last block in whole, though only target rows are read."""

    def forward_rows(block: Block, x: Tensor, layout: Layout, rows: Tensor, queries: Layout) -> Tensor:
        return take(block(x, layout), rows)

    return mock.patch.object(Block, "forward_rows", forward_rows)


def padded_contexts(step: OurStep) -> AbstractContextManager[Any]:
    """Contexts as long as the batch's longest everywhere: what padding them costs, a mask in attention aside."""
    forward = JEPA.forward
    return mock.patch.object(JEPA, "forward", lambda jepa, images, masks: forward(jepa, images, padded(masks)))


def padded(masks: Masks) -> Masks:
    """Each context's first index again until it is as long as the longest."""
    lengths = masks.context_lengths
    place, first = np.arange(lengths.max()), (lengths.cumsum() - lengths)[:, None]
    context = masks.context[first + np.where(place < lengths[:, None], place, 0)]
    return Masks(**{**vars(masks), "context": context.ravel(), "context_lengths": np.full_like(lengths, len(place))})


def own_product(step: OurStep) -> AbstractContextManager[Any]:
    """Linear maps by torch's own product, in fp32 MKL's."""
    return mock.patch.object(linear, "BY_ONEDNN", frozenset())


def rows_as_they_come(step: OurStep) -> AbstractContextManager[Any]:
    """Another number of rows at each step, for which a CPU's library makes its code anew."""
    stack = ExitStack()
    for module in (layout, linear):
        stack.enter_context(mock.patch.object(module, "default_row_multiple", lambda rows: 1))
    return stack


def keys_as_they_come(step: OurStep) -> AbstractContextManager[Any]:
    """Softmax over the keys that there are, not over whole registers."""
    return mock.patch.object(attention, "REGISTER", 1)


ABLATIONS: dict[str, Callable[[OurStep], AbstractContextManager[Any]]] = {
    "the other attention": other_attention,
    "AdamW not fused": default_adamw,
    "average in a loop": looped_average,
    "gathered after embedding": embedded_first,
    "torch's own gathers": stock_gathers,
    "contexts padded": padded_contexts,
    "torch's own product": own_product,
    "rows as they come": rows_as_they_come,
    "keys as they come": keys_as_they_come,
    # The exact algebra: a row for each identity, which has it done the long way
    "last block on all rows": all_rows,
}


# --- measuring -----------------------------------------------------------------------------------------------------


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
