"""Single files of weights, torch's or safetensors', read so that nothing in them runs; and the encoders that lie in one."""

import math
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.core.files import load_json
from jepakit.model.images import ImageSettings
from jepakit.model.method import Which

State = dict[str, Tensor]
PATCHES = "patch_embed.proj.weight"  # timm's name, by which an encoder is known
TRANSFORMERS = "embeddings.patch_embeddings.projection.weight"
_AVERAGED = {"target", "teacher", "ema", "momentum"}  # words in the names of an averaged encoder
_DEEPEST = 6  # mappings in mappings


def read_weights_file(path: Path) -> dict[str, Any]:
    """What a .safetensors, or a torch file of tensors and plain values, holds. Raises UserError; runs no code of the file."""
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {str(error)[:200]}") from None
    try:
        # MAE and DINO keep their settings in a Namespace: a bag of values, no code. Torch warns of what is refused below
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(action="ignore"):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever bytes a file holds, and whatever they provoke in the reader
        raise UserError(f"{path} is refused: it is no torch file of weights alone (code in a file is never run)") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, no weights by name")
    return data


def encoders_in(data: Mapping[str, Any], path: Path) -> tuple[dict[Which, State], list[str]]:
    """The ViTs in a file's nested mappings, in timm's names, whatever stands before these; and names of all other tensors.

    Of two, the averaged one (teacher, target, ema, momentum) is the target encoder. Raises UserError where there is none, or
    where it is not plain which is which.
    """
    named = dict(_flat(data))
    prefixes = [name.removesuffix(PATCHES) for name in named if name == PATCHES or name.endswith("." + PATCHES)]
    if not prefixes:
        some = ", ".join([*named][:5]) or "nothing"
        if any(name.endswith(TRANSFORMERS) for name in named):
            raise UserError(f"{path} has transformers' names: give the folder, in which config.json lies beside it")
        raise UserError(f"{path} holds no ViT in timm's names: no {PATCHES} among its {len(named)} tensors ({some}, ...)")
    averaged = [prefix for prefix in prefixes if _AVERAGED & {*re.split(r"[._]", prefix)}]
    trained = [prefix for prefix in prefixes if prefix not in averaged]
    if len(averaged) > 1 or len(trained) > 1:
        raise UserError(f"{path} holds {len(prefixes)} encoders ({', '.join(prefixes)}): save the one that is meant alone")
    chosen: dict[Which, str] = {}
    if averaged:
        chosen["target_encoder"] = averaged[0]
    if trained:
        chosen["encoder" if averaged else "target_encoder"] = trained[0]  # an only one is the one to use
    states: dict[Which, State] = {which: {} for which in chosen}
    others = []
    for name, value in named.items():
        # the longest prefix that fits, as '' fits all
        owner = max((w for w, p in chosen.items() if name.startswith(p)), key=lambda w: len(chosen[w]), default=None)
        if owner is None:
            others.append(name)
        else:
            states[owner][name.removeprefix(chosen[owner])] = value
    return states, others


def _flat(data: Mapping[Any, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested mappings by dotted name."""
    for key, value in data.items():
        if isinstance(value, Tensor):
            yield f"{before}{key}", value
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flat(value, f"{before}{key}.", depth + 1)


def left_out_note(names: Sequence[str]) -> list[str]:
    """A sentence that names the first five tensors that were not taken; none where there are none."""
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return [f"left out, as no part of our encoder: {', '.join(names[:5])}{more}"] if names else []


def images_of(path: Path, size: tuple[int, int], channels: int) -> tuple[ImageSettings, str]:
    """Mean and deviation that a timm config.json beside the weights names, else the usual ones; and a warning, or ''."""
    about: dict[str, Any] = {"size": size, "channels": channels, "depth": "uint8"}
    beside = path.with_name("config.json")
    try:
        said = load_json(beside) if beside.is_file() else {}
        said = said.get("pretrained_cfg", {})
        values = {name: [float(x) for x in said[name]] for name in ("mean", "std") if name in said}
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"{beside} is no config.json of timm's: mend it, or move the weights elsewhere") from None
    numbers = all(len(v) == channels and all(map(math.isfinite, v)) for v in values.values())
    if len(values) == 2 and numbers and min(values["std"]) > 0:
        return ImageSettings.model_validate({**about, **values}), ""
    usual = ImageSettings.model_validate(about)
    of = "ImageNet's, " if channels == 3 else ""
    return usual, f"the file does not say how images were normalised: taken are mean and deviation {of}{usual.mean}, {usual.std}"
