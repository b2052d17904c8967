"""The released I-JEPA checkpoint format: a torch file of state dicts. Our names are its names, but for a prefix."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepakit.artifacts.checkpoint import count_blocks, load_state
from jepakit.artifacts.timm_weights import HEADS
from jepakit.artifacts.weight_files import read_weights_file
from jepakit.core.errors import UserError, line_of
from jepakit.core.files import atomic_write
from jepakit.model.jepa import JEPA
from jepakit.model.method import Method
from jepakit.model.vit import is_sincos, require_positions

_State = dict[str, Tensor]
_PARTS = ("encoder", "target_encoder", "predictor")
# the tensors that shapes are read off
NEEDED = (
    ("encoder", "pos_embed"),
    ("encoder", "patch_embed.proj.weight"),
    ("encoder", "blocks.0.mlp.fc1.weight"),
    ("predictor", "predictor_embed.weight"),
)


def jepa_from_released(path: Path, heads: int | None = None) -> JEPA:
    """The released format: a torch file of state dicts `encoder`, `predictor`, `target_encoder` with `module.` prefixes.

    Raises UserError for whatever else a file holds.
    """
    return jepa_of_released(read_weights_file(path), path, heads)


def jepa_of_released(data: Mapping[str, Any], path: Path, heads: int | None) -> JEPA:
    """`jepa_from_released` of what a file was found to hold."""
    if heads is not None and (type(heads) is not int or heads < 1):
        raise UserError(f"heads={heads!r}: give the number of attention heads, a positive whole number, or leave it out")
    parts = _parts(data, path)
    try:
        return _assemble(parts, path, heads)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else line_of(error)
        raise UserError(f"{path} is not a released I-JEPA checkpoint whose weights fit together: {what}") from None


def _assemble(parts: dict[str, _State], path: Path, heads: int | None) -> JEPA:
    encoder, predictor = parts["encoder"], parts["predictor"]
    width, channels, patch, _ = encoder["patch_embed.proj.weight"].shape
    if not width * channels * patch:
        raise UserError(f"{path}: patch_embed.proj.weight is empty: {tuple(encoder['patch_embed.proj.weight'].shape)}")
    if heads is None and width not in HEADS:
        raise UserError(f"{path}: width {width} is none of the standard ones ({', '.join(map(str, HEADS))}): give heads=")
    patches = encoder["pos_embed"].shape[1]
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(f"{path}: {patches} positions are no square grid; the released format holds square ones only")
    try:
        method = _method(encoder, predictor, patch, width, heads or HEADS[width], side)
    except ValueError as error:  # pydantic's too
        raise UserError(f"{path}: {line_of(error)}") from None
    jepa = JEPA(method, (side, side), channels)
    for part in _PARTS:
        module, own = getattr(jepa, part), {n: v for n, v in parts[part].items() if not n.endswith("pos_embed")}
        stored = parts[part].get("predictor_pos_embed" if part == "predictor" else "pos_embed")
        if part != "predictor" and method.encoder.learned_positions and stored is not None:
            own["positions"] = stored.reshape(module.positions.shape)
        else:
            require_positions(module.positions, stored, jepa.grid, f"{path}: {part}")
        load_state(module, own, f"{path}: {part}")
    return jepa


def _method(encoder: _State, predictor: _State, patch: int, width: int, heads: int, side: int) -> Method:
    """A method whose shapes are those of the weights."""
    return Method.model_validate(
        {
            "masking": {"kind": "multi_block", "compat": "released"},
            "encoder": {
                "patch_size": patch,
                "width": width,
                "depth": count_blocks(encoder, "blocks"),
                "heads": heads,
                "mlp_ratio": encoder["blocks.0.mlp.fc1.weight"].shape[0] / width,
                "learned_positions": not is_sincos(encoder["pos_embed"].reshape(-1, width), (side, side)),
            },
            "predictor": {
                "depth": count_blocks(predictor, "predictor_blocks"),
                "width": predictor["predictor_embed.weight"].shape[0],
            },
        }
    )


def save_released(jepa: JEPA, path: Path) -> None:
    """Write encoder, target encoder and predictor in the released format. Raises UserError for a grid that is no square."""
    if jepa.grid[0] != jepa.grid[1]:
        raise UserError(f"the released format holds square grids only, not {jepa.grid[0]}x{jepa.grid[1]}")
    parts: dict[str, _State] = {}
    for part in _PARTS:
        module = getattr(jepa, part)
        position = "predictor_pos_embed" if part == "predictor" else "pos_embed"
        state = {position: module.positions[None], **{n: v for n, v in module.state_dict().items() if n != "positions"}}
        parts[part] = {f"module.{name}": value.detach().cpu().clone() for name, value in state.items()}
    with atomic_write(path) as draft:
        torch.save(parts, draft)


def holds_released(data: Mapping[str, Any]) -> bool:
    """Whether a file's content is encoder, target encoder and predictor, as the released code saves them."""
    return all(isinstance(data.get(part), dict) for part in _PARTS)


def _parts(data: Mapping[str, Any], path: Path) -> dict[str, _State]:
    """The three parts without prefixes. Raises UserError where one is missing, or what shapes are read off."""
    if not holds_released(data):
        raise UserError(f"{path} is not a released I-JEPA checkpoint: it has no {', '.join(_PARTS)}")
    parts = {part: {str(n).removeprefix("module."): v for n, v in data[part].items()} for part in _PARTS}
    for part, name in NEEDED:
        if not isinstance(parts[part].get(name), Tensor):
            raise UserError(f"{path} is not a released I-JEPA checkpoint: {part}.{name} is missing")
    return parts
