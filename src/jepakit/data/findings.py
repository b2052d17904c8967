"""Warnings about the content of images: found per image, counted over the set, one sentence per kind."""

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import plain
from jepakit.data.decoding.pixels import Pixels

Kind = Literal["pages", "mask", "nodata", "palette", "depth", "polarity", "colour", "far", "apart", "clipped"]
_FILLS = 1 / 1000  # of the pixels, of an image and of all images: an extreme value that is rarer is not counted
_PIXELS = 1 << 16  # pixels of an image, about, whose values are counted
_VALUES = 1 << 14  # different extreme values that are counted
_NO_DATA = "if it stands for no data, name it in the files' GDAL_NODATA tag or replace it; else mean and deviation are of it, too"
_SENTENCES: dict[Kind, tuple[str, str]] = {  # how a sentence goes on after the number of images; and what to do
    "pages": (
        "{holds} more than one page or frame, and only the first is read (of each channel the first)",
        "images.axis=z reads all, as slices; or save the others as files of their own",
    ),
    "mask": ("{has} a mask page, which is not used", ""),
    "nodata": ("{has} pixels that {its} GDAL_NODATA tag names as no data: they are given the mean of {whose} others", ""),
    "palette": ("{names} an entry of {its} palette as no data (GDAL_NODATA), which is read as a colour like the others", ""),
    "depth": ("{is} deeper than {it} {is} read", ""),
    "polarity": (
        "{holds} floats of which the least is white, without {its} largest value (SMaxSampleValue): read as they are",
        "turn them, and save them with the least as black",
    ),
    "colour": ("{is} of one colour", "such images teach nothing: leave them out"),
    "far": ("{has} pixels of a value far from all {its} others", _NO_DATA),
    "apart": ("{has} pixels of one value that lies apart from all {its} others", _NO_DATA),
}  # "clipped" is counted only: far and apart are compared with it
_ONE = {word: word for word in ("has", "holds", "names", "is", "it", "its")} | {"whose": "its"}
_SEVERAL = {"has": "have", "holds": "hold", "names": "name", "is": "are", "it": "they", "its": "their", "whose": "the image's"}


class Titled(Protocol):
    """Whatever has a title for each of its images: a source."""

    def title(self, index: int) -> str: ...


class Finding(NamedTuple):
    """Something found in one image.

    detail: what a sentence that names this image as its example adds. Of pixels of an extreme value: share, how many of the
    image's pixels have it, from 0 to 1; value, as text.
    """

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
    _sentences: list[str] = field(default_factory=list)
    _counts: dict[tuple[Kind, str], _Count] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, index: int, findings: list[Finding]) -> None:
        with self._lock:
            self.images += 1
            for kind, detail, share, value in {(found.kind, found.value): found for found in reversed(findings)}.values():
                if (kind, value) not in self._counts and len(self._counts) >= _VALUES:
                    continue
                count = self._counts.setdefault((kind, value), _Count())
                count.images, count.shares = count.images + 1, count.shares + share
                if index < count.first:
                    count.first, count.detail = index, detail

    def say(self, sentence: str) -> None:
        """Add a sentence about all images to `notes`."""
        self._sentences.append(sentence)

    def notes(self, titles: Titled, of: int, *, but: tuple[Kind, ...] = ()) -> tuple[str, ...]:
        """A sentence for each kind of finding. of: images that there are, of which some were looked at; but: kinds left out."""
        seen = f"{self.images:,} images" if self.images == of else f"the {self.images:,} images looked at"
        kinds = [kind for kind in _SENTENCES if kind not in but]
        counted = sorted((each for each in self._counts if each[0] in kinds), key=lambda each: (kinds.index(each[0]), each[1]))
        of_images = (self._sentence(kind, value, seen, titles) for kind, value in counted if self._is_worth_saying(kind, value))
        return (*of_images, *self._sentences)

    def _is_worth_saying(self, kind: Kind, value: str) -> bool:
        """False for a value that is black or white in most images that have it, or fills too little of all images together."""
        if kind not in ("far", "apart") or (kind == "far" and _is_usual_for_no_data(float(value))):
            return True
        far, apart, clipped = (self._counts.get((one, value), _Count()) for one in ("far", "apart", "clipped"))  # type: ignore[arg-type]
        return far.images + apart.images > clipped.images and far.shares + apart.shares > _FILLS * self.images

    def _sentence(self, kind: Kind, value: str, seen: str, titles: Titled) -> str:
        count, (predicate, advice) = self._counts[kind, value], _SENTENCES[kind]
        predicate = predicate.format(**(_ONE if count.images == 1 else _SEVERAL))
        filled = f" ({value + ', ' if value else ''}{count.shares / count.images:.1%} of the pixels)" if count.shares else ""
        example = f", e.g. {plain(titles.title(count.first))}{': ' + count.detail if count.detail else ''}"
        return f"{count.images:,} of {seen} {predicate}{filled}{example}{'; ' + advice if advice else ''}"


def findings_in(pixels: Pixels) -> list[Finding]:
    """What is seen in pixels (H, W, C): that all have one colour; where they are deeper than 8 bits, frequent extreme values."""
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // _PIXELS))
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
            if share > _FILLS:
                text = f"{value + 0.0:.7g}"  # which makes 0 of -0
                found.setdefault(text, Finding(_kind_of(value, ascending), "", share, text))
    return list(found.values())


def _is_usual_for_no_data(value: float) -> bool:
    """Whether a value, such as -9999, usually stands for no data and hardly ever for anything else."""
    return value <= -999 or abs(value) >= 1e6


def _kind_of(value: float, ascending: NDArray[np.float64]) -> Kind:
    """Whether the first of ascending values (n,), an extreme one, is an ordinary black or white, or may stand for no data.

    'far': its gap to the others is twice as wide as their whole range; 'apart': wider than the range of the nearest 2 % of
    them, or it is the only one below 0; both only where the others are more than a few flat colours. Else 'clipped'.
    """
    count = np.searchsorted(ascending, ascending[0], "right")
    others = ascending[count:]
    if not len(others):
        return "clipped"
    gap, spread = others[0] - ascending[0], others[-1] - others[0]
    if _is_usual_for_no_data(value) and gap > 100 * max(spread, 1.0):
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
