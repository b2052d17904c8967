"""Stacks: multi-page TIFF, OME-TIFF and ImageJ's (tifffile); arrays (z, y, x), (z, c, y, x) or (z, y, x, c) of NumPy's files."""

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import line_of
from jepakit.data.decoding.ifd import directories, tags_of
from jepakit.data.decoding.pages import axes_of
from jepakit.data.decoding.pixels import BadImageError, refuse_bomb
from jepakit.data.decoding.tiff import refuse_page, require_depth
from jepakit.data.formats.npz import channels_first, stored_arrays
from jepakit.data.volumes.volume import Plane, Volume, cut
from jepakit.model.images import Axis

_NAMES = ("volume", "images", "image", "stack", "data", "x", "arr_0")  # of the array of a file of several


class TiffStack(Volume):
    """The pages of a TIFF, in the order of its axes: C are channels, all other axes but rows and columns are cut along.

    Raises BadImageError, and what tifffile does, for pages that are no slices, are cut, or would take too much memory.
    """

    def __init__(self, path: Path, name: str, axis: Axis, every: int, most_pixels: int) -> None:
        self.path, self.name, self.axis, self.every, self.most_pixels = path, name, axis, every, most_pixels
        with _opened(path) as file:
            series = file.series[0]
            self.axes, shape = series.axes, tuple(int(side) for side in series.shape)
            if series.dtype.kind not in "iu":
                require_depth(series.dtype, 0)
            self.dtype = series.dtype
            inner = "YXS" if self.axes.endswith("S") else "YX"
            if not self.axes.endswith(inner) or (inner == "YXS" and "C" in self.axes):
                raise BadImageError(f"a TIFF with axes {self.axes}; save it with rows and columns last")
            _refuse(path, series, most_pixels)
            self.offset = series.dataoffset if file.byteorder == "<" or series.dtype.itemsize == 1 else None
            self.others = sum(len(other.pages) for other in file.series[1:])
            self.inverted = int(series.keyframe.photometric) == 0
        self.outer, self.inner = shape[: -len(inner)], shape[-len(inner) :]
        self.channel = self.axes.find("C") if "C" in self.axes else -1
        self.sides = [side for i, side in enumerate(self.outer) if i != self.channel]  # that are cut along
        self.depth = math.prod(self.sides)
        rows, columns = self.inner[:2]
        self.count, self.whole = -(-{"z": self.depth, "y": rows, "x": columns}[axis] // every), axis != "z"
        self.nbytes = math.prod(shape) * self.dtype.itemsize

    def load(self) -> NDArray[Any]:
        """All values (z, y, x, C). Raises BadImageError."""
        return np.stack([self._slice(index) for index in range(self.depth)])

    def plane(self, index: int, loaded: Any) -> Plane:
        """A slice. Raises BadImageError."""
        place = index * self.every
        values = self._slice(place) if loaded is None else cut(loaded, self.axis, place)
        most = float(np.iinfo(self.dtype).max) if self.inverted and self.dtype.kind == "u" else None
        return Plane(values, None, most, patient=False)

    def title(self, index: int) -> str:
        return f"{self.name}:{index * self.every}"

    def _slice(self, place: int) -> NDArray[Any]:
        """Slice `place` (H, W, C). Raises BadImageError."""
        at = [int(each) for each in np.unravel_index(place, self.sides)] if self.sides else []
        channels = self.outer[self.channel] if self.channel >= 0 else 1
        pages = []
        for channel in range(channels):
            full = [*at[: self.channel], channel, *at[self.channel :]] if self.channel >= 0 else at
            pages.append(int(np.ravel_multi_index(full, self.outer)) if self.outer else 0)
        try:
            found = [self._page(page) for page in pages]
        except BadImageError:
            raise
        except Exception as error:  # tifffile and its decoders raise their own
            raise BadImageError(f"broken or cut: {line_of(error)}") from None
        return found[0] if len(self.inner) == 3 else np.stack(found, 2)

    def _page(self, page: int) -> NDArray[Any]:
        size = math.prod(self.inner) * self.dtype.itemsize
        if self.offset is not None:  # pages that lie behind each other
            with self.path.open("rb") as file:
                file.seek(self.offset + page * size)
                found = file.read(size)
            if len(found) < size:
                raise BadImageError("broken or cut")
            return np.frombuffer(found, self.dtype.newbyteorder("<")).reshape(self.inner).astype(self.dtype)
        with _opened(self.path) as file:
            one = file.series[0].pages[page]
            if one is None:
                raise BadImageError("lies in another file, or is missing")
            values: NDArray[Any] = one.asarray(maxworkers=1)
        return values.reshape(self.inner)


def _opened(path: Path) -> Any:
    """The file, and no other that it names."""
    import tifffile

    return tifffile.TiffFile(path, is_lsm=False, is_scanimage=False, is_ndpi=False, _multifile=False)


def _refuse(path: Path, series: Any, most_pixels: int) -> None:
    """Raises BadImageError for pages that are no images of ours, or would take more memory than their pixels do."""
    import tifffile

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data: Any = mapped  # its slices are bytes
        if series.keyframe.imagedepth > 1:
            raise BadImageError("a TIFF whose pages are volumes: save its slices as pages")
        pages = len(list(directories(data, whole=True)))
        named, found = math.prod(axes_of(tags_of(data)).values()), math.prod(series.shape) // math.prod(series.keyframe.shape)
        if named > found:
            raise BadImageError(f"broken or cut: of its {named} pages {max(pages, found)} are there")
        for page in series.pages:
            if page is not None:  # which lies in another file, and is none of ours
                refuse_page(page if isinstance(page, tifffile.TiffPage) else page.aspage(), data, most_pixels, integers=True)


class ArrayVolume(Volume):
    """An array (z, y, x), (z, c, y, x) or (z, y, x, c) of an .npy or .npz file. Raises BadImageError, and UserError as `npz`."""

    def __init__(self, path: Path, name: str, axis: Axis, every: int, most_pixels: int) -> None:
        self.path, self.name, self.axis, self.every = path, name, axis, every
        arrays = stored_arrays(path)
        fit = {key: array for key, array in arrays.items() if len(array.shape) in (3, 4) and array.dtype.kind in "iufb"}
        key = next((key for key in _NAMES if key in fit), next(iter(fit)) if len(fit) == 1 else "")
        if not key:
            seen = ", ".join(f"{key!r} {array.shape} {array.dtype}" for key, array in arrays.items())
            several = "several arrays of numbers, none of them called 'volume'" if fit else "no array (z, y, x) or (z, c, y, x)"
            raise BadImageError(f"{several}: {seen or 'none'}")
        self.array = fit[key]
        shape = self.array.shape
        self.first = len(shape) == 4 and channels_first(shape)
        rows, columns = shape[2:] if self.first else shape[1:3]
        refuse_bomb(columns, rows, most_pixels)
        self.count = -(-{"z": shape[0], "y": rows, "x": columns}[axis] // every)
        self.nbytes, self.whole = self.array.nbytes, not self.array.mapped

    def load(self) -> NDArray[Any]:
        """The array as it is stored. Raises BadImageError."""
        try:
            return self.array.load()
        except Exception as error:  # whatever bytes a file holds
            raise BadImageError(f"broken or cut: {line_of(error)}") from None

    def plane(self, index: int, loaded: Any) -> Plane:
        """A slice."""
        values = self.load() if loaded is None else loaded
        values = np.moveaxis(values, 1, 3) if self.first else values if values.ndim == 4 else values[..., None]
        return Plane(np.array(cut(values, self.axis, index * self.every), order="C"), patient=False)

    def title(self, index: int) -> str:
        return f"{self.name}:{index * self.every}"
