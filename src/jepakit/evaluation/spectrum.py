"""RankMe and LiDAR of an encoder: how many directions its features use, without any label.

n images, q views, D features.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from jepakit.data.crops import Images, centre_crop, channels_of, crop_boxes, resize, stacked
from jepakit.data.decode import BadImageError
from jepakit.data.sources import Source
from jepakit.encoder import Encoder
from jepakit.errors import UserError
from jepakit.evaluation.features import Frozen
from jepakit.layout import segment_mean
from jepakit.masks import Masking, Masks
from jepakit.metrics import Discriminant, Gram
from jepakit.model import encode_windows
from jepakit.progress import progress
from jepakit.settings import Settings
from jepakit.vit import patchify

WINDOWS = 500  # views that go through the encoder together


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


Row = dict[str, Any]


def rankme_rows(features: Mapping[str, Frozen], settings: RankMe) -> list[Row]:
    """RankMe of each encoder and baseline. An EC-IJEPA encoder is conditioned as at inference."""
    rows = []
    for name, frozen in features.items():
        x = frozen.last[_spread(len(frozen.last), settings.images)]
        rows.append({"name": name, "rankme": Gram().add(x).rankme(settings.eps), **_bounded(*x.shape)})
    return rows


def lidar_rows(
    source: Source,
    encoders: Mapping[str, Encoder],
    masking: Masking,
    settings: LiDAR,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
) -> list[Row]:
    """LiDAR of each encoder, all on the same views, each the mean over its tokens.

    Views are windows as in training, of which a conditioned encoder is told each one's own targets, or whole crops, where
    it is conditioned as at inference. Raises UserError for fewer than two readable images.
    """
    scatter = {name: Discriminant() for name in encoders}
    first, used = next(iter(encoders.values())), 0
    device = next(first.parameters()).device
    ids = np.arange(len(source))[_spread(len(source), settings.images)]
    lower = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    with progress("lidar", len(ids)) as report, torch.inference_mode(), lower:
        for who, images in _views(source, ids, first.images, settings, seed):
            masks = masking.sample(first.vit.grid, who, seed=seed, step=used)
            for name, encoder in encoders.items():
                pixels = encoder.normalise(images.to(device))
                e = encoder.embed(pixels) if settings.by == "crops" else _windows(encoder, pixels, masks)
                scatter[name].add(e.float().unflatten(0, (-1, settings.views)))
            used += len(who) // settings.views
            report(used)
    if used < 2:
        raise UserError(f"{source.name} has {used} readable image(s): LiDAR compares at least two")
    about = {"n": used, "q": settings.views, "by": settings.by, "delta": settings.delta, "eps": settings.eps}
    return [
        {"name": name, "lidar": s.lidar(settings.delta, settings.eps), **about, **_bounded(used, encoders[name].width)}
        for name, s in scatter.items()
    ]


def _views(
    source: Source, ids: NDArray[np.int64], images: Images, settings: LiDAR, seed: int
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """A few images at a time, q views each: what each view's draws depend on (G q,), and its pixels (G q, C, H, W)."""
    size, q, group = images.height_width, settings.views, max(1, WINDOWS // settings.views)
    who: list[NDArray[np.int64]] = []
    pixels: list[Tensor] = []
    for id_ in ids.tolist():
        try:
            whole = channels_of(source.read(id_), images)
        except BadImageError:
            continue
        who.append(id_ + len(source) * np.arange(q))
        if settings.by == "masks":
            pixels += [centre_crop(whole, *size)] * q
        else:
            boxes = crop_boxes(images, np.array([whole.shape[:2]] * q), who[-1], seed, 0)
            pixels += [resize(whole[t : t + h, l : l + w], *size) for t, l, h, w in boxes.tolist()]
        if len(who) == group:
            yield np.concatenate(who), stacked(pixels)
            who, pixels = [], []
    if who:
        yield np.concatenate(who), stacked(pixels)


def _windows(encoder: Encoder, pixels: Tensor, masks: Masks) -> Tensor:
    """Mean over the visible tokens of each context window: (B, C, H, W) -> (B, D)."""
    vit = encoder.vit
    features = encode_windows(vit, encoder.training_conditioning, patchify(pixels, vit.config.patch_size), masks, vit.grid)
    return segment_mean(features.float(), masks.context_lengths)[masks.first_draws]


def _spread(n: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _bounded(n: int, width: int) -> Row:
    """A warning where the number of images, not the encoder, bounds the rank."""
    return {"warning": f"{n} images are too few to tell {width} directions"} if n <= width else {}
