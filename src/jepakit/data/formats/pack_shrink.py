"""Samples as they are packed: read and shrunk by threads, and handed on in order. One that hangs is left behind."""

import zlib
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from jepakit.core.device import cores
from jepakit.core.errors import UserError, plain
from jepakit.data.crops import resize
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.formats.pack_format import Manifest
from jepakit.data.opening import SECONDS
from jepakit.data.sources import Source
from jepakit.data.statistics import file_notes
from jepakit.data.threads import run_parallel

T = TypeVar("T")
_HELD = 256 << 20  # bytes of images that wait, about, while one that comes before them is slow
LATE = "no answer within"  # so many seconds: why a sample is left out whose read hangs


class Packed(NamedTuple):
    """Pixels (H, W, C) as they are stored, and their crc32."""

    pixels: Pixels
    crc32: int


def shrunk(pixels: Pixels, size: int) -> Pixels:
    """(H, W, C) -> its shorter side `size`, aspect and depth kept, bilinear with antialias; never enlarged. Contiguous rows."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short > size:
        sides = max(1, round(height * size / short)), max(1, round(width * size / short))
        deep = pixels.dtype == np.uint16  # torch resizes none of these
        small = resize(pixels.astype(np.float32) if deep else pixels, *sides).permute(1, 2, 0).numpy()
        pixels = np.rint(small).clip(0, 65535).astype(np.uint16) if deep else small
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))


def each_shrunk(
    source: Source, ids: NDArray[np.int64], plan: Manifest, take: Callable[[int, Packed | str], None], threads: int
) -> None:
    """take(id, the sample as `plan` packs it, or why it cannot be read), in the order of the ids, one at a time.

    Raises what `take` and the source raise, and StuckError.
    """
    start, many, largest = 0, 2, 1  # samples of each thread that are read together

    def work(index: int) -> Packed | str:
        try:
            pixels = shrunk(source.read(index, plan.max_pixels), plan.size)
        except BadImageError as error:
            return plain(str(error))
        return Packed(pixels, zlib.crc32(pixels.data))

    def measured(index: int, found: Packed | str) -> None:
        nonlocal largest
        largest = max(largest, 0 if isinstance(found, str) else found.pixels.nbytes)
        take(index, found)

    threads_of_torch = torch.get_num_threads()
    torch.set_num_threads(1)  # images are resized by threads of ours: more would only wait for each other
    try:
        while start < len(ids):
            some = ids[start : start + many * threads]
            ready(source, some, SECONDS)
            in_order(some, work, measured, threads, SECONDS)
            start, many = start + len(some), max(2, min(16, _HELD // largest // threads))
    finally:
        torch.set_num_threads(threads_of_torch)


def notes_of(source: Source, most_pixels: int, threads: int) -> tuple[str, ...]:
    """What is to be said of a source, and of some of its files, where looking does not fetch a block for each."""
    sequential = source.blocks is not None and source.blocks.sequential
    found = () if sequential else file_notes(source, most_pixels, threads=threads, seconds=SECONDS)
    return tuple(plain(note) for note in (*source.notes, *found))


def in_order(
    ids: NDArray[np.int64], work: Callable[[int], T], take: Callable[[int, T | str], None], threads: int, seconds: float
) -> None:
    """take(id, work(id)) of each id, in their order and one at a time, by threads; where work hangs, take gets words for it.

    Raises what either raises, and StuckError. Holds the results that wait for one before them.
    """
    lock, waiting, place = Lock(), dict[int, T | str](), 0

    def put(row: int, found: T | str) -> None:
        nonlocal place
        with lock:
            if row < place or row in waiting:  # it was given up
                return
            waiting[row] = found
            while place in waiting:
                take(int(ids[place]), waiting.pop(place))
                place += 1

    def late(row: int) -> None:
        put(row, f"{LATE} {seconds:g} s")

    def run(row: int) -> T | str:
        return "" if row < place or row in waiting else work(int(ids[row]))

    try:
        run_parallel(len(ids), run, put, threads=threads, seconds=seconds, late=late)
    finally:
        with lock:  # threads that are left behind have nobody to give to
            place = len(ids)


def ready(source: Source, ids: NDArray[np.int64], seconds: float) -> None:
    """Before `ids` are read, in order: a source with blocks may fetch theirs and the next, and is waited for."""
    if source.blocks is None:
        return
    starts = source.blocks.starts
    after = int(np.searchsorted(starts, ids[-1], "right"))
    source.prefetch(np.concatenate([ids, starts[after:-1][: source.blocks.at_once]]))
    source.wait_for(ids, seconds)


def threads_of(asked: int | None) -> int:
    """As many threads as asked for, or as cores that this process may use. Raises UserError for none."""
    if asked is not None and asked < 1:
        raise UserError(f"--threads {asked}: give at least 1")
    return asked or cores()
