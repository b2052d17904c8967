"""What the demo reaches, by method and seed: kNN and linear accuracy beside the baselines.

    python benchmarks/demo.py                      # every method, three seeds: an hour and a half on two cores
    python benchmarks/demo.py --methods c_jepa     # one method
    python benchmarks/demo.py --smoke              # seconds: that it runs

Writes a row for each run to docs/evidence/demo.json as soon as it is done, and goes on where it was stopped.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported

from jepakit.evaluation import evaluate
from jepakit.files import save_json
from jepakit.method import METHODS
from jepakit.train import pretrain

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "demo.json"
NAMES = ("target encoder", "encoder", "untrained encoder", "raw pixels", "pixel PCA")


def one(method: str, seed: int, folder: Path, words: list[str]) -> dict[str, Any]:
    """Pretrain, evaluate; accuracies in percent by name, RankMe, seconds of both."""
    started = time.monotonic()
    out = folder / f"{method}-{seed}"
    begun = (out / "checkpoints" / "latest").exists()
    new = {"out": out, "recipe": "demo", "method": method, "set": [f"seed={seed}", *words], "overwrite": True}
    run = pretrain(resume=out) if begun else pretrain(**new)
    if not run.finished:
        raise SystemExit(f"stopped; the same command goes on with {out}")
    trained = time.monotonic()
    results = evaluate(run)
    row: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "steps": run.metrics()[-1]["step"],
        "pretrain_s": round(trained - started),
        "evaluate_s": round(time.monotonic() - trained),
    }
    for task in ("knn", "linear"):
        row[task] = {r["name"]: round(100 * r["accuracy"], 1) for r in results[task]}
    row["rankme"] = {r["name"]: round(r["rankme"], 1) for r in results["rankme"]}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over seeds, least and most in brackets, as Markdown."""

    def cell(method: str, task: str, name: str) -> str:
        values = [r[task][name] for r in rows if r["method"] == method]
        return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"

    lines = ["| | kNN, target encoder | kNN, encoder | linear, target encoder | RankMe | seeds |", "|---|---|---|---|---|---|"]
    methods = list(dict.fromkeys(r["method"] for r in rows))
    for m in methods:
        cells = cell(m, "knn", NAMES[0]), cell(m, "knn", NAMES[1]), cell(m, "linear", NAMES[0]), cell(m, "rankme", NAMES[0])
        lines.append(f"| `{m}` | " + " | ".join(cells) + f" | {sum(r['method'] == m for r in rows)} |")
    knn, probe, rank = (cell(methods[0], task, NAMES[2]) for task in ("knn", "linear", "rankme"))
    lines.append(f"| untrained encoder | {knn} | | {probe} | {rank} | |")
    for name in NAMES[3:]:
        lines.append(f"| {name} | {rows[0]['knn'][name]:.1f} | | {rows[0]['linear'][name]:.1f} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-demo"))
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    words = ["optim.steps=3"] if arguments.smoke else []
    if arguments.smoke:
        arguments.runs = Path(tempfile.mkdtemp())
    evidence = arguments.runs / "smoke.json" if arguments.smoke else EVIDENCE
    seeds, methods = (1, ["ec_c_jepa"]) if arguments.smoke else (arguments.seeds, arguments.methods.split(","))
    rows = json.loads(evidence.read_text()) if evidence.is_file() else []
    evidence.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for method in methods:
            if not any((r["method"], r["seed"]) == (method, seed) for r in rows):
                rows.append(one(method, seed, arguments.runs, words))
                save_json(evidence, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
