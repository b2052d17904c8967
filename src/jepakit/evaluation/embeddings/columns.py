"""What stands beside a vector in a file of embeddings: place, path, labels, split and group of its image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepakit.data.sources import Labels, Source
from jepakit.evaluation.embeddings.embedder import Embedded, Embedder
from jepakit.evaluation.embeddings.parts import LABEL_OF, Columns, as_text
from jepakit.evaluation.features import UnreadRow


def columns_of(embedder: Embedder, source: Source, chunks: Sequence[Embedded]) -> tuple[Columns, list[UnreadRow]]:
    """The rows of a part, and the images that could not be read."""
    places = np.array([place for chunk in chunks for place in chunk.places], np.int64)
    columns: Columns = {"index": places, "path": np.array([source.title(i) for i in places.tolist()], np.str_)}
    labels, held = source.labels, source.held_out
    test = np.zeros(len(places), bool) if held is None else held[places]
    if labels is not None:
        values = labels.values[places]
        test = test | labels.test[places]
        columns |= _labels(labels, places) | {"split": np.where(test, 1, np.where(values >= 0, 0, -1))}
        columns |= {} if labels.groups is None else {"group": _groups(labels, places)}
    elif held is not None:
        columns["split"] = test.astype(np.int64)
    vectors = [chunk.vectors for chunk in chunks]
    columns["vector"] = np.concatenate(vectors) if vectors else np.zeros((0, *embedder.shape))
    return columns, [each for chunk in chunks for each in chunk.bad]


def _labels(labels: Labels, places: NDArray[np.int64]) -> Columns:
    """Of samples at places (n,): 'label', places of classes or numbers (n,); of several labels a column of 0, 1, NaN each."""
    if labels.kind != "multi":
        return {"label": labels.y[places]}
    return {f"{LABEL_OF}{as_text(name)}": labels.y[places, k] for k, name in enumerate(labels.classes)}


def _groups(labels: Labels, places: NDArray[np.int64]) -> NDArray[Any]:
    """Of samples at places (n,): names of groups, '' for an image that stands alone; numbers where groups have no names."""
    assert labels.groups is not None
    groups, names = labels.groups[places], labels.group_names
    return np.array([names[group] if group < len(names) else "" for group in groups], np.str_) if names else groups
