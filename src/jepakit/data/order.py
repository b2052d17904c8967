"""In which order an epoch shows the samples: any order, or a few blocks (shards, row groups) at a time."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jepakit.core import rng
from jepakit.data.sources import Blocks


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, count: int, blocks: Blocks | None = None) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on (seed, epoch) and the blocks only.

    With blocks: these in any order, cut into groups of `held`, and the samples of a group in any order. So whoever reads in
    this order needs `held` blocks at a time, and each block once an epoch.
    """
    if blocks is None:
        return rng.permutation(seed, "order", epoch, count)
    shuffled = rng.permutation(seed, "blocks", epoch, len(blocks.starts) - 1)
    parts = []
    for group in range(0, len(shuffled), blocks.held):
        some = shuffled[group : group + blocks.held]
        ids = np.concatenate([np.arange(blocks.starts[b], blocks.starts[b + 1]) for b in some])
        within = np.random.Generator(np.random.Philox(key=int(rng.keys(seed, "within", epoch, group)[0])))
        parts.append(ids[within.permutation(len(ids))])
    whole = np.concatenate(parts)
    whole.setflags(write=False)
    return whole
