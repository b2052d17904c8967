"""How fast a run would go: assumed of a device of the table, or measured here; and what several devices lose to each other."""

from time import perf_counter

import numpy as np
import torch

from jepakit.config.config import Config
from jepakit.data.loader import Batch
from jepakit.data.sources import ArraySource
from jepakit.model.encoder import Encoder
from jepakit.model.regularizers.visreg import VISReg
from jepakit.planning import network
from jepakit.planning.flops import Flops, statistic_flops
from jepakit.planning.hardware import Hardware
from jepakit.planning.results import Communication, Memory, Parameters, Speed, TokenCounts
from jepakit.training.step import Training

SHARE_OF_PEAK = 0.4  # assumed


def single_rate(
    config: Config, place: Hardware, each: Flops, memory: Memory, at_a_time: int, seconds: float, teacher: Encoder | None
) -> tuple[float, str] | None:
    """Images a second of one device alone, and where that is from; none where a step does not fit this machine."""
    if place.device is None:
        return assumed_rate(config, place, each)
    if memory.largest:
        return _measured(config, place.device, min(at_a_time, memory.largest), seconds, teacher)
    return None


def assumed_rate(config: Config, place: Hardware, each: Flops) -> tuple[float, str]:
    """Images a second of a device of the table; the regulariser computes in fp32 (`full_precision`), so at that rate."""
    at, at_fp32 = (SHARE_OF_PEAK * rate * 1e12 for rate in (place.tflops, place.fp32))
    seconds = (_computed(config, each) - each.regularizer) / at + each.regularizer / at_fp32
    return 1 / seconds, f"assumed {SHARE_OF_PEAK:.0%} of {place.tflops:g} TFLOP/s"


def speed_of(
    config: Config, place: Hardware, alone: tuple[float, str], each: Flops, of: tuple[Parameters, TokenCounts], seen: int | None
) -> Speed:
    """The speed of all devices, from that of one alone; seen: images of the whole run."""
    rate, source = alone
    between = None
    if place.devices > 1:
        between = _communication(config, place, rate, each, *of)
        rate = config.optim.batch_size / between.step
    hours = None if seen is None else seen / rate / 3600
    return Speed(rate, 1e6 / rate / 3600, seen, hours, source, between)


def _communication(
    config: Config, place: Hardware, rate: float, each: Flops, parameters: Parameters, tokens: TokenCounts
) -> Communication:
    """What passes in an update, and how long it keeps devices waiting: gradients go beside the last micro-batch's backward
    pass, sharded weights beside all of the update; what the regulariser sums or gathers is waited for."""
    share, passing = config.optim.batch_size // place.devices, network.traffic(config, place, parameters, tokens)
    computing = share / rate
    backward = each.encoder_backward + each.predictor_backward + (_computed(config, each) - each.total)
    beside = computing if place.sharded else computing * backward / _computed(config, each) / config.optim.accumulate
    statistics, rest = (network.seconds_to_pass(n, place) for n in (passing.statistics, passing.gradients + passing.parameters))
    rows, width = network.regularized_rows(config, tokens)
    others = 0.0  # FLOPs on rows of other devices, which VISReg ranks; all else needs sums only
    if isinstance(config.regularizer, VISReg):
        others = (place.devices - 1) * share * rows * statistic_flops(config.regularizer, 1, width)
    at_fp32 = SHARE_OF_PEAK * place.fp32 * 1e12 if place.device is None else rate * _computed(config, each)
    by_device, by_node = network.sent(passing.total, place)
    return Communication(
        nodes=place.links.nodes,
        interconnect=place.links.interconnect,
        network=place.links.network,
        traffic=passing,
        sent_by_device=by_device,
        sent_by_node=by_node,
        seconds=statistics + rest,
        waited=statistics + max(0.0, rest - beside),
        regularizer=others / at_fp32,
        alone=computing,
    )


def _computed(config: Config, each: Flops) -> float:
    """FLOPs of an image that are computed, some of them twice."""
    return each.total + (each.encoder_forward + each.predictor_forward if config.run.recompute else 0.0)


def _measured(config: Config, device: torch.device, most: int, seconds: float, teacher: Encoder | None) -> tuple[float, str]:
    """Images a second of real steps on random images, of as many as a sixteenth of the time allows, and words on them."""
    optim = config.optim.model_copy(update={"batch_size": 2, "accumulate": 1, "steps": 1, "warmup_steps": 0})
    run = config.run.model_copy(update={"compile": False, "fixed_rows": False, "tensorboard": False, "wandb": False})
    (height, width), channels = config.images.height_width, config.images.channels
    source = ArraySource("random images", np.zeros((2, height, width, channels), np.uint8), None)
    training = Training.prepare(config.model_copy(update={"optim": optim, "run": run}), source, teacher)
    generator = torch.Generator().manual_seed(config.seed)

    def timed(count: int, step: int) -> float:
        images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
        masks = config.masking.sample(config.grid, np.arange(count), seed=config.seed, step=step)
        start = perf_counter()
        training.train_step(Batch(step, 0, (images,), (None,), (masks,)), training.schedule.at(0), check=False, rows=False)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
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
