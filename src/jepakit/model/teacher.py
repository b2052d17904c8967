"""A frozen teacher: any encoder whose features are the targets and are never updated (SALT, arXiv 2509.24317, stage 2).

B images, N patches of the student's grid, D' teacher width.
"""

import hashlib
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.targets import require_layers


class Teacher(nn.Module):
    """Shows a frozen encoder the student's images as it knows them: its own mean, std, and pixels to a patch."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, encoder: Encoder, images: ImageSettings, grid: tuple[int, int], layers: tuple[int, ...] | None = None
    ) -> None:
        """images, grid: the student's; layers: target.layers. Raises UserError for images of other bands or another depth than
        the teacher's, and for a layer that it does not have."""
        super().__init__()
        require_layers(layers, encoder.vit.config.depth, "the teacher")
        self.layers = layers
        own = encoder.images
        if (own.channels, own.depth or "uint8", own.white) != (images.channels, images.depth or "uint8", images.white):
            raise UserError(
                f"target.teacher is for images of {own.channels} channels ({own.depth or 'uint8'}), and the run's have "
                f"{images.channels} ({images.depth or 'uint8'}): a teacher must know such images"
            )
        self.encoder, self.grid = encoder.requires_grad_(False).eval(), grid
        mean, std, own_mean, own_std = (torch.tensor(x)[:, None, None] for x in (images.mean, images.std, own.mean, own.std))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The student's normalised images (B, C, H, W) -> features of each patch of its grid (B * N, D'), or those
        of its layers side by side."""
        patch = self.encoder.vit.config.patch_size
        size = (self.grid[0] * patch, self.grid[1] * patch)
        x = images * self.scale + self.shift
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        outputs = self.encoder.block_outputs(x, self.layers) if self.layers else [self.encoder(x)]
        return torch.cat(outputs, -1).flatten(0, 1)

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights, by which a resume knows its teacher; they are never updated, so it is computed once."""
        digest = hashlib.sha256()
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()
