"""Prints constraints at the oldest versions that pyproject.toml allows: python scripts/oldest.py [TORCH] > constraints.txt

TORCH: the version of torch; none: that of constraints.txt. The tools of developers (extra dev) are as there too.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("dev", "parity")
PIN = re.compile(r"([\w.-]+)==(\S+)")
BOUND = re.compile(r"([\w.-]+)>=([\w.]+)")


def oldest(torch: str | None) -> dict[str, str]:
    """The lowest version of each package that jepakit or an extra for users names; the pinned one of each other tool."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = [line for name, lines in optional.items() if name not in TOOLS for line in lines]
    bounds = dict(found.groups() for line in (*extras, *project["dependencies"]) if (found := BOUND.match(line)))
    pins = dict(found.groups() for line in (ROOT / "constraints.txt").read_text().splitlines() if (found := PIN.match(line)))
    tools = {line.partition(">")[0] for line in optional["dev"]} - bounds.keys()
    return {**{name: pins[name] for name in tools}, **bounds, "torch": torch or pins["torch"]}


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(oldest(sys.argv[1] if sys.argv[1:] else None).items())))
