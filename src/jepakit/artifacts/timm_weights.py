"""Foreign names to ours: plain ViTs of timm, DINO, MAE and the released I-JEPA code. What is left out or folded is said."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from jepakit.artifacts.checkpoint import count_blocks, load_state
from jepakit.artifacts.weight_files import PATCHES, State
from jepakit.core.errors import UserError, line_of
from jepakit.model.vit import VIT_SIZES, ViT, ViTConfig, is_sincos

HEADS = {width: heads for width, _, heads, _ in VIT_SIZES.values()}
_TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens", "storage_tokens")  # that stand before the patches'
_NO_PART = re.compile(r"(mask_token$|(head|fc|pre_logits|decoder|dino_|ibot_|proj|pred|classifier|attn_pool))")
# What our blocks do not have, by the names that tell of it
_ELSEWHERE = (
    (r"\.(q|k)_(norm|ln)\.", "queries and keys normalised (qk-norm)"),
    (r"rope|rotary|freqs_cis", "rotary positions (RoPE)"),
    (r"\.(w12|w1|w2|w3|fc1_g|fc1_x)\.", "a gated MLP (SwiGLU)"),
    (r"blocks\.\d+\.((attns?|ffns?|mlps)[._]\d|in_proj|mlp_out_proj|(norm|ls)[12]_\d)", "parallel blocks"),
    (r"rel_pos|relative_position", "relative positions"),
    (r"norm_pre|pre_norm|ln_pre", "a norm before its blocks"),
    (r"patch_embed\.(backbone|proj\.\d|norm|conv)", "another patch embedding"),
    (r"blocks\.\d+\.(attn|mlp)\.norm\.", "norms inside attention or MLP"),
)


@dataclass(frozen=True)
class Foreign:
    """An encoder made elsewhere, what was done to fit it (sentences), and the names that were left out."""

    vit: ViT
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def vit_of(state: State, heads: int | None, where: str, give_heads: str) -> Foreign:
    """A ViT of a state dict in timm's names. heads: for a width that is none of the standard ones.

    Learnt positions are held as weights, those of class token and registers left out. Raises UserError, in one sentence, for
    an architecture that ours is not, for missing names, and for shapes that do not fit each other.
    """
    try:
        return _vit_of(dict(state), heads, where, give_heads)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise UserError(f"{where} holds no ViT whose weights fit together: {line_of(error)}") from None


def _vit_of(state: State, heads: int | None, where: str, give_heads: str) -> Foreign:
    require_architecture(state, where)
    tokens = [name for name in _TOKENS if name in state]
    before = {0, *(state[name].shape[-2] for name in tokens), sum(state[name].shape[-2] for name in tokens)}
    left_out = [name for name in state if name in tokens or _NO_PART.match(name)]
    notes = [f"without its {', '.join(tokens)}: our encoder has patch tokens alone, so its features are others"] if tokens else []
    for name in left_out:
        del state[name]
    positions, grid = grid_positions(state.pop("pos_embed", None), before, where)
    notes += fold_layer_scale(state)
    width, channels, patch, patch_width = state[PATCHES].shape
    if patch != patch_width or not width * channels * patch:
        raise UserError(f"{where}: {PATCHES} is {tuple(state[PATCHES].shape)}: square patches only")
    config = shape_of(state, patch, heads or HEADS.get(width), where, give_heads)
    learnt = not is_sincos(positions, grid)
    vit = ViT(config.model_copy(update={"learned_positions": learnt}), grid, channels)
    if learnt:
        notes.append("its positions are learnt ones")
        state["positions"] = positions
    notes += _zero_biases(state, vit)
    require_names(state, vit, where)
    load_state(vit, state, where)
    return Foreign(vit, tuple(notes), tuple(left_out))


def require_architecture(state: State, where: str) -> None:
    """Raises UserError, naming what it is, for an architecture that our ViT is not."""
    for pattern, what in _ELSEWHERE:
        found = next((name for name in state if re.search(pattern, name) and not _NO_PART.match(name)), None)
        if found:
            raise UserError(f"{where} holds another architecture: it has {what} ({found}), and our ViT has not")
    fc1, fc2 = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if fc1 is not None and fc2 is not None and fc1.shape[0] != fc2.shape[1]:
        raise UserError(f"{where} holds another architecture: it has a gated MLP (SwiGLU), and our ViT has not")


def grid_positions(stored: Tensor | None, before: set[int], where: str) -> tuple[Tensor, tuple[int, int]]:
    """The patches' positions (N, D) of stored ones (1, k + N, D) or (N, D), and their square grid; k is one of `before`."""
    if stored is None:
        raise UserError(f"{where} holds another architecture: it has no pos_embed (relative or rotary positions?)")
    rows = stored.reshape(-1, stored.shape[-1])
    for k in sorted(before):
        side = math.isqrt(max(0, len(rows) - k))
        if side and side**2 == len(rows) - k:
            return rows[k:], (side, side)
    raise UserError(f"{where}: its {len(rows)} positions are no square grid of patches; only such are read")


def fold_layer_scale(state: State) -> list[str]:
    """LayerScale's factors multiplied into the maps before them, which is the same function; says so."""
    gammas = {
        name: f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
        for name in state
        if (match := re.fullmatch(r"(blocks\.\d+)\.(?:ls|gamma_)([12])(?:\.gamma)?", name))
    }
    for name, before in gammas.items():
        if not state[name].is_floating_point():
            raise ValueError(f"weights must be real floats, and {name} is not")
        gamma = state.pop(name).double()
        for leaf, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            own = state.get(f"{before}.{leaf}")
            if own is not None:
                state[f"{before}.{leaf}"] = (own.double() * factor).float()
    return [f"LayerScale's {len(gammas)} factors folded into attn.proj and mlp.fc2"] if gammas else []


def shape_of(state: State, patch: int, heads: int | None, where: str, give_heads: str) -> ViTConfig:
    """The shape of weights in our names. Raises UserError where the number of heads is not known, ValueError for a gap."""
    width = state[PATCHES].shape[0]
    if heads is None:
        raise UserError(f"{where}: width {width} is none of the standard ones ({', '.join(map(str, HEADS))}): {give_heads}")
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in state else 4 * width
    return ViTConfig(patch_size=patch, width=width, depth=count_blocks(state, "blocks"), heads=heads, mlp_ratio=hidden / width)


def require_names(state: State, vit: ViT, where: str) -> None:
    """Raises UserError, with the first five, for names that are missing, and for those that have no place."""
    ours = vit.state_dict()
    for names, what in (
        ([name for name in ours if name not in state], "are missing: the file is not whole, or of another architecture"),
        ([name for name in state if name not in ours], "have no place in our ViT: another architecture"),
    ):
        if names:
            others = f" and {len(names) - 5} others" if len(names) > 5 else ""
            raise UserError(f"{where}: {', '.join(names[:5])}{others} {what}")


def _zero_biases(state: State, vit: ViT) -> list[str]:
    """Zeros for biases that weights were trained without, which is the same function; all of one kind, else they are missing."""
    notes = []
    for kind in ("patch_embed.proj.bias", "attn.qkv.bias"):
        names = [name for name in vit.state_dict() if name.endswith(kind)]
        if not any(name in state for name in names):
            state.update({name: torch.zeros_like(vit.state_dict()[name]) for name in names})
            notes.append(f"{kind} is zero: it was trained without")
    return notes
