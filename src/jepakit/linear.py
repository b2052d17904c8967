"""Linear maps. On CPUs with wide registers they are oneDNN's, on rows rounded up (docs/performance.md)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit.layout import unit_of

LEAST = 1 << 20  # multiply-adds: with fewer, a call costs more than it saves


def _by_onednn() -> frozenset[torch.dtype]:
    """What this CPU multiplies faster so: bfloat16; float32 too if torch's product is MKL's, which has AVX-512 for Intel's."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    if not (torch.backends.mkldnn.is_available() and about.get("avx512_bf16")):
        return frozenset()
    return frozenset({torch.bfloat16} if "Intel" in str(about["cpu_name"]) else {torch.bfloat16, torch.float32})


BY_ONEDNN = _by_onednn()


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, autocast or not: (..., I), (O, I), (O,) -> (..., O)."""
    if x.device.type == "cpu" and x.numel() * len(weight) >= LEAST and not torch.compiler.is_compiling():
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype in BY_ONEDNN and x.dtype != torch.float64:  # which autocast leaves alone
            return _Linear.apply(x.flatten(0, -2), weight, bias, dtype).unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Of rows (S, I): x W^T + b; its gradients are g W, g^T x and the sum of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, low = _rounded(x, dtype), weight.to(dtype)
        ctx.save_for_backward(rows, low)
        ctx.of = x.dtype, weight.dtype
        return _product(rows, low, bias if bias is None else bias.to(dtype))[: len(x)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows, low), (of_x, of_weight) = ctx.saved_tensors, ctx.of
        grad = _rounded(grads[0], low.dtype)
        return (
            _product(grad, low.t())[: len(grads[0])].to(of_x) if ctx.needs_input_grad[0] else None,
            _of_weight(grad, rows).to(of_weight) if ctx.needs_input_grad[1] else None,
            grad.sum(0).to(of_weight) if ctx.needs_input_grad[2] else None,
            None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")  # type: ignore[no-any-return]


def _of_weight(grad: Tensor, rows: Tensor) -> Tensor:
    """grad^T rows, the narrower of the two first: it is what is copied."""
    if rows.shape[1] < grad.shape[1]:
        return _of_weight(rows, grad).t()
    return grad.t() @ rows if grad.dtype == torch.bfloat16 else _product(grad.t(), rows.t())


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, I), zeros behind it until the number of rows is a multiple of its unit."""
    if not (spare := -len(x) % unit_of(len(x))):
        return x.to(dtype)
    out = x.new_empty(len(x) + spare, x.shape[1], dtype=dtype)
    out[: len(x)] = x
    out[len(x) :] = 0
    return out
