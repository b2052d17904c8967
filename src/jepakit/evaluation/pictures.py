"""What a report shows of a run: masks over images, and nearest neighbours. Arrays in one file, nothing pickled."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jepakit.config.config import Config
from jepakit.core.files import atomic_write
from jepakit.data.crops import to_show
from jepakit.data.samples import read_many
from jepakit.data.sources import Source, evenly
from jepakit.evaluation.features import evaluation_view, say_left_out, split_unread
from jepakit.evaluation.probes.knn import neighbours

EXAMPLES, QUERIES, NEIGHBOURS = 6, 8, 6


def save_pictures(path: Path, config: Config, source: Source, features: Tensor, places: NDArray[np.int64]) -> None:
    """Write images (n, H, W, 3) with a draw of masks each, and queries with their nearest neighbours, to `path`.

    features (n, D) are those of the samples at `places` (n,) of the source.
    """
    rows, columns = config.grid
    ids = places[evenly(len(places), EXAMPLES)]
    masks = config.masking.sample(config.grid, ids, seed=config.seed)
    first = masks.first_draws
    context = np.zeros((len(masks.context_lengths), rows * columns), bool)
    context[np.repeat(np.arange(len(context)), masks.context_lengths), masks.context] = True
    targets = np.zeros((len(masks.target_lengths), rows * columns), bool)
    targets[np.repeat(np.arange(len(targets)), masks.target_lengths), masks.targets] = True
    queries, found = _neighbours(source, features, places)
    with atomic_write(path) as draft:
        np.savez_compressed(
            draft,
            images=_images(source, ids, config),
            context=context[first].reshape(-1, rows, columns),
            targets=targets.reshape(len(context), -1, rows * columns)[first].reshape(len(ids), -1, rows, columns),
            query_images=_images(source, queries, config),
            neighbour_images=_images(source, found.ravel(), config).reshape(*found.shape, *config.images.height_width, 3),
            query_labels=labels_in_words(source, queries),
            neighbour_labels=labels_in_words(source, found.ravel()).reshape(found.shape),
        )


def _neighbours(source: Source, x: Tensor, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in the source of queries (held-out samples where there are labels) and of their neighbours."""
    test = source.labels.test[places] if source.labels else np.arange(len(x)) % 5 == 4
    if not test.any() or test.all():
        test = np.arange(len(x)) < max(1, len(x) // 5)
    asked = np.nonzero(test)[0]
    asked = asked[evenly(len(asked), QUERIES)]
    others = np.nonzero(~test)[0]
    _, index = neighbours(x[others], x[asked], NEIGHBOURS)
    return places[asked], places[others[index.numpy()]]


def _images(source: Source, ids: NDArray[np.int64], config: Config) -> NDArray[np.uint8]:
    """Images (n, H, W, 3); black for one that could be read for the features and cannot be now, which is said."""
    found = read_many(source, ids, lambda i: evaluation_view(source, i, config.images), seconds=config.run.read_timeout_seconds)
    good, bad = split_unread(source, ids, found)
    say_left_out(bad)
    shown = dict(good)
    black = np.zeros((*config.images.height_width, 3), np.uint8)
    return np.stack([to_show(shown[i]).permute(1, 2, 0).numpy() if i in shown else black for i in ids.tolist()])


def labels_in_words(source: Source, ids: NDArray[np.int64]) -> NDArray[np.str_]:
    """Names of classes; empty for a sample without a label."""
    labels = source.labels

    def said(place: int) -> str:
        if labels is None or labels.values[place] < 0:
            return ""
        if labels.targets is None:
            return labels.classes[int(labels.values[place])]
        if labels.kind == "number":
            return f"{float(labels.targets[place]):g}"
        return ", ".join(name for name, there in zip(labels.classes, labels.targets[place], strict=True) if there == 1)

    return np.array([said(int(i)) for i in ids], np.str_)
