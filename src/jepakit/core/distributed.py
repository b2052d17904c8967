"""Several processes of one run, which torchrun started: what they tell each other, and what is said when one is lost.

All that is distributed is here, in core/parallel.py, core/ranks.py and core/meeting.py. With one process every function is what
its name says of a group of one, and torch.distributed is not touched. Rank 0 is the main process: it alone writes.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.rendezvous import rendezvous

from jepakit.core.errors import UserError
from jepakit.core.meeting import MEETING_PATIENCE, met
from jepakit.core.ranks import is_main, launched, rank
from jepakit.core.torch_private import set_time_limits

T = TypeVar("T")
Item = TypeVar("Item")
log = logging.getLogger("jepakit")
_DAY = 24 * 3600.0  # seconds, while rank 0 alone reads, measures or probes; a rank that ends is noticed at once all the same
GRACE_SECONDS = 5.0  # in which all that still run report a broken group
_BROKEN = "broken"  # what a rank notes that finds the group broken, not itself
_store: Any = None  # torch's key-value store of this launch


class AgreedError(UserError):
    """A mistake that all ranks raise together, so that one of them says it."""


class LostRankError(RuntimeError):
    """A rank ended, or gives no answer."""


def world_size() -> int:
    """How many processes train together here: 1 outside of `process_group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes that torchrun started; their warnings are rank 0's to show. Raises UserError."""
    global _store
    if not launched() or dist.is_initialized():
        yield
        return
    store, own, size = next(rendezvous("env://", timeout=MEETING_PATIENCE))
    _store = met(store, own, size)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=own, world_size=size, timeout=timedelta(seconds=_DAY))
    _store.set(f"place{own}", f"{socket.gethostname()} {os.getpid()}")
    propagates = log.propagate
    if not is_main():
        log.propagate = False
        log.addHandler(logging.NullHandler())
    try:
        with _naming_the_lost("the connection broke"):
            yield
    finally:
        log.propagate = propagates
        dist.destroy_process_group()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Whatever the ranks do together in here fails after so long; a failure ends with the names of the ranks that are missing.

    Raises LostRankError.
    """
    if world_size() == 1:
        yield
        return
    told([0])  # all are here
    set_time_limits(seconds, seconds + 2 * GRACE_SECONDS)  # NCCL's ends a process, which has first to say who is missing
    try:
        with _naming_the_lost(f"no answer within run.timeout_seconds={seconds:g}, or the connection broke"):
            yield
    finally:
        set_time_limits(_DAY, _DAY)


@contextlib.contextmanager
def _naming_the_lost(why: str) -> Iterator[None]:
    """Say which ranks are missing where the group is broken; what else ends this one is left for the others to say.

    Raises LostRankError.
    """
    try:
        yield
    except (AgreedError, LostRankError):
        raise
    except BaseException as error:
        if isinstance(error, RuntimeError) and _is_of_group(error):
            raise LostRankError(_missing_ranks(why)) from error
        _store.set(f"lost{rank()}", f"{type(error).__name__}: {error}")  # for the others to say, who wait for it
        raise


def has_joined() -> bool:
    """Whether this process was one of several at any time."""
    return _store is not None


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
    dist.all_gather(rows, own)
    return torch.stack(rows).numpy()


def told_objects(value: T) -> list[T]:
    """A value of each rank, which must be plain data of our own making."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def agreed(make: Callable[[], T]) -> T:
    """What each rank makes for itself, rank 0 first, so that what it keeps on disk is there for the others.

    Raises AgreedError on all ranks, with the first one's sentence, where any raises UserError.
    """
    if world_size() == 1:
        return make()
    made: list[T] = []
    for turn in (True, False):
        found, said = _tried(make) if is_main() == turn else ([], "")
        made += found
        raise_first(said)
    return made[0]


def from_main(make: Callable[[], T]) -> T:
    """What rank 0 makes, told to all. Raises AgreedError on all where that raises UserError."""
    if world_size() == 1:
        return make()
    found: list[Any] = [*_tried(make)] if is_main() else [[], ""]
    dist.broadcast_object_list(found, src=0)
    made, said = found
    if said:
        raise AgreedError(said)
    return made[0]  # type: ignore[no-any-return]


def spread(items: Sequence[Item], work: Callable[[Sequence[Item]], Generator[T]], take: Callable[[T], None]) -> None:
    """`work` on items, of which rank p of N does p, p + N, ...; rank 0 is given what came of each, in their order, by `take`.

    work: yields one value, plain data of our own making, for each item that it is given. Raises AgreedError on all ranks where
    any raises UserError, once what came before it is taken.
    """
    size = world_size()
    with contextlib.closing(work(items[rank() :: size] if size > 1 else items)) as own:
        if size == 1:
            for each in own:
                take(each)
            return
        for first in range(0, len(items), size):
            made = _tried(partial(next, own)) if first + rank() < len(items) else ([], "")
            everyone: list[Any] | None = [None] * size if is_main() else None
            dist.gather_object(made, everyone, dst=0)
            from_main(partial(_hand_on, everyone or [], take))


def _hand_on(made: Sequence[tuple[list[T], str]], take: Callable[[T], None]) -> None:
    """What each rank made, or why it could not. Raises UserError for the first that could not."""
    for number, (found, said) in enumerate(made):
        if said:
            raise UserError(f"rank {number}: {said}" if number else said)
        for each in found:
            take(each)


def _tried(make: Callable[[], T]) -> tuple[list[T], str]:
    """What was made, alone in a list, and no words; or nothing, and the sentence of its UserError."""
    try:
        return [make()], ""
    except UserError as error:
        return [], str(error) or "it failed"


def raise_first(said: str) -> None:
    """Each rank says what is wrong, '' for nothing. Raises AgreedError on all with the first one's sentence, if there is one."""
    for number, sentence in enumerate(told_objects(said)):
        if sentence:
            raise AgreedError(f"rank {number}: {sentence}" if number else sentence)


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


def _is_of_group(error: RuntimeError) -> bool:
    """Whether an error is one of communication: torch has a class for some of them only."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in words or "nccl" in words


def _missing_ranks(why: str) -> str:
    """A sentence on the ranks that do not report that the group is broken; those of this machine are killed, as torchrun waits
    half a minute for one that hangs."""
    assert _store is not None
    ranks = range(world_size())
    _store.set(f"lost{rank()}", _BROKEN)
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and not all(_store.check([f"lost{r}"]) for r in ranks):
        time.sleep(0.1)
    missing = [r for r in ranks if not _store.check([f"lost{r}"])]
    left = {r: said for r in ranks if r not in missing and (said := _store.get(f"lost{r}").decode()) != _BROKEN}
    if left:
        return "; ".join(f"rank {r} ended: {said}" for r, said in left.items())
    if not missing:
        return "the processes lost each other: the network between them broke"
    said = []
    for r in missing:
        host, pid = _store.get(f"place{r}").decode().split()
        at = f" in step {_store.get(f'step{r}').decode()}" if _store.check([f"step{r}"]) else ""
        said.append(f"rank {r} ({host}, process {pid}) ended or hangs{at}")
        if _is_here(int(pid), r):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    return f"{'; '.join(said)}: {why}"


def _is_here(pid: int, other: int) -> bool:
    """Whether a process of this machine is a rank that the same torchrun started: hosts and containers may share their names and
    numbers of processes."""
    try:
        theirs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    ours = {name: os.environ.get(name, "") for name in ("GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")}
    return all(f"{name}={value}".encode() in theirs for name, value in {**ours, "RANK": str(other)}.items())
