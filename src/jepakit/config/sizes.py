"""Which size images are given and which patches, where settings leave it open."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jepakit.config.config import Config
from jepakit.core.errors import UserError

# Rows are (from so many on, value).
_SIZES = (28, 32, 48, 64, 96, 128)  # pixels: the largest that is no larger than the images
_LEAST = 32  # for images that are smaller than all of these
LARGEST = {"cpu": 64, "cuda": 128}
GRIDS = ((0, 8), (96, 12), (128, 16))  # pixels, patches on a side


def size_for(short: int, most: int, patch: int | None = None) -> int | None:
    """Of SIZES up to `most` the largest at which images of that shorter side are not enlarged; for smaller ones the LEAST.

    Only those of 4x4 patches or more, as masks need, where the patch is given; none where there is none.
    """
    sizes = [size for size in _SIZES if patch is None or (size % patch == 0 and size >= 4 * patch)]
    least = next((size for size in sizes if size >= _LEAST), None)
    return max((size for size in sizes if size <= min(short, most)), default=least)


def patch_for(sides: tuple[int, int]) -> int | None:
    """The patch that divides both sides into about as many as GRIDS has for such images; none where none comes near."""
    patches, _ = row_reached(GRIDS, min(sides))
    near = {p: abs(min(sides) / p - patches) for p in range(1, min(sides) + 1) if not any(side % p for side in sides)}
    patch = min(near, key=near.__getitem__)
    return patch if near[patch] <= patches / 4 else None


def smaller_for(short: int, config: Config, chosen: Mapping[str, Any]) -> str:
    """Words that set a size at which an image of that shorter side is not enlarged, and that the masks allow.

    Of the patches that are set, else the size and the patch that are chosen for such images. '' where there is none, or the
    size is a choice already. chosen: the settings that were chosen, nested.
    """
    images, encoder = chosen.get("images", {}), chosen.get("encoder", {})
    own, now, best = config.encoder.patch_size, min(config.images.height_width), size_for(short, LARGEST["cuda"])
    if "size" in images:
        return ""
    if "patch_size" not in encoder and _allowed(config, size := short // own * own, own) and size < now:
        return f"images.size={size}"
    if best is None or not best <= min(short, now - 1) or not _allowed(config, best, patch := patch_for((best, best))):
        return ""
    return f"images.size={best}" + ("" if "patch_size" in encoder else f" encoder.patch_size={patch}")


def _allowed(config: Config, size: int, patch: int | None) -> bool:
    """Whether there are 4x4 patches of it, and masks of them."""
    if patch is None or size < 4 * patch:
        return False
    with suppress(UserError):
        config.masking.check((size // patch, size // patch))
        return True
    return False


def row_reached(table: tuple[tuple[int, Any], ...], count: int) -> tuple[Any, str]:
    """The value of the last row that so many reach, and for how many images it is."""
    at = max(i for i, (least, _) in enumerate(table) if least <= count)
    low, value = table[at]
    if at + 1 == len(table):
        return value, f"{low:,} images or more"
    return value, f"{low:,} to {table[at + 1][0]:,} images" if low else f"fewer than {table[at + 1][0]:,} images"
