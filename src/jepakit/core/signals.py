"""A polite end: the first SIGINT, SIGTERM or (SLURM's) SIGUSR1 asks, the second one stops at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals(ask: Callable[[str], None]) -> Iterator[None]:
    """Call `ask` with the name of the first signal; raise KeyboardInterrupt at the next.

    A signal that a program in C hears is left to it: Python could not give it back.
    """
    asked = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask(signal.Signals(number).name)

    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows lacks one
    ours = [number for number in known if signal.getsignal(number) is not None]
    try:
        old = {number: signal.signal(number, hear) for number in ours}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            if handler is not None:
                signal.signal(number, handler)


def quiet_interrupts() -> None:
    """For a program's own process: Ctrl-C where no code can hear it, as while memory is cleared up, ends it in one line.

    Python would print a traceback, and go on.
    """

    def unheard(what: "sys.UnraisableHookArgs") -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(what)
            return
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)

    sys.unraisablehook = unheard
