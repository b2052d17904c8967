"""What `evaluate --steps all` costs beside one evaluation of as many encoders: a ratio of times.

    python benchmarks/steps.py            # minutes on a CPU
    python benchmarks/steps.py --smoke    # seconds: that it runs

A demo run (emoji, 6,384 images of 32 px) with ten snapshots; RankMe, kNN and the linear probe of 1,200 images, by
`evaluate_steps`, and by one pass of `evaluate` to which all ten encoders and the baselines are given. Both write their files;
`evaluate_steps` judges a held fifth too. What counts is the CPU's time, as other work may share the cores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepakit.artifacts.load import load
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME, subject
from jepakit.evaluation.steps.evaluate_steps import evaluate_steps
from jepakit.evaluation.tasks import _on_images, chosen_tasks, question_on, settings_of
from jepakit.training.train import pretrain


def seconds(of: Callable[[], Any]) -> tuple[float, float]:
    """Of the CPU, and of the clock."""
    cpu, clock = time.process_time(), time.monotonic()
    of()
    return time.process_time() - cpu, time.monotonic() - clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    steps, tasks = 10 if smoke else 50, "knn,linear"
    words = [f"images_limit={200 if smoke else 1200}", *(["linear.epochs=2"] if smoke else [])]
    with tempfile.TemporaryDirectory() as folder:
        few = [f"optim.steps={steps}", f"run.keep_every_steps={steps // 10}", "run.probe_images=0", "run.keep_checkpoints=1"]
        run = pretrain(out=Path(folder) / "run", recipe="demo", set=few)

        def at_once(how: list[str]) -> None:
            one = subject(run, Path(folder) / "once")
            encoders = {f"step {step}": load(f"{run.path}@{step}").to(one.encoder.device) for step in run.kept_steps()}
            all_of_them = replace(one, encoders={**encoders, UNTRAINED_NAME: one.encoders[UNTRAINED_NAME]}, config=None)
            question = question_on(one, None, chosen_tasks(tasks), None, settings_of(how), None)
            _on_images(all_of_them, question)

        at_once(["images_limit=100", "linear.epochs=1"])  # so that what is loaded and cached by the first is not counted
        once = seconds(lambda: at_once(words))
        along = seconds(lambda: evaluate_steps([run], "all", tasks=tasks, set=words))
    print(f"10 encoders at once: {once[0]:.1f} s of the CPU, {once[1]:.1f} s")
    print(f"evaluate --steps all: {along[0]:.1f} s of the CPU, {along[1]:.1f} s: {along[0] / once[0]:.2f} times as much")


if __name__ == "__main__":
    main()
