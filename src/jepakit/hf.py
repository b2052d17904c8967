"""The layout of transformers' I-JEPA models on disk, written and read without transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepakit.checkpoint import load_state
from jepakit.conditioning import EncoderPositions
from jepakit.data.crops import Images
from jepakit.encoder import Encoder
from jepakit.errors import UserError, line_of
from jepakit.files import save_json, whole
from jepakit.method import Which
from jepakit.model import JEPA
from jepakit.vit import NORM_EPS, ViT, ViTConfig, require_positions

State = dict[str, Tensor]

# transformers' names on disk (model_type "ijepa"), ours first
_HF = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
WHY_NOT_HF = (
    "EC-IJEPA appends conditioning tokens to the patch tokens; transformers' IJepaModel has no place for them, so these "
    "weights do not load there. jepakit.load reads this folder."
)


def to_hf(vit: ViT) -> State:
    """Our encoder's state in transformers' names, attention's qkv apart."""
    state: State = {"embeddings.position_embeddings": vit.positions[None]}
    for name, value in vit.state_dict().items():
        if name.startswith("patch_embed.proj."):
            state[f"embeddings.patch_embeddings.projection.{name.rpartition('.')[2]}"] = value
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


def from_hf(state: State) -> State:
    """The inverse of `to_hf`, positions left out."""
    ours: State = {}
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
    return ours


def save_model(jepa: JEPA, images: Images, folder: Path, which: Which | None = None) -> None:
    """Write the encoder for use: transformers' I-JEPA layout where the method fits it, renamed into place file by file.

    `which` is the method's by default (`Method.which`).
    """
    which = which or jepa.method.which
    vit: ViT = getattr(jepa, which)
    shape, side = vit.config, images.height_width
    conditioning = jepa.method.conditioning
    fits = conditioning is None or not conditioning.encoder
    config: dict[str, Any] = {
        **({"architectures": ["IJepaModel"], "model_type": "ijepa"} if fits else {"why_not_transformers": WHY_NOT_HF}),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": round(shape.width * shape.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "image_size": side[0] if side[0] == side[1] else list(side),
        "patch_size": shape.patch_size,
        "num_channels": vit.channels,
        "qkv_bias": True,
        "jepakit": {
            "which": which,
            "white": images.white,
            "conditioning": conditioning.model_dump(mode="json") if conditioning and not fits else None,
        },
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": dict(zip(("height", "width"), side, strict=True)),
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,  # of 8 bits; deeper ones are divided by images.white
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "model.safetensors") as draft:
        save_file(to_hf(vit), draft, {"format": "pt"})
    save_json(folder / "config.json", config)
    save_json(folder / "preprocessor_config.json", processor)


def load_hf(folder: Path, which: Which | None) -> Encoder:
    """An encoder from a folder in transformers' I-JEPA layout: ours, or the hub's. Raises UserError if it holds the other one."""
    try:
        config = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
        side = config["image_size"]
        size = (side, side) if isinstance(side, int) else tuple(side)
        shape = ViTConfig(
            patch_size=config["patch_size"],
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        )
        own = config.get("jepakit", {})
        conditioning, held = own.get("conditioning"), own.get("which", which)
        channels = config.get("num_channels", 3)
        state = {name.removeprefix("ijepa."): value for name, value in state.items()}
        ours, positions = from_hf(state), state.get("embeddings.position_embeddings")
        images = Images(size=size, channels=channels, white=own.get("white"), **_processor(folder))
        told = EncoderPositions.model_validate(conditioning) if conditioning else None
    except (OSError, KeyError, TypeError, ValueError, StopIteration, SafetensorError) as error:
        raise UserError(f"{folder} holds no encoder in transformers' I-JEPA layout: {line_of(error)}") from None
    if which and held != which:
        raise UserError(f"{folder} holds the {held}, not the {which}: load the run itself")
    vit = ViT(shape, (size[0] // shape.patch_size, size[1] // shape.patch_size), channels)
    require_positions(vit.positions, positions, str(folder))
    load_state(vit, ours, str(folder))
    return Encoder(vit, images, told, held or "target_encoder").requires_grad_(False).eval()


def _processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return {"mean": tuple(values["image_mean"]), "std": tuple(values["image_std"])}
