"""`jepakit data pack`: any source to a folder of raw images that training crops without decoding (layout: pack_format.py).

Files are written in order, so that the same source gives the same bytes for any number of threads and of kills.
"""

import logging
import re
import shutil
from pathlib import Path
from shlex import quote

import numpy as np

from jepakit.core.errors import UserError, checked, plain
from jepakit.core.files import locked, user_path
from jepakit.core.progress import progress
from jepakit.data.decoding.pixels import too_many
from jepakit.data.formats.pack_format import (
    CLASSES,
    MANIFEST,
    PART_KINDS,
    UNFINISHED,
    Bad,
    File,
    Manifest,
    Texts,
    Writer,
    manifest_of,
    part_path,
    store,
)
from jepakit.data.formats.pack_shrink import LATE, Packed, each_shrunk, notes_of, threads_of
from jepakit.data.formats.pack_source import PackedSource, packed, records, require_length
from jepakit.data.formats.remote import shown
from jepakit.data.opening import absolute, named, open_source
from jepakit.data.sources import Source, spread_places
from jepakit.data.threads import StuckError
from jepakit.model.images import MOST_PIXELS

log = logging.getLogger("jepakit")
_PART = 256 << 20  # bytes of images at which a file ends
COMPARED = 400  # images of a pack that are compared with the source's, and at least one of each part
MAX_BAD = 0.01
SURE = 0.9  # of an estimated size: what is refused for want of space would hardly fit
OURS = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(UNFINISHED)}|{re.escape(CLASSES)}|({'|'.join(PART_KINDS)})-\d{{5,}}\.bin")


@checked
def pack(
    data: str | Path,
    out: str | Path,
    size: int = 256,
    *,
    labels: str | None = None,
    threads: int | None = None,
    max_pixels: int = MOST_PIXELS,
    max_bad: float = MAX_BAD,
    overwrite: bool = False,
) -> Path:
    """Write every readable image of `data` to the folder `out`, its shorter side `size` pixels or, where it is smaller, as it is.

    labels: which of several that the source has; threads: that decode (all cores); max_pixels: of a readable image;
    overwrite: replace another pack. Bad images are named and left out; a share above max_bad stops, as it stops a run.
    A pack that was stopped goes on where it was, when images at several places of what is packed are what they were.
    Raises UserError. Returns the folder, which `pretrain` and all else takes as data.
    """
    if size < 1:
        raise UserError(f"--size {size}: give at least 1 pixel")
    many = threads_of(threads)
    root, source = user_path(out, "out"), open_source(named(data), labels, most_pixels=max_pixels)
    if isinstance(source, PackedSource) and root.resolve() == source.root.resolve():
        raise UserError(f"{root} is what is to be packed: give another --out")
    asked = {"max_bad": None if max_bad == MAX_BAD else max_bad, "threads": threads}
    plan = Manifest.of(source, shown(absolute(named(data))), size, max_pixels).model_copy(update=asked)
    again = f"{plan.command} --out {quote(str(root))}"
    try:
        plan = plan.model_copy(update={"notes": notes_of(source, max_pixels, many)})
        for note in plan.notes:
            log.warning("%s", note)
        _write(root, plan, source, many, max_bad, overwrite)
    except KeyboardInterrupt:
        log.warning("stopped; go on with: %s", again)
        raise
    except (OSError, StuckError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{root}: packing stopped ({why}); put that right, and go on with: {again}") from None
    return root


def _write(root: Path, plan: Manifest, source: Source, threads: int, max_bad: float, overwrite: bool) -> None:
    """Write the pack to its folder, or what of it is not there yet."""
    _require_ours(root)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        begun = _begun(root, plan, source, threads, overwrite)
        if (root / MANIFEST).is_file():
            (root / UNFINISHED).unlink(missing_ok=True)
        else:
            _go_on(root, begun, source, threads, max_bad)


def amount(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def _manifest_path(root: Path) -> Path | None:
    """The manifest of a finished pack, else that of one that was stopped."""
    return next((root / name for name in (MANIFEST, UNFINISHED) if (root / name).exists()), None)


def _require_ours(root: Path) -> None:
    """Raises UserError where anything but a pack, or what a kill may leave of it, lies at the folder's place."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f"--out {root} is a file; give a new folder")
    if begun := _manifest_path(root):
        manifest_of(begun)
    for name in _names(root):
        if not OURS.fullmatch(name.removeprefix(".tmp-")) or not (begun or name.startswith(".tmp-")):
            raise UserError(f"{root} holds other files ({plain(name)}); give a folder of its own")


def _begun(root: Path, plan: Manifest, source: Source, threads: int, overwrite: bool) -> Manifest:
    """What an earlier life left of this plan, or the plan itself in an empty folder. Raises UserError for another pack."""
    found = _manifest_path(root)
    begun = plan if found is None or overwrite else _resumed(root, found, plan, source, threads)
    if begun is not plan and found == root / MANIFEST:
        return begun
    old = [name for name in _names(root) if begun is plan or name.startswith(".tmp-")]
    old.sort(key=lambda name: name in (MANIFEST, UNFINISHED))  # which mark the folder as ours: last
    _require_space(root, begun, source, threads, sum((root / name).stat().st_size for name in old))
    for name in old:
        (root / name).unlink()
    if begun is plan:
        store(root / UNFINISHED, plan.stored)
    return begun


def _resumed(root: Path, found: Path, plan: Manifest, source: Source, threads: int) -> Manifest:
    """The manifest in `found`, with what is asked now. Raises UserError where it is of another plan, or of other images."""
    before = manifest_of(found)
    now = {name: getattr(plan, name) for name in ("source", "held_out", "notes", "max_bad", "threads")}
    begun = before.model_copy(update=now)
    if begun.model_copy(update={"parts": (), "bad": ()}) != plan:
        raise UserError(
            f"{root} holds another pack (of {before.samples} images of {before.source}, --size {before.size}), or the images "
            f"or labels have changed since: give another --out, or replace it with --overwrite"
        )
    compared = _compared(root, begun, source, threads)
    if found.name == MANIFEST:
        packed(root, None)
        size = amount(begun.image_bytes)
        log.info("%s is packed already (%d images compared): %d images, %s", root, compared, begun.count, size)
    elif begun.parts:
        log.info("going on: %d images are packed (%d compared)", begun.count, compared)
    return begun


def _compared(root: Path, begun: Manifest, source: Source, threads: int) -> int:
    """How many packed images were compared with the source's.

    Raises UserError where files are not whole, or some of those images are others, or some of the bad ones are so no more.
    """
    for number, part in enumerate(begun.parts):
        for kind in PART_KINDS:
            file: File | None = getattr(part, kind)
            if file is not None:
                require_length(part_path(root, kind, number), file)
    bad = {entry.index: entry.title for entry in begun.bad if not entry.reason.startswith(LATE)}  # it would keep us waiting
    sequential = source.blocks is not None and source.blocks.sequential
    few = set(spread_places(source, COMPARED).tolist()) if sequential else set(list(bad)[:: 1 + len(bad) // COMPARED])
    sums = _sums(root, begun, few if sequential else None)
    replace = "give another --out, or replace it with --overwrite"

    def take(index: int, found: Packed | str) -> None:
        if index in sums and (isinstance(found, str) or found.crc32 != sums[index]):
            why = f"cannot be read now ({found})" if isinstance(found, str) else "has changed, or torch resizes otherwise now"
            raise UserError(f"{root} was packed from other images: {plain(source.title(index))} {why}; {replace}")
        if index in bad and not isinstance(found, str):
            raise UserError(f"{root} lacks {bad[index]}, which can be read now: {replace}")

    ids = np.array(sorted(sums.keys() | few & bad.keys()), np.int64)
    each_shrunk(source, ids, begun, take, threads)
    return len(sums)


def _sums(root: Path, begun: Manifest, few: set[int] | None) -> dict[int, int]:
    """Samples at several places of each part, all of a small pack, and their crc32; or of `few` samples, and the last."""
    bad, first, sums = {entry.index for entry in begun.bad}, 0, dict[int, int]()
    for number, part in enumerate(begun.parts):
        ids = [index for index in range(first, part.end) if index not in bad]
        many = min(part.count, max(1, COMPARED // len(begun.parts)))
        rows = np.linspace(part.count - 1, 0, many).round().astype(int).tolist()
        if few is not None:
            rows = [row for row, index in enumerate(ids) if index in few or index == begun.parts[-1].end - 1]
        written, first = records(root, number, part)["crc32"], part.end
        sums |= {ids[row]: int(written[row]) for row in rows}
    return sums


def _require_few(bad: list[Bad], source: Source, max_bad: float) -> None:
    """Raises UserError for more bad images than the share allows; one is never too many."""
    if too_many(len(bad), len(source), max_bad):
        raise UserError(
            f"{len(bad)} of {len(source)} images cannot be read, more than --max-bad {max_bad:g}: mend them (jepakit data check "
            f"names all), or give a higher --max-bad"
        )


def _require_space(root: Path, begun: Manifest, source: Source, threads: int, freed: int) -> None:
    """Logs how much a pack will take. Raises UserError where that is clearly more than the disk has with `freed` bytes more."""
    sizes: list[int] = []

    def take(_: int, found: Packed | str) -> None:
        sizes.extend([] if isinstance(found, str) else [found.pixels.nbytes])

    each_shrunk(source, spread_places(source, 32), begun, take, threads)
    total = np.mean(sizes, dtype=float) * len(source) if sizes else 0.0
    need, free = max(0.0, total - begun.image_bytes), shutil.disk_usage(root).free + freed
    if SURE * need > free:
        raise UserError(
            f"{root} needs about {amount(need)}, and its disk has {amount(free)} free: make room, or give a smaller --size"
        )
    log.info("%d images, shorter side at most %d: about %s (%s free)", len(source), begun.size, amount(need), amount(free))


def _go_on(root: Path, begun: Manifest, source: Source, threads: int, max_bad: float) -> None:
    """Pack what is left. What is written stays when this is stopped."""
    parts, bad, writer = list(begun.parts), list(begun.bad), None
    first = parts[-1].end if parts else 0

    def take(index: int, found: Packed | str) -> None:
        nonlocal writer
        title = source.title(index)
        if isinstance(found, str):
            log.warning("bad image: %s: %s (left out)", plain(title), found)
            bad.append(Bad(index=index, title=plain(title), reason=found))
            _require_few(bad, source, max_bad)
            return
        writer = writer or Writer(root, len(parts))
        writer.add(index, title, *found)
        if writer.bytes >= _PART:
            parts.append(writer.close(source.labels))
            writer = None
            store(root / UNFINISHED, begun.model_copy(update={"parts": tuple(parts), "bad": tuple(bad)}).stored)
        report(index + 1)

    try:
        with progress("packing", len(source), first) as report:
            each_shrunk(source, np.arange(first, len(source)), begun, take, threads)
        if writer is not None:
            parts.append(writer.close(source.labels))
        if source.labels is not None:
            store(root / CLASSES, Texts.of(source.labels.classes).stored)
        done = begun.model_copy(update={"parts": tuple(parts), "bad": tuple(bad), "max_bad": None, "threads": None})
        store(root / MANIFEST, done.stored)
        (root / UNFINISHED).unlink(missing_ok=True)
    except OSError:
        for draft in root.glob(".tmp-*"):  # its space may be what is missing
            draft.unlink(missing_ok=True)
        raise
    log.info("packed %d images in %s (%s); %d bad ones left out", done.count, root, amount(done.image_bytes), len(done.bad))
