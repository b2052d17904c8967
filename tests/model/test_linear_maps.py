"""Linear maps by oneDNN: the same values and gradients as torch's own, on few shapes."""

from typing import Any

import pytest
import torch
from torch import nn

from jepakit.core.torch_private import has_onednn_product
from jepakit.model import linear
from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method

SMALL: dict[str, Any] = {
    "encoder": {"width": 24, "depth": 2, "heads": 3, "patch_size": 4},
    "predictor": {"width": 12, "depth": 2},
}
CONTEXT = [[0, 1, 2, 6], [19, 4], [3, 8, 9, 13, 14, 18, 7]]
TARGETS = [[[10, 11, 15, 16], [5]], [[0, 1, 2, 5, 6, 7], [12, 13], [17, 18, 19]], [[0, 5]]]
ONEDNN = pytest.mark.skipif(not has_onednn_product(torch.float32), reason="a torch without oneDNN")


@ONEDNN
@pytest.mark.parametrize("shape", [(7,), (3, 67), (64,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_maps_by_onednn_have_the_values_and_gradients_of_torchs(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(linear, "BY_ONEDNN", {torch.float32, torch.bfloat16})
    monkeypatch.setattr(linear, "_LEAST", 0)
    product, calls = linear.product, []
    monkeypatch.setattr(linear, "product", lambda *given: calls.append(given) or product(*given))
    torch.manual_seed(0)
    ours, x, g = linear.Linear(24, 40, bias=bias), torch.randn(*shape, 24, requires_grad=True), torch.randn(*shape, 40)
    theirs = nn.Linear(24, 40, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    seen = []
    for module in (ours, theirs):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            y = module(x)
        seen.append((y, *torch.autograd.grad(y, [x, *module.parameters()], g.to(dtype))))
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(*seen, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * float(b.detach().abs().max()))
    assert (before := len(calls)) >= 2
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        assert ours.double()(x.double()).dtype == torch.float64
    assert len(calls) == before


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 1000, 1024, 2049, 10007])
def test_rounded_rows_are_zeros_few_and_of_few_lengths(rows: int) -> None:
    x = torch.ones(rows, 3)
    out = linear._rounded(x, torch.float32)
    assert torch.equal(out[:rows], x) and not out[rows:].any()
    assert len(out) <= rows * (1 + 1 / 32)
    assert len({len(linear._rounded(torch.ones(n, 1), torch.float32)) for n in range(1024, 2048)}) <= 33


@ONEDNN
def test_a_model_by_onednns_products_has_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_LEAST", 0)
    found = []
    for chosen in (set(), {torch.float32}):
        monkeypatch.setattr(linear, "BY_ONEDNN", chosen)
        torch.manual_seed(0)
        jepa = JEPA(Method.model_validate(SMALL), (4, 5))
        for p in jepa.parameters():  # at the starting .02 a slip would hide in the rounding
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.2)
        out = jepa(torch.randn(3, 3, 16, 20), Masks.from_indices(CONTEXT, TARGETS))
        out.loss.backward()
        found.append([out.loss.detach(), *(p.grad for p in jepa.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@ONEDNN
def test_its_output_may_be_changed_in_place_and_a_second_derivative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "BY_ONEDNN", {torch.float32})
    monkeypatch.setattr(linear, "_LEAST", 0)
    for rows in (64, 67):
        module, x = linear.Linear(8, 8), torch.randn(rows, 8, requires_grad=True)
        module(x).add_(1).sum().backward()
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.square().sum().backward()
