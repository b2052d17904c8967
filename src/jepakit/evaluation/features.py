"""Frozen features of a set, of the encoder and of the baselines it has to beat, extracted once and shared by all tasks.

n samples, T patch tokens, D features.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core import distributed
from jepakit.core.device import autocast
from jepakit.core.errors import UserError, plain
from jepakit.core.progress import progress
from jepakit.core.ranks import is_main
from jepakit.data.crops import BandsError, centre_crop, channels_of, resize, stacked
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.samples import READERS, read_ahead, read_many
from jepakit.data.sources import Source
from jepakit.data.statistics import require_bands
from jepakit.evaluation.storage import ROWS_AT_ONCE, allocate, copy_rows
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings, Symmetry, all_turns, turned, turned_back
from jepakit.model.vit import patchify

T = TypeVar("T")
log = logging.getLogger("jepakit")
UnreadRow = tuple[int, str, str]  # an image that could not be read: its place in the source, its title, why
RAW, PCA = "raw pixels", "pixel PCA"
RAW_SIDE = 16  # pixels on a side of the raw-pixel baseline
BATCH = 128
PREFETCH_SAMPLES = 8192  # samples that a source is told of before they are read
MOST_TOKENS = 8 << 30  # bytes of patch tokens that are kept in memory


@dataclass(frozen=True)
class FrozenFeatures:
    """What one encoder or baseline makes of n samples: last (n, D), the mean over patch tokens of the last block;
    last4 (n, 4 D), of the last four, side by side; tokens (n, T, D) float16. None where it has none, or none was asked for."""

    last: Tensor
    last4: Tensor | None = None
    tokens: Tensor | None = None

    def rows(self, index: NDArray[np.int64], *, last4: bool = True, tokens: bool = True) -> "FrozenFeatures":
        """Those of some samples; copies, so without what is not asked for."""
        return FrozenFeatures(
            copy_rows(self.last, index),
            copy_rows(self.last4, index) if last4 and self.last4 is not None else None,
            copy_rows(self.tokens, index) if tokens and self.tokens is not None else None,
        )

    @property
    def layers(self) -> dict[str, Tensor]:
        """Matrices (n, D) by name, for probes of several layers."""
        return {"last": self.last, **({} if self.last4 is None else {"last4": self.last4})}


@dataclass(frozen=True)
class _Batch:
    """What was made of a batch: places in the source of those that could be read (B,), the others, features by name and kind."""

    places: list[int]
    bad: list[UnreadRow]
    features: dict[str, dict[str, NDArray[Any]]]


def extract(
    source: Source,
    encoders: Mapping[str, Encoder],
    ids: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    whole_image: bool = False,
    last4: bool = False,
    tokens: bool = False,
    precision: torch.dtype = torch.float32,
    seconds: float = 60.0,
    symmetry: Symmetry = None,
    raw: bool = True,
) -> tuple[dict[str, FrozenFeatures], NDArray[np.int64]]:
    """Features by name of each encoder and, with `raw`, of raw pixels, and the places in the source (n,) that could be read.

    The encoder sees the largest centre crop, resized; with `whole_image`, all of it, resized, for labels that speak of all of it.
    An encoder's features are averaged over all turns of `symmetry`, raw pixels are as they are.
    An image that cannot be read, or not within so many `seconds`, is named and left out. Several processes share the batches;
    the first gets all features, the others none. Raises UserError for fewer than two readable images, and for features that
    are not finite.
    """
    ids = np.arange(len(source)) if ids is None else np.asarray(ids)
    first = next(iter(encoders.values()))
    distributed.from_main(partial(_require_possible, source, first, len(ids), len(encoders), tokens, seconds))
    made, kept = {name: _Rows(len(ids)) for name in (*encoders, *([RAW] if raw else []))}, list[int]()
    how = {"last4": last4, "tokens": tokens, "symmetry": symmetry}
    work = partial(_featured, source, encoders, partial(evaluation_view, whole_image=whole_image), seconds, raw, how)
    with progress("features", len(ids)) as report, torch.inference_mode(), autocast(first.device, precision):

        def take(batch: _Batch) -> None:
            say_left_out(batch.bad)
            for name, kinds in batch.features.items():
                made[name].add(kinds)
            kept.extend(batch.places)
            report(len(kept))

        distributed.spread(in_batches(ids), work, take)
    frozen = {name: rows.frozen for name, rows in made.items()} if is_main() else {}
    distributed.from_main(partial(_require_usable, frozen, source, kept))
    return frozen, np.array(kept, np.int64)


def _featured(
    source: Source,
    encoders: Mapping[str, Encoder],
    view: Callable[..., Tensor],
    seconds: float,
    raw: bool,
    how: Mapping[str, Any],
    batched: Sequence[NDArray[np.int64]],
) -> Generator[_Batch]:
    first = next(iter(encoders.values()))
    for good, bad in read_ahead(batches(source, batched, partial(view, source, images=first.images), seconds)):
        found: dict[str, dict[str, Tensor]] = {}
        if good:
            images = stacked([image for _, image in good])
            found = {name: _pooled(encoder, images, **how) for name, encoder in encoders.items()}
            if raw:
                found[RAW] = _raw(images, first.vit.config.patch_size, how["tokens"])
        arrays = {name: {kind: x.numpy() for kind, x in kinds.items()} for name, kinds in found.items()}
        yield _Batch([index for index, _ in good], bad, arrays)


def _require_possible(source: Source, encoder: Encoder, n: int, encoders: int, tokens: bool, seconds: float) -> None:
    require_bands(source, encoder.images, seconds)
    if tokens:
        _require_memory(encoder, n, encoders)


def pixels_of(source: Source, index: int, images: ImageSettings) -> Pixels:
    """A sample as it is, with images.channels. Raises BadImageError, and UserError for other bands."""
    pixels = source.read(index, images.max_pixels)
    try:
        return channels_of(pixels, images)
    except BandsError as error:
        raise UserError(f"{source.title(index)} {error}") from None


def evaluation_view(source: Source, index: int, images: ImageSettings, whole_image: bool = False) -> Tensor:
    """What evaluation sees of a sample: its largest centre crop, or the `whole_image`, resized: (C, H, W).

    Raises BadImageError for a file that cannot be read, or has other bands than images.channels.
    """
    return evaluation_crop(channels_of(source.read(index, images.max_pixels), images), images, whole_image)


def evaluation_crop(pixels: Pixels, images: ImageSettings, whole_image: bool) -> Tensor:
    """(H, W, C) -> (C, height, width): the largest centre crop, or the `whole_image`, resized."""
    return resize(pixels, *images.height_width) if whole_image else centre_crop(pixels, *images.height_width)


def pca(x: Tensor, train: NDArray[np.int64], components: int) -> Tensor:
    """Projections of x (n, D) on the leading principal components of its rows `train`."""
    learnt = copy_rows(x, train)
    mean, covariance = learnt.mean(0), torch.zeros((), dtype=torch.float64)
    for batch in learnt.split(ROWS_AT_ONCE):  # (D, D) is all that large sets need
        covariance = covariance + (batch - mean).double().T @ (batch - mean).double()
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :components].to(x.dtype)
    out = allocate(len(x), directions.shape[1], dtype=x.dtype)
    for rows, batch in zip(out.split(ROWS_AT_ONCE), x.split(ROWS_AT_ONCE), strict=True):
        rows.copy_((batch - mean) @ directions)
    return out


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,), float64, of each feature over all tokens of all batches, (B, ..., D) each."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        x = batch.flatten(0, -2).double()
        count, total, square = count + len(x), total + x.sum(0), square + x.square().sum(0)
    mean = total / count
    return mean, (square / count - mean.square()).clamp(min=0)


class _Rows:
    """Features of n samples, filled in batch by batch; memory for all of them is allocated with the first batch."""

    def __init__(self, n: int) -> None:
        self.n, self.done, self.kinds = n, 0, dict[str, Tensor]()

    def add(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """The next samples' features by kind, (B, ...) each."""
        done = self.done + len(batch["last"])
        for kind, array in batch.items():
            x = torch.from_numpy(array)
            if kind not in self.kinds:
                self.kinds[kind] = allocate(self.n, *x.shape[1:], dtype=x.dtype)
            self.kinds[kind][self.done : done] = x
        self.done = done

    @property
    def frozen(self) -> FrozenFeatures:
        if not self.kinds:  # no image could be read
            return FrozenFeatures(torch.empty(0, 0))
        return FrozenFeatures(**{kind: x[: self.done] for kind, x in self.kinds.items()})


def _layers(encoder: Encoder, images: Tensor, last: int, symmetry: Symmetry) -> list[Tensor]:
    """Patch tokens (B, T, D) of the last blocks, averaged over all turns of the images, each token where it is in the first."""
    pixels, p = encoder.normalise(images.to(encoder.device)), encoder.vit.config.patch_size
    means: list[Tensor] = []
    for number, way in enumerate(all_turns(symmetry), start=1):
        turns = way.expand(len(pixels), -1)
        for i, x in enumerate(encoder.layers(turned(pixels, turns), last=last)):
            grid = x.transpose(1, 2).unflatten(2, (pixels.shape[2] // p, pixels.shape[3] // p))
            back = turned_back(grid, turns).flatten(2).transpose(1, 2)
            if number == 1:
                means.append(back)
            else:
                means[i] = means[i] + (back - means[i]) / number
    return means


def _pooled(encoder: Encoder, images: Tensor, last4: bool, tokens: bool, symmetry: Symmetry) -> dict[str, Tensor]:
    """What `FrozenFeatures` holds of a batch."""
    layers = _layers(encoder, images, 4 if last4 else 1, symmetry)
    means = [layer.float().mean(1).cpu() for layer in layers]
    more = {"last4": torch.cat(means, 1)} if last4 else {}
    return {"last": means[-1], **more, **({"tokens": layers[-1].half().cpu()} if tokens else {})}


def _raw(images: Tensor, patch_size: int, tokens: bool) -> dict[str, Tensor]:
    """The same of pixels: those of a small copy, and those of each patch as tokens; there are no layers."""
    white = 255 if images.dtype == torch.uint8 else 1
    small = F.interpolate(images, (RAW_SIDE, RAW_SIDE), mode="bilinear", antialias=True).flatten(1).float() / white
    if not tokens:
        return {"last": small}
    patches = patchify(images, patch_size).unflatten(0, (len(images), -1)) / white
    return {"last": small, "tokens": patches.half()}


def _require_memory(encoder: Encoder, n: int, encoders: int) -> None:
    height, width = encoder.images.height_width
    need = 2 * n * encoders * encoder.width * height * width // encoder.vit.config.patch_size**2
    if need > MOST_TOKENS:
        raise UserError(
            f"the patch tokens of {n:,} images take {need / 2**30:.0f} GiB; evaluate fewer: set images_limit, "
            f"or leave out the tasks that need tokens (attentive)"
        )


def _require_usable(features: Mapping[str, FrozenFeatures], source: Source, ids: list[int]) -> None:
    if len(ids) < 2:
        raise UserError(f"{source.name} has {len(ids)} readable image(s): there is nothing to compare")
    for name, x in ((name, each.last) for name, each in features.items()):
        bad = torch.cat([~torch.isfinite(batch).all(1) for batch in x.split(ROWS_AT_ONCE)]).nonzero().flatten()
        if len(bad):
            raise UserError(
                f"{name}: the features of {len(bad)} of {len(x)} images are not finite, first of "
                f"{source.title(ids[int(bad[0])])}: the weights or the images are broken; with bf16 try run.precision=fp32"
            )


def in_batches(places: NDArray[np.int64], batch: int = BATCH) -> list[NDArray[np.int64]]:
    """Places in the batches that evaluation takes."""
    return [places[start : start + batch] for start in range(0, len(places), batch)]


def batches(
    source: Source, batched: Sequence[NDArray[np.int64]], read: Callable[[int], T], seconds: float, threads: int = READERS
) -> Iterator[tuple[list[tuple[int, T]], list[UnreadRow]]]:
    """Of each batch of places, those that can be read, with what `read` makes of each, and those that cannot."""
    ahead = max(1, PREFETCH_SAMPLES // BATCH)
    for number, places in enumerate(batched):
        source.prefetch(np.concatenate(batched[number : number + ahead]))
        yield split_unread(source, places, read_many(source, places, read, threads=threads, seconds=seconds))


def say_left_out(bad: Iterable[UnreadRow], of: str = "the evaluation") -> None:
    """Name images that could not be read."""
    for _, title, why in bad:
        log.warning("left out of %s: %s: %s", of, plain(title), why)


def split_unread(
    source: Source, ids: NDArray[np.int64], found: Sequence[T | BadImageError]
) -> tuple[list[tuple[int, T]], list[UnreadRow]]:
    """What was read of places `ids` (n,), with these, and what could not be."""
    each_place = list(zip(ids.tolist(), found, strict=True))
    bad = [(i, source.title(i), plain(str(each))) for i, each in each_place if isinstance(each, BadImageError)]
    return [(i, each) for i, each in each_place if not isinstance(each, BadImageError)], bad
