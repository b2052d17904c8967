"""Weights in: a run or its step, a checkpoint, released, timm's or transformers' formats, to a model or an encoder to use."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import load_state
from jepakit.artifacts.hf import read_hf
from jepakit.artifacts.released import holds_released, jepa_from_released, jepa_of_released
from jepakit.artifacts.run import Run
from jepakit.artifacts.timm_weights import vit_of
from jepakit.artifacts.weight_files import State, encoders_in, images_of, left_out_note, read_weights_file
from jepakit.config.config import Config, resolve
from jepakit.config.phases import at_step
from jepakit.core.errors import UserError, line_of, nearest
from jepakit.core.files import load_json, user_path
from jepakit.data.transform import EvaluationTransform
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.method import Method, Which, encoder_label
from jepakit.model.predictor import Predictor
from jepakit.model.vit import ViT

log = logging.getLogger("jepakit")
SNAPSHOT = "encoder"  # the one group of tensors of a snapshot; a checkpoint's is the model
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
GIVE = "give a run, RUN@step, a checkpoint folder, a released .pth.tar, a ViT's .pth or .safetensors, or a transformers folder"


@dataclass(frozen=True)
class Weights:
    """What a path holds: encoders (`which` is the one to use), the predictor and method trained with them, and the images.

    notes: what reading changed or left out, in sentences; left_out: names of tensors that were not taken; guessed: a sentence
    where the images' normalisation is not known.
    """

    where: str
    encoders: Mapping[Which, ViT]
    which: Which
    images: ImageSettings
    conditioning: PositionConditioning | None = None
    predictor: Predictor | None = None
    method: Method | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    guessed: str = ""


def build_jepa(config: Config) -> JEPA:
    """A fresh model; its first weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return JEPA(config, config.grid, config.images.channels)


def jepa_from_checkpoint(path: str | os.PathLike[str], heads: int | None = None) -> JEPA:
    """See `JEPA.from_checkpoint`."""
    return jepa_and_step(path, heads)[0]


def jepa_and_step(path: str | os.PathLike[str], heads: int | None = None) -> tuple[JEPA, int | None]:
    """The same, and the step that it is of; None where a file does not say."""
    path = checkpoint.pointed(_place(path))
    if path.is_file():
        return jepa_from_released(path, heads), None
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give a run, a checkpoint folder or a released .pth.tar")
    is_run = (path / "config.yaml").is_file()
    if not is_run and (steps := checkpoint.steps(path)):
        run = f"the run, {path.parent}, or " if (path.parent / "config.yaml").is_file() else ""
        raise UserError(f"{path} holds a run's checkpoints: give {run}one of them, {path / checkpoint.step_name(steps[0])}")
    if checkpoint.tensor_groups(path) == [SNAPSHOT]:
        raise UserError(f"{path} is a snapshot, of one encoder alone: jepakit.load reads it; a predictor has a checkpoint")
    only = ("model",)  # the optimiser's moments are twice as large
    found = checkpoint.load_newest(path / "checkpoints", only, finite=True) if is_run else checkpoint.load_checkpoint(path, only)
    config = resolve(found.state["config"], where=str(path))  # verified, unlike config.yaml
    jepa = build_jepa(at_step(config, int(found.state["step"])))
    load_state(jepa, found.tensors["model"], str(path))
    return jepa, int(found.state["step"])


def _place(path: str | os.PathLike[str]) -> Path:
    """The path of the weights; of RUN@step, that checkpoint's. Raises UserError for what is no path, or an unknown step."""
    place = user_path(path, "the encoder")
    if not os.fspath(path):
        raise UserError("the encoder: the path is empty: give a run, a checkpoint folder or a released .pth.tar")
    run, step = run_and_step(place)
    return place if step is None else Run(run).at_step(step)


def run_and_step(path: Path) -> tuple[Path, int | None]:
    """RUN@step apart; any other path with None. Raises UserError, with the steps that are there, for another step of a run."""
    name, at, step = path.name.rpartition("@")
    run = path.with_name(name) if name else path
    if not at or path.exists() or not (run / "config.yaml").is_file():
        return path, None
    require_kept(Run(run), step)
    return run, int(step)


def require_kept(run: Run, step: str) -> None:
    """Raises UserError, with the steps that are there, unless the run keeps the encoder of this step."""
    there = run.kept_steps()
    if not step.isdecimal() or int(step) not in there:
        some = ", ".join(map(str, there)) or "none"
        raise UserError(
            f"{run.path} has no checkpoint or snapshot of step {step!r}: there are {some} (of checkpoints the newest "
            f"run.keep_checkpoints, of snapshots one every run.keep_every_steps)"
        )


def absolute_weights(path: str) -> str:
    """A path of weights as a run records it, to be found from anywhere; a hub id as it is."""
    run, step = run_and_step(Path(path).expanduser())
    if step is not None:
        return f"{run.resolve()}@{step}"
    return str(run.resolve()) if run.exists() else path


def _from_checkpoint(cls: type[JEPA], path: str | os.PathLike[str], heads: int | None = None) -> JEPA:
    """Encoder, target encoder and predictor of a run, RUN@step, a checkpoint folder, or a released `.pth.tar` (I-JEPA's format).

    Shapes are read off the weights. `heads` is known for the standard widths, else it must be given.
    Raises UserError where the path holds no such checkpoint, or one that would run code when read.
    """
    return jepa_from_checkpoint(path, heads)


JEPA.from_checkpoint = classmethod(_from_checkpoint)  # type: ignore[assignment]  # the model knows of no files
Encoder.transform_for = EvaluationTransform


def load(path: str | os.PathLike[str], which: Which | None = None, heads: int | None = None) -> Encoder:
    """An encoder to use, in eval mode, of whatever holds one: a run or RUN@step, a checkpoint, a transformers folder or hub id,
    a released .pth.tar, or a ViT's state dict in timm's names (.pth, .pt, .safetensors).

    `which` is by default the target encoder (with pixels as targets the encoder), or what the transformers folder holds. What
    a foreign file holds that our encoder does not have, such as a class token, is left out, and the log says so.
    Raises UserError where there is none to be found, or what is there is not to be trusted.
    """
    found = read_weights(path, which, heads)
    for note in (*found.notes, *([found.guessed] if found.guessed else [])):
        log.warning("%s: %s", found.where, note)
    return Encoder(found.encoders[found.which], found.images, found.conditioning, found.which).requires_grad_(False).eval()


def read_weights(
    path: str | os.PathLike[str], which: Which | None = None, heads: int | None = None, give_heads: str = "give heads="
) -> Weights:
    """All that `load` takes, with the predictor where there is one. give_heads: what to do where heads are not known.

    Raises UserError as `load` does.
    """
    if which not in (None, *get_args(Which)):
        raise UserError(f"which={which!r}: choose target_encoder (the moving average, 'teacher') or encoder (trained, 'student')")
    place = checkpoint.pointed(_place(path))
    if not place.exists():
        if not isinstance(path, str) or not HUB_ID.fullmatch(path) or place.parent.is_dir():
            near = nearest(place.name, os.listdir(place.parent)) if place.parent.is_dir() else ""
            raise UserError(f"no such path: {place}{near}")
        place = _from_hub(path)
    if place.is_dir() and (place / "config.json").is_file():
        if not _is_timms(place):
            encoder, notes, left_out = read_hf(place, which)
            more: dict[str, Any] = {"notes": tuple(notes), "left_out": tuple(left_out)}
            vits = {encoder.which: encoder.vit}
            return Weights(str(path), vits, encoder.which, encoder.images, encoder.training_conditioning, **more)
        place = place / "model.safetensors"
    if place.is_file():
        data = read_weights_file(place)
        if holds_released(data):
            return _of_jepa(jepa_of_released(data, place, heads), place, which)
        return _foreign(encoders_in(data, place), place, which, heads, give_heads)
    if not any((place / name).exists() for name in ("config.yaml", "manifest.json")) and not checkpoint.steps(place):
        raise UserError(f"{place} holds no weights: {GIVE}")
    if checkpoint.tensor_groups(place) == [SNAPSHOT]:
        return _of_snapshot(place, which)
    return _of_jepa(jepa_from_checkpoint(place, heads), place, which)


def _of_jepa(jepa: JEPA, place: Path, which: Which | None) -> Weights:
    """A whole model of ours, or of the released code."""
    method, patch = jepa.method, jepa.method.encoder.patch_size
    size = (jepa.grid[0] * patch, jepa.grid[1] * patch)
    images = (
        method.images if isinstance(method, Config) else ImageSettings(size=size, channels=jepa.encoder.channels, depth="uint8")
    )
    both: dict[Which, ViT] = {"encoder": jepa.encoder, "target_encoder": jepa.target_encoder}
    return Weights(str(place), both, which or method.which, images, method.conditioning, jepa.predictor, method)


def _of_snapshot(place: Path, which: Which | None) -> Weights:
    """The one encoder of a snapshot. Raises UserError for the other."""
    found = checkpoint.load_checkpoint(place)
    config = at_step(resolve(found.state["config"], where=str(place)), int(found.state["step"]))
    if which not in (None, config.which):
        raise UserError(f"{place} is a snapshot, of the {encoder_label(config.which)} alone, not also the {encoder_label(which)}")
    vit = build_jepa(config).to_use
    load_state(vit, found.tensors[SNAPSHOT], str(place))
    return Weights(str(place), {config.which: vit}, config.which, config.images, config.conditioning, method=config)


def _foreign(
    given: tuple[dict[Which, State], list[str]], place: Path, which: Which | None, heads: int | None, give_heads: str
) -> Weights:
    """The encoder, or both, of a file in timm's names; given: their states, and names of other tensors."""
    if heads is not None and (type(heads) is not int or heads < 1):
        raise UserError(f"heads={heads!r}: give the number of attention heads, a positive whole number, or leave it out")
    states, others = given
    if which and which not in states and len(states) == 1:
        states = {which: next(iter(states.values()))}  # a file with one encoder does not say which it was
    found = {name: vit_of(state, heads, str(place), give_heads) for name, state in states.items()}
    used: Which = which or ("target_encoder" if "target_encoder" in found else "encoder")
    vit = found[used].vit
    side = vit.grid[0] * vit.config.patch_size
    images, warning = images_of(place, (side, side), vit.channels)
    left_out = tuple(dict.fromkeys([*found[used].left_out, *others]))
    notes = [*found[used].notes, *left_out_note(left_out)]
    if len(found) == 2:
        notes.append(f"it holds two encoders, and the {encoder_label(used)} is taken where one is asked for")
    vits = {name: one.vit for name, one in found.items()}
    return Weights(str(place), vits, used, images, notes=tuple(notes), left_out=left_out, guessed=warning)


def _is_timms(folder: Path) -> bool:
    """Whether a folder's config.json is timm's, beside weights in its names."""
    try:
        config = load_json(folder / "config.json")
    except (OSError, ValueError):
        return False  # whoever reads it says what is wrong
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except ImportError:
        raise UserError(f"no such path: {name}; if it is a hub id, pip install huggingface_hub") from None
    except Exception as error:  # the hub's errors are many: offline, no such repository, not allowed
        raise UserError(f"no such path: {name}, and the hub gave none: {line_of(error)[:150]}") from None
