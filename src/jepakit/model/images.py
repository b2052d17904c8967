"""What the encoder is shown: the size, channels and values of images, how they are mirrored and normalised.

C channels, H and W pixels, B images.
"""

from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from jepakit.core.settings import Settings

MOST_PIXELS = 100_000_000  # unless images.max_pixels says otherwise
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its training images


def _usual(which: int) -> Any:
    """Mean and std until the data's own are measured: ImageNet's for three channels, else .5 and .25 each."""

    def values(given: dict[str, Any]) -> tuple[float, ...]:
        channels = given.get("channels", 3)
        return IMAGENET[which] if channels == 3 else ((0.5, 0.25)[which],) * channels

    return values


class ImageSettings(Settings):
    """Settings of what the encoder is shown: size, channels, crops, and statistics to normalise by."""

    size: int | tuple[int, int] = Field(224, description="pixels: a side, or (height, width)")
    channels: int = Field(3, ge=1, le=1024, description="channels, or bands; gray and colour are turned into each other")
    white: PositiveFloat | None = Field(
        None, description="value of white in images deeper than 8 bits (10000: Sentinel-2); none: 65535, or 1 for floats"
    )
    depth: Literal["uint8", "uint16", "float32"] | None = Field(
        None, description="type of the training images' values, found by pretrain: how floats and wide integers are scaled later"
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
        """Drop what is 'auto', so that it counts as not given."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in ("mean", "std") or value != "auto"}

    @model_validator(mode="after")
    def _ordered(self) -> "ImageSettings":
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


def mirrored(images: Tensor, which: Tensor | None) -> Tensor:
    """Images (B, C, H, W) on any device, those of `which` (B,) bool mirrored left to right."""
    return images if which is None else torch.where(which.to(images.device)[:, None, None, None], images.flip(3), images)


def normalise(images: Tensor, settings: ImageSettings) -> Tensor:
    """(B, C, H, W) uint8, or floats in units of white, on any device -> float32, less `mean` and over `std`."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (settings.mean, settings.std))
    # planes, where a channel is one number at a time; then in place, as new memory costs a CPU more than the arithmetic
    x = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if images.dtype == torch.uint8:
        x.div_(255)
    return x.sub_(mean).div_(std)
