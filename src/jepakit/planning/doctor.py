"""`jepakit doctor`: what is there to work with, what is not, and what to install; for a first look and for reports of bugs."""

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from jepakit.core.device import device_of, precision_of
from jepakit.core.environment import environment, extras, installed, packages_of

_Row = tuple[str, str]
_FEW_FILES = 1024  # file handles that many a system allows at first


def doctor() -> str:
    """What is there, as aligned text; lines of what wants attention begin with '!'."""
    found = environment()
    return "\n".join(f"{name:14} {said}" for name, said in [*_program(found), *_machine(found), *_extras()])


def _program(found: Mapping[str, Any]) -> list[_Row]:
    commit = f", commit {found['commit']}" if found["commit"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        ("jepakit", f"{found['jepakit']}{commit}"),
        ("Python", f"{found['python']} at {sys.executable}"),
        ("system", found["system"]),
        ("packages", packages or "jepakit is not installed as a package: what it needs is not known"),
    ]


def _machine(found: Mapping[str, Any]) -> list[_Row]:
    device = device_of("auto")
    precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[precision_of("auto", device)]
    threads = os.environ.get("OMP_NUM_THREADS")
    memory = found["memory"]
    rows = [
        ("processor", f"{found['processor']}, {found['cores']} cores to use{f', OMP_NUM_THREADS={threads}' if threads else ''}"),
        ("memory", "not known" if memory is None else f"{memory / 1e9:.0f} GB"),
        ("device", f"{'; '.join(found['devices']) or 'CPU'}; run.precision=auto is {precision}"),
        *_missing_cuda(),
    ]
    with suppress(OSError):
        rows.append(("disk", f"{shutil.disk_usage('.').free / 1e9:.0f} GB free in {Path.cwd()}"))
    with suppress(ImportError):  # Windows
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        few = "; shards by the thousand want more: ulimit -n 65536" if files <= _FEW_FILES else ""
        rows.append(("open files", f"{'!' if few else ''}{files} at most{few}"))
    return rows


def _missing_cuda() -> list[_Row]:
    """Why a GPU that is there is not used."""
    if torch.cuda.is_available() or not Path("/proc/driver/nvidia/version").exists():
        return []
    if torch.version.cuda is None:
        return [
            ("CUDA", f"!an NVIDIA driver is there, but torch {torch.__version__} is for CPUs: see pytorch.org, 'Get started'")
        ]
    return [
        ("CUDA", f"!an NVIDIA driver is there, but torch {torch.__version__} (CUDA {torch.version.cuda}) finds no device by it")
    ]


def _extras() -> list[_Row]:
    """Each extra: its packages with their versions, or how to install what is missing."""
    rows = []
    for extra in extras():
        have = installed(*packages_of(extra))
        missing = [name for name, version in have.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in have.items() if version)
        rows.append((f"[{extra}]", f"not there: pip install 'jepakit[{extra}]' ({', '.join(missing)})" if missing else there))
    return rows
