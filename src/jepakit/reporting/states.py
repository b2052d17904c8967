"""How far a run is, from its folder alone: finished, running or stopped. No torch, and nothing is locked."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from jepakit.core.files import load_json

YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it takes a tenth of the time
LOCKS = Path("/proc/locks")  # who holds which file; to try the lock oneself could stop a run that begins just then


def checkpoint_state(folder: Path) -> Mapping[str, Any]:
    """What a run's newest checkpoint says of itself: step, finished, images. Empty where there is none that can be read."""
    kept = [path for path in folder.joinpath("checkpoints").glob("step-*") if path.name[5:].isdigit()]
    newest = max(kept, key=lambda path: int(path.name[5:]), default=None)
    said: Any = {}
    if newest:
        with suppress(OSError, ValueError, RecursionError):
            said = load_json(newest / "state.json")
    return said if isinstance(said, Mapping) else {}


def is_running(folder: Path) -> bool:
    """Whether a process of this machine holds the run's lock."""
    try:
        inode = os.stat(folder / ".lock").st_ino
        held = LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(
        words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode) for line in held if len(words := line.split()) > 5
    )


def state_of(folder: Path, finished: bool) -> str:
    """In a word."""
    return "running" if is_running(folder) else "finished" if finished else "stopped"
