"""Some images of a set, as evaluation sees them: for the encoder, for people, and what is known of them.

n images, C channels, D features.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.core.errors import UserError
from jepakit.data.crops import stacked
from jepakit.data.samples import read_ahead
from jepakit.data.sources import Source
from jepakit.data.statistics import require_bands
from jepakit.evaluation.features import batches, evaluation_view, in_batches, say_left_out
from jepakit.model.encoder import Encoder
from jepakit.pictures.given import patch_tokens, to_look_at
from jepakit.pictures.picture_files import tiles


@dataclass(frozen=True, eq=False)
class PicturedImages:
    """Those of n places (n,) of a source that could be read: x (n, C, H, W) normalised, or, where they were embedded, none of
    it and vectors (n, D); pictures (n, h, w, 3) uint8 to look at."""

    places: NDArray[np.int64]
    x: Tensor
    vectors: Tensor
    pictures: NDArray[np.uint8]


def read_images(
    source: Source,
    encoder: Encoder,
    places: NDArray[np.int64],
    side: int,
    seconds: float,
    *,
    embed: bool = False,
    say: bool = False,
) -> PicturedImages:
    """Images at places (n,), pictures of at most `side` pixels; embed: keep the mean over patch tokens instead of the pixels.

    seconds: in which an image must come. An image that cannot be read is left out, and named with `say`. Raises UserError where
    none can, and for other bands.
    """
    require_bands(source, encoder.images, seconds)
    whole = source.labels is not None and source.labels.whole_image
    read = partial(evaluation_view, source, images=encoder.images, whole_image=whole)
    kept: list[int] = []
    given, vectors, pictures = [], [], []
    for good, bad in read_ahead(batches(source, in_batches(places), read, seconds)):
        say_left_out(bad if say else (), "the pictures")
        if not good:
            continue
        x = encoder.normalise(stacked([image for _, image in good]))
        if embed:
            vectors.append(patch_tokens(encoder, x).mean(1))
        else:
            given.append(x)
        pictures.append(tiles(to_look_at(x, encoder.images), side))
        kept += [place for place, _ in good]
    if not kept:
        raise UserError(f"{source.name}: none of {len(places)} images can be read")
    none = torch.zeros(0)
    x, found = (torch.cat(parts) if parts else none for parts in (given, vectors))
    return PicturedImages(np.array(kept), x, found, np.concatenate(pictures))


def group_names(source: Source, places: NDArray[np.int64]) -> list[str]:
    """What each image's group is called; "" where there are none."""
    labels = source.labels
    if labels is None or labels.groups is None:
        return [""] * len(places)
    names, groups = labels.group_names, labels.groups[places].tolist()
    return [names[g] if 0 <= g < len(names) else str(g) for g in groups]
