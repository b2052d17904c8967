"""Batches: the one at step s is a pure function of (seed, s, batch size), for any number of threads and any restart.

Threads decode, crop and write into one uint8 buffer per batch; a few batches are made ahead.
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit import rng
from jepakit.data.crops import BandsError, Images, channels_of, flips, random_crop, resize
from jepakit.data.decode import BadImageError, Pixels
from jepakit.data.sources import Source
from jepakit.errors import UserError
from jepakit.masks import Masking, Masks

log = logging.getLogger("jepakit")
AHEAD = 3
PROBED = 8  # images looked at for their bands before a run


class TooManyBadImagesError(UserError):
    """More images are unreadable than images.max_bad allows."""


@dataclass(frozen=True)
class Batch:
    """images (B, C, H, W): uint8, or float32 in units of white where one is deeper.

    masks of each part of the batch (one unless gradients are accumulated).
    """

    step: int
    epoch: int
    images: Tensor
    masks: tuple[Masks, ...]


@dataclass
class Loader:
    """Batches of a source; whole batches only, each sample at most once an epoch."""

    source: Source
    images: Images
    masking: Masking
    grid: tuple[int, int]
    batch_size: int
    seed: int
    parts: int = 1
    threads: int = 2
    bad: dict[int, str] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if len(self.source) < 2:
            raise UserError(f"{self.source.name} holds one image; a batch takes at least 2")
        if len(self.source) < self.batch_size:
            raise UserError(
                f"optim.batch_size={self.batch_size} is more than the {len(self.source)} images of {self.source.name}; "
                f"set optim.batch_size={2 ** (len(self.source).bit_length() - 1)} or less"
            )
        self._require_bands()

    def _require_bands(self) -> None:
        """Raises UserError if none of eight images has the right number of bands: then the setting is wrong, not the images."""
        found: list[BandsError] = []
        for index in np.unique(np.linspace(0, len(self.source) - 1, PROBED).astype(int)):
            try:
                channels_of(self.source.read(int(index))[:1, :1], self.images)
                return
            except BandsError as error:
                found.append(error)
            except BadImageError:
                continue
        if found:
            raise UserError(f"{self.source.name}: an image {found[0]}")

    @property
    def steps_per_epoch(self) -> int:
        return len(self.source) // self.batch_size

    def ids(self, step: int) -> NDArray[np.int64]:
        """Sample ids of the batch at a step: (B,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = rng.permutation(self.seed, "order", epoch, len(self.source))
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, step: int, pool: ThreadPoolExecutor) -> Batch:
        """The batch at a step. Raises UserError when too many images are bad."""
        ids, epoch = self.ids(step), step // self.steps_per_epoch
        mirrored = flips(self.seed, epoch, ids) if self.images.flip else np.zeros(len(ids), bool)

        buffer = torch.empty(len(ids), self.images.channels, *self.images.height_width, dtype=torch.uint8)
        deep: dict[int, Tensor] = {}

        def fill(rows: range) -> None:
            for row in rows:
                image = self._sample(int(ids[row]), epoch, bool(mirrored[row]))
                if image.dtype == torch.uint8:
                    buffer[row] = image
                else:
                    deep[row] = image

        chunk = -(-len(ids) // self.threads)
        list(pool.map(fill, [range(i, min(i + chunk, len(ids))) for i in range(0, len(ids), chunk)]))
        images = buffer.float() / 255 if deep else buffer
        for row, image in deep.items():
            images[row] = image
        masks = tuple(
            self.masking.sample(self.grid, part, seed=self.seed, epoch=epoch, step=step * self.parts + i)
            for i, part in enumerate(np.split(ids, self.parts))
        )
        return Batch(step, epoch, images, masks)

    def _sample(self, index: int, epoch: int, mirrored: bool) -> Tensor:
        part = random_crop(self._readable(index), self.images, index, self.seed, epoch)
        image = resize(channels_of(part, self.images), *self.images.height_width)
        return image.flip(2) if mirrored else image

    def _readable(self, index: int) -> Pixels:
        """The image, or for a bad one the next that can be read: the same replacement in every run."""
        for other in range(len(self.source)):
            place = (index + other) % len(self.source)
            try:
                pixels = self.source.read(place)
                channels_of(pixels[:1, :1], self.images)  # another number of bands is found here
                return pixels
            except BadImageError as error:
                self._note(place, str(error))
        raise UserError(f"no readable image in {self.source.name}")

    def _note(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.bad:
                return
            self.bad[index] = reason
        log.warning(
            "bad image %d: %s: %s (skipped, the next one takes its place)",
            len(self.bad),
            self.source.title(index),
            reason,
        )
        if len(self.bad) > max(1, self.images.max_bad * len(self.source)):  # one is never too many
            raise TooManyBadImagesError(
                f"{len(self.bad)} of {len(self.source)} images cannot be read, more than images.max_bad={self.images.max_bad:g}; "
                f"run.log names them: mend them, or set images.max_bad higher, and --resume"
            )

    def __call__(self, first: int, steps: int) -> Iterator[Batch]:
        """Batches from step `first` up to `steps`, made ahead of need."""
        with ThreadPoolExecutor(self.threads, "jepakit-image") as pool, ThreadPoolExecutor(1, "jepakit-batch") as maker:
            ahead: deque[Future[Batch]] = deque()
            for step in range(first, steps):
                while len(ahead) < AHEAD and step + len(ahead) < steps:
                    ahead.append(maker.submit(self.batch, step + len(ahead), pool))
                yield ahead.popleft().result()
