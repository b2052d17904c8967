"""Test images of a task that names pixels, as evaluation/dense/kept.py keeps them: labels, and what the linear head says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from .reading import RunFiles
from .whole_files import fitting, read_arrays

PIXEL_TASKS = {"segmentation": "Segmentation", "boxes": "Boxes"}
_COLOURS = [colormaps["tab20"].colors[i] for i in (*range(0, 20, 2), *range(1, 20, 2))]  # type: ignore[attr-defined]
_OTHERS = (0.6, 0.6, 0.6)


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """image (h, w, 3) uint8; truth and predicted (h, w): places of classes, below 0 where none is known."""

    title: str
    image: NDArray[np.uint8]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SegmentedImages:
    """Images, the names (K,) of all classes, and those of which pixels are shown, the most frequent first."""

    images: Sequence[SegmentedImage]
    names: Sequence[str]
    shown: Sequence[int]

    @property
    def legend(self) -> list[tuple[str, tuple[float, float, float]]]:
        """Classes with their colours; those beyond twenty share one."""
        named = [(self.names[c], colour) for c, colour in zip(self.shown, _COLOURS, strict=False)]
        rest = len(self.shown) - len(named)
        return [*named, *([(f"{rest} others", _OTHERS)] if rest else [])]

    def painted(self, classes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Classes (h, w) as colours (h, w, 4), with nothing where none is known."""
        table = np.zeros((len(self.names) + 1, 4))  # the last is of -1
        table[:-1] = (*_OTHERS, 1)
        for c, colour in zip(self.shown, _COLOURS, strict=False):
            table[c] = (*colour, 1)
        return (table[np.maximum(classes, -1)] * 255).round().astype(np.uint8)


def segmented_images(run: RunFiles, task: str) -> SegmentedImages | None:
    """None where none are kept. Raises DamagedFileError."""
    path = run.folder / "evaluation" / f"{task}.npz"
    if not (task in run.results and run.results[task]["rows"] and path.is_file()):
        return None
    arrays = read_arrays(path, lambda name: name == "classes" or name.startswith(("image/", "truth/", "predicted/", "title/")))
    return fitting(lambda: _checked(arrays)) if "classes" in arrays else None


def _checked(arrays: dict[str, NDArray[Any]]) -> SegmentedImages:
    names, images = [*map(str, arrays["classes"].tolist())], []
    for i in range(sum(name.startswith("image/") for name in arrays)):
        image, truth, predicted = (arrays[f"{kind}/{i}"] for kind in ("image", "truth", "predicted"))
        labels = truth.astype(np.int64), predicted.astype(np.int64)
        sizes = {each.shape for each in (image[..., 0], *labels)}
        if len(sizes) > 1 or image.shape[2:] != (3,) or image.dtype != np.uint8 or max(map(np.max, labels)) >= len(names):
            raise ValueError
        images.append(SegmentedImage(str(arrays[f"title/{i}"]), image, *labels))
    pixels = np.concatenate([each.ravel() for one in images for each in (one.truth, one.predicted)])
    counts = np.bincount(pixels[pixels >= 0], minlength=len(names))
    return SegmentedImages(images, names, [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]])
