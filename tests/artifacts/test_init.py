"""Runs that begin from weights: the same function at step 0, resampled where shapes differ, listed, or refused unwritten."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import jepakit
from bomb import Bomb
from jepakit.artifacts import checkpoint
from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.released import save_released
from jepakit.artifacts.resample import resize_patches
from jepakit.artifacts.run import Run
from jepakit.cli import main
from jepakit.core.errors import UserError
from jepakit.model.jepa import JEPA
from jepakit.model.vit import resample_positions
from jepakit.training.train import pretrain
from test_timm_weights import dino, timm_state

SHAPE = "encoder.width=16 encoder.depth=2 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
REST = (
    "images.size=16 masking.min_keep=2 optim.batch_size=4 optim.lr=1e-2 optim.ema_momentum=0.5 run.threads=1 "
    "run.precision=fp32 run.probe_images=0 run.save_every_steps=1 run.keep_checkpoints=3"
)
PARTS = ("encoder", "target_encoder", "predictor")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def source(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps, whose encoder and target encoder differ by then."""
    return pretrain(photos, tmp_path_factory.mktemp("runs") / "a", set=[*SHAPE.split(), *REST.split(), "optim.steps=4"])


def begun(photos: str, out: Path, init_from: Any, *words: str) -> Run:
    """A run of one step from weights; its step 0 is kept."""
    return pretrain(photos, out, init_from=init_from, set=[*REST.split(), "optim.steps=1", *words])


def at_start(run: Run) -> dict[str, Tensor]:
    return checkpoint.load_checkpoint(run.checkpoints / checkpoint.step_name(0)).tensors["model"]


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the same function at step 0


def test_after_no_steps_it_is_the_encoder_that_it_began_from_bit_for_bit(photos: str, source: Run, tmp_path: Path) -> None:
    run = begun(photos, tmp_path / "b", source)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jepakit.load(f"{run.path}@0")(images), jepakit.load(source)(images))
    start, whole = at_start(run), JEPA.from_checkpoint(source.path).state_dict()
    assert equal(part(start, "target_encoder"), part(whole, "target_encoder"))
    assert equal(part(start, "encoder"), part(whole, "target_encoder"))  # the one to use: its predictor was not taken
    assert not equal(part(whole, "encoder"), part(whole, "target_encoder"))
    fresh = build_jepa(run.config).state_dict()
    assert equal(part(start, "predictor"), part(fresh, "predictor"))  # made by the seed, as if no weights were given
    assert run.finished and not equal(start, JEPA.from_checkpoint(run.path).state_dict())


def test_all_parts_are_the_whole_model(photos: str, source: Run, tmp_path: Path) -> None:
    run = begun(photos, tmp_path / "b", source, "init.parts=encoder,predictor,target_encoder")
    assert equal(at_start(run), JEPA.from_checkpoint(source.path).state_dict())
    assert run.config.init.parts == ("encoder", "predictor", "target_encoder")


def test_where_no_average_gave_the_targets_the_encoder_begins_both(photos: str, tmp_path: Path) -> None:
    words = [*SHAPE.split(), *REST.split(), "optim.steps=2"]
    pixels = pretrain(photos, tmp_path / "a", method="mae_pixels", set=words)
    own = part(JEPA.from_checkpoint(pixels.path).state_dict(), "encoder")
    start = at_start(begun(photos, tmp_path / "b", pixels))
    assert equal(part(start, "encoder"), own) and equal(part(start, "target_encoder"), own)


def test_a_part_alone_leaves_the_others_fresh_and_says_so(photos: str, source: Run, tmp_path: Path) -> None:
    run = begun(photos, tmp_path / "b", source, "init.parts=[encoder]")
    fresh = build_jepa(run.config).state_dict()
    assert equal(part(at_start(run), "target_encoder"), part(fresh, "target_encoder"))
    assert "the target encoder is fresh" in (run.path / "run.log").read_text()


@pytest.mark.parametrize("place", ["run", "latest", "model", "step", "released", "words"])
def test_every_way_to_name_a_run_gives_its_weights(place: str, photos: str, source: Run, tmp_path: Path) -> None:
    save_released(JEPA.from_checkpoint(source.path), tmp_path / "jepa.pth.tar")
    places = {
        "run": source.path,
        "latest": source.checkpoints / "latest",
        "model": source.path / "model",
        "step": f"{source.path}@4",
        "released": tmp_path / "jepa.pth.tar",
    }
    if place == "words":  # as a setting
        run = pretrain(photos, tmp_path / "b", set=[*REST.split(), "optim.steps=1", f"init.path={source.path}"])
    else:
        words = ["encoder.heads=2"] if place == "released" else []  # that file does not say how many
        run = begun(photos, tmp_path / "b", places[place], *words)
    own = part(JEPA.from_checkpoint(source.path).state_dict(), "target_encoder")
    assert equal(part(at_start(run), "encoder"), own) and equal(part(at_start(run), "target_encoder"), own)
    assert run.config.encoder == source.config.encoder
    assert run.config.init.path and Path(run.config.init.path.partition("@")[0]).is_absolute()


def test_released_to_ours_to_released_is_the_same_file_bit_for_bit(photos: str, source: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pth.tar", tmp_path / "second.pth.tar"
    save_released(JEPA.from_checkpoint(source.path), first)
    run = begun(photos, tmp_path / "b", first, "encoder.heads=2", f"init.parts={','.join(PARTS)}")
    save_released(JEPA.from_checkpoint(f"{run.path}@0"), second)
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    assert a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


def test_a_folder_of_transformers_begins_a_run(photos: str, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**shape, image_size=16, patch_size=4))
    model.save_pretrained(tmp_path / "vit")
    run = begun(photos, tmp_path / "b", tmp_path / "vit", "encoder.learned_positions=true")
    for name in ("encoder", "target_encoder"):
        start = part(at_start(run), name)
        assert torch.equal(start["positions"], model.embeddings.position_embeddings[0, 1:])
        assert torch.equal(start["patch_embed.proj.weight"], model.embeddings.patch_embeddings.projection.weight)
        assert torch.equal(start["norm.bias"], model.layernorm.bias)
    log, listed = (run.path / "run.log").read_text(), json.loads((run.path / "init.json").read_text())
    assert listed["left_out"] == ["pooler.dense.bias", "pooler.dense.weight", "embeddings.cls_token"]
    assert "epsilon is 1e-06 now, 1e-12 in the weights" in log and "left out, as no part of our encoder: pooler" in log


# ---- what follows, and what is said


def test_the_shape_is_the_weights_and_the_list_is_in_the_log_and_in_a_file(photos: str, source: Run, tmp_path: Path) -> None:
    run = begun(photos, tmp_path / "b", source.path)
    log, listed = (run.path / "run.log").read_text(), json.loads((run.path / "init.json").read_text())
    assert log.count("begins with weights of") == 1 and "encoder.width=16" in log and "fresh: predictor" in log
    assert listed["taken"] == {"encoder": 28, "target_encoder": 28} and listed["fresh"] == ["predictor"]
    assert listed["path"] == str(source.path.resolve()) and listed["settings"]["encoder"]["depth"] == 2
    assert run.config.init.path == str(source.path.resolve())


def test_what_was_left_out_of_a_foreign_file_is_listed(photos: str, tmp_path: Path) -> None:
    torch.save(dino(timm_state(learnt=False, scale=True)), tmp_path / "dino.pth")
    run = begun(photos, tmp_path / "b", tmp_path / "dino.pth", "encoder.heads=2")
    listed, log = json.loads((run.path / "init.json").read_text()), (run.path / "run.log").read_text()
    assert listed["left_out"] == ["teacher.head.mlp.0.weight"] and "teacher.head.mlp.0.weight" in log
    assert any("LayerScale" in sentence for sentence in listed["changed"]) and "LayerScale" in log
    teacher = timm_state(learnt=False, scale=True)
    assert all(torch.equal(at_start(run)[f"{part}.norm.weight"], teacher["norm.weight"]) for part in PARTS[:2])


def test_a_resume_reads_the_weights_no_more_and_its_config_repeats_the_run(photos: str, source: Run, tmp_path: Path) -> None:
    kept = tmp_path / "weights.pth.tar"
    save_released(JEPA.from_checkpoint(source.path), kept)
    whole = begun(photos, tmp_path / "b", kept, "encoder.heads=2", "optim.steps=4")
    again = pretrain(out=tmp_path / "c", config=whole.path / "config.yaml")
    ends = [JEPA.from_checkpoint(run.path).state_dict() for run in (whole, again)]
    assert equal(*ends)
    for step in (2, 3, 4):
        checkpoint_folder = again.checkpoints / checkpoint.step_name(step)
        if checkpoint_folder.exists() and step > 2:
            for path in checkpoint_folder.iterdir():
                path.unlink()
            checkpoint_folder.rmdir()
    kept.unlink()
    assert equal(JEPA.from_checkpoint(pretrain(resume=again).path).state_dict(), ends[0])


def test_the_schedule_is_new(photos: str, source: Run, tmp_path: Path) -> None:
    first = ["optim.steps=4", "run.log_every_steps=1"]
    run = begun(photos, tmp_path / "b", source, *first)
    plain = pretrain(photos, tmp_path / "c", set=[*SHAPE.split(), *REST.split(), *first])
    for name in ("lr", "weight_decay", "momentum"):
        assert [row[name] for row in run.metrics()] == [row[name] for row in plain.metrics()]


def test_a_plan_is_of_the_shape_of_the_weights(source: Run) -> None:
    words = ["images.size=16", "masking.min_keep=2"]
    found = jepakit.plan("small", device="H200", set=[*words, f"init.path={source.path}"])
    shaped = jepakit.plan("small", device="H200", set=[*words, *SHAPE.split()])
    assert found.parameters == shaped.parameters


# ---- other sizes


def test_other_sizes_of_images_and_patches_are_resampled_and_said(photos: str, source: Run, tmp_path: Path) -> None:
    words = ["images.size=48", "encoder.patch_size=8", "images.channels=1"]
    run = begun(photos, tmp_path / "b", source, *words)
    old = JEPA.from_checkpoint(source.path).target_encoder.patch_embed.proj.weight.detach()
    assert torch.equal(at_start(run)["encoder.patch_embed.proj.weight"], resize_patches(old.sum(1, keepdim=True), 8))
    log = (run.path / "run.log").read_text()
    for sentence in ("resized from 4x4 to 8x8", "sin-cos positions computed for 6x6 patches (4x4", "summed over channels"):
        assert sentence in log


@pytest.mark.parametrize("side", [16, 24])
def test_learnt_positions_are_where_learning_goes_on_if_one_asks(side: int, photos: str, tmp_path: Path) -> None:
    state = timm_state(before=1)
    torch.save(state | {"cls_token": torch.zeros(1, 1, 16)}, tmp_path / "vit.pth")
    words = ("encoder.heads=2", f"images.size={side}")
    with pytest.raises(UserError, match=r"learnt positions.*encoder\.learned_positions=true"):
        begun(photos, tmp_path / "b", tmp_path / "vit.pth", *words)
    assert not (tmp_path / "b").exists()
    run = begun(photos, tmp_path / "b", tmp_path / "vit.pth", *words, "encoder.learned_positions=true")
    start, end = at_start(run), JEPA.from_checkpoint(run.path).state_dict()
    expected = resample_positions(state["pos_embed"][0, 1:], (4, 4), (side // 4, side // 4))
    assert torch.equal(start["encoder.positions"], expected) and torch.equal(start["target_encoder.positions"], expected)
    assert not torch.equal(end["encoder.positions"], expected)  # they are learnt
    images = torch.randn(2, 3, side, side)
    for again in (run.path, run.path / "model"):  # and kept: in checkpoints, and in transformers' layout
        assert torch.equal(jepakit.load(again).vit.positions, end["target_encoder.positions"])
        assert torch.equal(jepakit.load(again)(images), jepakit.load(run.path)(images))
    assert begun(photos, tmp_path / "c", run.path, *words[1:]).config.encoder.learned_positions  # of a run, without a word


# ---- RUN@step


def test_a_step_of_a_run_is_named_by_its_number(source: Run) -> None:
    for step in (2, 3, 4):
        state = checkpoint.load_checkpoint(source.checkpoints / checkpoint.step_name(step)).tensors["model"]
        assert equal(JEPA.from_checkpoint(f"{source.path}@{step}").state_dict(), state)
        assert torch.equal(jepakit.load(f"{source.path}@{step}").vit.norm.weight, state["target_encoder.norm.weight"])
    results = jepakit.evaluate(f"{source.path}@2", tasks="rankme")
    assert results["rankme"][0]["name"] == "target encoder"
    assert (source.path / "evaluation/step-00000002/rankme.json").is_file()
    for read in (jepakit.load, JEPA.from_checkpoint):
        for wrong in ("1", "-1", "x", ""):
            with pytest.raises(UserError, match=r"there are 2, 3, 4"):
                read(f"{source.path}@{wrong}")
        with pytest.raises(UserError, match="gone@3"):
            read(f"{source.path}/gone@3")


# ---- refused, in one sentence, and nothing written


def test_what_cannot_be_begun_from_is_one_sentence_and_writes_nothing(
    photos: str, source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = timm_state(learnt=False)
    (tmp_path / "cut.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    torch.save(whole | {"x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    torch.save({n: v for n, v in whole.items() if "attn" not in n}, tmp_path / "less.pth")
    torch.save(whole | {"blocks.1.attn.q_norm.weight": torch.ones(8)}, tmp_path / "other.pth")
    torch.save({**whole, "patch_embed.proj.weight": torch.zeros(16, 5, 4, 4)}, tmp_path / "five.pth")
    torch.save(whole, tmp_path / "good.pth")
    good, run = tmp_path / "good.pth", source.path
    cases: list[tuple[Any, list[str], str]] = [
        (tmp_path / "cut.pth", [], "never run"),
        (tmp_path / "bomb.pth", [], "never run"),
        (tmp_path / "less.pth", ["encoder.heads=2"], "blocks.0.attn.proj.weight, blocks.0.attn.proj.bias"),
        (tmp_path / "other.pth", ["encoder.heads=2"], "qk-norm"),
        (tmp_path / "five.pth", ["encoder.heads=2"], "5 channels, and the images have 3"),
        (tmp_path / "gone.pth", [], "no such path"),
        (good, [], "encoder.heads=N"),
        (good, ["encoder.heads=2", "init.parts=predictor"], "holds no predictor"),
        (good, ["encoder.heads=2", "encoder.depth=3"], "encoder.depth=3 is asked for"),
        (run, ["encoder.width=32"], "encoder.width=32 is asked for"),
        (run, ["encoder.heads=4"], "encoder.heads=4 is asked for"),
        (run, ["encoder.size=tiny"], "encoder.width=192 is asked for"),
        (run, ["encoder.mlp_ratio=2"], "encoder.mlp_ratio=2 is asked for"),
        (run, ["init.parts=predictor", "predictor.depth=2"], "another shape"),
        (run, ["init.parts=predictr"], "init"),
        (f"{run}@7", [], "no checkpoint or snapshot of step '7'"),
    ]
    for place, words, sentence in cases:
        with pytest.raises(SystemExit) as caught:
            main(["pretrain", "--data", photos, "--out", str(tmp_path / "b"), "--init-from", str(place), *REST.split(), *words])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert caught.value.code == 2 and len(said) == 1 and sentence in said[0], (place, words, said)
        assert not (tmp_path / "b").exists()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="leave out out"):
        pretrain(resume=source, init_from=source)
    with pytest.raises(UserError, match="not init"):
        pretrain(resume=source, set=[f"init.path={run}"])
