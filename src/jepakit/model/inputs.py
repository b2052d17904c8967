"""Images that a user gives to an encoder: what is taken and in which units, and a sentence for what is not.

B images, C channels of H x W pixels.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.model.images import ImageSettings

Given = Tensor | NDArray[Any]
SLACK = 0.25  # beyond black and white: what resampling and reflectance reach, and normalised images do not stay within
# How far from the mean of the encoder's own images, in deviations and in whites, the middle one of a batch's values may be.
# By Chebyshev 1 value in k^2 of training is k deviations away, so that half of a batch is not, however heavy the tails are;
# no-data pixels, outliers and single bands leave the middle where it was. Black and white are images whatever the deviation.
FAR = (15.0, 2.0)  # refused beyond: 8 bits in the place of units of white, degrees for kelvins, 16 bits for 12
DOUBTFUL = (6.0, 1.25)  # said once
MEASURED = 2**18  # values of a batch that are looked at, or a few more

log = logging.getLogger("jepakit")
_told: set[ImageSettings] = set()


class ImagesError(UserError, ValueError):
    """Images that an encoder does not take: of another type, shape or range."""


def as_tensor(images: Given) -> Tensor:
    """A tensor of real numbers. Raises ImagesError."""
    if isinstance(images, np.ndarray):
        try:
            images = torch.from_numpy(np.require(images, images.dtype.newbyteorder("="), ["C", "W"]))
        except TypeError:
            raise ImagesError(f"images must be an array of numbers, not of {images.dtype}") from None
    if not isinstance(images, Tensor):
        raise ImagesError(f"images must be one tensor or array (B, C, H, W), not a {type(images).__name__}: np.stack them")
    if images.is_complex() or images.dtype == torch.bool:
        raise ImagesError(f"images must be real numbers, not {images.dtype}")
    return images


def require_shape(images: Tensor, channels: int, patch: int = 1) -> None:
    """Raises ImagesError for all but (B, channels, H, W) with H and W multiples of the patch."""
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] == channels and not (shape[2] % patch or shape[3] % patch) and min(shape[2:]) >= patch:
        return
    hint = ""
    if len(shape) == 3:
        hint = f"; one image is images[None]{'.permute(0, 3, 1, 2)' if shape[2] == channels != shape[0] else ''}"
    elif len(shape) == 4 and shape[3] == channels != shape[1]:
        hint = "; channels come second: images.permute(0, 3, 1, 2), of an array images.transpose(0, 3, 1, 2)"
    elif len(shape) == 4 and (shape[1], channels) == (1, 3):
        hint = "; gray is repeated for three channels: images.expand(-1, 3, -1, -1), of an array images.repeat(3, 1)"
    multiples = f" with H and W multiples of {patch}" if patch > 1 else ""
    raise ImagesError(f"images must be (B, {channels}, H, W){multiples}, got {shape}{hint}")


def in_white_units(images: Tensor, settings: ImageSettings) -> Tensor:
    """Images (B, C, H, W) of any real type -> uint8, or floats in units of white, for `images.normalise`. Raises ImagesError.

    Integers are divided as the same image in a file would be: 8 bits by 255, others by images.white (65535); integers wider
    than both by what the encoder's own images were. Floats must be in units of white already; an encoder of floats takes no
    integers.
    """
    if not images.numel():
        return images if images.is_floating_point() else images.to(torch.uint8)
    if not images.is_floating_point() and settings.depth == "float32":
        kind = str(images.dtype).removeprefix("torch.")
        raise ImagesError(f"{kind} images for an encoder of floats: give floats, in the units of its own")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        images = _integers(images, settings)
    low, high = (float(x) for x in torch.aminmax(images.detach()))
    if not math.isfinite(low + high):
        raise ImagesError("images hold values that are not finite")
    top = brightest(settings)
    if settings.depth in ("uint8", "uint16") and (low < -SLACK or high > top + SLACK):
        raise ImagesError(
            f"floats from {low:.4g} to {high:.4g}: normalise takes them in units of white, 0 (black) to {top:.4g}; "
            + ("what is normalised already is for embed" if low < -SLACK else f"divide them by {_white(settings):g}")
        )
    return images


def require_like(normalised: Tensor, settings: ImageSettings) -> None:
    """Raises ImagesError for images (B, C, H, W) that are nowhere near the encoder's own once normalised; says what is far."""
    if not normalised.numel() or not _far(normalised, settings, *DOUBTFUL):
        return
    mean, std, white = max(settings.mean), max(settings.std), settings.white
    middle = float(_sample(normalised).median()) * std + mean
    said = f"images of values about {middle:.3g}, where the encoder's own are about {mean:.3g}, give or take {std:.3g}"
    unit = f", in units of images.white, {white:g}" if white else ""
    if _far(normalised, settings, *FAR):
        raise ImagesError(f"{said}{unit}: give the same units")
    if settings not in _told:
        _told.add(settings)
        log.warning("%s%s: are they in the same units?", said, unit)


def require_normalised(images: Tensor, settings: ImageSettings) -> None:
    """Raises ImagesError for (B, C, H, W) that are not normalised by their type or range. Looks at no value under a compiler."""
    if not images.is_floating_point():
        raise ImagesError(f"{images.dtype} is not normalised: give encoder.normalise(images), as in embed(normalise(images))")
    if torch.compiler.is_compiling() or not images.numel():
        return
    low, high = (float(x) for x in torch.aminmax(images.detach()))
    if not math.isfinite(low + high):
        raise ImagesError("images hold values that are not finite, and are not normalised so: give encoder.normalise(images)")
    most = max(-low, high)
    if (settings.depth in ("uint8", "uint16") and most > 2 * _farthest(settings) + 10) or _far(images, settings, *FAR):
        raise ImagesError(f"values from {low:.4g} to {high:.4g} are not normalised: give encoder.normalise(images)")


def brightest(settings: ImageSettings) -> float:
    """The largest value of integer images, in units of white."""
    return max(1.0, 65535 / (settings.white or 65535))


def _white(settings: ImageSettings) -> float:
    """What the integers of an encoder's own images are divided by."""
    return 255 if settings.depth == "uint8" else settings.white or 65535


def _integers(images: Tensor, settings: ImageSettings) -> Tensor:
    """Integers other than uint8 -> float32 in units of white. Raises ImagesError where what white is cannot be told."""
    kind, values = str(images.dtype).removeprefix("torch."), images.to(torch.float32)
    low, high, depth = float(values.min()), float(values.max()), settings.depth
    if low < 0 or high > 65535:
        raise ImagesError(f"{kind} images from {low:g} to {high:g}: give uint8, uint16, or floats in units of white")
    if kind == "uint16":
        if depth == "uint8" and 0 < high <= 255:
            raise ImagesError(f"uint16 images up to {high:g}, of which white is 65535: give 8 bits as uint8")
        return values / (settings.white or 65535)
    if depth is None or (depth == "uint8" and high > 255):
        raise ImagesError(f"{kind} images up to {high:g}: give them as uint8 or uint16, which say what white is")
    return values / _white(settings)


def _far(normalised: Tensor, settings: ImageSettings, deviations: float, whites: float) -> bool:
    """Whether half of a batch's values lie more deviations from the mean than allowed, and further off than black or white.

    Floats have a black and a white where the mean of all channels lies between 0 and 1.
    """
    scaled = settings.depth != "float32" or all(0 <= mean <= 1 for mean in settings.mean)
    ends = (0.0, whites) if scaled else ()
    channels = zip(settings.mean, settings.std, strict=True)
    bounds = [max(deviations, *(abs(end - mean) / std for end in ends)) if ends else deviations for mean, std in channels]
    sample = _sample(normalised)
    return bool((sample.abs() / sample.new_tensor(bounds)[:, None, None]).median() > 1)


def _sample(images: Tensor) -> Tensor:
    """Every n-th row and column of (B, C, H, W), float32: enough to know the middle."""
    n = max(1, math.isqrt(images.numel() // MEASURED))
    return images.detach()[:, :, ::n, ::n].float()


def _farthest(settings: ImageSettings) -> float:
    """The largest that a normalised value of an integer image can be, in magnitude."""
    ends = [(end - m) / s for m, s in zip(settings.mean, settings.std, strict=True) for end in (0.0, brightest(settings))]
    return max(map(abs, ends))
