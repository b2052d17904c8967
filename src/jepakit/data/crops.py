"""Random resized crops (the only augmentation of I-JEPA, section A.1), as functions of (seed, epoch, sample id)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from jepakit.core import rng
from jepakit.core.settings import Settings
from jepakit.data.decoding.pixels import MOST_PIXELS, BadImageError, Pixels

Box = tuple[int, int, int, int]  # top, left, height, width
TRIES = 10  # torchvision's bound before it falls back to a centre crop
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its training images
LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in units of 2^-16, as Pillow rounds it


class BandsError(BadImageError):
    """An image of another number of bands than images.channels."""


def _usual(which: int) -> Any:
    """Until they are measured: ImageNet's statistics for three channels, else .5 and .25 each."""

    def values(given: dict[str, Any]) -> tuple[float, ...]:
        channels = given.get("channels", 3)
        return IMAGENET[which] if channels == 3 else ((0.5, 0.25)[which],) * channels

    return values


class Images(Settings):
    """What the encoder is shown."""

    size: int | tuple[int, int] = Field(224, description="pixels: a side, or (height, width)")
    channels: int = Field(3, ge=1, le=1024, description="channels, or bands; gray and colour are turned into each other")
    white: PositiveFloat | None = Field(
        None, description="value of white in images deeper than 8 bits (10000: Sentinel-2); none: 65535, or 1 for floats"
    )
    depth: Literal["uint8", "uint16", "float32"] | None = Field(
        None, description="of the images' values, as pretrain finds them: what an encoder takes floats and wide integers for"
    )
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="area of a crop over the image's")
    crop_aspect: tuple[float, float] = Field((0.75, 4 / 3), description="width over height of a crop")
    target_crop: Literal["same", "own"] = Field(
        "same", description="the target encoder sees the encoder's crop, or one of its own of the same image (MIM-JEPA)"
    )
    flip: bool = Field(False, description="mirror half of the images (released code: off)")
    mean: tuple[float, ...] = Field(
        default_factory=_usual(0), description="subtracted from channels in [0, 1]; auto or not given: measured in the data"
    )
    std: tuple[PositiveFloat, ...] = Field(
        default_factory=_usual(1), description="channels are divided by it; auto or not given: measured in the data"
    )
    split: Literal["auto", "train", "all"] = Field(
        "auto", description="what is trained on: all, or not what is held out; auto: train where the set has a split of its own"
    )
    shuffle: Literal["auto", "full", "blocks"] = Field(
        "auto", description="an epoch's order: full, or a few shards or row groups at a time; auto: as the storage wants it"
    )
    max_pixels: int = Field(MOST_PIXELS, ge=1, description="pixels of an image; more are taken for a decompression bomb")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable images at which the run stops")

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, data: Any) -> Any:
        """'auto' is as if it were not given."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in ("mean", "std") or value != "auto"}

    @model_validator(mode="after")
    def _ordered(self) -> "Images":
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: give two positive numbers, the smaller one first, got {low} and {high}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: {self.crop_scale[1]} is more than the whole image; the largest is 1")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                have = len(getattr(self, name))
                raise ValueError(f"{name}: {have} numbers for images.channels={self.channels}; give one each, or leave it out")
        if min(self.height_width) < 1:
            raise ValueError("size: must be at least 1 pixel")
        return self

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def views(self) -> int:
        """Crops of each image: the encoder's, and the target encoder's if it has one of its own."""
        return 2 if self.target_crop == "own" else 1


@dataclass(frozen=True)
class Crops:
    """What an epoch draws for samples (B,): area over the image's and aspect of each try (B, TRIES), place (B, 2)."""

    law: Images
    areas: list[list[float]]
    aspects: list[list[float]]
    places: list[list[float]]

    @classmethod
    def draw(cls, law: Images, ids: NDArray[np.int64], seed: int, epoch: int, view: int = 0) -> "Crops":
        """A function of (seed, epoch, view, id) only; views are independent crops of one image."""
        stream = f"crop {view}" if view else "crop"
        u = rng.uniform(rng.keys(seed, stream, epoch, ids), 2 * TRIES + 2)
        low, high = np.log(law.crop_aspect)
        areas = law.crop_scale[0] + u[:, :TRIES] * (law.crop_scale[1] - law.crop_scale[0])
        aspects = np.exp(low + u[:, TRIES : 2 * TRIES] * (high - low))
        return cls(law, areas.tolist(), aspects.tolist(), u[:, 2 * TRIES :].tolist())

    def box(self, row: int, height: int, width: int) -> Box:
        """The crop of an image of that size: torchvision's law.

        Area uniform, aspect log-uniform, the first of ten tries that fits, else the largest centre crop of a legal aspect.
        """
        for share, aspect in zip(self.areas[row], self.aspects[row], strict=True):
            area = share * height * width
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 1 <= w <= width and 1 <= h <= height:
                down, across = self.places[row]
                top = min(math.floor(down * (height - h + 1)), height - h)
                return top, min(math.floor(across * (width - w + 1)), width - w), h, w
        narrowest, widest = self.law.crop_aspect
        h = max(1, min(height, round(width / narrowest) if width / height < narrowest else height))
        w = max(1, min(width, round(height * widest) if width / height > widest else width))
        return (height - h + 1) // 2, (width - w + 1) // 2, h, w

    def cut(self, row: int, pixels: Pixels) -> Pixels:
        """The crop of an image (H, W, C), as a view."""
        top, left, h, w = self.box(row, *pixels.shape[:2])
        return pixels[top : top + h, left : left + w]


def crop_boxes(images: Images, sizes: NDArray[np.int64], ids: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Boxes (B, 4): top, left, height, width in images of sizes (B, 2), as of `Crops`."""
    crops = Crops.draw(images, ids, seed, epoch)
    return np.array([crops.box(row, *size) for row, size in enumerate(sizes.tolist())], np.int64).reshape(-1, 4)


def flips(seed: int, epoch: int, ids: NDArray[np.int64], view: int = 0) -> NDArray[np.bool_]:
    """Which samples are mirrored: (B,)."""
    return rng.uniform(rng.keys(seed, f"flip {view}" if view else "flip", epoch, ids), 1)[:, 0] < 0.5


def mirrored(images: Tensor, which: Tensor | None) -> Tensor:
    """Images (B, C, H, W) on any device, those of `which` (B,) bool mirrored left to right."""
    return images if which is None else torch.where(which.to(images.device)[:, None, None, None], images.flip(3), images)


def channels_of(pixels: Pixels, images: Images) -> Pixels:
    """Pixels of any depth (H, W, any) -> (H, W, C), C of images.channels: uint8 as it is, deeper ones float32 in units of white.

    Gray is repeated for three channels, colour becomes luma (ITU-R 601-2) for one; values above white stay above 1.
    Raises BandsError for any other number of bands.
    """
    have, want = pixels.shape[2], images.channels
    if have != want and (have, want) not in ((1, 3), (3, 1)):
        raise BandsError(f"has {have} band{'s' if have > 1 else ''}, and images.channels is {want}; set images.channels={have}")
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32) / np.float32(images.white or (65535 if pixels.dtype == np.uint16 else 1))
    if have == want:
        return pixels
    if want == 3:
        return np.repeat(pixels, 3, 2)
    if pixels.dtype == np.uint8:
        return ((pixels.astype(np.uint32) @ np.array(LUMA, np.uint32) + 0x8000) >> 16).astype(np.uint8)[..., None]
    return (pixels @ np.array([weight / 65536 for weight in LUMA], np.float32))[..., None]


def stacked(images: list[Tensor]) -> Tensor:
    """Images (C, H, W) -> (B, C, H, W): uint8 if all are, else float32 with the others' 255 as 1."""
    if len({image.dtype for image in images}) > 1:
        images = [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]
    return torch.stack(images)


def to_show(image: Tensor) -> Tensor:
    """(C, H, W) uint8 or float32 -> (3, H, W) uint8 to look at: other bands' mean as gray, floats up to their largest, from
    their least where that is negative."""
    if image.dtype != torch.uint8:
        low = image.min().clamp(max=0)
        image = (image - low) / (image.max() - low).clamp(min=1e-9) * 255
    if len(image) != 3:
        image = image.float().mean(0, keepdim=True).expand(3, -1, -1)
    return image if image.dtype == torch.uint8 else image.clamp(0, 255).round().to(torch.uint8)


def resize(pixels: Pixels, height: int, width: int) -> Tensor:
    """(H, W, C) uint8 or float32 -> (C, height, width) of the same type, bilinear with antialias."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)  # channels last: the fast path
    if image.shape[2:] == (height, width):
        return image[0]
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)[0]


def centre_crop(pixels: Pixels, height: int, width: int) -> Tensor:
    """The largest centre crop of the wanted aspect, resized: what evaluation sees. (C, height, width) uint8 or float32."""
    have = pixels.shape[0] / pixels.shape[1]
    want = height / width
    h = pixels.shape[0] if have <= want else max(1, round(pixels.shape[1] * want))
    w = pixels.shape[1] if have >= want else max(1, round(pixels.shape[0] / want))
    top, left = (pixels.shape[0] - h) // 2, (pixels.shape[1] - w) // 2
    return resize(pixels[top : top + h, left : left + w], height, width)


def normalise(images: Tensor, settings: Images) -> Tensor:
    """(B, C, H, W) uint8, or floats in units of white, on any device -> float32, less `mean` and over `std`."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (settings.mean, settings.std))
    # planes, where a channel is one number at a time; then in place, as new memory costs a CPU more than the arithmetic
    x = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if images.dtype == torch.uint8:
        x.div_(255)
    return x.sub_(mean).div_(std)
