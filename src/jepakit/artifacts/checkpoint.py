"""Checkpoints: a folder of safetensors and JSON with a sha256 of every file, renamed into place.

A folder named step-… is complete or absent; a byte that changed since is noticed; nothing in it can run code.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepakit.core.errors import UserError
from jepakit.core.files import load_json, sync

log = logging.getLogger("jepakit")
MANIFEST = "manifest.json"
LATEST = "latest"  # a link to the newest, or where there are no links a file that names it


@dataclass(frozen=True)
class Checkpoint:
    """What a step left: named groups of tensors (one file each), and JSON values (step, ...)."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def save(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> bool:
    """Write folder/step-…, point `latest` at it, drop all but the newest `keep`. False, with a warning, if it cannot."""
    try:
        final = _write(folder, step, checkpoint)
        _point(folder / LATEST, final.name)
        sync(folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        log.warning("checkpoint of step %d NOT saved: %s; earlier ones are kept, the run goes on", step, error)
        return False
    for old in [s for s in steps(folder) if s <= step][keep:]:
        shutil.rmtree(folder / step_name(old), ignore_errors=True)
    return True


def save_snapshot(folder: Path, step: int, snapshot: Checkpoint) -> bool:
    """Write folder/step-…, which stays whatever comes after it. False, with a warning, if it cannot."""
    try:
        _write(folder, step, snapshot)
        sync(folder)
    except (OSError, SafetensorError) as error:
        log.warning("snapshot of step %d NOT saved: %s; the run goes on", step, error)
        return False
    return True


def _write(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write folder/step-… aside, and rename it. Raises OSError, SafetensorError; then nothing is left of it."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    draft, final = folder / f".tmp-{os.getpid()}", folder / step_name(step)
    try:
        draft.mkdir()
        for name, tensors in checkpoint.tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / f"{name}.safetensors")
        (draft / "state.json").write_text(json.dumps(checkpoint.state), encoding="utf-8")
        sums = {p.name: _sha256(p) for p in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for path in draft.iterdir():
            sync(path)
        sync(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
    except (OSError, SafetensorError):
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return final


def tensor_groups(path: Path) -> list[str]:
    """Names of the groups of tensors that a checkpoint or snapshot says it has; none where its manifest cannot be read."""
    try:
        sums = load_json(pointed(path) / MANIFEST)
        return [name.removesuffix(".safetensors") for name in sums if name.endswith(".safetensors")]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def load_checkpoint(path: Path, only: Collection[str] = ()) -> Checkpoint:
    """Read and verify one checkpoint folder, or the one that a `latest` names.

    only: groups of tensors to read; others are not verified. Raises UserError naming the file that is missing or changed.
    """
    path = pointed(path)
    try:
        sums: Mapping[str, str] = dict(load_json(path / MANIFEST))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: no readable {MANIFEST}: not a checkpoint of jepakit, or a broken one") from None
    files = {name: name.removesuffix(".safetensors") for name in sums if name.endswith(".safetensors")}
    wanted = {f"{group}.safetensors": group for group in only} or files
    for name in sums:
        if Path(name).name != name:
            raise UserError(f"{path}: the manifest names a file outside the folder: {name!r}")
    for name in wanted.keys() | {"state.json"} | (sums.keys() - files.keys()):
        _verify(path, name, sums.get(name, ""))  # what is read is what the manifest vouches for
    try:
        state = load_json(path / "state.json")
        tensors = {group: load_file(path / name) for name, group in wanted.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return Checkpoint(tensors, state)


def load_newest(folder: Path, only: Collection[str] = (), *, finite: bool = False) -> Checkpoint:
    """The newest checkpoint that is intact and, with finite=True, holds finite numbers. The log names those that are skipped.

    Raises UserError if there is none.
    """
    found = steps(folder)
    for step in found:
        try:
            loaded = load_checkpoint(folder / step_name(step), only)
        except UserError as error:
            log.warning("checkpoint of step %d is corrupt, falling back to the one before: %s", step, error)
            continue
        bad = not_finite(loaded.tensors) if finite else ""
        if not bad:
            return loaded
        log.warning("checkpoint of step %d is no use, falling back to the one before: its %s is not finite", step, bad)
    if found:
        raise UserError(
            f"no checkpoint in {folder} is whole ({len(found)} tried, the log says why); start a new run with another --out"
        )
    raise UserError(f"no checkpoint in {folder}: there is nothing to resume; start the run again with --overwrite")


def not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Group and name of the first tensor that holds a NaN or an infinity; '' if none does."""
    for group, named in tensors.items():
        for name, value in named.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                return f"{group} {name}"
    return ""


def pointed(path: Path) -> Path:
    """The folder that a file `latest` names; any other path as it is."""
    if path.name != LATEST or path.is_dir() or not path.is_file():
        return path
    try:
        name = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        name = ""
    if not name or Path(name).name != name:
        raise UserError(f"{path}: it names no checkpoint; give one of the folders beside it")
    return path.with_name(name)


def set_aside(folder: Path, after: int) -> None:
    """Rename the broken checkpoints that are newer than the one a run goes on from: they are no longer its future."""
    for step in steps(folder):
        if step > after:
            (folder / step_name(step)).replace(folder / f"broken-{step_name(step)}-{os.getpid()}")


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly. Raises UserError naming the first that does not fit, or that is no finite real number."""
    ours = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor) or (name in ours and value.is_floating_point() != ours[name].is_floating_point()):
            kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
            raise UserError(f"{where}: weights must be real floats, and {name} is {kind}")
        if not bool(value.float().isfinite().all()):
            raise UserError(f"{where}: {name} holds values that are not finite")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{where}: weights do not fit: {str(error).splitlines()[1].strip()}") from None


def count_blocks(state: Collection[str], prefix: str) -> int:
    """How many blocks the names prefix.0.…, prefix.1.… are of. Raises ValueError where one is missing."""
    found = {name.split(".")[1] for name in state if name.startswith(prefix + ".")}
    if not found or found != set(map(str, range(len(found)))):
        some = ", ".join(sorted(found)[:8])
        raise ValueError(f"{prefix} must be numbered from 0 on without a gap, got {some or 'none'}")
    return len(found)


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


def _verify(folder: Path, name: str, expected: str) -> None:
    if not (folder / name).is_file():
        raise UserError(f"{folder}: {name} is missing")
    if _sha256(folder / name) != expected:
        raise UserError(f"{folder}: {name} has changed since it was written (sha256)")


def _point(link: Path, target: str) -> None:
    """Have `latest` name the newest checkpoint. Nothing is lost where that fails: a resume looks at the folders."""
    draft = link.with_name(f".tmp-link-{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        try:
            draft.symlink_to(target)
        except OSError:  # a file system without links: FAT, many shares
            draft.write_text(target, encoding="utf-8")
        if link.is_dir() and not link.is_symlink():  # what a copy of the run made of the link
            link.replace(link.with_name(f"copy-of-{link.name}-{os.getpid()}"))
        draft.replace(link)
    except OSError as error:
        log.warning("%s still names an older checkpoint: %s", link, error)
