"""Frozen features of a labelled set, of the encoder and of the baselines it has to beat, extracted once.

n samples, D features.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepakit.data.crops import centre_crop
from jepakit.data.decode import BadImageError
from jepakit.data.sources import Source
from jepakit.encoder import Encoder
from jepakit.errors import UserError
from jepakit.progress import progress

log = logging.getLogger("jepakit")
RAW_SIDE = 16  # pixels on a side of the raw-pixel baseline
BATCH = 128


@dataclass(frozen=True)
class Features:
    """Matrices (n, D) by name, and the samples' places in the source (n,): unreadable ones are left out."""

    by_name: dict[str, Tensor]
    ids: NDArray[np.int64]


def extract(source: Source, encoders: Mapping[str, Encoder], precision: torch.dtype = torch.float32) -> Features:
    """Embeddings by each encoder, and 'raw pixels', of all readable images; largest centre crop, resized."""
    first = next(iter(encoders.values()))
    device = next(first.parameters()).device
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        **{name: lambda x, e=e: e.embed(e.normalise(x.to(device))).float().cpu() for name, e in encoders.items()},  # type: ignore[misc]
        "raw pixels": _raw,
    }
    rows: dict[str, list[Tensor]] = {name: [] for name in functions}
    ids: list[int] = []
    lower = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    with progress("features", len(source)) as report, torch.inference_mode(), lower:
        for part, images in _batches(source, first.images.height_width):
            for name, function in functions.items():
                rows[name].append(function(images))
            ids += part
            report(ids[-1] + 1)
    if len(ids) < 2:
        raise UserError(f"{source.name} has {len(ids)} readable image(s): there is nothing to compare")
    return Features({name: torch.cat(parts) for name, parts in rows.items()}, np.array(ids))


def pca(train: Tensor, *others: Tensor, components: int) -> list[Tensor]:
    """Projections of each matrix on the leading principal components of `train` (n, D)."""
    mean = train.mean(0)
    _, _, v = torch.linalg.svd(train - mean, full_matrices=False)
    return [(x - mean) @ v[:components].T for x in (train, *others)]


def _raw(images: Tensor) -> Tensor:
    small = F.interpolate(images, (RAW_SIDE, RAW_SIDE), mode="bilinear", antialias=True)
    return small.flatten(1).float() / 255


def _batches(source: Source, size: tuple[int, int]) -> Iterator[tuple[list[int], Tensor]]:
    ids: list[int] = []
    images: list[Tensor] = []
    for index in range(len(source)):
        try:
            images.append(centre_crop(source.read(index), *size))
            ids.append(index)
        except BadImageError as error:
            log.warning("left out of the evaluation: %s: %s", source.title(index), error)
            continue
        if len(ids) == BATCH:
            yield ids, torch.stack(images)
            ids, images = [], []
    if ids:
        yield ids, torch.stack(images)
