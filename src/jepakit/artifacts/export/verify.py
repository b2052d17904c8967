"""What an export is checked on, and how far it may be from the run: random images, and a few of the run's own.

B images, T patch tokens, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jepakit.artifacts.export.exported_encoder import ExportChoice
from jepakit.artifacts.export.folders import Runs
from jepakit.core.errors import UserError, plain
from jepakit.data.crops import centre_crop, channels_of, stacked
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.opening import SECONDS, open_source
from jepakit.data.samples import read_many
from jepakit.data.sources import spread_places
from jepakit.data.statistics import read_usable
from jepakit.model.encoder import Encoder

# The largest difference allowed, over the largest value: rounding of the weights and of the arithmetic. Another function is
# as far as its values are large.
LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
REAL = 5  # of the run's images


@dataclass(frozen=True)
class Trial:
    """Images as the export takes them (B, C, H, W), the run's patch tokens of them (B, T, D), and what they are."""

    what: str
    images: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class CheckedOutput:
    """The largest difference that one program showed from the run, the largest value there, and on which images."""

    by: str
    on: str
    difference: float
    largest: float

    def sentence(self) -> str:
        return f"checked with {self.by} on {self.on}: largest difference {self.difference:.1e} (values up to {self.largest:.1f})"


def trials(encoder: Encoder, choice: ExportChoice, data: str | None) -> tuple[list[Trial], str]:
    """Batches of one, of several and of real images with what the run's own code gives; why there are no real ones, or ''."""
    found, why = [], ""
    for count in (1, 3):
        generator = torch.Generator().manual_seed(count)
        shape = count, encoder.vit.channels, *encoder.images.height_width
        if choice.preprocess:
            given = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        else:
            given = torch.randn(shape, generator=generator)
        found.append(_trial(f"{count} random image{'s' if count > 1 else ''}", given, encoder))
    try:
        real = real_images(encoder, data)
        if choice.preprocess and real.dtype != torch.uint8:
            raise UserError("the run's images are not of 8 bits")
        given = real if choice.preprocess else encoder.normalise(real)
        found.append(_trial(f"{len(real)} of the run's images", given, encoder))
    except (UserError, OSError) as error:
        why = str(error)
    return found, why


def _trial(what: str, images: Tensor, encoder: Encoder) -> Trial:
    normalised = encoder.normalise(images) if images.dtype == torch.uint8 else images
    with torch.inference_mode():
        return Trial(what, images, encoder(normalised).float().cpu())


def real_images(encoder: Encoder, data: str | None) -> Tensor:
    """A few images (B, C, H, W) of the run's data, cut and resized as evaluation does. Raises UserError where there are none."""
    if data is None:
        raise UserError("it is not known what they were")
    source, images = open_source(data, images=encoder.images), encoder.images
    read = read_many(source, spread_places(source, REAL), lambda index: read_usable(source, index, images), seconds=SECONDS)
    pixels = [each for each in read if not isinstance(each, BadImageError)]
    if not pixels:
        raise UserError(f"none of {plain(source.name)} could be read")
    return stacked([centre_crop(channels_of(each, images), *images.height_width) for each in pixels])


def compare(runs: list[Runs], tried: list[Trial], dtype: torch.dtype) -> list[CheckedOutput]:
    """How far what was written is from the run, for each program that runs it. Raises UserError beyond the limit."""
    found = []
    for by, run in runs:
        differences = [_difference(by, run, trial, dtype) for trial in tried]
        largest = max(float(trial.tokens.abs().max()) for trial in tried)
        found.append(CheckedOutput(by, ", ".join(trial.what for trial in tried), max(differences), largest))
    return found


def _difference(by: str, run: Callable[[Tensor], Tensor], trial: Trial, dtype: torch.dtype) -> float:
    with torch.no_grad():
        tokens = run(trial.images).cpu()
    if tokens.shape != trial.tokens.shape:
        raise UserError(f"not exported: {by} gives {tuple(tokens.shape)}, the run {tuple(trial.tokens.shape)}")
    difference, largest = float((tokens - trial.tokens).abs().max()), float(trial.tokens.abs().max())
    if not difference <= LIMITS[dtype] * largest:  # true for a NaN too
        raise UserError(
            f"not exported: on {trial.what} {by} differs from the run by {difference:.2g}, where values are up to "
            f"{largest:.2g}, and {LIMITS[dtype]:g} of that is allowed; nothing was written"
        )
    return difference
