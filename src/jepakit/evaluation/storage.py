"""Storage of large feature matrices: in memory up to a size, above it in temporary files that end with their last user."""

import math
import mmap
import os
import tempfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError

IN_MEMORY = 128 << 20  # bytes of one matrix; about twenty are there at a time
ROWS_AT_ONCE = 4096  # rows that are copied together


def allocate(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor; above IN_MEMORY bytes it is mapped from a file in TMPDIR. Raises UserError if the disk is full."""
    size = math.prod(shape) * dtype.itemsize
    if size <= IN_MEMORY:
        with torch.inference_mode(False):  # probes train on it
            return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(prefix="jepakit-") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # now, or a write to the map would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
        except OSError as error:
            raise UserError(
                f"no room in {tempfile.gettempdir()} for {size / 1e9:.1f} GB of features ({error.strerror}): set TMPDIR to a "
                f"folder on a larger disk, or images_limit"
            ) from None
        with torch.inference_mode(False):
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)


def copy_rows(x: Tensor, rows: NDArray[np.int64] | Tensor) -> Tensor:
    """A copy (m, ...) of the rows of x (n, ...) at the places `rows` (m,)."""
    places = torch.as_tensor(rows)
    out = allocate(len(places), *x.shape[1:], dtype=x.dtype)
    for start in range(0, len(places), ROWS_AT_ONCE):
        out[start : start + ROWS_AT_ONCE] = x[places[start : start + ROWS_AT_ONCE]]
    return out
