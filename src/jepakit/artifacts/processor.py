"""The settings of transformers' image processors, written and read without transformers."""

import logging
import math
from pathlib import Path
from typing import Any

from jepakit.config.renamed import stored_images
from jepakit.core.errors import UserError
from jepakit.core.files import load_json
from jepakit.model.images import ImageSettings

log = logging.getLogger("jepakit")
DEEPER = 256.5  # of the value that becomes 1: what is over it is of images deeper than 8 bits
WHY_NOT_RESIZED = (
    "transformers' processors crop and resize squares of 8 bits in one or three channels only: give arrays of {}x{} pixels in "
    "{} channels ({}), cut and resized as jepakit's evaluation does (jepakit.data.crops.centre_crop)"
)


def processor(images: ImageSettings) -> dict[str, Any]:
    """The settings of transformers' image processor that shows its model what our evaluation shows ours.

    That of Perceiver cuts the largest centre square before it resizes, as `crops.centre_crop`. Processors resize by Pillow, in
    8 bits of one or three channels; of all else they only scale and normalise, and the file says so.
    """
    height, width = images.height_width
    shallow = images.depth in (None, "uint8") and images.white is None
    whole = shallow and height == width and images.channels in (1, 3)
    white = 255.0 if shallow else images.white or (1.0 if images.depth == "float32" else 65535.0)
    size = {"height": height, "width": width}
    return {
        "image_processor_type": "PerceiverImageProcessor" if whole else "ViTImageProcessor",
        **({} if whole else {"why_not_resized": WHY_NOT_RESIZED.format(height, width, images.channels, images.depth or "uint8")}),
        "do_convert_rgb": whole and images.channels == 3,
        "do_center_crop": whole,
        "crop_size": size,
        "do_resize": whole,
        "size": size,
        "resample": 2,  # bilinear, with antialias
        "do_rescale": white != 1,
        "rescale_factor": 1 / white,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }


def read_image_settings(folder: Path, size: tuple[int, int], channels: int, own: dict[str, Any]) -> ImageSettings:
    """What the encoder was shown: as its run's settings say, else as the image processor's do. Raises UserError."""
    path = folder / "preprocessor_config.json"
    if "images" in own:
        images = stored_images(own["images"])
        values = load_json(path) if path.is_file() else processor(images)
        if any(values.get(f"image_{name}") != list(getattr(images, name)) for name in ("mean", "std")):
            raise UserError(
                f"{path} has another mean or deviation than config.json says of the training: restore it, or remove it"
            )
        return images
    about: dict[str, Any] = {"size": size, "channels": channels, "white": own.get("white")}
    if not path.is_file():
        log.warning(
            "%s has no preprocessor_config.json: mean and deviation are taken to be %s", folder, ImageSettings(**about).mean
        )
        return ImageSettings(**about)
    return ImageSettings.model_validate({**about, **_seen(load_json(path), path, channels, bool(own))})


def _seen(values: dict[str, Any], path: Path, channels: int, own: bool) -> dict[str, Any]:
    """mean, std, depth and white of a processor, which makes (value * factor - offset - mean) / std. Raises UserError."""
    mean, std = [0.0] * channels, [1.0] * channels
    if values.get("do_normalize", True):
        mean, std = _numbers(values, "image_mean", path), _numbers(values, "image_std", path)
    rescaled = values.get("do_rescale", True)
    scale = values.get("rescale_factor", 1 / 255) if rescaled else 1.0
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise UserError(f"{path}: rescale_factor must be a positive number, got {scale!r}")
    if rescaled and values.get("rescale_offset", False):
        mean = [m + 1 for m in mean]
    if own:
        return {"mean": mean, "std": std}
    if scale == 1 and max(map(abs, (*mean, *std))) <= 1 and values.get("do_normalize", True):  # of floats from 0 to 1
        return {"mean": mean, "std": std, "depth": "float32", "white": 1.0}
    if 1 / scale > DEEPER:
        return {"mean": mean, "std": std, "depth": "uint16", "white": 1 / scale}
    white = 1.0 if abs(scale * 255 - 1) < 1e-3 else scale * 255  # what 255 becomes
    return {"mean": [m / white for m in mean], "std": [s / white for s in std], "depth": "uint8"}


def _numbers(values: dict[str, Any], name: str, path: Path) -> list[float]:
    found = values.get(name)
    if found is None:
        raise UserError(f"{path} has no {name}")
    if not isinstance(found, list) or not all(isinstance(x, int | float) and math.isfinite(x) for x in found):
        raise UserError(f"{path}: {name} must be a list of numbers, got {found!r}")
    return [float(x) for x in found]
