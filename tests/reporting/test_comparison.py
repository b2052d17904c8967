"""Runs set against each other in a report."""

from pathlib import Path

import numpy as np
import pytest

from jepakit.core.compare import corrected, paired
from jepakit.reporting.reading import read
from jepakit.reporting.sections.comparison import differences_from_first, runs_compared
from run_files import add_result, make_run, render, scored

SAME, OTHER = np.arange(100), np.arange(1, 101)


def runs_with_answers(folder: Path, **answers: tuple[float, np.ndarray]) -> list[Path]:
    """Runs named by keyword, each with its share of right answers, on test images of these ids."""
    rng, made = np.random.default_rng(0), []
    for name, (share, ids) in answers.items():
        run = make_run(folder / name, steps=3, evaluated=False)
        right = (rng.random((2, 100)) < share).astype(float)
        for task in ("knn", "linear"):
            add_result(run, task, [scored("target encoder", float(right[0].mean()))])
            names = np.array(["target encoder", "encoder"])
            np.savez(run / f"evaluation/{task}.npz", right=right, ids=ids, names=names, data=np.array(["x", ""]))
        made.append(run)
    return made


def test_differences_are_paired_tests_of_the_judged_encoders_corrected_for_all(tmp_path: Path) -> None:
    paths = runs_with_answers(tmp_path, a=(0.4, SAME), b=(0.7, SAME), c=(0.4, SAME))
    runs = [read(path, i, paths) for i, path in enumerate(paths)]
    found, missing = differences_from_first(runs, ["knn", "linear"])
    answers = [np.load(path / "evaluation/knn.npz")["right"][0] for path in paths]
    single = [paired(answers[1], answers[0]), paired(answers[2], answers[0])] * 2
    expected = corrected(single)
    assert not missing and [*found] == [("b", "knn"), ("c", "knn"), ("b", "linear"), ("c", "linear")]
    assert found["b", "knn"] == expected[0] and found["c", "linear"] == expected[3]
    assert found["b", "knn"].difference == pytest.approx(answers[1].mean() - answers[0].mean())
    text = render(*paths)
    assert "more than chance" in text and "corrected for 4 comparisons (Holm)" in text
    assert text.count("may be chance") == 2  # c by both tasks


def test_runs_judged_on_other_images_are_not_paired_and_it_is_said(tmp_path: Path) -> None:
    paths = runs_with_answers(tmp_path, a=(0.4, SAME), b=(0.7, OTHER))
    paths.append(make_run(tmp_path / "c", steps=3))
    paths.append(make_run(tmp_path / "d", steps=3, evaluated=False))
    text = render(*paths)
    assert "kNN, b: tested on other images than a." in text
    assert "kNN, c: no right and wrong answers are kept to pair." in text
    assert "points [" not in text


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, steps=1, evaluated=False) for name in ("a", "b")]
    assert "None: the runs have the same settings." in render(*paths)
    config = paths[1] / "config.yaml"
    config.write_text(config.read_text().replace("patch: 8", "patch: 16").replace("seed: 3", "masking: {kind: random}"))
    runs = [read(path, i, paths) for i, path in enumerate(paths)]
    found = runs_compared(runs)
    assert found and {row["key"]: row["cells"] for row in found["settings"]} == {
        "seed": ["3", "–"], "encoder.patch": ["8", "16"], "masking.kind": ["–", "random"],
    }  # fmt: skip
    assert runs_compared(runs[:1]) is None
