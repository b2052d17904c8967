"""A pickle that leaves a trace if anybody runs it."""

import os
from pathlib import Path


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)
