"""What a newcomer types first gets the right word back, with the value that was given."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jepakit
from jepakit import cli
from jepakit.config.config import known_keys, overrides, resolve
from jepakit.core.errors import UserError
from jepakit.core.guesses import keys_named
from jepakit.evaluation.probes.protocol import Protocol
from jepakit.evaluation.tasks import chosen_tasks, settings_of

GUESSES = {
    "pretrain --data d --out r --epochs 10": "write optim.epochs=10",
    "pretrain --data d --epochs=10": "write optim.epochs=10",
    "pretrain --num-epochs 10": "write optim.epochs=10",
    "pretrain --batch-size 64": "write optim.batch_size=64",
    "pretrain --bs 64": "write optim.batch_size=64",
    "pretrain --lr 1e-3": "write optim.lr=1e-3",
    "pretrain -lr -1": "write optim.lr=-1",
    "pretrain --lr": "write optim.lr=VALUE",
    "pretrain --optim.lr 1e-3": "write optim.lr=1e-3",
    "pretrain --learning_rate 1e-3": "write optim.lr=1e-3",
    "pretrain --weight-decay 0.1": "write optim.weight_decay=0.1",
    "pretrain --image-size 64": "write images.size=64",
    "pretrain --img-size 64": "write images.size=64",
    "pretrain --patch-size 8": "write encoder.patch_size=8",
    "pretrain --depth 8": "write encoder.depth=8 or predictor.depth=8",
    "pretrain --seed 1": "write seed=1",
    "pretrain --device cuda:1": "write run.device=cuda:1",
    "pretrain --gpus 2": "write run.device=cuda",
    "pretrain --precision bf16": "write run.precision=bf16",
    "pretrain --num-workers 4": "write run.loader_threads=4",
    "pretrain --workers 4": "write run.loader_threads=4",
    "pretrain --steps 4": "write optim.steps=4",
    "pretrain --momentum .9": "write optim.ema_momentum=.9",
    "pretrain --warmup 5": "write optim.warmup_epochs=5",
    "pretrain --mask-ratio 0.75": "write masking.kind=random masking.target_ratio=0.75",
    "pretrain --arch vit_small": "write encoder.size=small",
    "pretrain --model ijepa": "write --method ijepa",
    "pretrain --output-dir r": "write --out r",
    "pretrain --output r": "write --out r",
    "pretrain --data-path d": "write --data d",
    "pretrain --data-dir d": "write --data d",
    "pretrain --checkpoint r": "write --resume r",
    "pretrain --force": "write --overwrite\n",
    "pretrain --version": "write jepakit --version",
    "pretrain -V": "write jepakit --version",
    "-V": "write jepakit --version",
    "version": "jepakit --version",
    "pretrain emoji": "write --data emoji",
    "pretrain emoji --out r": "write --data emoji",
    "pretrain --verbose": "pretrain has no option --verbose: all that happens is said",
    "evaluate r -v": "evaluate has no option -v: all that happens is said",
    "pretrain --resume r --epochs 100": "optim.epochs=100 cannot be set where a run goes on: its length",
    "pretrain --resume=r --lr 1": "optim.lr=1 cannot be set where a run goes on",
    "pretrain --resume r --num-workers 4": "write run.loader_threads=4",
    "pretrain --data d --out r optim.lr 3": "write optim.lr=3",
    "pretrain --data d --out r optim.lr": "write optim.lr=VALUE",
    "evaluate r --knn": "write --tasks knn",
    "evaluate r --frozen": "write --tasks frozen",
    "demo --steps 3": "write optim.steps=3",
    "plan --batch-size 3": "write optim.batch_size=3",
    "plan --gpus 3": "write --devices 3",
    "evaluate r --k 5": "write knn.k=5",
    "evaluate --run r": "write jepakit evaluate r",
    "evaluate r --task knn": "write --tasks knn",
    "report --output x.html r": "write --out x.html",
    "data check --data d": "write jepakit data check d",
    "data pack --output p d": "write --out p",
    "data pack --workers 3 d --out p": "write --threads 3",
    "pretrain d": "write --data d",
    "pretrain d --out r": "write --data d",
    "pretrain --data d r": "--out r",
    "pretrain d/a/0.png d/a/1.png": "in quotes",
    "pretrain --data d/a/0.png d/a/1.png --out r": "in quotes",
    "data pack d/a/0.png d/a/1.png --out p": "in quotes",
    "pretrain --data d/* --out r": "give the folder that holds them, {d}",
    "pretrain --data d/a/* --out r": "give the folder that holds them, {d}/a",
    "pretrain --data d/**/*.png --out r": "give the folder that holds them, {d}/a",
    "pretrain ijepa": "write --method ijepa",
    "pretrain out=r": "write --out r",
    "pretrain lr=3": "did you mean 'optim.lr'?",
    "pretrain bs=3": "did you mean 'optim.batch_size'?",
    "pretrain optimizer.lr=3": "did you mean 'optim.lr'?",
    "evaluate r k=3": "did you mean 'knn.k'?",
    "features r --data d": "jepakit embed r --data SRC --out FILE.parquet, or in Python jepakit.load('r').embed(images)",
    "upload r": "jepakit push r OWNER/NAME",
    "convert r": "jepakit export r --format hf --out DIR",
    "train --data d": "jepakit pretrain --data",
    "eval r": "jepakit evaluate r",
    "finetune r": "jepakit evaluate r --tasks finetune",
    "check d": "jepakit data check",
    "pack d": "jepakit data pack",
    "d": "jepakit pretrain --data d",
    "data d": "jepakit data check d",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    (root / "d/a").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((20, 20, 3), 100 * i, np.uint8)).save(root / f"d/a/{i}.png")
    return root


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code, *capsys.readouterr()


@pytest.mark.parametrize("typed", GUESSES)
def test_a_first_guess_gets_the_right_word(
    typed: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    code, out, error = said(typed.split(), capsys)
    assert code == 2 and not out and error.startswith("error: ") and error.count("\n") == 1
    assert GUESSES[typed].format(d=place / "d") in error
    assert sorted(place.rglob("*")) == before


def test_every_setting_is_named_by_the_last_part_of_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    for tree, verb in ((known_keys(), "pretrain"), (known_keys(Protocol), "evaluate r")):
        groups = {key.rpartition(".")[0] for key in tree}
        ends = Counter(key.rpartition(".")[2] for key in tree if key not in groups)
        unique = [key for key in tree if key not in groups and ends[key.rpartition(".")[2]] == 1]
        assert len(unique) > 25
        for key in unique:
            assert keys_named("--" + key.rpartition(".")[2].replace("_", "-"), tree) == [key]
        option = "--" + unique[-1].rpartition(".")[2].replace("_", "-")
        assert f"write {unique[-1]}=7\n" in said([*verb.split(), option, "7"], capsys)[2]


def test_what_is_suggested_for_an_option_is_a_setting_that_is_taken() -> None:
    suggested = [right.removeprefix("write ") for typed, right in GUESSES.items() if typed.startswith("pretrain --")]
    words = [word for right in suggested for word in right.split() if "=" in word and word[-1] not in "E1"]
    assert len(words) > 15
    for word in words:
        resolve(overrides(["masking.kind=random"] if "masking" in word else []), overrides([word]))


@pytest.mark.parametrize(
    ("typed", "right"),
    [("pretrain --dta d", "--data"), ("data check --threadz 3 d", "--threads"), ("evaluate r --taks knn", "--tasks")],
)
def test_a_misspelt_option_still_gets_the_option(typed: str, right: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert right in said(typed.split(), capsys)[2]


def test_version_and_help_in_the_ways_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["-h"], ["--help"], ["help"], ["help", "pretrain"], ["pretrain", "-h"], ["data", "pack", "-h"]):
        cli.main(words)
        out = capsys.readouterr().out
        assert out == f"jepakit {jepakit.__version__}\n" if words == ["--version"] else "Usage:" in out
        assert ("--resume" in out) == ("pretrain" in words)


def test_python_keywords_without_their_group_get_it(place: Path, tmp_path: Path) -> None:
    for keyword, key in {
        "lr": "optim.lr",
        "epochs": "optim.epochs",
        "batch_size": "optim.batch_size",
        "device": "run.device",
    }.items():
        with pytest.raises(UserError, match=f"{keyword}: unknown key; did you mean '{key}'"):
            jepakit.pretrain(place / "d", tmp_path / "r", **{keyword: 1})
    assert not (tmp_path / "r").exists()


def test_one_string_of_settings_or_tasks_is_as_good_as_a_list() -> None:
    assert overrides("optim.lr=1e-3") == overrides(["optim.lr=1e-3"])
    assert overrides(" optim.lr=1e-3  images.size=[16, 32] seed=2") == overrides(
        ["optim.lr=1e-3", "images.size=[16, 32]", "seed=2"]
    )
    assert chosen_tasks("knn") == chosen_tasks(["knn"]) and chosen_tasks("linear, knn") == chosen_tasks(["knn", "linear"])
    assert settings_of("knn.k=3") == settings_of(["knn.k=3"])
    for wrong in ({"optim.lr": 1}, [("optim.lr", 1)], ["optim.lr"]):
        with pytest.raises(UserError, match=r"optim\.lr=1e-3"):
            overrides(wrong)  # type: ignore[arg-type]
