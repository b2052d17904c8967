"""The first minutes: what a run would be, settings as a file, what is there to work with, completion, how much is said."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image

import jepakit
from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.cli import experiments, options
from jepakit.config.commented import commented_yaml, schema
from jepakit.config.config import known_keys, layer_from, read_yaml, resolve, to_yaml
from jepakit.config.recipes import RECIPES, recipe_layer, settings
from jepakit.core.errors import UserError
from jepakit.model.method import METHODS
from jepakit.planning.dry_run import dry_run
from jepakit.study import STUDIES
from jepakit.training.train import pretrain

SHAPE = "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16"
SHORT = "masking.min_keep=2 optim.batch_size=8 optim.steps=4 run.threads=1 run.probe_images=0 run.log_every_steps=1"
TINY = [*SHAPE.split(), *SHORT.split()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 200, (24, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


# ---- --dry-run


@pytest.mark.parametrize("words", [[], ["method=ec_ijepa", "target.pixels_first=.5"], ["seed=3", "images.mean=[.5,.5,.5]"]])
def test_a_dry_run_says_the_settings_that_the_run_then_writes_and_leaves_nothing(
    photos: Path, tmp_path: Path, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked: dict[str, Any] = {"data": str(photos), "out": tmp_path / "run", "set": [*TINY, *words]}
    caplog.set_level("INFO", "jepakit")
    said = dry_run(**asked, seconds=0.1)
    found = [record.getMessage() for record in caplog.records]
    assert not any(tmp_path.iterdir())
    caplog.clear()
    run = pretrain(**asked)
    assert yaml.safe_load(said) == yaml.safe_load((run.path / "config.yaml").read_text())
    assert set(found) <= {record.getMessage() for record in caplog.records}, "the log of the run says it too"
    assert any("20 images" in line for line in found)
    assert "images/s" in said and "fits" in said
    again = tmp_path / "as.yaml"
    again.write_text(said)
    assert resolve(read_yaml(again)) == run.config


def test_a_dry_run_refuses_what_the_run_would_refuse(photos: Path, tmp_path: Path) -> None:
    for asked in (
        {"data": str(photos / "gone"), "out": tmp_path / "run"},
        {"data": str(photos), "out": photos},
        {"data": str(photos), "set": [*TINY, "optim.batch_size=64"]},
    ):
        with pytest.raises(UserError) as foreseen:
            dry_run(**asked)  # type: ignore[arg-type]
        with pytest.raises(UserError) as met:
            pretrain(**{"out": tmp_path / "run", **asked})
        assert str(foreseen.value) == str(met.value)
    assert not any(tmp_path.iterdir())


# ---- settings as a file


@pytest.mark.parametrize("name", RECIPES)
def test_commented_settings_are_the_settings_and_fit_their_schema(name: str) -> None:
    config = settings(name, None)
    text = commented_yaml(config)
    assert yaml.safe_load(text) == yaml.safe_load(to_yaml(config))
    judge = jsonschema.Draft202012Validator(schema())
    judge.validate(yaml.safe_load(text))
    judge.validate(json.loads(json.dumps(recipe_layer(name))))  # a part of the settings, as a user's file has them


def test_the_schema_takes_what_settings_take_and_refuses_what_they_refuse() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    judge = jsonschema.Draft202012Validator(schema())
    for good in (
        {},
        {"masking": {"targets": 3}},
        {"optim": {"clip_grad": "none"}},
        {"regularizer": None},
        {"images": {"size": [32, 64]}},
    ):
        resolve(layer_from(good, "a file"))
        judge.validate(good)
    wrong = [
        {"optimm": {}},
        {"optim": {"learning_rate": 1}},
        {"optim": {"lr": "fast"}},
        {"optim": {"lr": -1}},
        {"masking": {"kind": "blocks"}},
        {"encoder": {"width": 0}},
        {"images": {"max_bad": 2}},
        {"loss": "l3"},
        {"seed": -1},
    ]
    for each in wrong:
        with pytest.raises(UserError):
            resolve(each)
        assert not judge.is_valid(each), each


def test_every_setting_is_in_the_commented_file_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["config", "demo", "optim.lr=0.5"])
    lines = capsys.readouterr().out.splitlines()
    assert all("#" in line or line.endswith(":") or "kind:" in line for line in lines), "each line says what it is"
    assert any(line.lstrip().startswith("lr: 0.5") for line in lines)
    present = {line.split(":")[0].strip() for line in lines}
    config = settings("demo", None).model_dump()
    assert {key.split(".")[-1] for key in known_keys() if key.split(".")[0] in config and key.count(".") == 0} <= present


# ---- what is there


def test_the_doctor_names_versions_device_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor"])
    said = capsys.readouterr().out
    for name in ("torch", "numpy", "pydantic"):
        assert f"{name} {metadata.version(name)}" in said
    assert jepakit.__version__ in said and "cores to use" in said and "GB" in said


def test_a_run_keeps_what_it_was_begun_with_and_each_time_gone_on_with(photos: Path, tmp_path: Path) -> None:
    run = pretrain(str(photos), tmp_path / "run", set=TINY)
    kept = run.environment()
    assert kept["packages"]["torch"] == metadata.version("torch") and kept["jepakit"] == jepakit.__version__
    assert kept["cores"] >= 1 and kept["memory"] > 1e8 and kept["command"] and "resumed" not in kept
    pretrain(resume=run)
    again = Run(run.path).environment()
    assert {key: value for key, value in again.items() if key != "resumed"} == kept
    assert [each["step"] for each in again["resumed"]] == [4]


# ---- completion


BASH = """
eval "$SCRIPT"
while read -r typed; do COMP_WORDS=($typed); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _jepakit_completion jepakit
    echo "$typed: ${COMPREPLY[*]}"; done <<< "$TYPED"
"""
ZSH = """
autoload -Uz compinit; compinit -u -D; eval "$SCRIPT"
_arguments() { print -r -- "$typed: $*" }
for typed in ${(f)TYPED}; do words=(${=typed}); CURRENT=$#words; $_comps[jepakit]; done
"""
TYPED = {"pre": "pretrain", "pretrain --re": "--resume", "config c_jepa_vitb": "c_jepa_vitb16"}


@pytest.mark.parametrize(("shell", "how"), [("bash", ["bash", "--norc", "-c", BASH]), ("zsh", ["zsh", "-f", "-c", ZSH])])
def test_a_shell_completes_verbs_options_and_recipes(shell: str, how: list[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: apt-get install {shell}")
    program = tmp_path / "jepakit"
    program.write_text(f"#!{sys.executable}\nfrom jepakit.cli import main\n\nmain()\n")
    program.chmod(0o755)
    undetected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # of the shell that pytest runs in
    named = {**os.environ, **undetected, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = subprocess.run([program, "--show-completion", shell], env=named, capture_output=True, text=True, check=True).stdout
    typed = {**named, "SCRIPT": script, "TYPED": "\n".join(f"jepakit {words}" for words in TYPED)}
    said = subprocess.run(how, env=typed, capture_output=True, text=True, check=True)
    lines = dict(line.split(": ", 1) for line in said.stdout.splitlines())
    for words, meant in TYPED.items():
        assert re.search(rf'(^|[\s"]){meant}($|[\s"])', lines[f"jepakit {words}"]), said


def test_names_that_a_shell_completes_are_those_that_there_are() -> None:
    assert list(options.RECIPE_CHOICES) == list(RECIPES)
    assert list(options.METHOD_CHOICES) == list(METHODS)
    assert sorted(experiments.STUDY_NAMES) == sorted(STUDIES)


# ---- how much is said


@pytest.fixture
def said(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def of(*words: str) -> str:
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's; as in a shell
        cli.main(["pretrain", *words, "--data", str(photos), "--out", str(tmp_path / "run"), "--overwrite", *TINY])
        return capsys.readouterr().err

    return of


def test_quiet_says_warnings_alone_and_the_log_is_whole(said: Callable[..., str], tmp_path: Path) -> None:
    loud = said()
    assert "20 images" in loud and "pretrain 4/4" in loud
    quiet = said("--quiet")
    assert "pretrain 4/4" not in quiet and "steps of 8" not in quiet
    assert "steps of 8" in (tmp_path / "run/run.log").read_text()


def test_a_log_in_json_is_one_object_a_line(said: Callable[..., str]) -> None:
    rows = [json.loads(line) for line in said("--log-json").splitlines()]
    assert {"time", "level", "message"} <= set(rows[0])
    assert any(row["level"] == "INFO" and "20 images" in row["message"] for row in rows)
    last = [row for row in rows if row.get("of") == "pretrain"][-1]
    assert (last["done"], last["total"]) == (4, 4)
