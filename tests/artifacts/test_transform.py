"""Encoder.embed and Encoder.transform: what is given to an encoder in any form is what evaluation shows it."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import jepakit
from jepakit.data.opening import open_source
from jepakit.data.sources import ArraySource
from jepakit.evaluation.features import evaluation_view
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.inputs import ImagesError
from jepakit.model.vit import ViT, ViTConfig


def encoder_of(**images: Any) -> Encoder:
    torch.manual_seed(0)
    shown = ImageSettings(size=16, **{"depth": "uint8", **images})
    vit = ViT(ViTConfig(width=16, depth=1, heads=2, patch_size=4), (4, 4), shown.channels)
    return jepakit.Encoder(vit, shown).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNGs of every kind that Pillow holds whole: colour, gray, transparent, palette, 16-bit gray, one that lies on its side."""
    place, draw = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (23, 31, 3), dtype=np.uint8))
    colour.save(place / "a.png")
    colour.convert("L").save(place / "b.png")
    Image.fromarray(draw.integers(0, 256, (40, 18, 4), dtype=np.uint8)).save(place / "c.png")
    colour.convert("P").save(place / "d.png")
    Image.fromarray(draw.integers(0, 65536, (20, 20), dtype=np.uint16)).save(place / "e.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(place / "f.png", exif=exif)
    return place


def by_hand(encoder: Encoder, folder: Path) -> Tensor:
    """Each image as evaluation shows it, normalised."""
    source = open_source(str(folder))
    views = [evaluation_view(source, i, encoder.images) for i in range(len(source))]
    return torch.cat([encoder.normalise(view[None]) for view in views])


def test_a_transform_is_what_evaluation_shows(folder: Path) -> None:
    encoder = encoder_of()
    expected, files = by_hand(encoder, folder), sorted(folder.iterdir())
    for make in (str, Path, Image.open):
        assert torch.equal(torch.stack([encoder.transform(make(file)) for file in files]), expected), make
    again = pickle.loads(pickle.dumps(encoder.transform))
    assert torch.equal(again(files[0]), expected[0])
    assert expected[5].shape == (3, 16, 16) and not torch.equal(expected[5], expected[0]), "the one on its side was turned"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_an_opened_image_is_turned_as_its_file_is(kind: str, turn: int, tmp_path: Path) -> None:
    """Once, whatever of Pillow's it went through on the way."""
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8)).resize((34, 22))
    exif = Image.Exif()
    exif[0x0112] = turn
    colour.save(tmp_path / "image", kind, exif=exif)
    transform = encoder_of().transform
    expected = transform(tmp_path / "image")
    for change in (Image.Image.copy, ImageOps.exif_transpose, lambda image: image, lambda image: image.convert("RGB")):
        assert torch.equal(transform(change(Image.open(tmp_path / "image"))), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_and_tensors_are_what_a_set_of_pixels_would_be(channels: int, dtype: Any) -> None:
    encoder = encoder_of(channels=channels, depth=np.dtype(dtype).name, mean=(0.5,) * channels, std=(0.25,) * channels)
    draw, white = np.random.default_rng(1), 1 if dtype is np.float32 else np.iinfo(dtype).max
    image = (draw.random((20, 33, channels)) * white).astype(dtype)
    view = evaluation_view(ArraySource("", image[None], None), 0, encoder.images)
    expected = encoder.normalise(view[None])[0]
    for given in (image, image.transpose(2, 0, 1), torch.from_numpy(image), torch.from_numpy(image).permute(2, 0, 1)):
        assert torch.equal(encoder.transform(given), expected)
    if channels == 1:
        assert torch.equal(encoder.transform(image[..., 0]), expected)


def test_floats_are_in_units_of_white_whatever_white_is_in_files() -> None:
    """Of an encoder of Sentinel-2's reflectances floats 0 to 1 are those, as for `normalise`, and uint16 are divided by 10000."""
    encoder = encoder_of(depth="uint16", white=10000, mean=(0.3,) * 3, std=(0.2,) * 3)
    stored = np.random.default_rng(0).integers(0, 10001, (16, 16, 3), dtype=np.uint16)
    floats = stored.astype(np.float32) / np.float32(10000)
    expected = (floats.transpose(2, 0, 1) - np.float32(0.3)) / np.float32(0.2)
    for given in (stored, floats):
        assert np.allclose(encoder.transform(given).numpy(), expected, atol=1e-6)


def test_embed_prepares_whatever_is_not_normalised(folder: Path) -> None:
    encoder = encoder_of()
    files = sorted(folder.iterdir())
    expected = encoder(by_hand(encoder, folder)).mean(1)
    assert torch.equal(encoder.embed(by_hand(encoder, folder)), expected), "normalised floats are taken as they are"
    assert torch.equal(encoder.embed(files), expected)
    assert torch.equal(encoder.embed(tuple(Image.open(file) for file in files)), expected)
    one = encoder.embed(str(files[0]))
    assert one.shape == (1, 16) and torch.allclose(one, expected[:1], atol=1e-6)
    batch = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    many = encoder.embed(batch)
    assert torch.equal(many, encoder.embed([Image.fromarray(image) for image in batch]))
    for given in (torch.from_numpy(batch), torch.from_numpy(batch).permute(0, 3, 1, 2), [*batch]):
        assert torch.equal(encoder.embed(given), many)
    assert torch.equal(encoder.embed(batch[0]), encoder.embed(batch[:1])) and encoder.embed([]).shape == (0, 16)
    long = encoder.embed([batch[0]] * 130)
    assert long.shape == (130, 16) and torch.allclose(long, encoder.embed(batch[0]).expand(130, -1), atol=1e-6)


def test_threads_share_an_encoder_and_an_opened_image(folder: Path) -> None:
    encoder, expected = encoder_of(), by_hand(encoder_of(), folder)
    opened = [Image.open(file) for file in sorted(folder.iterdir())]
    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(encoder.transform, opened * 20))
    assert all(torch.equal(view, expected[i % len(opened)]) for i, view in enumerate(views))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, dtype: torch.dtype) -> None:
    encoder, files = encoder_of(), sorted(folder.iterdir())
    full = encoder.embed(files)
    half = encoder.to(dtype).embed(files)
    assert half.dtype == dtype and torch.allclose(half.float(), full, atol=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_encoder_on_cuda(folder: Path, dtype: torch.dtype) -> None:
    files, encoder = sorted(folder.iterdir()), encoder_of()
    expected = encoder.embed(files)
    found = encoder.to("cuda", dtype).embed(files)
    assert found.device.type == "cuda" and found.dtype == dtype
    torch.testing.assert_close(found.float().cpu(), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("no/such.png", "no/such.png: No such file"),
        (3, "an image a int: give PIL images, arrays or tensors"),
        ([3], "a int: give"),
        (np.zeros((4, 4, 4), np.uint8), r"in \(4, 4, 4\) channels cannot be told"),
        (np.zeros((3, 32, 3), np.uint8), "cannot be told"),
        (np.zeros((9, 30, 30), np.uint8), "has 9 bands, and images.channels is 3"),
        (torch.zeros(3, 16, 16, dtype=torch.int64), "holds int64: give uint8, uint16 or floats"),
        (np.zeros((0, 5, 3), np.uint8), "cannot be told|holds no pixels"),
        (np.zeros(5, np.uint8), "is not the shape of an image"),
        (torch.zeros(3, 16, 16), r"must be \(B, 3, H, W\)"),
    ],
)
def test_what_is_no_image_is_said(given: Any, words: str) -> None:
    with pytest.raises(ImagesError, match=words):
        encoder_of().embed(given)
