"""Weights in and out: our runs and checkpoints, the released I-JEPA format, and transformers' I-JEPA layout.

Our names are the released ones, so that format differs by a prefix and by stored positions only.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepakit import checkpoint
from jepakit.conditioning import EncoderPositions
from jepakit.config import Config, read_yaml, resolve
from jepakit.data.crops import Images
from jepakit.encoder import Encoder
from jepakit.errors import UserError
from jepakit.method import Method
from jepakit.model import JEPA
from jepakit.vit import NORM_EPS, SIZES, ViT, ViTConfig

State = dict[str, Tensor]
Which = Literal["target_encoder", "encoder"]
HEADS = {width: heads for width, _, heads, _ in SIZES.values()}
PARTS = ("encoder", "target_encoder", "predictor")


def jepa_of(config: Config) -> JEPA:
    """A fresh model; its first weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return JEPA(config, config.grid, config.images.channels)


def jepa_from_checkpoint(path: Path, heads: int | None = None) -> JEPA:
    """See `JEPA.from_checkpoint`."""
    if path.is_file():
        return jepa_from_released(path, heads)
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give a run, a checkpoint folder or a released .pth.tar")
    if (path / "config.yaml").is_file():
        config = resolve(read_yaml(path / "config.yaml"), where=str(path / "config.yaml"))
        found = checkpoint.load_newest(path / "checkpoints")
    else:
        found = checkpoint.load(path)
        config = resolve(found.state["config"], where=str(path))
    jepa = jepa_of(config)
    jepa.load_state_dict(found.tensors["model"])
    return jepa


def jepa_from_released(path: Path, heads: int | None = None) -> JEPA:
    """The released format: a torch file of state dicts `encoder`, `predictor`, `target_encoder` with `module.` prefixes."""
    parts = _read_torch(path)
    encoder, predictor = parts["encoder"], parts["predictor"]
    width, channels, patch, _ = encoder["patch_embed.proj.weight"].shape
    if heads is None and width not in HEADS:
        raise UserError(f"{path}: width {width} is none of the standard ones ({', '.join(map(str, HEADS))}): give heads=")
    side = round(encoder["pos_embed"].shape[1] ** 0.5)
    blocks = _count(encoder, "blocks")
    try:
        method = Method.model_validate(
            {
                "masking": {"kind": "multi_block", "compat": "released"},
                "encoder": {
                    "patch_size": patch,
                    "width": width,
                    "depth": blocks,
                    "heads": heads or HEADS[width],
                    "mlp_ratio": encoder["blocks.0.mlp.fc1.weight"].shape[0] / width,
                },
                "predictor": {
                    "depth": _count(predictor, "predictor_blocks"),
                    "width": predictor["predictor_embed.weight"].shape[0],
                },
            }
        )
    except ValidationError as error:
        raise UserError(f"{path}: {_line(error)}") from None
    jepa = JEPA(method, (side, side), channels)
    for part in PARTS:
        own = {name: value for name, value in parts[part].items() if not name.endswith("pos_embed")}
        _load(getattr(jepa, part), own, f"{path}: {part}")
    return jepa


def save_released(jepa: JEPA, path: Path) -> None:
    """Write encoder, target encoder and predictor in the released format."""
    parts: dict[str, State] = {}
    for part in PARTS:
        module = getattr(jepa, part)
        position = "predictor_pos_embed" if part == "predictor" else "pos_embed"
        state = {position: module.positions[None], **module.state_dict()}
        parts[part] = {f"module.{name}": value.detach().cpu().clone() for name, value in state.items()}
    draft = path.with_name(path.name + ".tmp")
    torch.save(parts, draft)
    draft.replace(path)


def _read_torch(path: Path) -> dict[str, State]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (
            "it holds code, not only weights"
            if "nsupported" in str(error) or "weights_only" in str(error)
            else "it is no torch file"
        )
        raise UserError(f"{path} is refused: {reason}") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(part), dict) for part in PARTS):
        raise UserError(f"{path} is not a released I-JEPA checkpoint: it has no {', '.join(PARTS)}")
    try:
        return {part: {str(n).removeprefix("module."): v for n, v in data[part].items()} for part in PARTS} | _shapes(data)
    except KeyError as error:
        raise UserError(f"{path} is not a released I-JEPA checkpoint: {error} is missing") from None


def _shapes(data: dict[str, Any]) -> dict[str, State]:
    """Nothing; raises KeyError unless the tensors that shapes are read off are there."""
    for part, names in {
        "encoder": ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"),
        "predictor": ("predictor_embed.weight",),
    }.items():
        for name in names:
            if not any(isinstance(data[part].get(prefix + name), Tensor) for prefix in ("", "module.")):
                raise KeyError(f"{part}.{name}")
    return {}


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return message.removeprefix("Value error, ").split("\n")[0]


def _count(state: State, prefix: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(prefix + "."))


def _load(module: torch.nn.Module, state: State, where: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{where}: weights do not fit: {str(error).splitlines()[1].strip()}") from None


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


def save_model(jepa: JEPA, images: Images, folder: Path, which: Which = "target_encoder") -> None:
    """Write the encoder for use: transformers' I-JEPA layout where the method fits it, renamed into place file by file."""
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
            "conditioning": conditioning.model_dump(mode="json") if conditioning and not fits else None,
        },
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": dict(zip(("height", "width"), side, strict=True)),
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", lambda path: save_file(to_hf(vit), path, {"format": "pt"}))
    _replace(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2)))
    _replace(folder / "preprocessor_config.json", lambda path: path.write_text(json.dumps(processor, indent=2)))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    draft = path.with_name(".tmp-" + path.name)
    write(draft)
    draft.replace(path)


def load(path: str | Path, which: Which = "target_encoder", heads: int | None = None) -> Encoder:
    """An encoder to use, in eval mode, from a run, a checkpoint, a transformers folder, a released .pth.tar or a hub id.

    The target encoder by default. Raises UserError where there is none to be found, or what is there is not to be trusted.
    """
    place = Path(path).expanduser()
    if place.is_dir() and (place / "config.json").is_file():
        return load_hf(place)
    if not place.exists():
        return load_hf(_from_hub(str(path)))
    jepa = jepa_from_checkpoint(place, heads)
    config = jepa.method
    patch = config.encoder.patch_size
    images = config.images if isinstance(config, Config) else Images(size=(jepa.grid[0] * patch, jepa.grid[1] * patch))
    conditioning = config.conditioning if config.conditioning and config.conditioning.encoder else None
    return Encoder(getattr(jepa, which), images, conditioning).requires_grad_(False).eval()


def load_hf(folder: Path) -> Encoder:
    """An encoder from a folder in transformers' I-JEPA layout: ours, or the hub's."""
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
        conditioning = config.get("jepakit", {}).get("conditioning")
        channels = config.get("num_channels", 3)
        ours = from_hf({name.removeprefix("ijepa."): value for name, value in state.items()})
        images = Images(size=size, **_processor(folder))
        told = EncoderPositions.model_validate(conditioning) if conditioning else None
    except (OSError, KeyError, TypeError, ValueError, StopIteration, SafetensorError) as error:
        raise UserError(f"{folder} holds no encoder in transformers' I-JEPA layout: {_line(error)}") from None
    vit = ViT(shape, (size[0] // shape.patch_size, size[1] // shape.patch_size), channels)
    _load(vit, ours, str(folder))
    return Encoder(vit, images, told).requires_grad_(False).eval()


def _processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return {"mean": tuple(values["image_mean"]), "std": tuple(values["image_std"])}


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except ImportError:
        raise UserError(f"no such path: {name}; if it is a hub id, pip install huggingface_hub") from None
    except Exception as error:  # the hub's errors are many: offline, no such repository, not allowed
        raise UserError(f"no such path: {name}, and the hub gave none: {str(error).splitlines()[0][:150]}") from None
