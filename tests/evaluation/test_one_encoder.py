"""One encoder of a run is the run's: looked at, judged, fine-tuned, reported, exported and loaded, whatever the targets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import jepakit
from jepakit import cli
from jepakit.artifacts import checkpoint
from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.run import Run
from jepakit.data.formats.folder import FolderSource
from jepakit.evaluation.features import extract
from jepakit.evaluation.results import differences
from jepakit.evaluation.tasks import evaluate
from jepakit.model.metrics import rankme
from jepakit.reporting import report
from jepakit.study.cells import BASE, Cell
from jepakit.study.table import row_of, value_of
from jepakit.training.online_probe import OnlineProbe
from jepakit.training.train import pretrain

TINY = [
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "predictor.depth=1"),
    *("images.size=16", "masking.min_keep=2", "optim.batch_size=8", "run.threads=1", "run.precision=fp32", "optim.steps=4"),
    *("optim.lr=0.03", "optim.warmup_epochs=0", "optim.ema_momentum=0.9", "run.probe_images=30"),  # the two encoders differ
]
FINETUNE = ["finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.batch_size=16"]
WHICH = {"ijepa": "target_encoder", "ec_c_jepa": "target_encoder", "mae_pixels": "encoder"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    draw = np.random.default_rng(0)
    for name, c in (("red", 0), ("green", 1)):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 120, (20, 20, 3))
            pixels[..., c] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"photos/{name}/{i:02}.png")
    return {name: pretrain(str(root / "photos"), root / name, method=name, set=TINY) for name in WHICH}


def saved(run: Run, which: str) -> dict[str, Tensor]:
    state = checkpoint.load_newest(run.checkpoints).tensors["model"]
    return {k.removeprefix(f"{which}."): v for k, v in state.items() if k.startswith(f"{which}.")}


@pytest.mark.parametrize("method, which", WHICH.items())
def test_export_load_look_table_and_study_are_of_one_encoder_and_name_it(method: str, which: str, runs: dict[str, Run]) -> None:
    run, name = runs[method], which.replace("_", " ")
    held, other = saved(run, which), saved(run, "encoder" if which == "target_encoder" else "target_encoder")
    assert any(not torch.equal(held[key], other[key]) for key in held)  # else nothing is told apart
    for encoder in (
        jepakit.load(run.path),
        run.encoder(),
        jepakit.load(run.checkpoints / "latest"),
        jepakit.load(run.path / "model"),
    ):
        assert all(torch.equal(value, held[key]) for key, value in encoder.vit.state_dict().items())
    assert json.loads((run.path / "model/config.json").read_text())["jepakit"]["which"] == which
    for explicit in ("target_encoder", "encoder"):
        own = jepakit.load(run.path, which=explicit).vit.state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(own[key], value) for key, value in saved(run, explicit).items())

    source = FolderSource(Path(run.config.data or ""))
    jepa, online = build_jepa(run.config), OnlineProbe.prepare(run.config, source, 5)
    jepa.load_state_dict(checkpoint.load_newest(run.checkpoints).tensors["model"])
    assert online is not None and jepa.to_use is getattr(jepa, which)
    told = online.probe(jepa, run.config, torch.float32)["probe/knn"]
    setattr(jepa, "encoder" if which == "target_encoder" else "target_encoder", None)  # the other one takes no part
    assert told == online.probe(jepa, run.config, torch.float32)["probe/knn"] == run.metrics()[-1]["probe/knn"]

    results = evaluate(run, tasks=["rankme", "knn"])
    features, _ = extract(source, {"loaded": jepakit.load(run.path)})
    assert results["rankme"][0]["name"] == results["knn"][0]["name"] == name
    assert results["rankme"][0]["rankme"] == pytest.approx(rankme(features["loaded"].last), rel=1e-3)
    assert {row["name"] for row in results["rankme"]} == {"target encoder", "encoder", "untrained encoder", "raw pixels"}

    row = row_of(Cell(BASE, {}, "run", 0), run, "finished")
    assert row["judged"] == name and value_of(row) == results["knn"][0]["accuracy"]


@pytest.mark.parametrize("method, which", WHICH.items())
def test_fine_tuning_and_the_exported_folder_say_which_encoder_it_is(
    method: str, which: str, runs: dict[str, Run], tmp_path: Path
) -> None:
    run, name = runs[method], which.replace("_", " ")
    rows = evaluate(run, tasks=["finetune"], out=tmp_path / "fine", set=FINETUNE)["finetune"]
    assert [row["name"] for row in rows] == [name, "untrained encoder", "majority class"]
    rows = evaluate(run.path / "model", run.config.data, ["knn"], out=tmp_path / "model")["knn"]
    assert rows[0]["name"] == name and rows[0]["accuracy"] == evaluate(run, tasks=["knn"])["knn"][0]["accuracy"]


def test_a_folder_that_an_older_version_wrote_says_what_it_holds(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["mae_pixels"]
    old = shutil.copytree(run.path / "model", tmp_path / "model")
    config = json.loads((old / "config.json").read_text())
    config["jepakit"]["which"] = "target_encoder"
    (old / "config.json").write_text(json.dumps(config))
    assert jepakit.load(old).which == "target_encoder"
    assert evaluate(old, run.config.data, ["knn"], out=tmp_path)["knn"][0]["name"] == "target encoder"


def test_two_runs_are_paired_by_the_encoder_that_each_is_judged_by(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (str(runs[name].path) for name in ("ijepa", "mae_pixels"))
    cli.main(["evaluate", a, b, "--tasks", "knn", "--out", str(tmp_path)])
    assert "knn, target encoder against encoder:" in capsys.readouterr().out
    found = differences(tmp_path / "0", tmp_path / "1", ["knn"])["knn"]
    first, second = (json.loads((tmp_path / n / "knn.json").read_text())["rows"][0]["accuracy"] for n in "01")
    assert {name: d.difference for name, d in found.items()} == {"target encoder against encoder": pytest.approx(first - second)}


def test_the_report_tells_the_judged_encoder_by_its_name(runs: dict[str, Run], tmp_path: Path) -> None:
    for method in ("mae_pixels", "ijepa"):
        evaluate(runs[method], tasks=["knn"])
    alone = report(runs["mae_pixels"].path, tmp_path / "one.html").read_text()
    rows = json.loads((runs["mae_pixels"].path / "evaluation/knn.json").read_text())["rows"]
    assert f"kNN {100 * rows[0]['accuracy']:.1f} %" in alone and rows[0]["name"] == "encoder"
    assert '<tr class="first"><th scope="row">encoder</th>' in alone and '<tr><th scope="row">target encoder</th>' in alone
    assert "in the features of the encoder, nearest first" in alone
    both = report([runs[method].path for method in ("ijepa", "mae_pixels")], tmp_path / "two.html").read_text()
    assert "in the features of the target encoder or encoder, nearest first" in both
