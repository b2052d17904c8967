"""What a run will take: parameters, FLOPs, memory, time. Nothing is trained, nothing is written but what --json asks for."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from jepakit.artifacts.init import read_start
from jepakit.artifacts.load import build_jepa
from jepakit.config.choice import Choice, resolve_with_data
from jepakit.config.config import Config, given_layer
from jepakit.config.optim import Schedule
from jepakit.config.phases import features_alone
from jepakit.config.recipes import settings
from jepakit.core.device import device_of, precision_of
from jepakit.core.errors import UserError, checked, nearest
from jepakit.core.files import save_json, user_path
from jepakit.data.loader import Batch
from jepakit.data.opening import GivenImages, given_images
from jepakit.data.sources import ArraySource, Source
from jepakit.data.training_part import training_part
from jepakit.planning import flops
from jepakit.planning.flops import Flops
from jepakit.planning.memory import MOST_IMAGES, RELEASED_IMAGES, RELEASED_STEPS, Hardware, is_released, plan_memory
from jepakit.planning.table import Memory, Parameters, Plan, Speed, TokenCounts
from jepakit.training.step import loader_of

PROBE_SECONDS = 20.0
_SAMPLED = 512  # images whose masks are averaged
SHARE_OF_PEAK = 0.4  # assumed


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: dense TFLOP/s in bf16 (none: it has none) and in fp32, memory in GB."""

    name: str
    bf16: float | None
    fp32: float
    gigabytes: float


# fp32 without TF32, as jepakit computes.
DEVICES = (
    Device("H200", 989, 67, 141),
    Device("H100", 989, 67, 80),
    Device("H100-NVL", 835, 60, 94),
    Device("A100-80", 312, 19.5, 80),
    Device("A100-40", 312, 19.5, 40),
    Device("L40S", 362, 91.6, 48),
    Device("A10", 125, 31.2, 24),
    Device("L4", 121, 30.3, 24),
    Device("RTX4090", 165, 82.6, 24),
    Device("RTX3090", 71, 35.6, 24),
    Device("T4", None, 8.1, 16),
    Device("V100-32", None, 15.7, 32),
    Device("V100-16", None, 15.7, 16),
)


@checked
def plan(
    recipe: str | None = None,
    method: str | None = None,
    *,
    data: GivenImages | None = None,
    device: str = "here",
    devices: int = 1,
    json: str | Path | None = None,
    seconds: float = PROBE_SECONDS,
    set: Sequence[str] | str | None = None,
    **groups: Any,
) -> Plan:
    """What a pretraining with these settings will take, on `devices` devices of one kind.

    data: the images, to say how long the whole run is, and to choose what no recipe gives, as `pretrain` does; device: a name
    of `DEVICES`, or 'here': this machine, where real steps are timed for some `seconds`; json: a file for what is returned;
    set: 'group.key=value' words; groups: settings as keywords. Raises UserError.
    """
    json = None if json is None else user_path(json, "--json")
    if json is not None and not json.parent.is_dir():
        raise UserError(f"--json {json}: there is no such folder")
    name, opened = (None, None) if data is None else given_images(data)
    given = given_layer(set, groups) | ({} if name is None else {"data": name})
    asked_recipe, asked_method = given.pop("recipe", None), given.pop("method", None)
    elsewhere = None if device == "here" else _known(device)
    config, source, choice = _with_images(recipe or asked_recipe, method or asked_method, given, elsewhere, opened)
    config = features_alone(config)
    config.masking.check(config.grid)
    found = _plan(config, source, choice, hardware_of(elsewhere, devices, config), seconds)
    if json is not None:
        save_json(json, asdict(found))
    return found


def _plan(config: Config, source: Source | None, choice: Choice, place: Hardware, seconds: float) -> Plan:
    """What a run with these settings will take at a place; here, real steps are timed for some `seconds`."""
    share = _share(config, place.devices)
    seen, at_a_time = _images_seen(config, source, place.devices), share // config.optim.accumulate
    parameters, (tokens, each) = _parameters(config), _work(config)
    memory = plan_memory(config, place, at_a_time)
    again = each.encoder_forward + each.predictor_forward if config.run.recompute else 0
    speed = _speed(config, place, each.total + again, memory, at_a_time, seen, seconds)
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
        verdict=_verdict(config, share, memory),
        choice=choice.lines,
    )


def _known(name: str) -> Device:
    """A device of the table. Raises UserError, with the nearest name."""
    known = {d.name.lower(): d for d in DEVICES}
    if name.lower() not in known:
        names = ", ".join(d.name for d in DEVICES)
        raise UserError(f"unknown device '{name}': choose here, {names}{nearest(name.lower(), known)}")
    return known[name.lower()]


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


def hardware_of(elsewhere: Device | None, devices: int, config: Config) -> Hardware:
    """Where a run would be; none: here. Raises UserError for a device that has not the precision that is set."""
    wanted = config.run.precision
    if elsewhere is None:
        device = device_of(config.run.device)
        dtype, cuda = precision_of(wanted, device), device.type == "cuda"
        if not cuda:
            return Hardware("this CPU", dtype, False, False, _host_memory(), devices, device=device)
        about = torch.cuda.get_device_properties(device)
        flash = dtype == torch.bfloat16 and about.major >= 8
        return Hardware(about.name, dtype, True, flash, about.total_memory, devices, device=device)
    d = elsewhere
    if wanted == "bf16" and d.bf16 is None:
        raise UserError(f"{d.name} does not compute in bf16: set run.precision=fp32")
    tflops, lower = (d.fp32, False) if wanted == "fp32" or d.bf16 is None else (d.bf16, True)
    return Hardware(d.name, torch.bfloat16 if lower else torch.float32, True, lower, int(d.gigabytes * 1e9), devices, tflops)


def _host_memory() -> int:
    """Bytes that this process may use at most: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


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
    """Images of a whole run, if the settings or the data say. Raises UserError where a batch is more than there is."""
    o = config.optim
    if source is None:
        return o.steps * o.batch_size if o.steps else None
    loader = loader_of(config, training_part(source, config.images), processes=devices)
    return Schedule(o, loader.steps_per_epoch).steps * o.batch_size


def _parameters(config: Config) -> Parameters:
    with torch.device("meta"):
        jepa = build_jepa(config)
    modules = jepa.encoder, jepa.target_encoder, jepa.predictor, jepa.projector
    return Parameters(*(sum(p.numel() for p in module.parameters()) for module in modules))


def _work(config: Config) -> tuple[TokenCounts, Flops]:
    """Tokens and FLOPs of an image, averaged over masks of the recipe's own law."""
    law, grid, o = config.masking, config.grid, config.optim
    released = is_released(law)
    ids = np.arange(min(o.batch_size // o.accumulate, RELEASED_IMAGES) if released else _SAMPLED)
    steps = RELEASED_STEPS if released else 1
    drawn = [law.sample(grid, ids, seed=config.seed, step=step) for step in range(steps)]
    each = [astuple(flops.step(config, grid, config.images.channels, masks)) for masks in drawn]
    images = len(ids) * steps
    context, targets, blocks = (
        sum(len(getattr(masks, name)) for masks in drawn) / images for name in ("context", "targets", "target_lengths")
    )
    tokens = TokenCounts(grid[0] * grid[1], context, targets, blocks, images)
    return tokens, Flops(*(sum(part) / images for part in zip(*each, strict=True)))


def _speed(
    config: Config, place: Hardware, work: float, memory: Memory, at_a_time: int, seen: int | None, seconds: float
) -> Speed | None:
    """How fast: assumed of a device of the table, measured on this machine if a step fits it."""
    if place.device is None:
        rate, source = SHARE_OF_PEAK * place.tflops * 1e12 / work, f"assumed {SHARE_OF_PEAK:.0%} of {place.tflops:g} TFLOP/s"
    elif memory.largest:
        rate, source = _measured(config, place.device, min(at_a_time, memory.largest), seconds)
    else:
        return None
    rate *= place.devices
    hours = None if seen is None else seen / rate / 3600
    return Speed(rate, 1e6 / rate / 3600, seen, hours, source)


def _measured(config: Config, device: torch.device, most: int, seconds: float) -> tuple[float, str]:
    """Images a second of real steps on random images, of as many as a sixteenth of the time allows, and words on them."""
    from jepakit.training.step import Training

    optim = config.optim.model_copy(update={"batch_size": 2, "accumulate": 1, "steps": 1, "warmup_steps": 0})
    run = config.run.model_copy(update={"compile": False, "fixed_rows": False, "tensorboard": False, "wandb": False})
    (height, width), channels = config.images.height_width, config.images.channels
    source = ArraySource("random images", np.zeros((2, height, width, channels), np.uint8), None)
    training = Training.prepare(config.model_copy(update={"optim": optim, "run": run}), source)
    generator = torch.Generator().manual_seed(config.seed)

    def timed(count: int, step: int) -> float:
        images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
        masks = config.masking.sample(config.grid, np.arange(count), seed=config.seed, step=step)
        start = perf_counter()
        training.train_step(Batch(step, 0, (images,), (None,), (masks,)), training.schedule.at(0), check=False, rows=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - start

    start, count = perf_counter(), min(2, most)
    timed(count, 0)
    while count < most and timed(count, 0) < seconds / 16:
        count = min(2 * count, most)
    taken = [timed(count, 0)][1:]  # the first of a size is slower
    while not taken or perf_counter() - start < seconds:
        taken.append(timed(count, len(taken)))
    words = f"measured here: {len(taken)} steps of {count:,} random images; reading not counted"
    return len(taken) * count / sum(taken), words


def _verdict(config: Config, share: int, memory: Memory) -> str:
    """Whether a step fits, and if not what to set."""
    micro_batches, most = config.optim.accumulate, memory.largest
    at_a_time, may = share // micro_batches, f"{memory.usable / 1e9:.1f} GB that may be used"
    if memory.fits:
        more = "or more " if most == MOST_IMAGES else ""
        return f"fits: {memory.total / 1e9:.1f} of the {may}; at most {most:,} {more}images at a time do"
    too_much = f"does not fit: {at_a_time:,} images at a time take {memory.total / 1e9:.1f} GB of the {may}"
    # A micro-batch finds the gradients of those before it, and the images of all.
    extra = memory.moments // 2 + memory.images + (0 if memory.on_host else memory.loader)
    least, free = 2 if config.regularizer else 1, memory.usable - memory.fixed
    most = int(most * (free - extra) / free) if free > 0 else 0
    fitting = [n for n in range(micro_batches + 1, share // least + 1) if share % n == 0 and share // n <= most]
    if fitting:
        return f"{too_much}; set optim.accumulate={fitting[0]} for {share // fitting[0]:,} at a time"
    return f"{too_much}, and fewer do not either: take a device with more memory, more --devices or a smaller encoder"
