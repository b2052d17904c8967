"""Sets that lie in memory: CIFAR's python batches and the idx files of the MNIST family."""

import gzip
import math
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError, line_of
from jepakit.data.formats.folder import unused
from jepakit.data.sources import ArraySource, Labels, Source, by_default, pick

MOST_BYTES = 1 << 32  # an idx file that claims more is broken
_RECONSTRUCT: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment]  # numpy's own, wherever it lies


def cifar10(root: Path, labels: str | None) -> Source | None:
    """CIFAR-10's python version (Krizhevsky 2009): data_batch_1 to 5, then test_batch, which is held out; label 'class'."""
    if not (root / "batches.meta").is_file():
        return None
    pick(labels, ("class",), str(root))
    parts = [_batch(root / f"data_batch_{i}", "labels") for i in range(1, 6)] + [_batch(root / "test_batch", "labels")]
    source = _cifar(root, "class", parts, _names(root / "batches.meta", "label_names"))
    own = ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    source.notes = unused(root, own, len(source))
    return source


def cifar100(root: Path, labels: str | None) -> Source | None:
    """CIFAR-100's python version: train, then test, which is held out; label 'fine' (100 classes) or 'coarse' (20)."""
    if not all((root / name).is_file() for name in ("meta", "train", "test")):
        return None
    kinds = ("fine", "coarse")
    which = pick(labels, kinds, str(root))
    parts = [_batch(root / name, f"{which}_labels") for name in ("train", "test")]
    source = _cifar(root, which, parts, _names(root / "meta", f"{which}_label_names"))
    source.notes = (*by_default(labels, which, kinds), *unused(root, ("meta", "train", "test"), len(source)))
    return source


def mnist(root: Path, labels: str | None) -> Source | None:
    """idx files (LeCun's MNIST, and those of its form): {train,t10k}-{images-idx3,labels-idx1}-ubyte, or .gz; gray; 'class'."""
    if _idx_file(root, "train-images-idx3") is None:
        return None
    pick(labels, ("class",), str(root))
    images: list[NDArray[np.uint8]] = []
    values: list[NDArray[np.int64]] = []
    for part in ("train", "t10k"):
        x, y = (_idx(root, f"{part}-{kind}") for kind in ("images-idx3", "labels-idx1"))
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or x.shape[1:] != (images or [x])[0].shape[1:]:
            raise UserError(f"{root}: the idx files of {part} are no images with a label each: {x.shape} and {y.shape}")
        images.append(x)
        values.append(y.astype(np.int64))
    test = np.repeat([False, True], [len(y) for y in values])
    value = np.concatenate(values)
    classes = tuple(str(i) for i in range(int(value.max(initial=-1)) + 1))
    source = ArraySource(str(root), np.concatenate(images)[..., None], Labels("class", classes, value, test))
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    source.notes = unused(root, [name for stem in stems for name in _spelt(stem)], len(source))
    return source


def _cifar(root: Path, which: str, parts: list[tuple[NDArray[np.uint8], list[int]]], classes: tuple[str, ...]) -> Source:
    """The last part is held out."""
    values = np.array([value for _, part in parts for value in part], np.int64)
    if len(values) and not 0 <= values.min() <= values.max() < len(classes):
        raise UserError(f"{root}: labels from {values.min()} to {values.max()} for {len(classes)} classes")
    test = np.arange(len(values)) >= len(values) - len(parts[-1][1])
    return ArraySource(str(root), np.concatenate([images for images, _ in parts]), Labels(which, classes, values, test))


def _batch(path: Path, key: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Images (n, 32, 32, 3) and labels of a batch: rows of 3072 bytes, channel by channel."""
    content = unpickled(path)
    data: Any = content.get("data")
    values: Any = content.get(key)
    rows = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * 32 * 32
    if not rows or not isinstance(values, list) or len(values) != len(data) or not all(type(v) is int for v in values):
        raise UserError(f"{path} is no batch of CIFAR: it needs 'data', rows of 3072 bytes, and '{key}', a number each")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), values


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = unpickled(path).get(key)
    if not isinstance(names, list):
        raise UserError(f"{path} is no list of CIFAR's classes: it has no '{key}'")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How pickle protocol 2 spells bytes; of all codecs only this one."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("a codec other than latin1")
    return text.encode("latin1")


class _Plain(pickle.Unpickler):
    """Containers, text, numbers and numpy arrays; whatever else a pickle names is not looked up, and so not run."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _RECONSTRUCT
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)  # type: ignore[no-any-return]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise _RefusedError(f"{module}.{name}")


class _RefusedError(Exception):
    """A pickle names what is no plain data."""


def unpickled(path: Path) -> dict[str, Any]:
    """A mapping from a pickle of plain data, keys as text. Raises UserError for anything else, and nothing in it is run."""
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="bytes").load()
    except FileNotFoundError:
        raise UserError(f"{path.parent} lacks {path.name}: unpack the whole archive") from None
    except _RefusedError as error:
        raise UserError(f"{path} is refused: it names {error}, which is no plain data; nothing in it was run") from None
    except Exception as error:  # whatever bytes a file holds, and whatever they provoke in the reader
        raise UserError(f"{path} cannot be read as a pickle of plain data: {line_of(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping")
    return {key.decode(errors="replace") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _idx_file(root: Path, stem: str) -> Path | None:
    return next((root / name for name in _spelt(stem) if (root / name).is_file()), None)


def _spelt(stem: str) -> list[str]:
    """'x-idx3-ubyte' is also spelt 'x.idx3-ubyte' and 'x-idx3.ubyte', each gzipped or not."""
    name, kind = stem.rsplit("-", 1)
    spelt = (f"{name}-{kind}-ubyte", f"{name}.{kind}-ubyte", f"{name}-{kind}.ubyte")
    return [f"{one}{gz}" for one in spelt for gz in ("", ".gz")]


def _idx(root: Path, stem: str) -> NDArray[np.uint8]:
    """An idx file: two zeros, type 8 (bytes), the number of axes, each axis' length as a big-endian word, the bytes."""
    path = _idx_file(root, stem)
    if path is None:
        raise UserError(f"{root} lacks {stem}-ubyte, or {stem}-ubyte.gz")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise UserError(f"{path} is no idx file of bytes")
            shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
            if math.prod(shape) > MOST_BYTES:
                raise UserError(f"{path} claims {math.prod(shape):,} bytes: it is broken")
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {line_of(error)}") from None
    if len(data) != math.prod(shape):
        raise UserError(f"{path} is cut: it should hold {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)
