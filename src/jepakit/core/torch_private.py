"""Torch's private parts that are used here, all of them, each with a public way where a version has it no longer."""

import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache, wraps
from importlib import import_module
from inspect import unwrap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.core.errors import P, R, UserError

FAKE_TENSORS = ("torch._subclasses.fake_tensor", "torch.fx.passes.fake_tensor_prop")  # modules that have them
DISPATCH_MODES = ("torch.utils._python_dispatch", "torch.utils.flop_counter")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (S, I), b (O, I), bias (O,) -> a b^T + bias (S, O), by oneDNN where torch lets it be asked for."""
    if has_onednn_product(a.dtype):
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(a, b, bias)


@cache
def has_onednn_product(dtype: torch.dtype) -> bool:
    """Whether there is oneDNN's product by itself, on this CPU in this type, and it is what it was."""
    a, b = torch.arange(6.0).reshape(2, 3).to(dtype), torch.arange(12.0).reshape(4, 3).to(dtype)
    try:
        found = torch.ops.mkldnn._linear_pointwise(a, b, b[:, 0].contiguous(), "none", [], "")
    except Exception:  # no such operator, other arguments, a build without oneDNN, a CPU without bfloat16
        return False
    return torch.equal(found, F.linear(a, b, b[:, 0]))  # small integers: exact in any order


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 by AVX-512."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    if "avx512_bf16" in about:
        return bool(about["avx512_bf16"])
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def lerp_(of: Sequence[Tensor], to: Sequence[Tensor], weight: float) -> None:
    """Each of some tensors, in place, by `weight` of the way to another; all in one kernel where torch can."""
    together = getattr(torch, "_foreach_lerp_", None)
    if together is not None:
        together(of, to, weight)
        return
    for x, y in zip(of, to, strict=True):
        x.lerp_(y, weight)


def set_time_limits(gloo: float, nccl: float) -> None:
    """How many seconds what all processes do together from here on may take, on the host and on GPUs."""
    group: Any = torch.distributed.group.WORLD
    for device, seconds in (("cuda", nccl), ("cpu", gloo)):  # gloo alone is of both
        if torch.device(device) in group._device_types:
            group._get_backend(torch.device(device))._set_default_timeout(timedelta(seconds=seconds))


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compiler.disable, which imports the compiler at once, 1.2 s, at a first call under it: where a compiler meets the
    function a graph ends, and all that it calls runs as it is."""

    made: Callable[P, R] | None = None

    @wraps(function)
    def plainly(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal made
        if made is None and "torch._dynamo" in sys.modules:
            made = torch.compiler.disable(function)
        return (made or function)(*args, **kwargs)

    try:  # what torch._dynamo.decorators.skip does
        frames: Any = import_module("torch._C._dynamo.eval_frame")
        skipped = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
        frames.set_code_exec_strategy(plainly.__code__, skipped)  # type: ignore[attr-defined]
        plainly._torchdynamo_disable = True  # type: ignore[attr-defined]
    except (ImportError, AttributeError, TypeError):
        return torch.compiler.disable(function)  # type: ignore[no-any-return]
    return plainly


class AdamW(torch.optim.AdamW):
    """Torch's own, but for its way around torch's compiler, which imports that at a first step; here no optimiser is compiled."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def fake_tensors() -> tuple[type[Any], type[Any]]:
    """FakeTensorMode and FakeTensor: tensors of a shape and a device, without storage. Raises UserError for a torch without."""
    return _found("FakeTensorMode", FAKE_TENSORS), _found("FakeTensor", FAKE_TENSORS)


def dispatch_mode() -> type[Any]:
    """TorchDispatchMode, which sees every operation. Raises UserError for a torch without."""
    return _found("TorchDispatchMode", DISPATCH_MODES)


def tensors_of(made: object) -> Iterator[Tensor]:
    """The tensors that an operation made: one, or several in lists and tuples."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, list | tuple):
        for part in made:
            yield from tensors_of(part)


def _found(name: str, modules: Sequence[str]) -> type[Any]:
    """A class by the first of these modules that has it."""
    for module in modules:
        try:
            return getattr(import_module(module), name)  # type: ignore[no-any-return]
        except (ImportError, AttributeError):
            continue
    raise UserError(f"torch {torch.__version__} has no {name}, by which memory is foretold: install torch 2.13")
