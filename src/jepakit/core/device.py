"""Which device computes, and in what precision."""

import contextlib
import ctypes
import os

import torch

from jepakit.core.errors import UserError
from jepakit.core.ranks import launched, local_rank
from jepakit.core.torch_private import cpu_has_bf16

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def device_of(name: str) -> torch.device:
    """'auto' is CUDA where there is one, of several processes each its own. Raises UserError for a device that is not there.

    mps is Apple's GPU, which nobody has tried yet.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return _own_gpu() if launched() else torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"run.device={name}: choose auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        raise UserError(f"run.device={name}: there is no such device here; run.device=auto takes what there is")
    return device


def _own_gpu() -> torch.device:
    """The GPU of this process, one of several on its machine."""
    own, count = local_rank(), torch.cuda.device_count()
    if own >= count:
        raise UserError(
            f"process {own + 1} of this machine finds {count} GPUs: start one a GPU (torchrun --nproc-per-node {count})"
        )
    device = torch.device("cuda", own)
    torch.cuda.set_device(device)
    return device


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 where the hardware multiplies in it. Raises UserError for one that the device is not used in."""
    if device.type == "mps":
        if name not in ("auto", "fp32"):
            raise UserError(f"precision {name} is not used on mps: leave it out, or choose fp32")
        return torch.float32
    if name == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
        return torch.bfloat16 if fast else torch.float32
    return PRECISIONS[name]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Autocast to a precision below float32; nothing for float32 itself."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_cpu(threads: int | None) -> None:
    """Threads of the model (none: OMP_NUM_THREADS, else all cores that this process may use), and how memory is kept."""
    if threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or cores())
    _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep freed memory: it maps and clears every large tensor anew otherwise, up to half of a CPU step."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have other ways, Windows no such name
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, -1)
