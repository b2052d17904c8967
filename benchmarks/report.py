"""The report: what its pictures and its page cost, and how large the page is, on the embedded emoji (6,384 images).

    python benchmarks/report.py            # a minute on two quiet cores
    python benchmarks/report.py --smoke    # that it runs: a run of 2 steps, and a map of few images

A run of the recipe `demo`, of as many steps as are told (what is timed is the same after any), then `make_pictures`, with its
parts, and `report`, each in turn: wall seconds, and the CPU seconds of the whole process, which other work on the cores changes
less. All 2,000 points of the map are there, whatever else runs. What came before (training, imports) is not counted. Writes
docs/evidence/report.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported

import torch

from jepakit.core.files import save_json
from jepakit.pictures import make_pictures
from jepakit.reporting import report
from jepakit.training.train import pretrain

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "report.json"


def timed(work: Callable[[], Path]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return {"made": made, "seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        steps = 2 if given.smoke else given.steps
        run = pretrain(out=Path(root) / "run", recipe="demo", set=[f"optim.steps={steps}", "run.probe_images=0"])
        import sklearn.cluster
        import sklearn.manifold  # noqa: F401  # of seconds, and no part of the work

        pictures = timed(lambda: make_pictures(run, seconds=2.0 if given.smoke else 120.0))
        page = timed(lambda: report(run))
        about = json.loads((pictures.pop("made") / "about.json").read_text())
        size = page.pop("made").stat().st_size
        found = {"images": about["images"], "points": about["map"]["count"], "threads": torch.get_num_threads()}
        found |= {"pictures": pictures | {"parts": about["seconds"]}, "page": page | {"bytes": size}, "missing": about["missing"]}
        found["load_average"] = [round(each, 1) for each in os.getloadavg()]  # what else ran: of 1, 5 and 15 minutes
    print(json.dumps(found, indent=1))
    if not given.smoke:
        save_json(EVIDENCE, found)


if __name__ == "__main__":
    main()
