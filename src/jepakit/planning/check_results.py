"""What a look at every sample of a source found, and how it is said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import plain
from jepakit.data.decoding.pixels import too_many
from jepakit.data.unread_files import plural
from jepakit.planning.labels_seen import LabelsSeen, label_lines, short_title

LONG = 3  # times as long as wide: of such an image a crop shows little
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Duplicates:
    """Images whose bytes are the same. leaked: test images that training has too, in so many groups."""

    groups: int
    copies: int  # less one of each group
    largest: tuple[tuple[int, tuple[str, ...]], ...]  # number, and first titles
    leaking_groups: int
    leaked: int


@dataclass(frozen=True)
class Fit:
    """How a recipe's settings meet the images."""

    recipe: str
    size: Size
    channels: int
    batch_size: int
    max_bad: float
    steps: int  # an epoch
    left_over: int  # an epoch
    smaller: int  # in a side than `size`
    elongated: int
    longest: float  # of the long side over the short one
    other_bands: dict[str, int]


@dataclass(frozen=True)
class Checked:
    """What is in a source. formats, modes, sizes and duplicates speak of readable images."""

    data: str
    samples: int
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, Size]
    short_sides: dict[str, int]
    turned: int
    duplicates: Duplicates
    labels: LabelsSeen | None
    bad: tuple[tuple[str, str], ...]  # title, reason
    altered: tuple[str, ...]  # files of a pack that are not as they were written
    split: tuple[str, ...]  # what of it is trained on
    notes: tuple[str, ...]  # what of the data is not used, used in part, or taken by a guess
    choice: tuple[str, ...]  # where no recipe is named: for what pretrain chooses settings, and which, and why
    fit: Fit
    stops: tuple[str, ...]  # why a pretraining would stop, and what to set
    verdict: str


def find_stops(samples: int, broken: int, fit: Fit, bands: NDArray[Any], altered: tuple[str, ...]) -> tuple[str, ...]:
    """Why a pretraining would not begin, or not go on; the rules are the loader's."""
    stops: list[str] = []
    other = sum(fit.other_bands.values())
    usual = str(np.bincount(bands).argmax()) if len(bands) else ""
    if usual in fit.other_bands and (other == len(bands) or too_many(broken + other, samples, fit.max_bad)):
        stops.append(f"{fit.other_bands[usual]:,} images have {usual} band{'s' * (usual != '1')}: set images.channels={usual}")
        other = 0
    if too_many(bad := broken + other, samples, fit.max_bad):
        enough = next(share for i in (0, 1) if (share := math.ceil(bad * 1000 / samples + i) / 1000) * samples >= bad)
        also = " or have other bands" if other else ""
        stops.append(
            f"{bad:,} of {samples:,} samples cannot be read{also}, more than images.max_bad={fit.max_bad:g}: mend them, "
            f"or set images.max_bad={min(1.0, enough):g}"
        )
    if samples < 2:
        stops.append("there is one image, and a batch takes at least 2")
    elif samples < fit.batch_size:
        stops.append(
            f"optim.batch_size={fit.batch_size} is more than the {samples} images: "
            f"set optim.batch_size={2 ** (samples.bit_length() - 1)} or less"
        )
    if altered:
        stops.append(f"{', '.join(altered[:3])} {'have' if altered[1:] else 'has'} changed since it was packed: pack again")
    return tuple(stops)


def say_verdict(readable: int, smaller: str, fit: Fit, stops: tuple[str, ...]) -> str:
    """One sentence. smaller: words that set a size at which no image is enlarged, '' for none."""
    if stops:
        return f"a pretraining with recipe {fit.recipe} would stop: {'; '.join(stops)}"
    said = f"fine for recipe {fit.recipe}: {readable:,} images, {fit.steps:,} steps an epoch"
    if 2 * fit.smaller <= readable or not smaller:
        return said
    return f"{said}; most images would be enlarged: set {smaller} for none to be"


WIDE, FIRST = 100, 20  # columns; broken images that are named


def check_table(checked: Checked) -> str:
    """What was found, as aligned text of at most 100 columns: a name, and beside it its lines."""
    found, choice, more = checked.duplicates, checked.choice, len(checked.bad) - FIRST
    broken = f"{plural(len(checked.bad), 'sample')} ({len(checked.bad) / checked.samples:.2%})"
    rows: list[tuple[str, Sequence[str]]] = [
        ("samples", [f"{checked.samples:,} in {short_title(checked.data)}"]),
        ("formats", [_counts(checked.formats)]),
        ("modes", [_counts(checked.modes)]),
        ("width x height", [", ".join(f"{name} {width}x{height}" for name, (width, height) in checked.sizes.items())]),
        ("shorter side", [", ".join(f"{share} {side}" for share, side in checked.short_sides.items())]),
        ("turned", [f"{plural(checked.turned, 'image')} by EXIF; training sees them upright"]),
        ("duplicates", _duplicate_lines(found) if found.groups else ["none of the same bytes"]),
        (
            "leak",
            [f"{plural(found.leaked, 'test image')} in training, too: scores on this split say too much"] if found.leaked else [],
        ),
        ("labels", label_lines(checked.labels) if checked.labels else ["none"]),
        ("broken", [broken, *(f"{short_title(title)}: {plain(reason)}" for title, reason in checked.bad[:FIRST])]),
        ("", [f"and {more:,} more: --json FILE names all"] if more > 0 else []),
        *(("altered", [f"{name}: not as it was packed"]) for name in checked.altered),
        ("split", checked.split),
        ("notes", [plain(note) for note in checked.notes]),
        ("pretrain chooses", [f"for {choice[0]}:", *choice[1:]] if choice else []),
        *((name, [text]) for name, text in _fit_rows(checked.fit).items()),
        ("verdict", [checked.verdict]),
    ]
    texts = [f"{name if i == 0 else '':18}{line}" for name, lines in rows for i, line in enumerate(lines)]
    return "\n".join(line for text in texts for line in wrap(text, WIDE, subsequent_indent=" " * 18, break_on_hyphens=False))


def _duplicate_lines(found: Duplicates) -> list[str]:
    lines = [f"{plural(found.copies, 'copy', 'copies')} in {plural(found.groups, 'group')} of the same bytes"]
    for count, titles in found.largest:
        lines.append(f"{count} x {', '.join(map(short_title, titles))}{', ...' if count > len(titles) else ''}")
    return lines


def _fit_rows(fit: Fit) -> dict[str, str]:
    """What the settings make of the images, by setting."""
    (width, height), bands = fit.size, ", ".join(f"{plural(n, 'image')} of {name}" for name, n in fit.other_bands.items())
    return {
        "recipe": fit.recipe,
        "images.size": f"{width}x{height}: {plural(fit.smaller, 'image')} smaller in a side, which a crop would enlarge",
        "images.channels": f"{fit.channels}: {'the others are ' + bands if bands else 'all fit'}",
        "optim.batch_size": f"{fit.batch_size:,}: {fit.steps:,} steps an epoch, {fit.left_over:,} images left over",
        "elongated": f"{plural(fit.elongated, 'image')} more than {LONG} times as long as wide; at most {fit.longest:.1f}",
    }


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items()) or "none"
