"""Cells as processes of their own, some at a time: `jepakit pretrain`, then `jepakit evaluate`, each as a user would type it.

All state is in files. OUT/cells/NAME is a run's folder, NAME.log what its processes said, NAME.json its row, which is
written when the cell is over: finished, pruned or failed. A cell without a row is taken up where it was stopped.
"""

import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jepakit.artifacts.checkpoint import steps
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.core.files import load_json, locked, save_json
from jepakit.study.cells import Cell, evaluations, words
from jepakit.study.table import CellRow, row_of

log = logging.getLogger("jepakit")
POLL_SECONDS = 0.2
STOPPED = (0, -signal.SIGTERM, -signal.SIGINT)  # exit codes of a process that did not come to its end, and did not fail
Job = Generator[None, None, None]  # yields while it waits for a process
Launch = Callable[[Sequence[str], Path, int], "subprocess.Popen[bytes] | Forked"]
Prune = Callable[[Run], bool]  # asked again and again while a run goes on


def launch(arguments: Sequence[str], said: Path, threads: int) -> "subprocess.Popen[bytes]":
    """Start `jepakit ARGUMENTS`. In a session of its own, so that Ctrl-C reaches it once, by way of the study."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "jepakit", *arguments]
    with said.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )


class Forked:
    """A `jepakit` process that is forked from a server with its imports done, for runs that are shorter than these; used as a
    Popen."""

    def __init__(self, arguments: Sequence[str], said: Path, threads: int) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["jepakit.cli", "jepakit.study.preloaded"])
        self.process = context.Process(target=_in_child, args=(list(arguments), str(said)))
        self.process.start()
        self.terminate, self.kill = self.process.terminate, self.process.kill

    def poll(self) -> int | None:
        """The exit status; none while it runs."""
        return self.process.exitcode

    def wait(self) -> int | None:
        """Until it has ended."""
        self.process.join()
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        """The exit status; none while it runs."""
        return self.process.exitcode


def _in_child(arguments: list[str], said: str) -> None:
    os.setsid()  # Ctrl-C reaches it once, by way of the study
    with open(said, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["jepakit", *arguments]
    runpy.run_module("jepakit", run_name="__main__")


@dataclass
class Runner:
    """How the cells of one study are run. how: settings of `run`, its threads among them; evaluation: words for `evaluate`."""

    out: Path
    how: Mapping[str, Any]
    evaluation: tuple[str, ...]
    launch: Launch = launch
    stopping: bool = False  # asked to end

    def stop(self, by: str) -> None:
        """Ask it to end, and its processes."""
        self.stopping = True
        log.warning("%s: the running cells are being saved", by)

    def path(self, cell: Cell, ending: str = "") -> Path:
        """The cell's run, or a file beside it."""
        return self.out / "cells" / f"{cell.name}{ending}"

    def row(self, cell: Cell) -> CellRow | None:
        """What came of a cell that is over."""
        path = self.path(cell, ".json")
        return load_json(path) if path.is_file() else None

    def job(self, cell: Cell, prune: Prune = lambda run: False) -> Job:
        """Pretrain and evaluate, as far as that is not done; a row at the end, unless the study is stopped before."""
        run, status = Run(self.path(cell)), ""
        while cell.teacher and not self.stopping and self._teachers_row(cell) is None:
            yield
        while _busy(run.path) and not self.stopping:  # a process that outlived a killed study
            yield
        if self.row(cell) or self.stopping:
            return
        code, cut = 0, False
        if not run.finished:
            code, cut = yield from self._process(cell, self._pretraining(cell), lambda: prune(run))
            status = "pruned" if cut else "" if code in STOPPED else "failed"
        if run.finished and not self.stopping:
            for arguments in evaluations(cell, str(run.path), self.evaluation):
                code, _ = yield from self._process(cell, arguments, lambda: False)
                status = "finished" if code == 0 else "" if code in STOPPED else "failed"
                if status != "finished" or self.stopping:
                    break
        if status and not self.stopping:
            said = _last_words(self.path(cell, ".log"), code) if status == "failed" else ""
            save_json(self.path(cell, ".json"), row_of(cell, run, status, said))

    def _process(
        self, cell: Cell, arguments: Sequence[str], prune: Callable[[], bool]
    ) -> Generator[None, None, tuple[int, bool]]:
        """Run to the end, or to the study's; gives the exit status, and whether it was pruned."""
        process, asked, cut = self.launch(arguments, self.path(cell, ".log"), self.how["threads"]), False, False
        try:
            while process.poll() is None:
                if not asked:
                    cut = prune()
                    asked = cut or self.stopping
                    if asked:
                        process.terminate()
                yield
            return process.returncode or 0, cut
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _teachers_row(self, cell: Cell) -> CellRow | None:
        return self.row(replace(cell, called=cell.teacher))

    def _pretraining(self, cell: Cell) -> list[str]:
        path = self.path(cell)
        how = words({f"run.{key}": value for key, value in self.how.items()})
        if steps(path / "checkpoints"):
            return ["pretrain", "--resume", str(path), *how]
        start = ["pretrain", "--config", str(self.out / "base.yaml"), "--out", str(path), "--overwrite"]
        teacher = [f"target.teacher={self.path(replace(cell, called=cell.teacher))}"] if cell.teacher else []
        return [*start, *how, *words(cell.change), *teacher, f"seed={cell.seed}"]


def run_jobs(jobs: Iterable[Job], most: int, stopping: Callable[[], bool]) -> None:
    """Run jobs side by side, each taken when there is room for it; once `stopping`, only those that were begun."""
    waiting, live, over = iter(jobs), list[Job](), object()
    try:
        while True:
            while len(live) < most and not stopping() and (job := next(waiting, None)):
                live.append(job)
            if not live:
                return
            live = [job for job in live if next(job, over) is not over]
            time.sleep(POLL_SECONDS if live else 0)
    finally:
        for job in live:
            job.close()  # kills what it started


def _busy(folder: Path) -> bool:
    """Whether a process works on a run."""
    if not folder.is_dir():
        return False
    try:
        with locked(folder):
            return False
    except UserError:
        return True


def _last_words(said: Path, code: int) -> str:
    """Why a process failed: its sentence to the user, else the last line it said."""
    lines = (
        [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if said.is_file()
        else []
    )
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
