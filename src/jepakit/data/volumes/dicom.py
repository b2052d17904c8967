"""DICOM files and series (pydicom), in the order of their places in the patient; rescale, window, polarity and colours."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import line_of
from jepakit.core.progress import progress
from jepakit.data.decoding.pixels import BadImageError, refuse_bomb
from jepakit.data.threads import run_parallel
from jepakit.data.volumes.volume import BrokenVolume, Plane, Shown, Volume, cut, linear_window, volume_or_broken
from jepakit.model.images import Axis

_HEADER = [
    *("SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns"),
    *("NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "Modality"),
]
_NO_IMAGES = ("SEG", "RTDOSE")  # which have pixels, of something that was made of images
_PALETTE = [f"{colour}PaletteColorLookupTable{what}" for colour in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")]
_ASKED = [
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("VOILUTSequence", "BitsStored", "PixelRepresentation", "PhotometricInterpretation", *_PALETTE),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_MANY = 2000  # headers that take a while
_THREADS, _SECONDS = 8, 60.0  # that read headers, most of the time waiting for a disk; that one may take
_DEFLATED = "1.2.840.10008.1.2.1.99"
logging.getLogger("pydicom").addHandler(logging.NullHandler())  # a line for every odd element
logging.getLogger("pydicom").propagate = False


class DicomSlices(Volume):
    """The frames of files that make one volume: a series of files, or the frames of one.

    files: in their order, with their titles and the number of frames of each.
    """

    def __init__(
        self, name: str, files: Sequence[tuple[Path, str, int]], size: tuple[int, int, int], axis: Axis, every: int
    ) -> None:
        self.name, self.axis, self.every = name, axis, every
        self.frames = [(path, title, frame, n) for path, title, n in files for frame in range(n)]
        rows, columns, bytes_each = size
        length = {"z": len(self.frames), "y": rows, "x": columns}[axis]
        self.count = -(-length // every)
        self.whole = axis != "z"
        self.nbytes = rows * columns * bytes_each * len(self.frames)

    def load(self) -> NDArray[Any]:
        """The values of all frames (z, y, x, C). Raises BadImageError."""
        planes = [decoded(path, frame) for path, _, frame, _ in self.frames]
        if len({plane.values.shape for plane in planes}) > 1:
            raise BadImageError("its slices are of several shapes")
        self.first = planes[0]
        return np.stack([plane.values for plane in planes])

    def plane(self, index: int, loaded: Any) -> Plane:
        """A slice. Raises BadImageError."""
        place = index * self.every
        if loaded is None:
            return decoded(*self.frames[place][::2][:2])
        return Plane(cut(loaded, self.axis, place), self.first.own, self.first.most)

    def title(self, index: int) -> str:
        place = index * self.every
        if self.axis != "z":
            return f"{self.name}:{place}"
        _, title, frame, frames = self.frames[place]
        return title if frames == 1 else f"{title}:{frame}"


def dicom_volumes(files: Sequence[tuple[Path, str]], axis: Axis, every: int, most_pixels: int) -> tuple[list[Volume], int]:
    """Volumes of DICOM files, each with its title: a series each, or a file of several frames; and how many hold no image.

    The order is that of the first file of each. A series' files are ordered along the normal of their planes, else by
    InstanceNumber.
    """
    series: dict[tuple[Any, ...], list[tuple[Any, Path, str]]] = {}
    volumes: list[Volume | tuple[Any, ...]] = []
    without = 0
    for (path, title), head in zip(files, _heads([path for path, _ in files]), strict=True):
        try:
            if isinstance(head, Exception):
                raise head
            if "Rows" not in head or "Columns" not in head or head.get("Modality") in _NO_IMAGES:
                without += 1
                continue
            if str(head.file_meta.get("TransferSyntaxUID", "")) == _DEFLATED:
                raise BadImageError("a DICOM file that is deflated as a whole: save it without (dcmconv --write-xfer-little)")
            size = _size(head, most_pixels)
            frames = _frames(head, path, size)
        except Exception as error:  # whatever bytes a file holds, and whatever they provoke
            volumes.append(BrokenVolume(title, line_of(error)))
            continue
        if frames > 1:
            each = [(path, title, frames)]
            volumes.append(volume_or_broken(title, lambda each=each, size=size: DicomSlices(each[0][1], each, size, axis, every)))  # type: ignore[misc]
            continue
        key = (str(head.get("SeriesInstanceUID") or title), title.rpartition("/")[0], *size)
        if key not in series:
            volumes.append(key)
        series.setdefault(key, []).append((head, path, title))
    return [_series(each, series, axis, every) if isinstance(each, tuple) else each for each in volumes], without


def _heads(paths: Sequence[Path]) -> list[Any]:
    """The header of each file, or what reading it raised; read by a few threads, and counted aloud where there are many."""
    import pydicom

    heads, late, lock = dict[int, Any](), set[int](), Lock()

    def read(index: int) -> Any:
        if index in late:
            return BadImageError(f"no answer within {_SECONDS:g} s")
        try:
            return pydicom.dcmread(paths[index], stop_before_pixels=True, specific_tags=_HEADER)
        except Exception as error:
            return error

    with progress("DICOM headers", len(paths)) if len(paths) >= _MANY else nullcontext(lambda _: None) as report:

        def put(index: int, head: Any) -> None:
            with lock:
                heads[index] = head
                report(len(heads))

        run_parallel(len(paths), read, put, threads=_THREADS, seconds=_SECONDS, late=late.add)
    return [heads[index] for index in range(len(paths))]


def _series(key: tuple[Any, ...], series: dict[tuple[Any, ...], list[tuple[Any, Path, str]]], axis: Axis, every: int) -> Volume:
    """The volume of a series, called by its folder, or by its UID where several lie in one; a file alone by its own name."""
    uid, folder, *size = key
    ordered = sorted(series[key], key=lambda each: (_place(each[0]), each[2]))
    alone = sum(other[1] == folder for other in series) == 1
    name = ordered[0][2] if len(ordered) == 1 else folder if alone and folder else f"{folder}/{uid}".lstrip("/")
    files = [(path, title, 1) for _, path, title in ordered]
    return volume_or_broken(name, lambda: DicomSlices(name, files, (size[0], size[1], size[2]), axis, every))


def _size(head: Any, most_pixels: int) -> tuple[int, int, int]:
    """Rows, columns and bytes of a pixel. Raises BadImageError for a bomb."""
    rows, columns, samples = int(head.Rows), int(head.Columns), int(head.get("SamplesPerPixel") or 1)
    each = samples * max(1, int(head.get("BitsAllocated") or 8) // 8)
    refuse_bomb(columns, rows, most_pixels, -(-each // 4))
    return rows, columns, each


def _frames(head: Any, path: Path, size: tuple[int, int, int]) -> int:
    """How many frames a file has. Raises BadImageError where it claims many more than its bytes can hold."""
    frames, rows, columns, each = int(head.get("NumberOfFrames") or 1), *size
    syntax = head.file_meta.get("TransferSyntaxUID")
    bits = each * 8 if each > 1 else int(head.get("BitsAllocated") or 8)
    least = 1 if syntax is None or syntax.is_encapsulated else rows * columns * bits // 8
    if frames * least > 2 * path.stat().st_size + (1 << 16):  # of one that is cut, the frames that are there can be read
        raise BadImageError(f"broken or cut: claims {frames} frames in {path.stat().st_size} bytes")
    return frames


def _place(head: Any) -> tuple[float, float]:
    """Where a file lies in its series: along the normal of its plane, then by its number."""
    number = float(head.get("InstanceNumber") or 0)
    position, plane = head.get("ImagePositionPatient"), head.get("ImageOrientationPatient")
    if not position or not plane or len(position) != 3 or len(plane) != 6:
        return 0.0, number
    across, down = np.array(plane[:3], float), np.array(plane[3:], float)
    return round(float(np.cross(across, down) @ np.array(position, float)), 4), number


def decoded(path: Path, frame: int) -> Plane:
    """A frame of a file: its values after its rescale, or colours. Raises BadImageError, also for what has no decoder here."""
    import pydicom

    head = pydicom.Dataset()
    try:
        values = pydicom.pixels.pixel_array(
            path, ds_out=head, specific_tags=[pydicom.tag.Tag(name) for name in _ASKED], index=frame
        )
        if str(head.PhotometricInterpretation) == "PALETTE COLOR":
            values = pydicom.pixels.apply_color_lut(values, head)
        if values.ndim == 3:
            return Plane(values)
        if "ModalityLUTSequence" in head:
            values = pydicom.pixels.apply_modality_lut(values, head)
        slope = float(_of_frame(head, frame, "RescaleSlope", 1))
        intercept = float(_of_frame(head, frame, "RescaleIntercept", 0))
        if (slope, intercept) != (1, 0):
            values = (values * np.float64(slope) + intercept).astype(np.float32)
        own = _window(head, frame, values)
    except Exception as error:  # pydicom and its decoders raise their own
        raise BadImageError(_why(path, error)) from None
    most = _most(head, slope, intercept) if str(head.PhotometricInterpretation) == "MONOCHROME1" else None
    return Plane(values[..., None], own, most)


def _why(path: Path, error: Exception) -> str:
    """What to say of a file whose pixels cannot be had."""
    import pydicom

    if not isinstance(error, RuntimeError | NotImplementedError | AttributeError):
        return f"broken or cut: {line_of(error)}"
    try:
        syntax = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta.TransferSyntaxUID
    except Exception:
        return f"broken or cut: {line_of(error)}"
    if not syntax.is_encapsulated:
        return f"broken or cut: {line_of(error)}"
    mend = "save it uncompressed (dcmdjpeg, gdcmconv --raw), or pip install 'pylibjpeg[all]'"
    return f"compressed as {syntax.name}, which cannot be decoded here: {mend}"


def _of_frame(head: Any, frame: int, name: str, usual: Any) -> Any:
    """An element of a file, or of a frame of an enhanced one, which has it in groups of functions."""
    if (value := head.get(name)) is not None:
        return value
    own = head.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*own[frame : frame + 1], *(head.get("SharedFunctionalGroupsSequence") or [])):
        for function in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(function) or []:
                if (value := item.get(name)) is not None:
                    return value
    return usual


def _window(head: Any, frame: int, values: NDArray[Any]) -> Shown | None:
    """The first window that a file names (PS3.3 C.11.2): LINEAR, LINEAR_EXACT or SIGMOID, else its table; None for none."""
    import pydicom

    centre, width = (_of_frame(head, frame, f"Window{name}", None) for name in ("Center", "Width"))
    if centre is None or width is None:
        if not head.get("VOILUTSequence"):
            return None
        bits = int(head.VOILUTSequence[0].LUTDescriptor[2])
        table = pydicom.pixels.apply_voi(values.astype(np.int64), head)
        return lambda _: (table[..., None] / np.float32((1 << bits) - 1)).astype(np.float32)
    c, w = (float(np.atleast_1d(value)[0]) for value in (centre, width))
    function = str(_of_frame(head, frame, "VOILUTFunction", "LINEAR"))
    if function == "SIGMOID":
        return lambda x: (1 / (1 + np.exp(-4 * (x.astype(np.float64) - c) / w))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return linear_window(c - w / 2, c + w / 2)
    return linear_window(c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2)


def _most(head: Any, slope: float, intercept: float) -> float:
    """What the values of a slice whose least is white are taken from: the sum of the ends of what its bits can hold."""
    bits, signed = int(head.BitsStored), int(head.PixelRepresentation)
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return sum(end * slope + intercept for end in ends)
