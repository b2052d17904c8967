"""Every method beside every baseline, three seeds: kNN, linear, RankMe and LiDAR on the emoji and on textures.

    python benchmarks/quality.py                     # both sets, 30 runs: an hour and a half or so on two cores
    python benchmarks/quality.py --supervised        # an encoder trained on ImageNet, too (benchmarks/supervised.py)
    python benchmarks/quality.py --sets emoji --methods c_jepa --seeds 1
    python benchmarks/quality.py --table             # the tables of the rows that there are; nothing is run
    python benchmarks/quality.py --smoke             # seconds: that it runs

Textures come from benchmarks/textures.py; give --textures FOLDER where they lie already, or --data FILES to make them from.
Writes a row for each run to docs/evidence/quality.json as soon as it is done, and goes on where it was stopped.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
sys.path.insert(0, str(Path(__file__).parent))

from supervised import NAME as SUPERVISED
from supervised import supervised
from textures import prepare

from jepakit.artifacts.run import Run
from jepakit.config.choice import DEMO
from jepakit.core.compare import mean_and_margin
from jepakit.core.files import save_json
from jepakit.data.opening import open_source
from jepakit.evaluation import evaluate
from jepakit.evaluation.tasks import settings_of
from jepakit.model.method import METHODS, Method, encoder_label
from jepakit.training.train import pretrain

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "quality.json"
TASKS = ("rankme", "knn", "linear", "lidar")
BASELINES = ("untrained encoder", "raw pixels", "pixel PCA", "majority class")
# Four hundred classes make linear heads dear: one kind of head on the last block
PROTOCOL: dict[str, list[str]] = {
    "emoji": [],
    "textures": ["linear.layers=[last]", "linear.heads=[bn]", "linear.weight_decay=[0]"],
}
# Emoji: the demo, as long as it is. Textures: the recipe for small sets, with the demo's encoder, and crops of about the
# probe's scale of the whole half.
RECIPE = {"emoji": "demo", "textures": "small"}
STEPS = {"emoji": 711, "textures": 800}
CHANGES: dict[str, list[str]] = {
    "emoji": [],
    "textures": [*(f"{key}={value}" for key, value in DEMO.items()), "images.crop_scale=[0.06,0.25]"],
}


def one(kind: str, method: str, seed: int, steps: int, folder: Path, textures: Path) -> dict[str, Any]:
    """Pretrain, evaluate; accuracies in percent by name, RankMe, LiDAR."""
    out = folder / f"{kind}-{method}-{seed}-{steps}"
    data = "emoji" if kind == "emoji" else str(textures / "left")
    begun = (out / "checkpoints" / "latest").exists()
    settings = [f"seed={seed}", f"optim.steps={steps}", *CHANGES[kind]]
    run = Run.open(out) if begun else None
    if run is None or not run.finished:
        new = {"data": data, "out": out, "recipe": RECIPE[kind], "method": method, "set": settings, "overwrite": True}
        run = pretrain(resume=out) if begun else pretrain(**new)
    if not run.finished:
        raise SystemExit(f"stopped; the same command goes on with {out}")
    labelled = "emoji" if kind == "emoji" else str(textures / "probe")
    results = evaluate(run, labelled, TASKS, set=PROTOCOL[kind])
    row: dict[str, Any] = {"set": kind, "method": method, "seed": seed, "steps": steps}
    for task in ("knn", "linear"):
        row[task] = {r["name"]: round(100 * r["accuracy"], 1) for r in results[task]}
    for task in ("rankme", "lidar"):
        row[task] = {r["name"]: round(r[task], 1) for r in results[task]}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over seeds with least and most, a table for each set, as Markdown."""

    def cell(chosen: list[dict[str, Any]], task: str, name: str) -> str:
        values = [r[task][name] for r in chosen if name in r[task]]
        spread = f" ({min(values)}–{max(values)})" if len({*values}) > 1 else ""
        return f"{statistics.median(values):.1f}{spread}" if values else ""

    lines = []
    for kind, steps in dict.fromkeys((r["set"], r["steps"]) for r in rows if r["method"] != SUPERVISED):
        here = [r for r in rows if (r["set"], r["steps"]) == (kind, steps)]
        lines += [
            f"{kind}, {steps} steps",
            "",
            "| | kNN | linear | RankMe | LiDAR | seeds |",
            "|" + "---|" * 6,
        ]
        for method in dict.fromkeys(r["method"] for r in here):
            own = [r for r in here if r["method"] == method]
            name = encoder_label(Method.model_validate(METHODS[method]).which)
            cells = " | ".join(cell(own, task, name) for task in ("knn", "linear", "rankme", "lidar"))
            lines.append(f"| `{method}` | {cells} | {len(own)} |")
        for name in BASELINES:
            lines.append(
                f"| {name} | " + " | ".join(cell(here, task, name) for task in ("knn", "linear", "rankme", "lidar")) + " | |"
            )
        yardstick = [r for r in rows if (r["set"], r["method"]) == (kind, SUPERVISED)]
        cells = " | ".join(cell(yardstick, task, SUPERVISED) for task in ("knn", "linear", "rankme", "lidar"))
        lines += [f"| {SUPERVISED} | {cells} | |", ""]
    return "\n".join([*lines, *paired(rows)])


def paired(rows: list[dict[str, Any]]) -> list[str]:
    """What conditioning adds, of the same seed with and without it: mean difference and 95 % t-interval over seeds."""
    lines = ["conditioned less not", "", "| set | | with VICReg | without |", "|---|---|---|---|"]
    for kind, task in ((kind, task) for kind in dict.fromkeys(r["set"] for r in rows) for task in ("knn", "linear")):
        cells = []
        for method in ("c_jepa", "ijepa"):
            here = [r for r in rows if r["set"] == kind]
            without, told = (
                {(r["seed"], r["steps"]): r[task]["target encoder"] for r in here if r["method"] == name}
                for name in (method, f"ec_{method}")
            )
            apart = [value - without[key] for key, value in told.items() if key in without]
            mean, margin = mean_and_margin(apart) if apart else (0.0, None)
            cells.append("" if margin is None else f"{mean:+.1f} ± {margin:.1f}")
        lines.append(f"| {kind} | {task} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="emoji,textures")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="updates of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--textures", type=Path)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--supervised", action="store_true", help="measure the supervised encoder where it was not yet")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(EVIDENCE.read_text())))
        return
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if arguments.smoke:
        arguments.runs, arguments.sets, arguments.methods = Path(tempfile.mkdtemp()), "emoji", "ijepa"
        arguments.seeds, arguments.steps = 1, 3
        PROTOCOL["emoji"] += ["images_limit=300", "lidar.images=60"]
    evidence = arguments.runs / "smoke.json" if arguments.smoke else EVIDENCE
    textures = arguments.textures or arguments.runs / "textures"
    if "textures" in arguments.sets:
        textures.parent.mkdir(parents=True, exist_ok=True)
        prepare(textures, arguments.data)
    rows = json.loads(evidence.read_text()) if evidence.is_file() else []
    evidence.parent.mkdir(parents=True, exist_ok=True)
    for kind in arguments.sets.split(","):
        steps = arguments.steps or STEPS[kind]
        for seed in range(arguments.seeds):
            for method in arguments.methods.split(","):
                key = (kind, method, seed, steps)
                if not any((r["set"], r["method"], r["seed"], r["steps"]) == key for r in rows):
                    rows.append(one(kind, method, seed, steps, arguments.runs, textures))
                    save_json(evidence, rows)
        if arguments.supervised and (kind, SUPERVISED) not in {(r["set"], r["method"]) for r in rows}:
            source = open_source("emoji" if kind == "emoji" else str(textures / "probe"))
            yardstick = supervised(source, settings_of(PROTOCOL[kind]))
            rows.append({"set": kind, "method": SUPERVISED, "seed": 0, "steps": 0, **yardstick})
            save_json(evidence, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
