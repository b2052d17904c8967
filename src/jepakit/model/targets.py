"""What is predicted: features of the target encoder (I-JEPA, section 3), or pixels (table 7's ablation; MAE's targets).

S target tokens, D encoder width, C channels.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from jepakit.core.settings import Settings


class Features(Settings):
    """The target encoder's output, normalised over features (layer), over the batch (batch), or as it is (none)."""

    kind: Literal["features"] = "features"
    norm: Literal["layer", "batch", "none"] = Field(
        "layer", description="layer norm (released code), per dimension over the batch (a part of it, on one process), or none"
    )

    @field_validator("norm", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """On the command line and in YAML, none is read as no value: take it for the word."""
        return "none" if value is None else value

    def width(self, encoder_width: int, patch_pixels: int) -> int:
        return encoder_width

    def normalise(self, features: Tensor) -> Tensor:
        """(tokens, D) -> (tokens, D), without learned scale."""
        if self.norm == "layer":
            return F.layer_norm(features, features.shape[-1:])
        if self.norm == "batch":
            return (features - features.mean(0)) / (features.var(0) + 1e-5).sqrt()
        return features


class PixelTargets(Settings):
    """The target patches' own pixels, each patch normalised as in MAE (arXiv 2111.06377, section 3)."""

    kind: Literal["pixels"] = "pixels"
    norm: bool = Field(True, description="zero mean and unit variance in each patch")

    def width(self, encoder_width: int, patch_pixels: int) -> int:
        return patch_pixels

    def normalise(self, patches: Tensor) -> Tensor:
        """(S, C * p^2) -> (S, C * p^2)."""
        if not self.norm:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


Target = Annotated[Features | PixelTargets, Field(discriminator="kind")]
