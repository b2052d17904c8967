"""What of an image is not used, or seems to be wrong: found in one, counted over many, said in a sentence a kind."""

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import plain
from jepakit.data.decoding.pixels import Pixels

Kind = Literal["pages", "mask", "nodata", "palette", "depth", "polarity", "colour", "far", "apart", "clipped"]
FILLS = 1 / 1000  # of the pixels, of an image and of all that are looked at: more of one extreme value are looked at
_LOOKED = 1 << 16  # pixels of an image, about, whose values are looked at
VALUES = 1 << 14  # different extreme values that are counted
# how a sentence goes on after so many images, of one and of several; and what to do
NO_DATA = "if it stands for no data, name it in the files' GDAL_NODATA tag or replace it; else mean and deviation are of it, too"
_SAID: dict[Kind, tuple[str, str, str]] = {
    "pages": (
        "holds more than one page or frame, and only the first is read (of each channel the first)",
        "hold more than one page or frame, and only the first is read (of each channel the first)",
        "save the others as files of their own",
    ),
    "mask": ("has a mask page, which is not used", "have a mask page, which is not used", ""),
    "nodata": (
        "has pixels that its GDAL_NODATA tag names as no data: they are given the mean of its others",
        "have pixels that their GDAL_NODATA tag names as no data: they are given the mean of the image's others",
        "",
    ),
    "palette": (
        "names an entry of its palette as no data (GDAL_NODATA), which is read as a colour like the others",
        "name an entry of their palette as no data (GDAL_NODATA), which is read as a colour like the others",
        "",
    ),
    "depth": ("is deeper than it is read", "are deeper than they are read", ""),
    "polarity": (
        "holds floats of which the least is white, without its largest value (SMaxSampleValue): read as they are",
        "hold floats of which the least is white, without their largest value (SMaxSampleValue): read as they are",
        "turn them, and save them with the least as black",
    ),
    "colour": ("is of one colour", "are of one colour", "such images teach nothing: leave them out"),
    "far": ("has pixels of a value far from all its others", "have pixels of a value far from all their others", NO_DATA),
    "apart": (
        "has pixels of one value that lies apart from all its others",
        "have pixels of one value that lies apart from all their others",
        NO_DATA,
    ),
    "clipped": ("", "", ""),  # counted only: what an extreme value is compared with
}


class Titled(Protocol):
    """Whatever has a title for each of its images: a source."""

    def title(self, index: int) -> str: ...


class Finding(NamedTuple):
    """Of one image. detail: what is said of it as an example; share: of its pixels, where some are meant; value: likewise."""

    kind: Kind
    detail: str = ""
    share: float = 0.0
    value: str = ""


@dataclass
class _Count:
    images: int = 0
    shares: float = 0.0
    first: int = 1 << 62
    detail: str = ""


@dataclass
class Tally:
    """Findings of many images. Images may be added by several threads."""

    images: int = 0
    _said: list[str] = field(default_factory=list)
    _counts: dict[tuple[Kind, str], _Count] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, index: int, findings: list[Finding]) -> None:
        with self._lock:
            self.images += 1
            for kind, detail, share, value in {(found.kind, found.value): found for found in reversed(findings)}.values():
                if (kind, value) not in self._counts and len(self._counts) >= VALUES:
                    continue
                count = self._counts.setdefault((kind, value), _Count())
                count.images, count.shares = count.images + 1, count.shares + share
                if index < count.first:
                    count.first, count.detail = index, detail

    def say(self, sentence: str) -> None:
        """A sentence about all of them."""
        self._said.append(sentence)

    def notes(self, titles: Titled, of: int, *, but: tuple[Kind, ...] = ()) -> tuple[str, ...]:
        """A sentence for each kind of finding. of: images that there are, of which some were looked at; but: kinds left out."""
        seen = f"{self.images:,} images" if self.images == of else f"the {self.images:,} images looked at"
        of_images = tuple(
            self._sentence(kind, self._counts[kind, value], value, seen, titles)
            for order in _SAID
            for kind, value in sorted(self._counts)
            if kind == order and kind not in but and self._is_said(kind, value)
        )
        return (*of_images, *self._said)

    def _is_said(self, kind: Kind, value: str) -> bool:
        """A value that lies apart is said where it does in most images that have it, else it is black or white; and where it
        fills enough of all images, each counted the same, however few have it."""
        if kind not in ("far", "apart") or (kind == "far" and _names_none(float(value))):
            return kind != "clipped"
        far, apart, clipped = (self._counts.get((one, value), _Count()) for one in ("far", "apart", "clipped"))  # type: ignore[arg-type]
        return far.images + apart.images > clipped.images and far.shares + apart.shares > FILLS * self.images

    def _sentence(self, kind: Kind, count: _Count, value: str, seen: str, titles: Titled) -> str:
        one, many, mend = _SAID[kind]
        filled = f" ({value + ', ' if value else ''}{count.shares / count.images:.1%} of the pixels)" if count.shares else ""
        example = f", e.g. {plain(titles.title(count.first))}{': ' + count.detail if count.detail else ''}"
        said = f"{count.images:,} of {seen} {one if count.images == 1 else many}{filled}{example}"
        return f"{said}; {mend}" if mend else said


def findings_in(pixels: Pixels) -> list[Finding]:
    """What the pixels themselves (H, W, C) say: all of one colour; of deeper ones than 8 bits, extreme values that fill some."""
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // _LOOKED))
    some = pixels[::step, ::step]
    if (some == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
        return [Finding("colour")]
    if pixels.dtype == np.uint8:  # in which black and white fill much of ordinary images
        return []
    found = dict[str, Finding]()
    for band in range(pixels.shape[2]):
        values = np.sort(some[..., band], axis=None).astype(np.float64)
        for value, ascending in ((values[0], values), (values[-1], -values[::-1])):
            share = float(np.searchsorted(ascending, ascending[0], "right") / len(ascending))
            if share > FILLS:
                text = f"{value + 0.0:.7g}"  # which makes 0 of -0
                found.setdefault(text, Finding(_kind_of(value, ascending), "", share, text))
    return list(found.values())


def _names_none(value: float) -> bool:
    """Whether a value is one that is used to name no data, and hardly for anything else."""
    return value <= -999 or abs(value) >= 1e6


def _kind_of(value: float, ascending: NDArray[np.float64]) -> Kind:
    """What an extreme value, the first of all, is: black or clipped white, or far or apart from all others, as no data is.

    Far: by twice as much as all the others are from each other. Apart: by more than the nearest 2 % of the others are, or as
    the only one below 0. Both where the others are not a few flat colours.
    """
    count = np.searchsorted(ascending, ascending[0], "right")
    others = ascending[count:]
    if not len(others):
        return "clipped"
    gap, spread = others[0] - ascending[0], others[-1] - others[0]
    if _names_none(value) and gap > 100 * max(spread, 1.0):
        return "far"
    different = 1 + int(np.count_nonzero(np.diff(others)))
    near = others[min(len(others) - 1, max(32, len(others) // 50))] - others[0]
    if different >= 8 and gap > 2 * spread:
        return "far"
    if value == ascending[0] < 0 <= others[0] and different >= 8:
        above = np.unique(others[np.searchsorted(others, 0, "right") :], return_counts=True)[1][:8]
        if count > 2 * above.max(initial=0):  # else it is a value of a scale like the next ones
            return "apart"
    return "apart" if (different >= 8 and gap > spread) or (different >= 64 and gap > max(near, spread / 50)) else "clipped"
