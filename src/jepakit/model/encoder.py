"""An encoder to use: images in, patch tokens or one vector an image out, conditioned as at inference.

B images, T patch tokens, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from jepakit.model.conditioning import PositionConditioning
from jepakit.model.images import ImageSettings, normalise
from jepakit.model.inputs import Given, as_tensor, in_white_units, require_like, require_normalised, require_shape
from jepakit.model.layout import Layout, interleave, take
from jepakit.model.method import Which
from jepakit.model.vit import ViT, patchify, resample_positions, sincos


class Transform(Protocol):
    """What makes normalised floats of images as they come: of one, (C, H, W), and of many, (B, C, H, W) each."""

    def __call__(self, image: Any) -> Tensor: ...

    def batches(self, images: Any) -> Iterator[Tensor]: ...


class Encoder(nn.Module):
    """A ViT with what it needs to see images: their normalisation, and EC-IJEPA's conditioning where it was trained with it."""

    transform_for: ClassVar[Callable[[ImageSettings], Transform]]  # where files are read: artifacts/load.py

    def __init__(
        self, vit: ViT, images: ImageSettings, conditioning: PositionConditioning | None = None, which: Which = "target_encoder"
    ) -> None:
        super().__init__()
        self.vit, self.images, self.which = vit, images, which
        self.training_conditioning = conditioning
        uses_conditioning = conditioning is not None and conditioning.encoder and conditioning.inference
        self.conditioning = conditioning if uses_conditioning else None  # at inference

    @property
    def device(self) -> torch.device:
        return self.vit.positions.device

    @property
    def width(self) -> int:
        """D."""
        return self.vit.config.width

    def forward(self, images: Given) -> Tensor:
        """Normalised floats (B, C, H, W), H and W multiples of the patch size -> patch tokens (B, T, D). B may be 0.

        An image larger or smaller than in training gets positions within the range that the encoder knows. Raises
        ImagesError, a UserError and a ValueError, for other shapes, and for what is seen not to be normalised.
        """
        return self.layers(images, last=1)[0]

    def layers(self, images: Given, last: int = 4) -> list[Tensor]:
        """Patch tokens (B, T, D) of the `last` blocks, first to last, each through the encoder's last norm, as VISSL takes
        layers for probes."""
        return [self.vit.norm(x) for x in self.block_outputs(images, range(self.vit.config.depth)[-last:])]

    def block_outputs(self, images: Given, which: Sequence[int]) -> list[Tensor]:
        """Patch tokens (B, T, D) as they leave these blocks (from 0), without a norm. Takes and raises what `forward` does."""
        tokens, layout, rows = self.packed(images)
        outputs = self.vit.block_outputs(tokens, layout, which) if len(tokens) else [tokens] * len(which)
        b, _, h, w = images.shape
        n = h * w // self.vit.config.patch_size**2
        return [(x if rows is None else take(x, rows)).view(b, n, self.width) for x in outputs]

    def packed(self, images: Given) -> tuple[Tensor, Layout, Tensor | None]:
        """What the first block gets of images, as `forward` takes them: tokens (S, D), a sequence an image, its T patches
        before its conditioning tokens; and the rows (B * T,) of the patches, None where there are no other tokens."""
        p, images = self.vit.config.patch_size, as_tensor(images)
        require_shape(images, self.vit.channels, p)
        require_normalised(images, self.images)
        grid = (images.shape[2] // p, images.shape[3] // p)
        b, n, positions = len(images), grid[0] * grid[1], self.positions_of(grid)
        images = images.to(positions.device, positions.dtype)
        lengths = np.full(b, n)
        if not b:
            return images.new_zeros(0, self.width), Layout(lengths, images.device), None
        tokens = self.vit.patch_embed(patchify(images, p)) + positions.repeat(b, 1)
        if self.conditioning is None:
            return tokens, Layout(lengths, images.device), None
        extra = self.conditioning.for_inference(positions, grid)
        sequences = interleave(lengths, np.full(b, len(extra)), images.device)
        return sequences.join(tokens, extra.repeat(b, 1).to(tokens.dtype)), sequences.layout, sequences.a_rows

    def embed(self, images: Any) -> Tensor:
        """Mean over patch tokens, (B, D), one row for one image too.

        Floats (B, C, H, W) are taken to be normalised, as `forward` takes them. All else goes through `transform`: a path, a PIL
        image, a list of them, or uint8 or uint16 of one image (H, W, C) or many (B, H, W, C); channels may come before
        rows. Raises ImagesError, a UserError and a ValueError.
        """
        if isinstance(images, Tensor | np.ndarray) and as_tensor(images).is_floating_point():
            return self(images).mean(1)  # type: ignore[no-any-return]
        rows = [self(batch).mean(1) for batch in self.transform.batches(images)]
        return torch.cat(rows) if rows else self.vit.positions.new_zeros(0, self.width)

    @property
    def transform(self) -> Transform:
        """What evaluation does to an image: its largest centre crop, resized with antialias, and normalised.

        Of a path, a PIL image, or a tensor or an array (C, H, W) or (H, W, C), of uint8, uint16, or floats in units of white,
        to float32 (C, height, width) on the CPU. It can be pickled, used by many threads, and be a torchvision `transform=`.
        """
        return Encoder.transform_for(self.images)

    def normalise(self, images: Given) -> Tensor:
        """Images as they come, a tensor or an array (B, C, H, W) -> float32 for `forward`, as the loader makes them.

        uint8 is divided by 255, deeper integers by images.white (65535); floats are in units of white (0 black, 1 white).
        An encoder trained on floats takes floats in the same units, and refuses integers. Raises ImagesError, a UserError
        and a ValueError, for other shapes, types and ranges.
        """
        images = as_tensor(images)
        require_shape(images, self.vit.channels)
        x = normalise(in_white_units(images, self.images), self.images)
        if images.dtype != torch.uint8:
            require_like(x, self.images)
        return x

    def positions_of(self, grid: tuple[int, int]) -> Tensor:
        """Positions (T, D) of images of that grid (rows, columns), within the range that the encoder knows."""
        if grid == self.vit.grid:
            return self.vit.positions
        known = self.vit.positions
        if self.vit.config.learned_positions:
            return resample_positions(known, self.vit.grid, grid)
        return torch.from_numpy(sincos(self.width, grid, self.vit.grid)).to(known.device, known.dtype)
