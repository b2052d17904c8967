"""What is inside an image file: pages, channels, no data, depth, polarity; and what of it is said to the user."""

import io
import logging
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from badfiles import head, png
from jepakit.data.decoding.decode import decode
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.findings import Finding, Tally, findings_in
from jepakit.data.formats.pack import pack
from jepakit.data.opening import open_source
from jepakit.data.sets.emoji import EmojiSource
from jepakit.data.sources import ArraySource
from jepakit.data.statistics import channel_statistics, fitted
from jepakit.model.images import ImageSettings
from jepakit.planning.check import check
from jepakit.training.train import pretrain

TINY = [
    "optim.steps=1",
    "optim.batch_size=4",
    "optim.warmup_steps=0",
    "images.size=32",
    "encoder.patch_size=8",
    "encoder.width=48",
    "encoder.depth=1",
    "encoder.heads=2",
    "predictor.width=24",
    "predictor.depth=1",
    "predictor.heads=2",
    "run.threads=1",
    "run.loader_threads=1",
    "run.probe_images=0",
]
Array = NDArray[Any]


def draw(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


def tiff(array: Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None, **options})
    return buffer.getvalue()


def pages(*written: tuple[Array, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array, options in written:
            writer.write(array, **{"photometric": "rgb", "metadata": None, **options})
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def wave(seed: int, side: int = 48) -> Array:
    """A smooth image in [.05, .95]."""
    a, b, c = np.random.default_rng(seed).uniform(0.05, 0.5, 3)
    y, x = np.mgrid[:side, :side]
    found: Array = 0.5 + 0.45 * np.sin(a * x + b * y + 9 * c)
    return found


def findings_of(data: bytes) -> dict[str, str]:
    findings = list[Finding]()
    decode(data, findings=findings)
    return {found.kind: found.detail for found in findings}


# ---- pages


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"imagej": True, "metadata": {"axes": "CYX"}, "truncate": True},  # one directory for all pages
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}, "compression": "zlib", "bigtiff": True},
        {"metadata": {"axes": "CYX"}},
        {"metadata": {"axes": "CYX"}, "truncate": True},
    ],
)
def test_pages_that_are_channels_are_bands(dtype: Any, options: dict[str, Any]) -> None:
    for count in (2, 3, 5):
        planes = draw(count, 6, 9, dtype=dtype)
        data = tiff(planes, **options)
        np.testing.assert_array_equal(decode(data), np.moveaxis(planes, 0, 2))
        assert decode(data).dtype == dtype and findings_of(data) == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "axes, kind", [("ZCYX", "imagej"), ("TZCYX", "imagej"), ("ZCYX", "ome"), ("CZYX", "ome"), ("TCZYX", "ome"), ("CZYX", "")]
)
def test_of_other_axes_the_first_is_read_with_all_its_channels_and_the_number_is_told(axes: str, kind: str, dtype: Any) -> None:
    sizes = {"T": 2, "Z": 4, "C": 3, "Y": 6, "X": 9}
    stack = draw(*(sizes[axis] for axis in axes), dtype=dtype)
    data = tiff(stack, metadata={"axes": axes}, **({kind: True} if kind else {}))
    first = stack[tuple(slice(None) if axis in "CYX" else 0 for axis in axes)]
    np.testing.assert_array_equal(decode(data), np.moveaxis(first, 0, 2))
    assert findings_of(data) == {"pages": f"{np.prod(stack.shape[:-2])} pages (axes {axes})"}


def test_ome_planes_lie_where_it_says_and_a_file_without_them_is_its_first_page() -> None:
    planes = draw(3, 6, 9)
    said = '<OME><Image><Pixels SizeC="3" SizeZ="1" SizeT="1" DimensionOrder="XYZCT">{}</Pixels></Image></OME>'
    turned = said.format("".join(f'<TiffData FirstC="{c}" IFD="{2 - c}" PlaneCount="1"/>' for c in range(3)))
    np.testing.assert_array_equal(decode(tiff(planes, description=turned)), np.moveaxis(planes[::-1], 0, 2))
    apart = said.format("".join(f'<TiffData FirstC="{c}" IFD="0"><UUID FileName="{c}.tif"/></TiffData>' for c in range(3)))
    np.testing.assert_array_equal(decode(tiff(planes[0], description=apart))[..., 0], planes[0])
    huge = '<OME><Pixels SizeC="999999999" SizeZ="999999999"/></OME>'
    np.testing.assert_array_equal(decode(tiff(planes[0], description=huge))[..., 0], planes[0])


def test_colour_pages_stay_colour() -> None:
    colour, two = draw(6, 9, 3), draw(2, 6, 9, 3)
    for options in ({"ome": True}, {"imagej": True}):
        rgb = {} if "imagej" in options else {"photometric": "rgb"}
        data = tiff(colour, metadata={"axes": "YXS"}, **options, **rgb)
        np.testing.assert_array_equal(decode(data), colour)
        stack = tiff(two, metadata={"axes": "CYXS"}, **options, **rgb)
        np.testing.assert_array_equal(decode(stack), np.concatenate([*two], 2))
        assert findings_of(data) == findings_of(stack) == {}
    frames = tiff(two, photometric="rgb")
    np.testing.assert_array_equal(decode(frames), two[0])
    assert findings_of(frames) == {"pages": "2 pages"}


@pytest.mark.parametrize("depth", [1, 256])
def test_a_smaller_copy_or_a_mask_is_neither_the_image_nor_a_page(depth: int) -> None:
    colour = draw(64, 64, 3).astype(np.uint8 if depth == 1 else np.uint16) * depth
    small = colour[::4, ::4]
    for data in (
        pages((colour, {"subifds": 1}), (small, {"subfiletype": 1})),
        pages((colour, {}), (small, {"subfiletype": 1}), (small, {"subfiletype": 1})),
        pages((small, {"subfiletype": 1}), (colour, {})),
        pages((small, {"subfiletype": 1, "subifds": 1}), (colour, {})),  # the image below its thumbnail
    ):
        np.testing.assert_array_equal(decode(data), colour)
        assert findings_of(data) == {}
    masked = pages((colour, {}), (small[..., 0] > 99, {"subfiletype": 4, "photometric": "mask"}))
    assert findings_of(masked) == {"mask": ""}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_pages_are_counted_without_tifffile_too(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = draw(12, 6, 9, dtype=dtype)
    files = {
        "12 pages": tiff(stack),
        "12 pages (axes ZYX)": tiff(stack, imagej=True, metadata={"axes": "ZYX"}),
        "12 pages (axes TYX)": tiff(stack, ome=True, metadata={"axes": "TYX"}),
        "12 pages (axes QYX)": tiff(stack, metadata={}, truncate=True),
    }
    channels = tiff(stack, imagej=True, metadata={"axes": "CYX"})
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for words, data in files.items():
        assert findings_of(data) == {"pages": words}
        np.testing.assert_array_equal(decode(data)[..., 0], stack[0])
    assert decode(channels).shape == (6, 9, 12)


@pytest.mark.parametrize("kind, words", [("GIF", "3 frames"), ("WEBP", "3 frames"), ("PNG", "3 frames"), ("MPO", "3 pictures")])
def test_frames_and_pictures_are_counted(kind: str, words: str) -> None:
    frames = [Image.fromarray(draw(16, 16, 3, seed=s)) for s in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert findings_of(data) == {"pages": words}
    assert findings_of(encoded(frames[0], "JPEG" if kind == "MPO" else kind)) == {}
    if kind == "MPO":
        assert findings_of(data.replace(b"\xff\xd9", b"\xff\xd9hdrgm:Version", 1)) == {}  # what makes HDR of the picture is none
        at = data.index(b"MPF\0") + 4
        order = "<" if data[at : at + 2] == b"II" else ">"
        entries = data.index(struct.pack(order + "I", 0x030000), at + 40) + 16  # that of the second picture
        small = bytearray(data)
        small[entries : entries + 4] = struct.pack(order + "I", 0x010001)  # a large thumbnail
        assert findings_of(bytes(small)) == {"pages": "2 pictures"}


def test_pages_multiply_no_memory() -> None:
    one = np.zeros((1, 8000, 8000), np.uint8)
    for options in ({"imagej": True, "metadata": {"axes": "CYX"}}, {"ome": True, "metadata": {"axes": "CYX"}}):
        data = tiff(np.repeat(one[:, :80, :80], 9, 0), **options)
        with pytest.raises(BadImageError, match="bomb"):
            decode(data, most_pixels=2 * 80 * 80)  # nine bands of a byte weigh as three pixels
        assert decode(data, most_pixels=3 * 80 * 80).shape == (80, 80, 9)
    loop = bytearray(tiff(draw(2, 6, 9)))
    first = int.from_bytes(loop[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(loop[first : first + 2], "little")
    loop[end : end + 4] = loop[4:8]  # the first page is the next, too
    assert findings_of(bytes(loop)) == {}


# ---- no data


@pytest.mark.parametrize(
    "dtype, value, text",
    [
        (np.float32, -9999, "-9999"),
        (np.float32, np.nan, "nan"),
        (np.float64, -1.7e308, "-1.7e308"),
        (np.float32, -3.4028234663852886e38, "-3.4028234663852886e+38 "),
        (np.uint16, 65535, "65535"),
        (np.uint16, 0, "0"),
        (np.uint8, 255, "255"),
    ],
)
def test_pixels_of_the_named_no_data_are_given_the_mean_of_the_others(dtype: Any, value: float, text: str) -> None:
    values = draw(8, 8).astype(dtype) + dtype(1)
    empty = np.arange(64).reshape(8, 8) % 4 == 0
    mean = values[~empty].mean(dtype=np.float64)
    values[empty] = value
    data = tiff(values, extratags=[(42113, "s", 0, text, True)])
    pixels = decode(data)
    np.testing.assert_array_equal(pixels[~empty][:, 0], values[~empty])
    np.testing.assert_allclose(pixels[empty], mean, atol=0.5 if values.dtype.kind == "u" else 1e-3)
    assert findings_of(data)["nodata"].endswith("fills 25.0%")


def test_no_data_of_bands_of_colours_and_of_whole_images() -> None:
    bands = np.stack([draw(8, 8, dtype=np.float32, seed=s) for s in range(2)], 2)
    bands[:4, :, 1] = -9999
    named = [(42113, "s", 0, "-9999", True)]
    pixels = decode(tiff(bands, planarconfig="contig", extratags=named))
    np.testing.assert_array_equal(pixels[..., 0], bands[..., 0])  # each band has its own
    np.testing.assert_allclose(pixels[:4, :, 1], bands[4:, :, 1].mean(), rtol=1e-6)
    colour = draw(8, 8, 3) + np.uint8(1)
    colour[0], colour[1] = 0, (0, 200, 0)
    black = [(42113, "s", 0, "0", True)]
    pixels = decode(tiff(colour, photometric="rgb", extratags=black))
    np.testing.assert_array_equal(pixels[1:], colour[1:])  # a green without red is no hole
    assert np.abs(pixels[0].astype(float) - colour[1:].mean((0, 1))).max() <= 0.5
    with pytest.raises(BadImageError, match="no data"):
        decode(tiff(np.full((8, 8), -9999, np.float32), extratags=named))
    for text in ("-9999", "none", ""):  # not there, or no number
        data = tiff(colour, photometric="rgb", extratags=[(42113, "s", 0, text, True)])
        np.testing.assert_array_equal(decode(data), colour)
        assert findings_of(data) == {}


def notes(images: list[Array]) -> str:
    tally = Tally()
    for index, image in enumerate(images):
        tally.add(index, findings_in(image if image.ndim == 3 else image[..., None]))
    return " | ".join(tally.notes(EmojiSource(), len(images)))


def with_holes(image: Array, value: float, share: float, seed: int) -> Array:
    image = image.copy()
    image[np.random.default_rng(seed).random(image.shape) < share] = value
    return image


@pytest.mark.parametrize(
    "dtype, low, high, value, share",
    [
        (np.float32, 0, 1, -9999, 0.1),
        (np.float32, 0, 1, -9999, 0.01),
        (np.float32, 0, 1, 1e20, 0.1),
        (np.float32, 0, 4000, -32768, 0.02),
        (np.float32, 200, 320, 0, 0.1),
        (np.uint16, 0, 4095, 65535, 0.1),
        (np.uint16, 0, 65535, 65535, 0.1),
        (np.uint16, 0, 65535, 0, 0.1),
    ],
)
def test_a_value_apart_from_all_others_is_said_with_its_share(
    dtype: Any, low: float, high: float, value: float, share: float
) -> None:
    images = [with_holes((low + wave(s) * (high - low)).astype(dtype), value, share, s) for s in range(8)]
    said = notes(images)
    measured = np.mean([(image == dtype(value)).mean() for image in images])
    assert said.count("images") == 1 and said.startswith("8 of 8 images have pixels of")
    assert f"({dtype(value):.7g}, {measured:.1%} of the pixels)" in said and "GDAL_NODATA" in said
    if value < 0:  # one image of many that has it is enough
        assert "1 of 40 images has pixels of a value far from" in notes(
            [*images[:1], *(wave(s).astype(dtype) for s in range(39))]
        )


def test_ordinary_images_at_any_depth_hold_no_value_apart() -> None:
    emoji = [EmojiSource().raw(index) for index in range(0, 6000, 60)]
    rng, shapes = np.random.default_rng(0), np.mgrid[:64, :64]
    cells = []
    for _ in range(20):
        spots = sum(
            h * np.exp(-((shapes[0] - a) ** 2 + (shapes[1] - b) ** 2) / 40)
            for a, b, h in rng.uniform(0, 64, (9, 3)) * (1, 1, 0.02)
        )
        cells.append(np.clip(rng.poisson(spots * 900 + 2) * 100, 0, 65535).astype(np.uint16))
    assert max((image == 65535).mean() for image in cells) > 0.001  # some are clipped
    bright = [np.clip(image.astype(np.float32) / 200, 0, 1) for image in emoji]
    for images in (
        emoji,
        [image.astype(np.uint16) * 257 for image in emoji],
        [(image / 255).astype(np.float32) for image in emoji],
        bright,
        [(image > image.mean()).astype(np.float32) for image in emoji],
        cells,
        [np.maximum(image.astype(np.float32) - 500, 0) for image in cells],
        [(65535 * wave(s)).astype(np.uint16) for s in range(9)],
    ):
        assert notes(images) == ""


def test_no_data_in_few_images_is_said_by_its_share_of_all_pixels() -> None:
    def scenes(few: int, rows: int) -> list[Array]:
        images = [(3000 + wave(s) * 6000).astype(np.uint16) for s in range(200)]
        for image in images[:few]:
            image[:rows] = 0
        return images

    said = notes(scenes(8, 15))  # 8 / 200 x 31 % = 1.25 % of all pixels
    assert said.startswith("8 of 200 images have pixels of one value that lies apart from all their others (0, 31.2% of the")
    assert notes(scenes(1, 4)) == ""  # .04 % of them


def test_a_value_that_is_the_only_one_below_0_is_said() -> None:
    for scale in (lambda x: x, np.round, lambda x: np.maximum(0, np.round(x - 150))):
        images = [with_holes(scale(wave(s) * 300).astype(np.float32), -1, 0.08, s) for s in range(20)]
        assert "20 of 20 images have pixels of one value that lies apart from all their others (-1, 7.9% of the" in notes(images)
        few = [image if s < 2 else np.maximum(image, 0) for s, image in enumerate(images)]
        assert "2 of 20 images have pixels of one value" in notes(few)
    heights = [(np.round(wave(s) * 300) - np.round(wave(s) * 300).min() - 1).astype(np.float32) for s in range(20)]
    assert min(map(np.min, heights)) == -1 and notes(heights) == ""  # whole metres, of which -1 is one like others


def test_ordinary_sets_hold_no_value_apart_in_few_images_either() -> None:
    rng = np.random.default_rng(0)
    emoji = [EmojiSource().raw(index) for index in range(0, len(EmojiSource()), 4)]
    photographs = [np.stack([wave(3 * s + c) for c in range(3)], 2) for s in range(100)]
    clipped = [np.clip(image * 1.3 - 0.15, 0, 1) for image in photographs]
    framed = [image.copy() for image in clipped]
    for image in framed[::10]:
        image[:5] = image[-5:] = 0
    sets = {
        "emoji of 16 bits": [image.astype(np.uint16) * 257 for image in emoji],
        "emoji as floats": [(image / 127.5 - 1).astype(np.float32) for image in emoji],
        "noise": [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(200)],
        "noise of 16 bits": [rng.integers(0, 65536, (16, 16, 1)).astype(np.uint16) for _ in range(200)],
        "counts": [rng.poisson(3 * image).astype(np.uint16) for image in photographs],
        "standardised": [np.clip((image - 0.45) / 0.2, -1, 1).astype(np.float32) for image in photographs],
    }
    for name, images in {"photographs": photographs, "clipped": clipped, "framed": framed}.items():
        sets |= {f"{name} of 8 bits": [(255 * image).astype(np.uint8) for image in images]}
        sets |= {f"{name} in gray": [(255 * image[..., :1]).astype(np.uint8) for image in images]}
        sets |= {f"{name} of 16 bits": [(65535 * image).astype(np.uint16) for image in images]}
        sets |= {f"{name} as floats": [image.astype(np.float32) for image in images]}
    assert {name: said for name, images in sets.items() if (said := notes(images))} == {}


# ---- one colour


def test_images_of_one_colour_are_counted_at_every_depth() -> None:
    same = [np.full((9, 9, 3), 7, np.uint8), np.full((9, 9, 1), 0.5, np.float32), np.full((2, 2, 5), 300, np.uint16)]
    assert notes([*same, draw(9, 9, 3)]).startswith("3 of 4 images are of one colour")
    nearly = np.full((900, 900, 3), 7, np.uint8)
    nearly[899, 898, 2] = 8
    assert notes([nearly]) == ""
    two = np.full((9, 9, 3), (1, 2, 3), np.uint8)  # no gray, and of one colour
    assert notes([two]).startswith("1 of 1 images is of one colour")


def test_what_is_found_is_the_same_for_any_number_of_threads_and_where_nothing_is_measured() -> None:
    images = np.stack([np.full((8, 8, 3), 9, np.uint8) if i % 3 == 0 else draw(8, 8, 3, seed=i) for i in range(300)])
    source, found = ArraySource("some", images, None), []
    for threads in (1, 5):
        tally = Tally()
        channel_statistics(ImageSettings(), source, threads=threads, tally=tally)
        found.append(tally.notes(source, 300))
    assert found[0] == found[1] and found[0][0].startswith("100 of 300 images are of one colour, e.g. 0;")
    tally = Tally()
    fitted(ImageSettings.model_validate({"mean": (0.5,) * 3, "std": (0.2,) * 3}), source, tally=tally)
    assert "of the 128 images looked at are of one colour" in tally.notes(source, 300)[0]


def test_channels_that_hardly_vary_are_said() -> None:
    deep = np.random.default_rng(0).integers(0, 200, (6, 8, 8, 2)).astype(np.uint16)  # of 65535
    deep[..., 1] *= 300
    tally = Tally()
    channel_statistics(ImageSettings(channels=2), ArraySource("deep", deep, None), tally=tally)
    (said,) = tally.notes(EmojiSource(), 6)
    assert said.startswith("channel 0 deviates by less than 1/255 of white") and "images.white" in said


# ---- depth


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("colour, bands", [(2, 3), (6, 4), (4, 2)])
def test_a_png_of_16_bits_keeps_them(colour: int, bands: int, interlaced: int) -> None:
    values = np.random.default_rng(colour).integers(0, 65536, (5, 7, bands)).astype(np.uint16)
    rows = [values] if not interlaced else [values[y::dy, x::dx] for y, x, dy, dx in ADAM7]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for part in rows if part.size for row in part)
    data = png(head(7, 5, 16, colour, interlaced), (b"IDAT", zlib.compress(raw)))
    pixels, expected = decode(data), values.astype(float)
    if colour != 2:
        expected = values[..., :-1] * (values[..., -1:] / 65535) + 65535 * (1 - values[..., -1:] / 65535)  # on white
    assert pixels.dtype == np.uint16 and pixels.shape == (5, 7, {2: 3, 6: 3, 4: 1}[colour])
    np.testing.assert_allclose(pixels, expected, atol=0.5001)
    assert findings_of(data) == {}


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # y, x, steps


def test_a_clear_colour_of_a_deep_png_lies_on_white() -> None:
    values = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint16)
    raw = b"\0" + values.astype(">u2").tobytes()
    data = png(head(2, 1, 16), (b"tRNS", struct.pack(">HHH", 1, 2, 3)), (b"IDAT", zlib.compress(raw)))
    np.testing.assert_array_equal(decode(data), [[[65535] * 3, [1, 2, 4]]])


@pytest.mark.parametrize("kind, bands", [(6, 3), (5, 1)])
@pytest.mark.parametrize("most", [65535, 4095, 1000])
def test_a_ppm_of_16_bits_keeps_them(kind: int, bands: int, most: int) -> None:
    values = np.random.default_rng(most).integers(0, most + 1, (5, 7, bands)).astype(">u2")
    pixels = decode(b"P%d 7 5 %d\n" % (kind, most) + values.tobytes())
    np.testing.assert_array_equal(pixels, np.floor(values.astype(float) * 65535 / most + 0.5))
    assert pixels.dtype == np.uint16
    with pytest.raises(BadImageError):
        decode(b"P%d 7 5 %d\n" % (kind, most) + values.tobytes()[:-3])


def test_depth_that_is_lost_is_told_and_other_depths_are_refused() -> None:
    assert findings_of(tiff(np.random.default_rng(0).random((4, 4)))) == {"depth": "floats of 64 bits, of which 32 are kept"}
    assert "8 bits" in findings_of(b"P3 2 1 1000\n1 2 3 500 600 1000\n")["depth"]
    assert findings_of(b"P3 2 1 255\n1 2 3 50 60 100\n") == {}
    for dtype in (np.int16, np.int32, np.uint32):
        with pytest.raises(BadImageError, match="save them as uint8, uint16 or float32"):
            decode(tiff(np.full((4, 4), 70000 if dtype != np.int16 else -4, dtype)))


# ---- polarity


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True, "byteorder": ">"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_the_least_is_white_it_is_turned_at_any_depth(dtype: Any, options: dict[str, Any]) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (6, 9)).astype(dtype)
    white = decode(tiff(values, photometric="miniswhite", **options))
    np.testing.assert_array_equal(white[..., 0], np.iinfo(dtype).max - values)
    two = np.stack([values, values // 2], 2)
    white = decode(tiff(two, photometric="miniswhite", planarconfig="contig", extrasamples=["unspecified"], **options))
    np.testing.assert_array_equal(white, np.stack([np.iinfo(dtype).max - values, values // 2], 2))


def test_where_the_least_is_white_of_few_bits_floats_pages_and_no_data() -> None:
    bits = np.random.default_rng(0).random((6, 9)) < 0.5
    np.testing.assert_array_equal(decode(tiff(bits, photometric="miniswhite"))[..., 0], np.where(bits, 0, 255))
    floats = np.random.default_rng(0).random((6, 9)).astype(np.float32)
    with_most = tiff(floats, photometric="miniswhite", extratags=[(341, "f", 1, 1.0, True)])
    np.testing.assert_array_equal(decode(with_most)[..., 0], np.float32(1) - floats)
    assert set(findings_of(tiff(floats, photometric="miniswhite"))) == {"polarity"}  # of which nobody knows the largest
    planes = draw(3, 6, 9)
    channels = tiff(planes, photometric="miniswhite", imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(decode(channels), 255 - np.moveaxis(planes, 0, 2))
    holes = draw(6, 9) + np.uint8(1)
    holes[0] = 0
    named = decode(tiff(holes, photometric="miniswhite", extratags=[(42113, "s", 0, "0", True)]))
    np.testing.assert_array_equal(named[1:, :, 0], 255 - holes[1:])
    assert np.abs(named[0, :, 0] - (255 - holes[1:]).mean()).max() <= 0.5


# ---- what the user reads


def test_check_counts_all_and_pretrain_warns_in_its_first_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(8):
        (root / f"{i}.tif").write_bytes(tiff(draw(4, 40, 40, seed=i), imagej=True, metadata={"axes": "ZYX"}))
    for i in range(3):
        Image.new("RGB", (40, 40), "white").save(root / f"white {i}.png")
    checked = check(root)
    pages_, colour = checked.notes
    assert pages_.startswith("8 of 11 images hold more than one page") and "0.tif: 4 pages (axes ZYX)" in pages_
    assert colour.startswith("3 of 11 images are of one colour, e.g. white 0.png")
    for words in ([], ["images.mean=[.5,.5,.5]", "images.std=[.2,.2,.2]"]):
        caplog.clear()
        with caplog.at_level(logging.INFO, "jepakit"):
            pretrain(root, tmp_path / "run", set=[*TINY, *words], overwrite=True)
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert {pages_, colour} <= set(lines)
        assert [text for text in (tmp_path / "run" / "run.log").read_text().splitlines() if pages_ in text]


def test_a_pack_keeps_what_was_said_of_the_files(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.tif").write_bytes(tiff(draw(3, 9, 9, seed=i)))
    Image.new("RGB", (9, 9)).save(root / "black.png")
    packed = pack(root, tmp_path / "packed", threads=1)
    assert [note for note in check(root).notes if "page" in note] == list(open_source(str(packed)).notes)
    assert sum("of one colour" in note for note in check(packed).notes) == 1  # which the pack itself shows
