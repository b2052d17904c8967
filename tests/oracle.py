"""The released code's golden numbers: weights by recipe, and what the code made of them (float64)."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method

HERE = Path(__file__).parent / "golden"
ORACLE = json.loads((HERE / "oracle.json").read_text())
NAME = "small_1ctx_4tgt"
CASE: dict[str, Any] = ORACLE["cases"][NAME]
ARRAYS = load_file(HERE / f"{NAME}.safetensors")
DRAWS = load_file(HERE / "collator_draws.safetensors")
METHOD = Method.model_validate(
    {
        "masking": {"kind": "multi_block", "min_keep": 4, "compat": "released"},
        "encoder": {"width": 96, "depth": 3, "heads": 3, "patch_size": 8},
        "predictor": {"width": 48, "depth": 2},
    }
)


def recipe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(int(np.prod(shape))).reshape(shape)
    if name.endswith("mask_token"):
        values = 0.5 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values if name.endswith(".weight") else 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def model(dtype: torch.dtype = torch.float64) -> JEPA:
    jepa = JEPA(METHOD, (8, 8))
    state = {}
    for name, value in jepa.state_dict().items():
        own = recipe(name.replace("target_encoder.", "encoder."), tuple(value.shape))
        if name.startswith("target_encoder."):
            other = recipe(name.replace("target_encoder.", "target."), tuple(value.shape))
            own = np.float32(0.75) * own + np.float32(0.25) * other
        state[name] = torch.from_numpy(own)
    jepa.load_state_dict(state)
    return jepa.to(dtype)


def images(step: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    tag = f"input:{NAME}" + (f":step{step}" if step else "")
    values = np.random.RandomState(zlib.crc32(tag.encode())).standard_normal(3 * 3 * 64 * 64)
    return torch.from_numpy(values.reshape(3, 3, 64, 64).astype(np.float32)).to(dtype)


def masks() -> Masks:
    targets = [ARRAYS[f"mask_pred_{i}"] for i in range(4)]
    return Masks.from_indices(ARRAYS["mask_enc_0"].tolist(), [[block[image].tolist() for block in targets] for image in range(3)])


def check(tensor: torch.Tensor, stats: dict[str, Any], rtol: float, least_scale: float = 1e-300) -> None:
    """Equality of a tensor's stored statistics, relative to its largest entry (or to `least_scale`)."""
    flat = tensor.detach().double().flatten()
    scale = max(stats["absmax"], least_scale)
    assert abs(flat.norm() - stats["l2"]) <= rtol * stats["l2"] + 1e-15
    assert abs(flat.sum() - stats["sum"]) <= rtol * scale * len(flat)
    np.testing.assert_allclose(flat[stats["sample_idx"]].numpy(), stats["sample"], rtol=0, atol=rtol * scale)
