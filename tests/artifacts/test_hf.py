"""Folders for transformers: the same function here and there, whatever their config says; the same pixels, or a sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor

import jepakit
from jepakit.artifacts.hf import ACTIVATIONS, save_model
from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.released import jepa_from_released, save_released
from jepakit.config.config import resolve
from jepakit.core.errors import UserError
from jepakit.data.crops import centre_crop, channels_of
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings, normalise
from jepakit.model.jepa import JEPA

STATISTICS = {"mean": [0.21, 0.32, 0.43], "std": [0.11, 0.13, 0.17]}
IMAGES: dict[str, dict[str, Any]] = {
    "8 bits": {"depth": "uint8"},
    "12 bits": {"depth": "uint16", "white": 4095.0, "size": 32},
    "16 bits": {"depth": "uint16"},
    "floats": {"depth": "float32", "mean": [-12.0, 3.0, 280.0], "std": [5.0, 1e-3, 40.0]},
    "bands": {"depth": "uint16", "white": 10_000.0, "channels": 13, "mean": [0.1 * i for i in range(13)], "std": [0.3] * 13},
    "gray": {"depth": "uint8", "channels": 1, "mean": [0.2], "std": [0.1]},
    "wide": {"depth": "uint8", "size": [16, 24]},
}


def made(name: str) -> tuple[JEPA, ImageSettings]:
    shape = {"width": 16, "depth": 2, "heads": 2, "patch_size": 4}
    images = {"size": 16, **STATISTICS, **IMAGES[name]}
    config = resolve({"images": images, "encoder": shape, "predictor": {"width": 8, "depth": 1}, "masking": {"min_keep": 2}})
    return build_jepa(config), config.images


def stored(images: ImageSettings, height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth pixels (height, width, C) as a file would hold them."""
    noise = np.random.default_rng(seed).normal(size=(height, width, images.channels))
    x = gaussian_filter(noise, (2, 2, 0))
    x = (x - x.min()) / (x.max() - x.min())
    if images.depth == "float32":
        return ((x - 0.5) * images.std + images.mean).astype(np.float32)
    return (x * (255 if images.depth == "uint8" else images.white or 65535)).astype(images.depth or "uint8")


def shown(pixels: np.ndarray[Any, Any], images: ImageSettings) -> Tensor:
    """What our evaluation shows the model, (1, C, H, W)."""
    return normalise(centre_crop(channels_of(pixels, images), *images.height_width)[None], images)


@pytest.mark.parametrize("name", IMAGES)
def test_a_folder_alone_is_the_encoder_bit_for_bit(name: str, tmp_path: Path) -> None:
    jepa, images = made(name)
    save_model(jepa, images, tmp_path / "run/model")
    shutil.move(tmp_path / "run/model", tmp_path / "elsewhere")
    (tmp_path / "elsewhere/preprocessor_config.json").unlink()  # transformers' own, not what we read
    here, back = Encoder(jepa.target_encoder, images).eval(), jepakit.load(tmp_path / "elsewhere")
    assert back.images == images
    given = stored(images, *images.height_width).transpose(2, 0, 1)[None]
    assert torch.equal(back.normalise(given), here.normalise(given))
    with torch.no_grad():
        assert torch.equal(back.embed(back.normalise(given)), here.embed(here.normalise(given)))


@pytest.mark.parametrize("name", ["8 bits", "gray"])
@pytest.mark.parametrize("size", [(40, 60), (61, 37), (33, 33), (9, 40), (16, 16), (131, 200)])
def test_the_exported_processor_cuts_and_resizes_as_evaluation_does(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    jepa, images = made(name)
    save_model(jepa, images, tmp_path)
    pixels = stored(images, *size)
    image = Image.fromarray(pixels if images.channels == 3 else pixels[..., 0])
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    levels = (theirs - shown(pixels, images)).abs() * torch.tensor(images.std)[:, None, None] * 255
    assert theirs.shape[2:] == (16, 16) and levels.max() < 2.01


def test_the_exported_processor_lays_transparency_on_white_and_repeats_gray(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    jepa, images = made("8 bits")
    save_model(jepa, images, tmp_path)
    prepare = AutoImageProcessor.from_pretrained(tmp_path)
    for image in (Image.new("L", (20, 30), 255), Image.new("RGBA", (20, 30), (9, 9, 9, 0)), Image.new("RGB", (20, 30), "white")):
        white = shown(np.full((30, 20, 3), 255, np.uint8), images)
        torch.testing.assert_close(prepare(image, return_tensors="pt")["pixel_values"], white)


@pytest.mark.parametrize("name", ["12 bits", "16 bits", "floats", "bands", "wide"])
def test_of_other_images_the_exported_processor_claims_no_more_than_it_can(name: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    jepa, images = made(name)
    save_model(jepa, images, tmp_path)
    assert "evaluation" in json.loads((tmp_path / "preprocessor_config.json").read_text())["why_not_resized"]
    prepare = AutoImageProcessor.from_pretrained(tmp_path)
    height, width = images.height_width
    pixels = stored(images, height, width)
    got = prepare(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    torch.testing.assert_close(got.float(), shown(pixels, images), rtol=1e-4, atol=1e-5)
    other = prepare(stored(images, height + 8, width), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert other.shape[2:] == (height + 8, width)  # it squashes nothing
    if images.depth == "uint16" and images.channels == 3:
        with pytest.raises(ValueError):  # not cut to 8 bits in silence
            prepare(Image.fromarray(pixels[..., 0]), return_tensors="pt")


def test_a_processor_that_was_edited_is_not_passed_over(tmp_path: Path) -> None:
    save_model(*made("8 bits"), tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(UserError, match="another mean"):
        jepakit.load(tmp_path)


@pytest.mark.parametrize(("flip", "symmetry"), [(False, None), (True, "mirror")])
def test_a_folder_that_an_earlier_version_wrote_loads(flip: bool, symmetry: str | None, tmp_path: Path) -> None:
    save_model(*made("8 bits"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["jepakit"]["images"] = {**config["jepakit"]["images"], "flip": flip}
    for newer in ("symmetry", "axis", "every", "window"):
        del config["jepakit"]["images"][newer]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert jepakit.load(tmp_path).images.symmetry == symmetry


# ---- weights made elsewhere


def require_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    """A folder of transformers' whose config is changed so gives one line that says these words."""
    theirs_in(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=words) as caught:
        jepakit.load(folder)
    assert "\n" not in str(caught.value)


def theirs_in(folder: Path, **settings: Any) -> Any:
    """A model of transformers' own, saved; its biases and norms are no longer zeros and ones."""
    from transformers import IJepaConfig, IJepaModel

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = IJepaModel(IJepaConfig(**{**shape, "image_size": 16, "patch_size": 4, **settings})).eval()
    own = made("8 bits")[0].encoder.positions
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
        model.embeddings.position_embeddings.copy_(own[None])
    model.save_pretrained(folder)
    return model


def same(model: Any, encoder: Encoder, atol: float = 1e-5) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), model.float()(x).last_hidden_state, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    "settings",
    [
        *({"hidden_act": name} for name in ACTIVATIONS),
        {"layer_norm_eps": 1e-12},
        {"layer_norm_eps": 0.5},
        {"qkv_bias": False},
        {"hidden_act": "relu", "layer_norm_eps": 1e-2, "intermediate_size": 40, "num_attention_heads": 4},
    ],
    ids=str,
)
def test_what_a_config_says_of_the_function_is_honoured(settings: dict[str, Any], tmp_path: Path) -> None:
    same(theirs_in(tmp_path, **settings), jepakit.load(tmp_path))


def test_what_a_config_leaves_out_is_transformers_default(tmp_path: Path) -> None:
    model = theirs_in(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {k: v for k, v in config.items() if k not in ("layer_norm_eps", "hidden_act", "num_channels", "qkv_bias")}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    encoder = jepakit.load(tmp_path)
    same(model, encoder)
    assert encoder.vit.norm.eps == 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_load_as_what_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    model = theirs_in(tmp_path / "whole").to(dtype)
    model.save_pretrained(tmp_path / "half")
    same(model, jepakit.load(tmp_path / "half"), atol=0.05)
    jepa, _ = made("8 bits")
    save_released(jepa, tmp_path / "whole.pth.tar")
    parts = torch.load(tmp_path / "whole.pth.tar", weights_only=True)
    torch.save({part: {n: v.to(dtype) for n, v in state.items()} for part, state in parts.items()}, tmp_path / "half.pth.tar")
    back = jepa_from_released(tmp_path / "half.pth.tar", heads=2)
    for name, value in jepa.state_dict().items():
        assert torch.equal(back.state_dict()[name], value.to(dtype).float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learnt_positions_are_held_as_such_at_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = theirs_in(tmp_path)
    with torch.no_grad():
        model.embeddings.position_embeddings[0, 3] += 0.05
    model.to(dtype).save_pretrained(tmp_path)
    encoder = jepakit.load(tmp_path)
    assert encoder.vit.config.learned_positions
    assert torch.equal(encoder.vit.positions, model.embeddings.position_embeddings[0].float())
    same(model, encoder)


def test_shards_are_read_and_a_pickle_is_not(tmp_path: Path) -> None:
    model = theirs_in(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    same(model, jepakit.load(tmp_path / "shards"))
    next((tmp_path / "shards").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(UserError, match="00002"):
        jepakit.load(tmp_path / "shards")
    shutil.copytree(tmp_path / "whole", tmp_path / "pickle")
    (tmp_path / "pickle/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle/pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        jepakit.load(tmp_path / "pickle")
    index = tmp_path / "pickle/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../whole/model.safetensors"}}))
    with pytest.raises(UserError, match="outside"):
        jepakit.load(tmp_path / "pickle")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu_neww"}, "gelu_neww.*did you mean 'gelu_new'"),
        ({"hidden_act": None}, "hidden_act"),
        ({"model_type": "vit"}, "cls_token"),  # plain ViTs have one
        ({"model_type": "dinov2"}, "type 'dinov2'"),
        ({"intermediate_size": 48}, "do not fit"),
        ({"num_hidden_layers": 3}, "do not fit"),
        ({"patch_size": 8}, "do not fit|sin-cos"),
    ],
)
def test_what_is_not_the_same_function_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    require_refused(tmp_path, change, words)


def test_weights_that_have_no_place_are_not_dropped_in_silence(tmp_path: Path) -> None:
    model = theirs_in(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    head = {"pooler.dense.weight": torch.zeros(16, 16), "classifier.weight": torch.zeros(2, 16)}
    save_file({**state, **head}, tmp_path / "model.safetensors", {"format": "pt"})
    same(model, jepakit.load(tmp_path))
    save_file({**state, "embeddings.cls_token": torch.zeros(1, 1, 16)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="cls_token"):
        jepakit.load(tmp_path)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (0.5, 0.25, "uint8", None)),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 65535}, (0.5, 0.25, "uint16", 65535)),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": False}, (0.5, 0.25, "float32", 1)),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": False}, (0.0, 1.0, "uint8", None)),
        ({"image_mean": [127.5] * 3, "image_std": [51.0] * 3, "do_rescale": False}, (0.5, 0.2, "uint8", None)),
    ],
)
def test_a_foreign_processors_settings_are_honoured(processor: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    theirs_in(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    images = jepakit.load(tmp_path).images
    assert (images.mean[0], images.std[0], images.depth) == expected[:3]
    assert images.white == (None if expected[3] is None else pytest.approx(expected[3]))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="image_mean"):
        jepakit.load(tmp_path)


@pytest.mark.parametrize(
    "processor",
    [
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
        {"rescale_factor": 1.0, "image_mean": [120.0, 130.0, 140.0], "image_std": [60.0, 70.0, 80.0]},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5] * 3},
        {"rescale_factor": 1 / 256, "image_mean": [0.4] * 3, "image_std": [0.3] * 3},
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3] * 3},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "image_processor_type": "EfficientNet"},
        {"rescale_offset": True, "image_mean": [-0.4] * 3, "image_std": [0.3] * 3, "image_processor_type": "EfficientNet"},
    ],
    ids=str,
)
def test_bytes_are_scaled_as_transformers_processor_does(processor: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    model = theirs_in(tmp_path)
    kind = processor.get("image_processor_type", "ViT") + "ImageProcessor"
    whole = {"do_resize": False, "do_center_crop": False, "include_top": False, **processor, "image_processor_type": kind}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(whole))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    prepare = AutoImageProcessor.from_pretrained(tmp_path)
    theirs = prepare(Image.fromarray(pixels), return_tensors="pt")["pixel_values"].float()
    encoder = jepakit.load(tmp_path)
    ours = encoder.normalise(pixels.transpose(2, 0, 1)[None])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(ours), model(theirs).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_bytes_are_refused_by_a_processor_of_floats_from_0_to_1(tmp_path: Path) -> None:
    theirs_in(tmp_path)
    processor = {"do_rescale": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match="give floats"):
        jepakit.load(tmp_path).normalise(np.zeros((1, 3, 16, 16), np.uint8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive whole number, got 0"),
        ({"hidden_size": 16.0}, "hidden_size must be"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"num_attention_heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"num_channels": "3"}, "num_channels must be"),
        ({"patch_size": [4, 4]}, "patch_size must be"),
        ({"image_size": "32"}, "image_size must be a whole number or two, got '32'"),
        ({"image_size": [16]}, "image_size must be"),
        ({"image_size": 33}, "image_size 33 is not a multiple of patch_size 4"),
        ({"image_size": 4_000_000}, "sin-cos"),
        ({"hidden_size": 16_000_000}, "do not fit"),
        ({"num_hidden_layers": 1_000_000}, "they hold 2 blocks, and config.json says 1000000"),
        ({"layer_norm_eps": -1.0}, r"layer_norm_eps must be a number from 0 on, got -1\.0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be"),
        ({"layer_norm_eps": None}, "no encoder"),
        ({"jepakit": {"which": "foo"}}, "jepakit.which is 'foo'"),
        ({"jepakit": {"which": ["foo"]}}, "jepakit.which is"),
        ({"jepakit": 3}, "no encoder"),
    ],
    ids=str,
)
def test_a_config_that_is_malformed_gets_a_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    require_refused(tmp_path, change, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rescale_factor": 0}, "rescale_factor must be a positive number, got 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor must be"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be"),
        ({"image_mean": 0.5}, "image_mean must be a list of numbers"),
        ({"image_mean": [float("nan")] * 3}, "image_mean must be"),
        ({"image_std": [0.0] * 3}, "greater than 0"),
        ({"image_mean": [0.5]}, "mean: 1 numbers"),
    ],
    ids=str,
)
def test_a_processor_that_is_malformed_gets_a_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    theirs_in(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match=words):
        jepakit.load(tmp_path)


@pytest.mark.parametrize("name", ["embeddings.position_embeddings", "layernorm.weight", "encoder.layer.1.output.dense.bias"])
@pytest.mark.parametrize("kind", ["nan", "inf", "complex", "gap"])
def test_weights_that_are_no_real_numbers_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    theirs_in(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if kind == "complex":
        state[name] = state[name].to(torch.complex64)
    elif kind == "gap":
        state = {key.replace("layer.1.", "layer.1000000."): value for key, value in state.items()}
    else:
        state[name].view(-1)[-1] = float(kind)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"sin-cos|not finite|real floats|numbered from 0 on without a gap"):
        jepakit.load(tmp_path)
