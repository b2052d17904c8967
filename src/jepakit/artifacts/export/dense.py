"""An encoder in plain torch operations, which compilers trace: whole images of one size, as many as there are.

It needs torch alone, so that a copy of this file goes along with an export as its code. B images, T patch tokens, E
conditioning tokens, D width, C channels of H x W pixels. Names and shapes of parameters are those of timm's plain ViTs.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseAttention(nn.Module):
    """Softmax attention of all tokens of an image over all of them: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DenseMLP(nn.Module):
    """Two linear maps with an activation between them: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """A pre-norm block: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = DenseAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = DenseMLP(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class DensePatchEmbed(nn.Module):
    """Patches to tokens: (B, C, H, W) -> (B, T, D)."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class DenseEncoder(nn.Module):
    """Images of one size to the patch tokens (B, T, D), with positions and conditioning tokens held as constants.

    The arithmetic is in the parameters' type; what goes in (normalised images) and comes out is float32.
    """

    positions: Tensor
    conditioning_tokens: Tensor

    def __init__(
        self,
        *,
        channels: int,
        patch_size: int,
        tokens: int,
        conditioning_tokens: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        eps: float = 1e-6,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.patch_embed = DensePatchEmbed(channels, patch_size, width)
        self.register_buffer("positions", torch.zeros(tokens, width))
        self.register_buffer("conditioning_tokens", torch.zeros(conditioning_tokens, width))
        self.blocks = nn.ModuleList(DenseBlock(width, heads, hidden, eps, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images.to(self.positions.dtype)) + self.positions
        if len(self.conditioning_tokens):
            x = torch.cat([x, self.conditioning_tokens.expand(x.shape[0], -1, -1)], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, : len(self.positions)].float()  # type: ignore[no-any-return]


class DenseFeatures(nn.Module):
    """A `DenseEncoder` with two outputs: patch tokens (B, T, D), and their mean, a vector of each image (B, D).

    normalisation: mean and deviation of each channel, where images come as uint8 and are normalised here, in float32; None
    where they come normalised.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: DenseEncoder, normalisation: tuple[Sequence[float], Sequence[float]] | None = None) -> None:
        super().__init__()
        self.encoder, self.normalises = encoder, normalisation is not None
        if normalisation is not None:
            for name, values in zip(("mean", "deviation"), normalisation, strict=True):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalises:
            images = (images.float() / 255 - self.mean) / self.deviation
        tokens = self.encoder(images)
        return tokens, tokens.mean(1)
