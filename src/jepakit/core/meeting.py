"""How the processes of one launch find each other in torch's key-value store, however often torchrun started them."""

import hashlib
import json
import time
import uuid
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

MEETING_PATIENCE = timedelta(minutes=10)
_SECONDS_BETWEEN_LOOKS = 0.05


def met(store: Any, rank: int, size: int, patience: timedelta = MEETING_PATIENCE) -> PrefixStore:
    """A part of the store that these processes alone use: of those that were killed nothing is left in it.

    torchrun keeps one store over its restarts, and what it tells its processes of their number differs between machines: each
    counts the failures that it saw, and one that was replaced none. So each process shows a number of its own, rank 0 calls the
    roll of those that it sees, and it holds once all that are on it have said so. Raises TimeoutError with the ranks that do not.
    """
    own, roll, until = uuid.uuid4().hex, "", time.monotonic() + patience.total_seconds()
    store.set(f"here{rank}", own)
    while _read(store, "begun") != roll or not roll:
        if rank == 0:
            shown = [_read(store, f"here{r}") for r in range(size)]
            if "" not in shown and json.dumps(shown) != roll:
                roll = json.dumps(shown)
                store.set("roll", roll)
        elif (called := json.loads(_read(store, "roll") or "[]")) and len(called) == size and called[rank] == own:
            roll = json.dumps(called)
        if roll:
            store.set(f"answer{rank}", roll)
        if rank == 0 and roll and all(_read(store, f"answer{r}") == roll for r in range(size)):
            store.set("begun", roll)
        elif time.monotonic() > until:
            missing = [r for r in range(size) if not roll or _read(store, f"answer{r}") != roll]
            raise TimeoutError(f"of {size} processes these did not come within {patience}: rank {', '.join(map(str, missing))}")
        else:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return PrefixStore(hashlib.sha256(roll.encode()).hexdigest()[:16], store)


def _read(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""
