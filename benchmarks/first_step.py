"""Seconds before something is seen: help, an import, an encoder, and the first step of a run on 100,000 images in a folder.

    python benchmarks/first_step.py            # some minutes
    python benchmarks/first_step.py --smoke    # that it runs: 300 images

Each is a process of its own, started as a user does; of three times the least: CPU seconds, user's and system's, of all its
threads, which other work on the cores changes less, and wall seconds. A run is timed from its start to the first row of
metrics.jsonl, with `run.log_every_steps=1`: to the checkpoint of step 0, which is imports, the folder's scan and what is measured
of its images, and then the first look at the encoder and the first step, which are the encoder's own work. The images are JPEGs
of 64 pixels in 100 folders, in the system's cache. Writes docs/evidence/first_step.json.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jepakit.core.files import save_json

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence" / "first_step.json"
RUN = ROOT / "tests" / "artifacts" / "run_at_add374c"
PROCESSES = {
    "torch alone": ["-c", "import torch"],
    "jepakit --help": ["-m", "jepakit", "--help"],
    "import jepakit": ["-c", "import jepakit"],
    "jepakit.load": ["-c", f"import jepakit; jepakit.load({str(RUN)!r})"],
    "jepakit evaluate's imports": ["-c", "import jepakit.evaluation.tasks"],
}
Seconds = dict[str, float]


def save_images(root: Path, count: int) -> None:
    """Write so many JPEGs, of few different contents, into 100 folders."""
    draw, contents = np.random.default_rng(0), []
    for _ in range(64):
        content = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(content, "JPEG", quality=85)
        contents.append(content.getvalue())
    for i in range(100):
        (root / f"{i:03}").mkdir(parents=True)
    for i in range(count):
        (root / f"{i % 100:03}" / f"{i:06}.jpg").write_bytes(contents[i % 64])


def least(found: list[Seconds]) -> Seconds:
    return {key: round(min(each[key] for each in found), 2) for key in found[0]}


def to_the_end(words: list[str]) -> Seconds:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, process.returncode, used = os.wait4(process.pid, 0)
    assert process.returncode == 0, words
    return {"cpu": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - began}


def to_the_first_row(words: list[str], out: Path) -> Seconds:
    """Seconds of a run until it has its first checkpoint, and until its first row is there, where it is ended."""
    began, found = time.perf_counter(), Seconds()
    marks = {"checkpoint": out / "checkpoints" / "latest", "row": out / "metrics.jsonl"}
    process = subprocess.Popen([sys.executable, *words, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and "row, cpu" not in found:
        time.sleep(0.01)
        used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        for name, path in marks.items():
            if f"{name}, cpu" not in found and path.exists() and path.stat().st_size:
                found[f"{name}, cpu"] = sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
                found[f"{name}, wall"] = time.perf_counter() - began
    process.kill()
    process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    count, times = (300, 1) if smoke else (100_000, 3)
    found = {name: least([to_the_end(words) for _ in range(times)]) for name, words in PROCESSES.items()}
    with tempfile.TemporaryDirectory() as root:
        save_images(Path(root, "images"), count)
        run = ["-m", "jepakit", "pretrain", "--data", f"{root}/images", "run.log_every_steps=1", "run.threads=1"]
        for name, words in (("recipe demo", ["--recipe", "demo"]), ("as chosen", [])):
            taken = [to_the_first_row([*run, *words], Path(root, f"{name}{i}")) for i in range(times)]
            found[f"a run of {count:,} images, {name}"] = least(taken)
    print(json.dumps(found, indent=1))
    if not smoke:
        save_json(EVIDENCE, found)


if __name__ == "__main__":
    main()
