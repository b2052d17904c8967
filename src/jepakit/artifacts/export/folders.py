"""Exports that are weights for a model of another library: transformers' folder, timm's state dict; written, and run to check.

Each writer gives the function that runs what was written: normalised images (B, C, H, W) -> patch tokens (B, T, D).
"""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from jepakit.artifacts.export.exported_encoder import ExportChoice, conditioning_tokens
from jepakit.artifacts.hf import ACTIVATIONS, read_hf, save_encoder
from jepakit.artifacts.load import read_weights
from jepakit.core.errors import UserError
from jepakit.core.files import save_json
from jepakit.model.encoder import Encoder
from jepakit.model.vit import NORM_EPS

Runs = tuple[str, Callable[[Tensor], Tensor]]  # who runs it, and how
CODE = ("modeling_jepakit.py", "dense.py")
_CANNOT_HOLD = (
    "this encoder was trained with conditioning tokens (EC-IJEPA), for which {} has no place, and without them it is another "
    "function: export it with --format hf --custom-code (a model with code of its own), --format onnx or --format torch"
)
_TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "relu6": "relu6", "silu": "silu", "mish": "mish"}
TIMM_BASE = "vit_base_patch16_224"  # of timm's names, one whose shape may be changed by arguments


def write_hf(encoder: Encoder, choice: ExportChoice, folder: Path) -> list[Runs]:
    """transformers' I-JEPA folder; of a conditioned encoder one with code of its own, if that was asked for.

    Raises UserError where the format cannot hold the encoder, or transformers is needed to check it and is not there.
    """
    if encoder.conditioning is None:
        save_encoder(encoder, folder, choice.dtype)
        return [("jepakit", read_hf(folder, None)[0]), *_transformers(folder, choice.dtype, trusted=False)]
    if not choice.custom_code:
        raise UserError(_CANNOT_HOLD.format("transformers' IJepaModel"))
    if importlib.util.find_spec("transformers") is None:
        raise UserError("--custom-code is checked with transformers before it is done: pip install transformers")
    extra, here = conditioning_tokens(encoder), Path(__file__).parent
    weights = {**encoder.vit.state_dict(), "positions": encoder.vit.positions, "conditioning_tokens": extra}
    kind = {
        "architectures": ["ConditionedModel"],
        "model_type": "jepakit_conditioned",
        "auto_map": {"AutoConfig": f"{CODE[0][:-3]}.ConditionedConfig", "AutoModel": f"{CODE[0][:-3]}.ConditionedModel"},
        "num_patches": len(encoder.vit.positions),
        "num_conditioning_tokens": len(extra),
    }
    save_encoder(encoder, folder, choice.dtype, (kind, {f"encoder.{n}": v.detach().contiguous() for n, v in weights.items()}))
    for name in CODE:
        shutil.copyfile(here / name, folder / name)
    return [("jepakit", read_hf(folder, None)[0]), *_transformers(folder, choice.dtype, trusted=True)]


def _transformers(folder: Path, dtype: torch.dtype, *, trusted: bool) -> list[Runs]:
    """transformers' model of a folder that was just written; none where transformers is not there."""
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError:
        return []
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder, trust_remote_code=trusted, dtype=dtype).eval()
    return [("transformers", lambda images: model(images.to(dtype)).last_hidden_state.float())]


def write_timm(encoder: Encoder, choice: ExportChoice, folder: Path) -> list[Runs]:
    """timm's state dict, and the config.json by which timm.create_model('local-dir:FOLDER', pretrained=True) makes the model.

    Raises UserError where timm's VisionTransformer cannot hold the encoder.
    """
    if encoder.conditioning is not None:
        raise UserError(_CANNOT_HOLD.format("timm's VisionTransformer"))
    vit, images = encoder.vit, encoder.images
    state = {**vit.state_dict(), "pos_embed": vit.positions[None]}
    state.pop("positions", None)
    weights = {name: value.detach().cpu().to(choice.dtype).contiguous() for name, value in state.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    height, width = images.height_width
    config: dict[str, Any] = {
        "architecture": TIMM_BASE,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "avg",
        "model_args": timm_arguments(encoder),
        "pretrained_cfg": {
            "input_size": [vit.channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(images.mean),
            "std": list(images.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    save_json(folder / "config.json", config)
    heads, runs = vit.config.heads, list[Runs]()
    if height == width and vit.activation is F.gelu:  # what our reader takes timm's files to be
        back = read_weights(folder, heads=heads)
        runs.append(("jepakit", Encoder(back.encoders[back.which], images).eval()))
    return [*runs, *_timm(folder, config["model_args"])]


def timm_arguments(encoder: Encoder) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer with which it is the encoder. Raises UserError where there are none."""
    vit, shape = encoder.vit, encoder.vit.config
    hidden, known = (
        round(shape.width * shape.mlp_ratio),
        {ACTIVATIONS[ours]: theirs for ours, theirs in _TIMM_ACTIVATIONS.items()},
    )
    if vit.activation not in known:
        raise UserError(f"timm's models are not made with the activation of this one: choose from {', '.join(_TIMM_ACTIVATIONS)}")
    if vit.eps != NORM_EPS:
        raise UserError(f"timm's VisionTransformer divides by layer norms of epsilon {NORM_EPS:g}, this encoder of {vit.eps:g}")
    ratio = hidden / shape.width
    ratio = ratio if int(shape.width * ratio) == hidden else (hidden + 0.5) / shape.width  # timm cuts off where we round
    return {
        "img_size": list(encoder.images.height_width),
        "patch_size": shape.patch_size,
        "in_chans": vit.channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": ratio,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        **({} if vit.activation is F.gelu else {"act_layer": known[vit.activation]}),
    }


def timm_call(encoder: Encoder) -> str:
    """The expression that makes timm's model, without its weights."""
    words = [f"{name}={value!r}" for name, value in {**timm_arguments(encoder), "num_classes": 0}.items()]
    return f"VisionTransformer({', '.join(words)})"


def _timm(folder: Path, arguments: dict[str, Any]) -> list[Runs]:
    """timm's model of a folder that was just written; none where timm is not there, or cannot be imported."""
    try:
        from safetensors.torch import load_file
        from timm.models.vision_transformer import VisionTransformer
    except (ImportError, RuntimeError):  # a torchvision beside a torch of another build
        return []
    model = VisionTransformer(**arguments, num_classes=0).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return [("timm", model.forward_features)]
