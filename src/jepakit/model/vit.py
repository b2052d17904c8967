"""The vision transformer on packed tokens: pre-norm blocks, positions (fixed 2-D sin-cos, or learnt), no class token.

Parameter names and shapes are those of the released I-JEPA code and of timm. S packed tokens, N patches, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from jepakit.core.errors import UserError
from jepakit.core.settings import Settings
from jepakit.model.attention import attention, attention_of_queries
from jepakit.model.layout import Layout, take
from jepakit.model.linear import Linear, linear

NORM_EPS = 1e-6
Activation = Callable[[Tensor], Tensor]

SHAPE = ("width", "depth", "heads", "mlp_ratio")
# I-JEPA's released table
VIT_SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}


class ViTConfig(Settings):
    """Shape of the encoder. `size` fills in what is not given."""

    size: Literal["tiny", "small", "base", "large", "huge", "giant"] | None = Field(
        None, description="a row of the table of sizes"
    )
    patch_size: int = Field(16, ge=1, description="pixels on a side of a patch")
    width: int = Field(192, ge=4, multiple_of=4, description="features of a token")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(3, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over width")
    depth_rescale: bool = Field(False, description="divide attn.proj and mlp.fc2 by sqrt(2 * layer) at the start")
    learned_positions: bool = Field(
        False, description="positions are weights, which begin as the sin-cos ones (or as those of init.path); else fixed"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("size"), str) and data["size"] in VIT_SIZES:
            shape = dict(zip(SHAPE, VIT_SIZES[data["size"]], strict=True))
            return {**shape, **data, "size": data["size"] if all(data.get(k, v) == v for k, v in shape.items()) else None}
        return data

    @model_validator(mode="after")
    def _divides(self) -> "ViTConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


def sincos(width: int, grid: tuple[int, int], extent: tuple[int, int] | None = None) -> NDArray[np.float64]:
    """Fixed positions of a grid (rows, columns): (N, width), [column: sin | cos | row: sin | cos].

    Frequencies 10000^(-k / (width/4)), as MAE and I-JEPA. With `extent`, another grid is laid over that one, so that an
    encoder sees images of a size it was not trained on within the range of positions it knows.
    """
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, columns = (np.arange(n) * ((e / n) if extent else 1.0) for n, e in zip(grid, extent or grid, strict=True))
    row, column = np.meshgrid(rows, columns, indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (column, row)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)


def is_sincos(positions: Tensor, grid: tuple[int, int]) -> bool:
    """Whether stored positions (N, D), in whatever precision, are the fixed ones of a grid of N patches."""
    if positions.is_complex() or len(positions) != grid[0] * grid[1]:
        return False
    near = max(1e-3, torch.finfo(positions.dtype).eps) if positions.is_floating_point() else 0.0
    fixed = torch.from_numpy(sincos(positions.shape[1], grid)).float()
    return bool((positions.float() - fixed).abs().max() <= near)  # false for a NaN


def require_positions(ours: Tensor, theirs: Tensor | None, grid: tuple[int, int], where: str) -> None:
    """Fixed positions that are stored are only compared. Raises UserError if they are others, as learnt ones would be."""
    if theirs is not None and not (theirs.numel() == ours.numel() and is_sincos(theirs.reshape(ours.shape), grid)):
        raise UserError(f"{where}: its positions are not the fixed sin-cos ones of I-JEPA")


def resample_positions(positions: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learnt positions (N, D) of a grid, laid over another by bicubic interpolation, as DINO and transformers do: (N', D)."""
    if grid == new:
        return positions
    field = positions.T.unflatten(1, grid)[None]
    return F.interpolate(field, new, mode="bicubic", align_corners=False)[0].flatten(1).T


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B * N, C * patch_size^2), patches in raster order, channels first within a patch."""
    b, c, h, w = images.shape
    p = patch_size
    return images.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b * (h // p) * (w // p), c * p * p)


class PatchEmbed(nn.Module):
    """A strided convolution, applied as a linear map so that patches that nobody sees are never embedded."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.proj(attention(self.qkv(x).unflatten(1, (3, self.heads, -1)), layout))  # type: ignore[no-any-return]

    def forward_rows(self, x: Tensor, layout: Layout, rows: Tensor, queries: Layout) -> Tensor:
        """What `forward` has at distinct rows, `queries` saying how many of each sequence: only they are asked."""
        (q_weight, kv_weight), (q_bias, kv_bias) = (
            w.split([len(w) // 3, 2 * len(w) // 3]) for w in (self.qkv.weight, self.qkv.bias)
        )
        q = linear(take(x, rows), q_weight, q_bias).unflatten(1, (self.heads, -1))
        kv = linear(x, kv_weight, kv_bias).unflatten(1, (2, self.heads, -1))
        return self.proj(attention_of_queries(q, kv, queries, layout))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float = NORM_EPS, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, round(width * mlp_ratio), activation)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self.attn(self.norm1(x), layout)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def forward_rows(self, x: Tensor, layout: Layout, rows: Tensor, queries: Layout) -> Tensor:
        """forward(x, layout)[rows] for distinct rows, `queries` saying how many of each sequence; others are only looked at."""
        x = take(x, rows) + self.attn.forward_rows(self.norm1(x), layout, rows, queries)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patches to features, any subset of the patches of each image at a time. eps, activation: of weights made elsewhere."""

    positions: Tensor
    row_multiple: int | None = None  # blocks see a multiple of so many rows (JEPA.fix_rows)

    def __init__(
        self,
        config: ViTConfig,
        grid: tuple[int, int],
        channels: int = 3,
        eps: float = NORM_EPS,
        activation: Activation = F.gelu,
    ) -> None:
        super().__init__()
        self.config, self.grid, self.channels, self.eps, self.activation = config, grid, channels, eps, activation
        self.patch_embed = PatchEmbed(channels, config.patch_size, config.width)
        shape = config.width, config.heads, config.mlp_ratio, eps, activation
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=eps)
        positions = torch.from_numpy(sincos(config.width, grid)).float()
        if config.learned_positions:
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        initialise(self, self.blocks, config.depth_rescale)

    def embed(self, patches: Tensor, index: Tensor) -> Tensor:
        """Tokens of patches (S, C * p^2) that stand at `index` (S,) of the grid: (S, D)."""
        # an embedding, whose gradient is summed in one order on CUDA too, where index_select's is not
        return self.patch_embed(patches) + F.embedding(index, self.positions)  # type: ignore[no-any-return]

    def all_positions(self) -> Tensor:
        """Positions of the grid (N, D): a copy, as a process that holds a part of learnt ones is lent the rest for a call."""
        return self.positions.clone()

    def forward(self, tokens: Tensor, layout: Layout, levels: Sequence[int] = ()) -> Tensor:
        """(S, D) -> (S, D), attention within each sequence of `layout`; of K levels: (S, (K + 1) * D), what leaves those blocks
        (from 0) as it is, and then the output."""
        *inner, last = self.block_outputs(tokens, layout, (*levels, len(self.blocks) - 1))
        return torch.cat([*inner, self.norm(last)], 1) if inner else self.norm(last)  # type: ignore[no-any-return]

    def block_outputs(self, tokens: Tensor, layout: Layout, which: Sequence[int]) -> list[Tensor]:
        """What leaves these blocks (from 0), (S, D) each, without a norm."""
        outputs, layout = {}, layout.with_row_multiple(self.row_multiple)
        tokens = layout.fill(tokens)
        for place, block in enumerate(self.blocks):
            tokens = block(tokens, layout)
            if place in which:
                outputs[place] = tokens[: layout.used]
        return [outputs[place] for place in which]


def initialise(module: nn.Module, blocks: nn.ModuleList, depth_rescale: bool) -> None:
    """Truncated normal .02, biases 0: what is in force in the released training (science of the rescale: BEiT)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    if depth_rescale:
        for layer, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.data.div_(math.sqrt(2 * layer))
