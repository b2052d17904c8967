"""Many devices: bytes that they send each other, what is waited for, memory with and without sharding, and failures."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import jepakit
from jepakit.artifacts.load import build_jepa
from jepakit.cli import main
from jepakit.config.config import Config, overrides
from jepakit.config.recipes import RECIPES
from jepakit.config.recipes import settings as recipe_settings
from jepakit.core.errors import UserError
from jepakit.core.torch_private import fake_tensors
from jepakit.model.encoder import Encoder
from jepakit.model.teacher import Teacher
from jepakit.planning import failures, network
from jepakit.planning.flops import encoder_flops
from jepakit.planning.hardware import Hardware, Links, known_device, links_of
from jepakit.planning.memory import _Live, _without_cpu_rows, step_memory
from jepakit.planning.plan import _parameters, _work, run_hours
from jepakit.planning.results import Communication, Plan, Traffic
from jepakit.planning.table import plan_table

A100 = Hardware("", torch.bfloat16, cuda=True, flash=True, memory=80 * 10**9, tflops=312, fp32=19.5)
SMALL = ["encoder.width=48", "encoder.depth=2", "encoder.heads=2", "predictor.width=24", "predictor.depth=1", "optim.steps=10"]


def config_of(*words: str) -> Config:
    given = overrides([*SMALL, "optim.batch_size=64", *words])
    return recipe_settings("small", given.pop("method", "ijepa"), given)


def place(devices: int, nodes: int = 1, *, sharded: bool = False) -> Hardware:
    return replace(A100, devices=devices, links=Links(nodes, 100.0, 400.0), sharded=sharded)


def passing(where: Hardware, *words: str) -> Traffic:
    config = config_of(*words)
    return network.traffic(config, where, _parameters(config), _work(config)[0])


def trained_bytes(config: Config) -> int:
    return sum(p.nbytes for _, p in build_jepa(config).trained_parameters())


def ring_all_reduce(size: int, n: int) -> tuple[list[int], list[float]]:
    """A ring all-reduce, played: bytes that each of n devices sends, and the sums that all end with."""
    held = [[float(10**d) for _ in range(n)] for d in range(n)]  # one number for each of n chunks
    sends = [0] * n
    for step in range(2 * (n - 1)):
        chunks = [((d - step) % n if step < n - 1 else (d + 1 - (step - n + 1)) % n) for d in range(n)]
        moved = [held[d][chunks[d]] for d in range(n)]
        for d in range(n):
            to, chunk = (d + 1) % n, chunks[d]
            held[to][chunk] = held[to][chunk] + moved[d] if step < n - 1 else moved[d]
            sends[d] += size // n
    assert all(row == held[0] for row in held)
    return sends, held[0]


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_gradients_take_the_bytes_of_a_ring_that_is_played(devices: int) -> None:
    where = place(devices)
    config = config_of("target.norm=layer")
    found = passing(where, "target.norm=layer")
    size = trained_bytes(config)
    sends, sums = ring_all_reduce(size, devices)
    assert set(sums) == {float(sum(10**d for d in range(devices)))}
    assert found == Traffic(2 * size, 0, 0)
    assert network.sent(found.total, where) == (pytest.approx(sends[0], abs=devices * 2), 0)


def test_over_nodes_a_sum_goes_within_them_and_then_among_them() -> None:
    where, size = place(8, nodes=2), 10**9  # a sum of 1e9 bytes passes 2e9
    assert network.sent(2 * size, where) == (2 * size * 3 // 4, 2 * size // 2)
    assert network.seconds_to_pass(2 * size, where) == pytest.approx((1.5e9 / 100e9 + 1e9 / 50e9) / 0.8)
    alone_in_nodes = place(4, nodes=4)
    assert network.sent(2 * size, alone_in_nodes)[0] == 0
    assert network.seconds_to_pass(2 * size, alone_in_nodes) == pytest.approx(1.5e9 / 50e9 / 0.8)


def test_sharded_weights_are_gathered_twice_and_the_average_once_for_each_micro_batch() -> None:
    words = ("target.norm=layer", "optim.accumulate=2")
    config = config_of(*words)
    trained, target = trained_bytes(config), sum(p.nbytes for p in build_jepa(config).target_encoder.parameters())
    assert passing(place(4, sharded=True), *words) == Traffic(2 * trained, 2 * (2 * trained + target), 0)
    assert passing(place(4), *words) == Traffic(2 * trained, 0, 0), "gradients are summed once an update"
    pixels = passing(place(4, sharded=True), "method=mae_pixels")
    assert pixels.parameters == 2 * pixels.gradients, "nobody asks the average"


VISREG = ["method=c_jepa", "regularizer.kind=visreg", "target.norm=layer"]


@pytest.mark.parametrize(
    ("words", "rows", "width"),
    [
        (["regularizer.tensor=pred_blocks", "regularizer.projector=[16]"], 4, 16),
        (["regularizer.tensor=context_pooled", "regularizer.projector=[]"], 1, 48),
        (["regularizer.tensor=context_pooled", "regularizer.projector=[]", "masking.draws=3"], 3, 48),
    ],
)
def test_visreg_gathers_pooled_rows_of_all_images_and_no_gradients(words: list[str], rows: int, width: int) -> None:
    found = passing(place(4), *VISREG, *words)
    assert found.statistics == 64 * rows * width * 4
    parts = passing(place(4), *VISREG, "optim.accumulate=4", *words)
    assert parts.statistics == found.statistics


def test_sums_are_of_a_features_square_at_most_and_do_not_grow_with_the_batch() -> None:
    batch_norm = passing(place(4), "target.norm=batch")
    assert batch_norm.statistics == 2 * 2 * 48 * 4  # means and mean squares of 48 features, summed and given to all
    sigreg = ["method=c_jepa", "regularizer.kind=sigreg", "target.norm=layer"]
    one, four = passing(place(4), *sigreg), passing(place(4), *sigreg, "optim.batch_size=256")
    assert one.statistics == four.statistics == 2 * 2 * 256 * 17 * 4  # cosines and sines
    vicreg = ["method=c_jepa", "target.norm=layer", "regularizer.projector=[32,16]", "regularizer.tensor=pred_blocks"]
    one, four = passing(place(4), *vicreg), passing(place(4), *vicreg, "optim.batch_size=256")
    of_norm, of_view = 4 * 32, 16 * 16 + 7 * 16
    assert one.statistics == four.statistics == 2 * 4 * (of_norm + 4 * of_view)  # four blocks are four views
    assert passing(place(4), *vicreg, "optim.accumulate=2").statistics == 2 * one.statistics
    pooled = passing(place(4), *vicreg, "regularizer.tensor=context_pooled", "regularizer.sim=25")
    assert pooled.statistics == 2 * 4 * (3 * of_norm + of_view), "predictions and targets are projected too"


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick() -> Callable[..., Communication]:
    """A plan's time of an update, of an encoder that is soon simulated."""

    def found(*words: str, **how: Any) -> Communication:
        made = jepakit.plan("small", device="A100-80", set=[*SMALL, "run.precision=bf16", *words], **how)
        assert made.speed and made.speed.between
        assert made.speed.images_per_second == pytest.approx(made.batch / made.speed.between.step)
        return made.speed.between

    return found


def test_what_is_sent_beside_the_backward_pass_costs_nothing_and_the_rest_is_waited_for(
    quick: Callable[..., Communication],
) -> None:
    words = ["method=ijepa", "target.norm=layer"]
    free = quick(*words, devices=4, interconnect=1e9)
    assert free.waited == 0 and free.step == free.alone
    slow, slower = (quick(*words, devices=4, interconnect=rate) for rate in (1e-2, 5e-3))
    size = trained_bytes(config_of(*words))
    assert slow.seconds == pytest.approx(2 * size * 0.75 / 1e7 / 0.8)
    config = config_of(*words)
    each = _work(config)[1]
    backward = free.alone * (each.encoder_backward + each.predictor_backward) / each.total
    assert slow.waited == pytest.approx(slow.seconds - backward)
    assert slower.step - slow.step == pytest.approx(slow.seconds)
    parts = quick(*words, "optim.accumulate=4", devices=4, interconnect=1e-2)
    assert parts.waited == pytest.approx(slow.seconds - backward / 4), "only the last micro-batch's backward pass is beside it"


def test_every_device_ranks_all_rows_at_the_pace_of_fp32_where_visreg_asks_for_it(quick: Callable[..., Communication]) -> None:
    words = [*VISREG, "regularizer.tensor=context_pooled", "regularizer.projector=[64]", "regularizer.directions=32"]
    found = quick(*words, devices=4, interconnect=1e9)
    assert found.regularizer == pytest.approx(
        3 * 16 * 2 * 2 * 64 * 32 / (0.4 * 19.5e12)
    )  # 48 rows of others, forward and backward
    assert all(quick("method=c_jepa", f"regularizer.kind={kind}", devices=4).regularizer == 0 for kind in ("sigreg", "vicreg"))


def test_eight_devices_are_a_node_unless_said_otherwise() -> None:
    a100 = known_device("A100-80")
    assert links_of(a100, 16, None, None, None) == Links(2, 300.0, 1600.0)
    assert links_of(a100, 12, None, None, None).nodes == 2
    assert links_of(a100, 4, None, "pcie4", "10gbe") == Links(1, 32.0, 10.0)
    assert links_of(None, 4, 4, 50, "25") == Links(4, 50.0, 25.0)


# --- memory --------------------------------------------------------------------------------------------------------


def test_sharding_leaves_each_device_its_part_and_two_blocks_with_a_gradient() -> None:
    config = config_of("encoder.width=192", "target.norm=layer")
    one, whole, sharded = (step_memory(config, where, 8) for where in (place(1), place(4), place(4, sharded=True)))
    trained = trained_bytes(config)
    assert whole.total - one.total == whole.gradients - one.gradients and whole.gradients == trained
    for name in ("weights", "target_encoder", "moments"):
        assert getattr(whole, name) == getattr(one, name) == pytest.approx(4 * getattr(sharded, name), abs=4)
    assert whole.moments == 2 * trained
    block = sum(p.nbytes for p in build_jepa(config).encoder.blocks[0].parameters())
    assert sharded.gathered == 3 * block and sharded.activations == whole.activations
    assert sharded.total < whole.total


class _NoWeights(torch.nn.Module):
    def trained_parameters(self) -> list[Any]:
        return []


@pytest.mark.parametrize("directions", [32, 256])
def test_gathered_rows_are_held_as_often_as_visreg_needs_them(monkeypatch: pytest.MonkeyPatch, directions: int) -> None:
    words = ["regularizer.tensor=context_pooled", "regularizer.projector=[64]", f"regularizer.directions={directions}"]
    config = config_of(*VISREG, *words)
    regularizer: Any = config.regularizer
    monkeypatch.setattr("jepakit.model.regularizers.visreg.pooled", lambda context, *_, of_context: context[:, None])

    def peak(rows: int) -> int:
        with fake_tensors()[0](allow_non_fake_inputs=True):
            own: Any = torch.empty(rows, 64, requires_grad=True)
            no_weights: Any = _NoWeights()
            with _Live(no_weights) as live:
                sum(regularizer.terms(own.clone(), own, own, None, None).values()).backward()
        return int(live.at_peak[2])

    found = step_memory(config, place(4), 16, _work(config)[0]).gathered
    assert found == pytest.approx(48 * (peak(4000) - peak(2000)) / 2000, rel=0.01)  # 48 rows of others
    assert step_memory(config_of("method=c_jepa"), place(4), 16, _work(config)[0]).gathered == 0, "VICReg sums"


def test_a_run_that_only_fits_in_shards_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, "encoder.width=384", "encoder.heads=6", "encoder.depth=6", "optim.batch_size=16", "method=ijepa"]
    found = jepakit.plan("small", device="T4", devices=8, set=words)
    assert found.other and found.other.memory < found.memory.total and found.sharding == "none"
    narrow = replace(known_device("T4"), gigabytes=(found.other.memory + found.memory.total) / 2 / 0.9 / 1e9)
    monkeypatch.setattr("jepakit.planning.plan.known_device", lambda name: narrow)
    assert "run.sharding=full takes" in jepakit.plan("small", device="T4", devices=8, set=words).verdict


# --- a frozen teacher ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    words = [*SMALL, "encoder.width=96", "optim.steps=1", "optim.batch_size=8", "run.probe_images=0", "images.size=32"]
    jepakit.pretrain("emoji", out, "demo", "ec_ijepa", set=[*words, "encoder.patch_size=4"])
    return out


def test_a_teacher_is_looked_at_and_counted_as_what_it_is(teacher: Path) -> None:
    words = [*SMALL, "method=ijepa", "loss=l1"]
    plain = jepakit.plan("small", device="T4", set=words)
    found = jepakit.plan("small", device="T4", set=[*words, f"target.teacher={teacher}"])
    encoder: Encoder = jepakit.load(teacher)
    config = config_of(*words, f"target.teacher={teacher}")
    shown = Teacher(encoder, config.images, config.grid)
    with _without_cpu_rows(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shown(torch.randn(1, 3, 64, 64))
    assert found.flops.target_encoder == encoder_flops(encoder, config.grid) == counter.get_total_flops()
    assert found.parameters.teacher == sum(p.numel() for p in encoder.parameters())
    assert found.memory.teacher == sum(x.nbytes for x in encoder.state_dict().values())
    assert found.parameters.predictor > plain.parameters.predictor, "it says as many features as the teacher has"
    assert found.memory.target_encoder == plain.memory.target_encoder, "the average is kept all the same"
    assert "teacher" in plan_table(found) and plain.memory.teacher == 0
    here = jepakit.plan("small", seconds=0.2, set=[*words, f"target.teacher={teacher}", "run.device=cpu"])
    assert here.speed and here.speed.images_per_second > 0


def test_a_teacher_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match="no such path"):
        jepakit.plan("small", device="T4", set=["method=ijepa", "target.teacher=nowhere/run"])


# --- the papers' runs ----------------------------------------------------------------------------------------------


def test_the_papers_recipes_know_their_data_set() -> None:
    known = {name: made.images for name, made in RECIPES.items()}
    assert known["demo"] is known["small"] is None
    assert known.pop("ijepa_vitg16") == 14_197_122
    assert {images for name, images in known.items() if "_vit" in name} == {1_281_167}


def test_a_studys_hours_are_those_of_the_plan_without_its_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["optim.epochs=300", "masking.compat=none", *SMALL[:5], "method=ijepa"]
    found: Plan = jepakit.plan("ijepa_vitl16", device="A100-80", devices=16, set=words)
    assert found.speed and found.speed.images == 300 * (1_281_167 // 2048) * 2048
    monkeypatch.setattr("jepakit.planning.memory.peak_memory", lambda *_: pytest.fail("a step is simulated"))
    monkeypatch.setattr("jepakit.planning.memory._simulated", lambda *_: pytest.fail("a step is simulated"))
    assert run_hours("ijepa_vitl16", words, "A100-80", 16) == found.speed.hours
    with pytest.raises(UserError, match=r"optim\.steps"):
        run_hours("small", SMALL[:5], "A100-80", 16)


# --- failures ------------------------------------------------------------------------------------------------------


def test_youngs_interval_loses_least() -> None:
    write, mean = 10.0, 5e4
    best = failures.best_interval(write, mean)
    assert best == 1000.0
    assert failures.lost(write, mean, best) == pytest.approx(math.sqrt(2 * write / mean))
    tried = np.linspace(100, 5000, 491)
    assert tried[np.argmin([failures.lost(write, mean, t) for t in tried])] == pytest.approx(best, abs=10)


def test_failures_come_with_the_number_of_devices_and_saves_with_the_state() -> None:
    found = failures.checkpoints(10**10, 1024, step_seconds=0.5, save_every_steps=500)
    assert found.seconds == 10
    assert found.hours_between_failures == pytest.approx(50_677 / 1024, rel=1e-4)
    assert found.best_steps == round(math.sqrt(2 * 10 * found.hours_between_failures * 3600) / 0.5)
    assert found.lost < found.lost_as_set == pytest.approx(10 / 250 + 125 / (found.hours_between_failures * 3600))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "16", "--nodes", "3"], "--nodes 3"),
        (["--interconnect", "NVLink5"], "did you mean 'NVLink"),
        (["--network", "0"], "--network '0'"),
        (["--network", "nan"], "--network 'nan'"),
    ],
)
def test_mistakes_of_links_are_said_in_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--device", "L4", *words])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and said in told and len(told.splitlines()) == 1
