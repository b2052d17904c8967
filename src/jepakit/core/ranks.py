"""Which of several processes this one is, by the variables that torchrun sets; without torch, which takes seconds to import."""

import os
import socket


def launched() -> bool:
    """Whether torchrun, or another launcher with its variables, started this process among others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Which process of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def is_main() -> bool:
    return rank() == 0


def job() -> str | None:
    """The name of the launch, the same after torchrun restarted its processes; None where it is not known."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name  # unnamed: torchrun itself, which outlives it
