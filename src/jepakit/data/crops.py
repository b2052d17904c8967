"""Random resized crops (the only augmentation of I-JEPA, section A.1), as functions of (seed, epoch, sample id)."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from jepakit import rng
from jepakit.data.decode import Pixels
from jepakit.settings import Settings

TRIES = 10  # torchvision's bound before it falls back to a centre crop


class Images(Settings):
    """What the encoder is shown."""

    size: int | tuple[int, int] = Field(224, description="pixels: a side, or (height, width)")
    channels: int = Field(3, ge=3, le=3, description="colour channels")
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="area of a crop over the image's")
    crop_aspect: tuple[float, float] = Field((0.75, 4 / 3), description="width over height of a crop")
    flip: bool = Field(False, description="mirror half of the images (released code: off)")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from channels in [0, 1]")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (0.229, 0.224, 0.225), description="channels are divided by it"
    )
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable images at which the run stops")

    @model_validator(mode="after")
    def _ordered(self) -> "Images":
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: give two positive numbers, the smaller one first, got {low} and {high}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: {self.crop_scale[1]} is more than the whole image; the largest is 1")
        if min(self.height_width) < 1:
            raise ValueError("size: must be at least 1 pixel")
        return self

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def crop_boxes(images: Images, sizes: NDArray[np.int64], ids: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Boxes (B, 4): top, left, height, width in images of sizes (B, 2): torchvision's law.

    Area uniform, aspect log-uniform, the first of ten tries that fits, else the largest centre crop of a legal aspect.
    """
    u = rng.uniform(rng.keys(seed, "crop", epoch, ids), 2 * TRIES + 2)
    height, width = sizes[:, :1].astype(float), sizes[:, 1:].astype(float)
    area = (images.crop_scale[0] + u[:, :TRIES] * (images.crop_scale[1] - images.crop_scale[0])) * height * width
    low, high = np.log(images.crop_aspect)
    aspect = np.exp(low + u[:, TRIES : 2 * TRIES] * (high - low))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    first = fits.argmax(1)[:, None]
    h, w = np.take_along_axis(h, first, 1), np.take_along_axis(w, first, 1)
    shape = width / height
    whole_h = np.where(shape < images.crop_aspect[0], np.rint(width / images.crop_aspect[0]), height)
    whole_w = np.where(shape > images.crop_aspect[1], np.rint(height * images.crop_aspect[1]), width)
    any_fits = fits.any(1, keepdims=True)
    h, w = np.where(any_fits, h, np.clip(whole_h, 1, height)), np.where(any_fits, w, np.clip(whole_w, 1, width))
    place = np.where(any_fits, u[:, 2 * TRIES :], 0.5)
    top = np.minimum(np.floor(place[:, :1] * (height - h + 1)), height - h)
    left = np.minimum(np.floor(place[:, 1:] * (width - w + 1)), width - w)
    return np.concatenate([top, left, h, w], 1).astype(np.int64)


def flips(seed: int, epoch: int, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which samples are mirrored: (B,)."""
    return rng.uniform(rng.keys(seed, "flip", epoch, ids), 1)[:, 0] < 0.5


def resize(pixels: Pixels, height: int, width: int) -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) uint8, bilinear with antialias."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # channels last: the fast path
    if image.shape[2:] == (height, width):
        return image[0]
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)[0]


def centre_crop(pixels: Pixels, height: int, width: int) -> Tensor:
    """The largest centre crop of the wanted aspect, resized: what evaluation sees. (3, height, width) uint8."""
    have = pixels.shape[0] / pixels.shape[1]
    want = height / width
    h = pixels.shape[0] if have <= want else max(1, round(pixels.shape[1] * want))
    w = pixels.shape[1] if have >= want else max(1, round(pixels.shape[0] / want))
    top, left = (pixels.shape[0] - h) // 2, (pixels.shape[1] - w) // 2
    return resize(pixels[top : top + h, left : left + w], height, width)


def normalise(images: Tensor, settings: Images) -> Tensor:
    """(B, 3, H, W) uint8 on any device -> float32, channels of zero mean and unit deviation by the settings."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (settings.mean, settings.std))
    return (images.float() / 255 - mean) / std
