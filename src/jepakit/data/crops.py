"""Random resized crops (the only augmentation of I-JEPA, section A.1), as functions of (seed, epoch, sample id)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core import rng
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.model.images import ImageSettings, Symmetry

_TRIES = 10  # torchvision's bound before it falls back to a centre crop
LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in units of 2^-16, as Pillow rounds it


class BandsError(BadImageError):
    """An image of another number of bands than images.channels."""


@dataclass(frozen=True)
class Crops:
    """What an epoch draws for samples (B,): area over the image's and aspect of each try (B, TRIES), place (B, 2)."""

    law: ImageSettings
    areas: list[list[float]]
    aspects: list[list[float]]
    places: list[list[float]]

    @classmethod
    def draw(cls, law: ImageSettings, ids: NDArray[np.int64], seed: int, epoch: int, view: int = 0) -> "Crops":
        """A function of (seed, epoch, view, id) only; views are independent crops of one image."""
        stream = f"crop {view}" if view else "crop"
        u = rng.uniform(rng.keys(seed, stream, epoch, ids), 2 * _TRIES + 2)
        low, high = np.log(law.crop_aspect)
        areas = law.crop_scale[0] + u[:, :_TRIES] * (law.crop_scale[1] - law.crop_scale[0])
        aspects = np.exp(low + u[:, _TRIES : 2 * _TRIES] * (high - low))
        return cls(law, areas.tolist(), aspects.tolist(), u[:, 2 * _TRIES :].tolist())

    def box(self, row: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The crop (top, left, height, width) of an image of that size: torchvision's law.

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
        h = max(1, min(height, round(width / narrowest)))
        w = max(1, min(width, round(height * widest)))
        return (height - h + 1) // 2, (width - w + 1) // 2, h, w

    def cut(self, row: int, pixels: Pixels) -> Pixels:
        """The crop of an image (H, W, C), as a view."""
        top, left, h, w = self.box(row, *pixels.shape[:2])
        return pixels[top : top + h, left : left + w]


def crop_boxes(
    images: ImageSettings, sizes: NDArray[np.int64], ids: NDArray[np.int64], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Boxes (B, 4): top, left, height, width in images of sizes (B, 2), as of `Crops`."""
    crops = Crops.draw(images, ids, seed, epoch)
    return np.array([crops.box(row, *size) for row, size in enumerate(sizes.tolist())], np.int64).reshape(-1, 4)


def draw_turns(symmetry: Symmetry, seed: int, epoch: int, ids: NDArray[np.int64], view: int = 0) -> Tensor | None:
    """How samples are turned, as `turned` takes it: (B, 1) bool for mirror, (B, 3) for d4, each way as likely.

    Views are mirrored independently, as they are cropped. Of quarter turns all views of an image share one draw: a predictor
    is told rows and columns, which in a view turned otherwise would lie elsewhere seven times in eight.
    """
    if symmetry is None:
        return None
    stream = f"flip {view}" if view and symmetry == "mirror" else "flip"
    return torch.from_numpy(rng.uniform(rng.keys(seed, stream, epoch, ids), 1 if symmetry == "mirror" else 3) < 0.5)


def channels_of(pixels: Pixels, images: ImageSettings) -> Pixels:
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
    rows, columns = pixels.shape[:2]
    h = min(rows, max(1, round(columns * (height / width))))
    w = min(columns, max(1, round(rows / (height / width))))
    top, left = (rows - h) // 2, (columns - w) // 2
    return resize(pixels[top : top + h, left : left + w], height, width)
