"""Collapse on purpose, and runs that do not: what the doctor's signs do in each. Evidence for docs/collapse.md.

    python benchmarks/collapse.py            # seven runs of 300 steps at the demo's size: half an hour on two cores
    python benchmarks/collapse.py --smoke    # seconds: that it runs

Writes docs/evidence/collapse.json as it goes, and goes on where it was stopped; draws docs/collapse.png.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jepakit.config.config import Config, method_layer, overrides
from jepakit.config.recipes import settings
from jepakit.core.device import configure_cpu
from jepakit.core.files import save_json
from jepakit.core.progress import progress
from jepakit.data.sets.emoji import EmojiSource
from jepakit.data.sources import ArraySource, Source
from jepakit.data.training_part import with_split
from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.training.collapse import COSINE_GAP, FULL, POSITION, RANK, Doctor, position_counts_from
from jepakit.training.logs import step_row
from jepakit.training.online_probe import OnlineProbe
from jepakit.training.step import Training

DOCS = Path(__file__).parents[1] / "docs"
NO_EMA = "optim.ema_momentum=0 optim.final_ema_momentum=0"
VICREG = "regularizer.weight=0.04"  # as the demo's was when the thresholds were found; its depth was 6
CASES = {  # name: method, settings beside the demo's
    "C-JEPA": ("c_jepa", VICREG),
    "EC-C-JEPA": ("ec_c_jepa", VICREG),
    "I-JEPA": ("ijepa", ""),
    "no average": ("ijepa", NO_EMA),
    "no average, no stop-gradient": ("ijepa", NO_EMA),
    "tiny contexts": ("ijepa", "masking.min_keep=1 masking.target_scale=[.4,.6] masking.context_scale=[.02,.05]"),
    "position-only images": ("c_jepa", f"{VICREG} images.crop_scale=[1,1] images.crop_aspect=[1,1]"),
}
SIGNS = ("target_std", "effective_rank", "position_share", "own_cosine", "other_cosine")


class NoStop(JEPA):
    """The target is the encoder itself, and its gradient counts."""

    def encode_target(self, patches: Tensor, masks: Masks, given: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return JEPA.encode_target.__wrapped__(self, patches, masks, given)  # type: ignore[attr-defined,no-any-return]


def one(name: str, steps: int) -> dict[str, Any]:
    """Train a case; its signs each ten steps, kNN at looks, and the doctor's alarms."""
    method, words = CASES[name]
    chosen = settings(
        "demo", None, {}, method_layer(method), overrides([*words.split(), "encoder.depth=6", f"optim.steps={steps}"])
    )
    source: Source = ArraySource("one image", same_place(), None) if name == "position-only images" else EmojiSource()
    training = Training.prepare(chosen.model_copy(update={"images": with_split(chosen.images, source)}), source)
    if name == "no average, no stop-gradient":
        training.jepa.__class__, training.jepa.target_encoder = NoStop, training.jepa.encoder
    doctor = Doctor(True, position_counts_from(steps, training.schedule.warmup), [])
    rows, alarms = [], []
    with progress(name, steps) as report:
        for batch in training.loader(0, steps):
            now = training.schedule.at(training.step)
            out, norm = training.train_step(batch, now, check=True)
            training.step += 1
            if training.step % 10 == 0:
                row = step_row(training.step, batch, out, norm, now)
                rows.append({key: round(row[key], 4) for key in ("step", "loss", *SIGNS)})
                alarms += [{"step": training.step, **vars(alarm)} for alarm in doctor.examine(row)]
                report(training.step)
    return {"case": name, "steps": steps, "rows": rows, "alarms": alarms, "knn": knn(training, chosen, min(3000, 10 * steps))}


def knn(training: Training, config: Config, images: int) -> float | None:
    """kNN accuracy of emoji groups at the end, of the target encoder, on more images than a look has."""
    wide = config.model_copy(update={"run": config.run.model_copy(update={"probe_images": images})})
    online = OnlineProbe.prepare(wide, EmojiSource(), training.loader.steps_per_epoch)
    assert online is not None
    return online.probe(training.jepa, config, training.dtype)["probe/knn"]


def same_place() -> NDArray[np.uint8]:
    """One emoji 2,000 times, with a little noise: only the place of a patch tells what is on it."""
    draw = np.random.default_rng(0)
    image = EmojiSource().read(0).astype(np.float32)
    return (image + 3 * draw.normal(size=(2000, *image.shape))).clip(0, 255).astype(np.uint8)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: extremes of each sign over the run, and when the doctor spoke."""
    lines = ["| run | deviation | rank, least of start | position, end | own − other, end | kNN | alarms |", "|" + "---|" * 7]
    for r in results:
        rows = r["rows"]
        rank = min(row["effective_rank"] for row in rows) / rows[0]["effective_rank"]
        end = {key: float(np.median([row[key] for row in rows[-5:]])) for key in SIGNS}
        said = ", ".join(f"{a['kind']} at {a['step']}" for a in r["alarms"]) or "none"
        cells = (
            f"{end['target_std']:.2f} | {rank:.2f} | {end['position_share']:.2f} | {end['own_cosine'] - end['other_cosine']:.3f}"
        )
        lines.append(f"| {r['case']} | {cells} | {100 * r['knn']:.1f} | {said} |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """The signs over steps, a line for each case, with the doctor's thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    titles = ("deviation of targets", "effective rank over its first", "position share of targets", "own less other cosine")
    for r in results:
        steps = [row["step"] for row in r["rows"]]
        first = r["rows"][0]["effective_rank"]
        lines = (
            [row["target_std"] for row in r["rows"]],
            [row["effective_rank"] / first for row in r["rows"]],
            [row["position_share"] for row in r["rows"]],
            [row["own_cosine"] - row["other_cosine"] for row in r["rows"]],
        )
        for axis, values, title in zip(axes, lines, titles, strict=True):
            axis.plot(steps, values, label=r["case"], linewidth=1.5)
            axis.set_ylim(bottom=0)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step")
    for axis, threshold in zip(axes, (FULL, RANK, POSITION, COSINE_GAP), strict=True):
        axis.axhline(threshold, color="black", linestyle=":", linewidth=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    configure_cpu(None)
    folder = Path(tempfile.mkdtemp()) if arguments.smoke else DOCS
    evidence, steps = folder / "evidence" / "collapse.json", 20 if arguments.smoke else arguments.steps
    evidence.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(evidence.read_text()) if evidence.is_file() else []
    for name in ["I-JEPA"] if arguments.smoke else CASES:
        if not any(r["case"] == name and r["steps"] == steps for r in results):
            results.append(one(name, steps))
            save_json(evidence, results)
    draw(results, folder / "collapse.png")
    print(table(results))


if __name__ == "__main__":
    main()
