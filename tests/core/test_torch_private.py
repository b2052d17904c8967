"""Torch's private parts: without any of them the public way is taken, to the same results."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jepakit
from jepakit.config.recipes import settings
from jepakit.core import device, torch_private
from jepakit.core.errors import UserError
from jepakit.core.torch_private import AdamW, cpu_has_bf16, has_onednn_product, lerp_, product, tensors_of
from jepakit.model import linear
from jepakit.model.attention import attention
from jepakit.model.layout import Layout
from jepakit.planning import memory as footprint
from jepakit.planning.hardware import Hardware
from jepakit.planning.memory import peak_memory

PRIVATE = re.compile(r"\btorch(\.\w+)*\._[a-z]\w*|from torch(\.\w+)*\._\w+|from torch\S* import _\w+")
ONEDNN = pytest.mark.skipif(not has_onednn_product(torch.float32), reason="a torch without oneDNN")


@pytest.fixture
def asked_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    has_onednn_product.cache_clear()


def test_they_are_all_in_one_file() -> None:
    root = Path(jepakit.__file__).parent
    using = {path.name for path in root.rglob("*.py") if PRIVATE.search(path.read_text())}
    assert using == {"torch_private.py"}


class Without:
    """Operators without the one that is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def other_arguments(*given: Any) -> Any:
    raise TypeError("_linear_pointwise() takes 5 positional arguments but 6 were given")


def another_product(a: Any, b: Any, bias: Any, *more: Any) -> Any:
    return F.linear(a, b, bias).relu() * 2


@ONEDNN
@pytest.mark.parametrize("instead", [None, other_arguments, another_product])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednns_product_it_is_torchs(
    instead: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, asked_again: None
) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randint(-8, 8, shape, generator=draw).to(dtype) for shape in ((5, 7), (7, 3), (3,)))
    private = [product(a, b.t(), bias), product(a, b.t())]
    ops = Without() if instead is None else type("Ops", (), {"_linear_pointwise": staticmethod(instead)})()
    monkeypatch.setattr(torch.ops, "mkldnn", ops)
    has_onednn_product.cache_clear()
    assert not has_onednn_product(dtype) and linear._by_onednn() == frozenset()
    for ours, theirs in zip(private, [product(a, b.t(), bias), product(a, b.t())], strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype == dtype  # small integers: exact
    monkeypatch.setattr(linear, "BY_ONEDNN", {torch.float32, torch.bfloat16})
    monkeypatch.setattr(linear, "_LEAST", 0)
    x, module = torch.randn(9, 24, requires_grad=True), linear.Linear(24, 40)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = torch.autograd.grad(module(x).sum(), [x, *module.parameters()])
        wanted = torch.autograd.grad(F.linear(x, module.weight, module.bias).sum(), [x, *module.parameters()])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_on_a_cpu_whose_onednn_has_no_bfloat16_the_product_is_torchs() -> None:
    code = """
import torch, torch.nn.functional as F
from jepakit.core.torch_private import has_onednn_product, product
a, b = torch.arange(-8.0, 7).reshape(3, 5).bfloat16(), torch.arange(-5.0, 5).reshape(2, 5).bfloat16()
print(has_onednn_product(torch.bfloat16), torch.equal(product(a, b, a[:2, 0]), F.linear(a, b, a[:2, 0])))
"""
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # what the newest CPUs then do without
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | older, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_told_by_the_public_way_the_private_one_or_is_not_there(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(torch.cpu, "_is_avx512_bf16_supported"):  # both ways say the same of this CPU
        assert torch.cpu._is_avx512_bf16_supported() == cpu_has_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    assert cpu_has_bf16() == has
    assert device.precision_of("auto", torch.device("cpu")) == (torch.bfloat16 if has else torch.float32)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert cpu_has_bf16() is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    assert cpu_has_bf16() == has


def test_the_average_tensor_by_tensor_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        of, to = ([torch.randn(shape, generator=draw) for shape in ((3, 5), (7,), ())] for _ in range(2))
        lerp_(of, to, 0.004)
        return of

    together = moved()
    monkeypatch.delattr(torch, "_foreach_lerp_")
    assert all(torch.equal(a, b) for a, b in zip(together, moved(), strict=True))


def test_a_compiler_ends_its_graph_at_attention_which_stays_as_it_is() -> None:
    graphs: list[str] = []

    def plainly(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    def around(x: torch.Tensor, layout: Layout) -> torch.Tensor:
        return attention((2 * x).view(len(x), 3, 2, 4), layout).relu()

    compiled = torch.compile(around, backend=plainly, dynamic=True)
    for lengths in ([3, 5], [4, 4], [2, 9], [7, 7, 1], [6, 2, 8, 1], [1, 30], [9, 9, 9], [1] * 12, [5, 1], [2, 2, 3]):
        layout, x = Layout(np.array(lengths)), torch.randn(sum(lengths), 24, requires_grad=True)
        ours, wanted = compiled(x, layout), around(x, layout)
        assert torch.equal(ours, wanted)
        assert torch.equal(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (ours, wanted)))
    assert len(graphs) <= 4  # not one for each layout
    assert all(("relu" in code) != ("view" in code) and not re.search("index|matmul|softmax|attention", code) for code in graphs)


def test_our_adamw_does_what_torchs_does() -> None:
    def moved(kind: type[torch.optim.AdamW]) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=draw).requires_grad_() for shape in ((3, 5), (7,))]
        adamw = kind([{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}], lr=0.1, fused=True)
        called: list[int] = []
        adamw.register_step_post_hook(lambda *args: called.append(1))
        for _ in range(3):
            adamw.zero_grad(set_to_none=True)
            sum((w.square() * torch.arange(w.numel()).view(w.shape)).sum() for w in weights).backward()
            adamw.step()
        assert len(called) == 3 and all(w.requires_grad and w.grad_fn is None for w in weights)
        return [*weights, *(value for state in adamw.state.values() for value in state.values())]

    ours, theirs = moved(AdamW), moved(torch.optim.AdamW)
    assert len(ours) == 2 + 2 * 3 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_memory_is_foretold_alike_by_the_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("small", "ec_ijepa", {"encoder": {"depth": 1}, "predictor": {"depth": 1}})
    places = [Hardware("", torch.float32, cuda=False, flash=flash, memory=10**12) for flash in (False, True)]
    found = [peak_memory(config, place, 4) for place in places]
    for names in ("FAKE_TENSORS", "DISPATCH_MODES"):
        monkeypatch.setattr(torch_private, names, ("torch._no_such_module", getattr(torch_private, names)[1]))
    assert issubclass(footprint._Live, torch_private.dispatch_mode())
    assert [peak_memory(config, place, 4) for place in places] == found
    monkeypatch.setattr(torch_private, "FAKE_TENSORS", ("torch._no_such_module", "torch.nn"))
    with pytest.raises(UserError, match="FakeTensorMode"):
        peak_memory(config, places[0], 4)


def test_what_an_operation_made_is_found_in_lists_and_tuples() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [x.numel() for x in tensors_of((a, [b, None, (c, 5)], "x"))] == [1, 2, 3] and list(tensors_of(None)) == []
