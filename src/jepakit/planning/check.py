"""`jepakit data check`: reads every sample of a source and says what is in it, and whether a recipe fits.

Each sample is one record of a structured array, so that a million samples take tens of megabytes.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Unpack

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from jepakit.config.choice import Choice, resolve_with_data
from jepakit.config.config import Config, overrides
from jepakit.config.sizes import smaller_for
from jepakit.core.errors import UserError, checked
from jepakit.core.files import save_json, user_path
from jepakit.core.progress import progress
from jepakit.data.crops import BandsError, channels_of
from jepakit.data.decoding.decode import FORMATS, decode, jpeg_turn, pillow_turn
from jepakit.data.decoding.ifd import ORIENTATION, TIFF, tags_of
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.findings import Finding, Tally, findings_in
from jepakit.data.formats.pack_format import DEPTHS, part_path
from jepakit.data.formats.pack_shrink import ready, threads_of
from jepakit.data.formats.pack_source import PackedSource
from jepakit.data.formats.remote import shown
from jepakit.data.labels.table import GivenTable, TableColumns, table_layer, table_settings
from jepakit.data.opening import GivenImages, given_images
from jepakit.data.sources import Source, groups_at_hand
from jepakit.data.threads import run_parallel
from jepakit.data.training_part import split_sentences, training_part
from jepakit.model.images import ImageSettings
from jepakit.planning.check_results import LONG, Checked, Duplicates, Fit, find_stops, say_verdict
from jepakit.planning.labels_seen import QUANTILES, labels_seen

LARGEST, FIRST = 5, 3  # groups of duplicates that are shown, and titles of each
CHUNK = 1024  # samples that are looked at together
JPEG_MODES = {"Gray": "L", "CMYK": "CMYK", "YCCK": "CMYK"}
RECORD = np.dtype(
    [
        ("read", "?"),
        ("kind", "u1"),  # a place in the list of (format, mode)
        ("turned", "?"),
        ("height", "u4"),
        ("width", "u4"),
        ("bands", "u2"),
        ("depth", "u1"),
        ("sum", "u8", (2,)),  # a hash of what is stored
    ]
)


@checked
def check(
    data: GivenImages,
    recipe: str | None = None,
    *,
    labels: str | None = None,
    table: GivenTable | None = None,
    json: str | Path | None = None,
    threads: int | None = None,
    set: Sequence[str] | str | None = None,
    **columns: Unpack[TableColumns],
) -> Checked:
    """Read every sample of `data` and say what is there, and whether a pretraining could go.

    recipe: that of the pretraining; none: with what it would choose; labels: which of several that the source has; table,
    columns: as of `jepakit.pretrain`; json: a file for what is returned; set: 'group.key=value' words. Of a pack, every
    image's crc32 and every file's sha256 is verified. Raises UserError.
    """
    json = None if json is None else user_path(json, "--json")
    if json is not None and not json.parent.is_dir():
        raise UserError(f"--json {json}: there is no such folder")
    many = threads_of(threads)
    given = overrides(set)
    asked, method = given.pop("recipe", None), given.pop("method", None)
    told = table_settings(table, {**columns, "labels": labels})
    labels = None if told else labels
    name, opened = given_images(data, labels)
    layers = [given, table_layer(told), {"data": name}]
    config, source, choice = resolve_with_data(recipe or asked, method, *layers, labels=labels, source=opened)
    config.masking.check(config.grid)
    survey = _Survey(source, config.images.max_pixels)
    survey.take(many, config.run.read_timeout_seconds)
    altered = _altered(source) if isinstance(source, PackedSource) else ()
    checked = _checked(shown(name), source, survey, altered, config, choice)
    if json is not None:
        save_json(json, asdict(checked))
    return checked


class _Survey:
    """A record of each sample, the kinds of files that records name, and why a sample is bad."""

    def __init__(self, source: Source, most_pixels: int) -> None:
        self.records = np.zeros(len(source), RECORD)
        self.kinds: list[tuple[str, str]] = []
        self.bad: dict[int, str] = {}
        self.tally = Tally()
        self._source, self._most, self._lock = source, most_pixels, Lock()

    def take(self, threads: int, seconds: float) -> None:
        """Read all samples, and record what is found."""
        source = self._source
        with progress("checking", len(source)) as report:
            for start in range(0, len(source), CHUNK):
                ids = np.arange(start, min(start + CHUNK, len(source)))
                for rows in groups_at_hand(source, ids):
                    ready(source, ids[rows], seconds)
                    self.at(ids[rows], threads, seconds)
                report(int(ids[-1]) + 1, f"{len(self.bad)} broken" if self.bad else "")

    def at(self, ids: NDArray[np.int64], threads: int, seconds: float) -> None:
        """Read the samples of these ids, and record what is found."""
        given_up = set[int]()

        def work(row: int) -> tuple[Any, ...] | str:
            return f"no answer within {seconds:g} s" if row in given_up else self._one(int(ids[row]))

        def put(row: int, found: tuple[Any, ...] | str) -> None:
            if isinstance(found, str):
                self.bad[int(ids[row])] = found
            else:
                self.records[ids[row]] = found

        run_parallel(len(ids), work, put, threads=threads, seconds=seconds, late=given_up.add)

    def _one(self, index: int) -> tuple[Any, ...] | str:
        try:
            raw, findings = self._source.raw(index), list[Finding]()
            pixels = decode(raw, self._most, findings) if isinstance(raw, bytes) else raw
        except BadImageError as error:
            return str(error)
        if isinstance(self._source, PackedSource) and not self._source.intact(index):
            return "not as it was packed (crc32)"
        format, mode, turned = _header(raw, pixels) if isinstance(raw, bytes) else ("pixels", "", False)
        with self._lock:
            if (format, mode) not in self.kinds:
                self.kinds.append((format, mode))
            kind = self.kinds.index((format, mode))
        self.tally.add(index, findings + findings_in(pixels))
        return True, kind, turned, *pixels.shape, DEPTHS.index(pixels.dtype), _sum(raw)


def _header(data: bytes, pixels: Pixels) -> tuple[str, str, bool]:
    """Format and mode of what `decode` could read, as Pillow names them, and whether it was turned upright.

    Mode '' where tifffile reads the bands. By the parsers of `decode` only: Pillow's own of EXIF takes any memory.
    """
    if simplejpeg.is_jpeg(data):
        *_, space, _ = simplejpeg.decode_jpeg_header(data)
        return "JPEG", JPEG_MODES.get(space, "RGB"), jpeg_turn(data) > 1
    tags = tags_of(data) if data[:4] in TIFF else {}
    if tags and (str(pixels.dtype), pixels.shape[2]) not in (("uint8", 3), ("uint16", 1)):
        return "TIFF", "", False
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if b"eXIf" in data:  # which may come after the pixels
            image.load()
        turn = tags.get(ORIENTATION, (1,))[0] if tags else pillow_turn(image.info)
        return str(image.format), image.mode, 1 < turn <= 8


def _sum(raw: bytes | Pixels) -> NDArray[np.uint64]:
    """128 bits that are the same for the same bytes, or pixels: (2,)."""
    if isinstance(raw, bytes):
        found = hashlib.blake2b(raw, digest_size=16)
    else:
        found = hashlib.blake2b(np.ascontiguousarray(raw).data, digest_size=16, key=f"{raw.dtype}{raw.shape}".encode())
    return np.frombuffer(found.digest(), np.uint64)


def _altered(source: PackedSource) -> tuple[str, ...]:
    """Files of images that are not what was written."""
    parts = range(len(source.manifest.parts))
    found: list[str] = []
    with progress("verifying files", len(parts)) as report:
        for part in parts:
            if not source.unchanged(part):
                found.append(part_path(source.root, "images", part).name)
            report(part + 1)
    return tuple(found)


def _checked(data: str, source: Source, survey: _Survey, altered: tuple[str, ...], config: Config, choice: Choice) -> Checked:
    read = survey.records[survey.records["read"]]
    bad = tuple((source.title(index), survey.bad[index]) for index in sorted(survey.bad))
    height, width = read["height"].astype(np.int64), read["width"].astype(np.int64)
    by_area = np.argsort(height * width, kind="stable")
    places = {"smallest": 0, "median": (len(read) - 1) // 2, "largest": len(read) - 1} if len(read) else {}
    short = np.quantile(np.minimum(height, width), np.array(QUANTILES) / 100, method="inverted_cdf") if len(read) else []
    smaller = smaller_for(int(short[0]), config, choice.settings) if len(read) else ""
    fit = _fit(len(training_part(source, config.images)), read, config)
    stops = find_stops(len(source), len(bad), fit, read["bands"], altered)
    return Checked(
        data=data,
        samples=len(source),
        formats=_counts([format for format, _ in survey.kinds], np.bincount(read["kind"], minlength=len(survey.kinds))),
        modes=_modes(read, survey.kinds),
        sizes={name: (int(width[by_area[i]]), int(height[by_area[i]])) for name, i in places.items()},
        short_sides={f"{share}%": int(side) for share, side in zip(QUANTILES, short, strict=False)},
        turned=int(read["turned"].sum()),
        duplicates=_duplicates(source, survey.records),
        labels=labels_seen(source.labels) if source.labels else None,
        bad=bad,
        altered=altered,
        split=tuple(split_sentences(source, config.images)),
        notes=(*source.notes, *survey.tally.notes(source, len(read))),
        choice=choice.lines,
        fit=fit,
        stops=stops,
        verdict=say_verdict(len(read), smaller, fit, stops),
    )


def _counts(names: list[str], counts: NDArray[np.int64]) -> dict[str, int]:
    """How often each name occurs, in all its places; the most frequent first, without those that do not."""
    total = Counter[str]()
    for name, count in zip(names, counts.tolist(), strict=True):
        total[name] += count
    return dict(sorted((+total).items(), key=lambda item: (-item[1], item[0])))


def _modes(read: NDArray[Any], kinds: list[tuple[str, str]]) -> dict[str, int]:
    """Pillow's mode, and bands and depth of the pixels that are made of it."""
    found, counts = np.unique(read[["kind", "bands", "depth"]], return_counts=True)
    names = [f"{kinds[kind][1]} as {bands} x {DEPTHS[depth]}".removeprefix(" as ") for kind, bands, depth in found.tolist()]
    return _counts(names, counts)


def _duplicates(source: Source, records: NDArray[Any]) -> Duplicates:
    rows = np.flatnonzero(records["read"])
    sums = records["sum"][rows]
    order = np.lexsort((sums[:, 1], sums[:, 0]))  # stable: a group keeps the order of the samples
    rows, sums = rows[order], sums[order]
    starts = np.flatnonzero(np.r_[len(rows) > 0, (sums[1:] != sums[:-1]).any(1)])
    sizes = np.diff(np.r_[starts, len(rows)])
    largest = [i for i in np.lexsort((rows[starts], -sizes)).tolist()[:LARGEST] if sizes[i] > 1]
    named = [(int(sizes[i]), tuple(source.title(int(row)) for row in rows[starts[i] :][: min(FIRST, sizes[i])])) for i in largest]
    leaking = leaked = 0
    if source.labels is not None and len(rows):
        part, test = source.labels.values[rows] >= 0, source.labels.test[rows]
        tests, trains = (np.add.reduceat((part & side).astype(int), starts) for side in (test, ~test))
        leaking, leaked = int(((tests > 0) & (trains > 0)).sum()), int(tests[trains > 0].sum())
    return Duplicates(int((sizes > 1).sum()), int((sizes - 1).sum()), tuple(named), leaking, leaked)


def _fits(bands: int, images: ImageSettings) -> bool:
    try:
        channels_of(np.zeros((1, 1, bands), np.uint8), images)
    except BandsError:
        return False
    return True


def _fit(samples: int, read: NDArray[Any], config: Config) -> Fit:
    images, batch = config.images, config.optim.batch_size
    height, width = images.height_width
    sides = np.stack([read["height"], read["width"]]).astype(np.int64)
    times = sides.max(0) / sides.min(0)
    bands, counts = np.unique(read["bands"], return_counts=True)
    return Fit(
        recipe=config.recipe or "",
        size=(width, height),
        channels=images.channels,
        batch_size=batch,
        max_bad=images.max_bad,
        steps=samples // batch,
        left_over=samples % batch,
        smaller=int(((sides[0] < height) | (sides[1] < width)).sum()),
        elongated=int((times > LONG).sum()),
        longest=round(float(times.max(initial=1)), 2),
        other_bands={str(b): n for b, n in zip(bands.tolist(), counts.tolist(), strict=True) if not _fits(b, images)},
    )
