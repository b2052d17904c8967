"""What the predictor says of target patches, beside what is true of them; and numbers of how well, and of what it depends on.

B images, M target blocks, N patches, D' width of a target.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.artifacts.load import jepa_and_step
from jepakit.artifacts.run import Run
from jepakit.artifacts.teacher import with_teacher
from jepakit.config.config import Config
from jepakit.core import rng
from jepakit.core.device import autocast
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.teacher import Teacher
from jepakit.model.vit import patchify

PREDICTED_AT_ONCE = 32  # images
LOOKED_FOR = 32  # images whose predictions are looked for among all patches


@dataclass(frozen=True, eq=False)
class PredictedTokens:
    """Predictions (B, N, D'), the mean of those of several blocks, 0 where none asks; true (B, N, D'), of every patch.

    context (B, N) and blocks (B, M, N) bool; patches (B, N, C p^2), pixels as the encoder is shown them.
    """

    predictions: Tensor
    true: Tensor
    context: Tensor
    blocks: Tensor
    patches: Tensor

    @property
    def asked(self) -> Tensor:
        """Patches that some block asks for, (B, N) bool."""
        return self.blocks.any(1)


def model_of(run: Run | str | Path) -> tuple[JEPA, Encoder, int | None]:
    """A run's whole model, its encoder to use, and the step that they are of (None: not known).

    Raises UserError for a run without a predictor.
    """
    jepa, step = jepa_and_step(run)
    jepa.requires_grad_(False).eval()
    method, patch = jepa.method, jepa.method.encoder.patch_size
    size = (jepa.grid[0] * patch, jepa.grid[1] * patch)
    known = ImageSettings(size=size, channels=jepa.encoder.channels, depth="uint8")
    images = method.images if isinstance(method, Config) else known
    return jepa, Encoder(jepa.to_use, images, method.conditioning, method.which), step


def teacher_of(jepa: JEPA) -> Teacher | None:
    """The frozen teacher whose features a run's targets are, if it has one. Raises UserError where it cannot be had."""
    method = jepa.method
    if not isinstance(method, Config) or (found := with_teacher(method)[1]) is None:
        return None
    return Teacher(found, method.images, jepa.grid, method.target.layers).to(jepa.encoder.positions.device)


@torch.no_grad()
def predicted_tokens(jepa: JEPA, x: Tensor, teacher: Teacher | None = None, seed: int = 0) -> PredictedTokens:
    """Predictions of one draw of the method's masks for normalised images (B, C, H, W), whose targets are a frozen teacher's
    where it has one. Everything is in float32 and comes back on the host. Raises UserError for images of another size.

    Targets are normalised as in training, and made of the whole image; EC-IJEPA's are told of the same context.
    """
    device, masks, parts = jepa.encoder.positions.device, _masks(jepa, len(x), seed), []
    height, width = (n * jepa.method.encoder.patch_size for n in jepa.grid)
    if x.shape[2:] != (height, width):
        raise UserError(f"the predictor knows images of {height}x{width} pixels, got {tuple(x.shape)}")
    with autocast(device, torch.float32):
        for first in range(0, len(x), PREDICTED_AT_ONCE):
            some = slice(first, min(first + PREDICTED_AT_ONCE, len(x)))
            parts.append(_of_batch(jepa, x[some].to(device), masks.of_images(some), teacher))
    joined = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("predictions", "true", "context", "blocks", "patches")
    )
    return PredictedTokens(*joined)


@torch.no_grad()
def noise_draws(jepa: JEPA, x: Tensor, n: int, draws: int, seed: int = 0) -> Tensor:
    """Predictions (draws, n, N, D') as those of `predicted_tokens` for the first n of the same images (B, C, H, W), each with
    another draw of the noise on the positions that are asked for (StoP)."""
    device, masks = jepa.encoder.positions.device, _masks(jepa, len(x), seed).of_images(slice(0, n))
    with autocast(device, torch.float32):
        context = jepa.encode_context(patchify(x[:n].to(device), jepa.method.encoder.patch_size), masks)
        said = [jepa.predictor(context, masks, rng.torch_seed(seed, "noise drawn", k)).float().cpu() for k in range(draws)]
    return torch.stack([_by_patch(each, masks, n, jepa.grid[0] * jepa.grid[1]) for each in said])


def _masks(jepa: JEPA, images: int, seed: int) -> Masks:
    """One draw of the method's masks for each image."""
    law = jepa.method.masking
    once = {"draws": 1, **({"contexts": 1} if "contexts" in type(law).model_fields else {})}
    return law.model_copy(update=once).sample(jepa.grid, np.arange(images), seed=seed)


def _by_patch(predictions: Tensor, masks: Masks, b: int, n: int) -> Tensor:
    """Predictions of target patches -> (B, N, D'), the mean of those of several blocks, 0 where none asks."""
    block = np.repeat(np.arange(len(masks.target_lengths)), masks.target_lengths)
    place = torch.from_numpy(masks.draw_of_block[block] * n + masks.targets)
    count = torch.bincount(place, minlength=b * n).clamp(min=1)[:, None]
    mean = torch.zeros(b * n, predictions.shape[1]).index_add_(0, place, predictions) / count
    return mean.view(b, n, -1)


def _of_batch(jepa: JEPA, x: Tensor, masks: Masks, teacher: Teacher | None) -> PredictedTokens:
    b, n = len(x), jepa.grid[0] * jepa.grid[1]
    patches = patchify(x, jepa.method.encoder.patch_size)
    with_all = _and_all(masks, n)
    wanted = torch.from_numpy(np.repeat(np.tile([False, True], b), with_all.target_lengths))
    true = jepa.encode_target(patches, with_all, None if teacher is None else teacher(x))[0].float().cpu()[wanted]
    predictions = jepa.predictor(jepa.encode_context(patches, masks), masks).float().cpu()
    context = torch.zeros(b, n, dtype=torch.bool)
    context[torch.from_numpy(np.repeat(masks.image_of_draw, masks.context_lengths)), torch.from_numpy(masks.context)] = True
    blocks = torch.zeros(len(masks.target_lengths), n, dtype=torch.bool)
    block = np.repeat(np.arange(len(masks.target_lengths)), masks.target_lengths)
    blocks[torch.from_numpy(block), torch.from_numpy(masks.targets)] = True
    mean = _by_patch(predictions, masks, b, n)
    return PredictedTokens(mean, true.view(b, n, -1), context, blocks.view(b, -1, n), patches.cpu().view(b, n, -1))


def _and_all(masks: Masks, n: int) -> Masks:
    """For each draw its first block, as EC-IJEPA pools positions by its size, and then all n patches of the grid."""
    ends = np.cumsum(masks.target_lengths)
    first = np.unique(masks.draw_of_block, return_index=True)[1]
    blocks = [masks.targets[ends[i] - masks.target_lengths[i] : ends[i]] for i in first]
    targets = np.concatenate([part for block in blocks for part in (block, np.arange(n))])
    lengths = np.array([length for block in blocks for length in (len(block), n)], np.int64)
    draws = np.repeat(np.arange(len(blocks)), 2)
    return Masks(masks.context, masks.context_lengths, targets, lengths, draws, masks.image_of_draw)


def prediction_numbers(of: PredictedTokens) -> dict[str, float]:
    """How predictions depend on what is asked, all means over target patches of all images, of cosines:

    own: a prediction with the true token of its patch; elsewhere: with those of other patches of its image that were asked for;
    other_image: with the next image's at the same place. prediction_spread, true_spread: 1 less the cosine of two predictions
    (true tokens) at two places of an image; 0 were the place of no account. found: share of predictions whose nearest of all
    patches of all images is their own; found_image: of their own image; chance: of found. NaN where there is nothing to compare.
    """
    p, t = (F.normalize(x.double(), dim=2) for x in (of.predictions, of.true))
    sums = dict.fromkeys(("own", "elsewhere", "other_image", "prediction_spread", "true_spread"), 0.0)
    counts = dict.fromkeys(sums, 0)
    for i, places in enumerate(of.asked):
        mine, truth, next_truth = p[i, places], t[i, places], t[(i + 1) % len(t), places]
        apart = ~torch.eye(len(mine), dtype=torch.bool)
        found = {
            "own": (mine * truth).sum(1),
            "elsewhere": (mine @ truth.T)[apart],
            "other_image": (mine * next_truth).sum(1) if len(t) > 1 else mine.new_zeros(0),
            "prediction_spread": 1 - (mine @ mine.T)[apart],
            "true_spread": 1 - (truth @ truth.T)[apart],
        }
        for name, values in found.items():
            sums[name] += float(values.sum())
            counts[name] += len(values)
    means = {name: sums[name] / counts[name] if counts[name] else float("nan") for name in sums}
    return means | _looked_for(of, p, t)


def _looked_for(of: PredictedTokens, p: Tensor, t: Tensor) -> dict[str, float]:
    """How often a prediction's nearest patch of all is its own, and of its own image."""
    some, n = of.asked[:LOOKED_FOR], t.shape[1]
    image, place = some.nonzero(as_tuple=True)
    nearest = (p[image, place].float() @ t.flatten(0, 1).float().T).argmax(1)
    right, same = nearest == image * n + place, nearest // n == image
    return {"found": float(right.double().mean()), "found_image": float(same.double().mean()), "chance": 1 / (len(t) * n)}


def nearest_patches(of: PredictedTokens, images: int) -> Tensor:
    """For the first so many images, where among all patches of all *other* images, as image * N + patch, each prediction's
    nearest true token is: (images, N), -1 where nothing was asked, or there is no other image."""
    n, found = of.true.shape[1], torch.full((images, of.true.shape[1]), -1)
    gallery = F.normalize(of.true.flatten(0, 1), dim=1)
    for i in range(images if len(of.true) > 1 else 0):
        cosines = F.normalize(of.predictions[i, of.asked[i]], dim=1) @ gallery.T
        cosines[:, i * n : (i + 1) * n] = -2
        found[i, of.asked[i]] = cosines.argmax(1)
    return found
