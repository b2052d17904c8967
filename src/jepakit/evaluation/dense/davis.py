"""DAVIS-2017: the first frame's object masks carried through a video by nearest patch tokens, nothing trained.

The protocol of DINO's eval_video_segmentation (Jabri et al. 2020; Caron et al. 2021): short side 480, the long one floored to
a multiple of 64; labels of a frame are means of those of its nearest tokens in the first frame and the 7 frames before. Scores
are those of davis2017-evaluation, semi-supervised: J (IoU) and F (boundaries; Perazzi et al. 2016), first and last frame
left out, mean over frames of an object, then over objects. F frames, h, w rows and columns of patches, D width, K labels.
"""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from jepakit.core import distributed
from jepakit.core.compare import accuracy_interval
from jepakit.core.errors import UserError
from jepakit.core.progress import progress
from jepakit.data.crops import resize
from jepakit.evaluation.dense.kept import save_kept
from jepakit.evaluation.dense.label_images import label_image
from jepakit.evaluation.dense.patch_tokens import PatchTokens, with_raw_pixels
from jepakit.model.encoder import Encoder

Mask = NDArray[np.bool_]
_Labels = NDArray[np.uint8]
VOID = 255  # pixels of the truth that are not scored
STEP = 64  # pixels: the long side is a multiple of it
TOLERANCE = 0.008  # of the diagonal: how far apart two boundaries may run and still meet


@dataclass(frozen=True)
class Propagation:
    """How labels are propagated; the defaults are DINO's.

    queue: previous frames that a token is compared with, beside the first frame. radius: how many tokens up, down, left and
    right of its own place are compared (a square window). top: how many of these, the most similar, give it their labels.
    temperature: labels are weighted by exp(cosine / temperature).
    """

    queue: int = 7
    radius: int = 12
    top: int = 5
    temperature: float = 0.1


DINO = Propagation()


def propagate(features: Iterable[Tensor], first: Tensor, settings: Propagation = DINO) -> Tensor:
    """Soft labels of all frames, (F, h, w, K), from each frame's tokens (h, w, D) and the first frame's labels (h, w, K).

    `features` may be a tensor (F, h, w, D) or an iterator: only the first frame and those in the queue are held in memory.
    All tokens that are as similar as the last of the top count, as in DINO's code.
    """
    frames = (F.normalize(frame.float(), dim=-1) for frame in features)
    start_frame = next(frames)
    start = (start_frame, first.to(start_frame.device))
    queue: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.queue)
    labels = [start[1]]
    for frame in frames:
        sources, known = (torch.stack(frames_so_far) for frames_so_far in zip(start, *queue, strict=True))
        labels.append(_propagated(frame, sources, known, settings))
        queue.append((frame, labels[-1]))
    return torch.stack(labels)


def hard(soft: Tensor, patch: int) -> _Labels:
    """Soft labels (h, w, K) -> a label for each pixel, (patch h, patch w) uint8.

    Labels are upsampled bilinearly, each channel is scaled to [0, 1], and the largest channel wins. A constant channel is not
    scaled: its object is nowhere, or everywhere.
    """
    x = F.interpolate(soft.permute(2, 0, 1)[None], scale_factor=patch, mode="bilinear")[0]
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    stretched = torch.where(high - low > 1e-6, (x - low) / (high - low), x)
    return stretched.argmax(0).to("cpu", torch.uint8).numpy()  # type: ignore[no-any-return]


def region(a: Mask, b: Mask) -> float:
    """J: intersection over union of two masks (H, W); 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def boundary(a: Mask, b: Mask) -> float:
    """F: the F1 score of two masks' boundaries (H, W), symmetric in the two.

    Precision is the share of a's boundary pixels within ceil(0.008 diagonals) pixels of b's boundary, recall the reverse.
    1 if neither mask has a boundary, 0 if only one has; a mask that fills the frame has none.
    """
    edges = [_edges(a), _edges(b)]
    counts = [int(e.sum()) for e in edges]
    if not all(counts):
        return float(not any(counts))
    reach = math.ceil(TOLERANCE * math.hypot(*a.shape))
    rows, columns = (np.flatnonzero((edges[0] | edges[1]).any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # distances outside it do not matter
    x, y = edges[0][box], edges[1][box]
    matched = [int((e & (distance_transform_edt(~other) <= reach)).sum()) for e, other in ((x, y), (y, x))]
    precision, recall = (n / count for n, count in zip(matched, counts, strict=True))
    return 2 * precision * recall / (precision + recall) if matched != [0, 0] else 0.0


def frame_size(height: int, width: int, patch: int, short_side: int = 480) -> tuple[int, int]:
    """The size that a frame (height, width) is resized to, in pixels: (height, width).

    The short side is `short_side`, rounded down to a multiple of the patch. The long side keeps the aspect ratio, rounded down
    to a multiple of 64, or of the patch if that does not divide 64. Raises UserError where a side would be 0.
    """
    step = STEP if STEP % patch == 0 else patch
    short, long = short_side // patch * patch, short_side * max(height, width) // min(height, width) // step * step
    if not short or not long:
        raise UserError(
            f"short_side {short_side} leaves no patch of {patch} of a frame of {height}x{width}; give at least {STEP}"
        )
    return (long, short) if height > width else (short, long)


def davis(
    encoders: Mapping[str, Encoder],
    root: Path,
    short_side: int = 480,
    *,
    precision: torch.dtype = torch.float32,
    seconds: float = 60.0,
    keep: Path | None = None,
) -> list[dict[str, Any]]:
    """J and F of label propagation by each encoder's patch tokens and by raw pixels, and of the first mask kept: a row each.

    root: the folder of DAVIS-2017 (`open_sequences`). Rows {"name", "j", "f", "j_and_f", "low", "high", "objects"}: means over
    the objects of all sequences; low to high is the 95 % interval of J&F, objects of a sequence kept together. keep: a file
    for the J&F of each object by the first encoder. Raises UserError for a folder of another layout, unreadable files and a first
    mask without an object.
    """
    sequences = distributed.agreed(partial(open_sequences, Path(root)))
    kinds = with_raw_pixels(encoders, precision, seconds)
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*kinds, "first mask kept")}
    with progress("sequences", len(sequences)) as report:

        def take(found: dict[str, NDArray[np.float64]]) -> None:
            for name, of_objects in found.items():
                scores[name].append(of_objects)
            report(len(scores["first mask kept"]))

        distributed.spread(sequences, partial(_scored, kinds, short_side), take)
    if keep:
        distributed.from_main(lambda: _keep(keep, sequences, next(iter(scores.values()))))
    return distributed.from_main(lambda: [_row(name, sequences_scores) for name, sequences_scores in scores.items()])


def _scored(
    kinds: Mapping[str, PatchTokens], short_side: int, sequences: Sequence["Video"]
) -> Generator[dict[str, NDArray[np.float64]]]:
    """J and F of each object of a sequence, by who followed them."""
    for sequence in sequences:
        truth = sequence.truth()
        found = {name: score(_carried(sequence, truth[0], tokens, short_side), truth) for name, tokens in kinds.items()}
        yield {**found, "first mask kept": score(np.broadcast_to(_followed(truth[0]), truth.shape), truth)}


@dataclass(frozen=True)
class Video:
    """A video: files of its frames, and for each frame a label image: 0 the background, 1, 2, ... the objects."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]

    def truth(self) -> _Labels:
        """(F, H, W) uint8. Raises UserError where the sizes differ or the first frame has no object."""
        masks = [label_image(path) for path in self.masks]
        for path, mask in zip(self.masks, masks, strict=True):
            if mask.shape != masks[0].shape or mask.dtype != np.uint8:
                raise UserError(f"{path} is not of the size and depth of {self.masks[0]}")
        truth = np.stack(masks).astype(np.uint8)
        if not _followed(truth[0]).any():
            raise UserError(f"{self.masks[0]} shows no object: there is nothing to follow")
        return truth


def open_sequences(root: Path) -> list[Video]:
    """The videos named in root/ImageSets/2017/val.txt: JPEGImages/480p/NAME/*.jpg and Annotations/480p/NAME/*.png.

    Raises UserError where something is missing, or a video has fewer than three frames.
    """
    listed = root / "ImageSets" / "2017" / "val.txt"
    if not listed.is_file():
        raise UserError(f"no file {listed}: give DAVIS-2017's root, with ImageSets/, JPEGImages/ and Annotations/")
    names = listed.read_text(encoding="utf-8").split()
    if not names:
        raise UserError(f"{listed} names no sequence")
    return [_sequence(root, name) for name in names]


def score(predicted: _Labels, truth: _Labels) -> NDArray[np.float64]:
    """J and F of each object, (objects, 2): means over the frames (F, H, W) between the first and the last.

    Objects are 1 to the first frame's largest label, as in davis2017-evaluation; void pixels are in no mask.
    """
    void = truth[1:-1] == VOID
    values = []
    for label in range(1, int(_followed(truth[0]).max()) + 1):
        pairs = list(zip((predicted[1:-1] == label) & ~void, (truth[1:-1] == label) & ~void, strict=True))
        values.append([np.mean([region(a, b) for a, b in pairs]), np.mean([boundary(a, b) for a, b in pairs])])
    return np.array(values)


def _followed(first: _Labels) -> _Labels:
    """The first mask, void as background."""
    return np.where(first == VOID, 0, first).astype(np.uint8)


def _propagated(frame: Tensor, sources: Tensor, known: Tensor, settings: Propagation) -> Tensor:
    """(h, w, D), sources (C, h, w, D) with labels (C, h, w, K) -> (h, w, K). All tokens of norm 1."""
    height, width, _ = frame.shape
    place = torch.arange(width, device=frame.device)
    far = (place[:, None] - place).abs() > settings.radius  # (w, w)
    rows = []
    for i in range(height):
        window = slice(max(0, i - settings.radius), i + settings.radius + 1)
        similarity = frame[i] @ sources[:, window].flatten(0, 2).T  # (w, C * rows * w)
        similarity.view(width, -1, width).masked_fill_(far[:, None], float("-inf"))
        top = similarity.topk(min(settings.top, similarity.shape[1]), dim=1).values
        weight = ((similarity - top[:, :1]) / settings.temperature).exp() * (similarity >= top[:, -1:])
        rows.append(weight @ known[:, window].flatten(0, 2) / weight.sum(1, keepdim=True))
    return torch.stack(rows)


def _edges(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour: what the benchmark calls a boundary."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")  # beyond the frame nothing changes
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    edges: Mask = (mask != right) | (mask != below) | (mask != across)
    return edges


def _carried(sequence: Video, first: _Labels, tokens: PatchTokens, short_side: int) -> _Labels:
    """Predicted labels (F, H, W) of a sequence from its first mask (H, W)."""
    height, width = first.shape
    size = frame_size(height, width, tokens.patch, short_side)
    small = _nearest(_followed(first), size[0] // tokens.patch, size[1] // tokens.patch)

    def features() -> Iterator[Tensor]:
        for path in sequence.frames:
            pixels = tokens.read(path)
            if pixels.shape[:2] != (height, width):
                raise UserError(f"{path} is not of the size of its mask, {height}x{width}")
            yield tokens(resize(pixels, *size)[None])[0]

    with torch.no_grad():
        one_hot = F.one_hot(torch.from_numpy(small).long(), int(_followed(first).max()) + 1).float()
        soft = propagate(features(), one_hot)
        return np.stack([first, *(_nearest(hard(labels, tokens.patch), height, width) for labels in soft[1:])])


def _nearest(labels: _Labels, height: int, width: int) -> _Labels:
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def _sequence(root: Path, name: str) -> Video:
    frames = sorted((root / "JPEGImages" / "480p" / name).glob("*.jpg"))
    folder = root / "Annotations" / "480p" / name
    masks = [folder / f"{frame.stem}.png" for frame in frames]
    if len(frames) < 3:
        raise UserError(f"{root}/JPEGImages/480p/{name} has {len(frames)} frames; three at least are needed to score one")
    missing = [mask for mask in masks if not mask.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of the {len(frames)} frames of {name} have no mask, first {missing[0]}")
    return Video(name, tuple(frames), tuple(masks))


def _keep(path: Path, sequences: Sequence[Video], by_sequence: list[NDArray[np.float64]]) -> None:
    names = np.array([video.name for video in sequences])
    each = {"each/j_and_f": np.concatenate(by_sequence).mean(1), "clusters": _sequence_of_each(by_sequence)}
    save_kept(path, {"ids": names, **each})


def _sequence_of_each(by_sequence: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(by_sequence)), [len(one) for one in by_sequence])


def _row(name: str, by_sequence: list[NDArray[np.float64]]) -> dict[str, Any]:
    objects = np.concatenate(by_sequence)
    j, f = objects.mean(0)
    low, high = accuracy_interval(objects.mean(1), _sequence_of_each(by_sequence))
    means = {"j": float(j), "f": float(f), "j_and_f": float((j + f) / 2)}
    return {"name": name, **means, "low": low, "high": high, "objects": len(objects)}
