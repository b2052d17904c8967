"""The verb `evaluate`: what it writes, what it refuses, and the looks that a run takes of itself."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from jepakit import cli
from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import Checkpoint
from jepakit.artifacts.load import build_jepa, load
from jepakit.artifacts.run import Run
from jepakit.config.config import Config, overrides, resolve
from jepakit.core.compare import Difference, corrected, paired
from jepakit.core.errors import UserError
from jepakit.data.crops import centre_crop
from jepakit.data.formats.folder import FolderSource
from jepakit.data.sources import ArraySource, Labels, Source, every_fifth_held_out
from jepakit.evaluation.features import pca
from jepakit.evaluation.probes.finetune_recipe import recipe_for
from jepakit.evaluation.probes.knn import knn
from jepakit.evaluation.probes.linear_probe import TRANSFER
from jepakit.evaluation.probes.protocol import Protocol
from jepakit.evaluation.results import as_sentences, differences, results_table
from jepakit.evaluation.split import labelled, train_and_test
from jepakit.evaluation.tasks import FROZEN, chosen_tasks, evaluate, settings_of
from jepakit.model.encoder import Encoder
from jepakit.model.images import normalise
from jepakit.model.jepa import JEPA
from jepakit.model.metrics import rankme
from jepakit.reporting import report
from jepakit.training.online_probe import MAX_PROBE_SHARE, STEP_COST, OnlineProbe
from jepakit.training.train import pretrain

TINY = [
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "predictor.depth=1"),
    *("images.size=16", "images.max_bad=0.2", "masking.min_keep=2", "optim.batch_size=8", "run.threads=1", "run.precision=fp32"),
]
MOVING = ["optim.lr=0.03", "optim.warmup_epochs=0", "optim.ema_momentum=0.5"]  # so that few steps change much
QUICK = ["linear.epochs=2", "transfer.epochs=2", "lidar.views=3", "attentive.epochs=1"]
ENCODERS = {"target encoder", "encoder", "untrained encoder"}
PAPERS = ("rankme", "lidar", "knn", "linear", "transfer", "low_shot", "attentive")
BASELINES = {"raw pixels", "pixel PCA", "majority class"}


def photos(root: Path, classes: int | dict[str, int], each: int = 0) -> Path:
    """Images whose class is their colour, in a folder for each class; or so many in each of some folders."""
    draw = np.random.default_rng(0)
    folders = {f"class{c}" if classes > 1 else ".": each for c in range(classes)} if isinstance(classes, int) else classes
    for c, (name, count) in enumerate(folders.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 60, (20, 20, 3))
            pixels[..., c % 3] += 60 * (1 + c % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whole and broken, and sets that a probe can and cannot use."""
    root = tmp_path_factory.mktemp("world")
    data = photos(root / "photos", 3, 15)
    (data / "class1" / "03.png").write_bytes(b"broken")  # left out, of features and labels alike
    photos(root / "others", 3, 15)
    photos(root / "few", 3, 3)
    photos(root / "flat", 1, 12)
    photos(root / "one_to_learn", {"train/a": 6, "test/a": 2, "test/b": 2})
    photos(root / "stranger", {"train/a": 6, "train/b": 6, "test/a": 2, "test/c": 2})
    for name, method, place in (("run", "ec_ijepa", "photos"), ("second", "ijepa", "photos"), ("elsewhere", "ijepa", "others")):
        pretrain(str(root / place), root / name, method=method, set=[*TINY, "optim.steps=4", *MOVING])
    for name in ("unsaved", "nan"):
        shutil.copytree(root / "run", root / name, symlinks=True)
    shutil.rmtree(root / "unsaved/checkpoints")
    found = checkpoint.load_newest(root / "nan/checkpoints")
    state = {k: v * 3e38 if k == "target_encoder.norm.weight" else v for k, v in found.tensors["model"].items()}
    assert all(v.isfinite().all() for v in state.values())  # else it would not be loaded
    checkpoint.save(root / "nan/checkpoints", found.state["step"], Checkpoint(found.tensors | {"model": state}, found.state), 2)
    return root


@pytest.fixture
def run(world: Path) -> Run:
    shutil.rmtree(world / "run/evaluation", ignore_errors=True)
    return Run.open(world / "run")


def read(run: Run | Path, task: str) -> dict[str, Any]:
    path = run.path / "evaluation" if isinstance(run, Run) else run
    return json.loads((path / f"{task}.json").read_text())  # type: ignore[no-any-return]


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def untimed(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {k: v for k, v in row.items() if k != "seconds"} for name, row in rows.items()}


# ---- mistakes


def snapshot(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.lstat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name != "run.log"}


E = "evaluate {w}/run"
MISTAKES = {
    "unknown task": (E + " --tasks knm", ["'knm'", "'knn'"]),
    "unknown task among known ones": (E + " --tasks rankme,linaer", ["'linear'"]),
    "no task": (E + " --tasks=", ["choose from"]),
    "unknown setting": (E + " knn.kk=3", ["knn.kk", "'knn.k'"]),
    "unknown group": (E + " kn.k=3", ["kn.k", "'knn.k'"]),
    "setting out of range": (E + " knn.k=0", ["knn.k", "0"]),
    "setting of the wrong type": (E + " linear.epochs=many", ["linear.epochs", "'many'"]),
    "setting that is no choice": (E + " lidar.by=patches", ["lidar.by", "'patches'"]),
    "too small a limit": (E + " images_limit=3", ["images_limit", "10"]),
    "dense among others": (E + " --tasks segmentation,knn", ["segmentation", "apart"]),
    "dense among frozen": (E + " --tasks davis,frozen", ["davis", "apart"]),
    "three runs": (E + " {w}/second {w}/elsewhere", ["two to compare", "3"]),
    "no run": ("evaluate knn.k=3", ["one run", "0"]),
    "no checkpoint": ("evaluate {w}/unsaved", ["no checkpoint", "unsaved"]),
    "encoder without a place": ("evaluate {w}/run/model --data {w}/photos", ["--out"]),
    "encoder without images": ("evaluate {w}/run/model --out {w}/new", ["--data"]),
    "folder that is no run": ("evaluate {w}/photos", ["is not a run"]),
    "nothing to pair": (E + " {w}/second --tasks rankme", ["--tasks", "knn"]),
    "second is no run": (E + " {w}/photos --tasks knn", ["photos is not a run"]),
    "second has no checkpoint": (E + " {w}/unsaved --tasks knn", ["no checkpoint"]),
    "two runs on different data": (E + " {w}/elsewhere --tasks knn", ["data"]),
    "no such images": (E + " --data {w}/gone", ["no such folder"]),
    "unknown labels": (E + " --labels foldr", ["'folder'"]),
    "labels of none": (E + " --data {w}/flat --labels count", ["no labels", "'count'"]),
    "one class to learn": (E + " --data {w}/one_to_learn", ["one class", "'a'"]),
    "class to test that is not learnt": (E + " --data {w}/stranger", ["'c'", "training"]),
    "no test images": (E + " --data {w}/few", ["no test image", "five"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_sentence_code_2_and_nothing_written(
    name: str, world: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command, words = MISTAKES[name]
    before = snapshot(world)
    with pytest.raises(SystemExit) as caught:
        cli.main(command.format(w=world).split())
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert all(word in said.err for word in words), said.err
    assert not said.out and snapshot(world) == before


def failed(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command ends with, after whatever it said of its work."""
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    said = capsys.readouterr()
    assert caught.value.code == 2 and not said.out and "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert said.err.count("error: ") == 1 and last.startswith("error: ")
    return last


@pytest.mark.parametrize("tasks", ["knn", "lidar", "rankme", "attentive"])
def test_features_that_are_no_numbers_are_one_sentence_and_nothing_is_written(
    tasks: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(world)
    said = failed(["evaluate", str(world / "nan"), "--tasks", tasks], capsys)
    assert "target encoder" in said and "not finite" in said and "class0" in said
    assert snapshot(world) == before


def given(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    monkeypatch.setattr("jepakit.data.opening.open_source", lambda *_, **__: source)


def grey(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("what", ["none has a label", "all in training", "all in the test"])
def test_labels_that_leave_nothing_to_probe_are_one_sentence(
    what: str, world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.full(20, -1) if what == "none has a label" else np.arange(20) % 2
    labels = Labels("kind", ("a", "b"), values, np.full(20, what == "all in the test"))
    given(monkeypatch, ArraySource("greys", grey(20), labels))
    before = snapshot(world)
    said = failed(["evaluate", str(run.path)], capsys)
    assert (
        "greys" in said and {"none has a label": "label", "all in training": "test", "all in the test": "training"}[what] in said
    )
    assert snapshot(world) == before


def test_what_is_left_after_broken_images_must_still_hold_two_classes(run: Run, tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"train/a": 6, "train/b": 1, "test/a": 3, "test/b": 1})
    (data / "train/b/00.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="one class, 'a'"):
        evaluate(run, data, ["knn"])


# ---- which tasks, which samples


def test_tasks_come_in_an_order_of_their_own_with_rankme_wherever_features_are_made() -> None:
    assert chosen_tasks(["knn"]) == ("rankme", "knn")
    assert chosen_tasks(["linear", "lidar", "knn", "linear"]) == ("rankme", "lidar", "knn", "linear")
    assert chosen_tasks(["frozen"]) == PAPERS and set(FROZEN) == {*PAPERS, "logistic"}  # logistic is slow for many features
    assert chosen_tasks(["davis", "segmentation"]) == ("segmentation", "davis") and chosen_tasks(["finetune"]) == ("finetune",)


def test_words_are_settings_of_the_protocol() -> None:
    protocol = settings_of(["knn.k=3", "linear.epochs=7", "linear.drops=none", "seed=4", "lidar.by=both"])
    assert (protocol.knn.k, protocol.linear.epochs, protocol.linear.drops, protocol.seed, protocol.lidar.by) == (
        3,
        7,
        None,
        4,
        "both",
    )
    assert settings_of([]) == Protocol() and protocol.knn.temperature == 0.07 and Protocol().knn.k == 20


def labels_of(values: np.ndarray, test: np.ndarray, **more: Any) -> Labels:
    return Labels("kind", tuple("abcdefghij"[: values.max() + 1]), values, test, **more)


def test_the_halves_are_rows_of_the_samples_with_their_own_labels_and_clusters() -> None:
    values, test = np.array([0, -1, 1, 0, 1, 0, 1, -1]), np.array([0, 1, 0, 1, 1, 0, 0, 0], bool)
    clusters = np.array([7, 7, 8, 9, 9, 9, 4, 4])
    labels, source = labels_of(values, test, groups=clusters), ArraySource("s", grey(8), None)
    ids = labelled(source, labels)
    assert ids.tolist() == [0, 2, 3, 4, 5, 6]
    split = train_and_test(source, labels, ids)
    assert ids[split.train].tolist() == [0, 2, 5, 6] and ids[split.test].tolist() == [3, 4]
    assert split.train_labels.tolist() == [0, 1, 0, 1] and split.test_labels.tolist() == [0, 1]
    assert split.clusters is not None and split.clusters.tolist() == [9, 9]


@pytest.mark.parametrize("n, limit", [(96, 20), (100, 30), (1000, 100), (46, 10), (60, 60), (60, 100)])
def test_a_limit_keeps_that_many_samples_of_both_halves_and_every_class(n: int, limit: int) -> None:
    values = np.repeat(np.arange(2), [n // 2 // 5 * 5, n - n // 2 // 5 * 5])
    labels, source = labels_of(values, every_fifth_held_out(values)), ArraySource("s", grey(1), None)
    ids = labelled(source, labels, limit)
    assert len(np.unique(ids)) == len(ids) == min(n, limit)
    split = train_and_test(source, labels, ids)  # a fifth is held out, and the step between samples must not step over it
    assert 0.05 < len(split.test) / len(ids) < 0.4 and set(split.test_labels.tolist()) == {0, 1}


# ---- what is written


def test_every_task_is_written_beside_every_baseline(run: Run) -> None:
    results = evaluate(run, tasks=["frozen", "logistic"], set=QUICK)
    assert set(results) == set(FROZEN)
    assert {p.name for p in (run.path / "evaluation").glob("*.json")} == {f"{task}.json" for task in FROZEN}
    for task in set(FROZEN) - {"rankme", "lidar"}:
        written = read(run, task)
        assert written["task"] == task and written["rows"] == json.loads(json.dumps(results[task]))
        assert (written["n_train"], written["n_test"], written["independent"], written["classes"]) == (35, 9, 9, 3)
        assert written["data"] == run.config.data and written["labels"] == "folder"
        rows = by_name(written["rows"])
        assert set(rows) == ENCODERS | (BASELINES - {"pixel PCA"} if task == "attentive" else BASELINES), task
        assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows.values())
        assert all(0 <= row["accuracy"] <= 1 for row in rows.values())
        assert rows["majority class"]["accuracy"] == pytest.approx(1 / 3)
        with np.load(run.path / f"evaluation/{task}.npz", allow_pickle=False) as file:
            assert file["names"].tolist() == list(rows) and file["right"].shape == (len(rows), 9)
            np.testing.assert_allclose(file["right"].mean(1), [row["accuracy"] for row in rows.values()])
            assert [FolderSource(Path(run.config.data or "")).labels.test[i] for i in file["ids"]] == [True] * 9  # type: ignore[union-attr]
    assert read(run, "knn")["settings"] == {"k": 20, "temperature": 0.07}
    assert read(run, "linear")["settings"]["epochs"] == 2 and read(run, "logistic")["settings"] is None
    assert set(by_name(read(run, "lidar")["rows"])) == ENCODERS
    assert all(1 <= row["lidar"] <= 16.01 and (row["n"], row["q"]) == (44, 3) for row in read(run, "lidar")["rows"])
    ranks = by_name(read(run, "rankme")["rows"])
    assert set(ranks) == ENCODERS | {"raw pixels"} and all(1 <= row["rankme"] <= 44.1 for row in ranks.values())
    assert by_name(results["knn"])["raw pixels"]["accuracy"] == 1  # the class is the colour


def test_the_table_has_a_row_for_each_encoder_and_a_column_for_each_task(run: Run) -> None:
    results = evaluate(run, set=QUICK)
    assert tuple(results) == ("rankme", "knn", "linear")
    lines = results_table(results).splitlines()
    assert lines[0].split() == ["knn", "linear", "rankme"]
    assert {line[:20].strip() for line in lines[1:7]} == ENCODERS | BASELINES
    value = by_name(results["knn"])["target encoder"]["accuracy"]
    assert f"{100 * value:.1f} %" in next(line for line in lines if line.startswith("target encoder"))
    few, seen = lines[7:]
    assert few.startswith("rankme: ")  # 44 images for the 768 features of pixels
    assert seen.startswith("pretraining saw 9 of the 9 test images")  # the set has no split of its own


def test_the_numbers_are_those_of_probes_by_hand(run: Run) -> None:
    results = evaluate(run, tasks=["knn", "logistic"], set=["knn.k=5"])
    source = FolderSource(Path(run.config.data or ""))
    assert source.labels is not None
    ids = np.array([i for i in range(len(source)) if source.title(i) != "class1/03.png"])
    pixels = torch.stack([centre_crop(source.read(int(i)), 16, 16) for i in ids])
    with torch.no_grad():
        x = load(run.path).embed(normalise(pixels, run.config.images))
    y, held = torch.from_numpy(source.labels.values[ids]), torch.from_numpy(source.labels.test[ids])
    accuracy = (knn(x[~held], y[~held], x[held], k=5) == y[held]).double().mean()
    assert by_name(results["knn"])["target encoder"]["accuracy"] == pytest.approx(float(accuracy))
    assert by_name(results["rankme"])["target encoder"]["rankme"] == pytest.approx(rankme(x), rel=1e-3)
    fresh, trained = (
        Encoder(j.encoder, run.config.images, run.config.conditioning) for j in (build_jepa(run.config), saved(run))
    )
    for name, encoder in (("untrained encoder", fresh), ("encoder", trained)):
        with torch.no_grad():
            other = encoder.embed(normalise(pixels, run.config.images))
        assert by_name(results["rankme"])[name]["rankme"] == pytest.approx(rankme(other), rel=1e-3)
        assert rankme(other) != pytest.approx(rankme(x), rel=2e-3)  # so that the names are not mixed up


def saved(run: Run) -> JEPA:
    jepa = build_jepa(run.config)
    jepa.load_state_dict(checkpoint.load_newest(run.checkpoints).tensors["model"])
    return jepa


def test_the_majority_is_that_of_the_training_half(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.repeat([0, 1, 0, 1], [15, 25, 30, 10])  # ones in training, noughts in the test
    given(monkeypatch, ArraySource("turned", grey(80), labels_of(values, np.arange(80) >= 40)))
    assert by_name(evaluate(run, tasks=["knn"])["knn"])["majority class"]["accuracy"] == 0.25


def test_pixel_pca_never_sees_the_test_half(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spying(x: torch.Tensor, train: np.ndarray, components: int) -> torch.Tensor:
        seen.append((train.tolist(), components))
        return pca(x, train, components)

    monkeypatch.setattr("jepakit.evaluation.probing.pca", spying)
    values = np.arange(60) % 2
    given(monkeypatch, ArraySource("greys", grey(60), labels_of(values, np.arange(60) % 4 == 3)))
    evaluate(run, tasks=["knn"])
    assert seen == [([i for i in range(60) if i % 4 != 3], 16)]  # as many as the encoder has features


def test_without_baselines_the_encoders_are_judged_as_beside_them(run: Run, tmp_path: Path) -> None:
    tasks = ["rankme", "lidar", "knn", "linear"]
    beside, alone = (evaluate(run, tasks=tasks, out=tmp_path / n, set=[*QUICK, f"baselines={n}"]) for n in ("true", "false"))
    for task in tasks:
        rows, own = untimed(by_name(beside[task])), untimed(by_name(alone[task]))
        free = {"majority class"} if task in ("knn", "linear") else set()  # which needs no image
        assert set(own) == {"target encoder", "encoder"} | free and own == {name: rows[name] for name in own}


def test_the_exported_encoder_is_judged_as_the_run_is(world: Path, run: Run, tmp_path: Path) -> None:
    ours = evaluate(run, tasks=["knn", "linear"], set=QUICK)
    theirs = evaluate(run.path / "model", run.config.data, ["knn", "linear"], out=tmp_path / "out", set=QUICK)
    for task in ("knn", "linear"):
        a, b = by_name(ours[task]), by_name(theirs[task])
        of_run, of_model = untimed(a)["target encoder"], untimed(b)["target encoder"]
        metrics = of_run.pop("metrics"), of_model.pop("metrics")  # a rounding of features turns ranks of nine images
        assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
        seen = {"seen_test": 9, "n_test": 9}  # known of a run alone
        assert of_run == {**of_model, **seen} and untimed(a)["raw pixels"] == untimed(b)["raw pixels"]
        assert set(b) == {"target encoder", "untrained encoder"} | BASELINES
    assert read(tmp_path / "out", "knn")["rows"] == theirs["knn"]
    assert not (run.path / "model/evaluation").exists()
    rows = evaluate(run.path / "model", run.config.data, ["lidar"], out=tmp_path / "out", set=QUICK)["lidar"]
    assert {row["name"] for row in rows} == {"target encoder", "untrained encoder"}


def test_evaluation_is_the_same_each_time_and_leaves_torchs_randomness_alone(run: Run) -> None:
    words = ["linear.epochs=1", "lidar.views=2", "attentive.epochs=1"]
    tasks = ["lidar", "knn", "linear", "low_shot", "attentive"]
    first = {task: untimed(by_name(rows)) for task, rows in evaluate(run, tasks=tasks, set=words).items()}
    torch.manual_seed(5)
    second = evaluate(run.path, tasks=tasks, set=words)
    assert {task: untimed(by_name(rows)) for task, rows in second.items()} == first
    state = torch.get_rng_state()
    evaluate(run, tasks=["knn"])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_pictures_are_masks_and_neighbours_of_real_images(run: Run) -> None:
    evaluate(run, tasks=["knn"])
    with np.load(run.path / "evaluation/pictures.npz", allow_pickle=False) as file:
        p = {name: file[name] for name in file.files}
    n, q = len(p["images"]), len(p["query_images"])
    assert n == 6 and p["images"].shape == (n, 16, 16, 3) and p["images"].dtype == np.uint8
    assert p["context"].shape == (n, 4, 4) and p["targets"].shape == (n, 4, 4, 4)
    assert p["context"].any((1, 2)).all() and not (p["context"] & p["targets"].any(1)).any()
    assert p["neighbour_images"].shape == (q, 6, 16, 16, 3) and p["neighbour_labels"].shape == (q, 6)
    assert set(p["query_labels"]) <= {"class0", "class1", "class2"}
    assert not list(run.path.rglob(".tmp-*"))
    assert "class0" in report([run.path]).read_text()


def test_without_labels_there_are_rank_and_pictures_and_a_word_why(
    world: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jepakit"):
        results = evaluate(run, world / "flat")
    assert set(results) == {"rankme"} and {row["name"] for row in results["rankme"]} == ENCODERS | {"raw pixels"}
    assert sorted(p.name for p in (run.path / "evaluation").iterdir()) == ["pictures.npz", "rankme.json"]
    assert any("no labels" in record.getMessage() for record in caplog.records)
    assert "rankme" in results_table(results)


def test_results_stay_until_their_task_is_done_again_and_each_says_on_which_images(world: Path, run: Run) -> None:
    evaluate(run, tasks=["knn", "logistic"])
    evaluate(run, world / "others", ["knn"])
    data = {p.stem: json.loads(p.read_text())["data"] for p in (run.path / "evaluation").glob("*.json")}
    photos_, others = str(world / "photos"), str(world / "others")
    assert data == {"rankme": others, "knn": others, "logistic": photos_}


FINETUNE = ["finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.batch_size=16"]


def test_fine_tuning_is_of_the_encoder_and_of_the_untrained_one(world: Path, run: Run) -> None:
    rows = by_name(evaluate(run, world / "others", ["finetune"], set=FINETUNE)["finetune"])
    assert set(rows) == {"target encoder", "untrained encoder", "majority class"}
    assert {p.name for p in (run.path / "evaluation").iterdir()} == {"finetune.json", "finetune.npz"}
    assert (read(run, "finetune")["n_train"], read(run, "finetune")["n_test"]) == (36, 9)


def test_fine_tuning_alone_leaves_out_images_that_cannot_be_read(run: Run) -> None:
    evaluate(run, tasks=["finetune"], set=FINETUNE)
    assert (read(run, "finetune")["n_train"], read(run, "finetune")["n_test"]) == (35, 9)


# ---- labels of every sort


def test_samples_without_a_label_take_no_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(60) % 2
    images = grey(60) // 4
    images[np.arange(60), :, :, values] += 150  # the class is the colour
    known = np.where(np.arange(60) % 3 == 0, -1, values)
    labels = labels_of(known, np.arange(60) >= 40)
    given(monkeypatch, ArraySource("greys", images, labels))
    written = evaluate(run, tasks=["knn", "logistic"])
    about = read(run, "knn")
    assert (about["n_train"], about["n_test"], about["classes"]) == (26, 14, 2)
    assert by_name(written["knn"])["raw pixels"]["accuracy"] == 1 == by_name(written["logistic"])["raw pixels"]["accuracy"]
    with np.load(run.path / "evaluation/knn.npz") as file:
        assert file["ids"].tolist() == [i for i in range(40, 60) if i % 3]


@pytest.mark.parametrize("classes", [("a", "b"), ()])
def test_a_picture_of_a_sample_without_a_label_has_no_name(
    classes: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] + np.zeros((60, 20, 20, 3), np.uint8)  # tells its place
    values = np.where(np.arange(60) % 3 == 0, -1, np.arange(60) % 2) if classes else np.full(60, -1)
    given(monkeypatch, ArraySource("greys", images, Labels("kind", classes, values, np.arange(60) % 5 == 4)))
    evaluate(run, tasks=["rankme"])
    names = ["" if value < 0 else classes[value] for value in values]
    with np.load(run.path / "evaluation/pictures.npz", allow_pickle=False) as file:
        for kind in ("query", "neighbour"):
            shown, told = file[f"{kind}_images"], file[f"{kind}_labels"]
            places = shown.reshape(-1, *shown.shape[-3:])[:, 0, 0, 0]
            assert told.ravel().tolist() == [names[place] for place in places] and "" in told.ravel()
    assert ('title="a"' in report([run.path]).read_text()) == bool(classes)


def test_images_limit_is_of_labelled_images_over_all_of_the_set(run: Run) -> None:
    evaluate(run, tasks=["knn"], set=["images_limit=20"])
    about = read(run, "knn")
    assert about["n_train"] + about["n_test"] in (19, 20) and about["classes"] == 3  # one may be the broken one
    rows = evaluate(run, tasks=["knn"], protocol=Protocol(images_limit=1000))["knn"]
    assert read(run, "knn")["n_test"] == 9 and rows


@pytest.mark.parametrize("whole", [True, False])
def test_what_stands_at_the_border_counts_where_the_label_is_of_the_whole_image(
    whole: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide images whose class is the colour of their left fifth, which the centre crop cuts off."""
    images = np.full((80, 20, 60, 3), 90, np.uint8) + grey(80)[:, :, :1] // 8
    values = np.random.RandomState(0).randint(0, 2, 80)
    images[values == 1, :, :12, 0] = 255
    given(monkeypatch, ArraySource("wide", images, labels_of(values, np.arange(80) >= 40, whole_image=whole)))
    rows = by_name(evaluate(run, tasks=["logistic"])["logistic"])
    for name in ("raw pixels", "target encoder"):
        assert (rows[name]["accuracy"] == 1) if whole else (rows[name]["accuracy"] < 0.8), name


def test_clusters_of_test_samples_widen_intervals(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.repeat(np.random.RandomState(0).randint(0, 2, 40), 3)  # three copies of each image
    images = np.repeat(grey(40), 3, 0)
    labels = labels_of(values, np.arange(120) >= 60, groups=np.arange(120) // 3)
    given(monkeypatch, ArraySource("copies", images, labels))
    rows = by_name(evaluate(run, tasks=["knn"])["knn"])
    assert read(run, "knn")["independent"] == 20 and read(run, "knn")["n_test"] == 60
    with np.load(run.path / "evaluation/knn.npz") as file:
        assert file["clusters"].tolist() == (np.arange(60, 120) // 3).tolist()
    given(monkeypatch, ArraySource("copies", images, replace(labels, groups=None)))
    naive = by_name(evaluate(run, tasks=["knn"])["knn"])
    row, plain = rows["majority class"], naive["majority class"]
    assert row["accuracy"] == plain["accuracy"]
    assert row["high"] - row["low"] == pytest.approx(3**0.5 * (plain["high"] - plain["low"]), rel=0.15)


# ---- two runs


def test_two_runs_are_compared_on_the_same_test_images(world: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(run.path), str(world / "second")
    cli.main(["evaluate", a, b, "--tasks", "knn,linear", *QUICK])
    said = capsys.readouterr().out
    assert said.index(a) < said.index(b) and "on the same test images" in said
    found = differences(run.path / "evaluation", world / "second/evaluation", ["knn", "linear"])
    assert set(found) == {"knn", "linear"}
    for task, names in found.items():
        ours, theirs = (by_name(read(Path(p) / "evaluation", task)["rows"]) for p in (a, b))
        assert set(names) == {"target encoder", "encoder"}
        for name, d in names.items():
            assert d.difference == pytest.approx(ours[name]["accuracy"] - theirs[name]["accuracy"])
            assert d.low <= d.difference <= d.high and 0 < d.p <= 1
            assert f"{task}, {name}: {100 * d.difference:+.1f} points" in said
            assert d.comparisons == 4 and f"p = {d.p_corrected:.2g}, corrected for 4 comparisons (Holm)" in said
    each = [d for names in found.values() for d in names.values()]
    assert [d.p_corrected for d in each] == [d.p_corrected for d in corrected(each)]


def test_a_verdict_goes_by_the_p_among_all() -> None:
    alone = Difference(0.1, 0.01, 0.19, 0.03)
    assert as_sentences({"knn": {"encoder": alone}}, "a", "b").endswith("p = 0.03: more than chance")
    both = dict(zip(("knn", "linear"), corrected([alone, alone]), strict=True))
    said = as_sentences({task: {"encoder": d} for task, d in both.items()}, "a", "b").splitlines()
    assert all(line.endswith("p = 0.06, corrected for 2 comparisons (Holm): may be chance") for line in said[1:])


def test_a_run_against_itself_differs_by_nothing_and_it_may_be_chance(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["evaluate", str(run.path), str(run.path), "--tasks", "knn", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    correct = np.ones(9)  # two that agree on nine images may still differ on others, by as much as this
    most = f"{100 * paired(correct, correct).high:.1f}"
    assert 25 < float(most) < 60
    assert said.count(f"+0.0 points (-{most} to +{most}), p = 1, corrected for 2 comparisons (Holm): may be chance") == 2
    assert not (run.path / "evaluation").exists() and (tmp_path / "0/knn.json").is_file() and (tmp_path / "1/knn.json").is_file()


def test_an_older_result_of_another_task_or_on_fewer_images_is_not_compared(
    world: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, tasks=["logistic"], set=["images_limit=30"])
    evaluate(world / "second", tasks=["logistic"])
    cli.main(["evaluate", str(run.path), str(world / "second"), "--tasks", "knn"])
    said = capsys.readouterr().out
    assert "knn, target encoder:" in said and "logistic" not in said


def test_runs_that_were_tested_on_other_images_are_not_compared(world: Path, run: Run) -> None:
    evaluate(run, tasks=["knn"])
    evaluate(world / "elsewhere", tasks=["knn"], set=["images_limit=30"])
    with pytest.raises(UserError, match="other images"):
        differences(run.path / "evaluation", world / "elsewhere/evaluation", ["knn"])


def test_an_older_result_on_labelled_images_is_not_compared_as_one_on_images_without(
    world: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run.path), str(world / "second"), "--tasks", "knn"]
    cli.main(words)
    assert "points" in capsys.readouterr().out
    cli.main([*words, "--data", str(world / "flat")])
    assert "points" not in capsys.readouterr().out


# ---- looks during a run


def config_of(*words: str, **run: Any) -> Config:
    return resolve(overrides([*TINY, "method=ijepa", *words]), {"run": run})


def coloured(n: int, classes: int = 2) -> ArraySource:
    values = np.arange(n) % classes
    images = grey(n) // 3 + (50 * values[:, None, None, None]).astype(np.uint8)
    return ArraySource("coloured", images, labels_of(values, every_fifth_held_out(values)))


def test_a_look_is_the_neighbours_accuracy_on_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    config, source = config_of(probe_images=30), coloured(90, 3)
    jepa = build_jepa(config)
    online = OnlineProbe.prepare(config, source, 10)
    assert online is not None and online.labels is not None and source.labels is not None
    all_seen = torch.stack([centre_crop(image, 16, 16) for image in source.images])
    ids = [int((all_seen == image).flatten(1).all(1).nonzero().item()) for image in online.images]
    assert len(set(ids)) == 30
    np.testing.assert_array_equal(online.labels, source.labels.values[ids])
    np.testing.assert_array_equal(online.test, source.labels.test[ids])
    assert int(online.test.sum()) == 10
    with torch.no_grad():
        moved(jepa)
        tokens = load_like(jepa, config)(normalise(online.images, config.images))
    x, held = tokens.mean(1), online.test
    expected = (knn(x[~held], online.labels[~held], x[held]) == online.labels[held]).double().mean()
    assert online.probe(jepa, config, torch.float32) == {"probe/knn": pytest.approx(float(expected))}
    sizes = []
    monkeypatch.setattr("jepakit.training.online_probe.knn", lambda *xs: sizes.extend(map(len, xs)) or xs[1][:10])
    online.probe(jepa, config, torch.float32)
    assert sizes == [20, 20, 10]  # what is tested is not among the neighbours


def moved(jepa: JEPA) -> None:
    """Has the target encoder, the one that users get, differ from the encoder."""
    with torch.no_grad():
        for p in jepa.target_encoder.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))


def load_like(jepa: JEPA, config: Config) -> Encoder:
    return Encoder(jepa.target_encoder, config.images, config.conditioning)


@pytest.mark.parametrize("labels", ["none", "of one class", "all in training", "all in the test", "unknown"])
def test_without_labels_to_probe_a_look_is_rankme(labels: str) -> None:
    config, source = config_of(probe_images=12), coloured(40)
    values = {"of one class": np.zeros(40, np.int64), "unknown": np.full(40, -1)}.get(labels, np.arange(40) % 2)
    test = {"all in training": np.zeros(40, bool), "all in the test": np.ones(40, bool)}.get(labels, every_fifth_held_out(values))
    source.labels = None if labels == "none" else Labels("kind", ("a", "b"), values, test)
    online, jepa = OnlineProbe.prepare(config, source, 10), build_jepa(config)
    assert online is not None
    moved(jepa)
    seen = online.probe(jepa, config, torch.float32)
    with torch.no_grad():
        x = load_like(jepa, config).embed(normalise(online.images, config.images))
    assert seen == {"probe/rankme": pytest.approx(rankme(x), rel=1e-4)}


def test_a_look_asks_for_no_class_that_it_has_not_shown_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    source = coloured(60, 2)
    assert source.labels is not None
    values, test = source.labels.values.copy(), np.arange(60) % 3 == 0
    values[test & (np.arange(60) >= 45)] = 2  # of these no image is to learn from
    source.labels = Labels("kind", ("a", "b", "c"), values, test)
    config = config_of(probe_images=60)
    with caplog.at_level(logging.WARNING, "jepakit"):
        online, jepa = OnlineProbe.prepare(config, source, 10), build_jepa(config)
        assert online is not None and online.labels is not None
        seen = [online.probe(jepa, config, torch.float32) for _ in range(2)]
    assert caplog.text.count("leaves out 5 of its 20 held-out images: they are of 1 classes") == 1
    assert len(online.images) == 55 and int(online.test.sum()) == 15 and set(online.labels.tolist()) == {0, 1}
    with torch.no_grad():
        x = load_like(jepa, config).embed(normalise(online.images, config.images))
    correct = knn(x[~online.test], online.labels[~online.test], x[online.test]) == online.labels[online.test]
    assert seen == [{"probe/knn": pytest.approx(float(correct.double().mean()))}] * 2 and seen[0]["probe/knn"] > 0.5


@pytest.mark.parametrize(
    "case, words",
    [
        ("all in training", "none of them is held out"),
        ("all in the test", "fewer than two classes"),
        ("one class", "fewer than two classes"),
        ("other classes", "none that is held out is of a class to learn from"),
    ],
)
def test_a_look_that_could_only_be_wrong_or_right_is_rankme_and_says_why(
    case: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    values, test = np.arange(40) % 2, np.arange(40) % 4 >= 2
    values = {"one class": np.zeros(40, np.int64), "other classes": values + 2 * test}.get(case, values)
    test = {"all in training": test & False, "all in the test": test | True}.get(case, test)
    source = ArraySource("greys", grey(40), Labels("kind", tuple("abcd"), values, test))
    with caplog.at_level(logging.WARNING, "jepakit"):
        online = OnlineProbe.prepare(config_of(probe_images=40), source, 10)
    assert online is not None and online.probe(build_jepa(config := config_of()), config, torch.float32).keys() == {
        "probe/rankme"
    }
    assert caplog.text.count(f"of {len(online.images)} labelled images ") == caplog.text.count(words) == 1


def test_a_look_at_fewer_training_images_than_neighbours_has_all_of_them_vote() -> None:
    online = OnlineProbe.prepare(config_of(probe_images=9), coloured(90, 3), 10)
    assert online is not None and online.labels is not None and int((~online.test).sum()) == 6
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    train, labels = x[~online.test], online.labels[~online.test]
    assert torch.equal(knn(train, labels, x, k=20), knn(train, labels, x, k=6))


def test_the_images_of_a_look_are_a_function_of_the_seed_and_none_for_zero() -> None:
    source = coloured(60)

    def panel(seed: int) -> torch.Tensor:
        online = OnlineProbe.prepare(config_of(f"seed={seed}", probe_images=20), source, 10)
        assert online is not None
        return online.images

    assert torch.equal(panel(3), panel(3)) and not torch.equal(panel(3), panel(4))
    assert OnlineProbe.prepare(config_of(probe_images=0), source, 10) is None
    source.images = source.images[:1]
    source.labels = None
    assert OnlineProbe.prepare(config_of(probe_images=20), source, 10) is None


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 50, 2000])
@pytest.mark.parametrize("log_every", [1, 4, 10])
def test_looks_take_at_most_three_hundredths_of_the_work_and_fall_on_logged_steps(steps_per_epoch: int, log_every: int) -> None:
    for batch_size in (8, 16, 512):
        config = config_of(f"optim.batch_size={batch_size}", probe_images=48, log_every_steps=log_every)
        online = OnlineProbe.prepare(config, coloured(60), steps_per_epoch)
        assert online is not None and len(online.images) <= 48
        passes = STEP_COST * batch_size * online.every_steps  # of the target encoder over an image, between two looks
        assert len(online.images) <= MAX_PROBE_SHARE * passes and online.every_steps % log_every == 0
        assert online.every_steps >= steps_per_epoch  # an epoch at least
        assert online.due(2 * online.every_steps) and not online.due(online.every_steps + 1)
        # and no rarer than that asks for: one epoch and one logged step more would do
        rare = max(len(online.images) / (MAX_PROBE_SHARE * STEP_COST * batch_size), 0) + steps_per_epoch + log_every
        assert online.every_steps < rare
    asked = OnlineProbe.prepare(
        config_of(probe_images=48, probe_every_epochs=3, log_every_steps=log_every), coloured(60), steps_per_epoch
    )
    assert asked is not None and 0 <= asked.every_steps - 3 * steps_per_epoch < log_every


def test_looks_change_no_weight_and_are_told_in_logged_rows(world: Path, tmp_path: Path) -> None:
    words = [*TINY, "optim.steps=14", "run.log_every_steps=3"]
    more = {"none": ["run.probe_images=0"], "looks": ["run.probe_images=30", "run.probe_every_epochs=1"]}
    runs = {k: pretrain(world / "others", tmp_path / k, method="ec_ijepa", set=[*words, *v]) for k, v in more.items()}
    a, b = (checkpoint.load_newest(run.checkpoints).tensors for run in runs.values())
    assert a.keys() == b.keys() == {"model", "optimizer"}
    for group in a:
        assert a[group].keys() == b[group].keys() and all(torch.equal(a[group][k], b[group][k]) for k in a[group])
    rows = {k: run.metrics() for k, run in runs.items()}
    assert [row["step"] for row in rows["none"]] == [row["step"] for row in rows["looks"]] == [3, 6, 9, 12, 14]
    assert not any(key.startswith("probe/") for row in rows["none"] for key in row)
    # 45 images are 5 steps an epoch, 6 with the next logged one; and the last step has a look
    assert [row["step"] for row in rows["looks"] if "probe/knn" in row] == [6, 12, 14]
    assert [row["step"] for row in rows["looks"] if "probe/knn_at_start" in row] == [3]
    for x, y in zip(rows["none"], rows["looks"], strict=True):
        told = {k: v for k, v in y.items() if not k.startswith("probe/") and k not in ("seconds", "images_per_second")}
        assert told == {k: v for k, v in x.items() if k not in ("seconds", "images_per_second")}


def test_the_last_look_is_the_neighbours_accuracy_of_the_saved_encoder(world: Path, tmp_path: Path) -> None:
    run = pretrain(world / "others", tmp_path / "run", method="ijepa", set=[*TINY, "optim.steps=5", "run.probe_images=30"])
    source = FolderSource(world / "others")
    online, jepa = OnlineProbe.prepare(run.config, source, 5), build_jepa(run.config)
    assert online is not None
    jepa.load_state_dict(checkpoint.load_newest(run.checkpoints).tensors["model"])
    assert online.probe(jepa, run.config, torch.float32)["probe/knn"] == run.metrics()[-1]["probe/knn"]
    fresh = online.probe(build_jepa(run.config), run.config, torch.float32)["probe/knn"]
    assert run.metrics()[0]["probe/knn_at_start"] == fresh


# ---- what a review found


def test_a_word_of_a_recipe_changes_that_alone(world: Path, run: Run) -> None:
    given = settings_of(["transfer.epochs=3", "finetune.base_lr=1e-5"])
    transfer, fine = given.transfer.over(TRANSFER), given.finetune.over(recipe_for(1280, 32))
    assert transfer == TRANSFER.model_copy(update={"epochs": 3})
    assert fine == recipe_for(1280, 32).model_copy(update={"base_lr": 1e-5}) and fine.layer_decay == 0.75
    evaluate(run, tasks=["transfer"], set=["transfer.epochs=3"])
    assert (read(run, "transfer")["settings"]["optimizer"], read(run, "transfer")["settings"]["epochs"]) == ("sgd", 3)


def test_a_probe_of_the_last_four_blocks_alone_takes_the_baselines_as_they_are(run: Run) -> None:
    rows = by_name(evaluate(run, tasks=["linear"], set=["linear.epochs=2", "linear.layers=[last4]"])["linear"])
    assert rows["raw pixels"]["head"]["layers"] == "last" and rows["encoder"]["head"]["layers"] == "last4"


def test_what_was_done_before_a_mistake_is_kept_and_threads_are_as_before(run: Run) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match="50"):
        evaluate(run, tasks=["knn", "low_shot"], set=["low_shot.shots=50"])
    assert read(run, "knn")["rows"] and torch.get_num_threads() == threads


def test_rankme_asks_for_no_split(world: Path, run: Run) -> None:
    for name in ("few", "stranger", "one_to_learn"):
        assert by_name(evaluate(run, world / name, ["rankme"])["rankme"])["encoder"]["n"] > 4
    assert read(run, "rankme")["settings"] == {"images": 25_600, "eps": 1e-7}
    assert {row["name"]: row["conditioning"] for row in read(run, "rankme")["rows"]} == {
        **dict.fromkeys(ENCODERS, "inference"),
        "raw pixels": "none",
    }


def test_neighbours_vote_at_any_temperature() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=draw)
    labels = torch.arange(60) % 3 + 1
    nearest = labels[(F.normalize(x[:20] + 0.01, dim=1) @ F.normalize(x, dim=1).T).argmax(1)]
    assert torch.equal(knn(x, labels, x[:20] + 0.01, k=20, temperature=1e-4), nearest)


def test_one_image_of_other_bands_does_not_end_a_run_by_its_look(world: Path, tmp_path: Path) -> None:
    images = coloured(60).images

    class Odd(ArraySource):
        def raw(self, index: int) -> Any:
            return np.zeros((20, 20, 13), np.uint8) if index == 7 else images[index]

    online = OnlineProbe.prepare(config_of(probe_images=60), Odd("odd", images, None), 10)
    assert online is not None and len(online.images) == 59


def test_low_shot_has_the_interval_of_test_images_and_that_of_draws_apart(run: Run) -> None:
    (row, *_) = evaluate(run, tasks=["low_shot"], set=["low_shot.shots=2", "low_shot.draws=3"])["low_shot"]
    assert row["low"] <= row["accuracy"] <= row["high"] and len(row["accuracies"]) == 3
    assert row["draws_low"] <= np.mean(row["accuracies"]) <= row["draws_high"]
