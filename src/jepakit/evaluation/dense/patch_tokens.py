"""Frozen patch tokens of images of any size, of an encoder or of raw pixels: what dense tasks work on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jepakit.core.device import autocast
from jepakit.core.errors import UserError
from jepakit.data.crops import channels_of
from jepakit.data.decoding.decode import read_image
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.opening import SECONDS
from jepakit.data.threads import time_limited
from jepakit.evaluation.features import RAW
from jepakit.model.encoder import Encoder
from jepakit.model.vit import patchify


@dataclass(frozen=True)
class PatchTokens:
    """Images to frozen patch tokens: an encoder's, or (raw) each patch's own pixels as that encoder would see them."""

    encoder: Encoder
    precision: torch.dtype = torch.float32
    raw: bool = False
    seconds: float = SECONDS

    @property
    def patch(self) -> int:
        return self.encoder.vit.config.patch_size

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def read(self, path: Path) -> Pixels:
        """(H, W, C) with the encoder's channels. Raises UserError."""
        try:
            return channels_of(time_limited(self.seconds, lambda: read_image(path)), self.encoder.images)
        except BadImageError as error:
            raise UserError(f"{path} cannot be read: {error}") from None

    def __call__(self, images: Tensor) -> Tensor:
        """Images as they come (B, C, H, W), H and W multiples of the patch -> (B, h, w, D), without gradient."""
        with torch.no_grad(), autocast(self.device, self.precision):
            pixels = self.encoder.normalise(images.to(self.device))
            tokens = patchify(pixels, self.patch) if self.raw else self.encoder(pixels)
        rows, columns = (side // self.patch for side in images.shape[2:])
        return tokens.reshape(len(images), rows, columns, -1)


def with_raw_pixels(encoders: Mapping[str, Encoder], precision: torch.dtype, seconds: float) -> dict[str, PatchTokens]:
    """Patch tokens by name: of each encoder, and of raw pixels as the first encoder would see them."""
    tokens = {name: PatchTokens(encoder, precision, seconds=seconds) for name, encoder in encoders.items()}
    return {**tokens, RAW: PatchTokens(next(iter(encoders.values())), raw=True, seconds=seconds)}
