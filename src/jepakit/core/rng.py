"""Randomness as a function: numbers named by (seed, stream, epoch, sample id, index), never by hidden state.

The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which is counter based: its i-th output is a mix of
key + i * golden. The key folds seed, stream, epoch and sample id together with the same mix. So a sample draws the
same numbers in any batch, thread, process or resumed run.
"""

import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # arrays wrap around in silence
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def keys(seed: int, stream: str, *parts: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """64-bit keys of a stream; integer parts (epoch, sample ids (B,)) are folded in one after the other."""
    key = _mix(np.atleast_1d(np.uint64(seed & 0xFFFFFFFFFFFFFFFF) ^ (np.uint64(zlib.crc32(stream.encode())) << np.uint64(32))))
    for part in parts:
        key = _mix((key ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return key


def uniform(key: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """The first `count` numbers of each key, uniform in [0, 1): (B,) -> (B, count)."""
    bits = _mix(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=2)
def permutation(seed: int, stream: str, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on (seed, stream, epoch) only."""
    order = np.random.Generator(np.random.Philox(key=int(keys(seed, stream, epoch)[0]))).permutation(count)
    order.setflags(write=False)
    return order


def torch_seed(seed: int, stream: str, *parts: int) -> int:
    """A seed for a torch.Generator, for the few draws that must be torch's own."""
    return int(keys(seed, stream, *parts)[0] >> np.uint64(1))
