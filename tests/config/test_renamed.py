"""Settings that once had another name: old keys go on working from every side, and the log says so to who wrote them."""

from pathlib import Path

import pytest
import yaml

from jepakit.artifacts.run import Run
from jepakit.config.config import given_layer, overrides, resolve
from jepakit.core.errors import UserError
from jepakit.evaluation.tasks import settings_of
from jepakit.training.train import pretrain

BRIEF = "optim.batch_size=8 optim.steps=1 encoder.depth=1 run.probe_images=0 run.threads=1"
WORDS = ["optim.momentum is called optim.ema_momentum now", "optim.final_momentum is called optim.final_ema_momentum now"]


def test_old_keys_are_read_from_words_keywords_files_and_mappings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = resolve(overrides("optim.ema_momentum=.5 optim.final_ema_momentum=.75"))
    assert (new.optim.ema_momentum, new.optim.final_ema_momentum) == (0.5, 0.75)
    assert not caplog.text
    assert resolve(overrides("optim.momentum=.5 optim.final_momentum=.75")) == new
    assert resolve(given_layer(None, {"optim": {"momentum": 0.5, "final_momentum": 0.75}})) == new
    assert resolve(given_layer("optim.momentum=.5", {"optim.final_momentum": 0.75})) == new
    assert [caplog.text.count(words) for words in WORDS] == [3, 3]
    caplog.clear()
    (tmp_path / "old.yaml").write_text("optim: {momentum: .5}\n")
    run = pretrain("emoji", tmp_path / "run", "demo", config=tmp_path / "old.yaml", set=f"{BRIEF} optim.final_momentum=.75")
    assert (run.config.optim.ema_momentum, run.config.optim.final_ema_momentum) == (0.5, 0.75)
    assert [caplog.text.count(words) for words in WORDS] == [1, 1]
    written = yaml.safe_load((run.path / "config.yaml").read_text())["optim"]
    assert not {"momentum", "final_momentum"} & written.keys() and written["ema_momentum"] == 0.5
    assert run.metrics()[-1]["momentum"] == 0.5  # the rows' own name stays


def test_flip_is_read_as_the_mirror_symmetry_from_every_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for on, now in ((True, "mirror"), (False, None)):
        for layer in (overrides(f"images.flip={on}"), given_layer(None, {"images": {"flip": on}})):
            assert resolve({"images": {"symmetry": "d4"}}, layer).images.symmetry == now
        assert settings_of(f"finetune.flip={on}").finetune.symmetry == now
    assert "images.flip is called images.symmetry now" in caplog.text
    with pytest.raises(UserError, match=r"images\.flip: give true or false, not 'd4'; or images\.symmetry"):
        overrides("images.flip=d4")
    with pytest.raises(UserError, match=r"images\.flip: give true or false, not 3"):
        resolve({"images": {"flip": 3}})


def test_the_later_of_two_layers_wins_whatever_names_they_use() -> None:
    assert resolve({"optim": {"ema_momentum": 0.5}}, {"optim": {"momentum": 0.25}}).optim.ema_momentum == 0.25
    assert resolve({"optim": {"momentum": 0.25}}, {"optim": {"ema_momentum": 0.5}}).optim.ema_momentum == 0.5


@pytest.mark.parametrize("new", [0.5, None])
def test_both_names_in_one_place_are_refused(new: float | None) -> None:
    with pytest.raises(UserError, match=r"momentum and optim\.ema_momentum are one setting: write optim\.ema_momentum alone"):
        given_layer(None, {"optim": {"momentum": 0.25, "ema_momentum": new}})


def test_a_run_of_old_names_opens_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    before = Path(__file__).parents[1] / "artifacts" / "run_at_add374c"
    assert "\n  momentum: 0.99\n" in (before / "config.yaml").read_text()
    assert (Run.open(before).config.optim.ema_momentum, Run.open(before).config.optim.final_ema_momentum) == (0.99, 0.999)
    assert not caplog.text
