"""How the processes of one launch find each other in torch's key-value store, however often torchrun started them, and wait."""

import hashlib
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore

MEETING_PATIENCE = timedelta(minutes=10)
_SECONDS_BETWEEN_LOOKS = 0.05
_BEATS_OF_SILENCE, _LOOKS_OF_A_BEAT = 10, 20  # at least
_SECONDS_OF_A_BEAT = 1.0  # at most, and as much more for each 256 processes, as one store serves all
_ENDED = b"ended"  # the last beat of a process that does not go on


def met(store: Any, rank: int, size: int, patience: timedelta = MEETING_PATIENCE) -> PrefixStore:
    """A part of the store that these processes alone use: of those that were killed nothing is left in it.

    torchrun keeps one store over its restarts, and what it tells its processes of their number differs between machines: each
    counts the failures that it saw, and one that was replaced none. So each process shows a number of its own, rank 0 calls the
    roll of those that it sees, and it holds once all that are on it have said so. Raises TimeoutError with the ranks that do not.
    """
    own, roll, until = uuid.uuid4().hex, "", time.monotonic() + patience.total_seconds()
    store.set(f"here{rank}", own)
    while noted(store, "begun") != roll or not roll:
        if rank == 0:
            shown = [noted(store, f"here{r}") for r in range(size)]
            if "" not in shown and json.dumps(shown) != roll:
                roll = json.dumps(shown)
                store.set("roll", roll)
        elif (called := json.loads(noted(store, "roll") or "[]")) and len(called) == size and called[rank] == own:
            roll = json.dumps(called)
        if roll:
            store.set(f"answer{rank}", roll)
        if rank == 0 and roll and all(noted(store, f"answer{r}") == roll for r in range(size)):
            store.set("begun", roll)
        elif time.monotonic() > until:
            missing = [r for r in range(size) if not roll or noted(store, f"answer{r}") != roll]
            raise TimeoutError(f"of {size} processes these did not come within {patience}: rank {', '.join(map(str, missing))}")
        else:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return PrefixStore(hashlib.sha256(roll.encode()).hexdigest()[:16], store)


def noted(store: Any, key: str) -> str:
    """What the store holds by this name; '' for nothing."""
    return str(store.get(key).decode()) if store.check([key]) else ""


class Heartbeats:
    """Each process tells the others by the store that it lives, from a thread, which rests where the process is stopped or gone.

    seconds: for how long one may be silent. What is counted are this process's beats without one of another's, not times: clocks
    differ, and where all were stopped for a while nobody is missed. tell: called once, in the thread, with ranks that are silent.
    """

    def __init__(self, store: Any, rank: int, size: int, seconds: float) -> None:
        self.seconds, self.silent = seconds, list[int]()
        self.tell: Callable[[list[int]], object] | None = None
        self._store, self._rank, self._size, self._meetings, self._over = store, rank, size, 0, Event()
        store.set(f"beat{rank}", "0")
        self._thread = Thread(target=self._beat, args=(store.clone(),), name="heartbeats", daemon=True)
        self._thread.start()

    def meet(self) -> list[int]:
        """Wait until all processes have called this as often, or one cannot. The ranks that are silent or ended; mostly none."""
        self._meetings += 1
        here, look = f"all are at {self._meetings}", 0.001
        if self._store.add(f"at {self._meetings}", 1) == self._size:
            self._store.set(here, "")
        while not self.silent and not self._store.check([here]):  # its own wait warns twice each time that it ends in vain
            time.sleep(look)
            look = min(1.25 * look, self._pause / _LOOKS_OF_A_BEAT)
        return self.silent  # one may have come, and been stopped while it waited

    def end(self, *, broken: bool = False) -> None:
        """Beat no more; broken: the others shall not wait for this process."""
        self._over.set()
        self._thread.join(5 * self._pause)
        if broken:
            self._store.set(f"beat{self._rank}", _ENDED)

    @property
    def _pause(self) -> float:
        """Seconds between beats."""
        return min(self.seconds / _BEATS_OF_SILENCE, _SECONDS_OF_A_BEAT * (1 + self._size / 256))

    def _beat(self, store: Any) -> None:
        beats = [f"beat{r}" for r in range(self._size)]
        number, heard, quiet = 0, [b""] * self._size, [0.0] * self._size
        while not self._over.wait(pause := self._pause):
            number += 1
            with suppress(DistError):  # the store is gone, which the next wait will say
                store.set(f"beat{self._rank}", str(number))
                all_began = store.check(beats)  # else it would wait for the first beat of one that may never come
                last, heard = heard, store.multi_get(beats) if all_began else [noted(store, beat).encode() for beat in beats]
                quiet = [q + pause if old == new else 0.0 for q, old, new in zip(quiet, last, heard, strict=True)]
                others = [r for r in range(self._size) if r != self._rank]
                self.silent = [r for r in others if heard[r] == _ENDED or quiet[r] > self.seconds]
                if self.silent and self.tell:
                    tell, self.tell = self.tell, None
                    tell(self.silent)


def killed(store: Any, ranks: Sequence[int]) -> str:
    """What is known of ranks that give no answer; those of this machine are killed, as torchrun waits half a minute for them."""
    said = []
    for r in ranks:
        place, doing = noted(store, f"place{r}").split(), noted(store, f"doing{r}")
        at = f" ({place[0]}, process {place[1]})" if place else ""  # else it never came so far
        said.append(f"rank {r}{at} ended or hangs{doing and f' {doing}'}")
        if place and _is_here(int(place[1]), r):
            with suppress(ProcessLookupError):
                os.kill(int(place[1]), signal.SIGKILL)
    return "; ".join(said)


def _is_here(pid: int, other: int) -> bool:
    """Whether a process of this machine is a rank that the same torchrun started: hosts and containers may share their names and
    numbers of processes."""
    try:
        theirs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    ours = {name: os.environ.get(name, "") for name in ("GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")}
    return all(f"{name}={value}".encode() in theirs for name, value in {**ours, "RANK": str(other)}.items())
