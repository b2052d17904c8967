"""A run in progress as a page on this machine: made anew as rows come, and nothing else of the disk is served."""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jepakit.core.errors import UserError, checked
from jepakit.core.files import user_path

from .page import page_of

log = logging.getLogger("jepakit")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMES_TO_MAKE = 10  # a page is made at most every so many times what making it took, so that it takes no core from training
LEAST_SECONDS = 1.0
_WATCHED = ("config.yaml", "metrics.jsonl", "evaluation", "pictures", "checkpoints")


class LivePage:
    """The newest page of some runs' folders, and its tag; one at a time is kept, however many ask."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders, self.lock = folders, threading.Lock()
        self.body, self.tag, self.seen, self.due = b"", "", "", 0.0
        self.make()  # a mistake is told at once

    def newest(self) -> tuple[bytes, str]:
        """The page; the last one that could be made, where a file is being written or the run was removed."""
        if self.lock.acquire(blocking=False):  # another asks already: what is there is new enough
            try:
                if time.monotonic() >= self.due and self.signature() != self.seen:
                    with suppress(UserError, OSError):
                        self.make()
            finally:
                self.lock.release()
        return self.body, self.tag

    def make(self) -> None:
        """Read the folders and draw the page. Raises UserError."""
        started, seen = time.monotonic(), self.signature()
        body = page_of(self.folders, live=True).encode("utf-8", errors="backslashreplace")
        self.body, self.tag, self.seen = body, f'"{hashlib.sha256(body).hexdigest()[:24]}"', seen
        self.due = time.monotonic() + max(LEAST_SECONDS, TIMES_TO_MAKE * (time.monotonic() - started))

    def signature(self) -> str:
        """Sizes and times of what the page is made of."""
        places = [folder / name for folder in self.folders for name in _WATCHED]
        files = [file for place in places for file in ([*place.iterdir()] if place.is_dir() else [place])]
        found = []
        for file in files:
            with suppress(OSError):
                found.append(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}")
        return "\n".join(found)


def handler_of(page: LivePage, any_host: bool) -> type[BaseHTTPRequestHandler]:
    """Answers that give the page, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # of a client that says nothing
        server_version, sys_version = "jepakit", ""

        def do_GET(self) -> None:
            """The page, or that it is the one the client has."""
            name = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
            if not any_host and name.strip("[]") not in LOOPBACK:  # a page of elsewhere that has its name point here
                return self.answer(403, b"this page is for this machine alone\n")
            if self.path.partition("?")[0] != "/":
                return self.answer(404, b"nothing but / is served\n")
            body, tag = page.newest()
            if self.headers.get("If-None-Match") == tag:
                return self.answer(304, b"", tag)
            return self.answer(200, body, tag, "text/html; charset=utf-8")

        def answer(self, code: int, body: bytes, tag: str = "", kind: str = "text/plain") -> None:
            with suppress(OSError):  # the client is gone
                self.send_response(code)
                for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), "ETag": tag}.items():
                    if value:
                        self.send_header(key, value)
                self.send_header("Cache-Control", "no-cache")
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Requests are not said."""

    return Handler


@checked
def serve(
    runs: Sequence[str | os.PathLike[str]],
    host: str = "127.0.0.1",
    port: int = 0,
    on_start: Callable[[str, Callable[[], None]], object] | None = None,
) -> None:
    """Serve the page of a run in progress, or of several, until Ctrl-C.

    host: the address to listen on; only this machine unless told. port: 0 for any that is free. on_start: is told the address,
    and a function that ends it. Raises UserError where there is no run, or the address cannot be had.
    """
    page = LivePage([user_path(run, "the run") for run in runs])
    try:
        server = ThreadingHTTPServer((host, port), handler_of(page, host not in LOOPBACK))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; give another --port, or --host 127.0.0.1") from None
    server.daemon_threads = True  # a client that stays does not keep it from ending
    address = f"http://{host}:{server.server_address[1]}/"
    if host not in LOOPBACK:
        log.warning("anyone who reaches %s sees this run's report", address)
    with server:
        try:
            if on_start:
                on_start(address, server.shutdown)
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
