"""Linear segmentation: one linear map from frozen patch tokens to classes of pixels (or of filled boxes), scored by mean IoU.

The choices: tokens are standardised by the training set's statistics (to which batch norm without affine tends) and mapped
by one linear layer; logits are laid over the pixels bilinearly, as usual for linear segmentation. The loss is
taken on labels of FINE x FINE to a patch, the score at each label image's own resolution. Images are resized whole to one
size, without augmentation, so that tokens are computed once. The learning rate is chosen on a fifth of the training images.
B images, h, w rows and columns of patches, D features, K classes, n images of a set.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jepakit.core import distributed, rng
from jepakit.core.environment import host_memory
from jepakit.core.errors import UserError
from jepakit.core.files import user_path
from jepakit.core.progress import progress
from jepakit.data.crops import resize, stacked
from jepakit.data.opening import SECONDS
from jepakit.evaluation.dense.annotated import Annotated, open_annotated, open_boxes
from jepakit.evaluation.dense.iou import Counts, confusion, miou, miou_row
from jepakit.evaluation.dense.kept import Segmented, keep_segmentation
from jepakit.evaluation.dense.pairs import IGNORED, Pair, PixelClasses
from jepakit.evaluation.dense.patch_tokens import PatchTokens, with_raw_pixels
from jepakit.evaluation.features import moments
from jepakit.model.encoder import Encoder

FINE = 4  # training labels on a side of a patch: 4 pixels of a patch of 16, the resolution at which UPerNet's logits are made
_BATCH = 16
_LRS = (1e-3, 3e-3, 1e-2)


class HeadTraining(TypedDict, total=False):
    """How a linear head is trained. epochs: passes over the training images; lrs: rates to choose from; seconds: for a file."""

    epochs: int
    lrs: Sequence[float]
    precision: torch.dtype
    seed: int
    seconds: float


def segmentation(
    encoders: Mapping[str, Encoder],
    root: Path,
    size: int | None = None,
    *,
    zero_is_other: bool | None = None,
    ignore: Sequence[int] | None = None,
    classes: Path | str | None = None,
    limit: int | None = None,
    keep: Path | None = None,
    **how: Unpack[HeadTraining],
) -> list[dict[str, Any]]:
    """Linear heads on frozen tokens of each encoder, of raw pixels, and the majority class: a row each.

    root: label images or masks, in any layout of `open_annotated`, which says what zero_is_other, ignore and classes (a list)
    are. size: side of the square that images are resized to, default the encoder's own size. limit: train on so many images,
    evenly spread, as the tokens of all are held in memory (float16). keep: a file for what `kept` keeps of the first encoder.
    Rows {"name", "miou", "low", "high", "pixel_accuracy", "classes": names, "per_class": IoU of each class or None where it
    does not occur, "images_with": how many test images have it} and the "lr" chosen; low and high bound the 95 % bootstrap
    interval of mean IoU over test images; where all are alike, that of as many right-or-wrongs.
    Raises UserError for a folder of another shape, unreadable files, labels without a class, too little memory.
    """

    def opened() -> Annotated:
        listed = None if classes is None else user_path(classes, "the list of classes")
        return open_annotated(Path(root), zero_is_other, limit, ignore=ignore, class_list=listed)

    return _rows(encoders, distributed.agreed(opened), size, keep, **how)


def boxes(
    encoders: Mapping[str, Encoder],
    root: Path,
    size: int | None = None,
    *,
    limit: int | None = None,
    keep: Path | None = None,
    **how: Unpack[HeadTraining],
) -> list[dict[str, Any]]:
    """As `segmentation`, with the boxes of COCO's JSON or VOC's XML, filled, as labels: which class's box is this pixel in?

    No detector's score: neighbours of a class are not told apart. Raises UserError as it.
    """
    return _rows(encoders, distributed.agreed(partial(open_boxes, Path(root), limit)), size, keep, **how)


def _rows(
    encoders: Mapping[str, Encoder],
    labelled: Annotated,
    size: int | None,
    keep: Path | None,
    epochs: int = 10,
    lrs: Sequence[float] = _LRS,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
    seconds: float = SECONDS,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, tokens in with_raw_pixels(encoders, precision, seconds).items():
        shape = distributed.from_main(partial(_shape, tokens, size))
        cache = _cached(name, tokens, labelled, shape)
        fit = partial(_trained, cache, labelled.classes, tuple(lrs), epochs, seed, tokens.device)
        head, lr = distributed.from_main(fit)
        del cache, fit
        segmented = partial(_segmented, head.to(tokens.device), tokens, shape)
        found = _tested(name, segmented, labelled)
        if keep and not rows:
            distributed.from_main(partial(keep_segmentation, keep, labelled, found, segmented, seed))
        rows.append({**distributed.from_main(partial(miou_row, name, labelled.names, found, seed)), "lr": lr})
    return [*rows, distributed.from_main(partial(_majority, labelled, seed))]


def _majority(labelled: Annotated, seed: int) -> dict[str, Any]:
    most = int(labelled.pixels.argmax())
    truths = (pair.read() for pair in labelled.test)
    found = (confusion(np.full_like(truth, most), truth, labelled.classes) for truth in truths)
    return miou_row("majority class", labelled.names, found, seed)


class PixelHead(nn.Module):
    """Standardise, one linear map, bilinear to any size: tokens (B, h, w, D) -> logits (B, K, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.linear = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.linear.weight)  # the loss is convex: nothing to break, and no seed to matter
        nn.init.zeros_(self.linear.bias)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, K, h, w)."""
        return self.linear((tokens.float() - self.mean) / self.std).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.logits(tokens), size, mode="bilinear")

    def predict(self, tokens: Tensor, size: tuple[int, int], at_once: int = 16) -> Tensor:
        """The largest logit's class, (B, H, W), a few classes at a time: large images have many pixels."""
        best = torch.full((len(tokens), *size), float("-inf"), device=tokens.device)
        where = torch.zeros_like(best, dtype=torch.int64)
        for first, logits in enumerate(self.logits(tokens).split(at_once, dim=1)):
            value, index = F.interpolate(logits, size, mode="bilinear").max(1)
            where = torch.where(value > best, index + first * at_once, where)
            best = torch.maximum(best, value)
        return where


@dataclass(frozen=True)
class _Cache:
    tokens: Tensor  # (n, h, w, D) float16
    labels: Tensor  # (n, FINE h, FINE w) int32

    @property
    def size(self) -> tuple[int, int]:
        return self.labels.shape[1], self.labels.shape[2]


def _shape(tokens: PatchTokens, size: int | None) -> tuple[int, int]:
    height, width = tokens.encoder.images.height_width if size is None else (size, size)
    if min(height, width) < tokens.patch or height % tokens.patch or width % tokens.patch:
        raise UserError(f"size {height}x{width} is no multiple of the patch size {tokens.patch}; give one that is")
    return height, width


def _read(pair: Pair, tokens: PatchTokens, shape: tuple[int, int]) -> tuple[Tensor, PixelClasses]:
    """An image at the shape, and its labels at their own size."""
    pixels, labels = tokens.read(pair.image), pair.read()
    if pixels.shape[:2] != labels.shape:
        sizes = " and ".join(f"{h}x{w}" for h, w in (pixels.shape[:2], labels.shape))
        raise UserError(f"{pair.image} and its labels {pair.where} differ in size: {sizes}")
    return resize(pixels, *shape), labels


def _cached(name: str, function: PatchTokens, labelled: Annotated, shape: tuple[int, int]) -> _Cache:
    """Tokens and labels of the training images; of several processes, which share the work, the first has them."""
    n, h, w = len(labelled.train), shape[0] // function.patch, shape[1] // function.patch
    labels, tokens, done = torch.empty(n, FINE * h, FINE * w, dtype=torch.int32), torch.empty(0), 0
    with progress(f"{name}: tokens", n) as report:

        def take(made: tuple[NDArray[np.float16], NDArray[np.int32]]) -> None:
            nonlocal tokens, done
            encoded, truths = made
            tokens = tokens if done else torch.empty(_affordable(n, h, w, encoded.shape[-1]), dtype=torch.float16)
            rows = slice(done, done + len(encoded))
            tokens[rows], labels[rows] = torch.from_numpy(encoded), torch.from_numpy(truths)
            done += len(encoded)
            report(done)

        batched = [labelled.train[start : start + _BATCH] for start in range(0, n, _BATCH)]
        distributed.spread(batched, partial(_encoded, function, shape, (FINE * h, FINE * w)), take)
    return _Cache(tokens, labels)


def _encoded(
    function: PatchTokens, shape: tuple[int, int], fine: tuple[int, int], batched: Sequence[Sequence[Pair]]
) -> Generator[tuple[NDArray[np.float16], NDArray[np.int32]]]:
    """Tokens (B, h, w, D) and labels (B, FINE h, FINE w) of each batch."""
    for pairs in batched:
        read = [_read(pair, function, shape) for pair in pairs]
        whole = (torch.from_numpy(truth)[None, None].float() for _, truth in read)
        labels = torch.cat([F.interpolate(each, fine, mode="nearest-exact")[:, 0].int() for each in whole])
        yield function(stacked([image for image, _ in read])).half().cpu().numpy(), labels.numpy()


def _affordable(*shape: int) -> tuple[int, ...]:
    """The shape, if memory holds it in float16. Raises UserError."""
    needed, have = 2 * int(np.prod(shape)), host_memory()
    if have and needed > 0.8 * have:
        few = int(0.8 * have / needed * shape[0])
        raise UserError(
            f"the tokens of {shape[0]} images take {needed / 1e9:.0f} GB of memory; give a smaller size or limit={few}"
        )
    return shape


def _trained(
    cache: _Cache, classes: int, lrs: tuple[float, ...], epochs: int, seed: int, device: torch.device
) -> tuple[PixelHead, float]:
    """A head on all of the cache, with the lr that has the best mean IoU on a fifth when trained on the others."""
    everything = torch.arange(len(cache.tokens))
    validation = everything % 5 == 4
    scores = []
    for lr in lrs if len(lrs) > 1 else ():
        head = _fit(cache, everything[~validation], classes, lr, epochs, seed, device)
        with torch.no_grad():
            found = np.zeros((classes, classes), np.int64)
            for rows in everything[validation].split(_BATCH):
                predicted = head.predict(cache.tokens[rows].to(device), cache.size).cpu().numpy()
                found += confusion(predicted, cache.labels[rows].numpy(), classes)
        scores.append(miou(found) if found.any() else 0.0)
    lr = lrs[int(np.argmax(scores))] if scores else lrs[0]
    return _fit(cache, everything, classes, lr, epochs, seed, device).cpu(), lr


def _fit(cache: _Cache, images: Tensor, classes: int, lr: float, epochs: int, seed: int, device: torch.device) -> PixelHead:
    """AdamW, cross-entropy over the labelled pixels of a batch, lr on a cosine to 0."""
    mean, variance = moments(cache.tokens[rows] for rows in images.split(_BATCH))
    head = PixelHead(mean.float(), variance.sqrt().clamp(min=1e-6).float(), classes).to(device)
    steps = epochs * -(-len(images) // _BATCH)
    optimiser = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(seed, "segmentation", epoch, len(images)).copy())
        for rows in images[order].split(_BATCH):
            labels = cache.labels[rows].to(device).long()
            logits = head(cache.tokens[rows].to(device), cache.size)
            total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            loss = total / (labels != IGNORED).sum().clamp(min=1)  # a batch may have no label at all
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return head


def _segmented(head: PixelHead, tokens: PatchTokens, shape: tuple[int, int], pair: Pair) -> Segmented:
    """A test image at the shape, its labels, and what the head says, at their own size."""
    image, truth = _read(pair, tokens, shape)
    with torch.no_grad():
        predicted = head.predict(tokens(image[None]), (truth.shape[0], truth.shape[1]))[0]
    return image, truth, predicted.cpu().numpy()


def _tested(name: str, segmented: Callable[[Pair], Segmented], labelled: Annotated) -> list[Counts]:
    """The confusion matrix of each test image, at its own size; of several processes the first has them."""
    found: list[Counts] = []
    with progress(f"{name}: test", len(labelled.test)) as report:

        def take(one: Counts) -> None:
            found.append(one)
            report(len(found))

        def work(pairs: Sequence[Pair]) -> Generator[Counts]:
            for pair in pairs:
                _, truth, predicted = segmented(pair)
                yield confusion(predicted, truth, labelled.classes)

        distributed.spread(labelled.test, work, take)
    return found
