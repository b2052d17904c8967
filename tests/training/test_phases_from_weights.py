"""Runs of pixels first that begin from weights, and what trackers and studies are told of a run whose targets change."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jepakit.artifacts import checkpoint
from jepakit.artifacts.init import RANDOM_TARGETS
from jepakit.artifacts.load import load
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.study.cells import Cell
from jepakit.study.table import row_of
from jepakit.training.train import pretrain

TINY = [
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "predictor.depth=1"),
    *("images.size=16", "masking.min_keep=2", "optim.batch_size=8", "optim.warmup_steps=1", "optim.steps=4", "run.threads=1"),
    *("run.precision=fp32", "run.log_every_steps=1", "run.save_every_steps=1", "run.keep_checkpoints=99", "run.probe_images=0"),
]
FIRST = "target.pixels_first=2"


@pytest.fixture(scope="module")
def changed(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Pixels for two updates, then features for two."""
    return pretrain(photos, tmp_path_factory.mktemp("changed") / "run", "small", "ijepa", set=[*TINY, FIRST])


def test_a_predictor_of_pixels_begins_pixels_first_and_one_of_features_is_refused(
    photos: str, changed: Run, tmp_path: Path
) -> None:
    parts = "init.parts=encoder,predictor"
    run = pretrain(photos, tmp_path / "run", "small", "ijepa", init_from=f"{changed.path}@2", set=[*TINY, FIRST, parts])
    ours, own = (
        checkpoint.load_checkpoint(path.checkpoints / checkpoint.step_name(step)).tensors["model"]
        for path, step in ((run, 0), (changed, 2))
    )
    taken = [name for name in ours if name.startswith(("encoder.", "predictor."))]
    assert ours["predictor.predictor_proj.weight"].shape == (48, 8)
    assert taken and all(ours[name].equal(own[name]) for name in taken)
    with pytest.raises(UserError, match=r"predictor_proj\.weight\): begin with the same target"):
        pretrain(photos, tmp_path / "no", "small", "ijepa", init_from=f"{changed.path}@4", set=[*TINY, FIRST, parts])


@pytest.mark.parametrize(
    ("method", "words", "warned"),
    [("ijepa", [], True), ("ijepa", [FIRST], False), ("mae_pixels", [], False), ("ijepa", ["target.teacher=RUN"], False)],
)
def test_targets_of_random_weights_are_warned_of_where_the_target_encoder_makes_them(
    method: str, words: list[str], warned: bool, photos: str, changed: Run, tmp_path: Path
) -> None:
    given = [word.replace("RUN", str(changed.path)) for word in words]
    run = pretrain(photos, tmp_path / "run", "small", method, init_from=changed, set=[*TINY, *given, "init.parts=encoder"])
    assert (RANDOM_TARGETS in (run.path / "run.log").read_text()) == warned
    assert bool(json.loads((run.path / "init.json").read_text())["warning"]) == warned


def test_parts_of_nothing_and_a_folder_without_weights_are_refused(photos: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give that too"):
        pretrain(photos, tmp_path / "run", "small", set=[*TINY, "init.parts=encoder"])
    with pytest.raises(UserError, match="holds no weights: give a run, RUN@step, "):
        pretrain(photos, tmp_path / "run", "small", init_from=photos, set=TINY)
    with pytest.raises(UserError, match="holds no weights"):
        load(photos)
    assert not (tmp_path / "run").exists()


def test_trackers_show_the_runs_settings_in_both_phases(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def init(**how: Any) -> Any:
        opened.append(how["config"])
        return SimpleNamespace(log=lambda values, step: None, finish=lambda exit_code: None, offline=True, url="")

    module = SimpleNamespace(init=init, login=lambda **how: True, Settings=SimpleNamespace, teardown=lambda: None)
    monkeypatch.setattr("jepakit.training.trackers.wandb_module", lambda: module)
    run = pretrain(photos, tmp_path / "run", "small", "ijepa", set=[*TINY, FIRST, "run.wandb=true"])
    assert opened == [run.config.model_dump(mode="json")] * 2


def test_a_study_says_which_encoder_was_judged_of_a_run_pruned_before_its_targets_changed(changed: Run, tmp_path: Path) -> None:
    cell = Cell("pixels-first", {"target.pixels_first": 2}, "pixels-first-2", 0)
    assert row_of(cell, changed, "finished")["judged"] == "target encoder"
    pruned = tmp_path / "pruned"
    shutil.copytree(changed.path, pruned, symlinks=True)
    for step in (3, 4):
        shutil.rmtree(pruned / "checkpoints" / checkpoint.step_name(step))
    lines = (pruned / "metrics.jsonl").read_text().splitlines()
    (pruned / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert Run(pruned).encoder().which == row_of(cell, Run(pruned), "pruned")["judged"] == "encoder"
