"""Linear maps. On CPUs that multiply in bfloat16 they are oneDNN's, on rows rounded up (docs/performance.md).

A large map there has no second derivative, and torch's FlopCounterMode does not see it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jepakit.core.torch_private import has_onednn_product, product
from jepakit.model.layout import default_row_multiple

_LEAST = 1 << 20  # multiply-adds: with fewer, a call costs more than it saves


def _by_onednn() -> frozenset[torch.dtype]:
    """What this CPU multiplies faster so: bfloat16; float32 too if torch's product is MKL's on a CPU not Intel's."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    if not (torch.backends.mkldnn.is_available() and about.get("avx512_bf16")):
        return frozenset()
    faster = {torch.bfloat16} if "Intel" in str(about.get("cpu_name")) else {torch.bfloat16, torch.float32}
    return frozenset(dtype for dtype in faster if has_onednn_product(dtype))


BY_ONEDNN = _by_onednn()


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, autocast or not: (..., I), (O, I), (O,) -> (..., O)."""
    lowered = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64  # which autocast leaves alone
    dtype = torch.get_autocast_dtype("cpu") if lowered else x.dtype
    ours = x.device.type == "cpu" and x.ndim > 1 and dtype in BY_ONEDNN and (lowered or x.dtype == weight.dtype)
    if ours and not torch.compiler.is_compiling() and x.numel() * len(weight) >= _LEAST:
        rows = x.flatten(0, -2)
        out = _Linear.apply(rows, weight, bias, dtype)
        return (out if len(out) == len(rows) else out[: len(rows)]).unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Of rows (S, I), zeros behind them up to S' of `_rounded`: x W^T + b (S', O). Gradients are g W, g^T x and the sum of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, low = _rounded(x, dtype), weight.to(dtype)
        ctx.save_for_backward(rows, low)
        ctx.of = len(x), x.dtype, weight.dtype
        return product(rows, low, bias if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rows, low), (count, x_dtype, weight_dtype) = ctx.saved_tensors, ctx.of
        return (
            product(grad, low.t())[:count].to(x_dtype) if ctx.needs_input_grad[0] else None,
            _weight_gradient(grad, rows).to(weight_dtype) if ctx.needs_input_grad[1] else None,
            grad.sum(0).to(weight_dtype) if ctx.needs_input_grad[2] else None,
            None,
        )


def _weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """grad^T rows: (S, O), (S, I) -> (O, I). The narrower of the two is the first factor, as that one is copied."""
    if rows.shape[1] < grad.shape[1]:
        return _weight_gradient(rows, grad).t()
    return grad.t() @ rows if grad.dtype == torch.bfloat16 else product(grad.t(), rows.t())


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, I) -> (S', I) in `dtype`, zeros behind it up to a multiple of `layout.default_row_multiple`."""
    if not (padding_rows := -len(x) % default_row_multiple(len(x))):
        return x.to(dtype)
    out = x.new_empty(len(x) + padding_rows, x.shape[1], dtype=dtype)
    out[: len(x)] = x
    out[len(x) :] = 0
    return out
