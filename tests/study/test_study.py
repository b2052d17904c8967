"""`jepakit study`: one lever at a time, cells that survive a stop, a search that goes on, and a table that says what happened."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jepakit.study
from jepakit import cli
from jepakit.artifacts.checkpoint import step_name
from jepakit.artifacts.run import Run
from jepakit.config.config import Config, overrides, read_yaml, to_yaml
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.core.files import locked, save_json
from jepakit.study import small_data, study
from jepakit.study.cells import BASE, Cell, Lever, configuration, grid, slug, turning, words
from jepakit.study.running import Runner, run_jobs
from jepakit.study.table import probe_points, quarters, seconds, study_table

DEMO = {"recipe": "demo"}
STEPS = 40

# Does what the command line does to a run's folder, with numbers from the words it was given, and without torch.
STAND_IN = f"""
import json, os, signal, sys, time
verb, words, steps = sys.argv[1], sys.argv[2:], {STEPS}
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
def place(flag): return words[words.index(flag) + 1]
if verb == "evaluate":
    knn = json.load(open(words[0] + "/said.json"))["knn"]
    os.makedirs(words[0] + "/evaluation")
    for task in ("knn", "linear", "rankme"):
        row = {{"name": "target encoder", "accuracy": knn, "low": knn - .01, "high": knn + .01, "rankme": 9}}
        json.dump({{"rows": [row]}}, open(words[0] + "/evaluation/" + task + ".json", "w"))
    sys.exit(0)
if os.environ["STAND_IN_FAILS"] in words:
    sys.exit("error: " + os.environ["STAND_IN_FAILS"] + " is out of luck")
again = "--resume" in words
out = place("--resume" if again else "--out")
first = 0
if again:
    kept = json.load(open(out + "/checkpoints/latest/state.json"))
    first = kept["step"]
    knn = json.load(open(out + "/said.json"))["knn"]
else:
    os.makedirs(out + "/checkpoints")
    open(out + "/config.yaml", "w").write(open(os.environ["STAND_IN_CONFIG"]).read())
    knn = float(os.environ["STAND_IN_KNN"])
    json.dump({{"words": words, "knn": knn}}, open(out + "/said.json", "w"))
def save(step):
    folder = out + "/checkpoints/step-%08d" % step
    os.makedirs(folder, exist_ok=True)
    config = json.load(open(os.environ["STAND_IN_CONFIG"] + ".json"))
    json.dump({{"step": step, "finished": step == steps, "images": 640, "config": config}}, open(folder + "/state.json", "w"))
    if os.path.lexists(out + "/checkpoints/latest"): os.unlink(out + "/checkpoints/latest")
    os.symlink("step-%08d" % step, out + "/checkpoints/latest")
if not again: save(0)
for step in range(first + 1, steps + 1):
    row = {{"step": step, "seconds": step, "effective_rank": step, "position_share": .5, "target_std": 1,
            "own_cosine": .5, "other_cosine": .25}}
    if step % 10 == 0: row["probe/knn"] = knn
    open(out + "/metrics.jsonl", "a").write(json.dumps(row) + "\\n")
    time.sleep(float(os.environ["STAND_IN_SLEEP"]))
    if stop: break
save(step)
"""


class StandIns:
    """Starts stand-ins; notes what was started, and can send the study a SIGTERM at one of its starts."""

    def __init__(
        self,
        folder: Path,
        knn: Callable[[Sequence[str]], float],
        stop_at: int | None = None,
        sleep: float = 0.0,
        fails: str = "nothing",
    ) -> None:
        self.fails = fails
        self.config, self.knn, self.stop_at, self.sleep = folder / "config.yaml", knn, stop_at, sleep
        config = settings("demo", None, {"optim": {"steps": STEPS}})
        self.config.write_text(to_yaml(config))
        save_json(Path(f"{self.config}.json"), config.model_dump(mode="json"))
        self.started: list[list[str]] = []

    def __call__(self, arguments: Sequence[str], said: Path, threads: int) -> "subprocess.Popen[bytes]":
        self.started.append(list(arguments))
        self.threads = threads
        stopping = len(self.started) == self.stop_at
        environment = {
            "STAND_IN_CONFIG": str(self.config),
            "STAND_IN_KNN": str(self.knn(arguments)),
            "STAND_IN_FAILS": self.fails,
            "STAND_IN_SLEEP": "0.05" if stopping else str(self.sleep),
        }
        with said.open("ab") as file:
            process = subprocess.Popen([sys.executable, "-c", STAND_IN, *arguments], stderr=file, env=environment)
        if stopping:
            while not (said.with_suffix("") / "metrics.jsonl").exists():
                assert process.poll() is None
            signal.raise_signal(signal.SIGTERM)
        return process


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepakit.study.running.POLL_SECONDS", 0.01)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIns]]:
    def made(knn: Callable[[Sequence[str]], float] = lambda arguments: 0.5, **given: Any) -> StandIns:
        launch = StandIns(tmp_path, knn, **given)
        monkeypatch.setattr(jepakit.study, "Runner", partial(Runner, launch=launch))
        return launch

    yield made


def levers(base: dict[str, Any]) -> list[Lever]:
    return turning(base, small_data.levers(configuration(base, {})))


def flat(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                visit(each, f"{name}.{key}" if name else key)
        else:
            found[name] = value

    visit(config.model_dump(), "")
    return found


# ---- the grid


@pytest.mark.parametrize("base", [DEMO, {**DEMO, "method": "ijepa"}, {"recipe": "small", "optim": {"steps": 400}}])
def test_each_value_of_each_lever_is_valid_and_turns_that_alone(base: dict[str, Any]) -> None:
    at_base = configuration(base, {})
    turned = levers(base)
    assert len({lever.name for lever in turned}) == len(turned) >= 20
    cells = grid(base, turned, 1)
    configs = [configuration(base, cell.change) for cell in cells]  # raises where one is not valid
    assert configs[0] == at_base and cells[0].lever == BASE
    assert all(config not in configs[:i] for i, config in enumerate(configs))
    assert len({cell.name for cell in cells}) == len(cells) and all("/" not in cell.name for cell in cells)
    assert {cell.lever for cell in cells} == {BASE, *(lever.name for lever in turned)}
    before = flat(at_base)
    for cell, config in zip(cells, configs, strict=True):
        after = flat(config)
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)} - {"method"}
        parts = {"regularizer", "conditioning"} & {key.split(".")[0] for key in cell.change}
        assert {key for key in changed if key.split(".")[0] not in parts} <= set(cell.change), cell.name
        assert {key.split(".")[0] for key in changed} <= {key.split(".")[0] for key in cell.change}, cell.name


def test_what_the_command_line_is_told_is_what_was_meant() -> None:
    for cell in grid(DEMO, levers(DEMO), 1):
        assert settings("demo", None, dict(DEMO), overrides(words(cell.change))) == configuration(DEMO, cell.change), cell.name


def test_every_paper_value_that_the_levers_are_about_is_tried() -> None:
    cells = {cell.lever: [] for cell in grid(DEMO, levers(DEMO), 1)}
    for cell in grid(DEMO, levers(DEMO), 1):
        cells[cell.lever].append(dict(cell.change))
    assert {"optim.ema_momentum": 0.996, "optim.final_ema_momentum": 1.0} in cells["ema"]
    assert {"regularizer.weight": 0.001} in cells["vicreg-weight"]  # C-JEPA, equation 21
    assert {change.get("regularizer.tensor") for change in cells["vicreg-tensor"]} >= {"pred_blocks", "pred_pairs"}
    assert all(c["regularizer.sim"] == 25 for c in cells["vicreg-tensor"] if c["regularizer.tensor"] == "pred_pairs")
    assert {"regularizer": None} in cells["regulariser"]
    assert {change.get("regularizer.kind") for change in cells["regulariser"]} >= {"sigreg", "visreg"}
    assert {"predictor.stop": 0.25} in cells["stop"]  # StoP
    assert {"target.layers": [0, 1, 2, 3]} in cells["target-layers"]  # Bootleg
    assert {change["masking.prior"] for change in cells["prior"]} == {"contrast"} and len(cells["symmetry"]) == 2
    assert {"images.target_crop": "own"} in cells["target-crop"]


def test_start_rate_and_warm_up_go_with_what_they_belong_to() -> None:
    base = {**DEMO, "optim": {"steps": 400, "lr": 2e-3, "start_lr": 1e-3}}
    cells = grid(base, levers(base), 1)
    rates = [configuration(base, cell.change).optim for cell in cells if cell.lever == "lr-batch"]
    assert len(rates) == 8 and all(o.start_lr == pytest.approx(o.lr / 2) for o in rates)
    assert {o.batch_size for o in rates} == {32, 64, 128} and {o.lr for o in rates} == {6e-4, 2e-3, 6e-3}
    assert 40 in [configuration(base, cell.change).optim.warmup_steps for cell in cells if cell.lever == "warmup"]


def test_seeds_are_runs_of_the_same_cells_one_after_the_other() -> None:
    once, thrice = grid(DEMO, levers(DEMO), 1), grid({**DEMO, "seed": 4}, levers(DEMO), 3)
    assert [cell.called for cell in thrice] == 3 * [cell.called for cell in once]
    assert [cell.seed for cell in thrice] == [seed for seed in (4, 5, 6) for _ in once]


# ---- rows


def test_signs_at_quarters_are_medians_of_the_rows_logged_by_then() -> None:
    rows = [
        {"step": step, "effective_rank": float(step), "position_share": 0.1, "own_cosine": 0.75, "other_cosine": 0.5}
        for step in range(10, 101, 10)
    ]
    rows[9]["target_std"] = float("nan")
    found = quarters(rows, 100)
    assert found["effective_rank"] == [15.0, 30.0, 50.0, 80.0]  # of rows 10-20, 10-50, 30-70, 60-100
    assert found["own_less_other_cosine"] == [0.25] * 4 and found["target_std"] == [None] * 4
    assert quarters(rows, 160)["effective_rank"] == [25.0, 60.0, None, None]  # it did not get so far
    assert quarters([], 100)["effective_rank"] == [None] * 4


def test_time_is_that_of_all_lives_of_a_run() -> None:
    assert seconds([{"seconds": s} for s in (10.0, 20.0, 5.0, 15.0, 3.0)]) == 38.0
    assert seconds([]) == 0.0 and seconds([{"seconds": 7.0}]) == 7.0


def test_looks_begin_with_the_untrained_encoder() -> None:
    rows = [{"step": 10, "probe/knn_at_start": 0.1}, {"step": 20, "probe/knn": 0.2}, {"step": 30}]
    assert probe_points(rows, "probe/knn") == [(0, 0.1), (20, 0.2)] and probe_points(rows, "probe/rankme") == []


def row(cell: str, lever: str, seed: int, knn: float | None, **given: Any) -> dict[str, Any]:
    found = {} if knn is None else {"target encoder": [knn, knn - 0.02, knn + 0.03], "untrained encoder": [0.3, 0.28, 0.32]}
    ranks = {"effective_rank": [4.0, 6.0, 8.0, 2.0], "position_share": [0.5, 0.5, 0.5, 0.25]}
    base: dict[str, Any] = {
        "run": f"{cell}-seed{seed}", "cell": cell, "lever": lever, "seed": seed, "status": "finished", "said": "",
        "change": {"loss": cell} if lever != BASE else {}, "minutes": 2.0 + seed, "start": {"effective_rank": 4.0},
        "quarters": ranks, "alarms": [], "looks": {"probe/knn": [], "probe/rankme": []}, "judged": "target encoder",
        "knn": found, "linear": found, "rankme": {name: [12.0] for name in found},
    }  # fmt: skip
    return {**base, **given}


def test_the_table_has_the_base_on_top_then_each_lever_best_first_with_medians_over_seeds() -> None:
    alarm = [{"step": 70, "words": "dimensional collapse: features lose directions"}]
    rows = [
        *(row("bad", "loss", seed, knn) for seed, knn in enumerate((0.4, 0.1, 0.2))),
        *(row("good", "loss", seed, knn, alarms=alarm if seed else []) for seed, knn in enumerate((0.5, 0.7, 0.6))),
        row("lost", "loss", 0, None, status="failed", said="x|y"),
        row("cut", "loss", 0, None, status="pruned", looks={"probe/knn": [(10, 0.2), (20, 0.25)], "probe/rankme": []}),
        row("base", BASE, 0, 0.45),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in study_table(rows).splitlines()[2:]]
    assert [line[1] for line in lines] == ["base", "untrained encoder", "loss=good", "loss=bad", "loss=lost", "loss=cut"]
    assert lines[1][2] == "30.0 [28.0–32.0]"
    assert lines[2][2] == "60.0 [58.0–63.0] (50.0–70.0)" and lines[2][5] == "1.00 / 1.50 / 2.00 / 0.50"
    assert lines[2][6:] == ["0.25", "dimensional at 70", "3.0"]
    assert lines[4][7] == "failed x/y" and lines[5][2] == "25.0 at step 20" and lines[5][7] == "pruned"


# ---- running


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_study_that_is_stopped_goes_on_and_leaves_finished_cells_alone(
    tmp_path: Path, stand_ins: Callable[..., StandIns], caplog: pytest.LogCaptureFixture
) -> None:
    def knn(arguments: Sequence[str]) -> float:
        return 0.3 + 0.01 * len(arguments[-2])

    asked: dict[str, Any] = {"levers": ["loss"], "processes": 1, "set": [f"optim.steps={STEPS}"]}
    stand_ins(knn)
    straight = study("small-data", out=tmp_path / "straight", **asked)
    assert [r["cell"] for r in straight] == ["base", "loss-cosine", "loss-l1", "loss-l2"]

    stand_ins(knn, stop_at=3)  # base is pretrained and evaluated; the next one is under way
    out = tmp_path / "a study"
    with caplog.at_level("INFO", "jepakit"):
        assert [r["cell"] for r in study("small-data", out=out, **asked)] == ["base"]
    assert f"jepakit study small-data '--out={out}'" in caplog.text and "--levers=loss" in caplog.text
    begun = Run(out / "cells" / "loss-l2-seed0")
    assert 0 < begun.metrics()[-1]["step"] < STEPS and not begun.finished
    before = snapshot(out / "cells" / "base-seed0")

    launch = stand_ins(knn)
    rows = study("small-data", out=out, **asked)
    assert launch.started[0][:3] == ["pretrain", "--resume", str(begun.path)]
    assert not any("base-seed0" in word for arguments in launch.started for word in arguments)
    assert snapshot(out / "cells" / "base-seed0") == before
    assert [{**r, "looks": 0} for r in rows] == [{**r, "looks": 0} for r in straight]

    launch = stand_ins(knn)
    assert study("small-data", out=out, **asked) == rows and not launch.started
    assert json.loads((out / "table.json").read_text()) == rows and (out / "curves.png").stat().st_size > 1000


def test_a_cell_that_fails_is_a_row_with_its_sentence_and_the_study_goes_on(
    tmp_path: Path, stand_ins: Callable[..., StandIns]
) -> None:
    stand_ins(fails="masking.draws=2")
    rows = {r["cell"]: r for r in study("small-data", out=tmp_path / "out", levers=["draws"], processes=2)}
    assert rows["draws-2"]["status"] == "failed" and rows["draws-2"]["said"] == "masking.draws=2 is out of luck"
    assert rows["draws-4"]["status"] == rows["base"]["status"] == "finished"
    assert "masking.draws=2 is out of luck" in (tmp_path / "out" / "table.md").read_text()


def test_each_run_has_its_share_of_the_cores_unless_the_base_says_otherwise(
    tmp_path: Path, stand_ins: Callable[..., StandIns], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepakit.study.cores", lambda: 8)
    for given, expected in (([], "run.threads=4"), (["run.threads=3"], "run.threads=3")):
        launch = stand_ins()
        study("small-data", out=tmp_path / f"{len(given)}", levers=["target-crop"], processes=2, set=given)
        assert [word for word in launch.started[0] if word.startswith("run.threads")] == [expected]
        assert "run.loader_threads=1" in launch.started[0] and launch.threads == int(expected[-1])


def test_there_are_looks_for_the_pruner_and_the_curves(tmp_path: Path, stand_ins: Callable[..., StandIns]) -> None:
    for steps, epochs in ((316, 1), (79 * 40, 5)):  # 79 steps a pass: a look at each, or eight in all
        launch = stand_ins()
        study("small-data", out=tmp_path / f"{steps}", levers=["target-crop"], processes=2, set=[f"optim.steps={steps}"])
        assert f"run.probe_every_epochs={epochs}" in launch.started[0]


def test_a_cell_waits_for_a_process_that_outlived_its_study(tmp_path: Path, stand_ins: Callable[..., StandIns]) -> None:
    stand_ins()
    runner = jepakit.study.Runner(tmp_path, {"threads": 1}, ())
    cell = Cell("loss", {"loss": "l1"}, "loss-l1", 0)
    runner.path(cell).mkdir(parents=True)
    job = runner.job(cell)
    with locked(runner.path(cell)):
        for _ in range(3):
            next(job)
        assert not runner.launch.started  # type: ignore[attr-defined]
    next(job)
    assert len(runner.launch.started) == 1  # type: ignore[attr-defined]
    job.close()
    runner.stopping = True
    with locked(runner.path(cell)):
        assert list(runner.job(cell)) == []  # nobody waits for ever


def test_never_more_jobs_than_asked_for_and_each_is_taken_when_there_is_room() -> None:
    live, most, taken = 0, 0, []

    def job(length: int) -> Iterator[None]:
        nonlocal live, most
        live += 1
        most = max(most, live)
        for _ in range(length):
            yield
        live -= 1

    def jobs() -> Iterator[Iterator[None]]:
        for length in (5, 0, 3, 1, 4):
            taken.append(live)
            yield job(length)

    run_jobs(jobs(), 2, lambda: False)  # type: ignore[arg-type]
    assert most == 2 and live == 0 and len(taken) == 5 and max(taken) < 2


# ---- the search


def trials(out: Path) -> list[Any]:
    optuna = pytest.importorskip("optuna")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "search.log")))
    return [t for t in optuna.load_study(study_name="search", storage=storage).trials if "grid" not in t.user_attrs]


def test_a_search_that_is_stopped_goes_on_with_the_trial_that_was_running_and_proposes_the_same(
    tmp_path: Path, stand_ins: Callable[..., StandIns]
) -> None:
    asked: dict[str, Any] = {"levers": [], "trials": 5, "processes": 1}
    out, straight = tmp_path / "stopped", tmp_path / "straight"
    stand_ins()
    study("small-data", out=straight, **asked)
    stand_ins(stop_at=3)
    study("small-data", out=out, **asked)
    states = [t.state.name for t in trials(out)]
    assert states == ["COMPLETE", "RUNNING"]
    with (out / "search.log").open("a") as journal:
        journal.write('{"op_code": 4, "worker')  # a kill cut a line short
    launch = stand_ins()
    rows = study("small-data", out=out, **asked)
    assert launch.started[0][:2] == ["pretrain", "--resume"] and "trial-001" in launch.started[0][2]
    assert [t.state.is_finished() for t in trials(out)] == [True] * 5
    assert [t.params for t in trials(out)] == [t.params for t in trials(straight)]
    assert len({json.dumps(t.params, sort_keys=True) for t in trials(out)}) == 5
    assert [r["lever"] for r in rows] == ["search"] * 5
    launch = stand_ins()
    study("small-data", out=out, **asked)
    assert not launch.started and len(trials(out)) == 5


def test_the_worse_half_is_pruned_at_a_look_and_marked_with_its_last_knn(
    tmp_path: Path, stand_ins: Callable[..., StandIns]
) -> None:
    values = iter((0.8, 0.2, 0.9))
    numbers: dict[str, float] = {}

    def knn(arguments: Sequence[str]) -> float:
        return numbers.setdefault(arguments[4], next(values)) if arguments[0] == "pretrain" else 0.0

    launch = stand_ins(knn, sleep=0.03)
    rows = study("small-data", out=tmp_path / "out", levers=[], trials=3, processes=1)
    assert [r["status"] for r in rows] == ["finished", "pruned", "finished"]
    cut = rows[1]
    assert 10 <= cut["steps"] < STEPS and cut["looks"]["probe/knn"][-1][1] == 0.2 and not cut["knn"]
    assert "20.0 at step" in (tmp_path / "out" / "table.md").read_text()
    assert [t.state.name for t in trials(tmp_path / "out")] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert not any(arguments[0] == "evaluate" and "trial-001" in arguments[1] for arguments in launch.started)


def test_the_search_knows_what_the_grid_found_and_does_not_count_it(tmp_path: Path, stand_ins: Callable[..., StandIns]) -> None:
    optuna = pytest.importorskip("optuna")
    stand_ins(lambda arguments: 0.7 if "loss=l1" in arguments else 0.4, fails="masking.draws=2")
    out = tmp_path / "out"
    study("small-data", out=out, levers=["loss", "draws"], trials=2, processes=1)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "search.log")))
    told = {t.user_attrs["grid"]: t for t in optuna.load_study(study_name="search", storage=storage).trials if t.user_attrs}
    assert set(told) == {"base-seed0", "loss-l1-seed0", "loss-l2-seed0", "loss-cosine-seed0", "draws-4-seed0"}  # one failed
    assert told["loss-l1-seed0"].params == {"loss": "loss=l1", "draws": "base"} and told["loss-l1-seed0"].value == 0.7
    assert len(trials(out)) == 2


def test_levers_of_vicreg_are_left_out_of_trials_without_it(tmp_path: Path, stand_ins: Callable[..., StandIns]) -> None:
    stand_ins()
    study(
        "small-data", out=tmp_path / "out", levers=["regulariser", "vicreg-weight"], trials=12, processes=4, set=["method=ijepa"]
    )
    seen = set()
    for trial in trials(tmp_path / "out"):
        with_vicreg = "kind=vicreg" in trial.params["regulariser"]
        assert ("vicreg-weight" in trial.params) == with_vicreg
        seen.add(with_vicreg)
    assert False in seen


# ---- mistakes


def test_a_folder_belongs_to_one_study_with_one_base(tmp_path: Path, stand_ins: Callable[..., StandIns]) -> None:
    stand_ins()
    out = tmp_path / "out"
    study("small-data", out=out, levers=["target-crop"], set=["optim.steps=40", "optim.lr=1e-3"])
    assert read_yaml(out / "study.yaml")["base"] == {"optim": {"steps": 40, "lr": "1e-3"}, "recipe": "demo", "data": "emoji"}
    study("small-data", "emoji", out, levers=[], set=["optim.lr=1e-3", "optim.steps=40"])  # the same in other words
    with pytest.raises(UserError, match=r"base .*40.*give another --out"):
        study("small-data", out=out, set=["optim.steps=41"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        study("small-data", out=tmp_path / "thesis")
    with locked(out), pytest.raises(UserError, match="another process"):
        study("small-data", out=out, levers=[], set=["optim.steps=40", "optim.lr=1e-3"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal-data"], "'small-data'"),
        (["small-data", "--levers", "emma"], "'ema'"),
        (["small-data", "optim.stepps=3"], "'optim.steps'"),
        (["small-data", "--data", "no/such/place"], "no such folder"),
        (["small-data", "recipe=demmo"], "'demo'"),
    ],
)
def test_mistakes_end_in_a_sentence_before_anything_is_written(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["study", *arguments, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_search_without_optuna_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"jepakit\[study\]"):
        study("small-data", out=tmp_path / "out", trials=1)


def test_names_of_folders_tell_values_apart() -> None:
    assert slug("a", {"x": [0.1, 0.2]}) != slug("a", {"x": [0.1, 0.25]}) and slug("a", {"x": None}) == "a-none"


# ---- the real thing


def test_a_small_study_of_real_runs(tmp_path: Path) -> None:
    rows = study("small-data", out=tmp_path / "out", levers=["target-crop"], processes=1, scale="smoke")
    assert [r["cell"] for r in rows] == ["base", "target-crop-own"]
    for r, crop in zip(rows, ("same", "own"), strict=True):
        assert r["status"] == "finished" and r["steps"] == r["planned_steps"] == 6 and r["minutes"] > 0
        assert r["settings"]["images"]["target_crop"] == crop and r["settings"]["optim"]["batch_size"] == 32
        value, low, high = r["knn"]["target encoder"]
        assert 0 <= low <= value <= high <= 1 and {"encoder", "untrained encoder"} <= set(r["knn"]) & set(r["linear"])
        assert all(np.isfinite(r["quarters"][sign]).all() for sign in r["quarters"]) and r["rankme"]["target encoder"][0] > 1
        assert len(r["looks"]["probe/knn"]) >= 2
    assert (tmp_path / "out" / "cells" / "base-seed0" / "checkpoints" / step_name(6)).is_dir()
