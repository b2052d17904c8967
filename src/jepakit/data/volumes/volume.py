"""A volume, as all formats give it, and what becomes of a slice's values: its intensity window, or its depth kept.

H, W, C rows, columns and channels of a slice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import line_of
from jepakit.data.decoding.pixels import BadImageError, Pixels, native
from jepakit.data.formats.tables import most_memory
from jepakit.model.images import Axis, Window

PERCENTILES = (0.5, 99.5)  # of a volume's values: black and white
MOST_SLICES = 1 << 20  # that a file may claim
_SAMPLED = 16  # slices that percentiles are of
_VALUES = 1 << 16  # of a slice that they are of, about
Shown = Callable[[NDArray[Any]], NDArray[Any]]  # values to [0, 1]


@dataclass(frozen=True)
class Plane:
    """A slice as it is stored.

    values (H, W, C): of any kind of number, in the file's own units. own: the window that the file names, where it does. most:
    what an inverted slice's values are taken from where no window is; None: the least value is black. patient: of a patient's
    body, so that its units differ between scanners, or mean nothing.
    """

    values: NDArray[Any]
    own: Shown | None = None
    most: float | None = None
    patient: bool = True


class Volume(Protocol):
    """Something that is cut into slices. count: how many; nbytes: of all, decoded; whole: a slice costs a decode of all.

    others: pages of other sizes, which are left out.
    load: what `plane` needs of a volume of which whole is true, else it is given None. Both raise BadImageError.
    """

    name: str
    count: int
    nbytes: int
    whole: bool
    others: int = 0

    def load(self) -> Any: ...

    def plane(self, index: int, loaded: Any) -> Plane: ...

    def title(self, index: int) -> str: ...


@dataclass(frozen=True)
class BrokenVolume(Volume):
    """A file that cannot be opened: one slice, which is a bad image, so that it is named and counted as such."""

    name: str
    reason: str
    count: int = 1
    nbytes: int = 0
    whole: bool = False

    def load(self) -> Any:
        """Never asked for."""
        return None

    def plane(self, index: int, loaded: Any) -> Plane:
        """Raises BadImageError."""
        raise BadImageError(self.reason)

    def title(self, index: int) -> str:
        return self.name


def volume_or_broken(name: str, make: Callable[[], Volume]) -> Volume:
    """What `make` gives, or a BrokenVolume of what it raises: whatever bytes a file holds, and whatever they provoke."""
    try:
        volume = make()
        if not 0 < volume.count <= MOST_SLICES:
            raise BadImageError(f"has {volume.count} slices")
        if volume.whole and volume.nbytes > most_memory():
            raise BadImageError(f"takes {volume.nbytes >> 20} MiB decoded, too much for memory: taken for a decompression bomb")
        return volume
    except Exception as error:
        return BrokenVolume(name, line_of(error))


def cut(values: NDArray[Any], axis: Axis, index: int) -> NDArray[Any]:
    """Slice `index` of a stack (z, y, x, ...) along an axis; rows of the others come in their order, z upwards."""
    where: dict[Axis, Any] = {"z": index, "y": np.s_[::-1, index], "x": np.s_[::-1, :, index]}
    return np.asarray(values[where[axis]])


def linear_window(low: float, high: float) -> Shown:
    """The window that has `low` and all below as black, `high` and all above as white, and NaN, which is no value, as black."""

    def shown(values: NDArray[Any]) -> NDArray[Any]:
        x = values.astype(np.float32)
        x = (x - np.float32(low)) / np.float32(high - low) if high > low else (x > low).astype(np.float32)
        return np.clip(np.nan_to_num(x, nan=0, posinf=1, neginf=0), 0, 1)

    return shown


def shown_as(plane: Plane, window: Window, percentiles: Callable[[], tuple[float, float]]) -> Pixels:
    """A slice's pixels (H, W, C): through a window float32 in [0, 1], else the values: uint8, uint16, all others float32.

    window 'auto': the file's own, else of patients the percentiles, else none. percentiles: gives those of the volume. Colour
    has no window. Raises BadImageError for 'dicom' where a file names none, and as `native`.
    """
    values = plane.values
    if values.dtype == np.uint8 and values.shape[2] == 3:
        return native(values)
    shown = plane.own if window in ("auto", "dicom") else None
    if window == "dicom" and shown is None:
        raise BadImageError("names no window (WindowCenter, WindowWidth): images.window=percentiles, or a pair of values, does")
    if isinstance(window, tuple):
        shown = linear_window(*window)
    elif shown is None and (window == "percentiles" or (window == "auto" and plane.patient)):
        shown = linear_window(*percentiles())
    if shown is not None:
        result = shown(values)
        return native(result if plane.most is None else np.float32(1) - result)
    if plane.most is not None:
        values = (plane.most - values.astype(np.float64)).astype(values.dtype if plane.most == int(plane.most) else np.float32)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    deep = values.dtype.newbyteorder("=") not in (np.uint8, np.uint16)
    return native(values.astype(np.float32) if deep else values)


def percentiles_of(planes: Callable[[int], Plane], count: int) -> tuple[float, float]:
    """PERCENTILES of the values of up to sixteen slices spread evenly over `count`; those that are not finite do not count.

    Raises BadImageError where there is none.
    """
    some = []
    for index in np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(int)).tolist():
        values = planes(index).values
        step = max(1, int((values.size / _VALUES) ** 0.5))
        part = values[::step, ::step].astype(np.float32).ravel()
        some.append(part[np.isfinite(part)])
    found = np.concatenate(some)
    if not len(found):
        raise BadImageError("has no value that is a number")
    low, high = np.percentile(found, PERCENTILES)
    return float(low), float(high)


VolumeKind = Literal["NIfTI", "DICOM", "TIFF", "array"]
