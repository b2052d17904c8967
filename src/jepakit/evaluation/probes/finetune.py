"""End-to-end fine-tuning: an encoder and a linear head trained together by the recipe of finetune_recipe.py, then tested.

Images: random resized crops, turns, mixup, cutmix. Model: the encoder's patch tokens, their mean, layer norm, a linear head;
drop path and label smoothing. MAE's RandAugment and random erasing are left out, since they need a library of augmentations,
so accuracies lie below the published ones by what these add. Everything random is a function of (seed, step or epoch, sample).
Several labels at once have a sigmoid each; for numbers the loss is the squared error, and no images are mixed, since nobody knows
the number of a mixture.

B images of a batch, S packed tokens, D width, L blocks, K classes.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jepakit.core import rng
from jepakit.core.device import autocast
from jepakit.core.errors import UserError, plain
from jepakit.core.progress import progress
from jepakit.data.crops import Crops, draw_turns, resize, stacked
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.samples import read_ahead, read_many
from jepakit.data.sources import Source
from jepakit.evaluation.features import evaluation_crop, pixels_of
from jepakit.evaluation.probes.finetune_recipe import FineTuning, drop_rates, parameter_groups, peak_rate, rate, steps_an_epoch
from jepakit.evaluation.probes.targets import loss_of, unscaled
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings, Symmetry, all_turns, turned
from jepakit.model.layout import Layout
from jepakit.model.vit import NORM_EPS, Block

_Rows = NDArray[np.int64]
_Box = tuple[int, int, int, int]  # top, bottom, left, right
TEST_BATCH = 128


def drop_path(branch: Tensor, rate: float, chance: Tensor) -> Tensor:
    """A residual branch (S, D) without the rows whose `chance` (S,) in [0, 1) is below the rate, the others scaled up."""
    if rate == 0:
        return branch
    kept = (chance >= rate).to(branch.dtype) / (1 - rate)
    return branch * kept[:, None]


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels (B,) -> targets (B, K): 1 - smoothing on the label, and smoothing spread over all classes.

    Several labels (B, K) go towards a half by as much, numbers (B,) stay as they are.
    """
    if labels.is_floating_point():
        return labels if labels.ndim == 1 else labels * (1 - smoothing) + smoothing / 2
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mixup(images: Tensor, targets: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Each image (B, C, H, W) and target (B, K) times lam, plus 1 - lam times that of the reversed batch (arXiv 1710.09412)."""
    return lam * images + (1 - lam) * images.flip(0), lam * targets + (1 - lam) * targets.flip(0)


def cutmix_box(height: int, width: int, lam: float, centre: tuple[float, float]) -> _Box:
    """The box of area 1 - lam and the image's aspect around a centre in [0, 1)², cut off at the edges (arXiv 1905.04899)."""
    side = math.sqrt(1 - lam)
    ends = []
    for size, place in zip((height, width), centre, strict=True):
        middle, half = int(place * size), int(size * side) // 2
        ends += [max(0, middle - half), min(size, middle + half)]
    return ends[0], ends[1], ends[2], ends[3]


def cutmix(images: Tensor, targets: Tensor, box: _Box) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) whose box comes from the reversed batch; targets (B, K) mixed in proportion to the areas."""
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, lam * targets + (1 - lam) * targets.flip(0)


def mixed(images: Tensor, targets: Tensor, settings: FineTuning, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and targets (B, K) after mixup or cutmix: of those that are on, the one that this step draws."""
    if not settings.mixup and not settings.cutmix:
        return images, targets
    draw = np.random.Generator(np.random.Philox(key=int(rng.keys(seed, "mixup", step)[0])))
    cut = bool(settings.cutmix) and (not settings.mixup or draw.random() < settings.switch)
    alpha = settings.cutmix if cut else settings.mixup
    lam = float(draw.beta(alpha, alpha))
    if not cut:
        return mixup(images, targets, lam)
    return cutmix(images, targets, cutmix_box(images.shape[2], images.shape[3], lam, (draw.random(), draw.random())))


class DropPathBlock(nn.Module):
    """A block whose two branches are dropped for some images: `chance` (2, B) says for which; none while it is None."""

    def __init__(self, block: Block, rate: float) -> None:
        super().__init__()
        self.block, self.rate = block, rate
        self.chance: Tensor | None = None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if self.chance is None:
            return self.block(x, layout)  # type: ignore[no-any-return]
        attn, mlp = (layout.fill(of.repeat_interleave(layout.used // len(of))) for of in self.chance)  # images of one length
        x = x + drop_path(self.block.attn(self.block.norm1(x), layout), self.rate, attn)
        return x + drop_path(self.block.mlp(self.block.norm2(x)), self.rate, mlp)


class Classifier(nn.Module):
    """A copy of an encoder, without its last norm: mean over patch tokens, layer norm, linear head (MAE's global pool)."""

    def __init__(self, encoder: Encoder, classes: int, settings: FineTuning, seed: int) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder).requires_grad_(True)
        vit = self.encoder.vit
        self.depth = len(vit.blocks)
        drop = drop_rates(self.depth, settings.drop_path)
        vit.blocks = nn.ModuleList(DropPathBlock(block, p) for block, p in zip(vit.blocks, drop, strict=True))  # type: ignore[arg-type]
        vit.norm = nn.Identity()  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):  # a new layer draws weights from the global state, though others follow
            self.norm, self.head = nn.LayerNorm(encoder.width, eps=NORM_EPS), nn.Linear(encoder.width, classes)
        generator = torch.Generator().manual_seed(rng.torch_seed(seed, "fine-tuning head"))
        nn.init.trunc_normal_(self.head.weight, std=settings.head_std, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, chance: Tensor | None = None) -> Tensor:
        """Normalised images (B, C, H, W) -> scores (B, K); chance (L, 2, B) in [0, 1) drops paths."""
        for i, block in enumerate(self.encoder.vit.blocks):
            block.chance = None if chance is None else chance[i]  # type: ignore[assignment]
        return self.head(self.norm(self.encoder.embed(images)))  # type: ignore[no-any-return]


def finetune(
    encoder: Encoder,
    source: Source,
    train_rows: _Rows,
    test_rows: _Rows,
    labels: NDArray[Any],
    classes: int,
    settings: FineTuning | None = None,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    seconds: float = 60.0,
    symmetry: Symmetry = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Scores of test_rows (m,) of a source, from train_rows (n,) and labels of all samples: logits (m, K) of classes (N,) < K
    or of several labels (N, K) of 0, 1, NaN; numbers (m,) from numbers (N,).

    A copy of the encoder learns, on its device; the one given keeps its weights, and its conditioning is that of inference.
    Test images are seen as in all of evaluation, whole or their largest centre crop, in all turns of `symmetry`, whose scores
    are averaged. Where the label speaks of the whole image, training images are not cropped either (mixup and cutmix are the
    settings' matter). With the prediction come the settings, the highest learning rate and the last loss. Raises UserError
    where the loss is not finite and for an image of other bands than the encoder's, and for one that cannot be read, or not
    within so many `seconds`.
    """
    settings, y = settings or FineTuning(), torch.as_tensor(labels)
    if y.is_floating_point() and y.ndim == 1:
        settings = settings.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    model = Classifier(encoder, max(1, classes), settings, seed).to(encoder.device)
    view = _View(source, encoder.images, source.labels is not None and source.labels.whole_image, settings, seed, seconds)
    with autocast(encoder.device, precision):
        loss = _fit(model, view, train_rows, y, settings, seed)
        scores = unscaled(_predict(model, view, test_rows, symmetry).float(), y[torch.from_numpy(train_rows)])
    return scores, {"lr": peak_rate(len(train_rows), settings), "loss": loss, **settings.model_dump(mode="json")}


def _fit(model: Classifier, view: "_View", rows: _Rows, labels: Tensor, settings: FineTuning, seed: int) -> float:
    """Train the model on the samples `rows` (n,) and return the last loss. Raises UserError where a loss is not finite."""
    device = model.head.weight.device
    groups = parameter_groups(model, model.depth, settings.layer_decay, settings.weight_decay)
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)
    batches, top = steps_an_epoch(len(rows), settings), peak_rate(len(rows), settings)
    steps, loss_summed = settings.epochs * batches, loss_of(labels[torch.from_numpy(rows)])

    def batch(step: int) -> _Rows:
        order = rng.permutation(seed, "fine-tuning", step // batches, len(rows))
        return rows[np.array_split(order, batches)[step % batches]]

    evaluation_crop = read_ahead(view.of(batch(step), step // batches) for step in range(steps))
    with progress("fine-tuning", steps) as report:
        for step, (ids, images) in enumerate(evaluation_crop):
            for group in adamw.param_groups:
                group["lr"] = rate(step / batches, top, settings) * group["scale"]
            targets = smoothed(labels[torch.from_numpy(ids)].to(device), len(model.head.bias), settings.label_smoothing)
            x, targets = mixed(model.encoder.normalise(images.to(device)), targets, settings, seed, step)
            loss = loss_summed(model(x, _chances(model.depth, ids, seed, step).to(device)), targets) / len(ids)
            if not torch.isfinite(loss):
                raise UserError(f"fine-tuning: the loss is {loss.item()} at step {step}: give a smaller base_lr")
            adamw.zero_grad()
            loss.backward()
            adamw.step()
            report(step + 1, f"loss {loss.item():.3f}")
    return loss.item()


@torch.no_grad()
def _predict(model: Classifier, view: "_View", rows: _Rows, symmetry: Symmetry) -> Tensor:
    """The mean scores (m, K) over all turns of a symmetry."""

    def scores(images: Tensor) -> Tensor:
        x = model.encoder.normalise(images.to(device))
        return torch.stack([model(turned(x, way.expand(len(x), -1))) for way in all_turns(symmetry)]).mean(0)

    device, batches = model.head.weight.device, np.array_split(rows, -(-len(rows) // TEST_BATCH))
    evaluation_crop = read_ahead(view.of(rows_of_batch, None) for rows_of_batch in batches)
    return torch.cat([scores(images).cpu() for _, images in evaluation_crop])


def _chances(depth: int, ids: _Rows, seed: int, step: int) -> Tensor:
    """Drop path's random numbers (L, 2, B) in [0, 1): one for each branch of each block and each image `ids` (B,)."""
    chance = rng.uniform(rng.keys(seed, "drop path", step, ids), 2 * depth)
    return torch.from_numpy(chance).float().T.reshape(depth, 2, len(ids))


@dataclass(frozen=True)
class _View:
    """What is shown of a sample: in an epoch a random crop, in a random turn; in a test (None) always the same."""

    source: Source
    images: ImageSettings
    whole_image: bool
    settings: FineTuning
    seed: int
    seconds: float = 60.0

    def of(self, rows: _Rows, epoch: int | None) -> tuple[_Rows, Tensor]:
        """Rows and their images (B, C, H, W). Raises UserError for one that cannot be read."""
        images: list[Tensor] = []
        found = read_many(self.source, rows, lambda row: self(row, epoch), seconds=self.seconds)
        for row, image in zip(rows.tolist(), found, strict=True):
            if isinstance(image, BadImageError):
                raise UserError(f"fine-tuning: {plain(self.source.title(row))} cannot be read: {plain(str(image))}; mend it")
            images.append(image)
        return rows, stacked(images)

    def __call__(self, row: int, epoch: int | None) -> Tensor:
        """(C, H, W). Raises BadImageError, and UserError for other bands than the encoder's."""
        pixels = pixels_of(self.source, row, self.images)
        if epoch is None:
            return evaluation_crop(pixels, self.images, self.whole_image)
        if not self.whole_image:
            law = self.images.model_copy(update={"crop_scale": self.settings.crop_scale})
            pixels = Crops.draw(law, np.array([row]), self.seed, epoch).cut(0, pixels)
        turns = draw_turns(self.settings.symmetry, self.seed, epoch, np.array([row]))
        return turned(resize(pixels, *self.images.height_width)[None], turns)[0]
