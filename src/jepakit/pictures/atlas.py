"""Many small pictures as one file: tiles of one size, side by side and row by row, first to last."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

SHARP = 96  # pixels of a tile's longer side up to which it is kept without loss
JPEG_QUALITY = 86


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
