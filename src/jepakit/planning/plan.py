"""What a run will take: parameters, FLOPs, memory, time. Nothing is trained, nothing is written but what --json asks for."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepakit.artifacts.init import read_start
from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.teacher import with_teacher
from jepakit.config.choice import Choice, resolve_with_data
from jepakit.config.config import Config, given_layer
from jepakit.config.optim import Schedule
from jepakit.config.phases import features_alone
from jepakit.config.recipes import RECIPES, settings
from jepakit.core.errors import UserError, checked
from jepakit.core.files import save_json, user_path
from jepakit.data.opening import GivenImages, given_images
from jepakit.data.sources import Source
from jepakit.data.training_part import training_part
from jepakit.model.encoder import Encoder
from jepakit.model.masking.masks import Masking
from jepakit.model.masking.packed_masks import Masks
from jepakit.planning import failures, flops
from jepakit.planning.flops import Flops
from jepakit.planning.hardware import Device, Hardware, hardware_of, known_device, links_of
from jepakit.planning.memory import MOST_IMAGES, RELEASED_IMAGES, RELEASED_STEPS, is_released, plan_memory, step_memory
from jepakit.planning.results import Memory, OtherSharding, Parameters, Plan, TokenCounts
from jepakit.planning.speed import assumed_rate, single_rate, speed_of
from jepakit.training.step import loader_of

PROBE_SECONDS = 20.0
_SAMPLED = 512  # images whose masks are averaged


@checked
def plan(
    recipe: str | None = None,
    method: str | None = None,
    *,
    data: GivenImages | None = None,
    device: str = "here",
    devices: int = 1,
    nodes: int | None = None,
    interconnect: str | float | None = None,
    network: str | float | None = None,
    json: str | Path | None = None,
    seconds: float = PROBE_SECONDS,
    set: Sequence[str] | str | None = None,
    **groups: Any,
) -> Plan:
    """What a pretraining with these settings will take, on `devices` devices of one kind.

    data: the images, to say how long the whole run is, and to choose what no recipe gives, as `pretrain` does; device: a name
    of `DEVICES`, or 'here': this machine, where real steps are timed for some `seconds`; nodes: that the devices are in (none:
    of at most 8 each); interconnect: GB/s of a device in its node, network: Gb/s of a node, or names of `hardware`'s tables
    (none: the device's usual); json: a file for what is returned; set: 'group.key=value' words; groups: settings as keywords.
    Raises UserError.
    """
    json = None if json is None else user_path(json, "--json")
    if json is not None and not json.parent.is_dir():
        raise UserError(f"--json {json}: there is no such folder")
    name, opened = (None, None) if data is None else given_images(data)
    given = given_layer(set, groups) | ({} if name is None else {"data": name})
    asked_recipe, asked_method = given.pop("recipe", None), given.pop("method", None)
    elsewhere = None if device == "here" else known_device(device)
    links = links_of(elsewhere, devices, nodes, interconnect, network)
    config, source, choice = _with_images(recipe or asked_recipe, method or asked_method, given, elsewhere, opened)
    config, teacher = with_teacher(features_alone(config))
    config.masking.check(config.grid)
    found = _plan(config, source, choice, hardware_of(elsewhere, devices, config.run, links), seconds, teacher)
    if json is not None:
        save_json(json, asdict(found))
    return found


def forecast(config: Config, source: Source | None, seconds: float = PROBE_SECONDS) -> Plan:
    """`plan` of settings that are whole, and of their images, on this machine."""
    config, teacher = with_teacher(features_alone(config))
    place = hardware_of(None, 1, config.run, links_of(None, 1, None, None, None))
    return _plan(config, source, Choice(), place, seconds, teacher)


def _plan(
    config: Config, source: Source | None, choice: Choice, place: Hardware, seconds: float, teacher: Encoder | None
) -> Plan:
    """What a run with these settings will take at a place; here, real steps are timed for some `seconds`."""
    share = _share(config, place.devices)
    seen, at_a_time = _images_seen(config, source, place.devices), share // config.optim.accumulate
    parameters, (tokens, each) = _parameters(config, teacher), _work(config, teacher)
    memory = plan_memory(config, place, at_a_time, tokens, teacher)
    alone = single_rate(config, place, each, memory, at_a_time, seconds, teacher)
    speed = speed_of(config, place, alone, each, (parameters, tokens), seen) if alone else None
    other, saved = None, None
    if place.devices > 1:
        other_place = replace(place, sharded=not place.sharded)
        other_memory = step_memory(config, other_place, at_a_time, tokens, teacher)
        other_speed = speed_of(config, other_place, alone, each, (parameters, tokens), seen) if alone else None
        rate = other_speed.images_per_second if other_speed else None
        other = OtherSharding(_SHARDING[other_place.sharded], other_memory.total, rate)
        if speed:
            size = (memory.weights + memory.target_encoder + memory.moments) * (place.devices if place.sharded else 1)
            step_seconds = config.optim.batch_size / speed.images_per_second
            saved = failures.checkpoints(size, place.devices, step_seconds, config.run.save_every_steps)
    return Plan(
        recipe=config.recipe,
        method=config.method,
        device=place.name,
        devices=place.devices,
        precision="bf16" if place.dtype == torch.bfloat16 else "fp32",
        batch=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        at_a_time=at_a_time,
        parameters=parameters,
        tokens=tokens,
        flops=each,
        memory=memory,
        speed=speed,
        verdict=_verdict(config, share, memory, other),
        choice=choice.lines,
        sharding=_SHARDING[place.sharded],
        other=other,
        checkpoints=saved,
    )


_SHARDING = ("none", "full")


def run_hours(recipe: str, words: Sequence[str], device: str, devices: int) -> float:
    """The hours that `plan` forecasts for a run of a recipe with a known data set, or optim.steps, on devices of the table.

    Without memory, which takes most of a plan's time. Raises UserError.
    """
    elsewhere = known_device(device)
    given = given_layer(words, {})
    config, teacher = with_teacher(features_alone(settings(recipe, given.pop("method", None), given)))
    place = hardware_of(elsewhere, devices, config.run, links_of(elsewhere, devices, None, None, None))
    _share(config, devices)
    tokens, each = _work(config, teacher)
    of = _parameters(config, teacher), tokens
    found = speed_of(config, place, assumed_rate(config, place, each), each, of, _images_seen(config, None, devices))
    if found.hours is None:
        raise UserError(f"how long {recipe} takes nobody can say without its images: give optim.steps")
    return found.hours


def _with_images(
    recipe: str | None, method: str | None, given: dict[str, Any], elsewhere: Device | None, opened: Source | None
) -> tuple[Config, Source | None, Choice]:
    """The settings, the images if there are any, and what was chosen; devices of the table are CUDA's."""
    start = read_start([given], sizes_are_chosen=not recipe)  # the shape of weights that it would begin from
    layers = [start.settings, given] if start else [given]
    if given.get("data") is None:
        config = settings(recipe, method, *layers)
        if config.data is None:
            return config, None, Choice()
    return resolve_with_data(recipe, method, *layers, device="cuda" if elsewhere else None, source=opened)


def _share(config: Config, devices: int) -> int:
    """Images of a batch that each device has. Raises UserError where devices cannot have equally many."""
    o = config.optim
    share, left = divmod(o.batch_size, devices) if devices > 0 else (0, 1)
    if left or share % o.accumulate:
        split = f" in {o.accumulate} parts each" if o.accumulate > 1 else ""
        raise UserError(
            f"optim.batch_size={o.batch_size} cannot be shared evenly by {devices} devices{split}: give --devices a number that "
            f"divides it"
        )
    if config.regularizer and share // o.accumulate < 2:
        raise UserError("the regulariser needs two images at a time on each device: fewer --devices, or lower optim.accumulate")
    return share


def _images_seen(config: Config, source: Source | None, devices: int) -> int | None:
    """Images of a whole run, if settings, data or recipe say. Raises UserError where a batch is more than there is."""
    o = config.optim
    if source is None:
        known = RECIPES[config.recipe].images if config.recipe in RECIPES else None
        return Schedule(o, (known or 0) // o.batch_size).steps * o.batch_size if known or o.steps else None
    loader = loader_of(config, training_part(source, config.images), processes=devices)
    return Schedule(o, loader.steps_per_epoch).steps * o.batch_size


def _parameters(config: Config, teacher: Encoder | None = None) -> Parameters:
    with torch.device("meta"):
        jepa = build_jepa(config)
    modules = jepa.encoder, jepa.target_encoder, jepa.predictor, jepa.projector, teacher
    return Parameters(*(sum(p.numel() for p in module.parameters()) if module else 0 for module in modules))


def _work(config: Config, teacher: Encoder | None = None) -> tuple[TokenCounts, Flops]:
    """Tokens and FLOPs of an image, averaged over masks of the recipe's own law."""
    grid, o = config.grid, config.optim
    released = is_released(config.masking)
    count = min(o.batch_size // o.accumulate, RELEASED_IMAGES) if released else _SAMPLED
    drawn = _drawn(config.masking, grid, count, RELEASED_STEPS if released else 1, config.seed)
    each = [astuple(flops.step(config, grid, config.images.channels, masks, teacher=teacher)) for masks in drawn]
    images = count * len(drawn)
    context, targets, blocks, contexts = (
        sum(len(getattr(masks, name)) for masks in drawn) / images
        for name in ("context", "targets", "target_lengths", "context_lengths")
    )
    tokens = TokenCounts(grid[0] * grid[1], context, targets, blocks, contexts, images)
    return tokens, Flops(*(sum(part) / images for part in zip(*each, strict=True)))


@lru_cache(maxsize=2)
def _drawn(law: Masking, grid: tuple[int, int], count: int, steps: int, seed: int) -> tuple[Masks, ...]:
    """Masks of so many images of each of some steps; kept, as a study plans many runs with one law."""
    return tuple(law.sample(grid, np.arange(count), seed=seed, step=step) for step in range(steps))


def _verdict(config: Config, share: int, memory: Memory, other: OtherSharding | None) -> str:
    """Whether a step fits, and if not what to set."""
    micro_batches, most = config.optim.accumulate, memory.largest
    at_a_time, may = share // micro_batches, f"{memory.usable / 1e9:.1f} GB that may be used"
    if memory.fits:
        more = "or more " if most == MOST_IMAGES else ""
        return f"fits: {memory.total / 1e9:.1f} of the {may}; at most {most:,} {more}images at a time do"
    too_much = f"does not fit: {at_a_time:,} images at a time take {memory.total / 1e9:.1f} GB of the {may}"
    if other and other.sharding == "full" and other.memory <= memory.usable:
        return f"{too_much}; run.sharding=full takes {other.memory / 1e9:.1f} GB"
    # A micro-batch finds the gradients of those before it, and the images of all.
    extra = memory.moments // 2 + memory.images + (0 if memory.on_host else memory.loader)
    least, free = 2 if config.regularizer else 1, memory.usable - memory.fixed
    most = int(most * (free - extra) / free) if free > 0 else 0
    fitting = [n for n in range(micro_batches + 1, share // least + 1) if share % n == 0 and share // n <= most]
    if fitting:
        return f"{too_much}; set optim.accumulate={fitting[0]} for {share // fitting[0]:,} at a time"
    return f"{too_much}, and fewer do not either: take a device with more memory, more --devices or a smaller encoder"
