"""Pictures of a run as they become files: many small ones as one file, side by side; and what has been made so far."""

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError, line_of

SHARP = 96  # pixels of a tile's longer side up to which it is kept without loss
JPEG_QUALITY = 86


@dataclass
class WrittenPictures:
    """Files in `folder` beside these: about (see run_pictures.py) and arrays by name; began: when, of the monotonic clock."""

    folder: Path
    began: float
    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def part(self, name: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Make one part; where it cannot be made, note why."""
        start = time.monotonic()
        try:
            self.about[name] = dict(make())
        except UserError as error:
            self.about["missing"].append(f"{name}: {line_of(error)}")
        self.about["seconds"][name] = round(time.monotonic() - start, 2)

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began


def tiles(images: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Images (n, H, W, 3), smaller where a side is above `longest` pixels: (n, h, w, 3)."""
    side = max(images.shape[1:3])
    if side <= longest:
        return images
    size = [max(1, round(each * longest / side)) for each in images.shape[1:3]]
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    small = F.interpolate(planes, size, mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).numpy()


def save_atlas(folder: Path, name: str, pictures: NDArray[np.uint8], *, sharp: bool | None = None) -> Mapping[str, Any]:
    """Write pictures (n, h, w, 3) to folder/NAME.png or .jpg: what a page needs to know of them: file, tile [h, w], columns,
    count. sharp: without loss; by default where tiles are small."""
    n, h, w, _ = pictures.shape
    columns = max(1, round(math.sqrt(n * h / w)))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, h, w, 3), np.uint8)
    sheet[:n] = pictures
    whole = sheet.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)
    lossless = max(h, w) <= SHARP if sharp is None else sharp
    file, out = f"{name}.{'png' if lossless else 'jpg'}", io.BytesIO()
    how: dict[str, Any] = {"optimize": True} if lossless else {"quality": JPEG_QUALITY}
    Image.fromarray(whole).save(out, "PNG" if lossless else "JPEG", **how)
    (folder / file).write_bytes(out.getvalue())
    return {"file": file, "tile": [h, w], "columns": columns, "count": n}
