"""The layout of transformers' I-JEPA models on disk, written and read without transformers; and that of its ViTModel, read."""

import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepakit.artifacts.checkpoint import count_blocks, load_state
from jepakit.artifacts.processor import processor, read_image_settings
from jepakit.artifacts.weight_files import left_out_note
from jepakit.core.errors import UserError, line_of, nearest
from jepakit.core.files import atomic_write, load_json, save_json
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.method import Which
from jepakit.model.vit import Activation, ViT, ViTConfig, is_sincos

_State = dict[str, Tensor]
log = logging.getLogger("jepakit")
WITH_CLASS_TOKEN = ("vit", "vit_mae")
_IGNORED = ("pooler.", "classifier.", "embeddings.mask_token")  # of a whole model: no part of its patch tokens

# transformers' names on disk (model_type "ijepa"), ours first
_HF = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_tanh_gelu = partial(F.gelu, approximate="tanh")
# transformers' names of functions
ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(("gelu", "gelu_python"), F.gelu),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), _tanh_gelu),
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
# of transformers' IJepaConfig, for what a file leaves out
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
}
WHY_NOT_HF = (
    "EC-IJEPA appends conditioning tokens to the patch tokens; transformers' IJepaModel has no place for them, so these "
    "weights do not load there. jepakit.load reads this folder."
)


def to_hf(vit: ViT) -> _State:
    """Our encoder's state in transformers' names, attention's qkv apart."""
    state: _State = {"embeddings.position_embeddings": vit.positions[None]}
    for name, value in vit.state_dict().items():
        if name.startswith("patch_embed.proj."):
            state[f"embeddings.patch_embeddings.projection.{name.rpartition('.')[2]}"] = value
        elif name == "positions":
            continue
        elif name.startswith("norm."):
            state[f"layernorm.{name.rpartition('.')[2]}"] = value
        else:
            _, layer, rest = name.split(".", 2)
            part, _, leaf = rest.rpartition(".")
            prefix = f"encoder.layer.{layer}."
            if part == "attn.qkv":
                for key, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    state[f"{prefix}attention.attention.{key}.{leaf}"] = chunk
            else:
                state[f"{prefix}{_HF[part]}.{leaf}"] = value
    return {name: value.detach().cpu().float().contiguous() for name, value in state.items()}


def from_hf(state: _State) -> _State:
    """The inverse of `to_hf`, positions left out. Raises ValueError for weights of which nothing is known."""
    ours: _State = {}
    for name, value in state.items():
        leaf = name.rpartition(".")[2]
        if name.startswith("embeddings.patch_embeddings.projection."):
            ours[f"patch_embed.proj.{leaf}"] = value
        elif name.startswith("layernorm."):
            ours[f"norm.{leaf}"] = value
        elif name.startswith("encoder.layer."):
            _, _, layer, rest = name.split(".", 3)
            if rest.startswith("attention.attention."):
                if rest == f"attention.attention.query.{leaf}":
                    qkv = [state[name.replace("query", key)] for key in ("query", "key", "value")]
                    ours[f"blocks.{layer}.attn.qkv.{leaf}"] = torch.cat(qkv)
            else:
                mine = next(k for k, v in _HF.items() if rest == f"{v}.{leaf}")
                ours[f"blocks.{layer}.{mine}.{leaf}"] = value
        elif not name.startswith(("embeddings.position_embeddings", *_IGNORED)):
            raise ValueError(f"it holds {name}, for which I-JEPA's encoder has no place")
    return ours


def save_model(jepa: JEPA, images: ImageSettings, folder: Path, which: Which | None = None) -> None:
    """Write the encoder for use, as `save_encoder`; `which` is the method's by default (`Method.which`)."""
    name = which or jepa.method.which
    save_encoder(Encoder(getattr(jepa, name), images, jepa.method.conditioning, name), folder)


def save_encoder(
    encoder: Encoder,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    custom: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None,
) -> None:
    """Write an encoder in transformers' I-JEPA layout where that can hold it, renamed into place file by file; or, with
    `custom`, the entries of config.json and the weights by name of a model with code of its own."""
    vit, images, training, side = encoder.vit, encoder.images, encoder.training_conditioning, encoder.images.height_width
    fits = {"architectures": ["IJepaModel"], "model_type": "ijepa"}
    kind = fits if encoder.conditioning is None else {"why_not_transformers": WHY_NOT_HF}
    config: dict[str, Any] = {
        **(kind if custom is None else custom[0]),
        "hidden_size": vit.config.width,
        "num_hidden_layers": vit.config.depth,
        "num_attention_heads": vit.config.heads,
        "intermediate_size": round(vit.config.width * vit.config.mlp_ratio),
        "hidden_act": next(name for name, function in ACTIVATIONS.items() if function is vit.activation),
        "layer_norm_eps": vit.eps,
        "image_size": side[0] if side[0] == side[1] else list(side),
        "patch_size": vit.config.patch_size,
        "num_channels": vit.channels,
        "qkv_bias": True,
        **({} if dtype is torch.float32 else {"torch_dtype": str(dtype).removeprefix("torch.")}),
        "jepakit": {
            "which": encoder.which,
            "images": images.model_dump(mode="json"),
            "conditioning": training.model_dump(mode="json") if training else None,
        },
    }
    state = to_hf(vit) if custom is None else custom[1]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as draft:
        save_file({name: value.to(dtype) for name, value in state.items()}, draft, {"format": "pt"})
    save_json(folder / "config.json", config)
    save_json(folder / "preprocessor_config.json", processor(images))


def load_hf(folder: Path, which: Which | None) -> Encoder:
    """An encoder from a folder in transformers' layout: see `read_hf`, whose notes are logged."""
    encoder, notes, _ = read_hf(folder, which)
    for note in notes:
        log.warning("%s: %s", folder, note)
    return encoder


def read_hf(folder: Path, which: Which | None) -> tuple[Encoder, list[str], list[str]]:
    """An encoder from a folder in transformers' layout: ours, I-JEPA's or plain ViTs' of the hub; sentences on what is not as
    it was there; and the names that were left out.

    Raises UserError if it holds the other encoder, or a model of another kind.
    """
    try:
        config = load_json(folder / "config.json")
        own = config.get("jepakit", {})
        if not own:
            _require_vit(config, folder)
        config = {**DEFAULTS, **config}
        conditioning, held = own.get("conditioning"), own.get("which", which)
        if held not in (None, *get_args(Which)):
            raise ValueError(f"config.json: jepakit.which is {held!r}, neither {' nor '.join(get_args(Which))}")
        if which and held != which:
            raise UserError(f"{folder} holds the {held}, not the {which}: load the run itself")
        conditioning_settings = PositionConditioning.model_validate(conditioning) if conditioning else None
        vit, images, notes, left_out = _vit(config, own, folder)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration) as error:
        raise UserError(f"{folder} holds no encoder in transformers' I-JEPA layout: {line_of(error)}") from None
    except (RuntimeError, MemoryError, SafetensorError) as error:
        raise UserError(f"{folder} holds no encoder in transformers' I-JEPA layout: {line_of(error)}") from None
    encoder = Encoder(vit, images, conditioning_settings, held or "target_encoder").requires_grad_(False).eval()
    return encoder, notes + left_out_note(left_out), left_out


def _vit(config: dict[str, Any], own: dict[str, Any], folder: Path) -> tuple[ViT, ImageSettings, list[str], list[str]]:
    """The model with its weights, its image settings, notes and what was left out. Raises UserError, and whatever a malformed
    folder provokes."""
    shape, size = _shape(config)
    state = {name.removeprefix("ijepa.").removeprefix("vit."): value for name, value in _state(folder).items()}
    positions, notes = state.get("embeddings.position_embeddings"), list[str]()
    left_out = [name for name in state if name.startswith(_IGNORED)]
    if not own and config.get("model_type") in WITH_CLASS_TOKEN:
        if "embeddings.cls_token" not in state:
            raise ValueError("it has no embeddings.cls_token, as plain ViTs have")
        left_out += ["embeddings.cls_token", *(name for name in state if name.startswith("decoder."))]
        notes = ["without its class token: our encoder has patch tokens alone, so its features are others"]
        positions = positions if positions is None else positions[:, 1:]
    if own and "encoder.positions" in state:  # exported with code of its own, in our names
        ours = {name.removeprefix("encoder."): value for name, value in state.items() if not name.endswith("conditioning_tokens")}
        positions = ours.pop("positions")
    else:
        ours = from_hf({name: value for name, value in state.items() if name not in left_out})
    if not config["qkv_bias"]:
        ours |= {f"blocks.{layer}.attn.qkv.bias": torch.zeros(3 * shape.width) for layer in range(count_blocks(ours, "blocks"))}
    images = read_image_settings(folder, size, config["num_channels"], own)
    _require_shapes(ours, shape, images.channels, folder)
    grid = (size[0] // shape.patch_size, size[1] // shape.patch_size)
    if positions is not None and positions.numel() != grid[0] * grid[1] * shape.width:
        raise ValueError(f"its weights hold {tuple(positions.shape)} positions, no sin-cos ones of a {grid[0]}x{grid[1]} grid")
    eps = float(config["layer_norm_eps"])
    if not 0 <= eps < math.inf:
        raise ValueError(f"layer_norm_eps must be a number from 0 on, got {config['layer_norm_eps']!r}")
    if positions is not None and not is_sincos(positions.reshape(-1, shape.width), grid):
        shape = shape.model_copy(update={"learned_positions": True})
        ours["positions"] = positions.reshape(-1, shape.width)
        notes += [] if own else ["its positions are learnt ones"]
    vit = ViT(shape, grid, images.channels, eps, _activation(config["hidden_act"], folder))
    load_state(vit, ours, str(folder))
    return vit, images, notes, left_out


def _shape(config: dict[str, Any]) -> tuple[ViTConfig, tuple[int, int]]:
    """The encoder's shape, and the images' height and width. Raises ValueError."""
    side = config["image_size"]
    size = tuple(side) if isinstance(side, list) else (side, side)
    if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ValueError(f"image_size must be a whole number or two, got {side!r}")
    for name in ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
        if type(config[name]) is not int or config[name] < 1:
            raise ValueError(f"{name} must be a positive whole number, got {config[name]!r}")
    if size[0] % config["patch_size"] or size[1] % config["patch_size"]:
        raise ValueError(f"image_size {side} is not a multiple of patch_size {config['patch_size']}")
    shape = ViTConfig(
        patch_size=config["patch_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
    )
    return shape, size


def _require_shapes(ours: _State, shape: ViTConfig, channels: int, folder: Path) -> None:
    """Raises UserError where config.json says another shape than the weights', before a model of that shape is made."""
    p, depth = shape.patch_size, count_blocks(ours, "blocks")
    if depth != shape.depth:
        raise UserError(f"{folder}: weights do not fit: they hold {depth} blocks, and config.json says {shape.depth}")
    expected = {
        "patch_embed.proj.weight": (shape.width, channels, p, p),
        "blocks.0.mlp.fc1.weight": (round(shape.width * shape.mlp_ratio), shape.width),
    }
    for name, size in expected.items():
        if name in ours and tuple(ours[name].shape) != size:
            raise UserError(f"{folder}: weights do not fit: {name} is {tuple(ours[name].shape)}, by config.json {size}")


def _require_vit(config: dict[str, Any], folder: Path) -> None:
    """Raises UserError for a model that is neither I-JEPA's encoder nor a plain ViT."""
    kind = config.get("model_type")
    if kind not in ("ijepa", *WITH_CLASS_TOKEN):
        kinds = ", ".join(("ijepa", *WITH_CLASS_TOKEN))
        raise UserError(f"{folder} holds a model of type {kind!r}: only I-JEPA's encoders and plain ViTs are read ({kinds})")


def _activation(name: Any, folder: Path) -> Activation:
    if name not in ACTIVATIONS:
        raise UserError(f"{folder}: hidden_act {name!r} is not among {', '.join(ACTIVATIONS)}{nearest(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _state(folder: Path) -> _State:
    """All tensors of a folder, of one file or of shards. Raises UserError, OSError, SafetensorError."""
    index, pickles = folder / "model.safetensors.index.json", sorted(folder.glob("pytorch_model*.bin"))
    if not (folder / "model.safetensors").is_file() and index.is_file():
        names = sorted(set(load_json(index)["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise UserError(f"{index} names a file outside the folder")
        return {name: value for shard in names for name, value in load_file(folder / shard).items()}
    if not (folder / "model.safetensors").is_file() and pickles:
        raise UserError(
            f"{folder} holds {pickles[0].name}, a pickle, which is not read, as code could run: "
            f"save it anew with transformers' save_pretrained, which writes model.safetensors"
        )
    return load_file(folder / "model.safetensors")
