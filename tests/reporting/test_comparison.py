"""Runs set against each other in a report."""

from pathlib import Path

import numpy as np
import pytest

from jepakit.core.compare import corrected, paired
from jepakit.evaluation.bootstrap import figures_and_resamples, paired_bootstrap
from jepakit.evaluation.metrics import Predictions
from jepakit.reporting.paired_runs import paired_with_first
from jepakit.reporting.reading import read
from jepakit.reporting.sections.comparison import difference_in_words, runs_compared
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
    both = paired_with_first(runs, ["knn", "linear"])
    found = {key[:2]: difference for key, difference in both.counting.items()}
    answers = [np.load(path / "evaluation/knn.npz")["right"][0] for path in paths]
    single = [paired(answers[1], answers[0]), paired(answers[2], answers[0])] * 2
    expected = corrected(single)
    assert not both.missing and not both.others and {metric for *_, metric in both.counting} == {"accuracy"}
    assert [*found] == [("b", "knn"), ("c", "knn"), ("b", "linear"), ("c", "linear")]
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
    assert "kNN, c: no answers of c are kept to pair: evaluate it again." in text
    assert "points [" not in text and text.count(">not paired<") == 4  # b and c by two tasks


def judged(folder: Path, task: str, predictions: Predictions, truth: np.ndarray, counts: str, groups: np.ndarray) -> None:
    """What `evaluate` writes of one encoder."""
    metrics, drawn = figures_and_resamples(predictions, truth, groups)
    row = {"name": "target encoder", counts: metrics[counts]["value"], "low": 0.0, "high": 1.0, "counts": counts}
    add_result(folder, task, [{**row, "metrics": metrics}])
    arrays = {f"drawn/{name}": values for name, values in drawn.items()}
    if predictions.kind == "class":
        arrays["right"] = predictions.correct(truth)[None]
    np.savez(folder / f"evaluation/{task}.npz", ids=np.arange(len(truth)), truth=truth, clusters=groups, **arrays)


def test_every_metric_is_paired_as_the_evaluation_pairs_it(tmp_path: Path) -> None:
    draw, paths = np.random.default_rng(0), [make_run(tmp_path / name, steps=1, evaluated=False) for name in ("a", "b")]
    truth, groups, numbers = draw.integers(0, 3, 90), np.arange(90) // 2, draw.normal(size=90)
    said = [Predictions.of_classes(draw.random((90, 3)) + good * np.eye(3)[truth]) for good in (0.1, 0.5)]
    guessed = [Predictions((numbers + off * draw.normal(size=90))[None]) for off in (1.0, 0.5)]
    for path, one, number in zip(paths, said, guessed, strict=True):
        judged(path, "linear", one, truth, "macro_f1", groups)
        judged(path, "knn", number, numbers, "mae", groups)
    runs = [read(path, i, paths) for i, path in enumerate(paths)]
    found = paired_with_first(runs, ["linear", "knn"])
    judge = paired_bootstrap(said[1], said[0], truth, groups) | paired_bootstrap(guessed[1], guessed[0], numbers, groups)
    judge["accuracy"] = paired(said[1].correct(truth), said[0].correct(truth), groups)
    assert not found.missing and [*found.counting] == [("b", "linear", "macro_f1"), ("b", "knn", "mae")]
    assert {metric for *_, metric in found.others} == judge.keys() - {"macro_f1", "mae"} and len(found.others) == 6
    for family in (found.counting, found.others):
        assert [*family.values()] == corrected([judge[metric] for *_, metric in family])
    text = render(*paths)
    assert "corrected for 2 comparisons (Holm)" in text and "p is corrected for these 6 comparisons" in text
    mae = difference_in_words(found.counting["b", "knn", "mae"], "mae")
    assert mae.startswith("−0.") and "points" not in mae and mae in text


def test_what_another_metric_or_seed_judged_is_not_paired_by_it(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, steps=1, evaluated=False) for name in ("a", "b")]
    truth, draw = np.arange(60) % 3, np.random.default_rng(0)
    for path, counts in zip(paths, ("auroc", "accuracy"), strict=True):
        judged(path, "linear", Predictions.of_classes(draw.random((60, 3))), truth, counts, np.arange(60))
        add_result(path, "segmentation", [scored("target encoder", 0.3, key="miou")])
        kept = {"drawn/miou": draw.random(9), "ids": np.array(["x"]), "seed": 3 if counts == "auroc" else 4}
        np.savez(path / "evaluation/segmentation.npz", **kept)
    text = render(*paths)
    assert "Linear probe, b: what counts is accuracy, of a AUROC." in text and text.count(">not paired<") == 2
    assert "Segmentation mIoU, b: its test images were resampled with another seed than those of a." in text
    np.savez(paths[1] / "evaluation/segmentation.npz", **kept | {"seed": 3})
    assert "Segmentation mIoU, b" not in render(*paths)
    (paths[1] / "evaluation/linear.npz").write_bytes(b"PK broken")
    assert "Linear probe, b: evaluation/linear.npz of b is no whole file of arrays." in render(*paths)


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
