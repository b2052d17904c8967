"""What the encoder is shown: the size, channels and values of images, how they are turned and normalised.

C channels, H and W pixels, B images.
"""

from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from jepakit.core.settings import Settings

MOST_PIXELS = 100_000_000  # unless images.max_pixels says otherwise
Symmetry = Literal["mirror", "d4"] | None  # images mean the same mirrored left to right; in all eight turns of the square
Axis = Literal["z", "y", "x"]  # of a volume
Window = Literal["auto", "percentiles", "dicom"] | tuple[float, float] | None  # of intensities
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
    axis: Axis | None = Field(
        None,
        description="volumes are cut into slices along it (of NIfTI the patient's nearest); none: NIfTI and DICOM along z, and "
        "TIFF and arrays are taken for images",
    )
    every: int = Field(1, ge=1, description="slices of a volume from one that is taken to the next, the first being taken")
    window: Window = Field(
        "auto",
        description="what of a volume's values is black and white: two values, percentiles (0.5 and 99.5 of the volume), dicom "
        "(what the file names) or none (as they are); auto: dicom where it names one, else percentiles, of TIFF and arrays none",
    )
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="area of a crop over the image's")
    crop_aspect: tuple[float, float] = Field((0.75, 4 / 3), description="width over height of a crop")
    target_crop: Literal["same", "own"] = Field(
        "same", description="the target encoder sees the encoder's crop, or one of its own of the same image (MIM-JEPA)"
    )
    symmetry: Symmetry = Field(
        None,
        description="mirror: half of the images are mirrored; d4: quarter turns too, for images without an up; none, as released",
    )
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
        if isinstance(self.window, tuple) and not self.window[0] < self.window[1]:
            raise ValueError(f"window: give two values, black and then white, got {self.window[0]:g} and {self.window[1]:g}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: {self.crop_scale[1]} is more than the whole image; the largest is 1")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                have = len(getattr(self, name))
                raise ValueError(f"{name}: {have} numbers for images.channels={self.channels}; give one each, or leave it out")
        if min(self.height_width) < 1:
            raise ValueError("size: must be at least 1 pixel")
        if self.symmetry == "d4":
            require_square(self.height_width)
        return self

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def views(self) -> int:
        """Crops of each image: the encoder's, and the target encoder's if it has one of its own."""
        return 2 if self.target_crop == "own" else 1


def require_square(height_width: tuple[int, int]) -> None:
    """Raises ValueError where images are not squares, of which quarter turns would be of another shape."""
    height, width = height_width
    if height != width:
        raise ValueError(
            f"symmetry: d4 has quarter turns, and images of {height}x{width} would come out as {width}x{height}: "
            f"set images.size={max(height, width)}, or symmetry to mirror"
        )


def turned(images: Tensor, turns: Tensor | None) -> Tensor:
    """Images (B, C, H, W) on any device, turned as (B, 1 or 3) bool say: mirrored left to right, then top to bottom, then rows
    and columns exchanged. These eight are the symmetries of the square; None: as they are.
    Raises ValueError as `require_square`."""
    if turns is None:
        return images
    if turns.shape[1] == 3:
        require_square((images.shape[2], images.shape[3]))
    ways = (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3))
    for which, way in zip(turns.to(images.device).T, ways, strict=False):
        images = torch.where(which[:, None, None, None], way(images), images)
    return images


def all_turns(symmetry: Symmetry) -> Tensor:
    """All that `turned` takes of a symmetry, once each, the image as it is first: (1, 0), (2, 1) or (8, 3) bool."""
    count = {None: 0, "mirror": 1, "d4": 3}[symmetry]
    return torch.tensor([[n >> bit & 1 for bit in range(count)] for n in range(2**count)], dtype=torch.bool).view(2**count, count)


def turned_back(images: Tensor, turns: Tensor) -> Tensor:
    """What `turned` made of images (B, C, H, W) by turns (B, 0, 1 or 3), as they were."""
    if turns.shape[1] < 3:
        return turned(images, turns)
    across, down, exchanged = turns.T  # where rows and columns were exchanged, so are the two mirrorings
    return turned(images, torch.stack([torch.where(exchanged, down, across), torch.where(exchanged, across, down), exchanged], 1))


def normalise(images: Tensor, settings: ImageSettings) -> Tensor:
    """(B, C, H, W) uint8, or floats in units of white, on any device -> float32, less `mean` and over `std`."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (settings.mean, settings.std))
    # planes, where a channel is one number at a time; then in place, as new memory costs a CPU more than the arithmetic
    x = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if images.dtype == torch.uint8:
        x.div_(255)
    return x.sub_(mean).div_(std)
