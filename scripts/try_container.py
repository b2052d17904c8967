"""Runs the steps of the Containerfile without a container, in an empty environment: python scripts/try_container.py [TORCH]

TORCH: what stands in the place of its ARG TORCH, such as torch==2.13.0. COPY goes into a folder in the place of /, `pip`,
`python` and `jepakit` are the environment's own.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Containerfile, and what stands behind it; lines that go on are joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        venv.create(root / "venv", with_pip=True)
        own = {
            "HOME": folder,
            "PATH": f"{root / 'venv/bin'}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or "proxy" in name.lower()}
        arguments: dict[str, str] = {}
        for word, rest in instructions((ROOT / "Containerfile").read_text()):
            if word == "ARG":
                name, _, value = rest.partition("=")
                arguments[name] = sys.argv[1] if sys.argv[1:] and name == "TORCH" else value
            elif word == "COPY":
                *sources, target = shlex.split(rest)
                place = root / target.strip("/")
                for source in sources:
                    copy(ROOT / source, place / source if target.endswith("/") else place)
            elif word == "RUN":
                print(f"RUN {rest}", flush=True)
                step = rest.replace("/opt/", f"{root}/opt/")
                subprocess.run(["sh", "-ec", step], check=True, env={**kept, **own, **arguments}, cwd=root)


def copy(source: Path, target: Path) -> None:
    """A file or a folder, to where it shall lie."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    main()
