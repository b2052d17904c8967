"""Checkpoints: a folder of safetensors and JSON with a sha256 of every file, renamed into place.

A folder named step-… is whole or is not there; a byte that changed since is noticed; nothing in it can run.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepakit.errors import UserError

log = logging.getLogger("jepakit")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a step left: named groups of tensors (one file each), and JSON values (step, ...)."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def save(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> bool:
    """Write folder/step-…, point `latest` at it, drop all but the newest `keep`. False, with a warning, if it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    draft, final = folder / f".tmp-{os.getpid()}", folder / name_of(step)
    try:
        draft.mkdir()
        for name, tensors in checkpoint.tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / f"{name}.safetensors")
        (draft / "state.json").write_text(json.dumps(checkpoint.state))
        sums = {p.name: _sha256(p) for p in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(sums, indent=1))
        for path in (*draft.iterdir(), draft):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _point(folder / "latest", final.name)
        _sync(folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        shutil.rmtree(draft, ignore_errors=True)
        log.warning("checkpoint of step %d NOT saved: %s; earlier ones are kept, the run goes on", step, error)
        return False
    for old in [s for s in steps(folder) if s <= step][keep:]:
        shutil.rmtree(folder / name_of(old), ignore_errors=True)
    return True


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises UserError naming the file that is missing or changed."""
    try:
        sums: Mapping[str, str] = dict(json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: no readable {MANIFEST}: not a checkpoint of jepakit, or a broken one") from None
    for name, expected in {"state.json": "", **sums}.items():  # what is read is what the manifest vouches for
        if Path(name).name != name:
            raise UserError(f"{path}: the manifest names a file outside the folder: {name!r}")
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing")
        if _sha256(path / name) != expected:
            raise UserError(f"{path}: {name} has changed since it was written (sha256)")
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {n.removesuffix(".safetensors"): load_file(path / n) for n in sums if n.endswith(".safetensors")}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return Checkpoint(tensors, state)


def load_newest(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole; each broken one is named. Raises UserError if none is."""
    found = steps(folder)
    for step in found:
        try:
            return load(folder / name_of(step))
        except UserError as error:
            log.warning("checkpoint of step %d is corrupt, falling back to the one before: %s", step, error)
    if found:
        raise UserError(
            f"no checkpoint in {folder} is whole ({len(found)} tried, run.log says why); start a new run with another --out"
        )
    raise UserError(f"no checkpoint in {folder}: there is nothing to resume; start the run again with --overwrite")


def set_aside(folder: Path, after: int) -> None:
    """Rename the broken checkpoints that are newer than the one a run goes on from: they are no longer its future."""
    for step in steps(folder):
        if step > after:
            (folder / name_of(step)).replace(folder / f"broken-{name_of(step)}-{os.getpid()}")


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly. Raises UserError naming the first that does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{where}: weights do not fit: {str(error).splitlines()[1].strip()}") from None


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first."""
    return sorted((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True)


def sweep(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for leftover in folder.glob(".tmp-*"):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink(missing_ok=True)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link: Path, target: str) -> None:
    draft = link.with_name(f".tmp-link-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
