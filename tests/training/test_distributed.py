"""A run of several processes is that of one: the same batches, gradients, weights and metrics, whatever is regularised how."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jepakit.artifacts.run import Run
from jepakit.model.method import METHODS
from launch import made_images, ran, run_case

RUNS = {
    **{method: [f"method={method}"] for method in METHODS},
    "accumulated": ["method=ec_c_jepa", "optim.accumulate=3"],
    "batch norm of targets": ["method=ijepa", "target.norm=batch", "masking.draws=2"],
    "SIGReg": ["method=c_jepa", "regularizer.kind=sigreg", "regularizer.weight=0.05"],
    "VISReg": ["method=c_jepa", "regularizer.kind=visreg", "regularizer.weight=0.05"],
    "StoP": ["method=ijepa", "predictor.stop=0.25"],
    "trimmed masks": ["method=ijepa", "masking.compat=released"],
    "prior of masks": ["method=ijepa", "masking.prior=contrast"],
    "own crops": ["method=c_jepa", "images.target_crop=own"],
    "pixels first": ["method=c_jepa", "target.pixels_first=8", "run.keep_every_steps=7"],
    "all kept of pixels first": ["method=c_jepa", "target.pixels_first=8", "target.kept=[predictor,moments,schedule]"],
    "clipped": ["method=c_jepa", "optim.clip_grad=0.1", "target.layers=[0,1]"],
    "learned positions": ["method=ec_c_jepa", "encoder.learned_positions=true"],
    "recomputed": ["method=ec_ijepa", "run.recompute=true"],
    "compiled": ["method=ec_ijepa", "run.compile=true"],
    "fixed rows": ["method=ec_ijepa", "run.compile=true", "run.fixed_rows=true"],
}
PROJECTED = ["method=c_jepa", "regularizer.projector=[48,48]", "regularizer.sim=25", "regularizer.weight=0.1"]
GRADIENTS = {
    **{reading: [*PROJECTED, f"regularizer.tensor={reading}"] for reading in ("pred_blocks", "pred_pairs")},
    "context_pooled": ["method=c_jepa", "regularizer.tensor=context_pooled", "regularizer.weight=1"],
    "sigreg": ["method=c_jepa", "regularizer.kind=sigreg", "regularizer.weight=1"],
    "visreg": ["method=c_jepa", "regularizer.kind=visreg", "regularizer.weight=1"],
}
SHARDED = ("ijepa", "ec_c_jepa", "accumulated", "batch norm of targets", "pixels first", "all kept of pixels first", "clipped")
SHARDED += ("learned positions", "recomputed", "compiled", "fixed rows")
IN_CI = (*METHODS, "accumulated", "batch norm of targets", "SIGReg", "pixels first")  # the others by `make long`
SHARDED_IN_CI = ("ec_c_jepa", "pixels first")
MADE = [
    *(pytest.param(name, "two", marks=() if name in IN_CI else pytest.mark.long) for name in RUNS),
    *(pytest.param(name, "parts", marks=() if name in SHARDED_IN_CI else pytest.mark.long) for name in SHARDED),
]
ALWAYS = {("pixels first", "two"), ("pixels first", "parts")}  # their snapshots are looked at
TIMES = {"images_per_second", "seconds"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with the runs and gradients of one process, of two, and of two that share the weights, as far as asked for."""
    folder = tmp_path_factory.mktemp("ranks")
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {(each["name"], each["tag"]) for each in asked if {"name", "tag"} <= each.keys()} | ALWAYS
    data = str(made_images(folder))

    def cases(tag: str, *more: str, gradients: bool = True) -> list[dict[str, Any]]:
        names = [name for name in RUNS if any((name, t) in wanted for t in (("two", "parts") if tag == "one" else (tag,)))]
        runs = [{"out": str(folder / f"{name}-{tag}"), "data": data, "set": [*RUNS[name], *more]} for name in names]
        files = [{"gradients": str(folder / f"{n}-{tag}.safetensors"), "data": data, "set": w} for n, w in GRADIENTS.items()]
        return [*runs, *(files if gradients else [])]

    for case in cases("one"):
        run_case(case)
    shared = cases("parts", "run.sharding=full", gradients=False)
    stopped = {"out": str(folder / "stopped"), "data": data, "set": RUNS["pixels first"], "stop_at": 8}
    blocked = {"out": str(folder / "blocked"), "data": data, "set": ["optim.steps=2"], "blocked": True}
    ran(2, [*cases("two"), *shared, stopped, blocked], folder)
    return folder


@pytest.mark.parametrize(("name", "tag"), MADE)
def test_weights_and_metrics_are_those_of_one_process(both: Path, name: str, tag: str) -> None:
    one, other = Run(both / f"{name}-one"), Run(both / f"{name}-{tag}")
    for mine, theirs in zip(one.metrics(), other.metrics(), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - TIMES:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-5, abs=1e-7, nan_ok=True), key
    weights, again = (load_file(run.checkpoints / "step-00000020" / "model.safetensors") for run in (one, other))
    assert weights.keys() == again.keys()
    for key, value in weights.items():  # biases that cancel in theory are 1e-6 and nothing but rounding
        torch.testing.assert_close(again[key], value, rtol=0, atol=2e-6 * float(value.abs().max()) + 5e-8, msg=key)


@pytest.mark.parametrize("tag", ["two", "parts"])
def test_snapshots_are_of_whole_weights(both: Path, tag: str) -> None:
    for step in ("step-00000007", "step-00000014"):  # before and after the targets change
        one, other = (load_file(both / f"pixels first-{t}" / "snapshots" / step / "encoder.safetensors") for t in ("one", tag))
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=2e-6 * float(value.abs().max()) + 5e-8, msg=key)


def test_a_signal_while_targets_change_stops_all_with_a_checkpoint(both: Path) -> None:
    """All know of it one step later, which is the first one of the other targets."""
    run = Run(both / "stopped")
    assert "stopped at step 9 of 20" in (run.path / "run.log").read_text() and run.state["step"] == 9


def test_a_model_that_cannot_be_written_ends_all_with_one_sentence(both: Path) -> None:
    one, other = ((both / f"blocked-{rank}.txt").read_text() for rank in (0, 1))
    assert one == other and "blocked/model cannot be written" in one and "make room, then: " in one


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_what_is_regularised_are_those_of_one_process(both: Path, name: str) -> None:
    one, two = (load_file(both / f"{name}-{tag}.safetensors") for tag in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 20
    norm = torch.stack([g.norm() for g in one.values()]).norm()
    for key, gradient in one.items():
        assert float((two[key] - gradient).norm() / norm) < 1e-9, key


@pytest.mark.parametrize("numbers", [[(2, "full")], pytest.param([(2, "null"), (4, "full")], marks=pytest.mark.long)])
def test_a_run_goes_on_in_other_numbers_of_processes(tmp_path: Path, numbers: list[tuple[int, str]]) -> None:
    """One process, several, with parts of the weights, one: the batches of the unbroken run, and its loss."""
    data, words = str(made_images(tmp_path)), ["method=c_jepa", "optim.steps=40"]
    run_case({"out": str(tmp_path / "whole"), "data": data, "set": words})
    run_case({"out": str(tmp_path / "broken"), "data": data, "set": words, "stop_at": 10})
    again = {"resume": str(tmp_path / "broken")}
    for stop_at, (processes, sharding) in zip((20, 30), numbers, strict=False):
        ran(processes, [{**again, "set": [f"run.sharding={sharding}"], "stop_at": stop_at}], tmp_path)
    run_case({**again, "set": ["run.sharding=null"]})
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    assert broken.finished and (broken.path / "run.log").read_text().count("resumed at step") == 1 + len(numbers)
    for mine, theirs in zip(whole.metrics(), broken.metrics(), strict=True):
        assert (mine["step"], mine["batch_crc32"]) == (theirs["step"], theirs["batch_crc32"])
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
