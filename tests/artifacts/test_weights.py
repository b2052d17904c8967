"""Weights go out and come back in every format as the same function, and no file of weights runs."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import jepakit
from bomb import Bomb
from jepakit.artifacts import checkpoint
from jepakit.artifacts.hf import from_hf, save_model, to_hf
from jepakit.artifacts.released import save_released
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.data.crops import centre_crop
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings, normalise
from jepakit.model.jepa import JEPA
from jepakit.model.layout import Layout
from jepakit.model.vit import patchify
from jepakit.training.train import pretrain

SHAPE = "encoder.width=16 encoder.depth=2 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
REST = "masking.min_keep=2 optim.batch_size=8 optim.steps=4 optim.lr=1e-2 optim.ema_momentum=0.5 run.threads=1 run.precision=fp32"
RUNS = {
    "ijepa": ["images.size=16"],
    "ec_ijepa": ["images.size=16"],
    "wide": ["images.size=[16,24]", "images.mean=[0.1,0.2,0.3]", "images.std=[0.4,0.5,0.6]"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    (root / "photos").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"photos/{i}.png")
    return {
        name: pretrain(
            str(root / "photos"),
            root / name,
            method="ec_ijepa" if name == "ec_ijepa" else "ijepa",
            set=[*SHAPE.split(), *REST.split(), *words],
        )
        for name, words in RUNS.items()
    }


def pictures(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))


def equal(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape and float((a - b).abs().max()) <= tolerance


def states_equal(a: JEPA, b: JEPA) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


# ---- a run


@pytest.mark.parametrize("which", ["target_encoder", "encoder"])
def test_a_runs_encoder_is_the_one_that_was_trained(runs: dict[str, Run], which: Any) -> None:
    state = checkpoint.load_checkpoint(runs["ijepa"].checkpoints / "latest").tensors["model"]
    encoder = jepakit.load(runs["ijepa"].path, which=which)
    own = encoder.vit.state_dict()
    assert all(torch.equal(own[name], state[f"{which}.{name}"]) for name in own)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    x = pictures()
    expected = encoder.vit(
        encoder.vit.embed(patchify(x, 4), torch.arange(16).repeat(3)), Layout(np.full(3, 16), torch.device("cpu"))
    )
    equal(encoder(x), expected.unflatten(0, (3, 16)), 0)
    equal(encoder.embed(x), encoder(x).mean(1), 0)


def test_the_target_encoder_is_what_one_gets_unasked(runs: dict[str, Run]) -> None:
    x, path = pictures(), runs["ijepa"].path
    plain = jepakit.load(path)(x)
    equal(plain, jepakit.load(path, which="target_encoder")(x), 0)
    equal(plain, runs["ijepa"].encoder()(x), 0)
    assert not torch.allclose(plain, jepakit.load(path, which="encoder")(x), atol=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_run_checkpoint_folder_and_model_folder_hold_one_encoder(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    x = pictures(*run.config.images.height_width)
    loaded = [jepakit.load(p) for p in (run.path, run.checkpoints / "latest", run.path / "model")]
    for encoder in loaded[1:]:
        equal(encoder(x), loaded[0](x), 1e-6)
        assert encoder.images.height_width == run.config.images.height_width
        assert encoder.images.mean == pytest.approx(run.config.images.mean)
        assert encoder.images.std == pytest.approx(run.config.images.std)
        assert encoder.conditioning == loaded[0].conditioning
    assert (loaded[0].conditioning is not None) == (name == "ec_ijepa")


def test_the_whole_model_comes_back_from_a_run(runs: dict[str, Run]) -> None:
    jepa = JEPA.from_checkpoint(runs["ec_ijepa"].path)
    state = checkpoint.load_checkpoint(runs["ec_ijepa"].checkpoints / "latest").tensors["model"]
    assert all(torch.equal(value, state[name]) for name, value in jepa.state_dict().items())
    assert jepa.method.conditioning is not None
    assert states_equal(jepa, JEPA.from_checkpoint(runs["ec_ijepa"].checkpoints / "latest"))


def test_an_encoder_takes_other_sizes_and_shapes(runs: dict[str, Run]) -> None:
    for name, encoder in ((name, jepakit.load(run.path)) for name, run in runs.items()):
        for height, width in ((8, 8), (16, 16), (24, 16), (16, 40), (64, 64)):
            out = encoder(pictures(height, width))
            assert out.shape == (3, height * width // 16, 16) and bool(torch.isfinite(out).all()), name
        one, three = encoder(pictures(24, 16)[:1]), encoder(pictures(24, 16))
        equal(one[0], three[0])
        for wrong in (pictures(16, 18), pictures()[0], pictures()[:, :1]):
            with pytest.raises(ValueError, match="multiples of 4"):
                encoder(wrong)


def test_other_sizes_get_positions_within_the_known_range(runs: dict[str, Run]) -> None:
    encoder = jepakit.load(runs["ijepa"].path)
    half, known = encoder.positions_of((8, 8)), encoder.vit.positions
    equal(half.unflatten(0, (8, 8))[::2, ::2].flatten(0, 1), known, 1e-6)  # a grid twice as fine, on the same picture


def test_an_encoder_normalises_as_in_training(runs: dict[str, Run]) -> None:
    encoder = jepakit.load(runs["wide"].path)
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    equal(encoder.normalise(pixels), normalise(pixels, runs["wide"].config.images), 0)


def test_conditioning_at_inference_matters_and_can_be_left_off(runs: dict[str, Run]) -> None:
    encoder, x = jepakit.load(runs["ec_ijepa"].path), pictures()
    assert encoder.conditioning is not None
    off = Encoder(encoder.vit, encoder.images, encoder.conditioning.model_copy(update={"inference": False})).eval()
    assert off.conditioning is None
    with torch.no_grad():
        assert float((encoder(x) - off(x)).abs().max()) > 1e-4
        equal(off(x), Encoder(encoder.vit, encoder.images).eval()(x), 0)
    finer = encoder.conditioning.model_copy(update={"infer_kernel": 2, "infer_stride": 2})
    assert float((encoder(x) - Encoder(encoder.vit, encoder.images, finer)(x)).abs().max()) > 1e-5


# ---- transformers


@pytest.mark.parametrize("name", ["ijepa", "wide"])
def test_a_model_folder_loads_in_transformers_whole_and_equal(runs: dict[str, Run], name: str) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = runs[name].path / "model"
    model, about = AutoModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert type(model).__name__ == "IJepaModel"
    assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    height, width = runs[name].config.images.height_width
    with torch.no_grad():
        equal(model.eval()(pictures(height, width)).last_hidden_state, jepakit.load(runs[name].path)(pictures(height, width)))
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    prepared = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    own = normalise(centre_crop(pixels, height, width)[None], runs[name].config.images)
    equal(prepared, own)


def test_ec_ijepas_model_folder_says_why_transformers_cannot_load_it(runs: dict[str, Run]) -> None:
    from transformers import AutoModel

    config = json.loads((runs["ec_ijepa"].path / "model/config.json").read_text())
    assert "conditioning tokens" in config["why_not_transformers"] and "model_type" not in config
    with pytest.raises(ValueError):  # it is not loaded as something that it is not
        AutoModel.from_pretrained(runs["ec_ijepa"].path / "model")


def test_names_map_to_transformers_and_back(runs: dict[str, Run], tmp_path: Path) -> None:
    jepa = JEPA.from_checkpoint(runs["ijepa"].path)
    back = from_hf(to_hf(jepa.encoder))
    state = jepa.encoder.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    save_model(jepa, ImageSettings(size=16), tmp_path, which="encoder")
    equal(jepakit.load(tmp_path)(pictures()), jepakit.load(runs["ijepa"].path, which="encoder")(pictures()))


def test_a_broken_model_folder_is_one_sentence(runs: dict[str, Run], tmp_path: Path) -> None:
    whole = {p.name: p.read_bytes() for p in (runs["ijepa"].path / "model").iterdir()}
    config = json.loads(whole["config.json"])
    for name, data in (
        ("model.safetensors", whole["model.safetensors"][:200]),
        ("model.safetensors", pickle.dumps(Bomb(tmp_path / "ran"))),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", json.dumps({**config, "num_hidden_layers": 3}).encode()),
        ("config.json", json.dumps({**config, "num_attention_heads": 5}).encode()),
        ("preprocessor_config.json", b"{"),
    ):
        for each, content in (whole | {name: data}).items():
            (tmp_path / each).write_bytes(content)
        with pytest.raises(UserError) as caught:
            jepakit.load(tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


# ---- the released format


@pytest.fixture(scope="module")
def released(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "jepa-ep4.pth.tar"
    save_released(JEPA.from_checkpoint(runs["ijepa"].path), path)
    return path


def test_the_released_format_goes_both_ways(runs: dict[str, Run], released: Path) -> None:
    back = JEPA.from_checkpoint(released, heads=2)
    assert states_equal(back, JEPA.from_checkpoint(runs["ijepa"].path))
    equal(jepakit.load(released, heads=2)(pictures()), jepakit.load(runs["ijepa"].path)(pictures()))
    assert [p.name for p in released.parent.iterdir()] == [released.name]


def test_the_released_format_is_written_with_its_prefix_and_positions(released: Path) -> None:
    data = torch.load(released, weights_only=True)
    assert set(data) == {"encoder", "target_encoder", "predictor"}
    assert all(name.startswith("module.") for part in data.values() for name in part)
    assert data["encoder"]["module.pos_embed"].shape == (1, 16, 16)
    assert data["predictor"]["module.predictor_pos_embed"].shape == (1, 16, 8)


def test_a_file_as_the_released_code_writes_it_is_read(runs: dict[str, Run], released: Path, tmp_path: Path) -> None:
    data = torch.load(released, weights_only=True)
    extra = {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 4, "loss": 0.1, "batch_size": 8, "lr": 1e-3}
    torch.save(data | extra, tmp_path / "whole.pth.tar")
    bare = {part: {name.removeprefix("module."): value for name, value in state.items()} for part, state in data.items()}
    torch.save(bare, tmp_path / "bare.pth.tar")
    for name in ("whole", "bare"):
        assert states_equal(JEPA.from_checkpoint(tmp_path / f"{name}.pth.tar", heads=2), JEPA.from_checkpoint(runs["ijepa"].path))


def test_heads_must_be_given_for_a_width_that_is_not_standard(released: Path) -> None:
    with pytest.raises(UserError, match="give heads="):
        JEPA.from_checkpoint(released)
    with pytest.raises(UserError):
        JEPA.from_checkpoint(released, heads=5)


def test_a_released_file_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, released: Path) -> None:
    bomb = Bomb(tmp_path / "ran")
    torch.save(torch.load(released, weights_only=True) | {"extra": bomb}, tmp_path / "new.pth.tar")
    torch.save({"encoder": bomb}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth.tar").write_bytes(pickle.dumps(bomb))
    for name in ("new", "old", "plain"):
        for read in (JEPA.from_checkpoint, jepakit.load):
            with pytest.raises(UserError, match="never run"):
                read(tmp_path / f"{name}.pth.tar", heads=2)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_released_checkpoint_is_refused_in_one_sentence(tmp_path: Path, released: Path) -> None:
    whole, data = released.read_bytes(), torch.load(released, weights_only=True)
    bad: dict[str, bytes | dict[str, Any]] = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
        "no parts": {"model": data["encoder"]},
        "no target encoder": {part: data[part] for part in ("encoder", "predictor")},
        "parts of something else": {part: {"weight": torch.zeros(2)} for part in data},
        "a layer missing": data | {"encoder": {k: v for k, v in data["encoder"].items() if "blocks.1.norm1" not in k}},
        "another width": data | {"predictor": {k: v[:4] if v.ndim > 1 else v for k, v in data["predictor"].items()}},
        "no blocks": data | {"encoder": {k: v for k, v in data["encoder"].items() if "blocks.1" not in k and "0.attn" not in k}},
    }
    for name, content in bad.items():
        path = tmp_path / f"{name}.pth.tar"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError) as caught:
            JEPA.from_checkpoint(path, heads=2)
        assert "\n" not in str(caught.value) and path.name in str(caught.value), name


def test_a_path_that_holds_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable manifest"):
        JEPA.from_checkpoint(tmp_path)
    with pytest.raises(UserError, match="holds no weights: give a run"):
        jepakit.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint at"):
        JEPA.from_checkpoint(tmp_path / "gone")


def test_model_weights_are_float32_and_hold_nothing_but_the_encoder(runs: dict[str, Run]) -> None:
    state = load_file(runs["ijepa"].path / "model/model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(name.startswith(("embeddings.", "encoder.", "layernorm.")) for name in state)


def test_weights_that_are_not_finite_are_not_loaded_the_checkpoint_before_is(
    runs: dict[str, Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(shutil.copytree(runs["ijepa"].path, tmp_path / "run", symlinks=True))
    good = checkpoint.load_checkpoint(run.checkpoints / "latest")
    model = {n: v * (torch.nan if n == "encoder.norm.weight" else 1) for n, v in good.tensors["model"].items()}
    assert checkpoint.save(run.checkpoints, 9, checkpoint.Checkpoint({**good.tensors, "model": model}, good.state), 5)
    jepa = JEPA.from_checkpoint(run.path)
    assert all(torch.equal(value, good.tensors["model"][name]) for name, value in jepa.state_dict().items())
    assert "step 9 is no use, falling back to the one before: its model encoder.norm.weight is not finite" in caplog.text
    assert torch.equal(jepakit.load(run).vit.norm.weight, jepa.target_encoder.norm.weight)
    with pytest.raises(UserError, match=r"encoder\.norm\.weight holds values that are not finite"):
        jepakit.load(run.checkpoints / "step-00000009")
    for step in checkpoint.steps(run.checkpoints)[1:]:
        shutil.rmtree(run.checkpoints / checkpoint.step_name(step))
    with pytest.raises(UserError, match="1 tried, the log says why"):
        jepakit.load(run)
