"""The samples that pretraining sees: images.split. What a set holds out is dropped from pretraining."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.findings import Finding
from jepakit.data.sources import Blocks, Labels, Source
from jepakit.data.unread_files import plural
from jepakit.model.images import MOST_PIXELS, ImageSettings


class TrainingPart(Source):
    """Some samples of a source: ids (n,), in rising order. It has no labels: the source's are of all its samples."""

    def __init__(self, source: Source, ids: NDArray[np.int64]) -> None:
        self.source, self.ids = source, ids
        self.name, self.labels, self.notes, self.blocks = source.name, None, source.notes, None
        self.by_place = source.by_place
        if source.blocks is not None:
            counts = np.bincount(source.blocks.of(ids), minlength=len(source.blocks.starts) - 1)
            starts = np.cumsum([0, *counts[counts > 0]]).astype(np.int64)
            self.blocks = Blocks(starts, source.blocks.at_once, source.blocks.sequential)

    def __len__(self) -> int:
        return len(self.ids)

    def raw(self, index: int) -> bytes | Pixels:
        return self.source.raw(int(self.ids[index]))

    def read(self, index: int, most_pixels: int = MOST_PIXELS, *, findings: list[Finding] | None = None) -> Pixels:
        return self.source.read(int(self.ids[index]), most_pixels, findings=findings)

    def title(self, index: int) -> str:
        return self.source.title(int(self.ids[index]))

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        self.source.prefetch(self.ids[ids])

    def wait_for(self, ids: NDArray[np.int64], seconds: float) -> None:
        self.source.wait_for(self.ids[ids], seconds)


def held_out(source: Source) -> NDArray[np.bool_] | None:
    """The samples (n,) that the source's own split, of its files or of its labels, keeps from training; None for no split."""
    held = source.held_out
    if held is None and source.labels is not None and source.labels.own_split:
        held = source.labels.test
    return held if held is not None and held.any() and not held.all() else None


def excluded_from_training(source: Source) -> NDArray[np.bool_]:
    """The samples (n,) that images.split=train keeps from training: the set's own held-out part, and all that probes test on.

    Where the own part has no labels, probes test on a fifth of each class, or of the groups.
    """
    held = held_out(source)
    kept = np.zeros(len(source), np.bool_) if held is None else held
    return kept if source.labels is None else kept | source.labels.test


def with_split(images: ImageSettings, source: Source) -> ImageSettings:
    """Settings with `split` decided: train where the source brings a split of its own, else all. Raises UserError."""
    own = held_out(source) is not None
    chosen = images.split if images.split != "auto" else "train" if own else "all"
    if chosen == "train" and not own and (source.labels is None or not source.labels.test.any()):
        raise UserError(f"images.split=train: {source.name} has neither a split of its own nor labels to hold out by; set all")
    return images.model_copy(update={"split": chosen})


def training_part(source: Source, images: ImageSettings) -> Source:
    """What a run with these settings is trained on: the source itself, or its TrainingPart where images.split is 'train'.

    Settings from before there was a split, where it is still 'auto', saw all.
    """
    if images.split != "train":
        return source
    kept = excluded_from_training(source)
    return TrainingPart(source, np.flatnonzero(~kept)) if kept.any() else source


def _fifth(labels: Labels | None) -> str:
    """What was held out where no split is known, in words."""
    if labels is not None and labels.groups is not None:
        return "a fifth of the groups"
    return "a fifth of each class" if labels is None or labels.kind == "class" else "a fifth of the labelled images"


def split_sentences(source: Source, images: ImageSettings) -> Sequence[str]:
    """What images.split means for a source, with the counts: the first for the log, further ones as warnings."""
    held, n, labels = held_out(source), len(source), source.labels
    in_fifths = labels is not None and not labels.own_split and bool(labels.test.any())
    unused = 0 if labels is None else labels.apart
    are = f"{plural(unused, 'labelled image')} of the validation part {'is' if unused == 1 else 'are'}"
    warnings = [f"{are} used by no probe, as there is a test part"] if unused else []
    if images.split == "train":
        kept = excluded_from_training(source)
        sentence = (
            f"images.split=train: {n - kept.sum():,} of {n:,} images are trained on; {kept.sum():,} are held out, for evaluation"
        )
        if in_fifths and held is not None:
            sentence += f": {held.sum():,} by the set's own split, of which no labels are there to test on"
            sentence += f", and {(kept & ~held).sum():,} more, {_fifth(labels)}, which evaluate tests on instead"
        return sentence, *warnings
    sentence = f"images.split=all: all {n:,} images are trained on"
    if held is not None:
        also = f"{held.sum():,} of them are held out by the set's own split: what is measured on them is no test"
        fifth = f"; nor is what is measured on {_fifth(labels)}, which evaluate tests on" if in_fifths else ""
        return sentence, f"{also}{fifth} (images.split=train keeps them out)", *warnings
    fifth = f"{_fifth(labels)}, which evaluate tests on, too (images.split=train keeps it out)"
    return f"{sentence}; {fifth if in_fifths else 'no split is known of them'}", *warnings
