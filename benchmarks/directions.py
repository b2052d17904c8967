"""What the large directions of an encoder's features tell of a labelled set: the class, or only the mean colour, or neither.

    python benchmarks/directions.py RUN --data LABELLED           # minutes; the encoders of a run and its untrained one

A cosine between features sees directions by their variance. For each principal direction of the training half's features:
variance (per cent of all); class (share of its variance that lies between classes); held (correlation of the classes' means
in the training and in the test half: what generalises); colour (R2, on the test half, of a fit by mean red, green and blue
and their squares). Below them kNN with all directions as they are, and whitened, where each weighs the same.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepakit.data.opening import open_source
from jepakit.evaluation.evaluated_model import subject
from jepakit.evaluation.features import RAW, RAW_SIDE, extract, pca
from jepakit.evaluation.probes.knn import knn
from jepakit.evaluation.split import Split, labelled, train_and_test
from jepakit.model.metrics import position_share

SHOWN = (*range(12), 16, 24, 32, 48, 64, 96)
LEAST = 1e-3  # of the largest deviation: what whitening adds to each
NOTHING = 1e-5  # of the largest deviation: below it a direction is rounding


def class_means(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(n, d), (n,) -> (classes, d)."""
    count = torch.bincount(labels, minlength=classes).clamp(min=1)
    return torch.zeros(len(count), x.shape[1]).index_add(0, labels, x) / count[:, None]


def explained(by: Tensor, x: Tensor, split: Split) -> Tensor:
    """R2 on the test half of each column of x (n, d) by a least-squares fit on the training half."""
    by = torch.cat([by, by.square(), torch.ones(len(by), 1)], 1)
    fit = by[split.test] @ torch.linalg.lstsq(by[split.train], x[split.train]).solution
    seen = x[split.test]
    return 1 - (seen - fit).square().sum(0) / (seen - seen.mean(0)).square().sum(0)


def accuracy(x: Tensor, split: Split) -> float:
    right = knn(x[split.train], split.train_labels, x[split.test]) == split.test_labels
    return 100 * float(right.float().mean())


def told(x: Tensor, colour: Tensor, split: Split) -> str:
    """The table of one encoder, as Markdown."""
    along = pca(x, split.train, x.shape[1])
    deviation, labels = along[split.train].norm(dim=0), split.train_labels
    share, of_colour = 100 * deviation.square() / deviation.square().sum(), explained(colour, along, split)
    parts, tested = ((split.train, labels), (split.test, split.test_labels)), split.test_labels.unique()
    here, there = (class_means(along[rows], y, int(labels.max()) + 1)[tested] for rows, y in parts)
    lines = ["| direction | variance, % | class | held | colour |", "|" + "---|" * 5]
    for i in (i for i in SHOWN if i < len(share) and deviation[i] > NOTHING * deviation[0]):
        of_class = position_share(along[split.train, i : i + 1], labels.numpy())  # with classes in the place of positions
        held = np.corrcoef(here[:, i], there[:, i])[0, 1]
        lines.append(f"| {i + 1} | {share[i]:.1f} | {of_class:.2f} | {held:.2f} | {of_colour[i]:.2f} |")
    white = along / (deviation + LEAST * deviation[0])
    lines.append(f"\nkNN {accuracy(x, split):.1f}, whitened {accuracy(white, split):.1f}\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="emoji")
    arguments = parser.parse_args()
    judged, source = subject(arguments.run, arguments.run), open_source(arguments.data)
    if source.labels is None:
        raise SystemExit(f"{arguments.data} has no labels")
    ids = labelled(source, source.labels)
    features, ids = extract(source, judged.encoders, ids, whole_image=source.labels.whole_image, precision=judged.precision)
    split = train_and_test(source, source.labels, ids)
    colour = features[RAW].last.unflatten(1, (-1, RAW_SIDE * RAW_SIDE)).mean(2)
    for name in judged.encoders:
        print(f"{name}\n\n{told(features[name].last, colour, split)}")


if __name__ == "__main__":
    main()
