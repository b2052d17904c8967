"""What a dense task keeps of its judged encoder beside figures: what pairs two runs, and some test images as its head sees them.

TASK.npz: ids (n,), names of the test images, or sequences; truth: of pixels, how many of each class each image has (n, K).
  drawn/METRIC (R,)       the metric in resamples of the test images, those of `seed`
  each/METRIC (m,)        the metric of each object; clusters (m,): whose are not independent
  classes (K,)            names of the classes
  image/I (h, w, 3) uint8, truth/I and predicted/I (h, w) int32, IGNORED where no class is known, title/I: of the images shown
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.files import atomic_write
from jepakit.data.crops import resize, to_show
from jepakit.data.sources import evenly
from jepakit.evaluation.dense.annotated import Annotated
from jepakit.evaluation.dense.iou import Counts, class_pixels, resampled_miou
from jepakit.evaluation.dense.pairs import Pair, PixelClasses

KEPT_IMAGES, KEPT_SIDE = 6, 224  # images, and pixels of their longer side
Segmented = tuple[Tensor, PixelClasses, PixelClasses]  # an image (C, H, W) as the encoder sees it, its labels, and what is said


def keep_segmentation(
    path: Path, labelled: Annotated, found: Sequence[Counts], segmented: Callable[[Pair], Segmented], seed: int
) -> None:
    """Write the file of a task that names pixels; found: the confusion matrix of each test image; segmented: looks at one."""
    counts = [class_pixels(one) for one in found]
    arrays: dict[str, NDArray[Any]] = {"ids": np.array([pair.image.name for pair in labelled.test]), "seed": np.array(seed)}
    arrays |= {"truth": np.stack([of[1] for of in counts]), "drawn/miou": resampled_miou(counts, seed)}
    arrays["classes"] = np.array(labelled.names)
    for place, i in enumerate(evenly(len(labelled.test), KEPT_IMAGES).tolist()):
        image, truth, predicted = segmented(labelled.test[i])
        tile = _tile(truth.shape[0], truth.shape[1])
        at = np.ix_(*(((np.arange(few) + 0.5) * side / few).astype(int) for few, side in zip(tile, truth.shape, strict=True)))
        small = resize(to_show(image).permute(1, 2, 0).numpy(), *tile)
        arrays |= {f"image/{place}": small.permute(1, 2, 0).numpy(), f"title/{place}": np.array(labelled.test[i].image.name)}
        arrays |= {f"truth/{place}": truth[at], f"predicted/{place}": predicted[at]}
    save_kept(path, arrays)


def save_kept(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write the file of a task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]


def _tile(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a picture as it is kept."""
    scale = min(1.0, KEPT_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
