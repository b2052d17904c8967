"""Images that Python gives: arrays, lists of PIL images or of paths, Datasets of torch; alone, or (images, labels)."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from jepakit.core.errors import UserError, line_of
from jepakit.core.progress import progress
from jepakit.data.decoding.decode import file_bytes
from jepakit.data.decoding.held import channel_axis, held_pixels, require_pixels
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.labels.split_words import class_values, split_labels
from jepakit.data.sources import Labels, Source, evenly, pick
from jepakit.data.unread_files import plural

log = logging.getLogger("jepakit")
TAKEN = (
    "data: give a path, a pattern, an address or a set's name; or an array (N, H, W, C), a list of PIL images or of paths, a "
    "Dataset; or (images, labels)"
)
_LOOKED = 64  # files of a list that are looked for at once
_TWICE = 8  # samples of a Dataset that are read twice: of random flips 1 in 256 is missed
_OTHER = object()  # what is no label
_MANY = (list, tuple, np.ndarray, Tensor)


@dataclass(eq=False)
class HeldSource(Source):
    """Images that Python holds, each given by `image(index)`: a path, or what `held_pixels` takes.

    titles: those of files, relative to the folder that all lie in; () where a title is the place.
    """

    name: str
    count: int
    image: Callable[[int], Any]
    titles: Sequence[str] = ()
    labels: Labels | None = None
    notes: tuple[str, ...] = ()
    by_place = True  # so that some contents are compared on a resume

    def __len__(self) -> int:
        return self.count

    def raw(self, index: int) -> bytes | Pixels:
        image = self.image(index)
        return file_bytes(Path(image)) if isinstance(image, str | os.PathLike) else held_pixels(image)

    def title(self, index: int) -> str:
        return self.titles[index] if self.titles else str(index)


def held_source(data: object, labels: str | None = None) -> HeldSource:
    """The source of images that Python holds, with labels where they were given with them; `labels` may name them: 'class'.

    Of a Dataset of (image, label) labels are its `targets` or `labels`, else each sample is read once for its own. A fifth of
    each class is held out, to test on. Raises UserError for what is not images.
    """
    if isinstance(data, tuple) and len(data) == 2 and _are_labels(data[1]) and isinstance(data[0], _MANY):
        source = _of_images(data[0])
        values: list[Any] | None = _listed(data[1])
        if len(data[1]) != len(source):
            raise UserError(f"data: {len(data[1]):,} labels for {len(source):,} images: give one each")
    else:
        if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], np.ndarray | Tensor) and data[0].ndim == 4:
            raise UserError("data: of (images, labels) the labels are to be a whole number or a word for each image")
        source = _of_images(data)
        values = _labels_of(data, source) if _is_dataset(data) else None
    if values is not None:
        source.labels, source.notes = _class_labels(values, _class_names(data), source.name)
    pick(labels, ("class",) if source.labels else (), source.name)
    return source


def _of_images(data: Any) -> HeldSource:
    if isinstance(data, np.ndarray | Tensor):
        source = _of_array(data)
    elif isinstance(data, IterableDataset):
        raise UserError("data: an IterableDataset has no order to keep: give a map-style Dataset, with __len__ and __getitem__")
    elif isinstance(data, list | tuple):
        source = _of_list(data)
    elif _is_dataset(data):
        source = _of_dataset(data)
    else:
        raise UserError(f"{TAKEN}; not a {type(data).__name__}")
    if not len(source):
        raise UserError(f"data: {source.name} holds none")
    return source


def _of_array(data: NDArray[Any] | Tensor) -> HeldSource:
    """Of (N, H, W), (N, H, W, C) or, where channels are fewer than rows and columns, (N, C, H, W)."""
    kind = "a tensor" if isinstance(data, Tensor) else "a NumPy array"
    if data.ndim == 3 and data.shape[2] in (1, 3, 4):
        raise UserError(f"data: {kind} {tuple(data.shape)} is one image, or many of no width: give (N, H, W, C), or images[None]")
    if data.ndim not in (3, 4):
        raise UserError(f"data: {kind} {tuple(data.shape)}: give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    try:
        require_pixels(data.detach().cpu()[:0].numpy().dtype if isinstance(data, Tensor) else data.dtype)
        if len(data):
            channel_axis(tuple(data.shape[1:]))
    except BadImageError as error:
        raise UserError(f"data: {kind} {error}") from None
    return HeldSource(f"{kind} of {plural(len(data), 'image')}", len(data), data.__getitem__)


def _of_list(data: Sequence[Any]) -> HeldSource:
    """Of PIL images, arrays or tensors of one image each, or paths; not of both."""
    paths = bool(data) and isinstance(data[0], str | os.PathLike)
    kinds = (str, os.PathLike) if paths else (Image.Image, np.ndarray, Tensor)
    for index, each in enumerate(data):
        if not isinstance(each, kinds):
            all_ = "a path, as the first is" if paths else "a PIL image, an array or a path"
            raise UserError(f"data[{index}] is a {type(each).__name__}: give a list of one kind, each {all_}")
    if not paths:
        return HeldSource(f"a list of {plural(len(data), 'image')}", len(data), data.__getitem__)
    files = [os.path.abspath(os.path.expanduser(os.fsdecode(path))) for path in data]
    for index in evenly(len(files), _LOOKED):
        if not os.path.isfile(files[index]):
            raise UserError(f"data[{index}]: no such file: {files[index]}")
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    titles = [os.path.relpath(file, root) for file in files]
    return HeldSource(f"a list of {plural(len(files), 'path')}", len(files), files.__getitem__, titles)


def _is_dataset(data: object) -> bool:
    """Whether it is a map-style Dataset, or what is used as one; torch asks for no more than these two methods."""
    kinds = (str, bytes, Mapping, list, tuple, np.ndarray, Tensor)
    return not isinstance(data, kinds) and all(hasattr(type(data), name) for name in ("__len__", "__getitem__"))


def _of_dataset(data: Any) -> HeldSource:
    """Of images or (image, label, ...). One thread at a time reads it, as a Dataset need not bear more."""
    lock, n = Lock(), len(data)

    def image(index: int) -> Any:
        found = _item(data, index, lock)
        return found[0] if isinstance(found, tuple | list) and found else found

    source = HeldSource(f"a Dataset ({type(data).__name__}) of {plural(n, 'image')}", n, image)
    for index in evenly(n, _TWICE).tolist() if n else ():
        try:
            same = np.array_equal(held_pixels(image(index)), held_pixels(image(index)))
        except BadImageError:
            continue  # said when all are read
        if not same:
            raise UserError(
                "data: the Dataset gives another image each time it is read: leave out its random transforms (crops and flips "
                "are jepakit's own, as functions of the seed), else no run can be repeated or resumed"
            )
    return source


def _item(data: Any, index: int, lock: Lock) -> Any:
    """What a Dataset gives. Raises BadImageError for whatever it raises."""
    try:
        with lock:
            return data[index]
    except Exception as error:  # the user's own code, or a file that it reads
        raise BadImageError(f"{type(error).__name__}: {line_of(error)}") from None


def _labels_of(data: Any, source: HeldSource) -> list[Any] | None:
    """A Dataset's labels, None where its samples have none."""
    try:
        first = _item(data, 0, Lock())
    except BadImageError:
        first = None
    if not isinstance(first, tuple | list) or len(first) < 2:
        return None
    known = _known_labels(data)
    if known is not None and len(known) == len(source):
        return known
    log.info("labels of %s are read with its images, once, as it has no 'targets'", source.name)
    values, lock = list[Any](), Lock()
    with progress("labels", len(source)) as report:
        for index in range(len(source)):
            try:
                values.append(_label(_item(data, index, lock)[1]))
            except (BadImageError, IndexError, TypeError):  # a bad sample, which the loader will name
                values.append(None)
            report(index + 1, "")
    return values


def _known_labels(data: Any) -> list[Any] | None:
    """`targets` or `labels` of a Dataset, or of what it is a Subset of; None where they are not those of the samples."""
    if isinstance(data, Subset):
        whole = _known_labels(data.dataset)
        known = whole is not None and len(whole) == len(data.dataset)  # type: ignore[arg-type]
        return [whole[index] for index in data.indices] if whole is not None and known else None
    if getattr(data, "target_transform", None) is not None:
        return None
    found = (getattr(data, name, None) for name in ("targets", "labels"))
    return next((_listed(each) for each in found if _are_labels(each)), None)


def _class_names(data: Any) -> list[str] | None:
    """`classes` of a Dataset, or of what it is a Subset of; None where it has no such names."""
    if isinstance(data, Subset):
        return _class_names(data.dataset)
    names = getattr(data, "classes", None)
    good = isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)
    return [*names] if good else None  # type: ignore[misc]


def _are_labels(values: object) -> bool:
    """Whether it is one whole number or word each, (n,) or (n, 1); -1 or None for no label."""
    if isinstance(values, np.ndarray | Tensor) and (values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,))):
        return False
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "iuUb"
    if isinstance(values, Tensor):
        return not values.is_floating_point() and not values.is_complex()
    return isinstance(values, list | tuple) and all(_label(each) is not _OTHER for each in values)


def _listed(values: Any) -> list[Any]:
    return [_label(each) for each in (values.reshape(-1).tolist() if isinstance(values, np.ndarray | Tensor) else values)]


def _label(value: Any) -> Any:
    """An int, a str, or None; _OTHER for all else."""
    if (isinstance(value, np.ndarray | np.generic) and value.size == 1) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if isinstance(value, int):
        return int(value)  # a bool too
    return value if isinstance(value, str | None) else _OTHER


def _class_labels(values: list[Any], names: list[str] | None, where: str) -> tuple[Labels | None, tuple[str, ...]]:
    """Labels (n,) that hold out a fifth of each class; or None, and why."""
    if _OTHER in values:
        return None, (f"the labels of {where} are not used: they are no whole number or word each",)
    place: dict[Any, int] = {}
    codes = [-1 if value is None else place.setdefault(value, len(place)) for value in values]
    if len({type(value) for value in place}) > 1:
        raise UserError(f"data: labels of {where} are numbers and words: give one of the two")
    classes, found = class_values([*place], np.array(codes, np.int64), names, f"labels of {where}")
    if len(np.unique(found[found >= 0])) < 2:
        return None, (f"the labels of {where} are not used: they name fewer than two classes",)
    return split_labels("class", classes, found, ["train"], np.zeros(len(found), np.int64)), ()
