"""Whatever a file of a run's folder has become, the report comes without it and names it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepakit.reporting.figure_files import save_figures
from jepakit.reporting.page import page_of
from jepakit.reporting.reading import read
from jepakit.reporting.run_table import runs
from run_files import Page, add_pixels, add_result, healthy, log_rows, make_run, scored

FILES = {  # and what the page says where it is no JSON, no archive
    "metrics.jsonl": "unreadable line",
    "evaluation/linear.json": "evaluation/linear.json is no whole JSON file, and is left out.",
    "evaluation/segmentation.json": "evaluation/segmentation.json is no whole JSON file, and is left out.",
    "evaluation/rankme.json": "evaluation/rankme.json is no whole JSON file, and is left out.",
    "evaluation/steps.json": "evaluation/steps.json is no whole JSON file, and is left out.",
    "evaluation/pictures.npz": "evaluation/pictures.npz is no whole file of arrays, and is left out.",
    "evaluation/segmentation.npz": "evaluation/segmentation.npz is no whole file of arrays",
    "evaluation/linear.npz": "evaluation/linear.npz of a is no whole file of arrays",
    "checkpoints/step-00000002/state.json": "",
}
JUNK: tuple[Any, ...] = (None, "x", {}, [{}], {"rows": []}, {"rows": [{"name": 3}]}, 10**400)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with every file that the report reads (those of pictures have a test beside what writes them)."""
    root = tmp_path_factory.mktemp("whole")
    folders = [make_run(root / name, steps=2) for name in ("a", "b")]
    for run in folders:
        log_rows(run, [healthy(i, seconds=1.0 * i, alarms=["full collapse: one vector"]) for i in (1, 2, 3)])
        metrics = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
        row = scored("target encoder", 0.5, metrics=metrics, counts="accuracy", head={"lr": 0.1}, heads=[{}])
        each = [{"class": name, "n_test": 9, "recall": 0.5} for name in "xy"]
        about: dict[str, Any] = {"per_class": each, "confusion": [[1, 2], [3, 4]], "class_names": ["x", "y"], "n_test": 9}
        add_result(run, "linear", [row, scored("untrained encoder", 0.3)], **about)
        add_result(run, "rankme", [{"name": "target encoder", "rankme": 18.0, "warning": "few"}])
        add_pixels(run)
        steps = [{"step": i, "images": 10 * i, "weights": "", "results": {"linear": row}} for i in (1, 2)]
        of = {"of": {"data": "x"}, "said": ["linear: best is step 2"], "steps": steps, "baselines": {"linear": [row]}}
        (run / "evaluation/steps.json").write_text(json.dumps(of))
        np.savez(run / "evaluation/linear.npz", right=np.ones((1, 9)), ids=np.arange(9))
        (run / "checkpoints/step-00000002").mkdir(parents=True)
        (run / "checkpoints/step-00000002/state.json").write_text(json.dumps({"step": 2, "finished": True, "images": 100}))
    return folders


def damages(path: Path) -> Iterator[tuple[bytes, bool]]:
    """What may have become of a file, and whether it is no longer JSON lines, JSON or an archive at all."""
    content = path.read_bytes()
    yield content[: len(content) // 2 - 3], path.suffix != ".jsonl"
    yield b"", path.suffix != ".jsonl"
    yield np.random.default_rng(0).bytes(200), True
    yield b"[" * 100_000, True
    if path.suffix == ".npz":
        yield content[:60] + bytes(90) + content[150:], False  # a header that is another, or a stream that breaks off
    else:
        yield from ((json.dumps(junk).encode() + b"\n", False) for junk in JUNK)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_left_out_and_named(whole: list[Path], name: str) -> None:
    file, shown = whole[0] / name, whole if name == "evaluation/linear.npz" else whole[:1]
    content = file.read_bytes()
    try:
        for damaged, at_all in damages(file):
            file.write_bytes(damaged)
            text = page_of(shown, live=True)
            Page(text)
            assert not at_all or FILES[name] in text, damaged[:60]
            assert len(runs(whole[0].parent)) == 2
    finally:
        file.write_bytes(content)


def test_a_run_of_damaged_files_alone_has_a_page_and_figures_too(whole: list[Path], tmp_path: Path) -> None:
    text = page_of(whole[:1], live=True)
    assert "left out" not in text and "no whole" not in text and '<section id="segmented">' in text
    copy = shutil.copytree(whole[0], tmp_path / "a")
    for name in FILES:
        copy.joinpath(name).write_bytes(copy.joinpath(name).read_bytes()[3:-9])
    text = page_of([copy], live=True)
    Page(text)
    assert (text.count("and is left out") == 5 and "Not judged" in text) or "kNN" in text
    save_figures([read(copy, 0, [copy])], tmp_path / "figures")
