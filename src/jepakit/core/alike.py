"""What the processes of one run must have in common, and that each has a GPU of its own (core/distributed.py)."""

import socket
from collections.abc import Mapping

import torch
import torch.distributed as dist

from jepakit.core.distributed import AgreedError, told_objects, world_size


def require_alike(what: Mapping[str, str]) -> None:
    """Raises AgreedError unless these named values are the same on all ranks."""
    everyone = told_objects(dict(what))
    for name, value in everyone[0].items():
        for other, theirs in enumerate(everyone):
            if theirs[name] != value:
                raise AgreedError(f"{name} differs between processes: {value} on rank 0, {theirs[name]} on rank {other}")


def require_own_device(device: torch.device) -> None:
    """Raises AgreedError where two processes of a machine have one GPU, or they cannot talk."""
    if world_size() == 1 or device.type != "cuda":
        return
    places = told_objects((socket.gethostname(), device.index, dist.is_nccl_available()))
    if not all(nccl for _, _, nccl in places):
        raise AgreedError("this torch was built without NCCL, by which GPUs exchange gradients: install one with it")
    double = next((place for place in places if places.count(place) > 1), None)
    if double:
        ranks = " and ".join(str(i) for i, place in enumerate(places) if place == double)
        raise AgreedError(
            f"ranks {ranks} are both on cuda:{double[1]} of {double[0]}: leave run.device at auto, one process a GPU"
        )
