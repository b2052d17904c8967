"""A run's predictions as data for the report: painted by ridge regression, and, where asked for, sampled by diffusion."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jepakit.config.config import Config
from jepakit.data.sources import Source, evenly
from jepakit.model.encoder import Encoder
from jepakit.model.jepa import JEPA
from jepakit.pictures.painted_patches import SHOWN, paint
from jepakit.pictures.picture_files import WrittenPictures, save_atlas, tiles
from jepakit.pictures.predicted_tokens import teacher_of
from jepakit.pictures.run_images import read_images
from jepakit.pictures.sampled_blocks import SAMPLED_CAPTION, sampled_blocks

PREDICTED_SIDE = 160  # pixels of a tile's longer side
PREDICTED_LEAST, PREDICTED_TOKENS = 24, 16_384  # images that predictions are made of, and patch tokens of all of them
PREDICTED_COST = 4  # passes of the encoder that predictions of an image take
NOISE_CAPTION = (
    "The predictor is told target positions with noise (StoP, deviation {:g}); each column asks with another draw of it, and the "
    "same decoder paints. What differs between columns is what is predicted otherwise where the position is less certain."
)
DECODER_IMAGES, DECODER_VALUES = 4096, 1 << 27  # that a diffusion decoder learns from, and pixels' values of all of them


def predictions_part(
    written: WrittenPictures, config: Config, model: tuple[JEPA, Encoder], source: Source, most: float
) -> dict[str, Any]:
    """most: images for which there is time, were one as quick as for the map."""
    jepa, encoder = model
    count = max(PREDICTED_LEAST, min(PREDICTED_TOKENS // math.prod(config.grid), int(most / PREDICTED_COST)))
    given = read_images(source, encoder, evenly(len(source), count), PREDICTED_SIDE, config.run.read_timeout_seconds)
    mixed = np.random.default_rng(config.seed).permutation(len(given.places))  # a set's first images may be of one class
    found = paint(jepa, given.x[torch.from_numpy(mixed)], config.images, teacher_of(jepa), seed=config.seed)
    titles = [source.title(int(given.places[i])) for i in mixed[: len(found.images)]]
    kinds = {"image": found.images, "context": found.seen, "decoded truth": found.true_painted}
    kinds |= {"decoded prediction": found.painted, "nearest patches": found.nearest}
    there = {name: pictures for name, pictures in kinds.items() if pictures is not None}
    panels = np.stack([tiles(pictures, PREDICTED_SIDE) for pictures in there.values()], 1)
    written.arrays |= {"predicted_context": found.context, "predicted_blocks": found.blocks}
    written.arrays["predicted_cosines"], written.arrays["predicted_field"] = (
        x.astype(np.float16) for x in (found.cosines, found.field)
    )
    if found.noise is not None:
        sheet = _beside(written, "noise", found.images, found.noise, titles)
        written.about["noise"] = {**sheet, "caption": NOISE_CAPTION.format(config.predictor.stop)}
    about = {"panels": [*there], "shown": len(found.images), "images": len(given.places), "numbers": found.numbers}
    atlas = save_atlas(written.folder, "predictions", panels.reshape(-1, *panels.shape[2:]))
    return {**atlas, **about, "titles": titles, "decoder": found.decoder, "caption": found.caption}


def _beside(
    written: WrittenPictures, part: str, images: NDArray[np.uint8], drawn: NDArray[np.uint8], titles: list[str]
) -> dict[str, Any]:
    """Images (n, H, W, 3) and k pictures (n, k, H, W, 3) of each, as an atlas."""
    panels, word = np.concatenate([images[:, None], drawn], 1), part.removesuffix("s")
    atlas = save_atlas(written.folder, part, tiles(panels.reshape(-1, *panels.shape[2:]), PREDICTED_SIDE))
    names = ["image", *(f"{word} {k + 1}" for k in range(drawn.shape[1]))]
    return {**atlas, "panels": names, "shown": len(titles), "titles": titles}


def samples_part(
    written: WrittenPictures, config: Config, model: tuple[JEPA, Encoder], source: Source, steps: int
) -> dict[str, Any]:
    """Samples of a diffusion decoder, trained for so many steps on as many images as memory has room for."""
    jepa, encoder = model
    count = min(DECODER_IMAGES, DECODER_VALUES // (config.images.channels * math.prod(config.images.height_width)))
    given = read_images(source, encoder, evenly(len(source), count), PREDICTED_SIDE, config.run.read_timeout_seconds)
    mixed = np.random.default_rng(config.seed).permutation(len(given.places))
    x = given.x[torch.from_numpy(mixed)]
    found = sampled_blocks(jepa, x, config.images, teacher_of(jepa), shown=SHOWN, steps=steps, seed=config.seed)
    titles = [source.title(int(given.places[i])) for i in mixed[: len(found.images)]]
    learnt = f"It was trained for {steps:,} steps on {found.pairs:,} blocks."
    sheet = _beside(written, "samples", found.images, found.samples, titles)
    return {**sheet, "steps": steps, "pairs": found.pairs, "caption": f"{SAMPLED_CAPTION} {learnt}"}
