"""NIfTI volumes (nibabel), cut along the patient's axes: x from left to right, y from back to front, z from foot to head."""

import gzip
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import line_of
from jepakit.data.decoding.pixels import BadImageError, refuse_bomb
from jepakit.data.volumes.volume import Plane, Volume
from jepakit.model.images import Axis

MOST_OFFSET = 1 << 24  # bytes before the values, of a header and its extensions
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it says of a header, it raises too
_AXES = {"x": 0, "y": 1, "z": 2}


class Nifti(Volume):
    """A NIfTI file; of four axes, the slices of each time after the other.

    Slices are as radiologists see them: of z the front is on top, of y and x the head; the patient's right, of x the front, is
    on the left. Raises BadImageError, and what nibabel does, for a file that is no volume or is cut.
    """

    def __init__(self, path: Path, name: str, axis: Axis, every: int, most_pixels: int) -> None:
        import nibabel

        self.path, self.name, self.every = path, name, every
        image: Any = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image) or not isinstance(image.dataobj, nibabel.arrayproxy.ArrayProxy):
            raise BadImageError(f"a {type(image).__name__}, which is not read: save it as NIfTI")
        data, shape = image.dataobj, tuple(int(side) for side in image.shape)
        self.slope, self.inter, self.dtype, self.offset = float(data.slope), float(data.inter), data.dtype, int(data.offset)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if not 2 <= len(shape) <= 4 or min(shape) < 1 or (self.dtype.kind not in "iuf" and self.dtype.names is None):
            raise BadImageError(f"holds {shape} of {self.dtype}: a volume has three axes, or four with time")
        if not 0 <= self.offset <= MOST_OFFSET:
            raise BadImageError(f"broken: its values begin at byte {self.offset}")
        self.shape = (*shape, *[1] * (4 - len(shape)))
        self.turn = _orientation(image.affine)
        self.stored = next(i for i in range(3) if self.turn[i][0] == _AXES[axis])  # the stored axis that is cut along
        rows, columns = (self.shape[i] for i in range(3) if i != self.stored)
        refuse_bomb(columns, rows, most_pixels)
        self.each = -(-self.shape[self.stored] // every)
        self.count = self.each * self.shape[3]
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.whole = path.suffix == ".gz"
        if not self.whole and path.stat().st_size < self.offset + self.nbytes:
            raise BadImageError(f"broken or cut: claims {self.nbytes} bytes of values, and has {path.stat().st_size}")

    def load(self) -> NDArray[Any]:
        """All values as they are stored. Raises BadImageError."""
        try:
            with gzip.open(self.path) as file:
                file.seek(self.offset)
                found = file.read(self.nbytes)  # no more than the header claims, whatever follows
        except Exception as error:  # zlib's own among them
            raise BadImageError(f"broken or cut: {line_of(error)}") from None
        if len(found) < self.nbytes:
            raise BadImageError(f"broken or cut: {len(found)} of {self.nbytes} bytes")
        return np.frombuffer(found, self.dtype).reshape(self.shape, order="F")

    def plane(self, index: int, loaded: Any) -> Plane:
        """A slice, of what `load` gave or (None) from the file."""
        if loaded is None:
            loaded = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order="F")
        time, place = divmod(index, self.each)
        along = place * self.every
        if self.turn[self.stored][1] < 0:
            along = self.shape[self.stored] - 1 - along
        values = np.take(loaded[..., time], along, axis=self.stored)
        a, b = (self.turn[i] for i in range(3) if i != self.stored)
        values = values[:: -int(a[1]), :: -int(b[1])]  # both downwards
        values = np.array(values.T if a[0] < b[0] else values, order="C")
        if self.dtype.names is not None:
            return Plane(np.stack([values[name] for name in self.dtype.names[:3]], 2))
        if (self.slope, self.inter) != (1, 0):
            values = (values * self.slope + self.inter).astype(np.float32)
        return Plane(values[..., None])

    def title(self, index: int) -> str:
        time, place = divmod(index, self.each)
        return f"{self.name}:{place * self.every}" + (f" at {time}" if self.shape[3] > 1 else "")


def _orientation(affine: Any) -> list[tuple[int, int]]:
    """Of each stored axis the patient's nearest one, and whether it goes the same way (1) or the other (-1)."""
    import nibabel

    if affine is None or not np.isfinite(affine).all():
        return [(0, 1), (1, 1), (2, 1)]
    found = nibabel.io_orientation(affine)
    if not np.isfinite(found).all():
        return [(0, 1), (1, 1), (2, 1)]
    return [(int(axis), int(way)) for axis, way in found]
