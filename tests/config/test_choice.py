"""With no recipe named, settings suit the images and the device; the user's own words win; a run says what was chosen."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jepakit import cli
from jepakit.config.choice import DataSummary, UserSettings, choose
from jepakit.config.config import overrides
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import decode
from jepakit.data.formats.folder import FolderSource
from jepakit.data.sources import ArraySource
from jepakit.data.statistics import shapes_of
from jepakit.planning.check import check
from jepakit.training.train import pretrain

BRIEF = ["optim.steps=2", "run.probe_images=0", "run.threads=1"]


def found(
    images: int = 12_431, long: int = 96, short: int = 96, bands: int = 3, device: str = "cpu", cores: int = 2
) -> DataSummary:
    return DataSummary(images, long, short, bands, device, cores)


def chosen(what: DataSummary, *words: str) -> dict[str, Any]:
    """What is chosen beside the user's words, by dotted key."""
    layer = choose(what, UserSettings.model_validate(overrides(list(words)))).settings
    return {f"{group}.{key}": value for group, part in layer.items() for key, value in part.items()}


def folder(root: Path, count: int, side: int, **save: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side + i % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02}.png", **save)
    return root


# ---- the choice


def test_a_cpu_takes_64_px_the_demos_encoder_and_two_million_images() -> None:
    assert chosen(found()) == {
        "images.size": 64,
        "encoder.patch_size": 8,
        "encoder.width": 128,
        "encoder.depth": 4,
        "encoder.heads": 4,
        "predictor.width": 64,
        "predictor.depth": 2,
        "optim.batch_size": 64,
        "optim.epochs": 161,
        "optim.warmup_epochs": 16.1,
    }


@pytest.mark.parametrize(
    "images, size, patch, encoder, batch, epochs",
    [
        (49_999, 96, 8, "tiny", 128, 400),
        (50_000, 96, 8, "small", 256, 400),
        (499_999, 128, 8, "small", 256, 40),
        (500_000, 128, 8, "base", 256, 40),
        (10**7, 128, 8, "base", 256, 5),
    ],
)
def test_a_cuda_device_takes_larger_ones(images: int, size: int, patch: int, encoder: str, batch: int, epochs: int) -> None:
    values = chosen(found(images, short=size, long=400, device="cuda", cores=16))
    assert (values["images.size"], values["encoder.patch_size"], values["encoder.size"]) == (size, patch, encoder)
    assert (values["optim.batch_size"], values["optim.epochs"], values["run.loader_threads"]) == (batch, epochs, 8)
    papers = any("jepakit recipes" in reason for reason in choose(found(images, device="cuda")).reasons)
    assert papers == (encoder == "base")


@pytest.mark.parametrize(
    "short, size, patch",
    [(10, 32, 4), (27, 32, 4), (28, 28, 4), (31, 28, 4), (32, 32, 4), (47, 32, 4), (48, 48, 6), (63, 48, 6), (64, 64, 8)],
)
def test_the_size_is_never_above_the_images_own_down_to_28_px(short: int, size: int, patch: int) -> None:
    for device in ("cpu", "cuda"):
        values = chosen(found(short=short, long=5 * short, device=device))  # long images: square all the same
        assert (values["images.size"], values["encoder.patch_size"]) == (size, patch)


@given(
    st.integers(2, 10**7),
    st.integers(1, 5000),
    st.sampled_from((1, 2, 3, 4, 13)),
    st.sampled_from(("cpu", "cuda")),
    st.integers(1, 200),
)
def test_every_choice_is_a_run_that_can_be(images: int, short: int, bands: int, device: str, cores: int) -> None:
    choice = choose(found(images, short + 3, short, bands, device, cores))
    config = settings(None, None, choice.settings)
    o, rows = config.optim, config.grid[0]
    config.masking.check(config.grid)
    assert config.recipe == "small" and config.images.channels == (3 if bands == 1 else bands)
    assert config.grid == (rows, rows) and rows == {28: 7, 96: 12, 128: 16}.get(config.images.height_width[0], 8)
    assert o.batch_size == 2 or o.batch_size <= images / 4
    assert 5 <= o.epochs <= 800 and o.warmup_epochs == o.epochs / 10
    seen = 2_000_000 if device == "cpu" else 20_000_000
    assert o.epochs in (5, 800) or math.isclose(o.epochs * images, seen, rel_tol=0.1)
    assert bool(choice.warning) == (images < 1000)
    for reason in choice.reasons:  # what is said is what is set
        for word in reason.split(": ")[0].split():
            group, key = word.split("=")[0].split(".")
            assert word.endswith(f"={choice.settings[group][key]}")


@pytest.mark.parametrize("side", range(8, 65))
def test_check_never_advises_another_size_than_was_chosen(side: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (12, side, side, 3), dtype=np.uint8))
    checked = check(tmp_path / "x.npy")
    assert checked.verdict.startswith("fine for recipe small") and "set " not in checked.verdict
    size = checked.fit.size[0]
    assert size <= side if side >= 28 else size == 32


@pytest.mark.parametrize("side", [8, 20, 27, 28, 31, 40, 63, 64, 100, 200])
@pytest.mark.parametrize("words", [["recipe=small"], ["recipe=ijepa_vitb16"], ["recipe=ijepa_vith14"], ["images.size=224"]])
def test_what_check_advises_is_a_run_that_can_be_and_is_not_advised_against(side: int, words: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (12, side, side, 3), dtype=np.uint8))
    words = [*words, "optim.batch_size=4"]
    verdict = check(tmp_path / "x.npy", set=words).verdict
    _, advice, rest = verdict.partition("most images would be enlarged: set ")
    if not advice:
        least = 96 if "ijepa" in words[0] else 32  # of fewer patches the papers' masks refuse
        assert side < least or side >= check(tmp_path / "x.npy", set=words).fit.size[0]
        return
    again = check(tmp_path / "x.npy", set=[*words, *rest.removesuffix(" for none to be").split()])
    assert again.fit.smaller == 0 and again.verdict.startswith("fine") and "set " not in again.verdict


# ---- the user's words


def test_what_is_said_is_not_chosen_and_what_depends_on_it_follows() -> None:
    values = chosen(found())
    for words, gone, changed in (
        (["images.size=96"], {"images.size"}, {"encoder.patch_size": 8}),
        (["images.size=28"], {"images.size"}, {"encoder.patch_size": 4}),  # no 8x8: 7x7
        (["images.size=[64,96]"], {"images.size"}, {"encoder.patch_size": 8}),
        (["images.size=31"], {"images.size", "encoder.patch_size"}, {}),  # will be refused, with the nearest that divides
        (["encoder.patch_size=16"], {"encoder.patch_size"}, {"images.size": 64}),
        (["encoder.patch_size=12"], {"encoder.patch_size"}, {"images.size": 48}),
        (["encoder.patch_size=24"], {"encoder.patch_size"}, {"images.size": 96}),  # the least of 4x4 patches
        (["optim.epochs=2"], {"optim.epochs"}, {"optim.warmup_epochs": 0.2}),
        (["optim.steps=100"], {"optim.epochs", "optim.warmup_epochs"}, {"optim.warmup_steps": 10}),
        (["optim.steps=100", "optim.warmup_epochs=1"], {"optim.epochs", "optim.warmup_epochs"}, {}),
        (["optim.warmup_steps=7"], {"optim.warmup_epochs"}, {}),
        (["optim.batch_size=8"], {"optim.batch_size"}, {}),
        (["predictor.width=96"], {"predictor.width"}, {}),
        (["optim.lr=1e-4", "masking.kind=random"], set(), {}),
    ):
        wanted = {key: value for key, value in values.items() if key not in gone} | changed
        assert chosen(found(), *words) == wanted, words


@pytest.mark.parametrize("word", ["encoder.size=tiny", "encoder.heads=3", "encoder.depth=2", "encoder.width=96"])
def test_who_shapes_the_encoder_has_the_recipes_rest(word: str) -> None:
    """Heads that do not divide another width would else refuse what the recipe alone takes."""
    layer = choose(found(), UserSettings.model_validate(overrides([word]))).settings
    config, recipe = settings(None, None, layer, overrides([word])), settings(None, None, overrides([word]))
    assert (config.encoder, config.predictor) == (recipe.encoder, recipe.predictor)


# ---- what is found


def test_shapes_are_those_of_the_decoder_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA")
    kinds = [
        "RGB JPEG",
        "L JPEG",
        "CMYK JPEG",
        "RGBA PNG",
        "P PNG",
        "1 PNG",
        "L PNG",
        "RGB WEBP",
        "RGB BMP",
        "P GIF",
        "L PPM",
        "RGB TIFF",
    ]
    for i, (mode, kind) in enumerate(kind.split() for kind in kinds):
        noise.convert(mode).save(tmp_path / f"{i:02}.png", kind)
    deep = np.random.default_rng(1).integers(0, 2**16, (20, 30), dtype=np.uint16)
    for name in ("20.png", "21.ppm", "22.tif"):
        Image.fromarray(deep).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "30.tif", np.stack([deep] * 5), photometric="minisblack", planarconfig="separate")
    source = FolderSource(tmp_path)
    wanted = [source.read(i).shape for i in range(len(source))]
    assert len(wanted) == 16 and {shape[2] for shape in wanted} == {1, 3, 5}
    (tmp_path / "05a.png").write_bytes(b"no image")
    (tmp_path / "05b.png").write_bytes(b"")
    folder(tmp_path / "huge", 1, 50)  # more pixels than the limit below
    read = []
    monkeypatch.setattr("jepakit.data.statistics.decode", lambda raw, most: read.append(raw[:2]) or decode(raw, most))
    assert shapes_of(FolderSource(tmp_path), 2000).tolist() == [list(shape) for shape in wanted]
    assert {*read} <= {b"II", b"MM"}


def test_images_that_cannot_be_read_at_all_are_one_sentence() -> None:
    class Broken(ArraySource):
        def raw(self, index: int) -> bytes:  # type: ignore[override]
            return b"no image"

    with pytest.raises(UserError, match="no readable image in broken"):
        shapes_of(Broken("broken", np.zeros((4, 1, 1, 3), np.uint8), None), 100)


# ---- a run


def test_a_run_keeps_and_says_what_was_chosen_and_check_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = folder(tmp_path / "photos", 40, 50)
    run = pretrain(photos, tmp_path / "run", set=BRIEF)
    config, told = run.config, (run.path / "run.log").read_text()
    assert run.finished and config.recipe == "small"
    assert (config.images.size, config.encoder.width, config.optim.batch_size, config.optim.warmup_steps) == (48, 128, 8, 0)
    choice = choose(found(40, 51, 50), UserSettings.model_validate(overrides(BRIEF)))
    assert config == settings(None, None, choice.settings, overrides(BRIEF)).model_copy(
        update={"data": config.data, "images": config.images}
    )
    for line in (choice.about, *choice.reasons, "only 40 images"):
        assert line in told
    assert pretrain(resume=run.path).config == config
    cli.main(["data", "check", str(photos), *BRIEF])
    table = " ".join(capsys.readouterr().out.split())
    for line in (f"pretrain chooses for {choice.about}:", *choice.reasons, "only 40 images"):
        assert line in table


def test_with_a_recipe_or_a_file_nothing_is_chosen(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", 12, 20)
    (tmp_path / "some.yaml").write_text("optim: {batch_size: 4}\nencoder: {size: null, depth: 1}\n")
    words = [*BRIEF, "optim.batch_size=4", "encoder.depth=1"]
    runs = [
        pretrain(photos, tmp_path / "a", "small", set=words),
        pretrain(photos, tmp_path / "b", set=[*words, "recipe=small"]),
        pretrain(photos, tmp_path / "c", config=tmp_path / "some.yaml", set=BRIEF),
    ]
    for run in runs:
        assert (run.config.images.size, run.config.optim.epochs, run.config.predictor.width) == (64, 100, 96)
        assert "chosen" not in (run.path / "run.log").read_text()
    assert check(photos, "small", set=words).choice == ()


def test_the_least_set_trains_and_bands_are_those_of_the_images(tmp_path: Path) -> None:
    for count in (2, 5):
        assert pretrain(folder(tmp_path / f"{count}", count, 20), tmp_path / f"run{count}", set=BRIEF).finished
    (tmp_path / "bands").mkdir()
    for i in range(6):
        bands = np.random.default_rng(i).integers(0, 10_000, (20, 20, 13), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"bands/{i}.tif", bands, photometric="minisblack", planarconfig="contig")
    run = pretrain(tmp_path / "bands", tmp_path / "run", set=BRIEF)
    assert run.finished and run.config.images.channels == 13 and len(run.config.images.mean) == 13


def test_a_folder_that_holds_a_run_is_refused_before_an_image_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("optim: {}\nencoder: {}\nrun: {}\n")
    monkeypatch.setattr("jepakit.config.choice.open_source", lambda *_, **__: pytest.fail("it was opened"))
    for recipe in (None, "small"):
        with pytest.raises(UserError, match=r"holds a run: go on with --resume .*--overwrite"):
            pretrain(tmp_path, tmp_path, recipe)
