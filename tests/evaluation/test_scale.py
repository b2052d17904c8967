"""Features of large sets: no matrix of similarities, of votes or of features is in memory whole, and nothing changes by it."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.core.torch_private import dispatch_mode, tensors_of
from jepakit.data.sources import ArraySource
from jepakit.evaluation import storage as rooms
from jepakit.evaluation.features import PCA, RAW, extract, pca
from jepakit.evaluation.probes import knn as module
from jepakit.evaluation.probes.knn import BLOCK, CHUNK, knn, neighbours
from jepakit.evaluation.probes.linear_probe import LinearProbe, linear_probe
from jepakit.evaluation.storage import allocate, copy_rows
from test_looks import encoder


def all_at_once(train: Tensor, labels: Tensor, test: Tensor, k: int) -> Tensor:
    """Brute force: every similarity in one matrix."""
    similarity = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    near = similarity.sort(dim=1, descending=True, stable=True)
    values, index = near.values[:, :k], near.indices[:, :k]
    votes = torch.zeros(len(test), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[index], (values / 0.07 - values[:, :1] / 0.07).exp())
    return votes.argmax(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 70), st.integers(1, 30), st.integers(1, 25), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_knn_by_blocks_is_brute_force(n: int, m: int, k: int, block: int, chunk: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    train, test = (torch.randn(rows, 5, generator=draw) for rows in (n, m))
    labels = torch.randint(0, 4, (n,), generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "CHUNK", chunk)
        assert torch.equal(knn(train, labels, test, k=k), all_at_once(train, labels, test, k))
        values, index = neighbours(train, test, k)
    assert index.shape == values.shape == (m, min(k, n)) and all(len(set(row)) == len(row) for row in index.tolist())
    assert (values.diff(dim=1) <= 0).all()
    torch.testing.assert_close(values, F.cosine_similarity(test[:, None], train[index], dim=2))


@contextmanager
def largest() -> Iterator[list[int]]:
    """The largest tensor that any operation makes meanwhile, in numbers."""
    found = [0]

    class Watch(dispatch_mode()):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            found[0] = max(found[0], *(x.untyped_storage().nbytes() // x.itemsize for x in tensors_of(made)), 0)
            return made

    with Watch():
        yield found


def test_knn_makes_nothing_that_grows_with_the_sets() -> None:
    n, m, classes = 5 * BLOCK + 1, 3 * CHUNK + 1, 50
    train, test, labels = torch.randn(n, 4), torch.randn(m, 4), torch.arange(n) % classes
    with largest() as found:
        assert len(knn(train, labels, test)) == m
    assert found[0] <= max(CHUNK * BLOCK, 4 * n)  # 4 n: the training features themselves, of which blocks are views


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Everything is mapped; the sizes that are."""
    sizes: list[int] = []
    real = mmap.mmap
    monkeypatch.setattr(rooms.mmap, "mmap", lambda handle, size: sizes.append(size) or real(handle, size))
    monkeypatch.setattr(rooms, "IN_MEMORY", 0)
    return sizes


def test_features_in_files_are_those_in_memory(in_files: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    draw = np.random.default_rng(0)
    source = ArraySource("x", draw.integers(0, 256, (150, 20, 20, 3), dtype=np.uint8), None)
    e, train = encoder(), np.arange(100)
    asked = {"last4": True, "tokens": True}
    found, ids = extract(source, {"a": e, "b": e}, **asked)  # type: ignore[arg-type]
    width = e.width
    assert sorted(in_files) == sorted(
        [*2 * [150 * 4 * width, 150 * 4 * width, 150 * 16 * 2 * width], 150 * 4 * 768, 150 * 16 * 2 * 48]
    )
    part, projected = found["a"].rows(train), pca(found[RAW].last, train, 8)
    labels = torch.arange(100) % 2
    few = LinearProbe(epochs=2)
    predicted, _ = linear_probe(part.layers, labels, part.layers, labels, few)
    assert list(tmp_path.iterdir()) == []  # files have no names
    monkeypatch.setattr(rooms, "IN_MEMORY", 1 << 40)
    before = len(in_files)
    again, others = extract(source, {"a": e, "b": e}, **asked)  # type: ignore[arg-type]
    for name, x in again.items():
        for mine, theirs in ((x.last, found[name].last), (x.last4, found[name].last4), (x.tokens, found[name].tokens)):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)  # type: ignore[arg-type]
    assert ids.tolist() == others.tolist() and torch.equal(again["a"].rows(train).last, part.last)
    assert torch.equal(pca(again[RAW].last, train, 8), projected), PCA
    assert torch.equal(linear_probe(again["a"].rows(train).layers, labels, part.layers, labels, few)[0], predicted)
    assert len(in_files) == before


def test_what_is_learnt_from_may_have_a_gradient_whatever_mode_it_was_made_in(in_files: list[int]) -> None:
    for limit in (0, 1 << 40):
        rooms.IN_MEMORY = limit
        with torch.inference_mode():
            x = allocate(3, 2)
            x[:] = torch.ones(3, 2)
        weight = torch.ones(2, 1, requires_grad=True)
        (x @ weight).sum().backward()
        assert weight.grad is not None and weight.grad.flatten().tolist() == [3, 3]


def test_rows_are_taken_as_by_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "ROWS_AT_ONCE", 7)
    x, rows = torch.randn(40, 3, 2).half(), np.random.default_rng(0).integers(0, 40, 33)
    assert torch.equal(copy_rows(x, rows), x[rows]) and torch.equal(copy_rows(x, torch.from_numpy(rows)), x[rows])
    assert copy_rows(x, rows[:0]).shape == (0, 3, 2)


def test_a_disk_without_room_for_features_is_one_sentence(in_files: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*of: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rooms.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"0\.4 GB of features.*TMPDIR"):
        allocate(100_000, 1000)
