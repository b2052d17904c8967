"""What the settings leave to the data: mean and deviation of each channel, and the order that the storage wants."""

import logging
from functools import partial

import numpy as np
from numpy.typing import NDArray

from jepakit.data.crops import BandsError, Images, channels_of
from jepakit.data.pixels import BadImageError, Pixels
from jepakit.data.sources import Blocks, Source, spread
from jepakit.data.threads import each, within
from jepakit.errors import UserError

log = logging.getLogger("jepakit")
SAMPLED = 1024  # images that are measured
PROBED = 8  # images looked at for their bands
LEAST_DEVIATION = 1 / 255  # of a channel that never changes


def fitted(images: Images, source: Source, *, threads: int = 2, seconds: float = 60.0) -> Images:
    """Settings with `mean`, `std` and `shuffle` filled in where they are not given, so that a run can be repeated anywhere.

    The same for any number of threads. Raises UserError where no image can be read.
    """
    shuffle = "full" if ordered_by(images, source) is None else "blocks"
    require_bands(source, images, seconds)
    missing = {"mean", "std"} - images.model_fields_set
    found = {}
    if missing:
        mean, std, count = channel_statistics(images, source, threads=threads, seconds=seconds)
        found = {name: value for name, value in (("mean", mean), ("std", std)) if name in missing}
        words = " ".join(f"images.{name}=[{','.join(map(str, value))}]" for name, value in found.items())
        log.info("measured on %d images: %s", count, words)
    return images.model_copy(update={"shuffle": shuffle, **found})


def ordered_by(images: Images, source: Source) -> Blocks | None:
    """What an epoch's order goes by: the source's blocks, where the settings or the storage want it."""
    blocks = source.blocks
    by_blocks = blocks is not None and (blocks.dear if images.shuffle == "auto" else images.shuffle == "blocks")
    return blocks if by_blocks else None


def usable(source: Source, index: int, images: Images) -> Pixels:
    """A sample's pixels as they are. Raises BadImageError, also for bands of which channels_of can make no images.channels."""
    pixels = source.read(index, images.max_pixels)
    channels_of(pixels[:1, :1], images)
    return pixels


def require_bands(source: Source, images: Images, seconds: float = 60.0) -> None:
    """Raises UserError if none of eight images has the right number of bands: then the setting is wrong, not the images."""
    found: list[BandsError] = []
    ids = spread(source, PROBED)
    source.wait(ids, seconds)
    for index in ids.tolist():
        try:
            within(seconds, partial(usable, source, index, images))
            return
        except BandsError as error:
            found.append(error)
        except BadImageError:
            continue
    if found:
        raise UserError(f"{source.name}: an image {found[0]}")


def channel_statistics(
    images: Images, source: Source, *, threads: int = 2, seconds: float = 60.0
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and standard deviation of each channel in [0, 1], or in units of white, and how many images were measured.

    Every image counts the same whatever its size, as it does in training. Images that cannot be read are left out: the
    loader will name them.
    """
    ids = spread(source, SAMPLED)
    moments = np.full((len(ids), 2, images.channels), np.nan)

    def measure(row: int) -> NDArray[np.float64] | None:
        try:
            pixels = channels_of(source.read(int(ids[row]), images.max_pixels), images)
        except BadImageError:
            return None
        white = 255 if pixels.dtype == np.uint8 else 1
        flat = pixels.reshape(-1, pixels.shape[2])
        return np.stack([flat.mean(0, dtype=np.float64) / white, np.square(flat, dtype=np.float64).mean(0) / white**2])

    def put(row: int, found: NDArray[np.float64] | None) -> None:
        if found is not None:
            moments[row] = found

    late: set[int] = set()
    source.wait(ids, seconds)
    each(len(ids), lambda row: None if row in late else measure(row), put, threads=threads, seconds=seconds, late=late.add)
    good = moments[~np.isnan(moments[:, 0, 0])]
    if not len(good):
        raise UserError(f"no readable image with images.channels={images.channels} in {source.name}")
    mean, square = good.mean(0)
    deviation = np.sqrt(np.maximum(square - mean**2, LEAST_DEVIATION**2))
    return tuple(mean.round(4).tolist()), tuple(deviation.round(4).tolist()), len(good)
