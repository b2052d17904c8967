"""What a run will cost, said before it: FLOPs as torch counts them, memory as it is measured, words that help."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import jepakit
from jepakit.artifacts.load import build_jepa
from jepakit.cli import main
from jepakit.config.choice import resolve_with_data
from jepakit.config.config import Config, overrides
from jepakit.config.recipes import settings as recipe_settings
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource, Source
from jepakit.model import attention, layout, linear
from jepakit.model.images import normalise, turned
from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.planning import flops
from jepakit.planning.flops import Flops
from jepakit.planning.hardware import DEVICES, Device, Hardware
from jepakit.planning.memory import _flash_attention, _without_cpu_rows, peak_memory, plan_memory, step_memory
from jepakit.planning.plan import _parameters, _work, plan
from jepakit.planning.table import plan_table

SHAPES: list[tuple[tuple[int, int], int, dict[str, Any]]] = [
    ((4, 5), 3, {"encoder": {"width": 24, "depth": 2, "heads": 3, "patch_size": 4}, "predictor": {"width": 12, "depth": 2}}),
    (
        (8, 8),
        1,
        {
            "encoder": {"width": 32, "depth": 3, "heads": 2, "patch_size": 2, "mlp_ratio": 48 / 11},
            "predictor": {"width": 16, "depth": 1},
        },
    ),
]
EQUAL_CONTEXT, EQUAL_TARGETS = [[0, 1, 2], [4, 9, 3]], [[[5, 6], [7, 8]], [[10, 11], [12, 13]]]
LAW = {"kind": "multi_block", "min_keep": 2, "targets": 3}
TRAINED = 5094  # emoji that no held-out identity shows
METHODS: dict[str, dict[str, Any]] = {
    "ijepa": {},
    "ec_ijepa": {"conditioning": {}},
    "ec_ijepa, encoder only": {"conditioning": {"target_encoder": False}},
    "ec_ijepa, target encoder only": {"conditioning": {"encoder": False}},
    "c_jepa": {"regularizer": {"projector": [20, 28, 8]}},
    "c_jepa, pooled": {"regularizer": {"tensor": "context_pooled", "projector": [20, 8]}},
    "c_jepa, pooled, bare": {"regularizer": {"tensor": "context_pooled", "projector": [], "sim": 0.0}},
    "c_jepa, pairs": {"regularizer": {"tensor": "pred_pairs", "projector": [20, 8]}},
    "ec_c_jepa": {"conditioning": {}, "regularizer": {"projector": [8]}},
    "mae_pixels": {"target": {"kind": "pixels"}},
}


def counted(method: Method, grid: tuple[int, int], channels: int, masks: Masks) -> tuple[Flops, float]:
    """What torch counts in a step of the real model, by part (the regulariser's apart from the rest), and in all."""
    model = JEPA(method, grid, channels)
    images = torch.randn(masks.images, channels, *(n * method.encoder.patch_size for n in grid))
    with _without_cpu_rows(), sdpa_kernel(SDPBackend.MATH):  # the counter knows no product of oneDNN's, but a CPU's spare rows
        with FlopCounterMode(display=False) as forward:
            out = model(images, masks)
        with FlopCounterMode(display=False) as backward:
            out.loss.backward()
    names = ("target_encoder", "encoder", "predictor")
    found = forward.get_flop_counts()  # patches are embedded beside the blocks' forward
    parts = [sum(sum(found.get(f"JEPA.{place}", {}).values()) for place in (name, f"{name}.patch_embed")) for name in names]
    return Flops(parts[0], parts[1], 0, parts[2], 0, 0), forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_flops_are_those_that_torch_counts_in_the_model(name: str, shape: int) -> None:
    grid, channels, sizes = SHAPES[shape]
    draws = [Masks.from_indices(EQUAL_CONTEXT, EQUAL_TARGETS)]
    for law in ({}, {"draws": 2}, {"contexts": 2, "targets": 2}):
        method = Method.model_validate({**sizes, **METHODS[name], "masking": LAW | law})
        draws.append(method.masking.sample(grid, np.arange(3), seed=len(draws)))
    for masks in draws:
        ours = flops.step(method, grid, channels, masks, padded=True)
        parts, total = counted(method, grid, channels, masks)
        assert (ours.target_encoder, ours.encoder_forward, ours.predictor_forward) == (
            parts.target_encoder,
            parts.encoder_forward,
            parts.predictor_forward,
        )
        assert ours.total == total


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**30), name=st.sampled_from([name for name in METHODS if "c_jepa" not in name]))
def test_useful_flops_of_a_batch_are_those_of_its_images_and_padding_only_adds(seed: int, name: str) -> None:
    method = Method.model_validate({**SHAPES[0][2], **METHODS[name], "masking": LAW})
    masks = method.masking.sample((4, 5), np.arange(4), seed=seed)
    whole = flops.step(method, (4, 5), 3, masks)
    alone = [flops.step(method, (4, 5), 3, masks.of_images(slice(i, i + 1))) for i in range(4)]
    assert astuple(whole) == tuple(map(sum, zip(*map(astuple, alone), strict=True)))
    assert whole.total <= flops.step(method, (4, 5), 3, masks, padded=True).total


def test_a_vit_costs_what_the_literature_says() -> None:
    # DeiT's table 1: ViT-B at 224 px takes 17.6 G multiply-adds with a class token, and has 86 M parameters with its head.
    config = recipe_settings("ijepa_vitb16", None, {"masking": {"compat": None}})
    assert _work(config)[1].target_encoder == pytest.approx(2 * 17.6e9, rel=0.02)
    parameters = _parameters(config)
    assert parameters.encoder == parameters.target_encoder == pytest.approx(86e6 - 0.77e6, rel=0.005)


def test_the_released_law_is_averaged_over_whole_batches() -> None:
    def context(batch: int) -> float:
        return _work(recipe_settings("ijepa_vitb16", None, {"optim": {"batch_size": batch}}))[0].context

    assert context(256) < 0.8 * context(2)  # it cuts all to the shortest


# --- memory ------------------------------------------------------------------------------------------------------

CPU = Hardware("", torch.float32, cuda=False, flash=False, memory=10**12)


def config_of(*words: str) -> Config:
    given = overrides(["optim.batch_size=16", "run.precision=fp32", "predictor.depth=2", *words])
    return recipe_settings("small", given.pop("method", None), given)


@pytest.mark.parametrize(
    "words",
    [
        ("method=ijepa",),
        ("method=ijepa", "images.target_crop=same", "target.norm=layer"),
        ("method=ec_ijepa", "masking.draws=2"),
        ("method=c_jepa", "target.layers=[0,1]", "regularizer.projector=[256,256]"),
        ("method=c_jepa", "regularizer.projector=[256,256]", "images.symmetry=mirror"),
        ("method=c_jepa", "masking.kind=random", "optim.accumulate=2", "images.target_crop=same", "target.norm=layer"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fullest_moment_is_that_of_torchs_allocator(words: tuple[str, ...], dtype: torch.dtype) -> None:
    config = config_of("encoder.depth=2", *words)
    parts = config.optim.accumulate
    jepa = build_jepa(config)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        views = [torch.zeros(16, 3, 64, 64, dtype=torch.uint8) for _ in range(config.images.views)]
        shown = [turned(view, torch.zeros(16, 1, dtype=torch.bool) if config.images.symmetry else None) for view in views]
        for part in zip(*(view.chunk(parts) for view in shown), strict=True):
            masks = config.masking.sample(config.grid, np.arange(16 // parts), seed=config.seed)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                images, *of_target = (normalise(view, config.images) for view in part)
                out = jepa(images, masks, *of_target)
            (out.loss / parts).backward()
    kineto: Any = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in kineto.events() if e.name() == "[memory]")
    measured = np.cumsum([size for _, size in changes]).max()
    found = peak_memory(config, replace(CPU, dtype=dtype), 16 // parts)
    assert found.total == pytest.approx(measured, rel=0.02)
    assert found.activations > found.total / 2


STEPS = """
import json, sys
import numpy as np, torch
from jepakit.config.config import overrides
from jepakit.data.loader import Batch
from jepakit.data.sources import ArraySource
from jepakit.planning.hardware import Hardware
from jepakit.planning.memory import step_memory
from jepakit.config.recipes import settings
from jepakit.training.step import Training

def steps(count, *words):
    given = overrides([f"optim.batch_size={count}", "optim.steps=1", "optim.warmup_steps=0", "run.precision=fp32", *words])
    config = settings("small", None, given)
    shape = (count, *config.images.height_width, 3)
    source = ArraySource("black", np.broadcast_to(np.uint8(0), shape), None)
    training, parts = Training.prepare(config, source), config.optim.accumulate
    for step in range(3):
        images = torch.zeros(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
        masks = tuple(config.masking.sample(config.grid, np.arange(count // parts), seed=step) for _ in range(parts))
        training.train_step(Batch(step, 0, (images,), (None,), masks), training.schedule.at(0), check=False)
    return config

def most():  # ru_maxrss would begin with the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

count, words = int(sys.argv[1]), sys.argv[2:]
steps(4, *words, "encoder.size=tiny", "encoder.width=24", "encoder.depth=1", "images.size=64")  # the kernels are loaded
before = most()
config = steps(count, *words)
measured = most() - before
memory = step_memory(config, Hardware("", torch.float32, False, False, 10**12), count // config.optim.accumulate)
print(json.dumps([measured, memory.total - memory.process - memory.loader]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is measured where it is glibc's")
def test_memory_is_what_a_process_comes_to_use() -> None:
    narrow = ["encoder.width=48", "predictor.width=48"]
    runs = [
        ["80", "method=ijepa", "images.size=96", "encoder.depth=6", *narrow],
        ["280", "method=ec_ijepa", "encoder.depth=5", "optim.accumulate=2", *narrow],
    ]
    no_kernels = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}  # they count as the process's, which is left out here
    processes = [
        subprocess.Popen([sys.executable, "-c", STEPS, *words], stdout=subprocess.PIPE, env=no_kernels) for words in runs
    ]
    for process in processes:
        measured, foreseen = json.loads(process.communicate()[0])
        assert measured > 4e8  # beside which nothing else counts
        assert foreseen == pytest.approx(measured, rel=0.15)


def test_the_flash_kernel_keeps_no_weights_of_attention() -> None:
    def a_token(size: int, flash: bool) -> float:
        config = config_of("encoder.depth=2", "predictor.depth=1", "masking.kind=block", f"images.size={size}")
        place = replace(CPU, dtype=torch.bfloat16, flash=flash)
        few, many = (peak_memory(config, place, n).activations for n in (8, 16))
        return (many - few) / 8 / (size // 8) ** 2

    few, many = (a_token(size, flash=True) for size in (64, 192))
    assert many == pytest.approx(few, rel=0.05)
    assert a_token(192, flash=False) - many > 5 * (a_token(64, flash=False) - few)  # each meets nine times as many


def test_a_plan_for_cuda_has_no_rows_or_products_that_only_a_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    config, place = config_of("encoder.depth=2", "predictor.depth=1"), replace(CPU, cuda=True, dtype=torch.bfloat16, flash=True)
    found, on_cpu = peak_memory(config, place, 9), peak_memory(config, replace(CPU, dtype=torch.bfloat16), 9)
    monkeypatch.setattr(layout, "default_row_multiple", lambda rows: 1)
    monkeypatch.setattr(linear, "BY_ONEDNN", frozenset())
    assert peak_memory(config, place, 9) == found != on_cpu


def test_a_plan_leaves_the_attention_of_real_tensors_as_it_is() -> None:
    before = attention._has_varlen, attention._varlen
    with pytest.raises(RuntimeError), _flash_attention():
        assert attention._has_varlen(torch.zeros(1, 3, 8, dtype=torch.bfloat16)) is False
        raise RuntimeError
    assert (attention._has_varlen, attention._varlen) == before


def test_parts_need_less_memory_and_the_largest_batch_fits_just() -> None:
    config, place = config_of("encoder.depth=2", "optim.batch_size=64"), replace(CPU, cuda=True, memory=10**9)
    whole, half = (step_memory(config_of("encoder.depth=2", f"optim.accumulate={n}"), place, 64 // n) for n in (1, 2))
    assert half.activations < 0.6 * whole.activations
    found = plan_memory(config, place, 64, _work(config)[0])
    assert found.total == whole.total == pytest.approx(found.fixed + 64 * found.per_image, rel=0.001)
    assert step_memory(config, place, found.largest).total <= found.usable < step_memory(config, place, found.largest + 3).total


# --- the plan ----------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, and a small device in the table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jepakit.planning.hardware.DEVICES", (*DEVICES, Device("Pocket", 10.0, 1.0, 1.0)))
    return tmp_path


def test_a_plan_says_what_a_run_takes_and_writes_nothing(nowhere: Path) -> None:
    one = jepakit.plan("demo", device="pocket", encoder={"depth": 2}, optim={"epochs": 4})
    two = jepakit.plan("demo", device="Pocket", devices=2, encoder={"depth": 2}, optim={"epochs": 8})
    assert one.speed and two.speed and one.speed.images and one.speed.hours
    regularizer = one.flops.regularizer  # which computes in fp32
    rate = 1 / ((one.flops.total - regularizer) / 4e12 + regularizer / 0.4e12)
    assert one.speed.images_per_second == pytest.approx(rate)
    assert one.speed.images == 4 * (TRAINED // 64) * 64
    assert one.speed.hours == pytest.approx(one.speed.images / rate / 3600)
    assert two.speed.images == 2 * one.speed.images and two.speed.between and not one.speed.between
    assert two.speed.between.alone == pytest.approx(32 / rate)
    assert two.speed.hours == pytest.approx(two.speed.images / (64 / two.speed.between.step) / 3600)
    assert (one.at_a_time, two.at_a_time) == (64, 32)
    assert two.memory.activations < 0.6 * one.memory.activations
    jepa = build_jepa(recipe_settings("demo", None, {"encoder": {"depth": 2}}))
    assert one.parameters.predictor == sum(p.numel() for p in jepa.predictor.parameters())
    assert one.memory.moments == 8 * sum(p.numel() for _, p in jepa.trained_parameters())
    assert not list(nowhere.iterdir())


def test_without_a_recipe_a_plan_is_of_what_pretrain_would_choose_on_that_device(nowhere: Path) -> None:
    words = ["optim.lr=3e-4", "method=ijepa"]
    here, _, choice = resolve_with_data(None, "ijepa", {"data": "emoji", "run": {"device": "cpu"}})
    on_cpu = plan(data="emoji", seconds=0.3, set=[*words, "run.device=cpu"])
    on_cuda = plan(data="emoji", device="pocket", set=words)
    assert on_cpu.choice == choice.lines and on_cpu.method == on_cuda.method == "ijepa"
    assert on_cpu.parameters.encoder == sum(p.numel() for p in build_jepa(here).encoder.parameters())
    batch = here.optim.batch_size
    assert on_cpu.speed and on_cpu.speed.images == here.optim.epochs * (TRAINED // batch) * batch
    assert on_cuda.parameters.encoder > 4 * on_cpu.parameters.encoder, "a larger encoder is chosen for CUDA"
    assert "on a CUDA device" in plan_table(on_cuda) and not plan("small", data="emoji", device="pocket").choice
    lines = plan_table(on_cpu).splitlines()
    chosen = lines[2 : lines.index("parameters, M (counted)")]
    assert max(map(len, lines)) <= 100 and len(chosen) > len(choice.reasons), "a line is too long for one"
    assert all(line.startswith("  ") for line in chosen)


def test_few_images_are_warned_of_and_opened_once(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def few(data: str, *_: Any, **__: Any) -> Source:
        opened.append(data)
        return ArraySource("few", np.zeros((70, 32, 32, 3), np.uint8), None)

    monkeypatch.setattr("jepakit.config.choice.open_source", few)
    found = plan(data="few", device="pocket")
    assert len(opened) == 1 and found.choice[-1].startswith("only 70 images")
    assert not any("loader_threads" in line for line in found.choice), "another machine's cores are not this one's"


def test_an_unknown_device_is_said_before_images_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepakit.config.choice.open_source", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match="unknown device"):
        plan(data="emoji", device="H2000")


def test_the_parts_that_a_plan_advises_fit(nowhere: Path) -> None:
    words = ["optim.batch_size=512", "encoder.depth=2"]
    found = plan("small", device="pocket", set=words)
    assert not found.memory.fits
    assert max(map(len, plan_table(found).splitlines())) <= 100
    advised = re.search(r"set (optim\.accumulate=\d+)", found.verdict)
    assert advised
    mended = plan("small", device="pocket", set=[*words, advised[1]])
    assert mended.memory.fits and mended.verdict.startswith("fits")


def test_a_plan_says_where_nothing_fits(nowhere: Path) -> None:
    assert "smaller encoder" in plan("small", device="pocket", set=["encoder.size=base"]).verdict


def test_here_real_steps_are_timed(nowhere: Path) -> None:
    found = plan("demo", seconds=0.3, encoder={"depth": 1}, run={"device": "cpu"})
    assert found.speed and "measured" in found.speed.source
    assert max(map(len, plan_table(found).splitlines())) <= 100
    assert 1 < found.speed.images_per_second < 1e6
    assert not list(nowhere.iterdir())


def test_the_command_prints_a_table_and_writes_json(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--recipe", "demo", "--device", "Pocket", "--devices", "2", "--json", "plan.json", "encoder.depth=1"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for word in ("parameters", "FLOP", "images/s", "assumed", "fits", "hours of the run", "simulated"):
        assert word in text
    written = json.loads((nowhere / "plan.json").read_text())
    assert written == json.loads(json.dumps(asdict(plan("demo", device="pocket", devices=2, set=["encoder.depth=1"]))))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "a100-4"], "did you mean 'a100-40'?"),
        (["--device", "T4", "run.precision=bf16"], "run.precision=fp32"),
        (["--devices", "3"], "--devices"),
        (["--recipe", "smal"], "did you mean 'small'?"),
        (["--data", "nothing-there"], "nothing-there"),
        (["--data", ""], "give --data"),
        (["--data", "emoji", "optim.batch_size=65536"], "optim.batch_size"),
        (["--json", "no/such/plan.json"], "--json"),
        (["encoder.wdith=3"], "did you mean 'encoder.width'?"),
        (["--devices", "64"], "two images"),  # of a batch of 64
    ],
)
def test_mistakes_are_said_in_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *(["--device", "L4"] if "--device" not in words else []), *words])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in told and len(told.splitlines()) == 1


def test_the_public_name_is_the_function_in_any_order_of_imports() -> None:
    code = "import jepakit, jepakit.planning; assert callable(jepakit.plan); from jepakit import plan; assert callable(plan)"
    subprocess.run([sys.executable, "-c", code], check=True)
