"""How often to save, where devices fail: Young's interval (CACM 17, 1974; Daly, FGCS 22, 2006)."""

import math

from jepakit.planning.results import Checkpoints

WRITE_RATE = 1e9  # bytes a second to storage that all nodes see, assumed
# 419 interruptions that nobody planned, in 54 days of 16,384 GPUs (Llama 3, arXiv 2407.21783, section 3.3.4)
DEVICE_HOURS = 16_384 * 54 * 24 / 419


def checkpoints(size: int, devices: int, step_seconds: float, save_every_steps: int) -> Checkpoints:
    """What saving `size` bytes now and then costs, and what failures do; the step waits for the write."""
    write, between = size / WRITE_RATE, DEVICE_HOURS * 3600 / devices
    best = max(1, round(best_interval(write, between) / step_seconds))
    shares = (lost(write, between, steps * step_seconds) for steps in (best, save_every_steps))
    return Checkpoints(size, write, between / 3600, best, *shares)


def best_interval(write: float, between: float) -> float:
    """Seconds between the ends of two saves by which least is lost: sqrt(2 * write * between) (Young, equation 3)."""
    return math.sqrt(2 * write * between)


def lost(write: float, between: float, interval: float) -> float:
    """Share of the time that goes into writes, and into what is computed again after a failure: half an interval each."""
    return write / interval + interval / (2 * between)
