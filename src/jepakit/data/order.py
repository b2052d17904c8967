"""In which order an epoch shows the samples: any order, or a few blocks (shards, row groups) at a time."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jepakit.core import rng
from jepakit.data.sources import Blocks


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, count: int, blocks: Blocks | None = None) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on (seed, epoch) and the blocks only.

    With blocks: the blocks are shuffled, cut into groups of `at_once`, and the samples of each group are shuffled. So a reader
    holds `at_once` blocks at a time and fetches each block once an epoch. The array is shared and read-only.
    """
    if blocks is None:
        return rng.permutation(seed, "order", epoch, count)
    shuffled = rng.permutation(seed, "blocks", epoch, len(blocks.starts) - 1)
    parts = []
    for group in range(0, len(shuffled), blocks.at_once):
        some = shuffled[group : group + blocks.at_once]
        ids = np.concatenate([np.arange(blocks.starts[b], blocks.starts[b + 1]) for b in some])
        shuffle = np.random.Generator(np.random.Philox(key=int(rng.keys(seed, "within", epoch, group)[0])))
        parts.append(ids[shuffle.permutation(len(ids))])
    ids_in_order = np.concatenate(parts)
    ids_in_order.setflags(write=False)
    return ids_in_order
