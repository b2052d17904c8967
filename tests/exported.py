"""Runs of two steps whose weights are then made such that a wrong bias, norm or position would show."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jepakit.artifacts import checkpoint
from jepakit.artifacts.checkpoint import Checkpoint, load_checkpoint
from jepakit.artifacts.run import Run
from jepakit.training.train import pretrain

SHAPE = "encoder.width=16 encoder.depth=2 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
TINY = f"{SHAPE} masking.min_keep=2 optim.batch_size=8 optim.steps=2 run.threads=1".split()


def photos(folder: Path, count: int = 12) -> Path:
    """A folder of small images, two classes."""
    for i in range(count):
        place = folder / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24, 20 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def made_run(data: Path, out: Path, method: str, *settings: str) -> Run:
    """A run of a method on these images, all its weights and biases moved by noise."""
    run = pretrain(str(data), out, method=method, set=[*TINY, "images.size=16", *settings])
    found = load_checkpoint(run.checkpoints / "latest")
    generator = torch.Generator().manual_seed(0)
    moved = {name: x + 0.2 * torch.randn(x.shape, generator=generator) for name, x in found.tensors["model"].items()}
    checkpoint.save(run.checkpoints, found.state["step"], Checkpoint({**found.tensors, "model": moved}, found.state), keep=2)
    return run
