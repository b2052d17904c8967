"""Tensors and one model over several processes (core/distributed.py): sums and rows of all, a GPU for each, DDP, and FSDP2."""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit.core.distributed import AgreedError, told_objects, world_size
from jepakit.core.ranks import is_main, rank

METHODS_WITH_WEIGHTS = ("embed", "all_positions", "forward_rows")  # beside forward
_BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in signature(DistributedDataParallel).parameters)


class _Gather(torch.autograd.Function):
    """Rows of all ranks in their order, for what all then compute alike; J's gradient for this rank's rows is N times one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].chunk(world_size())[rank()] * world_size()


class _Sum(torch.autograd.Function):
    """The sum over ranks; the gradient of J is the sum of theirs, or N times one where all compute alike from here on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alike: bool) -> Tensor:
        ctx.alike, x = alike, x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if ctx.alike:
            return grads[0] * world_size(), None
        total = grads[0].clone()
        dist.all_reduce(total)
        return total, None


# Gradients through these are of J, the sum of the N ranks' losses: as all have the loss of the whole batch, or parts whose
# mean it is, the mean over ranks that `over_ranks` takes of a parameter's gradients is that of the loss.


def gathered(x: Tensor) -> Tensor:
    """Rows (n, ...) of this rank -> of all ranks (ranks * n, ...), rank by rank, with their gradient. All have as many."""
    return x if world_size() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call,no-any-return]


def total(x: Tensor, *, alike: bool = False) -> Tensor:
    """The sum of a tensor over ranks, with its gradient. alike: all ranks compute the same from it, nothing of their own rows."""
    return x if world_size() == 1 else _Sum.apply(x, alike)  # type: ignore[no-untyped-call,no-any-return]


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the rows (n, D) of all ranks, which have as many each: (D,), (D,), with their gradient."""
    if world_size() == 1:
        return x.mean(0), x.var(0)
    count = world_size() * len(x)
    mean = total(x.sum(0)) / count
    return mean, total((x - mean).square().sum(0)) / (count - 1)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm (n, D) -> (n, D) whose statistics are of all ranks' rows, which have as many each (torch's own needs CUDA)."""

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(x)
        mean, variance = mean_and_variance(x)
        count = world_size() * len(x)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance, self.momentum or 0.0)
            self.num_batches_tracked.add_(1)
        return (x - mean) * (variance * (count - 1) / count + self.eps).rsqrt() * self.weight + self.bias


@torch.no_grad()
def summed(x: Tensor) -> Tensor:
    """The sum of a tensor over ranks."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


@torch.no_grad()
def to_main(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks (sum of counts, D) on rank 0, rank by rank; of counts[rank] rows each. On others: their own."""
    if world_size() == 1:
        return x
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in counts] if is_main() else None
    dist.gather(padded, parts, group_dst=0)
    return x if parts is None else torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


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


def over_ranks(model: nn.Module, sharded_parts: Sequence[nn.Module] = ()) -> nn.Module:
    """The model with gradients averaged over ranks while they are computed; itself with one process.

    sharded_parts: parts of the model of which, in place, each rank then keeps a share of weights, gradients and moments (FSDP2),
    and is lent the rest one part after the other.

    Buckets of gradients keep the order of the parameters. Else torch orders them anew after the first step, and with more
    than two ranks sums come in another order: a run that was resumed would differ in the last bits from one that was not.
    """
    if world_size() == 1:
        return model
    if sharded_parts:
        return _fully_sharded(model, sharded_parts)
    how: dict[str, Any] = {"gradient_as_bucket_view": True, "find_unused_parameters": True}
    how[_BUFFERS] = False  # they are alike: all see the whole batch
    return DistributedDataParallel(model, **how)


def synchronised(model: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Whether gradients that are computed in here are averaged over ranks, or only added to this rank's (sharded ones always
    are, as no rank has room for the whole)."""
    if wanted or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()  # type: ignore[no-any-return]


def _fully_sharded(model: nn.Module, parts: Sequence[nn.Module]) -> nn.Module:
    """FSDP2 of each part, inner ones first; the model takes the weights that are in none.

    All are parted again after their forward pass, as a target encoder has no backward pass that would do it.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    everyone: Any = dist.group.WORLD
    mesh = DeviceMesh.from_group(everyone, next(model.parameters()).device.type)
    for module in (*parts, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for name in METHODS_WITH_WEIGHTS:
            if hasattr(module, name):
                register_fsdp_forward_method(module, name)
    return model


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "set_requires_gradient_sync")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which ranks may hold parts -> all of each, on every rank, on the host where there were parts."""
    return {name: x.full_tensor().cpu() if hasattr(x, "full_tensor") else x for name, x in tensors.items()}


def part_like(x: Tensor, parameter: Tensor) -> Tensor:
    """Of a whole tensor that belongs to a parameter, on its device, the part that this rank holds of that."""
    x = x.to(parameter.device)
    if not hasattr(parameter, "full_tensor") or x.shape != parameter.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(x, mesh, placements, src_data_rank=None)
