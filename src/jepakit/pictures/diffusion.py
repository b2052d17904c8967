"""A small diffusion decoder conditioned on one vector, as RCDM (arXiv 2112.09164), for pictures of what a prediction holds.

What its samples of one condition have in common is the condition's; what differs between them is the decoder's.
n pictures, C channels, S x S pixels, V width of a condition.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit.core.progress import progress

WIDTH, GROUPS = 64, 8  # channels at full size, and groups of a norm
AVERAGE = 0.999  # of the weights, which sample
SAMPLING_STEPS = 50
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Residual(nn.Module):
    """Two convolutions; scale and shift between them are the condition's, as RCDM's in its norms."""

    def __init__(self, channels_in: int, channels: int, told: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, channels_in), nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, channels, affine=False), nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(told, 2 * channels)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[..., None, None].chunk(2, 1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """A U-Net of three scales that parts noise from picture, at times (n,), told conditions (n, V).

    Of noisy pictures (n, C, S, S), S a multiple of 4, it says v = signal * noise - spread * picture (arXiv 2202.00512).
    """

    def __init__(self, channels: int, condition: int, width: int = WIDTH) -> None:
        super().__init__()
        told = 4 * width
        self.time = nn.Sequential(nn.Linear(width, told), nn.SiLU(), nn.Linear(told, told))
        self.condition = nn.Sequential(nn.Linear(condition, told), nn.SiLU(), nn.Linear(told, told))
        self.width, wide = width, 2 * width
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        sizes = [(width, width), (width, wide), (wide, wide), (wide, wide), (2 * wide, wide), (wide + width, width)]
        self.blocks = nn.ModuleList(_Residual(*size, told) for size in sizes)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        rates = torch.exp(torch.linspace(0, math.log(1000), self.width // 2, device=x.device))
        angles = time[:, None] * rates
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.condition(condition)
        down1, down2, middle1, middle2, up2, up1 = self.blocks
        fine = down1(self.stem(x), told)
        coarse = down2(F.avg_pool2d(fine, 2), told)
        middle = middle2(middle1(F.avg_pool2d(coarse, 2), told), told)
        h = up2(torch.cat([F.interpolate(middle, scale_factor=2.0), coarse], 1), told)
        h = up1(torch.cat([F.interpolate(h, scale_factor=2.0), fine], 1), told)
        return self.out(h)  # type: ignore[no-any-return]


def signal_and_noise(time: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the picture and of noise there is at times from 0 to 1: cosine and sine of the time's share of a right angle,
    short of its ends (Nichol and Dhariwal's cosine schedule)."""
    angle = (0.01 + 0.98 * time) * math.pi / 2
    return angle.cos()[:, None, None, None], angle.sin()[:, None, None, None]


def fit_denoiser(
    pictures: Tensor, conditions: Tensor, steps: int, *, batch: int = 32, lr: float = 3e-4, seed: int = 0, width: int = WIDTH
) -> Denoiser:
    """Train a denoiser on pictures (n, C, S, S) in [-1, 1] and their conditions (n, V), on the device that they are on; the
    average of its weights is what comes back. All that is random is a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, average = (Denoiser(pictures.shape[1], conditions.shape[1], width).to(pictures.device) for _ in range(2))
    average.load_state_dict(model.state_dict())
    optimiser, draw = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01), torch.Generator().manual_seed(seed)
    with torch.enable_grad(), progress("diffusion decoder", steps) as report:
        for step in range(1, steps + 1):
            rows = torch.randint(len(pictures), (batch,), generator=draw)
            time, noise = torch.rand(batch, generator=draw), torch.randn(batch, *pictures.shape[1:], generator=draw)
            time, noise = time.to(pictures.device), noise.to(pictures.device)
            signal, spread = signal_and_noise(time)
            said = model(signal * pictures[rows] + spread * noise, time, conditions[rows])
            loss = F.mse_loss(said, signal * noise - spread * pictures[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            rate = min(AVERAGE, step / (step + 10))  # a young average forgets its beginning
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.data.lerp_(new.data, 1 - rate)
            report(step)
    return average.requires_grad_(False).eval()


@torch.no_grad()
def draw_samples(
    denoise: Denoise, conditions: Tensor, shape: tuple[int, int, int], *, steps: int = SAMPLING_STEPS, seed: int = 0
) -> Tensor:
    """One sample (n, C, S, S) in [-1, 1] of each condition (n, V), by DDIM without noise on the way (arXiv 2010.02502)."""
    noise = torch.randn(len(conditions), *shape, generator=torch.Generator().manual_seed(seed))
    x = noise.to(conditions.device)
    times = torch.linspace(1, 0, steps + 1, device=conditions.device)
    picture = x
    for now, then in pairwise(times):
        time = now.expand(len(x))
        signal, spread = signal_and_noise(time)
        picture = (signal * x - spread * denoise(x, time, conditions)).clamp(-1, 1)
        left = (x - signal * picture) / spread  # the noise that goes with the picture, once that is clamped
        signal, spread = signal_and_noise(then.expand(len(x)))
        x = signal * picture + spread * left
    return picture
