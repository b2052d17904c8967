"""The verb `export`: written beside its place, checked against the run, then renamed; never half an export."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jepakit import __version__
from jepakit.artifacts.checkpoint import pointed, step_name
from jepakit.artifacts.export.card import card
from jepakit.artifacts.export.exported_encoder import ExportChoice, at_size
from jepakit.artifacts.export.folders import write_hf, write_timm
from jepakit.artifacts.export.graphs import write_onnx, write_torch
from jepakit.artifacts.export.verify import CheckedOutput, compare, trials
from jepakit.artifacts.load import load, run_and_step
from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.core.device import PRECISIONS
from jepakit.core.errors import UserError, checked, line_of, nearest
from jepakit.core.files import save_json, user_path

log = logging.getLogger("jepakit")
WRITERS = {"hf": write_hf, "timm": write_timm, "onnx": write_onnx, "torch": write_torch}
NOT_REAL = "not checked on the run's images"
MARK = "export.json"  # by which a folder is known to be an export


@dataclass(frozen=True)
class Export:
    """What was written: its folder, how far each program that ran it was from the run, and why on real images none was ('')."""

    path: Path
    checks: tuple[CheckedOutput, ...]
    unchecked: str

    @property
    def largest(self) -> float:
        """The largest difference of a value from the run's."""
        return max(check.difference for check in self.checks)


@checked
def export(
    run: Run | str | Path,
    format: str,
    out: str | Path,
    *,
    precision: str = "fp32",
    images_size: tuple[int, int] | int | None = None,
    which: str | None = None,
    heads: int | None = None,
    preprocess: bool = False,
    custom_code: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the encoder of a run, or of all else that `jepakit.load` takes, for another program, in the new folder `out`.

    format: hf (transformers), timm, onnx or torch (torch.export). precision: of the weights, and of the graph's arithmetic.
    images_size: height and width, the run's own by default. preprocess: onnx and torch take uint8 images and normalise them.
    custom_code: an encoder that transformers has no model for goes out with a model of its own. Raises UserError where the
    format cannot hold the encoder, where what was written differs from the run, and where `out` is there (unless `overwrite`,
    and it is an export).
    """
    choice = _choice(format, precision, preprocess, custom_code)
    place = _place(user_path(out, "out"), overwrite)
    name: Any = which
    encoder = at_size(load(run, name, heads), _size(images_size))
    tried, unchecked = trials(encoder, choice, data_of(run))
    with _draft(place) as draft:
        runs = WRITERS[format](encoder, choice, draft)
        if not runs:
            raise UserError(f"--format {format}: {format} must be installed to check this export: pip install {format}")
        checks = tuple(compare(runs, tried, choice.dtype))
        # why images cannot be read names places of this machine: it is for the one who exports, not for a file that goes out
        notes = [*(check.sentence() for check in checks), *([NOT_REAL] if unchecked else [])]
        config, results = of_run(run)
        (draft / "README.md").write_text(card(encoder, choice, config, results, notes), encoding="utf-8")
        mark = {"jepakit": __version__, "format": format, "precision": precision, "which": encoder.which, "checks": notes}
        save_json(draft / MARK, mark)
    for line in [*(check.sentence() for check in checks), *([f"{NOT_REAL}: {unchecked}"] if unchecked else [])]:
        log.info("%s", line)
    return Export(place, checks, unchecked)


def _choice(format: str, precision: str, preprocess: bool, custom_code: bool) -> ExportChoice:
    """Raises UserError for unknown words, and for what a format has no use for."""
    for option, word, known in (("format", format, WRITERS), ("precision", precision, PRECISIONS)):
        if word not in known:
            raise UserError(f"--{option} {word}: choose {', '.join(known)}{nearest(word, known)}")
    if preprocess and format not in ("onnx", "torch"):
        raise UserError(f"--preprocess is for onnx and torch; of {format} the folder says how images are prepared")
    if custom_code and format != "hf":
        raise UserError(f"--custom-code is for hf, not for {format}")
    return ExportChoice(format, PRECISIONS[precision], preprocess, custom_code)


def _size(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    if size is None or isinstance(size, int):
        return None if size is None else (size, size)
    if len(size) != 2:
        raise UserError(f"images_size={tuple(size)}: give a side, or height and width")
    return size[0], size[1]


def _place(out: Path, overwrite: bool) -> Path:
    """The folder to be made. Raises UserError where something is there that is not to be replaced."""
    place = Path(os.path.realpath(out))  # of a link to a folder, that folder
    if place.is_dir() and not any(place.iterdir()):
        return place
    if os.path.lexists(place):
        if not overwrite:
            raise UserError(f"--out {out} is there: give a new folder, or replace an export with --overwrite")
        if not (place / MARK).is_file():
            raise UserError(f"--out {out} is no export (it has no {MARK}), so it is not replaced: give a new folder")
    return place


@contextmanager
def _draft(place: Path) -> Iterator[Path]:
    """A folder beside `place` to write in, which takes its place at the end; after an error it is removed."""
    draft = place.with_name(f".tmp-{place.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        old = place.with_name(f".tmp-old-{place.name}-{os.getpid()}")
        if place.exists():
            place.rename(old)
        try:
            draft.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # the latter is safetensors' own for a full disk
        reason = getattr(error, "strerror", None) or line_of(error)
        raise UserError(f"not exported: {place} cannot be written: {reason}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def of_run(path: Run | str | Path) -> tuple[Config | None, Path | None]:
    """The settings of the run that an encoder is of (the run, RUN@step, RUN/model, RUN/checkpoints/...), and the folder with
    that step's results; None for what is of no run: a file that only lies in one is not taken to be of it."""
    given, step = run_and_step(user_path(path, "the encoder"))
    given, name = given.absolute(), "" if step is None else step_name(step)
    if given.parent.name in ("checkpoints", "snapshots"):
        given, name = given.parents[1], pointed(given).resolve().name
    elif given.name == "model":
        given = given.parent
    run = Run(given)
    if not (given / "config.yaml").is_file() or not run.is_ours():
        return None, None
    return run.config, given / "evaluation" / name


def data_of(path: Run | str | Path) -> str | None:
    """Where the images lie that an encoder was trained on, if it is one of a run."""
    config, _ = of_run(path)
    return config.data if config else None
