"""What dense tasks take: images, each with a way to read the class of each pixel.

H, W rows and columns of pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jepakit.core.progress import progress

IGNORED = -1  # the class of pixels without one
BACKGROUND = "background"  # the class of pixels in no object, where labels are objects
PixelClasses = NDArray[np.int32]  # (H, W), from 0; IGNORED for pixels without a class


@dataclass(frozen=True)
class Pair:
    """An image, what its labels are called in errors, and the function that reads them (raises UserError)."""

    image: Path
    where: str
    read: Callable[[], PixelClasses]


@dataclass(frozen=True)
class LabelledFolder:
    """Pairs as a data set's folder has them. classes: their names, () where only pixels tell; notes: what to say of it.

    first: the value of the first class, where they have no names.
    """

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    first: int = 0


def counted(title: str, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs, one by one, with their number as progress."""
    with progress(title, len(pairs)) as report:
        for done, pair in enumerate(pairs, start=1):
            yield pair
            report(done)


def fifth_held_out(
    pairs: Sequence[Pair], classes: tuple[str, ...] = (), notes: tuple[str, ...] = (), first: int = 0
) -> LabelledFolder:
    """Every fifth pair as the test, which is said: where a folder has no split of its own."""
    said = (
        "there is no split in its folders or lists: every fifth image is the test (images of one scene or video, side by "
        "side, are then on both sides: give a split of your own)"
    )
    train = tuple(pair for place, pair in enumerate(pairs) if place % 5 != 4)
    return LabelledFolder(train, tuple(pairs[4::5]), classes, (*notes, said), first)
