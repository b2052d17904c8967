"""Installs a built wheel into an empty environment and uses it as a new user would: python scripts/try_wheel.py DIST

No checkout, no HOME, no PATH but the environment's own. Says how long the installation took, and how large it is.
"""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SMALL = ["encoder.depth=1", "optim.steps=12", "optim.warmup_steps=2", "run.probe_images=0", "run.log_every_steps=4"]


def main() -> None:
    wheels = sorted(Path(sys.argv[1]).absolute().glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"one wheel is wanted in {sys.argv[1]}, not {len(wheels)}: empty it, and `make dist` again")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.monotonic()
        venv.create(root / "venv", with_pip=True)
        programs = root / "venv/bin"
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(CONSTRAINTS), str(wheels[0])], check=True, env=without_checkout(os.environ))
        size = sum(p.stat().st_size for p in (root / "venv").rglob("*") if p.is_file() and not p.is_symlink())
        print(f"installed in {time.monotonic() - began:.0f} s, {size / 1e9:.2f} GB")
        new = {"HOME": str(root), "PATH": str(programs), "LANG": "C.UTF-8"}
        for words in (
            ["jepakit", "--version"],
            ["python", "-c", "import jepakit; print(jepakit.__file__); jepakit.pretrain, jepakit.report"],
            ["jepakit", "--quiet", "demo", "--out", "demo", *SMALL],
        ):
            subprocess.run([str(programs / words[0]), *words[1:]], check=True, env=new, cwd=root)
        assert (root / "demo/report.html").stat().st_size > 10_000


def without_checkout(environment: "os._Environ[str]") -> dict[str, str]:
    """An environment in which nothing leads back to this checkout."""
    return {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


if __name__ == "__main__":
    main()
