"""Processes of one launch meet in a store that was used before, whatever torchrun tells them of how often they were started."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import sleep

import pytest
from torch.distributed import HashStore

from jepakit.core.meeting import met

SECOND = timedelta(seconds=20)


def test_each_start_has_a_part_of_the_store_of_its_own() -> None:
    """Also where the first process calls the roll while another's place still bears the name of one that was killed."""
    store, ranks = HashStore(), range(3)

    def late(rank: int) -> str:
        sleep(0.15 * rank)
        part = met(store, rank, len(ranks), SECOND)
        part.set(f"from{rank}", f"{rank}")
        return str([part.get(f"from{other}") for other in ranks])

    for _ in range(3):
        before = store.num_keys()
        with ThreadPoolExecutor(len(ranks)) as pool:
            assert [*pool.map(late, ranks)] == ["[b'0', b'1', b'2']"] * 3
        assert store.num_keys() >= before + len(ranks)  # nothing was found that an earlier start left


def test_those_who_do_not_come_are_named() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        [*pool.map(lambda rank: met(store, rank, 2, SECOND), (0, 1))]
    with pytest.raises(TimeoutError, match=r"of 2 processes these did not come within 0:00:01: rank 1$"):
        met(store, 0, 2, timedelta(seconds=1))
