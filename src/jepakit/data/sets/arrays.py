"""Sets that lie in memory: CIFAR's python batches and the idx files of the MNIST family."""

import gzip
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
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
    batches = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    return _cifar(root, labels, "batches.meta", batches, {"class": "label"})


def cifar100(root: Path, labels: str | None) -> Source | None:
    """CIFAR-100's python version: train, then test, which is held out; label 'fine' (100 classes) or 'coarse' (20)."""
    if not all((root / name).is_file() for name in ("meta", "train", "test")):
        return None
    return _cifar(root, labels, "meta", ("train", "test"), {"fine": "fine_label", "coarse": "coarse_label"})


def mnist(root: Path, labels: str | None) -> Source | None:
    """idx files (LeCun's MNIST, and those of its form): {train,t10k}-{images-idx3,labels-idx1}-ubyte, or .gz; gray; 'class'."""
    if _idx_file(root, "train-images-idx3") is None:
        return None
    pick(labels, ("class",), str(root))
    stems = {part: (f"{part}-images-idx3", f"{part}-labels-idx1") for part in ("train", "t10k")}
    arrays = {part: [_idx(root, stem) for stem in both] for part, both in stems.items()}
    (train, train_labels), (test, test_labels) = arrays.values()
    for part, (x, y) in arrays.items():
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or x.shape[1:] != train.shape[1:]:
            raise UserError(f"{root}: the idx files of {part} are no images with a label each: {x.shape} and {y.shape}")
    values = np.concatenate([train_labels, test_labels]).astype(np.int64)
    classes = tuple(str(i) for i in range(int(values.max(initial=-1)) + 1))
    found = Labels("class", classes, values, np.arange(len(values)) >= len(train))
    source = ArraySource(str(root), np.concatenate([train, test])[..., None], found)
    source.notes = unused(root, [name for both in stems.values() for stem in both for name in _spelt(stem)], len(source))
    return source


def _cifar(root: Path, labels: str | None, meta: str, batches: Sequence[str], keys: dict[str, str]) -> Source:
    """Images of the files `batches`, the last of which is held out. keys: the key, without its s, of each kind of labels."""
    kind = pick(labels, tuple(keys), str(root))
    images, values = zip(*(_batch(root / name, f"{keys[kind]}s") for name in batches), strict=True)
    value, classes = np.concatenate(values), _names(root / meta, f"{keys[kind]}_names")
    if len(value) and not 0 <= value.min() <= value.max() < len(classes):
        raise UserError(f"{root}: labels from {value.min()} to {value.max()} for {len(classes)} classes")
    test = np.arange(len(value)) >= len(value) - len(values[-1])
    source = ArraySource(str(root), np.concatenate(images), Labels(kind, classes, value, test))
    source.notes = (*by_default(labels, kind, [*keys]), *unused(root, (meta, *batches), len(source)))
    return source


def _batch(path: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 32, 32, 3) and labels (n,) of a batch: rows of 3072 bytes, channel by channel."""
    content = unpickled(path)
    data: Any = content.get("data")
    values: Any = content.get(key)
    rows = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * 32 * 32
    if not rows or not isinstance(values, list) or len(values) != len(data) or not all(type(v) is int for v in values):
        raise UserError(f"{path} is no batch of CIFAR: it needs 'data', rows of 3072 bytes, and '{key}', a number each")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), np.array(values, np.int64)


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
