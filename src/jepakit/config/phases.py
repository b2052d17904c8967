"""The phases of a run: pixels first, then features (target.pixels_first). Nearly all runs have one."""

from dataclasses import dataclass

from jepakit.config.config import Config
from jepakit.config.optim import Schedule
from jepakit.core.errors import UserError
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.targets import FeatureTargets, PixelTargets


@dataclass(frozen=True)
class Phase:
    """The updates from `start` up to `end` of a run, with the settings that are in force in them."""

    config: Config
    schedule: Schedule
    start: int
    end: int


def with_pixel_steps(config: Config, steps_per_epoch: int) -> Config:
    """The settings with target.pixels_first in updates, where it was a share of the run. Raises UserError if none is left."""
    target, steps = config.target, Schedule(config.optim, steps_per_epoch).steps
    if not isinstance(target, FeatureTargets) or not target.pixels_first:
        return config
    first = round(target.pixels_first * steps if target.pixels_first < 1 else target.pixels_first)
    if not 0 < first < steps:
        raise UserError(
            f"target.pixels_first={target.pixels_first:g} of {steps} updates leaves none for "
            f"{'pixels' if first < 1 else 'features'}: set another share, say .27, or a longer run"
        )
    return config.model_copy(update={"target": target.model_copy(update={"pixels_first": first})})


def phases(config: Config, steps_per_epoch: int) -> list[Phase]:
    """What follows on what, with a schedule each: the run's own warm-up and lengths, scaled to the phase's updates."""
    full = Schedule(config.optim, steps_per_epoch)
    if not isinstance(config.target, FeatureTargets) or not config.target.pixels_first:
        return [Phase(config, full, 0, full.steps)]
    change = int(config.target.pixels_first)
    spans = (at_step(config, change), 0, change), (config, change, full.steps)
    whole_run = "schedule" in kept_at_change(config)
    return [Phase(c, full if whole_run else _scaled(full, start, end), start, end) for c, start, end in spans]


def at_step(config: Config, step: int) -> Config:
    """The settings that made a run's checkpoint of a step: up to pixels_first those with pixels as targets.

    Then no regulariser is in force, as pixels cannot collapse, and targets are of the crop that is seen.
    """
    if not isinstance(config.target, FeatureTargets) or step > config.target.pixels_first or not config.target.pixels_first:
        return config
    images = config.images.model_copy(update={"target_crop": "same"})
    return config.model_copy(update={"target": PixelTargets(), "regularizer": None, "images": images})


def features_alone(config: Config) -> Config:
    """The settings that a forecast is made of: no pixels first, and masks without a prior, which knows no images here."""
    if isinstance(config.masking, MultiBlock):
        config = config.model_copy(update={"masking": config.masking.model_copy(update={"prior": None, "prior_folder": None})})
    if not isinstance(config.target, FeatureTargets):
        return config
    return config.model_copy(update={"target": config.target.model_copy(update={"pixels_first": 0.0, "kept": ()})})


def kept_at_change(config: Config) -> tuple[str, ...]:
    """What outlives pixels_first besides the encoder's weights."""
    return config.target.kept if isinstance(config.target, FeatureTargets) else ()


def _scaled(full: Schedule, start: int, end: int) -> Schedule:
    steps = end - start
    warmup = round(full.warmup * steps / full.steps)
    return Schedule(full.optim.model_copy(update={"steps": steps, "warmup_steps": warmup}), full.steps_per_epoch, start)
