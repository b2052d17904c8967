"""What the settings leave to the data: shapes, mean and deviation of each channel, and the order that the storage wants."""

import io
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.data.crops import BandsError, channels_of
from jepakit.data.decoding.decode import FORMATS, decode
from jepakit.data.decoding.ifd import TIFF
from jepakit.data.decoding.pixels import BadImageError, Pixels, refuse_bomb
from jepakit.data.findings import Finding, Tally, findings_in
from jepakit.data.samples import errors_of_all, read_many
from jepakit.data.sources import Blocks, Source, spread_places
from jepakit.model.images import IMAGENET, ImageSettings

T = TypeVar("T")

log = logging.getLogger("jepakit")
_MEASURED = 1024  # images that mean and deviation are of
_LOOKED_AT = 128  # images that are read for findings where nothing is measured
SIZED = 256  # images whose size is looked up
PROBED = 8  # images looked at for their bands
LEAST_STD = 1 / 255  # of a channel that never changes


def fitted(
    images: ImageSettings, source: Source, *, threads: int = 2, seconds: float = 60.0, tally: Tally | None = None
) -> ImageSettings:
    """Settings with `mean`, `std`, `shuffle` and `depth` filled in where they are not given, so that a run can be repeated.

    ImageNet's mean and deviation, which the papers' recipes bring, are of colour of 8 bits: on other images they are measured
    too (`measured_instead` says so). The same for any number of threads. tally: gets what is found in the images that are read.
    Raises UserError where no image can be read.
    """
    tally = tally or Tally()
    shuffle = "full" if ordered_by(images, source) is None else "blocks"
    require_bands(source, images, seconds)
    depth, bands = _kind(images, source, threads, seconds)
    if images.depth not in (None, depth):
        raise UserError(f"images.depth={images.depth}, and {source.name} holds {depth}: leave it out, it is looked up")
    missing = {"mean", "std"} - images.model_fields_set
    if (images.mean, images.std) == IMAGENET and (depth, bands) != ("uint8", 3):
        missing = {"mean", "std"}
    found = {}
    if missing:
        mean, std, count = channel_statistics(images, source, threads=threads, seconds=seconds, tally=tally)
        found = {name: value for name, value in (("mean", mean), ("std", std)) if name in missing}
        log.info("measured on %d images: %s", count, _words(found))
    else:
        _read_some(source, _LOOKED_AT, lambda index: _read(source, index, images.max_pixels, tally), threads, seconds)
    return images.model_copy(update={"shuffle": shuffle, "depth": depth, **found})


def measured_instead(given: ImageSettings, fitted: ImageSettings) -> tuple[str, ...]:
    """A sentence where a mean or deviation that was given is not used, as it was measured instead; else ()."""
    changed: dict[str, Any] = {name: getattr(given, name) for name in ("mean", "std") if name in given.model_fields_set}
    if all(value == getattr(fitted, name) for name, value in changed.items()):
        return ()
    measured = _words({name: getattr(fitted, name) for name in changed})
    kind = f"{fitted.depth} images" if fitted.depth != "uint8" else "gray ones"
    return (f"{_words(changed)} are ImageNet's, of colour of 8 bits; for these {kind} they were measured: {measured}",)


def _words(values: dict[str, tuple[float, ...]]) -> str:
    return " ".join(f"images.{name}=[{','.join(map(str, value))}]" for name, value in values.items())


def _kind(images: ImageSettings, source: Source, threads: int, seconds: float) -> tuple[str, int]:
    """The deepest type of eight images (uint8, uint16, float32), and the bands of most."""
    found = _read_some(source, PROBED, lambda index: source.read(index, images.max_pixels)[:1, :1], threads, seconds)
    kinds = {str(pixels.dtype) for pixels in found}
    bands = np.bincount([pixels.shape[2] for pixels in found] or [images.channels])
    return next((kind for kind in ("float32", "uint16") if kind in kinds), "uint8"), int(bands.argmax())


def ordered_by(images: ImageSettings, source: Source) -> Blocks | None:
    """The source's blocks, where the settings or the storage ask for an order by blocks; None for any order."""
    blocks = source.blocks
    by_blocks = blocks is not None and (blocks.sequential if images.shuffle == "auto" else images.shuffle == "blocks")
    return blocks if by_blocks else None


def read_usable(source: Source, index: int, images: ImageSettings) -> Pixels:
    """A sample's pixels as they are. Raises BadImageError, also for bands of which channels_of can make no images.channels."""
    pixels = source.read(index, images.max_pixels)
    channels_of(pixels[:1, :1], images)
    return pixels


def require_bands(source: Source, images: ImageSettings, seconds: float = 60.0) -> None:
    """Raises UserError if none of eight images has the right number of bands: then the setting is wrong, not the images."""
    errors = [error for _, error in errors_of_all(source, PROBED, lambda index: read_usable(source, index, images), seconds)]
    if wrong := [error for error in errors if isinstance(error, BandsError)]:
        raise UserError(f"{source.name}: an image {wrong[0]}")


def channel_statistics(
    images: ImageSettings, source: Source, *, threads: int = 2, seconds: float = 60.0, tally: Tally | None = None
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and standard deviation of each channel in [0, 1], or in units of white, and how many images were measured.

    Every image counts the same whatever its size, as it does in training. Images that cannot be read are left out: the
    loader will name them. tally: gets what is found in them.
    """
    tally = tally or Tally()

    def moments_of(index: int) -> NDArray[np.float64]:
        pixels = channels_of(_read(source, index, images.max_pixels, tally), images)
        white = 255 if pixels.dtype == np.uint8 else 1
        flat = pixels.reshape(-1, pixels.shape[2])
        return np.stack([flat.mean(0, dtype=np.float64) / white, np.square(flat, dtype=np.float64).mean(0) / white**2])

    moments = _read_some(source, _MEASURED, moments_of, threads, seconds)
    if not moments:
        raise UserError(f"no readable image with images.channels={images.channels} in {source.name}")
    mean, square = np.stack(moments).mean(0)
    square, least = square - mean**2, LEAST_STD**2
    if flat := np.flatnonzero(square < least * 0.999).tolist():
        tally.say(_flat(flat, images))
    std = np.sqrt(np.maximum(square, least))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist()), len(moments)


def file_notes(source: Source, most_pixels: int, *, threads: int = 2, seconds: float = 60.0) -> tuple[str, ...]:
    """Sentences for findings in up to 128 images that shrunk copies of them would not show: all kinds but 'colour'."""
    tally = Tally()
    _read_some(source, _LOOKED_AT, lambda index: _read(source, index, most_pixels, tally), threads, seconds)
    return tally.notes(source, len(source), but=("colour",))


def _read(source: Source, index: int, most_pixels: int, tally: Tally) -> Pixels:
    """A sample's pixels as they are; what is found in it goes to the tally."""
    findings = list[Finding]()
    pixels = source.read(index, most_pixels, findings=findings)
    tally.add(index, findings + findings_in(pixels))
    return pixels


def _flat(channels: list[int], images: ImageSettings) -> str:
    which = "each channel" if len(channels) == images.channels else f"channel {', '.join(map(str, channels))}"
    seen = "deviates by less than 1/255 of white in all images together, so the encoder sees next to nothing in it"
    return f"{which} {seen}; if the images are deep, set images.white to their value of white"


def shapes_of(source: Source, most_pixels: int, *, threads: int = 2, seconds: float = 60.0) -> NDArray[np.int64]:
    """Height, width and bands of up to 256 images, by their headers where a header says it: (n, 3). EXIF turns nothing here.

    Images that cannot be read are left out. Raises UserError where none can.
    """
    shapes = _read_some(source, SIZED, lambda index: _shape(source.raw(index), most_pixels), threads, seconds)
    if not shapes:
        raise UserError(f"no readable image in {source.name}")
    return np.array(shapes)


def _shape(raw: bytes | Pixels, most_pixels: int) -> tuple[int, ...]:
    """Height, width and bands of what `decode` would give. Raises BadImageError."""
    if not isinstance(raw, bytes):
        return raw.shape
    if raw[:4] in TIFF:
        return decode(raw, most_pixels).shape
    try:
        if raw[:2] == b"\xff\xd8":
            height, width, *_ = simplejpeg.decode_jpeg_header(raw)
            bands = 3
        else:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                (width, height), mode = image.size, image.mode
            bands = 1 if mode in ("I", "F") or mode.startswith("I;16") else 3
    except Exception as error:  # whatever a broken file provokes, as in decode
        raise BadImageError(str(error)) from None
    refuse_bomb(width, height, most_pixels)
    return height, width, bands


def _read_some(source: Source, count: int, work: Callable[[int], T], threads: int, seconds: float) -> list[T]:
    """work(index) of up to `count` samples, in their order; those that are bad, or come too late, are left out."""
    found = read_many(source, spread_places(source, count), work, threads=threads, seconds=seconds)
    return [value for value in found if not isinstance(value, BadImageError)]
