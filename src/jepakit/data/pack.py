"""`jepakit data pack`: any source to a folder of raw images that training crops without decoding (layout: packfiles.py).

Files are written in order, so that the same source gives the same bytes for any number of threads and of kills.
"""

import fcntl
import logging
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np
import torch

from jepakit.data.crops import resize
from jepakit.data.in_order import in_order, threads_of
from jepakit.data.opening import open_source
from jepakit.data.packed import PackedSource, packed
from jepakit.data.packfiles import (
    CLASSES,
    INDEX,
    KINDS,
    MANIFEST,
    UNFINISHED,
    Bad,
    File,
    Manifest,
    Texts,
    Writer,
    manifest_of,
    name_of,
    require_length,
    store,
)
from jepakit.data.pixels import MOST_PIXELS, BadImageError, Pixels
from jepakit.data.remote import shown
from jepakit.data.sources import Source, spread
from jepakit.errors import UserError, plain
from jepakit.progress import Report, progress

log = logging.getLogger("jepakit")
PART = 256 << 20  # bytes of images at which a file ends
TOLD = 256  # samples that a source is told of ahead
SURE = 0.9  # of an estimated size: what is refused for want of room would hardly fit
OURS = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(UNFINISHED)}|{re.escape(CLASSES)}|({'|'.join(KINDS)})-\d{{5,}}\.bin")


class Packed(NamedTuple):
    """Pixels (H, W, C) as they are stored, and their crc32."""

    pixels: Pixels
    crc32: int


def pack(
    data: str | Path,
    out: str | Path,
    size: int = 256,
    *,
    labels: str | None = None,
    threads: int | None = None,
    max_pixels: int = MOST_PIXELS,
    max_bad: float = 0.01,
    overwrite: bool = False,
) -> Path:
    """Write every readable image of `data` to the folder `out`, its shorter side `size` pixels or, where it is smaller, as it is.

    labels: which of several that the source has; threads: that decode (all cores); max_pixels: of a readable image;
    overwrite: replace another pack. Bad images are named and left out; a share above max_bad stops, as it stops a run.
    A pack that was stopped goes on where it was.
    Raises UserError. Returns the folder, which `pretrain` and all else takes as data.
    """
    if size < 1:
        raise UserError(f"--size {size}: give at least 1 pixel")
    many = threads_of(threads)
    root, source = Path(out).expanduser(), open_source(str(data), labels)
    if isinstance(source, PackedSource) and root.resolve() == source.root.resolve():
        raise UserError(f"{root} is what is to be packed: give another --out")
    plan = Manifest.of(source, shown(str(data)), size, max_pixels)
    again = f"{plan.command} --out {quote(str(root))}"
    try:
        _require_ours(root)
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            begun = _begun(root, plan, source, overwrite)
            if (root / MANIFEST).is_file():
                (root / UNFINISHED).unlink(missing_ok=True)
                log.info("%s is packed already: %d images, %s", root, begun.count, amount(begun.image_bytes))
            else:
                if begun.parts:
                    log.info("going on: %d images are packed", begun.count)
                _go_on(root, begun, source, many, max_bad)
    except KeyboardInterrupt:
        log.warning("stopped; go on with: %s", again)
        raise
    except OSError as error:
        raise UserError(f"{root}: packing stopped ({error.strerror or error}); put that right, and go on with: {again}") from None
    return root


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


def amount(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing to {root}; wait for it, or give another --out") from None
        yield


def _require_ours(root: Path) -> None:
    """Raises UserError where anything but a pack, or what a kill may leave of it, lies at the folder's place."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--out {root} is a file; give a new folder")
    names = sorted(path.name for path in root.iterdir() if path.name != ".lock") if root.exists() else []
    begun = next((name for name in (MANIFEST, UNFINISHED) if name in names), None)
    if begun is not None:
        manifest_of(root / begun)
    for name in names:
        if not OURS.fullmatch(name.removeprefix(".tmp-")) or not (begun or name.startswith(".tmp-")):
            raise UserError(f"{root} holds other files ({plain(name)}); give a folder of its own")


def _begun(root: Path, plan: Manifest, source: Source, overwrite: bool) -> Manifest:
    """What an earlier life left of this plan, or the plan itself in an empty folder. Raises UserError for another pack."""
    there = sorted(path.name for path in root.iterdir() if path.name != ".lock")
    found = next((root / name for name in (MANIFEST, UNFINISHED) if name in there), None)
    drafts = [name for name in there if name.startswith(".tmp-")]
    begun = plan
    if found is not None and not overwrite:
        begun = manifest_of(found)
        if begun.model_copy(update={"source": plan.source, "parts": (), "bad": ()}) != plan:
            raise UserError(
                f"{root} holds another pack (of {begun.samples} images of {begun.source}, --size {begun.size}), or the images "
                f"or labels have changed since: give another --out, or replace it with --overwrite"
            )
        _require_same(root, begun, source)
        if found.name == MANIFEST:
            packed(root, None)
            return begun
    old = drafts if begun is not plan else sorted(there, key=lambda name: name in (MANIFEST, UNFINISHED))  # which mark the folder
    _require_room(root, begun, source, sum((root / name).stat().st_size for name in old))
    for name in old:
        (root / name).unlink()
    if begun is plan:
        store(root / UNFINISHED, plan.stored)
    return begun


def _require_same(root: Path, begun: Manifest, source: Source) -> None:
    """Raises UserError where packed files are not whole, or some of the source's images are others than those packed."""
    for number, part in enumerate(begun.parts):
        for kind in KINDS:
            file: File | None = getattr(part, kind)
            if file is not None:
                require_length(name_of(root, kind, number), file)
    for number in np.unique(np.linspace(0, len(begun.parts) - 1, min(8, len(begun.parts))).astype(int)).tolist():
        index, last = np.fromfile(name_of(root, "index", number), INDEX)[-1], begun.parts[number].end - 1
        found = _found(source, last, begun)
        if isinstance(found, str) or found.crc32 != index["crc32"]:
            raise UserError(
                f"{root} was packed from other images: {plain(source.title(last))} has changed, or torch resizes otherwise now; "
                f"give another --out, or replace it with --overwrite"
            )
    for entry in begun.bad:
        if not isinstance(_found(source, entry.index, begun), str):
            raise UserError(
                f"{root} lacks {entry.title}, which can be read now: give another --out, or replace it with --overwrite"
            )


def _require_few(bad: list[Bad], source: Source, max_bad: float) -> None:
    """Raises UserError for more bad images than the share allows; one is never too many."""
    if len(bad) > max(1, max_bad * len(source)):
        raise UserError(
            f"{len(bad)} of {len(source)} images cannot be read, more than --max-bad {max_bad:g}: mend them (jepakit data check "
            f"names all), or give a higher --max-bad"
        )


def _require_room(root: Path, begun: Manifest, source: Source, freed: int) -> None:
    """Says how much a pack will take. Raises UserError where that is clearly more than the disk has, and what is freed on it."""
    sizes = [found.pixels.nbytes for i in spread(source, 32).tolist() if not isinstance(found := _found(source, i, begun), str)]
    all_of_it = np.mean(sizes, dtype=float) * len(source) if sizes else 0.0
    need, free = max(0.0, all_of_it - begun.image_bytes), shutil.disk_usage(root).free + freed
    if SURE * need > free:
        raise UserError(
            f"{root} needs about {amount(need)}, and its disk has {amount(free)} free: make room, or give a smaller --size"
        )
    log.info("%d images, shorter side at most %d: about %s (%s free)", len(source), begun.size, amount(need), amount(free))


def _found(source: Source, index: int, plan: Manifest) -> Packed | str:
    """A sample as it is packed, or why it cannot be read."""
    try:
        pixels = shrunk(source.read(index, plan.max_pixels), plan.size)
    except BadImageError as error:
        return plain(str(error))
    return Packed(pixels, zlib.crc32(pixels.data))


def _go_on(root: Path, begun: Manifest, source: Source, threads: int, max_bad: float) -> None:
    """Pack what is left. What is written stays when this is stopped."""
    first = begun.parts[-1].end if begun.parts else 0
    threads_of_torch = torch.get_num_threads()
    torch.set_num_threads(1)  # images are resized by threads of ours: more would only wait for each other
    try:
        with progress("packing", len(source), first) as report:
            done = _write(root, begun, source, threads, max_bad, report)
    except OSError:
        for draft in root.glob(".tmp-*"):  # its room may be what is missing
            draft.unlink(missing_ok=True)
        raise
    finally:
        torch.set_num_threads(threads_of_torch)
    log.info("packed %d images in %s (%s); %d bad ones left out", done.count, root, amount(done.image_bytes), len(done.bad))


def _write(root: Path, begun: Manifest, source: Source, threads: int, max_bad: float, report: Report) -> Manifest:
    parts, bad, writer = list(begun.parts), list(begun.bad), None
    first = parts[-1].end if parts else 0
    images = in_order(lambda index: _found(source, index, begun), _told(source, first), threads)
    for index, found in enumerate(images, first):
        title = source.title(index)
        if isinstance(found, str):
            log.warning("bad image: %s: %s (left out)", plain(title), found)
            bad.append(Bad(index=index, title=plain(title), reason=found))
            _require_few(bad, source, max_bad)
            continue
        writer = writer or Writer(root, len(parts))
        writer.add(index, title, *found)
        if writer.bytes >= PART:
            parts.append(writer.close(source.labels))
            writer = None
            store(root / UNFINISHED, begun.model_copy(update={"parts": tuple(parts), "bad": tuple(bad)}).stored)
        report(index + 1)
    if writer is not None:
        parts.append(writer.close(source.labels))
    if source.labels is not None:
        store(root / CLASSES, Texts.of(source.labels.classes).stored)
    done = begun.model_copy(update={"parts": tuple(parts), "bad": tuple(bad)})
    store(root / MANIFEST, done.stored)
    (root / UNFINISHED).unlink(missing_ok=True)
    return done


def _told(source: Source, first: int) -> Iterator[int]:
    """The samples from `first` on; the source is told before it is asked."""
    for start in range(first, len(source), TOLD):
        end = min(start + TOLD, len(source))
        source.soon(np.arange(start, min(end + TOLD, len(source))))
        yield from range(start, end)
