"""RankMe and LiDAR of an encoder: how many directions its features use, without any label.

n images, q views, D features.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from jepakit.core import distributed
from jepakit.core.device import autocast
from jepakit.core.errors import UserError
from jepakit.core.progress import progress
from jepakit.core.settings import Settings
from jepakit.data.crops import centre_crop, channels_of, crop_boxes, resize, stacked
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.sources import Source, evenly
from jepakit.evaluation.features import BATCH, FrozenFeatures, UnreadRow, batches, in_batches, say_left_out
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import encode_windows
from jepakit.model.layout import segment_mean
from jepakit.model.masking.masks import Masking
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.metrics import Discriminant, Gram
from jepakit.model.vit import patchify

GROUP = BATCH  # images of which a view goes through the encoder together


class RankMe(Settings):
    """RankMe's numbers (arXiv 2210.02885)."""

    images: int = Field(25_600, ge=2, description="images at most, evenly over the set")
    eps: float = Field(1e-7, ge=0, description="added to the normalised singular values")


class LiDAR(Settings):
    """LiDAR's numbers (arXiv 2312.04000). The paper has 50 views; its appendix finds 10 within a hundredth of that.

    Values compare at equal numbers of images and views only.
    """

    images: int = Field(1000, ge=2, description="images, each a class of its own (n)")
    views: int = Field(10, ge=2, description="views of each (q)")
    by: Literal["masks", "crops", "both"] = Field(
        "masks", description="what tells views apart: context windows of the whole image, whole random crops, or both"
    )
    delta: float = Field(1e-4, ge=0, description="added to the within-image covariance")
    eps: float = Field(1e-8, ge=0, description="added to the normalised eigenvalues")


_Row = dict[str, Any]


def rankme_rows(features: Mapping[str, FrozenFeatures], settings: RankMe, conditioned: Collection[str] = ()) -> list[_Row]:
    """RankMe of each encoder and baseline; `conditioned` are the names of those that are told positions, as at inference."""
    rows = []
    for name, frozen in features.items():
        x = frozen.last[evenly(len(frozen.last), settings.images)]
        about = {"n": len(x), "eps": settings.eps, "conditioning": "inference" if name in conditioned else "none"}
        rows.append({"name": name, "rankme": Gram().add(x).rankme(settings.eps), **about, **_bounded(*x.shape)})
    return rows


def lidar_rows(
    source: Source,
    encoders: Mapping[str, Encoder],
    masking: Masking,
    settings: LiDAR,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    seconds: float = 60.0,
) -> list[_Row]:
    """LiDAR of each encoder on the same views; a view's features are the mean over its tokens.

    Views are context windows as in training, where a conditioned encoder is given the targets of each, or whole crops, where it
    is conditioned as at inference. An image that does not come within so many `seconds`, or cannot be read, is named and left
    out. Several processes share the groups. Raises UserError for fewer than two readable images, and where delta=0 leaves a
    singular covariance.
    """
    scatter, first, used = {name: Discriminant() for name in encoders}, next(iter(encoders.values())), 0
    ids = np.arange(len(source))[evenly(len(source), settings.images)]
    work = partial(_viewed, source, encoders, masking, settings, seed, seconds)
    with progress("lidar", len(ids)) as report, torch.inference_mode(), autocast(first.device, precision):

        def take(group: _Group) -> None:
            nonlocal used
            say_left_out(group.bad)
            for name, own in group.features.items():
                scatter[name].add(torch.from_numpy(own))
            used += group.count
            report(used)

        distributed.spread([*enumerate(in_batches(ids, GROUP))], work, take)
    return distributed.from_main(lambda: _rows_of(source, scatter, encoders, settings, used))


@dataclass(frozen=True)
class _Group:
    """Images of which a view goes through an encoder together: how many, those that could not be read, and features
    (images, views, D) by the encoder's name."""

    count: int
    bad: list[UnreadRow]
    features: dict[str, NDArray[np.float32]]


def _viewed(
    source: Source,
    encoders: Mapping[str, Encoder],
    masking: Masking,
    settings: LiDAR,
    seed: int,
    seconds: float,
    numbered: Sequence[tuple[int, NDArray[np.int64]]],
) -> Generator[_Group]:
    """The groups with these numbers, of these places; what is drawn for one does not depend on the others."""
    first, q = next(iter(encoders.values())), settings.views

    def read(index: int) -> Pixels:
        return channels_of(source.read(index, first.images.max_pixels), first.images)

    found = batches(source, [places for _, places in numbered], read, seconds)
    for (number, _), (good, bad) in zip(numbered, found, strict=True):
        who, images = np.array([index for index, _ in good], np.int64), [pixels for _, pixels in good]
        views: dict[str, list[Tensor]] = {name: [] for name in encoders if good}
        for v in range(q if good else 0):  # view by view: a law that draws for a whole batch then tells views apart, not images
            draws = who + len(source) * v
            if not v or settings.by != "masks":
                x = first.normalise(_view(images, first.images, settings.by, draws, seed).to(first.device))
            masks = masking.sample(first.vit.grid, draws, seed=seed, step=number * GROUP * q + v)
            for name, own in views.items():
                encoder = encoders[name]
                e = encoder.embed(x) if settings.by == "crops" else _windows(encoder, x, masks)
                own.append(e.float().cpu())
        yield _Group(len(good), bad, {name: torch.stack(own, 1).numpy() for name, own in views.items()})


def _rows_of(
    source: Source, scatter: Mapping[str, Discriminant], encoders: Mapping[str, Encoder], settings: LiDAR, used: int
) -> list[_Row]:
    if used < 2:
        raise UserError(f"{source.name} has {used} readable image(s): LiDAR compares at least two")
    return [_lidar_row(name, s, encoders[name], settings, used) for name, s in scatter.items()]


def _lidar_row(name: str, scatter: Discriminant, encoder: Encoder, settings: LiDAR, n: int) -> _Row:
    try:
        value = scatter.lidar(settings.delta, settings.eps)
    except ValueError as error:
        raise UserError(f"{name}: {error}; set lidar.delta=1e-4") from None
    about = {"n": n, "q": settings.views, "by": settings.by, "delta": settings.delta, "eps": settings.eps}
    conditioning = (
        "none" if encoder.training_conditioning is None else "inference" if settings.by == "crops" else "each view's own"
    )
    return {"name": name, "lidar": value, **about, "conditioning": conditioning, **_bounded(n, encoder.width)}


def _view(originals: list[Pixels], images: ImageSettings, by: str, draws: NDArray[np.int64], seed: int) -> Tensor:
    """One view of each image: (B, C, H, W); draws (B,) is what its crop depends on."""
    if by == "masks":
        return stacked([centre_crop(pixels, *images.height_width) for pixels in originals])
    boxes = crop_boxes(images, np.array([pixels.shape[:2] for pixels in originals]), draws, seed, 0).tolist()
    cut = [pixels[t : t + h, l : l + w] for pixels, (t, l, h, w) in zip(originals, boxes, strict=True)]
    return stacked([resize(pixels, *images.height_width) for pixels in cut])


def _windows(encoder: Encoder, pixels: Tensor, masks: Masks) -> Tensor:
    """Mean over the visible tokens of each context window: (B, C, H, W) -> (B, D)."""
    vit = encoder.vit
    features = encode_windows(vit, encoder.training_conditioning, patchify(pixels, vit.config.patch_size), masks, vit.grid)
    return segment_mean(features.float(), masks.context_lengths)[masks.first_draws]


def _bounded(n: int, width: int) -> _Row:
    """A warning where the number of images, not the encoder, bounds the rank."""
    return {"warning": f"{n} images are too few to tell {width} directions"} if n <= width else {}
