"""The table of directions: on features made of known parts it says which part is which."""

import sys
from pathlib import Path

import numpy as np
import torch

from jepakit.evaluation.split import Split

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from directions import told

CLASSES, EACH = 20, 40  # in each half


def test_a_direction_is_of_the_class_or_held_by_nothing_or_of_the_colour() -> None:
    """Largest first: class; class means that differ, but not the same way in the other half; colour; chance. Then nothing."""
    g = np.random.default_rng(0)
    labels = np.tile(np.repeat(np.arange(CLASSES), EACH), 2)
    train, test = np.split(np.arange(len(labels)), 2)
    chance = g.standard_normal((len(labels), 5))
    colour = g.uniform(0, 1, (len(labels), 3))
    means = g.standard_normal((3, CLASSES))
    features = np.zeros((len(labels), 5))
    features[:, 0] = 16 * (means[0, labels] + 0.1 * chance[:, 0])
    features[:, 1] = 8 * (np.concatenate([means[1, labels[train]], means[2, labels[test]]]) + 0.1 * chance[:, 1])
    features[:, 2] = 4 * (2 * colour[:, 0] - 3 * colour[:, 1] ** 2)
    features[:, 3] = chance[:, 3]
    turned = 30 + features @ np.linalg.qr(g.standard_normal((384, 384)))[0][:5]
    split = Split(train, test, torch.from_numpy(labels[train]), torch.from_numpy(labels[test]), None)

    table = told(torch.from_numpy(turned).float(), torch.from_numpy(colour).float(), split)

    rows = [[float(cell) for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:] if line.startswith("|")]
    assert [row[0] for row in rows] == [1, 2, 3, 4], "the others have no variance"
    of_class, held, of_colour = np.array(rows)[:, 2:].T
    assert min(of_class[:2]) > 0.9 and max(abs(of_class[2:])) < 0.2
    assert held[0] > 0.98 and max(held[1:]) < 0.7
    assert of_colour[2] > 0.9 and max(of_colour[[0, 1, 3]]) < 0.1
    assert 99.9 < sum(row[1] for row in rows) < 100.1
    assert "nan" not in table
