"""I-JEPA's released training step written the usual way, from a description of it: what ours is measured against.

All patches are embedded by a strided convolution, tokens are dense, attention is written out, contexts are trimmed to the
batch's shortest and repeated for each target block, and average and gradient statistics go parameter by parameter.
`tests/training/test_plain.py` holds it to the released numbers. Weights come from a `JEPA` of ours, by the same names.
B images, N patches, K context patches, M target blocks of k patches, D encoder width, P predictor width.
"""

import math
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit.config.optim import ScheduleValues
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method

NORM_EPS = 1e-6
TRIES_A_REGION = 20


@dataclass(frozen=True)
class Dense:
    """context (B, K); targets, M of them, (B, k) each: int64 indices of the grid, rising."""

    context: Tensor
    targets: list[Tensor]

    @classmethod
    def trimmed(cls, masks: Masks) -> "Dense":
        """The first K indices of each context and k of each target, the fewest in the batch. One draw an image."""
        assert len(masks.context_lengths) == masks.images, "one context an image"
        contexts = np.split(masks.context, masks.context_lengths.cumsum()[:-1])
        blocks = np.split(masks.targets, masks.target_lengths.cumsum()[:-1])
        m = len(blocks) // masks.images
        return cls.collated(
            [torch.from_numpy(c) for c in contexts], [[torch.from_numpy(b) for b in blocks[i::m]] for i in range(m)]
        )

    @classmethod
    def collated(cls, contexts: list[Tensor], targets: list[list[Tensor]]) -> "Dense":
        """Contexts of each image, and of each target block, image by image, cut to the fewest."""
        k, m = min(map(len, contexts)), min(len(block) for blocks in targets for block in blocks)
        return cls(torch.stack([c[:k] for c in contexts]), [torch.stack([b[:m] for b in blocks]) for blocks in targets])

    def to(self, device: torch.device) -> "Dense":
        return Dense(self.context.to(device), [block.to(device) for block in self.targets])


def collate(law: MultiBlock, grid: tuple[int, int], batch: int, step: int, generator: torch.Generator | None = None) -> Dense:
    """The released mask law, image by image: sizes drawn by the step, places by `generator` (none: torch's own state)."""
    sizes = torch.Generator().manual_seed(step)
    target_size = _size(grid, law.target_scale, law.target_aspect, torch.rand(1, generator=sizes).item())
    context_size = _size(grid, law.context_scale, law.context_aspect, torch.rand(1, generator=sizes).item())
    contexts: list[Tensor] = []
    targets: list[list[Tensor]] = [[] for _ in range(law.targets)]
    for _ in range(batch):
        outside = []
        for blocks in targets:
            index, complement = _block(grid, target_size, [], law.min_keep, generator)
            blocks.append(index)
            outside.append(complement)
        contexts.append(_block(grid, context_size, outside, law.min_keep, generator)[0])
    return Dense.collated(contexts, targets)


def _size(grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], u: float) -> tuple[int, int]:
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(rows, grid[0] - 1), min(columns, grid[1] - 1)


def _block(
    grid: tuple[int, int], size: tuple[int, int], regions: list[Tensor], min_keep: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Indices of a block within the regions (one fewer of them after each 20 failures), and what lies outside the block."""
    (rows, columns), tries = size, 0
    while True:
        top = int(torch.randint(0, grid[0] - rows, (1,), generator=generator))
        left = int(torch.randint(0, grid[1] - columns, (1,), generator=generator))
        mask = torch.zeros(grid, dtype=torch.int32)
        mask[top : top + rows, left : left + columns] = 1
        complement = 1 - mask
        for region in regions[: max(0, len(regions) - tries // TRIES_A_REGION)]:
            mask *= region
        index = torch.nonzero(mask.flatten()).squeeze(1)
        if len(index) > min_keep:
            return index, complement
        tries += 1


def positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed sin-cos positions, (1, N, width): [column: sin | cos | row: sin | cos]."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    parts = [wave(np.outer(axis, omega)) for axis in (column, row) for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(parts, 1)).float()[None]


def picked(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, D), (B, K) -> (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Images (B, C, H, W) -> features of all patches (B, N, D), or of those of an index (B, K): (B, K, D)."""

    def __init__(self, method: Method, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        e = method.encoder
        self.patch_embed = PatchEmbed(channels, e.patch_size, e.width)
        self.blocks = nn.ModuleList(Block(e.width, e.heads, e.mlp_ratio) for _ in range(e.depth))
        self.norm = nn.LayerNorm(e.width, eps=NORM_EPS)
        self.register_buffer("positions", positions(e.width, grid), persistent=False)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        x = self.patch_embed(images) + self.positions
        if index is not None:
            x = picked(x, index)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    """Context features (B, K, D) -> predictions (M * B, k, D), block by block."""

    def __init__(self, method: Method, grid: tuple[int, int]) -> None:
        super().__init__()
        e, p = method.encoder, method.predictor
        self.predictor_embed = nn.Linear(e.width, p.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, p.width))
        self.predictor_blocks = nn.ModuleList(Block(p.width, p.heads or e.heads, e.mlp_ratio) for _ in range(p.depth))
        self.predictor_norm = nn.LayerNorm(p.width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(p.width, e.width)
        self.register_buffer("positions", positions(p.width, grid), persistent=False)

    def forward(self, context: Tensor, masks: Dense) -> Tensor:
        b, k, _ = context.shape
        table = self.positions.repeat(b, 1, 1)
        x = self.predictor_embed(context) + picked(table, masks.context)
        wanted = torch.cat([picked(table, target) for target in masks.targets])
        queries = self.mask_token.repeat(*wanted.shape[:2], 1) + wanted
        x = torch.cat([x.repeat(len(masks.targets), 1, 1), queries], 1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, k:])


class Plain(nn.Module):
    """Encoder, target encoder, predictor. Its state_dict has the names and shapes of our `JEPA`'s."""

    def __init__(self, method: Method, grid: tuple[int, int], channels: int = 3) -> None:
        super().__init__()
        self.encoder = Encoder(method, grid, channels)
        self.target_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(method, grid)

    def targets(self, images: Tensor, masks: Dense) -> Tensor:
        """(M * B, k, D), without gradient."""
        with torch.no_grad():
            full = self.target_encoder(images)
            full = F.layer_norm(full, full.shape[-1:])
            return torch.cat([picked(full, target) for target in masks.targets])

    def predictions(self, images: Tensor, masks: Dense) -> Tensor:
        """(M * B, k, D)."""
        return self.predictor(self.encoder(images, masks.context), masks)

    def forward(self, images: Tensor, masks: Dense) -> Tensor:
        """The loss."""
        targets = self.targets(images, masks)
        return F.smooth_l1_loss(self.predictions(images, masks), targets)


class PlainStep:
    """One update as released: float32 on a CPU; on CUDA autocast to bfloat16, with a loss scale that it does not need.

    lowered: autocast; as released if not given.
    """

    def __init__(self, model: Plain, lowered: bool | None = None) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.lowered = self.device.type == "cuda" if lowered is None else lowered
        groups = [
            {"params": [p for p in part.parameters() if (p.ndim > 1) == decays], "decays": decays}
            for decays in (True, False)
            for part in (model.encoder, model.predictor)
        ]
        self.adamw = torch.optim.AdamW(groups)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")
        self.norms: dict[str, float] = {}

    def step(self, images: Tensor, masks: Dense, now: ScheduleValues) -> float:
        """The loss of the batch, before the update."""
        for group in self.adamw.param_groups:
            group["lr"], group["weight_decay"] = now.lr, now.weight_decay if group["decays"] else 0.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.lowered):
            loss = self.model(images, masks.to(self.device))
        self.scaler.scale(loss).backward()
        self.scaler.step(self.adamw)
        self.scaler.update()
        weights = [(name, p) for name, p in self.model.encoder.named_parameters() if p.ndim > 1]
        self.norms = {name: float(p.grad.norm()) for name, p in weights}  # to be logged: each waits for the device
        self.adamw.zero_grad()
        with torch.no_grad():
            for p, average in zip(self.model.encoder.parameters(), self.model.target_encoder.parameters(), strict=True):
                average.mul_(now.momentum).add_((1 - now.momentum) * p)
        return loss.item()
