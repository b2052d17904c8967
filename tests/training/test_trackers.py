"""TensorBoard and W&B get the rows of metrics.jsonl: each once, whatever happens to the run. W&B's package is a stand-in."""

import builtins
import importlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jepakit import cli
from jepakit.artifacts import checkpoint
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.training.trackers import tracker_writers
from jepakit.training.train import pretrain

WORDS = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 optim.steps=8 run.threads=1 run.log_every_steps=2 run.save_every_steps=4 "
    "run.probe_images=0 run.precision=fp32"
)


class Server:
    """What W&B would hold, by run id: (step, values) in the order they came; and how each session was opened and ended."""

    def __init__(self, *, key: bool = True) -> None:
        self.key, self.rows, self.opened, self.ended = key, dict[str, list[tuple[int, dict[str, Any]]]](), [], list[int]()
        self.refuses: Callable[[dict[str, Any]], bool] = lambda how: False
        self.fails_at = 0
        self.in_use = set[str]()

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt  # it would wait for ever where nobody sits
        return self.key

    def init(self, **how: Any) -> Any:
        assert how["id"] not in self.in_use, "run ID is in use"
        self.in_use.add(how["id"])
        self.opened.append(how)
        if self.refuses(how):
            raise ConnectionError("no such host\nand more")
        rows = self.rows.setdefault(how["id"], [])

        def log(values: dict[str, Any], step: int) -> None:
            if step == self.fails_at:
                raise RuntimeError("the service died")
            rows.append((step, values))

        def finish(exit_code: int) -> None:
            self.in_use.discard(how["id"])
            self.ended.append(exit_code)

        offline = how.get("mode") == "offline"
        return SimpleNamespace(log=log, finish=finish, offline=offline, url=f"https://wandb/{how['id']}")

    def teardown(self) -> None:
        self.in_use.clear()

    Settings = SimpleNamespace


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    made = Server()
    monkeypatch.setattr("jepakit.training.trackers.wandb_module", lambda: made)
    return made


def begin(out: Path, *words: str) -> Run:
    return pretrain("emoji", out, "demo", method="ijepa", set=[*WORDS.split(), *words])


def logged(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """The rows of metrics.jsonl as curves."""
    return [(row["step"], {k: v for k, v in row.items() if isinstance(v, int | float)}) for row in run.metrics()]


def back_to_step_4(run: Run) -> None:
    """As after a kill that took the last checkpoint."""
    shutil.rmtree(run.checkpoints / checkpoint.step_name(8))
    (run.checkpoints / "latest").unlink()


def test_rows_are_those_of_metrics_jsonl(tmp_path: Path, server: Server) -> None:
    run = begin(tmp_path / "my run!", "run.wandb=true")
    (identity,), (how,) = server.rows, server.opened
    assert server.rows[identity] == logged(run) and [step for step, _ in logged(run)] == [2, 4, 6, 8]
    assert identity.startswith("my-run-") and how["name"] == "my run!" and how["project"] == "jepakit"
    assert how["resume"] == "allow" and Path(how["dir"]) == run.path and "mode" not in how
    assert how["config"] == run.config.model_dump(mode="json")
    assert how["settings"].disable_git and not how["settings"].save_code and how["settings"].console == "off"
    assert server.ended == [0] and f"https://wandb/{identity}" in (run.path / "run.log").read_text()


def test_a_resume_continues_the_same_wandb_run_and_no_row_comes_twice(tmp_path: Path, server: Server) -> None:
    run = begin(tmp_path / "run", "run.wandb=true")
    before = logged(run)
    back_to_step_4(run)
    (identity,) = server.rows
    sent = list(server.rows[identity])
    pretrain(resume=run)
    assert [how["id"] for how in server.opened] == [identity, identity]
    assert [step for step, _ in logged(run)] == [2, 4, 6, 8] and server.rows[identity] == sent == before
    # what W&B did not get before the kill, it gets: rows 6 and 8 were logged again
    back_to_step_4(run)
    (run.path / "wandb" / "jepakit.json").write_text(json.dumps({"id": identity, "step": 4}))
    del server.rows[identity][2:]
    pretrain(resume=run)
    assert server.rows[identity] == logged(run)


def test_a_run_that_asks_for_wandb_late_is_shown_from_its_first_row(tmp_path: Path, server: Server) -> None:
    run = begin(tmp_path / "run")
    back_to_step_4(run)
    assert not server.opened
    pretrain(resume=run, set="run.wandb=true")
    assert [*server.rows.values()] == [logged(run)]


def test_a_run_that_takes_the_place_of_another_is_another(tmp_path: Path, server: Server) -> None:
    first = begin(tmp_path / "run", "run.wandb=true")
    pretrain("emoji", first.path, "demo", method="ijepa", set=[*WORDS.split(), "run.wandb=true"], overwrite=True)
    begin(tmp_path / "elsewhere" / "run", "run.wandb=true")
    assert len(server.rows) == 3 and all(len(rows) == 4 for rows in server.rows.values())


@pytest.mark.parametrize("key", [True, False])
def test_without_key_or_answer_wandb_is_offline(tmp_path: Path, server: Server, key: bool) -> None:
    server.key, server.refuses = key, lambda how: how.get("mode") != "offline"
    run = begin(tmp_path / "run", "run.wandb=true")
    assert [*server.rows.values()] == [logged(run)] and server.opened[-1]["mode"] == "offline"
    assert len(server.opened) == (2 if key else 1) and len({how["id"] for how in server.opened}) == 1
    told = (run.path / "run.log").read_text()
    assert ("(no such host)" if key else "(no key: 'wandb login' stores one)") in told
    assert told.count("wandb sync") == 1 and str(run.path / "wandb" / "offline-run-*") in told


def test_the_users_own_variables_hold(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    server.key = False
    begin(tmp_path / "run", "run.wandb=true")
    assert "mode" not in server.opened[0] and server.opened[0]["project"] == "mine"  # wandb reads WANDB_MODE itself


def test_what_wandb_does_wrong_costs_the_run_nothing(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    plain = begin(tmp_path / "plain")
    server.fails_at = 4
    run = begin(tmp_path / "run", "run.wandb=true")
    timed = ("images_per_second", "seconds")
    assert run.finished and [r | dict.fromkeys(timed, 0) for r in run.metrics()] == [
        r | dict.fromkeys(timed, 0) for r in plain.metrics()
    ]
    assert caplog.text.count("W&B gets no more rows, from step 4 on: the service died") == 1
    server.fails_at = 0
    pretrain(resume=run)  # those that were missed are sent then
    assert [*server.rows.values()] == [logged(run)]
    server.refuses = lambda how: True
    server.in_use.clear()
    monkey = begin(tmp_path / "other", "run.wandb=true")
    assert monkey.finished and "W&B gets no rows: no such host" in caplog.text


def test_both_trackers_get_the_same_rows(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    points: dict[int, dict[str, Any]] = {}

    class Board:
        def __init__(self, folder: str, purge_step: int) -> None: ...

        def add_scalar(self, name: str, value: float, step: int) -> None:
            points.setdefault(step, {})[name] = value

        def close(self) -> None: ...

    monkeypatch.setattr("jepakit.training.trackers.summary_writer", lambda: Board)
    run = begin(tmp_path / "run", "run.wandb=true", "run.tensorboard=true")
    assert [*points.items()] == next(iter(server.rows.values())) == logged(run)


def test_a_run_that_fails_is_told_as_failed(tmp_path: Path, server: Server) -> None:
    run = begin(tmp_path / "run")
    config = run.config.model_copy(update={"run": run.config.run.model_copy(update={"wandb": True})})
    with pytest.raises(UserError), tracker_writers(run, config, 8):
        raise UserError("too many bad images")
    assert server.ended == [1]


@pytest.mark.parametrize("left_folder", [True, False])
def test_a_missing_package_is_a_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left_folder: bool
) -> None:
    """A folder wandb/, as its runs leave them, is no package."""
    real = importlib.import_module

    def without_wandb(name: str, *more: Any) -> Any:
        if name == "wandb" and not left_folder:
            raise ImportError(name)
        return SimpleNamespace() if name == "wandb" else real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without_wandb)
    with pytest.raises(SystemExit) as end:
        cli.main(["pretrain", "--data", "emoji", "--recipe", "demo", "--out", str(tmp_path / "run"), "run.wandb=true"])
    assert end.value.code == 2 and "pip install 'jepakit[wandb]'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_missing_tensorboard_is_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_tensorboard(name: str, *more: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(UserError, match="pip install 'jepakit\\[tensorboard\\]'"):
        begin(tmp_path / "run", "run.tensorboard=true")
    assert not (tmp_path / "run").exists()


def test_nothing_of_wandb_is_touched_where_it_is_not_asked_for(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = begin(tmp_path / "run")
    assert not server.opened and "wandb" not in run.contents() and "W&B" not in caplog.text
