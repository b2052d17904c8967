"""How a step's cost grows: with patches an image, with the batch, with draws of masks an image. A plot, and fitted exponents.

    python benchmarks/growth.py            # minutes on a CPU; docs/growth.png and docs/evidence/growth.json
    python benchmarks/growth.py --smoke    # seconds: that it runs

The encoder is I-JEPA's tiny (12 blocks, 192 wide, predictor 96 wide, 6 blocks) on patches of 4 pixels; full masks, one thread,
CPU time, median of interleaved rounds. A cost is per image, for draws per draw. The exponent is the slope of a line through the
logarithms.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
sys.path.append(str(Path(__file__).parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from step import cost
from step_cases import CPU, SCHEDULE, Case, OurStep

from jepakit.core.device import configure_cpu, precision_of
from jepakit.core.files import save_json
from jepakit.model.masking.masks import MultiBlock
from jepakit.planning import flops

DOCS = Path(__file__).parents[1] / "docs"
GRIDS, BATCHES, DRAWS = (8, 11, 16, 23, 32), (2, 4, 8, 16, 32), (1, 2, 4)
Point = tuple[str, int, int, int, int]  # curve, its number, grid, batch, draws


def points(smoke: bool) -> list[Point]:
    if smoke:
        return [
            ("patches", 16, 4, 2, 1),
            ("patches", 36, 6, 2, 1),
            ("batch", 2, 4, 2, 1),
            ("batch", 4, 4, 4, 1),
            ("draws", 1, 4, 2, 1),
            ("draws", 2, 4, 2, 2),
        ]
    return [
        *(("patches", g * g, g, 4, 1) for g in GRIDS),
        *(("batch", b, 12, b, 1) for b in BATCHES),
        *(("draws", d, 12, 8, d) for d in DRAWS),
    ]


class Curve:
    """One point: a step of its own shape, ready to be timed."""

    def __init__(self, point: Point, depth: int) -> None:
        _, _, grid, self.batch, self.draws = point
        case = Case("tiny", 4 * grid, 4, self.batch, 96, depth=depth)
        name = "bf16" if precision_of("auto", CPU) == torch.bfloat16 else "fp32"
        self.step, self.case = OurStep.of(case, name), case
        self.law = MultiBlock(min_keep=2, draws=self.draws)
        self.images = torch.randn(self.batch, 3, 4 * grid, 4 * grid)

    def run(self, number: int) -> tuple[float, float]:
        """CPU milliseconds, and useful GFLOP, an image and draw."""
        masks = self.law.sample(self.case.grid, np.arange(self.batch), seed=0, epoch=number)
        views = self.batch * self.draws
        work = flops.step(self.case.method(), self.case.grid, 3, masks).total
        return cost(CPU, self.step.step, self.images, masks, SCHEDULE.at(number))["cpu"] / views, work / views / 1e9


def measured(rounds: int, smoke: bool) -> list[dict[str, Any]]:
    chosen = points(smoke)
    curves = [Curve(point, 2 if smoke else 12) for point in chosen]
    found: list[list[tuple[float, float]]] = [[] for _ in curves]
    for number in range(rounds + 1):
        for i, curve in enumerate(curves):
            result = curve.run(number)
            if number:
                found[i].append(result)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return [
        {"curve": name, "x": x, "ms": statistics.median(ms for ms, _ in values), "gflop": statistics.median(g for _, g in values)}
        for (name, x, *_), values in zip(chosen, found, strict=True)
    ]


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """Slope of log cost over log x."""
    return float(np.polyfit(np.log([r["x"] for r in rows]), np.log([r[key] for r in rows]), 1)[0])


def draw(rows: list[dict[str, Any]], fits: dict[str, dict[str, float]], out: Path) -> None:
    names = {
        "patches": "patches an image (batch 4)",
        "batch": "images a batch (144 patches)",
        "draws": "draws an image (batch 8)",
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for axis, (curve, label) in zip(axes, names.items(), strict=True):
        here = [r for r in rows if r["curve"] == curve]
        axis.loglog([r["x"] for r in here], [r["ms"] for r in here], "o-", color="#0b5fa5")
        axis.set_xticks([r["x"] for r in here], [str(r["x"]) for r in here])
        axis.minorticks_off()
        axis.set_yticks([r["ms"] for r in here], [f"{r['ms']:.3g}" for r in here])
        axis.set_xlabel(label)
        axis.set_title(f"exponent {fits[curve]['ms']:.2f} (FLOPs {fits[curve]['gflop']:.2f})", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CPU ms an image and draw")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    configure_cpu(1)
    rows = measured(1 if arguments.smoke else arguments.rounds, arguments.smoke)
    curves = dict.fromkeys(r["curve"] for r in rows)
    fits = {c: {key: exponent([r for r in rows if r["curve"] == c], key) for key in ("ms", "gflop")} for c in curves}
    for r in rows:
        rate = r["gflop"] / r["ms"] * 1e3
        print(f"{r['curve']:8} {r['x']:5}  {r['ms']:8.2f} CPU ms  {r['gflop']:7.3f} GFLOP  {rate:6.0f} GFLOP/s")
    print({c: {key: round(value, 3) for key, value in fit.items()} for c, fit in fits.items()})
    if not arguments.smoke:
        save_json(DOCS / "evidence" / "growth.json", {"rows": rows, "exponents": fits})
        draw(rows, fits, DOCS / "growth.png")


if __name__ == "__main__":
    main()
