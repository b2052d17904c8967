"""The folder of a study: of one study alone, and of one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from jepakit.config.config import read_yaml
from jepakit.core.errors import UserError
from jepakit.core.files import atomic_write, locked


@contextmanager
def claimed(out: Path, about: dict[str, Any]) -> Iterator[None]:
    """Hold a folder for a study. Raises UserError where it holds another one, or anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        note, others = out / "study.yaml", [path.name for path in out.iterdir() if not path.name.startswith(".")]
        if not note.is_file() and others:
            raise UserError(f"{out} holds other files ({min(others)}); give a folder of its own")
        if note.is_file() and (there := read_yaml(note)) != about:
            other = next(key for key in about if there.get(key) != about[key])
            raise UserError(f"{out} holds a study with {other} {there.get(other)}, not {about[other]}: give another --out")
        (out / "cells").mkdir(exist_ok=True)
        for path, value in ((note, about), (out / "base.yaml", about["base"])):
            with atomic_write(path) as draft:
                draft.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
        yield
