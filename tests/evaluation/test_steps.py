"""Steps of a run judged one like the other: as each alone, images read once, gone on with, the best chosen on training images."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.data.sources import Source
from jepakit.evaluation.steps import evaluate_steps as along
from jepakit.evaluation.steps.evaluate_steps import evaluate_steps
from jepakit.evaluation.steps.step_results import CHEATING, JudgedStep, StepResults, best_sentences, steps_table
from jepakit.evaluation.tasks import evaluate
from jepakit.reporting import report
from jepakit.training.train import pretrain
from noise import save_noise
from test_resume import TINY

WORDS = [*TINY, "optim.steps=12", "run.keep_every_steps=4", "run.keep_checkpoints=1", "run.precision=fp32", "run.probe_images=0"]
FEW = ["linear.epochs=2", "knn.k=3"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: bright at the top, and bright at the bottom; one file is broken."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(40):
        image = draw.integers(0, 120, (20, 20, 3), dtype=np.uint8)
        image[slice(10) if i % 2 else slice(10, 20)] += 60
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[i % 2] / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain(photos, tmp_path_factory.mktemp("runs") / "a", method="ijepa", set=WORDS)


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the images that are read from here on."""
    asked: list[int] = []
    real = Source.read

    def read(self: Source, index: int, *more: Any) -> Any:
        asked.append(index)
        return real(self, index, *more)

    monkeypatch.setattr(Source, "read", read)
    return asked


def about_test(run: Run) -> str:
    """How many of how many test images the run saw, by the JSON of a step."""
    about = json.loads((run.path / "evaluation" / "step-00000004" / "knn.json").read_text())
    return f"{about['seen_test']} of the {about['n_test']}"


def plain_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "validation", "heads")} for row in rows]


def test_each_step_is_judged_as_it_would_be_alone_and_images_are_read_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted_reads(monkeypatch)
    (found,), figure = evaluate_steps([run], "all", tasks="knn,linear", set=FEW)
    assert len(asked) <= 40 + 20  # some are looked at first, for their bands and content
    assert [(step.step, step.images) for step in found.steps] == [(4, 32), (8, 64), (12, 96)]
    assert figure == run.path / "evaluation" / "steps.png" and figure.read_bytes()[:4] == b"\x89PNG"
    for step in (4, 12):
        alone = evaluate(f"{run.path}@{step}", tasks="knn,linear", set=FEW, out=tmp_path / str(step))
        for task in ("rankme", "knn", "linear"):
            here = json.loads((run.path / "evaluation" / f"step-{step:08d}" / f"{task}.json").read_text())["rows"]
            other = json.loads((tmp_path / str(step) / f"{task}.json").read_text())["rows"]
            shared = {row["name"]: row for row in plain_rows(other) if row["name"] != "encoder"}  # a checkpoint has both
            assert {row["name"]: row for row in plain_rows(here)} == shared
        assert len(alone["knn"]) >= 5
    assert f"pretraining saw {about_test(run)} test images: no figure here is one on new images" in steps_table(found)


def test_what_was_judged_so_is_not_judged_again_and_other_settings_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judged: list[list[int]] = []
    real = along._Steps._judge_together
    monkeypatch.setattr(along._Steps, "_judge_together", lambda self, steps: (judged.append([*steps]), real(self, steps))[1])
    how: dict[str, Any] = {"tasks": "knn", "out": tmp_path}
    (first,), _ = evaluate_steps([run], "4,8", **how, set=FEW)
    with caplog.at_level(logging.INFO, "jepakit"):
        (again,), _ = evaluate_steps([run], [4, 8, 12], **how, set=FEW)
    assert judged == [[4, 8], [12]] and "2 of 3 steps were judged before" in caplog.text
    assert [step.step for step in again.steps] == [4, 8, 12] and again.steps[:2] == first.steps
    assert {row["name"] for row in again.baselines["knn"]} == {"untrained encoder", "raw pixels", "pixel PCA", "majority class"}
    evaluate_steps([run], "4", **how, set=["knn.k=5"])
    assert judged[2:] == [[4]]


def test_a_killed_evaluation_keeps_the_steps_that_are_done(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = along._Steps._judge, list[int]()

    def judge(self: Any, step: int, *more: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(step)
        real(self, step, *more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(along._Steps, "_judge", judge)
        evaluate_steps([run], tasks="knn", out=tmp_path, set=FEW)
    together: list[list[int]] = []
    judged = along._Steps._judge_together
    monkeypatch.setattr(along._Steps, "_judge_together", lambda self, steps: (together.append([*steps]), judged(self, steps))[1])
    (found,), _ = evaluate_steps([run], tasks="knn", out=tmp_path, set=FEW)
    assert done == [4, 8] and together == [[12]] and [step.step for step in found.steps] == [4, 8, 12]


def test_a_few_encoders_at_a_time_give_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,), _ = evaluate_steps([run], tasks="knn,attentive", out=tmp_path / "whole", set=["attentive.epochs=1", *FEW])
    monkeypatch.setattr(along, "WEIGHTS_AT_ONCE", 1)
    (parts,), _ = evaluate_steps([run], tasks="knn,attentive", out=tmp_path / "parts", set=["attentive.epochs=1", *FEW])
    for a, b in zip(whole.steps, parts.steps, strict=True):
        for task in ("knn", "attentive", "rankme"):
            assert plain_rows([a.results[task]]) == plain_rows([b.results[task]])


def test_the_best_step_is_best_on_the_held_fifth_whatever_the_test_says() -> None:
    def row(held: float | None, test: float, counts: str = "accuracy") -> dict[str, Any]:
        figure = {"value": test, "low": test, "high": test}
        return {"name": "target encoder", "counts": counts, "metrics": {counts: figure}, "validation": held}

    def steps(*rows: dict[str, Any]) -> StepResults:
        return StepResults({}, [JudgedStep(n, 10 * n, "", {"knn": each}) for n, each in enumerate(rows, start=1)])

    assert steps(row(0.5, 0.9), row(0.7, 0.2), row(0.7, 0.8)).best("knn").step == 2  # type: ignore[union-attr]
    assert steps(row(0.5, 0.9, "mae"), row(0.7, 0.2, "mae")).best("knn").step == 1  # type: ignore[union-attr]
    assert steps(row(None, 0.9)).best("knn") is None and best_sentences(steps(row(None, 0.9))) == []
    said = best_sentences(steps(row(0.5, 0.9), row(0.7, 0.2)))
    assert said[0].startswith("knn: best is step 2 (20 images), by accuracy 70.0 % on the fifth") and said[1:] == [CHEATING]


def test_the_held_figure_is_that_of_a_probe_on_the_other_four_fifths(run: Run, photos: Path, tmp_path: Path) -> None:
    """By an image list of our own: the fifth as the test set gives the same accuracy."""
    from jepakit.data.opening import open_source
    from jepakit.evaluation.probes.logistic import validation_fifth

    (found,), _ = evaluate_steps([run], "12", tasks="knn", out=tmp_path / "a", set=FEW)
    source = open_source(str(photos))
    assert source.labels is not None
    train = np.nonzero(~source.labels.test)[0]
    held = train[validation_fifth(source.labels.values[train])]
    lines = ["file,class,split"]
    for i in train.tolist():
        lines.append(f"{source.title(i)},{source.title(i).split('/')[0]},{'test' if i in held else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    rows = evaluate(run, str(photos), "knn", table=tmp_path / "t.csv", labels="class", set=FEW, out=tmp_path / "b")["knn"]
    assert found.steps[0].results["knn"]["validation"] == pytest.approx(rows[0]["accuracy"])


def test_several_runs_are_drawn_together_and_the_report_shows_them(
    run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pretrain(photos, tmp_path / "b", method="ec_ijepa", set=WORDS)
    cli.main(["evaluate", str(run.path), str(other.path), "--steps", "all", "--tasks", "knn", *FEW])
    said = capsys.readouterr().out
    assert said.count("step (images seen)") == 2 and "12 (96)" in said and CHEATING in said and "steps.png" in said
    page = report([run.path, other.path], tmp_path / "r.html").read_text()
    assert '<section id="steps">' in page and page.count("kNN along the run") == 1 and page.count(CHEATING) == 2
    assert "do not compare" not in page
    steps = json.loads((run.path / "evaluation" / "steps.json").read_text())
    (run.path / "evaluation" / "steps.json").write_text(json.dumps({**steps, "of": {**steps["of"], "data": "others"}}))
    for step in steps["steps"]:  # as --shortcuts leaves them, of a column that the user named
        step["results"]["tells <b>scanner"] = step["results"]["knn"]
    (other.path / "evaluation" / "steps.json").write_text(json.dumps(steps))
    page = report([run.path, other.path], tmp_path / "r.html").read_text()
    assert "The runs were judged on different data" in page
    assert "tells &lt;b&gt;scanner along the run" in page and "<b>scanner" not in page


def test_shortcuts_along_a_run_are_those_of_each_step_alone(run: Run, tmp_path: Path) -> None:
    rows = [f"{'ab'[i % 2]}/{i:02}.png,{'xy'[i % 2]},{'pq'[i // 2 % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["file,kind,scanner", *rows]))
    how: dict[str, Any] = {"tasks": "knn", "table": tmp_path / "t.csv", "labels": "kind", "set": [*FEW, "shortcuts=scanner"]}
    (some,), _ = evaluate_steps([run], "4", out=tmp_path / "steps", **how)
    (found,), _ = evaluate_steps([run], "4,12", out=tmp_path / "steps", **how)  # the second is judged beside kept baselines
    assert found.tasks == ["knn", "tells scanner", "scanner left out", "rankme"] and found.steps[0] == some.steps[0]
    for number, step in ((0, 4), (1, 12)):
        evaluate(f"{run.path}@{step}", out=tmp_path / str(step), **how)
        alone = json.loads((tmp_path / str(step) / "shortcuts.json").read_text())["rows"]
        along_the_run = json.loads((tmp_path / f"steps/step-{step:08d}/shortcuts.json").read_text())["rows"]
        assert along_the_run == alone and len(alone) == 3
        results = found.steps[number].results
        assert results["tells scanner"]["metrics"]["balanced_accuracy"] == alone[0]["site"]
        assert results["scanner left out"]["metrics"]["accuracy"] == alone[0]["left_out"]
    assert [row["name"] for row in found.baselines["tells scanner"]] == ["untrained encoder", "raw pixels"]


def test_mistakes_are_said(run: Run, tmp_path: Path) -> None:
    for steps, tasks, words, sentence in (
        ("5", "knn", [], "no checkpoint or snapshot of step '5': there are 4, 8, 12"),
        ("some", "knn", [], "no checkpoint or snapshot of step 'some'"),
        ("all", "finetune", [], "finetune takes an encoder's own passes over all images.*give RUN@STEP"),
        ("all", "knn", ["shortcuts=site"], "--shortcuts site: .* has 'folder', not 'site'"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate_steps([run], steps, tasks=tasks, set=words)
    with pytest.raises(UserError, match=r"with --steps give the run alone, .*a, and the step as --steps 4"):
        evaluate_steps([f"{run.path}@4"])
    with pytest.raises(UserError, match="is not a run"):
        evaluate_steps([tmp_path])


def test_without_labels_ranks_are_measured(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_noise(tmp_path, 12, seed=1)
    (found,), _ = evaluate_steps([run], data=str(tmp_path), tasks="knn", out=tmp_path / "out")
    assert found.tasks == ["rankme"] and "has no labels" in caplog.text and "best" not in steps_table(found)
