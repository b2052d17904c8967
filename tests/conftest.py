"""Set before torch is imported: tests are many small tensors, which one thread does best, and may share the cores."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ["JEPAKIT_CACHE_GIB"] = "0"  # tests count what a store is asked for; tests/data/test_disk_cache.py has a cache


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much where others use the cores too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs of several processes first: they are the longest files, and at the end one worker would wait for the other."""
    items.sort(key=lambda item: item.path.parent.name != "training")
