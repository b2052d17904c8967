"""Batches: the one at step s is a pure function of (seed, s, global batch size), for any number of threads, processes, restarts.

Threads decode, crop and write into one buffer per batch; a few batches are made ahead.
"""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Event, Lock, Thread
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.distributed import AgreedError, told_objects
from jepakit.core.errors import UserError, plain
from jepakit.data.crops import Crops, channels_of, draw_turns, resize, stacked
from jepakit.data.decoding.pixels import BadImageError, Pixels, too_many
from jepakit.data.foreground import of_contrast, of_mask, read_mask
from jepakit.data.order import order
from jepakit.data.samples import errors_of_all
from jepakit.data.sources import Source, groups_at_hand
from jepakit.data.statistics import ordered_by, read_usable, require_bands
from jepakit.data.threads import run_parallel, time_limited
from jepakit.model.images import ImageSettings, turned
from jepakit.model.masking.masks import Masking
from jepakit.model.masking.packed_masks import Grids, Masks

log = logging.getLogger("jepakit")
AHEAD = 3
PREFETCHED = 8192  # samples that a source is told of before they are read


class TooManyBadImagesError(UserError):
    """More images are unreadable than images.max_bad allows."""


@dataclass(frozen=True)
class Batch:
    """What one process works on in a step.

    views: of each view (B, C, H, W): uint8, or float32 in units of white where one is deeper; turns: how the
    device shall turn them, as `turned` takes it; masks of each micro-batch (one unless gradients are accumulated).
    """

    step: int
    epoch: int
    views: tuple[Tensor, ...]
    turns: tuple[Tensor | None, ...]
    masks: tuple[Masks, ...]
    crc32: int = 0  # of the sample ids of all processes

    @property
    def images(self) -> Tensor:
        """(B, C, H, W): the only view, or the encoder's."""
        return self.views[0]

    def with_all_masks(self) -> "Batch":
        """The batch with the masks of all processes, of each micro-batch rank by rank."""
        return replace(self, masks=tuple(Masks.joined(parts) for parts in zip(*told_objects(self.masks), strict=True)))


@dataclass
class Loader:
    """Batches of a source; whole batches only, each sample at most once an epoch.

    batch_size is that of all processes together: of each micro-batch process p has
    slice p of `processes` equal ones.
    pin: buffers that CUDA copies from while it computes.
    """

    source: Source
    images: ImageSettings
    masking: Masking
    grid: tuple[int, int]
    batch_size: int
    seed: int
    micro_batches: int = 1
    threads: int = 2
    read_timeout_seconds: float = 60.0
    process: int = 0
    processes: int = 1
    pin: bool = False
    bad: dict[int, str] = field(default_factory=dict)
    _late: set[int] = field(default_factory=set)  # reads that never came back: not tried again
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if len(self.source) < 2:
            raise UserError(f"{self.source.name} holds one image; a batch takes at least 2")
        if len(self.source) < self.batch_size:
            raise UserError(
                f"optim.batch_size={self.batch_size} is more than the {len(self.source)} images of {self.source.name}; "
                f"set optim.batch_size={2 ** (len(self.source).bit_length() - 1)} or less"
            )
        if self.batch_size % (self.micro_batches * self.processes):
            raise UserError(
                f"optim.batch_size={self.batch_size} cannot be shared evenly by {self.processes} processes of "
                f"{self.micro_batches} micro-batches"
            )
        require_bands(self.source, self.images, self.read_timeout_seconds)
        if isinstance(self.masking.foreground, Path):
            for index, error in errors_of_all(self.source, 8, self._read, self.read_timeout_seconds)[-1:]:
                raise UserError(plain(f"none of eight images has a mask; of {self.source.title(index)}: {error}"))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.source) // self.batch_size

    def ids(self, step: int) -> NDArray[np.int64]:
        """Sample ids of the batch at a step, of all processes: (batch_size,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, step: int, stop: Event | None = None) -> Batch:
        """This process's batch at a step. Raises UserError when too many images are bad, StoppedError once `stop` is set."""
        epoch, place = divmod(step, self.steps_per_epoch)
        micro_batches = np.split(self.ids(step), self.micro_batches)
        share = self.batch_size // self.micro_batches // self.processes
        own = slice(self.process * share, (self.process + 1) * share)  # this process's rows of each micro-batch
        ids = np.concatenate([micro_batch[own] for micro_batch in micro_batches])
        self.source.prefetch(self._next(epoch, place * self.batch_size))
        made = _BatchViews(self, ids, epoch)
        for rows in groups_at_hand(self.source, ids):
            made.fill(rows, stop)
        turns = tuple(draw_turns(self.images.symmetry, self.seed, epoch, ids, view) for view in range(self.images.views))
        law = partial(self.masking.sample, self.grid, seed=self.seed, epoch=epoch)
        if self.masking.foreground:  # known of this process's images alone, which suffice where the law is of each image
            told = np.split(made.foreground_as_shown(turns[-1]), self.micro_batches)
            masks = tuple(law(some[own], foreground=f) for some, f in zip(micro_batches, told, strict=True))
        else:
            steps = range(step * self.micro_batches, (step + 1) * self.micro_batches)
            masks = tuple(law(some, step=i).of_images(own) for some, i in zip(micro_batches, steps, strict=True))
        return Batch(step, epoch, made.images(), turns, masks, crc32(self.ids(step).tobytes()))

    def __call__(self, first: int, steps: int) -> Generator[Batch]:
        """Batches from step `first` up to `steps`, made ahead of need."""
        made: Queue[Batch | BaseException] = Queue(AHEAD - 1)  # and one in the making
        stop = Event()

        def make() -> None:
            for step in range(first, steps):
                try:
                    batch: Batch | BaseException = self.batch(step, stop)
                except BaseException as error:
                    batch = error
                while not stop.is_set():
                    with suppress(Full):
                        made.put(batch, timeout=0.5)
                        break
                if stop.is_set() or isinstance(batch, BaseException):
                    return

        maker = Thread(target=make, name="jepakit-batch", daemon=True)
        maker.start()
        try:
            for _ in range(first, steps):
                found = made.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            stop.set()
            maker.join(5.0)  # a read that hangs must not keep the process

    def bad_now(self) -> dict[int, str]:
        """A copy of `bad`, to which threads may add meanwhile."""
        with self._lock:
            return dict(self.bad)

    def add_bad(self, found: Sequence[Mapping[int, str]]) -> None:
        """Count what several processes could not read, each image once. Raises AgreedError where too many are bad."""
        with self._lock:
            self.bad |= {index: reason for each in found for index, reason in each.items()}
        try:
            self._require_few()
        except TooManyBadImagesError as error:
            raise AgreedError(str(error)) from None

    def look_again(self) -> None:
        """Forget those bad images that can be read by now. Raises TooManyBadImagesError where too many are left."""
        known, self.bad, self._late = self.bad, {}, set()
        for index, reason in known.items():
            try:
                time_limited(self.read_timeout_seconds, partial(self._read, index))
            except BadImageError:
                self.bad[index] = reason
        if len(known) > len(self.bad):
            log.info("%d images that could not be read before can be now", len(known) - len(self.bad))
        self._require_few()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return order(self.seed, epoch, len(self.source), ordered_by(self.images, self.source))

    def _next(self, epoch: int, place: int) -> NDArray[np.int64]:
        """The samples from a place of an epoch on, into the next one where it ends."""
        ids = self._order(epoch)[place : place + PREFETCHED]
        return ids if len(ids) == PREFETCHED else np.concatenate([ids, self._order(epoch + 1)[: PREFETCHED - len(ids)]])

    def _read(self, index: int) -> tuple[Pixels, Pixels | None]:
        """A sample's pixels, and its mask where masks tell the foreground. Raises BadImageError where one of them is bad."""
        pixels, folder = read_usable(self.source, index, self.images), self.masking.foreground
        if not isinstance(folder, Path):
            return pixels, None
        return pixels, read_mask(folder, self.source.title(index), pixels.shape[:2], self.images.max_pixels)

    def _readable(self, row: int, places: NDArray[np.int64]) -> tuple[Pixels, Pixels | None]:
        """The image and mask of a row, or for a bad one the next that can be read: the same replacement in every run."""
        first = int(places[row])
        for other in range(len(self.source)):
            index = (first + other) % len(self.source)
            if index in self._late:
                continue
            places[row] = index
            try:
                return self._read(index)
            except BadImageError as error:
                if index in self._late:  # this thread was given up: another one fills the row
                    raise
                self._note(index, str(error))
        raise UserError(f"no readable image in {self.source.name}")

    def _note(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.bad:
                return
            self.bad[index] = reason
        said = "bad image %d: %s: %s (skipped, the next one takes its place)"
        log.warning(said, len(self.bad), plain(self.source.title(index)), plain(reason))
        self._require_few()

    def _require_few(self) -> None:
        if too_many(len(self.bad), len(self.source), self.images.max_bad):
            raise TooManyBadImagesError(
                f"{len(self.bad)} of {len(self.source)} images cannot be read, more than images.max_bad={self.images.max_bad:g}; "
                f"run.log names them: mend them, or set images.max_bad higher, and --resume"
            )


class _BatchViews:
    """The views of one batch, for samples ids (B,), while threads fill in their rows."""

    def __init__(self, loader: Loader, ids: NDArray[np.int64], epoch: int) -> None:
        self.loader, self.ids, settings = loader, ids, loader.images
        self.reading = ids.copy()  # the sample that each row reads at the moment: another one where the first is bad
        self.crops = [Crops.draw(settings, ids, loader.seed, epoch, view) for view in range(settings.views)]
        shape = len(ids), *settings.height_width, settings.channels  # channels last, as images are resized
        empty = (torch.empty(shape, dtype=torch.uint8, pin_memory=loader.pin) for _ in self.crops)
        self.buffers = [buffer.permute(0, 3, 1, 2) for buffer in empty]
        self.foreground = np.ones((len(ids), loader.grid[0] * loader.grid[1]), bool)  # of the crop that targets are taken from
        self.deep: list[dict[int, Tensor]] = [{} for _ in self.crops]  # rows that are not uint8

    def fill(self, rows: list[int], stop: Event | None) -> None:
        """Read, crop and store these rows, by threads. Raises what `run_parallel` and the loader do."""
        loader, settings, seconds = self.loader, self.loader.images, self.loader.read_timeout_seconds

        def views(i: int) -> tuple[list[Tensor], Grids | None]:
            pixels, mask = loader._readable(rows[i], self.reading)
            crops = (channels_of(crop.cut(rows[i], pixels), settings) for crop in self.crops)
            images = [resize(crop, *settings.height_width) for crop in crops]
            if mask is not None:
                return images, of_mask(self.crops[-1].cut(rows[i], mask), loader.grid)
            return images, of_contrast(images[-1], loader.grid) if loader.masking.foreground else None

        def late(i: int) -> None:
            index = int(self.reading[rows[i]])
            loader._late.add(index)
            loader._note(index, f"no answer within {seconds:g} s")

        def put(i: int, made: tuple[list[Tensor], Grids | None]) -> None:
            images, foreground = made
            if foreground is not None:
                self.foreground[rows[i]] = foreground
            for image, buffer, others in zip(images, self.buffers, self.deep, strict=True):
                if image.dtype == torch.uint8:
                    buffer[rows[i]] = image
                else:
                    others[rows[i]] = image

        loader.source.wait_for(self.ids[rows], seconds)
        run_parallel(len(rows), views, put, threads=loader.threads, seconds=seconds, late=late, stop=stop)

    def foreground_as_shown(self, turns: Tensor | None) -> Grids:
        """The foreground (B, N) of the last view, turned as the device will turn it."""
        grids = torch.from_numpy(self.foreground).view(-1, 1, *self.loader.grid)
        return turned(grids, turns).flatten(1).numpy()  # type: ignore[no-any-return]

    def images(self) -> tuple[Tensor, ...]:
        """Each view (B, C, H, W): uint8, or floats in units of white where some are."""
        return tuple(
            stacked([others.get(row, image) for row, image in enumerate(buffer)]) if others else buffer
            for buffer, others in zip(self.buffers, self.deep, strict=True)
        )
