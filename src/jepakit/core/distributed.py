"""Several processes of one run, which torchrun started: what they tell each other, and what is said when one is lost.

All that is distributed is here, in core/parallel.py, core/ranks.py and core/meeting.py. With one process every function is what
its name says of a group of one, and torch.distributed is not touched. Rank 0 is the main process: it alone writes.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.rendezvous import rendezvous

from jepakit.core.errors import UserError
from jepakit.core.meeting import MEETING_PATIENCE, Heartbeats, killed, met, noted
from jepakit.core.ranks import is_main, launched, rank
from jepakit.core.torch_private import set_time_limits

T = TypeVar("T")
Item = TypeVar("Item")
log = logging.getLogger("jepakit")
GRACE_SECONDS = 5.0  # in which all that still run report a broken group
_BROKEN = "broken"  # what a rank notes that finds the group broken, not itself
_store: Any = None  # torch's key-value store of this launch
_beats: Heartbeats | None = None  # while this process is one of several
_limited = False  # in `time_limit`


class AgreedError(UserError):
    """A mistake that all ranks raise together, so that one of them says it."""


class LostRankError(RuntimeError):
    """A rank ended, or gives no answer."""


def world_size() -> int:
    """How many processes train together here: 1 outside of `process_group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes that torchrun started; their warnings are rank 0's to show.

    A process group that is there already is used as it is, but for its time limit. Raises UserError for one that cannot be, and
    LostRankError for processes that do not come.
    """
    global _store, _beats
    if _beats or not (launched() or world_size() > 1):
        yield
        return
    theirs = dist.is_initialized()
    if theirs:
        _require_usable()
    store, own, size = next(rendezvous("env://", timeout=MEETING_PATIENCE))
    try:
        _store = met(store, own, size)
    except TimeoutError as error:
        raise LostRankError(str(error)) from None
    _store.set(f"place{own}", f"{socket.gethostname()} {os.getpid()}")
    if not theirs:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=_store, rank=own, world_size=size, timeout=MEETING_PATIENCE)
    _beats = Heartbeats(_store, own, size, MEETING_PATIENCE.total_seconds())
    propagates = log.propagate
    if not is_main():
        log.propagate = False
        log.addHandler(logging.NullHandler())
    try:
        with _naming_the_lost("the connection broke"):
            yield
    finally:
        log.propagate = propagates
        _beats.end()
        _beats = None
        if not theirs:
            dist.destroy_process_group()


def _require_usable() -> None:
    """Raises UserError for a process group of the caller's own that is not that of torchrun's processes, or is of GPUs alone."""
    said = f"torch.distributed has {world_size()} processes here"
    if not launched() or (dist.get_rank(), world_size()) != (rank(), int(os.environ["WORLD_SIZE"])):
        raise UserError(f"{said}, of which RANK and WORLD_SIZE say otherwise: start them with torchrun")
    if "gloo" not in str(dist.get_backend_config()):
        raise UserError(f"{said}, which can talk by {dist.get_backend()} alone: leave out init_process_group's backend")


def allow_silence(seconds: float) -> None:
    """From here on, how long a rank may be without a sign of life (`run.timeout_seconds`)."""
    if _beats:
        _beats.seconds = seconds
        set_time_limits(seconds, seconds + 2 * GRACE_SECONDS)  # NCCL's ends a process, which has first to say who is missing


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Whatever the ranks do together in here fails after so long; a failure ends with the names of the ranks that are missing.

    Outside, they wait for each other for as long as all live. Raises LostRankError.
    """
    global _limited
    if not _beats:
        yield
        return
    told([0])  # all are here
    allow_silence(seconds)
    why = f"no answer within run.timeout_seconds={seconds:g}, or the connection broke"
    if torch.cuda.is_available():  # where this process waits for its GPU, which waits for another's, until NCCL ends it
        _beats.tell = lambda silent: log.error("%s", _missing_ranks(why, silent))
    _limited = True
    try:
        with _naming_the_lost(why):
            yield
    finally:
        _limited, _beats.tell = False, None


def _meet() -> None:
    """Wait until all ranks are here, as long as all live; in `time_limit` what comes next has its own. Raises LostRankError."""
    if _beats and not _limited and (silent := _beats.meet()):
        raise LostRankError(_missing_ranks(f"no sign of life for run.timeout_seconds={_beats.seconds:g}", silent))


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
            try:
                said = _missing_ranks(why)
            except dist.DistError:
                said = f"torchrun, or the machine that it began on, ended, and with it what the processes tell each other: {why}"
            raise LostRankError(said) from error
        assert _beats is not None
        with contextlib.suppress(dist.DistError):  # of a store that is gone too, which would hide this error
            _store.set(f"lost{rank()}", f"{type(error).__name__}: {error}")  # for the others to say, who wait for it
            _beats.end(broken=True)
        raise


def has_joined() -> bool:
    """Whether this process was one of several at any time."""
    return _store is not None


def doing(what: str) -> None:
    """Note where this rank is ('in step 5', 'while ...'), for the others to say if it gets no further."""
    if _beats:
        _store.set(f"doing{rank()}", what)


def told(values: Sequence[int]) -> NDArray[np.int64]:
    """The whole numbers of every rank: (ranks, n)."""
    if world_size() == 1:
        return np.array([values], np.int64)
    _meet()
    own = torch.tensor(values, dtype=torch.int64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own)
    return torch.stack(rows).numpy()


def told_objects(value: T) -> list[T]:
    """A value of each rank, which must be plain data of our own making."""
    if world_size() == 1:
        return [value]
    _meet()
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
    _meet()
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
            _meet()
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


def _is_of_group(error: RuntimeError) -> bool:
    """Whether an error is one of communication: torch has a class for some of them only."""
    words = str(error).lower()  # "pair closure" is gloo's of what comes after its time-out, without its name
    return isinstance(error, dist.DistError) or any(name in words for name in ("gloo", "nccl", "pair closure"))


def _missing_ranks(why: str, silent: Sequence[int] = ()) -> str:
    """A sentence on the ranks that are silent, else on those that do not report that the group is broken; those of this machine
    are killed, as torchrun waits half a minute for one that hangs."""
    _store.set(f"lost{rank()}", _BROKEN)
    until, keys = time.monotonic() + GRACE_SECONDS, [f"lost{r}" for r in range(world_size())]
    while not silent and time.monotonic() < until and not _store.check(keys):
        time.sleep(0.1)
    words = {r: noted(_store, key) for r, key in enumerate(keys)}
    if left := {r: said for r, said in words.items() if said not in ("", _BROKEN)}:
        return "; ".join(f"rank {r} ended: {said}" for r, said in left.items())
    missing = [r for r in silent or words if not words[r]]
    if not missing:
        return "the processes lost each other: the network between them broke"
    return f"{killed(_store, missing)}: {why}"
