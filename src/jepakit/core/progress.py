"""How far a long work is: a bar on a terminal, a line every few seconds elsewhere, one that changes in a notebook. On stderr."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from jepakit.core.ranks import is_main

SECONDS_BETWEEN_LINES = 10.0
style = "text"  # or quiet, or json; set by core/logs.py


class Report(Protocol):
    """Called with the units done so far and a few words."""

    def __call__(self, done: int, words: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Report]:
    """A reporter for `total` units of work, `done` of them in an earlier life."""
    if style == "quiet" or not is_main():  # rank 0 shows it
        yield lambda done, words="": None
        return
    notebook = "ipykernel" in sys.modules
    wait = 1.0 if notebook else SECONDS_BETWEEN_LINES
    started, last, first = time.monotonic(), -wait, done

    def line(done: int, words: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < wait and done < total:
            return
        last = now
        left = (now - started) / max(1, done - first) * (total - done)
        said = f"{title} {done}/{total}  {words}  {clock(left)} to go"
        if style == "json":
            rest = {"done": done, "total": total, "words": words, "seconds_to_go": round(left)}
            said = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "of": title, **rest})
        elif notebook:  # over the last one
            said = f"\r{said:80}"
        print(said, end="" if notebook and style != "json" and done < total else "\n", file=sys.stderr, flush=True)

    if style == "json" or not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, words="")
        yield lambda done, words="": bar.update(task, completed=done, words=words)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
