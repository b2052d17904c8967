"""What is said on stderr while something goes on: the log, and how far a long work is.

A bar on a terminal, a line every few seconds elsewhere, one that changes in a notebook, an object of JSON a line, or nothing.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from jepakit.core.ranks import is_main

SECONDS_BETWEEN_LINES = 10.0
_style = "text"  # or quiet, or json


class Report(Protocol):
    """Called with the units done so far and a few words."""

    def __call__(self, done: int, words: str = "") -> None: ...


def say(*, quiet: bool = False, as_json: bool = False) -> None:
    """How much is said, and how, for the whole program; quiet: warnings and mistakes alone. A run's run.log has all."""
    global _style
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])  # changes nothing where a program has handlers of its own
    _style = "quiet" if quiet else "json" if as_json else "text"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _json_line({"level": record.levelname, "message": record.getMessage()})


def _json_line(said: dict[str, Any]) -> str:
    """With the time before it (ISO 8601, UTC)."""
    return json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **said}, ensure_ascii=False)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Report]:
    """A reporter for `total` units of work, `done` of them in an earlier life."""
    if _style == "quiet" or not is_main():  # rank 0 shows it
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
        if _style == "json":
            rest = {"done": done, "total": total, "words": words, "seconds_to_go": round(left)}
            said = _json_line({"of": title, **rest})
        elif notebook:  # over the last one
            said = f"\r{said:80}"
        print(said, end="" if notebook and _style != "json" and done < total else "\n", file=sys.stderr, flush=True)

    if _style == "json" or not sys.stderr.isatty():
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
