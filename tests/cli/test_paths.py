"""What the user names: paths with a tilde, encoders, YAML keys, arrays in the place of paths."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import jepakit
from jepakit.artifacts.released import save_released
from jepakit.artifacts.run import Run
from jepakit.cli import main
from jepakit.config.config import grouped, overrides, read_yaml
from jepakit.core.errors import UserError

TINY = ["encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "images.size=16"]
TINY += ["predictor.depth=1", "masking.min_keep=2", "optim.batch_size=4", "optim.steps=2", "optim.warmup_steps=1"]
TINY += ["run.threads=1", "run.probe_images=0", "run.precision=fp32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with images of two classes, and a run."""
    home = tmp_path_factory.mktemp("home")
    for name in "ab":
        (home / "pics" / name).mkdir(parents=True)
        for i in range(10):
            draw = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(draw).save(home / "pics" / name / f"{i}.png")
    jepakit.pretrain(home / "pics", home / "run", set=TINY)
    return home


@pytest.fixture
def away(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder elsewhere; '~' is home."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


VERBS: list[list[str]] = [
    ["pretrain", "--data=~/pics", "--out=~/new", *TINY],
    ["pretrain", "--data=~/pics", "--out=~/of_a_file", "--config=~/file.yaml", *TINY],
    ["pretrain", "--resume=~/run"],
    ["evaluate", "~/run", "--data=~/pics", "--tasks=knn", "--out=~/evaluated"],
    ["report", "~/run", "--out=~/page.html"],
    ["report", "~/run"],
    ["data", "check", "~/pics", "--json=~/check.json"],
    ["data", "pack", "~/pics", "--out=~/packed", "--size=16"],
    ["plan", "--recipe=small", "--device=L4", "--json=~/plan.json"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_tilde_is_home_in_every_path_of_every_verb(words: list[str], home: Path, away: Path) -> None:
    (home / "file.yaml").write_text("optim: {lr: 1e-3}")
    main(words)
    assert os.listdir(away) == []
    for word in words:
        place = word.partition("=")[2] if word.startswith("--") else word
        assert not place.startswith("~/") or (home / place[2:]).exists()


def test_a_tilde_is_home_in_python_too(home: Path, away: Path) -> None:
    run = jepakit.pretrain("~/pics", "~/python", set=TINY, overwrite=True)
    assert run.path == home / "python" and jepakit.load("~/python").width == 16
    jepakit.evaluate("~/python", "~/pics", "knn", out="~/out")
    jepakit.report("~/python", "~/python.html")
    jepakit.check("~/pics", json="~/found.json")
    jepakit.pack("~/pics", "~/pack", 16)
    assert os.listdir(away) == [] and all((home / name).exists() for name in ("out", "python.html", "found.json", "pack"))


def test_a_run_is_taken_wherever_its_folder_is(home: Path, tmp_path: Path) -> None:
    run = Run.open(home / "run")
    assert torch.equal(jepakit.load(run).vit.norm.weight, jepakit.load(home / "run").vit.norm.weight)
    assert jepakit.report(run, tmp_path / "a.html") == jepakit.report([run], tmp_path / "a.html")
    assert jepakit.evaluate(run, tasks="knn", out=tmp_path / "e")["knn"] and Run.open(run).path == run.path
    assert jepakit.pretrain(resume=run).finished


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda home: jepakit.load(home / "run", which="teacher"), "choose target_encoder .*'teacher'"),
        (lambda home: jepakit.load(str(home / "rum")), "no such path: .*rum; did you mean 'run'"),
        (lambda home: jepakit.load("runs/typo.pth.tar.gz/x"), "no such path"),
        (lambda home: jepakit.load(3), "give a path, not a int"),
        (lambda home: jepakit.pretrain(np.zeros(8), home / "x"), r"a NumPy array \(8,\): give \(N, H, W\)"),
        (lambda home: jepakit.evaluate(home / "run", {"images": home / "pics"}), "data: give a path, .* not a dict"),
        (
            lambda home: jepakit.evaluate(home / "run", np.zeros((8, 9, 9), np.uint8), "davis"),
            "davis read a data set in its folder",
        ),
        (lambda home: jepakit.evaluate(home / "run", np.zeros((8, 9, 9), np.uint8), labels="x"), "has no labels, not 'x'"),
        (lambda home: jepakit.evaluate(home / "run", home / "pics", tasks="knm"), "unknown task 'knm'.*'knn'"),
        (lambda home: jepakit.pretrain(home / "pics", 3), "give a path, not a int"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", config=["optim"]), "give a path, not a list"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", recipe=3), "^recipe: give a name, not a int"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", recipe=["demo"]), "^recipe: give a name, not a list"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", method=3), "^method: give a name, not a int"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", method=["ijepa"]), "^method: give a name, not a list"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", config={"recipe": 3}), "recipe: give a name, not 3"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", config={"method": ["x"]}), r"method: give a name, not \['x'\]"),
        (lambda home: jepakit.pretrain(home / "pics", home / "x", set=3), "set=3: give words"),
        (lambda home: jepakit.evaluate(home / "run", tasks=None), "^tasks: give a list or a name, not None"),
        (lambda home: jepakit.evaluate(home / "run", tasks=3), "^tasks: give a list or a name, not a int"),
        (lambda home: jepakit.evaluate(home / "run", tasks=[3]), "^tasks: give a list or a name, not a list"),
        (lambda home: jepakit.evaluate(home / "run", tasks=[]), "which tasks. choose from frozen, rankme"),
        (lambda home: jepakit.evaluate(home / "run", tasks=""), "which tasks. choose from frozen, rankme"),
        (lambda home: jepakit.evaluate(home / "run", labels=3), "^labels: give a name, not a int"),
        (lambda home: jepakit.evaluate(home / "run", protocol={"knn": 3}), "^protocol: give a Protocol, not a dict"),
        (lambda home: jepakit.evaluate(jepakit.load(home / "run")), "^run: give a path, not a Encoder"),
        (lambda home: jepakit.report(None), "^runs: give a list or a path, not None"),
        (lambda home: jepakit.report(3), "^runs: give a list or a path, not a int"),
        (lambda home: jepakit.report([3]), "^runs: give a list or a path"),
        (lambda home: jepakit.report(jepakit.load(home / "run")), "^runs: give a list or a path, not a Encoder"),
        (lambda home: jepakit.plan(3), "^recipe: give a name, not a int"),
        (lambda home: jepakit.plan("demo", device=3), "^device: give a name, not a int"),
        (lambda home: jepakit.plan(data=np.zeros(3)), r"\(3,\): give \(N, H, W\)"),
        (lambda home: jepakit.check("emoji", 3), "^recipe: give a name, not a int"),
        (lambda home: jepakit.check(3), "not a int"),
        (lambda home: jepakit.pack(np.zeros((8, 9, 9, 3)), home / "x"), "not by a ndarray: here arrays go into a file"),
        (lambda home: jepakit.pack("emoji", 3), "^out: give a path, not a int"),
        (lambda home: jepakit.pack("emoji", home / "x", size="x"), "^size: give a whole number, not a str"),
    ],
)
def test_what_cannot_be_meant_is_said(home: Path, call: Callable[[Path], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(home)
    assert not (home / "x").exists()


def test_a_path_that_is_typed_wrong_is_not_asked_of_the_hub(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def hub(name: str) -> Path:
        asked.append(name)
        raise UserError("asked")

    monkeypatch.setattr("jepakit.artifacts.load._from_hub", hub)
    monkeypatch.chdir(home)
    for wrong in ("./x/y", "../x", "/x/y", "x", "a/b/c", "pics/run", "x.pth.tar", Path("owner/name")):
        with pytest.raises(UserError, match="no such path"):
            jepakit.load(wrong)
    assert asked == []
    with pytest.raises(UserError, match="asked"):
        jepakit.load("owner/name")
    assert asked == ["owner/name"]


def test_settings_as_a_mapping_are_a_file_s(home: Path, tmp_path: Path) -> None:
    words = {key: float(value) if "." in value else value for key, _, value in (word.partition("=") for word in TINY)}
    run = jepakit.pretrain(home / "pics", tmp_path / "run", config={**words, "optim.lr": 2e-4, "images": {"symmetry": "mirror"}})
    assert run.config.optim.lr == 2e-4 and run.config.images.symmetry == "mirror" and run.config.encoder.width == 16


def test_keywords_with_dots_are_groups(home: Path, tmp_path: Path) -> None:
    run = jepakit.pretrain(home / "pics", tmp_path / "run", set=TINY, **{"optim.lr": 1e-3, "regularizer": "none"})
    assert run.config.optim.lr == 1e-3 and run.config.regularizer is None
    assert jepakit.plan("demo", device="L4", **{"encoder.depth": 2}).parameters.encoder > 0
    with pytest.raises(UserError, match=r"settings: optim\.lr is given twice"):
        jepakit.pretrain(home / "pics", tmp_path / "x", **{"optim.lr": 1e-3, "optim": {"lr": 2}})


def test_none_in_yaml_is_none_as_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("regularizer: none\noptim: {clip_grad: None}\noptim.steps: ~\n")
    assert read_yaml(tmp_path / "x.yaml") == {"regularizer": None, "optim": {"clip_grad": None, "steps": None}}
    assert overrides(["regularizer=none", "optim.clip_grad=None"]) == {"regularizer": None, "optim": {"clip_grad": None}}


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "&a {optim: *a}", "a: &a {b.c: *a}", "[" * 3000, "a: " + "{a: " * 3000])
def test_yaml_that_holds_itself_is_said_to_be_none(home: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml.*is not valid YAML"):
        jepakit.pretrain(home / "pics", tmp_path / "run", config=tmp_path / "x.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("optim.lr: 1\noptim.batch_size: 4\n", {"optim": {"lr": 1, "batch_size": 4}}),
        ("optim: {lr: 1}\noptim.batch_size: 4\n", {"optim": {"lr": 1, "batch_size": 4}}),
        ("a.b.c: 1\na.b.d: 2\na: {e: 3}\n", {"a": {"b": {"c": 1, "d": 2}, "e": 3}}),
        ("a: {b.c: 1, b.d: 2}\n", {"a": {"b": {"c": 1, "d": 2}}}),
        ("", {}),
    ],
)
def test_keys_with_dots_are_groups(tmp_path: Path, text: str, layer: dict[str, Any]) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert read_yaml(tmp_path / "x.yaml") == layer == grouped(layer, "")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: 1\nseed: 2\n", "seed"),
        ("optim: {lr: 1}\noptim: {batch_size: 4}\n", "optim"),
        ("optim: {lr: 1, lr: 1}\n", "lr"),
        ("optim:\n  lr: 1\n  lr: 2\n", "lr"),
        ("optim.lr: 1\noptim.lr: 2\n", "optim.lr"),
        ("optim.lr: 1\noptim: {lr: 2}\n", "optim.lr"),
        ("optim: {lr: 2}\noptim.lr: 1\n", "optim.lr"),
        ("a: 1\na.b: 2\n", "a"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"{key} is given twice"):
        read_yaml(tmp_path / "x.yaml")


def test_a_released_file_that_is_malformed_gets_a_sentence(home: Path, tmp_path: Path) -> None:
    jepa = jepakit.JEPA.from_checkpoint(home / "run")
    save_released(jepa, tmp_path / "good.pth.tar")
    assert jepakit.load(tmp_path / "good.pth.tar", heads=2).width == 16
    good = torch.load(tmp_path / "good.pth.tar", weights_only=True)
    name, nan, norm = "module.patch_embed.proj.weight", torch.tensor(float("nan")), torch.ones(16)
    for part, key, value in [
        ("encoder", name, torch.zeros(3)),
        ("encoder", name, torch.zeros(16, 3, 0, 0)),
        ("encoder", "module.pos_embed", torch.zeros(3)),
        ("encoder", "module.blocks.0.mlp.fc1.weight", torch.zeros(())),
        ("encoder", "module.blocks.x.mlp.fc1.weight", torch.zeros(2, 2)),
        ("encoder", "module.norm.weight", "text"),
        ("predictor", "module.predictor_embed.weight", torch.zeros(())),
        ("target_encoder", "module.norm.weight", torch.zeros(5)),
        ("encoder", name, torch.zeros(0, 0, 0, 0)),
        ("encoder", "module.blocks.1000000.norm1.weight", torch.zeros(16)),
        ("predictor", "module.predictor_blocks.1000000.norm1.weight", torch.zeros(8)),
        ("encoder", "module.pos_embed", good["encoder"]["module.pos_embed"] * nan),
        ("encoder", "module.pos_embed", good["encoder"]["module.pos_embed"].to(torch.complex64)),
        ("predictor", "module.predictor_pos_embed", good["predictor"]["module.predictor_pos_embed"] * nan),
        *(("encoder", "module.norm.weight", bad) for bad in (norm * nan, norm.to(torch.complex64), norm.to(torch.int8))),
    ]:
        bad = {**good, part: {**good[part], key: value}}
        torch.save(bad, tmp_path / "bad.pth.tar")
        with pytest.raises(UserError, match=r"bad\.pth\.tar"):
            jepakit.load(tmp_path / "bad.pth.tar", heads=2)
    for heads, words in (
        (0, "heads=0: give"),
        (-2, "heads=-2: give"),
        ("2", "heads='2': give"),
        (3, "not a multiple of heads 3"),
    ):
        with pytest.raises(UserError, match=words):
            jepakit.load(tmp_path / "good.pth.tar", heads=heads)  # type: ignore[arg-type]
    standard = {**good, "encoder": {**good["encoder"], name: torch.zeros(192, 3, 4, 4)}}
    torch.save(standard, tmp_path / "bad.pth.tar")
    with pytest.raises(UserError, match=r"bad\.pth\.tar"):
        jepakit.load(tmp_path / "bad.pth.tar")


def test_a_model_is_taken_from_wherever_a_path_may_point(home: Path, away: Path) -> None:
    assert jepakit.JEPA.from_checkpoint("~/run").grid == (4, 4)
    for run in (Run("~/run"), Run(str(home / "run")), Run(home / "run"), Run(Run("~/run"))):
        assert run.path == home / "run" and run == Run.open("~/run") and run.config.encoder.width == 16
    for wrong in (None, 3, b"run"):
        for read in (jepakit.JEPA.from_checkpoint, jepakit.load, Run):
            with pytest.raises(UserError, match="give a path, not a"):
                read(wrong)  # type: ignore[operator]


def test_a_path_that_nearly_is_a_run_is_answered_with_the_one_to_use(home: Path, tmp_path: Path) -> None:
    place = home / "run/checkpoints"
    for read in (jepakit.JEPA.from_checkpoint, jepakit.load):
        with pytest.raises(UserError, match=rf"give the run, {home / 'run'}, or one of them, {place / 'step-00000002'}$"):
            read(place)
        with pytest.raises(UserError, match="the path is empty: give a run"):
            read("")
        with pytest.raises(UserError, match="File name too long") as caught:
            read("x" * 5000)
        assert len(str(caught.value)) < 300
