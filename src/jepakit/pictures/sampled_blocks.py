"""Samples of a target block's pixels from its pooled prediction, by a diffusion decoder, as I-JEPA's figure of its predictor.

n images that are shown, M target blocks, r x c patches of the grid, V width of a target.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.teacher import Teacher
from jepakit.pictures.diffusion import draw_samples, fit_denoiser
from jepakit.pictures.given import to_look_at
from jepakit.pictures.painted_patches import HIDDEN
from jepakit.pictures.predicted_tokens import PredictedTokens, predicted_tokens

BLOCK_SIDE = 32  # pixels of a block's side, as the decoder paints it
DECODER_STEPS = 10_000  # a few hours of two cores, minutes of a GPU
SAMPLES = 4
MASK_DRAWS = 4  # of each image that the decoder learns from
SAMPLED_CAPTION = (
    "Each column is another sample of a diffusion decoder (RCDM). It is told one vector, the mean prediction of a block, and "
    "learnt from other images what blocks with such predictions look like. What the samples of a row have in common is what the "
    "prediction holds; what differs between them, and every fine detail, is the decoder's."
)


@dataclass(frozen=True, eq=False)
class SampledBlocks:
    """images (n, H', W', 3) uint8; boxes (n, 4): first row and column, rows and columns in patches, of each image's first block;
    samples (n, k, H', W', 3): the context with a sample in the place of the block, gray where neither is; pairs: blocks that the
    decoder learnt from."""

    images: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    samples: NDArray[np.uint8]
    pairs: int


def sampled_blocks(
    jepa: JEPA,
    x: Tensor,
    settings: ImageSettings,
    teacher: Teacher | None = None,
    *,
    shown: int = 6,
    samples: int = SAMPLES,
    steps: int = DECODER_STEPS,
    seed: int = 0,
) -> SampledBlocks:
    """Train a decoder on blocks of all normalised images (B, C, H, W) but the first `shown`, and draw from it for those.

    Raises UserError for too few images.
    """
    if len(x) < shown + 2:
        raise UserError(f"a diffusion decoder needs images that are not shown too: {len(x)} are too few")
    others = x[shown:]
    made = [predicted_tokens(jepa, others, teacher, seed + draw) for draw in range(MASK_DRAWS)]
    learnt = [_blocks(each, others, jepa.grid) for each in made]
    conditions, pictures = (torch.cat(parts) for parts in zip(*((c, p) for c, p, _ in learnt), strict=True))
    mean, std = conditions.mean(0), conditions.std(0).clamp(min=1e-6)
    low, high = pictures.amin(), pictures.amax()
    device = jepa.encoder.positions.device
    with torch.inference_mode(False):  # what is trained on must not be of it
        told, targets = (each.clone().to(device) for each in ((conditions - mean) / std, (pictures - low) / (high - low) * 2 - 1))
        model = fit_denoiser(targets, told, steps, seed=seed)
    of = predicted_tokens(jepa, x[:shown], teacher, seed)
    asked, _, boxes = _blocks(of, x[:shown], jepa.grid, first=True)
    told = ((asked - mean) / std).to(device)
    shape = (x.shape[1], BLOCK_SIDE, BLOCK_SIDE)
    painted = [draw_samples(model, told, shape, seed=seed + k).cpu() for k in range(samples)]
    back = [(each + 1) / 2 * (high - low) + low for each in painted]
    composed = np.stack([_composed(of, x[:shown], each, boxes, jepa.grid, settings) for each in back], 1)
    return SampledBlocks(to_look_at(x[:shown], settings), boxes, composed, len(conditions))


def _blocks(
    of: PredictedTokens, x: Tensor, grid: tuple[int, int], *, first: bool = False
) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Of each block, or each image's first: mean prediction (m, V), pixels (m, C, S, S), and box in patches (m, 4)."""
    p, blocks = x.shape[2] // grid[0], of.blocks[:, :1] if first else of.blocks
    conditions, pictures, boxes = [], [], []
    for image, own in enumerate(blocks):
        for block in own:
            row, column = (torch.nonzero(block.view(grid).any(1 - axis)).flatten() for axis in (0, 1))
            box = (int(row[0]), int(column[0]), len(row), len(column)) if len(row) else (0, 0, 1, 1)
            top, left, height, width = (p * each for each in box)
            crop = x[image : image + 1, :, top : top + height, left : left + width].cpu()
            pictures.append(F.interpolate(crop, (BLOCK_SIDE, BLOCK_SIDE), mode="bilinear", antialias=True)[0])
            conditions.append(of.predictions[image, block].mean(0))
            boxes.append(box)
    return torch.stack(conditions), torch.stack(pictures), np.array(boxes, np.int64)


def _composed(
    of: PredictedTokens, x: Tensor, drawn: Tensor, boxes: NDArray[np.int64], grid: tuple[int, int], settings: ImageSettings
) -> NDArray[np.uint8]:
    """Each image's context with a sample in the place of its block: (n, H', W', 3)."""
    p, mixed = x.shape[2] // grid[0], x.detach().cpu().clone()
    ends = float(drawn.min()), float(drawn.max())
    visible = of.context.view(len(x), *grid).clone()
    for i, box in enumerate(boxes.tolist()):
        top, left, height, width = (p * each for each in box)
        sample = F.interpolate(drawn[i : i + 1], (height, width), mode="bilinear", antialias=True)[0]
        mixed[i, :, top : top + height, left : left + width] = sample.clamp(*ends)
        visible[i, box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    shown = visible.repeat_interleave(p, 1).repeat_interleave(p, 2).numpy()
    return np.where(shown[..., None], to_look_at(mixed, settings), np.uint8(HIDDEN))
