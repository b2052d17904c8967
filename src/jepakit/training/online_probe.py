"""The online probe of the encoder while it trains: kNN accuracy where there are labels, RankMe where there are none."""

import logging
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.config.config import Config
from jepakit.core import rng
from jepakit.core.device import autocast
from jepakit.core.errors import UserError, plain
from jepakit.data.crops import stacked
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.samples import read_many
from jepakit.data.sources import Blocks, Labels, Source
from jepakit.data.statistics import ordered_by
from jepakit.evaluation.features import BATCH, evaluation_view
from jepakit.evaluation.probes.knn import knn
from jepakit.model.encoder import Encoder
from jepakit.model.jepa import JEPA
from jepakit.model.metrics import rankme

log = logging.getLogger("jepakit")
STEP_COST = 2.5  # of a training step per image, in forward passes of the target encoder (a low estimate)
MAX_PROBE_SHARE = 0.03  # the most that a probe may take of the work between two
BLOCKS = 4  # of which images are drawn at least, where an epoch goes by blocks


@dataclass(frozen=True)
class OnlineProbe:
    """The images (n, C, H, W) of every probe, as evaluation sees them; labels (n,), if any; test (n,): those held out."""

    images: Tensor
    labels: Tensor | None
    test: Tensor
    every_steps: int

    @classmethod
    def prepare(cls, config: Config, source: Source, steps_per_epoch: int, stop: Event | None = None) -> "OnlineProbe | None":
        """Reads images that the seed draws, a third of them held out where there are labels. None where probes are turned off.

        Raises StuckError where nothing answers, StoppedError once `stop` is set.
        """
        if not config.run.probe_images:
            return None
        labels = _classes_of(source)
        order, whole_images = _draw(config, source, labels), labels is not None and labels.whole_image

        def read(index: int) -> Tensor:
            try:
                return evaluation_view(source, index, config.images, whole_images)
            except UserError as error:  # the loader will say it
                raise BadImageError(str(error)) from None

        threads, seconds = config.run.loader_threads, config.run.read_timeout_seconds
        found = zip(order.tolist(), read_many(source, order, read, threads=threads, seconds=seconds, stop=stop), strict=True)
        good = [(index, image) for index, image in found if not isinstance(image, BadImageError)]  # the loader names others
        ids, images = [index for index, _ in good], [image for _, image in good]
        if len(ids) < 2:
            return None
        values = None if labels is None else torch.from_numpy(labels.values[ids])
        test = torch.zeros(len(ids), dtype=torch.bool) if labels is None else torch.from_numpy(labels.test[ids])
        usable = None if values is None else _usable_by_knn(values, test)
        if values is None or usable is None:
            values = None
        else:
            images = [image for image, use in zip(images, usable.tolist(), strict=True) if use]
            values, test = values[usable], test[usable]
        least = len(images) / (MAX_PROBE_SHARE * STEP_COST * config.optim.batch_size)
        epochs = config.run.probe_every_epochs or max(1, -(-least // steps_per_epoch))
        every = config.run.log_every_steps  # results go into rows of metrics, so probes fall on logged steps
        return cls(stacked(images), values, test, int(-(-epochs * steps_per_epoch // every) * every))

    def due(self, step: int) -> bool:
        """Whether a probe is to be taken after so many steps."""
        return step % self.every_steps == 0

    @torch.no_grad()
    def probe(self, jepa: JEPA, config: Config, dtype: torch.dtype) -> dict[str, float]:
        """'probe/knn' (share of test images named rightly) or 'probe/rankme' of the encoder that users will get."""
        encoder = Encoder(jepa.to_use, config.images, config.conditioning)
        with autocast(encoder.device, dtype):
            batches = (x.to(encoder.device) for x in self.images.split(BATCH))
            x = torch.cat([encoder.embed(encoder.normalise(batch)).float().cpu() for batch in batches])
        if self.labels is None:
            return {"probe/rankme": rankme(x)}
        predicted = knn(x[~self.test], self.labels[~self.test], x[self.test])
        return {"probe/knn": float((predicted == self.labels[self.test]).float().mean())}


def _classes_of(source: Source) -> Labels | None:
    """The labels that kNN can learn; None where no image has one, or they are numbers or several at once, which the log says."""
    labels = source.labels
    if labels is None or not (labels.values >= 0).any():
        return None
    if labels.kind != "class":
        log.info("looks take RankMe in the place of kNN: labels '%s' are no classes", plain(labels.name))
        return None
    return labels


def _draw(config: Config, source: Source, labels: Labels | None) -> NDArray[np.int64]:
    """Indices of the images to probe, from as few blocks as hold enough where an epoch goes by blocks."""
    count, blocks = config.run.probe_images, ordered_by(config.images, source)
    order = rng.permutation(config.seed, "online", 0, len(source))
    if labels is not None:
        order = order[labels.values[order] >= 0]
        test = labels.test[order]
        order = np.concatenate([_first(order[~test], count - count // 3, blocks), _first(order[test], count // 3, blocks)])
    return _first(order, count, blocks)


def _usable_by_knn(values: Tensor, test: Tensor) -> Tensor | None:
    """Which samples kNN can use: labels (n,), held out or not (n,) -> (n,) bool, without those it can only get wrong.

    None where kNN is impossible. The log says either, once a run.
    """
    unknown = test & ~torch.isin(values, values[~test])
    none = {
        "none of them is held out": not test.any(),
        "those to learn from are of fewer than two classes": len(values[~test].unique()) < 2,
        "none that is held out is of a class to learn from": bool((test == unknown).all()),
    }
    why = next((words for words, so in none.items() if so), None)
    if why:
        log.warning("looks take RankMe in the place of kNN: of %d labelled images %s", len(values), why)
        return None
    if unknown.any():
        log.warning(
            "looks' kNN leaves out %d of its %d held-out images: they are of %d classes that none of its %d training images is "
            "of; a higher run.probe_images has more of them",
            int(unknown.sum()),
            int(test.sum()),
            len(values[unknown].unique()),
            int((~test).sum()),
        )
    return ~unknown


def _first(order: NDArray[np.int64], count: int, blocks: Blocks | None) -> NDArray[np.int64]:
    """The first `count` of an order (n,); with blocks, from the first blocks of the order that together hold `count`."""
    if blocks is None or not len(order):
        return order[:count]
    block = blocks.of(order)
    met = np.array(list(dict.fromkeys(block.tolist())))
    enough = int(np.searchsorted(np.cumsum(np.bincount(block)[met]), count)) + 1
    return order[np.isin(block, met[: max(BLOCKS, enough)])][:count]
