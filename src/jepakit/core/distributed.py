"""Several processes of one run, which torchrun started: what they tell each other, and one model over them.

All that is distributed is here. With one process every function is what its name says of a group of one, and torch.distributed
is not touched. Rank 0 is the main process: it alone writes.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from jepakit.core.errors import UserError

T = TypeVar("T")
log = logging.getLogger("jepakit")
PATIENCE = timedelta(days=1)  # while rank 0 alone reads and measures; a rank that ends is noticed at once all the same
METHODS_WITH_WEIGHTS = ("embed", "forward_rows")  # beside forward
GRACE_SECONDS = 5.0  # in which all that still run report a broken group
_BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in signature(DistributedDataParallel).parameters)
_group: dist.ProcessGroup | None = None  # that of training, with its time-out; None: the patient one of all ranks
_store: Any = None  # torch's key-value store of this launch


class AgreedError(UserError):
    """A mistake that all ranks raise together, so that one of them says it."""


class LostRankError(RuntimeError):
    """A rank ended, or gives no answer."""


def launched() -> bool:
    """Whether torchrun, or another launcher with its variables, started this process among others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """How many processes train together here: 1 outside of `process_group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> int:
    """Which process of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def is_main() -> bool:
    return rank() == 0


def job() -> str | None:
    """The name of the launch, the same after torchrun restarted its processes; None where it is not known."""
    name, restarts = os.environ.get("TORCHELASTIC_RUN_ID"), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return name if launched() and (name != "none" or restarts) else None


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes that torchrun started; their warnings are rank 0's to show. Raises UserError."""
    global _store
    if not launched() or dist.is_initialized():
        yield
        return
    store, own, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    # a restarted group must not meet the addresses of the one before, which the same store still holds
    _store = PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=own, world_size=size, timeout=PATIENCE)
    _store.set(f"place{own}", f"{socket.gethostname()} {os.getpid()}")
    propagates = log.propagate
    if not is_main():
        log.propagate = False
        log.addHandler(logging.NullHandler())
    try:
        yield
    finally:
        log.propagate = propagates
        dist.destroy_process_group()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Whatever the ranks do together in here fails after so long; a failure ends with the names of the ranks that are missing.

    Raises LostRankError.
    """
    global _group
    if world_size() == 1:
        yield
        return
    before, _group = _group, dist.new_group(timeout=timedelta(seconds=seconds))
    try:
        yield
    except RuntimeError as error:
        if not _is_of_group(error):
            raise
        raise LostRankError(_missing_ranks(seconds)) from error
    finally:
        _group = before


def begin_step(step: int) -> None:
    """Note where this rank is, for the others to say if it gets no further."""
    if _store is not None and world_size() > 1:
        _store.set(f"step{rank()}", str(step))


def told(values: Sequence[int]) -> NDArray[np.int64]:
    """The whole numbers of every rank: (ranks, n)."""
    if world_size() == 1:
        return np.array([values], np.int64)
    own = torch.tensor(values, dtype=torch.int64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own, group=_group)
    return torch.stack(rows).numpy()


def told_objects(value: T) -> list[T]:
    """A value of each rank, which must be plain data of our own making."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_group)
    return found


def agreed(make: Callable[[], T]) -> T:
    """What each rank makes for itself, rank 0 first, so that what it keeps on disk is there for the others.

    Raises AgreedError on all ranks, with the first one's sentence, where any raises UserError.
    """
    if world_size() == 1:
        return make()
    made: list[T] = []
    for turn in (True, False):
        said = ""
        if is_main() == turn:
            try:
                made.append(make())
            except UserError as error:
                said = str(error) or "it failed"
        sentences = told_objects(said)
        wrong = next((i for i, sentence in enumerate(sentences) if sentence), None)
        if wrong is not None:
            raise AgreedError(sentences[wrong] if wrong == 0 else f"rank {wrong}: {sentences[wrong]}")
    return made[0]


def from_main(make: Callable[[], T]) -> T:
    """What rank 0 makes, told to all. Raises AgreedError on all where that raises UserError."""
    if world_size() == 1:
        return make()
    found: list[Any] = [None, ""]
    if is_main():
        try:
            found[0] = make()
        except UserError as error:
            found[1] = str(error) or "it failed"
    dist.broadcast_object_list(found, src=0, group=_group)
    if found[1]:
        raise AgreedError(found[1])
    return found[0]  # type: ignore[no-any-return]


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


class _Gather(torch.autograd.Function):
    """Rows of all ranks in their order, for what all then compute alike; J's gradient for this rank's rows is N times one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(rows, x.contiguous(), group=_group)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].chunk(world_size())[rank()] * world_size()


class _Sum(torch.autograd.Function):
    """The sum over ranks; the gradient of J is the sum of theirs, or N times one where all compute alike from here on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alike: bool) -> Tensor:
        ctx.alike, x = alike, x.clone()
        dist.all_reduce(x, group=_group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if ctx.alike:
            return grads[0] * world_size(), None
        total = grads[0].clone()
        dist.all_reduce(total, group=_group)
        return total, None


# Gradients through these are of J, the sum of the N ranks' losses: as all have the loss of the whole batch, or parts whose
# mean it is, the mean over ranks that `parallel` takes of a parameter's gradients is that of the loss.


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
        dist.all_reduce(x, group=_group)
    return x


@torch.no_grad()
def to_main(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks (sum of counts, D) on rank 0, rank by rank; of counts[rank] rows each. On others: their own."""
    if world_size() == 1:
        return x
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in counts] if is_main() else None
    dist.gather(padded, parts, group_dst=0, group=_group)
    return x if parts is None else torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def parallel(model: nn.Module, sharded_parts: Sequence[nn.Module] = ()) -> nn.Module:
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
    return DistributedDataParallel(model, process_group=_group, **how)


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

    group = _group or dist.distributed_c10d._get_default_group()
    mesh = DeviceMesh.from_group(group, next(model.parameters()).device.type)
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


def _is_of_group(error: RuntimeError) -> bool:
    """Whether an error is one of communication: torch has a class for some of them only."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(w in words for w in ("gloo", "connection", "nccl", "timed out"))


def _missing_ranks(seconds: float) -> str:
    """A sentence on the ranks that do not report that the group is broken; those of this machine are killed, as torchrun waits
    half a minute for one that hangs."""
    assert _store is not None
    ranks = range(world_size())
    _store.set(f"lost{rank()}", "1")
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and not all(_store.check([f"lost{r}"]) for r in ranks):
        time.sleep(0.1)
    missing = [r for r in ranks if not _store.check([f"lost{r}"])]
    if not missing:
        return "the processes lost each other: the network between them broke"
    said = []
    for r in missing:
        host, pid = _store.get(f"place{r}").decode().split()
        at = _store.get(f"step{r}").decode() if _store.check([f"step{r}"]) else "the start"
        said.append(f"rank {r} ({host}, process {pid}) ended or hangs in step {at}")
        if host == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    return f"{'; '.join(said)}: no answer within run.timeout_seconds={seconds:g}, or its connection broke"
