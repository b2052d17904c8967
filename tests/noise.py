"""Pictures of noise, where a test only needs some."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_noise(folder: Path, count: int, seed: int = 0) -> str:
    """Write so many pictures of 20 pixels into a folder, and give its name back."""
    draw = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return str(folder)
