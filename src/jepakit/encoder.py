"""An encoder to use: images in, patch tokens or one vector an image out, conditioned as at inference.

B images, T patch tokens, D width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from jepakit.conditioning import EncoderPositions
from jepakit.data.crops import Images, normalise
from jepakit.layout import Layout, joint, take
from jepakit.method import Which
from jepakit.vit import ViT, patchify, sincos


class Encoder(nn.Module):
    """A ViT with what it needs to see images: their normalisation, and EC-IJEPA's conditioning where it was trained with it."""

    def __init__(
        self, vit: ViT, images: Images, conditioning: EncoderPositions | None = None, which: Which = "target_encoder"
    ) -> None:
        super().__init__()
        self.vit, self.images, self.which = vit, images, which
        self.training_conditioning = conditioning
        told = conditioning is not None and conditioning.encoder and conditioning.inference
        self.conditioning = conditioning if told else None  # at inference

    @property
    def device(self) -> torch.device:
        return self.vit.positions.device

    @property
    def width(self) -> int:
        """D."""
        return self.vit.config.width

    def forward(self, images: Tensor) -> Tensor:
        """Normalised floats (B, C, H, W), H and W multiples of the patch size -> patch tokens (B, T, D).

        An image larger or smaller than in training gets positions within the range that the encoder knows.
        """
        return self.layers(images, last=1)[0]

    def layers(self, images: Tensor, last: int = 4) -> list[Tensor]:
        """Patch tokens (B, T, D) of the `last` blocks, first to last, each through the encoder's last norm."""
        p = self.vit.config.patch_size
        if images.ndim != 4 or images.shape[1] != self.vit.channels or images.shape[2] % p or images.shape[3] % p:
            raise ValueError(
                f"images must be (B, {self.vit.channels}, H, W) with H and W multiples of {p}, got {tuple(images.shape)}"
            )
        grid = (images.shape[2] // p, images.shape[3] // p)
        b, n, positions = len(images), grid[0] * grid[1], self._positions(grid)
        tokens = self.vit.patch_embed(patchify(images, p)) + positions.repeat(b, 1)
        lengths = np.full(b, n)
        if self.conditioning is None:
            return [x.view(b, n, -1) for x in self.vit.layers(tokens, Layout(lengths, images.device), last)]
        extra = self.conditioning.for_inference(positions, grid)
        sequences = joint(lengths, np.full(b, len(extra)), images.device)
        both = sequences.join(tokens, extra.repeat(b, 1).to(tokens.dtype))
        layers = self.vit.layers(both, sequences.layout, last)
        return [take(x, sequences.a_rows).view(b, n, -1) for x in layers]

    def embed(self, images: Tensor) -> Tensor:
        """Mean over patch tokens: (B, C, H, W) -> (B, D)."""
        return self(images).mean(1)  # type: ignore[no-any-return]

    def normalise(self, images: Tensor) -> Tensor:
        """Images as they come, (B, 3, H, W) uint8 -> floats for `forward`."""
        return normalise(images, self.images)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.vit.grid:
            return self.vit.positions
        known = self.vit.positions
        return torch.from_numpy(sincos(self.width, grid, self.vit.grid)).to(known.device, known.dtype)
