"""Depth, units, normalisation: whatever way an image takes, the model sees what it was trained on, or a sentence says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import jepakit
from jepakit.artifacts.run import Run
from jepakit.config.choice import Choice, DataSummary, UserSettings, choose
from jepakit.config.config import Config, fields, nested, overrides, read_yaml, resolve
from jepakit.config.recipes import RECIPES, settings
from jepakit.core.errors import UserError
from jepakit.data.crops import channels_of, to_show
from jepakit.data.loader import Loader
from jepakit.data.opening import open_source
from jepakit.evaluation.dense.patch_tokens import PatchTokens
from jepakit.evaluation.features import evaluation_view
from jepakit.evaluation.probes.finetune import _View
from jepakit.evaluation.probes.finetune_recipe import FineTuning
from jepakit.evaluation.probes.spectrum import _view
from jepakit.model.encoder import Encoder
from jepakit.model.images import IMAGENET, ImageSettings
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.vit import ViT, ViTConfig
from jepakit.training.online_probe import OnlineProbe
from jepakit.training.train import pretrain

SIDE = 16
TINY = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 "
    f"masking.min_keep=2 optim.batch_size=4 optim.steps=2 optim.warmup_steps=1 run.threads=1 run.probe_images=0 "
    f"images.size={SIDE}"
).split()


def stored(kind: str, seed: int = 0, channels: int = 3) -> NDArray[Any]:
    """(SIDE, SIDE, channels) as a file of that kind holds it."""
    random = np.random.default_rng(seed)
    shape = (SIDE, SIDE, channels)
    if kind == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    if kind == "float32":
        return random.normal(-10, 5, shape).astype(np.float32)  # decibels of a radar: no black, no white
    return random.integers(0, 4096 if kind == "12 bits" else 65536, shape, dtype=np.uint16)


KINDS = {"uint8": 255, "12 bits": 4095, "16 bits": 65535, "float32": 1}  # what is divided by
WORDS = {"12 bits": ["images.white=4095"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        (root / kind).mkdir()
        for i in range(8):
            tifffile.imwrite(root / kind / f"{i}.tif", stored(kind, i), photometric="rgb")
    return {kind: pretrain(root / kind, root / f"run {kind}", set=[*TINY, *WORDS.get(kind, [])]) for kind in KINDS}


def right(kind: str, array: NDArray[Any], images: ImageSettings) -> NDArray[np.float64]:
    """What the model is to see of (..., C) stored values, by the definition."""
    return (array.astype(np.float64) / KINDS[kind] - images.mean) / images.std


def first(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C) -> (1, C, H, W)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])


def close(got: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


# ---- one image, every way to the model


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_the_model_shows_it_the_same(runs: dict[str, Run], kind: str) -> None:
    run = runs[kind]
    config, source, encoder = run.config, open_source(run.config.data or ""), jepakit.load(run.path)
    assert config.images.depth == ("uint16" if "bits" in kind else kind)
    whole = config.images.model_copy(update={"crop_scale": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "target_crop": "same"})
    expected = np.stack([right(kind, stored(kind, i), config.images).transpose(2, 0, 1) for i in range(8)])

    loader = Loader(source, whole, MultiBlock(min_keep=2), config.grid, 8, 0)
    batch, ids = loader.batch(0).images, loader.ids(0)
    close(encoder.normalise(batch), expected[ids])  # pretraining
    close(encoder.normalise(evaluation_view(source, 3, config.images)[None]), expected[3:4])  # features of every frozen task
    close(encoder.normalise(evaluation_view(source, 3, config.images, whole_image=True)[None]), expected[3:4])
    view = _View(source, whole, False, FineTuning(crop_scale=(1, 1), symmetry=None), 0)
    close(encoder.normalise(torch.stack([view(3, None), view(3, 0)])), expected[[3, 3]])  # fine-tuning: test and training
    for by in ("masks", "crops"):
        pixels = [channels_of(source.read(3, config.images.max_pixels), config.images)]
        close(encoder.normalise(_view(pixels, whole, by, np.array([3]), 0)), expected[3:4])  # LiDAR
    online = OnlineProbe.prepare(resolve(config.model_dump(), {"run": {"probe_images": 8}}), source, 2)
    assert online is not None
    close(encoder.normalise(online.images).sum(0), expected.sum(0))  # in an order of its own
    tokens = PatchTokens(encoder).read(Path(config.data or "") / "3.tif")  # segmentation, DAVIS
    close(encoder.normalise(torch.from_numpy(tokens).permute(2, 0, 1)[None]), expected[3:4])
    array = first(stored(kind, 3))
    for given in (array, torch.from_numpy(array), array.astype(array.dtype.newbyteorder(">"))):
        close(encoder.normalise(given), expected[3:4])  # from Python, as it is stored
    close(encoder.normalise(array.astype(np.float64) / KINDS[kind]), expected[3:4])  # and in units of white
    if kind != "float32":
        for wide in (np.int32, np.int64, np.uint32):
            close(encoder.normalise(array.astype(wide)), expected[3:4])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_of_another_range_is_refused_in_a_sentence(runs: dict[str, Run], kind: str) -> None:
    encoder, array = jepakit.load(runs[kind].path), first(stored(kind, 3))
    raw = array.astype(np.float32)
    wrong: list[NDArray[Any]] = [np.full_like(raw, np.nan), raw > 0, raw.astype(complex), raw.astype(object), raw.astype(str)]
    if kind == "float32":
        wrong += [raw * 1000, array.astype(np.int64), first(stored("16 bits")), first(stored("uint8"))]
    else:
        normalised = encoder.normalise(array).numpy()
        wrong += [raw, normalised, raw / KINDS[kind] * 2 - 1, array.astype(np.int64) - 70_000, array.astype(np.int64) + 70_000]
    if kind == "uint8":
        wrong += [array.astype(np.uint16), array.astype(np.int64) + 200]  # of white 65535? of white 255?
    for images in wrong:
        with pytest.raises(UserError) as caught:
            encoder.normalise(images)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_normalised_is_not_embedded(runs: dict[str, Run], kind: str) -> None:
    encoder, array = jepakit.load(runs[kind].path), first(stored(kind, 3))
    x = encoder.normalise(array)
    expected = encoder.embed(x)
    for same in (x.numpy(), x.double(), x.numpy().astype(np.float64)):
        torch.testing.assert_close(encoder.embed(same), expected)
        torch.testing.assert_close(encoder(same).mean(1), expected)
    bright = np.full_like(array, KINDS[kind] if "bits" in kind else 255 if kind == "uint8" else 40)
    assert encoder.embed(encoder.normalise(bright)).isfinite().all()  # rare, but an image
    floats = array.astype(np.float32) * (200 if kind == "float32" else 1)
    with pytest.raises(UserError, match="not normalised"):
        encoder.embed(floats)
    with pytest.raises(UserError, match="holds int64: give uint8, uint16 or floats"):
        encoder.embed(array.astype(np.int64))
    for images in (floats, first(stored("uint8")), array.astype(np.int64)):
        for use in (encoder, encoder.layers):
            with pytest.raises(UserError, match="not normalised"):
                use(images)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_integers_are_embedded_as_normalise_makes_them(runs: dict[str, Run], kind: str) -> None:
    encoder, array = jepakit.load(runs[kind].path), first(stored(kind, 3))
    if array.dtype.kind == "u":  # of the encoder's own size: nothing is cut or resized
        torch.testing.assert_close(encoder.embed(array), encoder.embed(encoder.normalise(array)))


def of(**images: Any) -> Encoder:
    """An encoder of such images; mean and std are those of each channel."""
    images |= {name: (images[name],) * 3 for name in ("mean", "std")}
    return Encoder(ViT(ViTConfig(patch_size=4, width=16, depth=1, heads=2), (4, 4)), ImageSettings(size=SIDE, **images))


KELVIN = {"depth": "float32", "mean": 280.0, "std": 10.0}
TWELVE = {"depth": "uint16", "white": 4095, "mean": 0.5, "std": 0.29}
DARK = {"depth": "uint16", "white": 10_000, "mean": 0.05, "std": 0.01}


def even(low: float, high: float, dtype: Any = np.float32) -> NDArray[Any]:
    """(2, 3, SIDE, SIDE) of every value from low to high alike."""
    values = np.linspace(low, high, 2 * 3 * SIDE * SIDE)
    return np.random.default_rng(0).permutation(values).reshape(2, 3, SIDE, SIDE).astype(dtype)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (KELVIN, even(0, 1)),
        (KELVIN, even(0, 30)),  # degrees Celsius
        (KELVIN, even(0, 255, np.uint8)),
        (KELVIN, np.full((1, 3, SIDE, SIDE), 200, np.uint8)),
        (KELVIN, even(250, 310, np.int32)),
        ({"depth": "float32", "mean": 0.5, "std": 0.25}, even(0, 255)),
        ({"depth": None, "mean": 0.5, "std": 0.25}, even(0, 100)),
        (TWELVE, even(0, 65535, np.uint16)),
        (TWELVE, even(0, 65535, np.int32)),
        (TWELVE, even(0, 12)),
        (DARK, even(0, 65535, np.uint16)),
    ],
)
def test_a_batch_of_another_range_than_the_encoders_is_refused(images: dict[str, Any], given: NDArray[Any]) -> None:
    with pytest.raises(UserError, match="units"):
        of(**images).normalise(given)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (KELVIN, even(250, 310)),
        (KELVIN, even(220, 240)),  # high clouds
        (KELVIN, np.where(even(0, 1) < 0.4, -9999, even(250, 310)).astype(np.float32)),  # no data in two fifths
        ({"depth": "float32", "mean": 0.9, "std": 0.01}, np.zeros((1, 3, SIDE, SIDE))),
        ({"depth": "uint8", "mean": 0.9, "std": 0.004}, np.zeros((1, 3, SIDE, SIDE))),
        ({"depth": "uint8", "mean": 0.01, "std": 0.004}, np.ones((1, 3, SIDE, SIDE))),
        ({"depth": "uint8", "mean": 0.01, "std": 0.004}, even(0, 255, np.uint8)),
        ({"depth": None, "mean": 0.01, "std": 0.004}, np.ones((1, 3, SIDE, SIDE))),
        (TWELVE, np.full((1, 3, SIDE, SIDE), 4095, np.uint16)),
        (TWELVE, even(0, 255, np.uint8)),
        (TWELVE, even(0, 100, np.uint16)),
        (DARK, even(9_000, 12_000, np.uint16)),  # clouds
        (DARK, np.zeros((1, 3, SIDE, SIDE), np.uint16)),
        ({"depth": "uint16", "white": 1000, "mean": 3.0, "std": 2.0}, even(0, 12_000, np.uint16)),
    ],
)
def test_images_that_are_rare_are_taken_and_nothing_is_said(
    images: dict[str, Any], given: NDArray[Any], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = of(**images)
    assert encoder.embed(encoder.normalise(given)).isfinite().all() and not caplog.text


def test_what_is_in_doubt_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = of(**{**KELVIN, "std": 10.25})
    for _ in range(2):
        encoder.normalise(even(180, 190))
    assert caplog.text.count("about 185, where the encoder's own are about 280, give or take 10.2") == 1


@pytest.mark.parametrize("images", [KELVIN, TWELVE, {"depth": "uint8", "mean": 0.5, "std": 0.25}], ids=str)
def test_raw_floats_and_values_that_are_no_numbers_are_not_embedded(images: dict[str, Any]) -> None:
    encoder = of(**images)
    for bad in (even(0, 100), even(250, 310)):
        with pytest.raises(UserError, match="not normalised"):
            encoder.embed(bad)
    for value in (np.nan, np.inf, -np.inf):
        one = np.zeros((2, 3, SIDE, SIDE), np.float32)
        one[1, 2, 3, 4] = value
        for use in (encoder, encoder.embed, encoder.layers):
            with pytest.raises(UserError, match="not finite"):
                use(one)


def test_no_images_give_no_features(runs: dict[str, Run]) -> None:
    encoder = jepakit.load(runs["uint8"].path)
    for kind in (np.uint8, np.float32, np.int64):
        none = encoder.normalise(np.zeros((0, 3, SIDE, SIDE), kind))
        assert none.shape == (0, 3, SIDE, SIDE) and none.dtype == torch.float32
        assert encoder(none).shape == (0, 16, 16) and encoder.embed(none).shape == (0, 16)
        assert [x.shape for x in encoder.layers(none)] == [(0, 16, 16)]


def test_other_shapes_are_refused_with_what_to_do(runs: dict[str, Run]) -> None:
    encoder = jepakit.load(runs["uint8"].path)
    for shape, words in (
        ((2, SIDE, SIDE, 3), r"permute\(0, 3, 1, 2\)"),
        ((SIDE, SIDE, 3), r"images\[None\]\.permute\(0, 3, 1, 2\)"),
        ((3, SIDE, SIDE), r"images\[None\]"),
        ((2, 1, SIDE, SIDE), r"expand\(-1, 3, -1, -1\)"),
        ((2, 13, SIDE, SIDE), r"\(B, 3, H, W\).*got \(2, 13"),
        ((SIDE, SIDE), r"\(B, 3, H, W\)"),
    ):
        for use in (encoder, encoder.embed, encoder.normalise):
            with pytest.raises(UserError, match=words):
                use(torch.zeros(shape))
    for size in ((18, 16), (0, 16)):
        with pytest.raises(UserError, match="multiples of 4"):
            encoder(torch.zeros(1, 3, *size))
    for thing in ([np.zeros((3, SIDE, SIDE))], Image.new("RGB", (SIDE, SIDE)), None, "a.png"):
        with pytest.raises(UserError, match=r"np\.stack"):
            encoder.normalise(thing)  # type: ignore[arg-type]


def test_encoders_whose_depth_is_not_known_take_what_says_its_own_white() -> None:
    encoder = Encoder(ViT(ViTConfig(patch_size=4, width=16, depth=1, heads=2), (4, 4)), ImageSettings(size=SIDE))
    for kind in ("uint8", "16 bits"):
        close(encoder.normalise(first(stored(kind))), first(right(kind, stored(kind), encoder.images)))
    for raw in (first(stored("uint8")).astype(np.int64), first(stored("uint8")).astype(np.float32)):
        with pytest.raises(UserError):
            encoder.normalise(raw)


def test_what_is_shown_of_negative_values_is_not_black() -> None:
    decibels = torch.tensor([-20.0, -10.0, -5.0]).view(1, 1, 3)
    assert to_show(decibels).tolist() == [[[0, 170, 255]]] * 3


# ---- mean and deviation


def test_auto_is_as_if_it_were_not_given(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("recipe: ijepa_vitb16\nimages: {mean: auto, std: auto}\n")
    words = overrides(["images.mean=auto", "images.std=auto"])
    for config in (
        settings("ijepa_vitb16", None, words),
        settings("ijepa_vitb16", None, read_yaml(tmp_path / "c.yaml")),
        settings("ijepa_vitb16", None, {"images": {"mean": "auto", "std": "auto"}}),
    ):
        assert not {"mean", "std"} & config.images.model_fields_set
    with pytest.raises(UserError, match=r"images\.mean"):
        settings("ijepa_vitb16", None, overrides(["images.mean=automatic"]))


SMALLEST = [w for w in TINY if not w.startswith(("images.size", "encoder.patch"))]
PAPERS = [*SMALLEST, "images.size=64", "encoder.patch_size=16", "masking.compat=none", "run.precision=fp32"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [[], ["images.mean=auto", "images.std=auto"]])
def test_a_recipes_mean_of_colour_photographs_is_not_kept_for_other_images(
    runs: dict[str, Run], kind: str, words: list[str], tmp_path: Path
) -> None:
    data = runs[kind].config.data
    run = pretrain(data, tmp_path / "run", "ijepa_vitb16", set=[*PAPERS, *words, *WORDS.get(kind, [])])
    pixels = np.stack([stored(kind, i) for i in range(8)]) / KINDS[kind]
    said = (tmp_path / "run/run.log").read_text()
    if kind == "uint8" and not words:
        assert (run.config.images.mean, run.config.images.std) == IMAGENET and "ImageNet's" not in said
        return
    np.testing.assert_allclose(run.config.images.mean, pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(run.config.images.std, pixels.std((0, 1, 2)), atol=1e-4)
    assert ("are ImageNet's" in said and str(run.config.images.mean[0]) in said) == (not words)


def test_gray_arrays_are_not_normalised_as_colour_photographs(tmp_path: Path) -> None:
    np.save(tmp_path / "gray.npy", np.random.default_rng(0).integers(0, 60, (8, SIDE, SIDE), dtype=np.uint8))
    run = pretrain(tmp_path / "gray.npy", tmp_path / "run", "ijepa_vitb16", set=PAPERS)
    assert run.config.images.mean == pytest.approx((29.5 / 255,) * 3, abs=0.01)


def test_a_depth_that_is_said_is_that_of_the_images(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images\.depth=uint8.*uint16"):
        pretrain(runs["16 bits"].config.data, tmp_path / "run", set=[*TINY, "images.depth=uint8"])


# ---- what is said with the value that it has anyway changes nothing


def leaves(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key."""
    found = {}
    for key in dict.fromkeys(key for key, _ in fields()):
        value: Any = config.model_dump()
        for part in key.split("."):
            value = value.get(part, KeyError) if isinstance(value, dict) else KeyError
        if value is not KeyError and not isinstance(value, dict) and key not in ("recipe", "method"):
            found[key] = value
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_value_may_be_said(name: str) -> None:
    config = settings(name, None)
    measured = {"mean", "std"} - config.images.model_fields_set
    for key, value in leaves(config).items():
        if key.removeprefix("images.") in measured:  # said, it is not measured
            continue
        said = settings(name, None, nested(key, value))
        assert said.model_dump() == config.model_dump(), key
        assert {"mean", "std"} - said.images.model_fields_set == measured, key


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("images", [300, 60_000, 2_000_000])
@pytest.mark.parametrize("bands", [1, 13])
def test_a_chosen_value_may_be_said(device: str, images: int, bands: int) -> None:
    found = DataSummary(images, 130, 100, bands, device, 4)

    def made(layer: dict[str, Any]) -> tuple[Choice, Config]:
        said = UserSettings.model_validate(layer)
        choice = choose(found, said)
        return choice, settings(None, None, choice.settings, layer)

    _, config = made({})
    for key, value in leaves(config).items():
        assert made(nested(key, value))[1].model_dump() == config.model_dump(), key
