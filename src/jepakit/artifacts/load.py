"""Weights in: a run, a checkpoint, the released format or a transformers folder, to a model or to an encoder to use."""

import os
import re
from pathlib import Path
from typing import get_args

import torch

from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import load_state
from jepakit.artifacts.hf import load_hf
from jepakit.artifacts.released import jepa_from_released
from jepakit.config.config import Config, resolve
from jepakit.core.errors import UserError, nearest
from jepakit.core.files import local
from jepakit.model.encoder import Encoder
from jepakit.model.images import Images
from jepakit.model.jepa import JEPA
from jepakit.model.method import Which

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


def build_jepa(config: Config) -> JEPA:
    """A fresh model; its first weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return JEPA(config, config.grid, config.images.channels)


def jepa_from_checkpoint(path: str | os.PathLike[str], heads: int | None = None) -> JEPA:
    """See `JEPA.from_checkpoint`."""
    path = checkpoint.pointed(_place(path))
    if path.is_file():
        return jepa_from_released(path, heads)
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give a run, a checkpoint folder or a released .pth.tar")
    is_run = (path / "config.yaml").is_file()
    if not is_run and (steps := checkpoint.steps(path)):
        run = f"the run, {path.parent}, or " if (path.parent / "config.yaml").is_file() else ""
        raise UserError(f"{path} holds a run's checkpoints: give {run}one of them, {path / checkpoint.step_name(steps[0])}")
    only = ("model",)  # the optimiser's moments are twice as large
    found = checkpoint.load_newest(path / "checkpoints", only, finite=True) if is_run else checkpoint.load_checkpoint(path, only)
    jepa = build_jepa(resolve(found.state["config"], where=str(path)))  # verified, unlike config.yaml
    load_state(jepa, found.tensors["model"], str(path))
    return jepa


def _place(path: str | os.PathLike[str]) -> Path:
    """The path of the weights. Raises UserError for what is no path."""
    place = local(path, "the encoder")
    if not os.fspath(path):
        raise UserError("the encoder: the path is empty: give a run, a checkpoint folder or a released .pth.tar")
    return place


def _from_checkpoint(cls: type[JEPA], path: str | os.PathLike[str], heads: int | None = None) -> JEPA:
    """Encoder, target encoder and predictor of a run, a checkpoint folder, or a released `.pth.tar` (I-JEPA's format).

    Shapes are read off the weights. `heads` is known for the standard widths, else it must be given.
    Raises UserError where the path holds no such checkpoint, or one that would run code when read.
    """
    return jepa_from_checkpoint(path, heads)


JEPA.from_checkpoint = classmethod(_from_checkpoint)  # type: ignore[assignment]  # the model knows of no files


def load(path: str | os.PathLike[str], which: Which | None = None, heads: int | None = None) -> Encoder:
    """An encoder to use, in eval mode, from a run, a checkpoint, a transformers folder, a released .pth.tar or a hub id.

    `which` is by default the target encoder (with pixels as targets the encoder), or what the transformers folder holds.
    Raises UserError where there is none to be found, or what is there is not to be trusted.
    """
    if which not in (None, *get_args(Which)):
        raise UserError(f"which={which!r}: choose target_encoder (the moving average, 'teacher') or encoder (trained, 'student')")
    place = _place(path)
    if place.is_dir() and (place / "config.json").is_file():
        return load_hf(place, which)
    if not place.exists():
        if not isinstance(path, str) or not HUB_ID.fullmatch(path) or place.parent.is_dir():
            near = nearest(place.name, os.listdir(place.parent)) if place.parent.is_dir() else ""
            raise UserError(f"no such path: {place}{near}")
        return load_hf(_from_hub(path), which)
    jepa = jepa_from_checkpoint(place, heads)
    config = jepa.method
    patch = config.encoder.patch_size
    images = (
        config.images
        if isinstance(config, Config)
        else Images(size=(jepa.grid[0] * patch, jepa.grid[1] * patch), channels=jepa.encoder.channels, depth="uint8")
    )
    which = which or config.which
    return Encoder(getattr(jepa, which), images, config.conditioning, which).requires_grad_(False).eval()


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except ImportError:
        raise UserError(f"no such path: {name}; if it is a hub id, pip install huggingface_hub") from None
    except Exception as error:  # the hub's errors are many: offline, no such repository, not allowed
        raise UserError(f"no such path: {name}, and the hub gave none: {str(error).splitlines()[0][:150]}") from None
