"""Runs on images that a table tells of: what is held out does not train, and the verbs take the run's own table."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.evaluation.results import results_table
from jepakit.evaluation.tasks import evaluate
from jepakit.planning.check import check
from jepakit.planning.check_results import check_table
from jepakit.study import study
from jepakit.training.step import Training
from jepakit.training.train import pretrain

TINY = [
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "predictor.depth=1"),
    *("images.size=16", "masking.min_keep=2", "optim.batch_size=4", "optim.steps=2", "optim.warmup_steps=1"),
    *("run.threads=1", "run.log_every_steps=1"),
]
N = 40


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of two colours, and a table of them: dx, patient (four images each), part (the last fifth is test), age, a and b."""
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    rows = ["name,dx,patient,part,age,a,b"]
    for i in range(N):
        pixels = draw.integers(0, 60, (16, 16, 3)) + 150 * np.eye(3, dtype=int)[i % 2]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"im{i:02}.png")
        rows.append(
            f"im{i:02},{'red' if i % 2 == 0 else 'green'},p{i // 4},{'test' if i >= 32 else 'train'},{i / 3},{i % 2},{i % 3 % 2}"
        )
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return folder


def table_of(data: Path) -> Path:
    return data.parent / "t.csv"


def trained_on(run: Run) -> list[str]:
    """The titles of the images that a run is trained on."""
    from jepakit.data.opening import open_source

    config = run.config
    part = Training.prepare(config, open_source(str(config.data), table=config.table), None).loader.source
    return [part.title(i) for i in range(len(part))]


def test_held_out_rows_do_not_train_and_a_run_keeps_its_table(data: Path, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="jepakit"):
        run = pretrain(data, tmp_path / "run", "small", table=table_of(data), labels="dx", splits="part", set=TINY)
    assert run.config.table.model_dump(exclude_defaults=True) == {
        "file": str(table_of(data)),
        "labels": "dx",
        "splits": "part",
    }
    assert trained_on(run) == [f"im{i:02}.png" for i in range(32)] and "32 of 40 images are trained on" in caplog.text
    assert any("probe/knn" in row for row in run.metrics())  # of the table's classes
    rows = evaluate(run, tasks="knn")["knn"]
    about = json.loads((run.path / "evaluation" / "knn.json").read_text())
    assert (about["labels"], about["classes"], about["n_train"], about["n_test"], about["seen_test"]) == ("dx", 2, 32, 8, 0)
    assert about["independent"] == 2 and rows[0]["accuracy"] == 1  # of eight images two patients


def test_images_of_another_split_were_seen(data: Path, tmp_path: Path) -> None:
    run = pretrain(data, tmp_path / "run", "small", table=table_of(data), labels="dx", splits="part", set=TINY)
    other = tmp_path / "other.csv"
    other.write_text("name,dx,part\n" + "".join(f"im{i:02},{i % 2},{'test' if i >= 24 else 'train'}\n" for i in range(N)))
    evaluate(run, data, "knn", table=other, splits="part", labels="dx")
    about = json.loads((run.path / "evaluation" / "knn.json").read_text())
    assert (about["n_test"], about["seen_test"]) == (16, 8)


def seen_and_tested(run: Run, **table: Any) -> tuple[int, int, bool]:
    """How many test images (or groups) an evaluation says that pretraining saw, of how many; and whether it warns of it."""
    results = evaluate(run, run.config.data, "knn", **table)
    about = json.loads((run.path / "evaluation" / "knn.json").read_text())
    words = f"pretraining saw {about['seen_test']} of the {about['n_test']} test"
    return about["seen_test"], about["n_test"], words in results_table(results)


def test_of_images_that_a_table_lists_those_that_were_seen_are_counted(data: Path, tmp_path: Path) -> None:
    """Whichever of the two, pretraining and evaluation, a table lists the images for: places are then not the same in both."""
    half, whole = tmp_path / "half.csv", tmp_path / "whole.csv"
    head, parts = "name,dx,part\n", {i: "test" if i >= 24 else "train" for i in range(N)}
    half.write_text(head + "".join(f"im{i:02}.png,{i % 2},{parts[i]}\n" for i in range(1, N, 3)))
    whole.write_text(head + "".join(f"im{i:02}.png,{i % 2},{'test' if i % 4 > 1 else 'train'}\n" for i in range(N)))
    trained = {i for i in range(1, N, 3) if i < 24}
    run = pretrain(data, tmp_path / "run", "small", table=half, splits="part", listed=True, set=TINY)
    tested = {i for i in range(N) if i % 4 > 1}
    assert seen_and_tested(run, table=whole, labels="dx", splits="part") == (len(trained & tested), 20, True)
    other = pretrain(data, tmp_path / "other", "small", table=whole, splits="part", set=TINY)
    now_tested = {i for i in range(1, N, 3) if i >= 24}
    wanted = (len(now_tested - tested), len(now_tested), True)
    assert seen_and_tested(other, table=half, labels="dx", splits="part", listed=True) == wanted


def test_a_group_of_which_one_image_was_seen_was_seen(data: Path, tmp_path: Path) -> None:
    parts, groups = tmp_path / "parts.csv", tmp_path / "groups.csv"
    parts.write_text("name,part\n" + "".join(f"im{i:02},{'test' if i % 4 < 3 or i > 35 else 'train'}\n" for i in range(N)))
    groups.write_text("name,dx,patient\n" + "".join(f"im{i:02},{i // 4 % 2},p{i // 4}\n" for i in range(N)))
    run = pretrain(data, tmp_path / "run", "small", table=parts, splits="part", set=TINY)  # the last image of each but p9
    found = seen_and_tested(run, table=groups, labels="dx", groups="patient", set="aggregate=group")
    assert found == (1, 2, True)  # p8 and p9 are held out


def test_groups_are_whole_in_the_split_that_evaluation_makes(data: Path, tmp_path: Path) -> None:
    run = pretrain(data, tmp_path / "run", "small", set=TINY)
    evaluate(run, tasks="knn", table=table_of(data), labels="dx", groups="patient")
    found = np.load(run.path / "evaluation" / "knn.npz")
    patients = found["ids"] // 4
    assert {*np.unique(patients, return_counts=True)[1]} == {4} and found["clusters"].tolist() == patients.tolist()


def test_a_resume_reads_the_table_where_it_lies_now(data: Path, tmp_path: Path) -> None:
    run = pretrain(data, tmp_path / "run", "small", table=table_of(data), labels="dx", splits="part", set=TINY)
    moved = table_of(data).rename(tmp_path / "moved.csv")
    with pytest.raises(UserError, match="no such file"):
        pretrain(resume=run.path)
    assert pretrain(resume=run.path, table=moved).config.table.file == str(moved)
    with pytest.raises(UserError, match="only run"):
        pretrain(resume=run.path, table=moved, labels="age")


def test_looks_at_labels_that_are_no_classes_take_rankme(data: Path, tmp_path: Path) -> None:
    run = pretrain(data, tmp_path / "run", "small", table=table_of(data), labels="age", set=TINY)
    assert any("probe/rankme" in row for row in run.metrics())


def test_images_that_python_holds_are_told_of_by_their_number(data: Path, tmp_path: Path) -> None:
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(data.iterdir())])
    table = tmp_path / "numbers.csv"
    table.write_text("index,dx,part\n" + "".join(f"{i},{i % 2},{'test' if i >= 32 else 'train'}\n" for i in range(N)))
    run = pretrain(images, tmp_path / "run", "small", table=table, labels="dx", splits="part", set=TINY)
    found = evaluate(run, images, "knn", table=table, labels="dx", splits="part")["knn"]
    assert found[0]["accuracy"] == 1
    assert json.loads((run.path / "evaluation" / "knn.json").read_text())["seen_test"] == 0


def test_check_says_what_a_table_tells(data: Path) -> None:
    text = check_table(check(data, table=table_of(data), labels="dx", groups="patient", splits="part"))
    assert "'dx', 2 classes: smallest green 20, largest green 20; 0 without; 8 for testing; 10 groups" in " ".join(text.split())
    said = "training + test: green 16 + 4, red 16 + 4 10 groups: the largest, p0, has 4 images; none on both sides"
    assert said in " ".join(text.split())
    text = " ".join(check_table(check(data, table=table_of(data), labels="age", splits="part")).split())
    assert "training: 0% 0, 5% 0.5167, 25% 2.583, 50% 5.167, 75% 7.75, 95% 9.817, 100% 10.33 test: 0% 10.67" in text
    assert "'age', numbers: least 0, mean 6.5, largest 13; 0 without; 8 for testing; 10 groups" in text
    text = " ".join(check_table(check(data, table=table_of(data), labels="a,b", groups="name", splits="part")).split())
    assert "'a, b', 2 labels at once: rarest b 13, most frequent a 20" in text
    assert "training + test: a 16 + 4, b 11 + 2" in text
    table_of(data).write_text(table_of(data).read_text().replace("im00,red,p0,train,0.0,0,0", "im00,red,p9,train,,0,"))
    found = check(data, table=table_of(data), labels="a,b", splits="part").labels
    assert found is not None and [asdict(each) for each in found.each][1] == {"name": "b", "train": 11, "test": 2, "unknown": 1}
    assert found.groups is not None and asdict(found.groups) == {"count": 10, "largest": ("p9", 5), "both_sides": 1}


def test_a_study_judges_by_the_table(data: Path, tmp_path: Path) -> None:
    words = [*TINY, "run.log_every_steps=10"]
    rows = study(
        "small-data", data, tmp_path / "s", scale="smoke", table=table_of(data), labels="dx", levers=["seed"][:0], set=words
    )
    assert rows == []  # no lever: nothing is run, but all is opened
    about = (tmp_path / "s" / "study.yaml").read_text()
    assert "labels: dx" in about and "--labels" not in about and "linear" in about


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--labels", "dxx"], "t.csv has no column 'dxx' (--labels)"),
        (["--labels", "dx", "--as", "word"], "table: kind: Input should be 'class', 'number' or 'multi'"),
        (["--labels", "dx", "--image", "patient"], "no row names an image of"),
    ],
)
def test_the_command_line_says_one_sentence_and_ends_with_2(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], sentence: str
) -> None:
    monkeypatch.setattr("sys.argv", ["jepakit", "data", "check", str(data), "--table", str(table_of(data)), *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and "Traceback" not in said


@pytest.mark.parametrize(("labels", "metric", "least"), [("dx", "auroc", 0.99), ("a,b", "auroc", 0.3), ("bright", "r2", 0.8)])
def test_every_kind_of_label_comes_from_a_table(data: Path, tmp_path: Path, labels: str, metric: str, least: float) -> None:
    run = pretrain(data, tmp_path / "run", "small", set=TINY)
    lines = table_of(data).read_text().splitlines()
    table_of(data).write_text("\n".join([f"{lines[0]},bright", *(f"{line},{i % 2 + 0.5}" for i, line in enumerate(lines[1:]))]))
    row = evaluate(run, tasks="knn", table=table_of(data), labels=labels, groups="patient", splits="part")["knn"][0]
    value = next(value for name, value in row.get("metrics", row).items() if metric in name)
    assert (value if isinstance(value, float) else value["value"]) > least  # of a and b the colour tells a alone


@pytest.mark.parametrize(("column", "sentence"), [("x", "one class"), ("0.5", "0.5"), ("", "holds no label of any image here")])
def test_labels_that_teach_nothing_are_one_sentence(data: Path, tmp_path: Path, column: str, sentence: str) -> None:
    run = pretrain(data, tmp_path / "run", "small", set=TINY)
    table = tmp_path / "same.csv"
    table.write_text("name,y\n" + "".join(f"im{i:02},{column}\n" for i in range(N)))
    with pytest.raises(UserError, match=sentence):
        evaluate(run, tasks="knn", table=table, labels="y")
