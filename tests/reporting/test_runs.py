"""The verb `runs`: a line for each run below a folder."""

import fcntl
import json
import math
import os
import sys
from pathlib import Path

import pytest

import jepakit
from jepakit.cli import main
from jepakit.core.errors import UserError
from jepakit.reporting.run_table import runs_table
from run_files import add_result, log_rows, make_run, scored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs at two depths, one damaged, and what is none."""
    for name, accuracy, loss in (("one", 0.55, 0.3), ("deep/two", 0.61, 0.2), ("deep/three", None, 0.4)):
        run = log_rows(make_run(tmp_path / name, evaluated=False), [{"step": i, "loss": loss} for i in (10, 20)])
        if accuracy:
            add_result(run, "linear", [scored("target encoder", accuracy), scored("untrained encoder", 0.99)])
    checkpoint = tmp_path / "one/checkpoints/step-00000025"
    checkpoint.mkdir(parents=True)
    checkpoint.joinpath("state.json").write_text('{"step": 25, "finished": true}')
    with tmp_path.joinpath("deep/two/metrics.jsonl").open("a") as lines:
        lines.write('{"step": 21, "loss": 0.2, "alarms": ["full collapse: one vector"], "probe/knn": 0.31}\n{"step": 22, "lo')
    make_run(tmp_path / "broken", evaluated=False).joinpath("config.yaml").write_text("[1, {")
    other = tmp_path / "other"
    other.mkdir()
    other.joinpath("config.yaml").write_text("theme: dark\n")
    return tmp_path


def test_each_run_below_the_folder_has_a_line_and_the_best_is_first(folder: Path) -> None:
    found = jepakit.runs(folder, "linear")
    assert [row.name for row in found] == ["deep/two", "one", "broken", "deep/three"]
    assert [row.state for row in found] == ["stopped", "finished", "unreadable", "stopped"]
    assert (found[0].step, found[1].step, found[0].steps) == (21, 25, 100_000)
    assert found[0].alarms == ["full collapse: one vector"] and found[0].metrics["probe/knn"] == 0.31
    assert [row.name for row in jepakit.runs(folder, "loss")][:3] == ["deep/two", "one", "deep/three"]  # the lowest is best
    table = runs_table(found, "loss").splitlines()
    assert table[1].split() == ["deep/two", "stopped", "21", "of", "100,000", "c-jepa", *table[1].split()[6:]]
    assert "0.2" in table[1] and "linear 61.0 %" in table[1] and "1: full collapse" in table[1]


def test_a_run_whose_lock_is_held_is_running(folder: Path) -> None:
    with folder.joinpath("one/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert {row.name: row.state for row in jepakit.runs(folder)}["one"] == "running"
    assert {row.name: row.state for row in jepakit.runs(folder)}["one"] == "finished"


def test_as_json_it_is_json_and_torch_stays_away(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(folder / "one/metrics.jsonl", (1, 1))
    main(["runs", str(folder), "--json"])
    rows = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert [row["name"] for row in rows][-2:] == ["one", "broken"] and rows[-1]["age"] is None  # the oldest; unknown last
    assert rows[-2]["age"] > 1e9 and rows[-2]["metrics"]["linear"] == 0.55
    heavy = "import sys, jepakit.reporting.run_table; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    assert os.popen(f'{sys.executable} -c "{heavy}"').read().strip() == "[]"


def test_mistakes_are_told(folder: Path) -> None:
    for place, sort, words in (
        (folder / "nowhere", "age", "is not there"),
        (folder / "one/config.yaml", "age", "is a file"),
        (folder / "other", "age", "no run in"),
        (folder, "lineer", "did you mean 'linear'"),
    ):
        with pytest.raises(UserError, match=words):
            jepakit.runs(place, sort)
    assert not math.isfinite(jepakit.runs(folder)[-1].age)
