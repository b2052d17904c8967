"""What the program runs with: versions, the command line, the commit, processor, memory and devices.

Kept in each run's folder (environment.json), and said by `jepakit doctor`.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jepakit.core.device import cores

_NAME = re.compile(r"[\w.-]+")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_CHECKOUT = Path(__file__).parents[3]
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@cache
def environment() -> Mapping[str, Any]:
    """All of it, as JSON holds it, as it was when this process first asked."""
    packages = {name: version for name, version in installed(*packages_of()).items() if version}
    return {
        "jepakit": sys.modules["jepakit"].__version__,
        "commit": commit(),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "processor": cpu_name(),
        "cores": cores(),
        "memory": host_memory(),
        "devices": devices(),
    }


def commit() -> str | None:
    """The commit of the checkout that this is run from, with '+' where files differ from it; None for an installed package."""
    if not (_CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None


def packages_of(extra: str | None = None) -> list[str]:
    """Names of the packages that jepakit needs, or that an extra of it brings; none where it is not installed."""
    try:
        required = metadata.requires("jepakit") or []
    except metadata.PackageNotFoundError:
        return []
    named = [(_NAME.match(line), _EXTRA.search(line)) for line in required]
    return [name[0] for name, of in named if name and (of[1] if of else None) == extra]


def extras() -> list[str]:
    """Names of jepakit's extras that users install; none where it is not installed."""
    with suppress(metadata.PackageNotFoundError):
        return [name for name in metadata.metadata("jepakit").get_all("Provides-Extra") or [] if name not in ("dev", "parity")]
    return []


def installed(*packages: str) -> dict[str, str | None]:
    """The version of each package; None where it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cpu_name() -> str:
    """The name of the processor."""
    with suppress(OSError):
        if named := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return named[1].strip()
    return platform.processor() or platform.machine()


def host_memory() -> int | None:
    """Bytes that this process may use at most: the machine's, or its container's; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for limit in _LIMITS:
        with suppress(OSError, ValueError):
            total = min(total, int(limit.read_text(encoding="utf-8")))
    return total


def devices() -> list[str]:
    """The CUDA devices, by name and memory."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{each.name}, {each.total_memory / 1e9:.0f} GB" for each in found]
