"""The probes on frozen features, each a few lines here and its idea in the file named after it.

n training samples, m test samples, D features, T patch tokens, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from jepakit.core.settings import Settings
from jepakit.data.sources import LabelKind
from jepakit.evaluation.features import FrozenFeatures
from jepakit.evaluation.metrics import LESS_IS_BETTER, Predictions, goodness
from jepakit.evaluation.probes.attentive import attentive
from jepakit.evaluation.probes.finetune_recipe import FineTuning
from jepakit.evaluation.probes.knn import knn_scores
from jepakit.evaluation.probes.linear_probe import TRANSFER, TRANSFER_CLEVR, LinearProbe, linear_probe
from jepakit.evaluation.probes.logistic import as_predictions, logistic, validation_fifth
from jepakit.evaluation.probes.low_shot import low_shot, names_in
from jepakit.evaluation.probes.ridge import PENALTIES, ridge_probe
from jepakit.evaluation.probes.spectrum import LiDAR, RankMe
from jepakit.model.images import Symmetry


class KNN(Settings):
    k: int = Field(20, ge=1, description="neighbours")
    temperature: float = Field(0.07, gt=0, description="votes weigh exp(cosine / temperature)")


class Attentive(Settings):
    heads: int | None = Field(None, ge=1, description="attention heads; none: one for 64 features")
    epochs: int = Field(20, ge=1, description="passes over the training samples")
    batch: int = Field(256, ge=1, description="images a step")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")


class FewShots(Settings):
    shots: int | None = Field(None, ge=1, description="training images of each class; none: a share")
    share: float = Field(0.01, gt=0, le=1, description="share of each class's training images, one at least")
    draws: int = Field(5, ge=1, description="draws of training images")
    list: str | None = Field(None, description="a file of image names to train on instead, such as the published 1 % list")


class Boxes(Settings):
    size: int | None = Field(None, ge=1, description="side of the square images are resized to; none: the encoder's")
    epochs: int = Field(10, ge=1, description="passes over the training images")
    limit: int | None = Field(None, ge=1, description="training images at most")


class Segmentation(Boxes):
    zero_is_other: bool | None = Field(
        None, description="label 0 is no class, as in ADE20K; none: yes in folders like its own, no in VOC's"
    )
    ignore: tuple[int, ...] | None = Field(
        None, description="values of label images that are no class; none: 255, of 16 bits 65535, unless a list names it"
    )
    classes: str | None = Field(
        None, description="a file that lists the classes, VALUE NAME in a line; none: classes.txt or the like beside the images"
    )


class Davis(Settings):
    short_side: int = Field(480, ge=16, description="pixels of the shorter side that frames are resized to")


class AtInference(Settings):
    """How an encoder that was trained with conditioning is conditioned when it is judged."""

    inference: bool | None = Field(None, description="condition on all positions at inference; none: as the run says")
    infer_kernel: int | None = Field(None, ge=1, description="side of the square averaged into one token; none: as the run says")
    infer_stride: int | None = Field(None, ge=1, description="step between the squares; none: as the run says")


class Protocol(Settings):
    """Settings of all tasks; `jepakit evaluate RUN --tasks T group.key=value` sets them."""

    seed: int = Field(0, ge=0, description="draws, orders and first weights of probes are functions of it")
    images_limit: int | None = Field(None, ge=10, description="labelled images at most, evenly over the set")
    symmetry: Symmetry = Field(
        None,
        description="mirror or d4: an encoder's features, and a fine-tuned one's scores, are averaged over these turns of an "
        "image (as images.symmetry); none: of the image as it is",
    )
    metric: str = Field(
        "",
        description="what counts, and chooses settings on the validation fifth (more, with commas, are shown and compared "
        "too): accuracy, balanced_accuracy, macro_f1, auroc, average_precision; of numbers r2, mae, spearman",
    )
    aggregate: Literal["none", "group"] = Field(
        "none",
        description="group: features are averaged over each group (a volume's slices) before probes, of attentive and "
        "finetune the scores",
    )
    shortcuts: str = Field(
        "",
        description="other labels of the same images (a table's column), such as the site or scanner: whether features tell it, "
        "and the label where it is left out of training",
    )
    baselines: bool = Field(
        True,
        description="judge an untrained encoder beside it, and of frozen features raw pixels and their PCA; false: the encoders "
        "alone, where those are known already",
    )
    conditioning: AtInference = Field(default_factory=AtInference)
    rankme: RankMe = Field(default_factory=RankMe)
    lidar: LiDAR = Field(default_factory=LiDAR)
    knn: KNN = Field(default_factory=KNN)
    linear: LinearProbe = Field(default_factory=LinearProbe)
    transfer: LinearProbe = Field(
        default_factory=LinearProbe, description="what is not given is VISSL's, the longer one for whole images"
    )
    low_shot: FewShots = Field(default_factory=FewShots)
    attentive: Attentive = Field(default_factory=Attentive)
    finetune: FineTuning = Field(default_factory=FineTuning, description="what is not given is MAE's for the encoder's size")
    segmentation: Segmentation = Field(default_factory=Segmentation)
    boxes: Boxes = Field(default_factory=Boxes)
    davis: Davis = Field(default_factory=Davis)


@dataclass(frozen=True)
class ProbeLabels:
    """Labels of training and of test samples: places below `classes`, int64 (n,), (m,); several labels (n, K), (m, K), 0, 1, NaN;
    or numbers (n,), (m,).

    titles: gives the names of the n training images; whole_image: whether a label speaks of all of an image, so that a crop may
    have another; metric: what settings are chosen by; groups (n,): of training samples, which their fifth does not divide.
    """

    train: Tensor
    test: Tensor
    classes: int
    titles: Callable[[], list[str]]
    whole_image: bool
    metric: str = "accuracy"
    groups: NDArray[np.int64] | None = None

    @property
    def kind(self) -> LabelKind:
        """Of the labels."""
        return "multi" if self.train.ndim == 2 else "number" if self.train.is_floating_point() else "class"

    @property
    def chosen_by(self) -> dict[str, Any]:
        """How a probe is to choose its settings."""
        return {"metric": self.metric, "held": validation_fifth(self.train.numpy(), self.groups)}


Outcome = tuple[Predictions, dict[str, Any]]


def _knn(train: FrozenFeatures, test: FrozenFeatures, y: ProbeLabels, p: Protocol) -> Outcome:
    settings: dict[str, Any] = {"k": p.knn.k, "temperature": p.knn.temperature}
    return as_predictions(knn_scores(train.last, y.train, test.last, classes=y.classes, **settings), y.train), {}


def _linear(train: FrozenFeatures, test: FrozenFeatures, y: ProbeLabels, p: Protocol) -> Outcome:
    if y.kind == "number":
        numbers, about = ridge_probe(train.layers, y.train, test.layers, y.test, p.linear.layers, **y.chosen_by)
        return as_predictions(numbers, y.train), {**about, "settings": {"layers": p.linear.layers, "penalties": PENALTIES}}
    scores, about = linear_probe(train.layers, y.train, test.layers, y.test, p.linear, p.seed, **y.chosen_by)
    return as_predictions(scores, y.train, logits=True), about


def _transfer(train: FrozenFeatures, test: FrozenFeatures, y: ProbeLabels, p: Protocol) -> Outcome:
    settings = p.transfer.over(TRANSFER_CLEVR if y.whole_image else TRANSFER)
    scores, about = linear_probe(train.layers, y.train, test.layers, y.test, settings, p.seed, **y.chosen_by)
    return as_predictions(scores, y.train, logits=True), {**about, "settings": settings.model_dump(mode="json")}


def _logistic(train: FrozenFeatures, test: FrozenFeatures, y: ProbeLabels, p: Protocol) -> Outcome:
    found, c = logistic(train.last, y.train, test.last, y.classes, **y.chosen_by)
    return as_predictions(found, y.train), {"C": c}


def _low_shot(train: FrozenFeatures, test: FrozenFeatures, y: ProbeLabels, p: Protocol) -> Outcome:
    s = p.low_shot
    rows = names_in(Path(s.list), y.titles()) if s.list else None
    drawn = {"shots": s.shots, "share": None if s.shots else s.share, "draws": s.draws, "rows": rows, "seed": p.seed}
    result = low_shot(train.last, y.train, test.last, y.test, classes=y.classes, metric=y.metric, **drawn)  # type: ignore[arg-type]
    over_draws = {"draws_low": result.low, "draws_high": result.high}  # t-interval: other training images, the same test images
    of_draws = {"accuracies": result.values} if y.metric == "accuracy" else {f"{y.metric}_of_draws": result.values}
    return result.predictions, {**of_draws, "n_train": result.n_train, **over_draws}


def _attentive(train: FrozenFeatures, test: FrozenFeatures, y: ProbeLabels, p: Protocol) -> Outcome:
    assert train.tokens is not None and test.tokens is not None  # asked for by TOKENS
    settings = {**dict(p.attentive), **y.chosen_by, "seed": p.seed}
    scores, about = attentive(train.tokens, y.train, test.tokens, y.classes, **settings)
    return as_predictions(scores, y.train, logits=True), about


PROBES: dict[str, Callable[[FrozenFeatures, FrozenFeatures, ProbeLabels, Protocol], Outcome]] = {
    "knn": _knn,
    "linear": _linear,
    "transfer": _transfer,
    "low_shot": _low_shot,
    "logistic": _logistic,
    "attentive": _attentive,
}
LAST4 = {"linear", "transfer"}  # probes that look at the last four blocks
TOKENS = {"attentive"}  # probes that look at patch tokens
NOT_OF_NUMBERS = {"transfer", "logistic"}  # recipes of classifiers


def on_held_fifth(task: str, train: FrozenFeatures, y: ProbeLabels, about: Mapping[str, Any], protocol: Protocol) -> float | None:
    """The metric on the held fifth of the training samples, of a probe that learnt from the others; about: its account.

    None where nothing can be held out, and for low-shot, which has nothing to spare.
    """
    sign, held = -1 if y.metric in LESS_IS_BETTER else 1, validation_fifth(y.train.numpy(), y.groups)
    if task == "low_shot" or not held.any():
        return None
    if "head" in about:  # of linear probes, which are chosen so
        return float(about["head"][y.metric]["held"])
    if tried := about.get(f"held_{y.metric}"):
        return float(max(tried.values(), key=lambda value: sign * value))
    learnt, asked = (np.nonzero(rows)[0] for rows in (~held, held))
    groups = None if y.groups is None else y.groups[learnt]
    of_fifth = replace(y, train=y.train[torch.from_numpy(learnt)], test=y.train[torch.from_numpy(asked)], groups=groups)
    found, _ = PROBES[task](train.rows(learnt), train.rows(asked), of_fifth, protocol)
    return sign * goodness(y.metric, found, of_fifth.test.numpy())
