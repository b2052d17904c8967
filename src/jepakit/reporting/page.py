"""Assembles the page from what the files of run folders hold.

How a section is added: a function here or in `sections/` that gives the values of its template from the runs (None where
there is nothing to show, and the section is left out); its template `templates/sections/NAME.html`, one
`<section id="NAME">`; its line in SECTIONS, in the page's order. Script and style of its own lie beside the template as NAME.js
and NAME.css, and are inlined behind page.js and page.css. What a script needs to know is written into the template by
`{{ data("ID", value) }}` (macros.html) and read by `readData("ID")`; pictures are `figures.data_uri`. Nothing in a template may
be a handler (`onclick`) or a script: the policy in base.html lets only the one script run, by its hash, and nothing load.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jepakit.core.errors import UserError, checked
from jepakit.core.files import finite, user_path

from .figure_files import save_figures
from .figures import STILL
from .reading import RunFiles, RunFolderError, read
from .sections.along_run import along_run
from .sections.comparison import runs_compared
from .sections.curves import curves
from .sections.pictures import masks, nearest_images
from .sections.predictions import predictions
from .sections.probes import probes
from .sections.sees import embeddings, sees
from .sections.segmented import segmented
from .sections.summary import summary

TEMPLATES = Path(__file__).parent / "templates"
Section = Callable[[Sequence[RunFiles]], Mapping[str, Any] | None]


@checked
def report(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    figures: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page of one run, or of several side by side; by default `report.html` in the first folder.

    figures: a folder that takes each figure too, as PNG and SVG, with its data as CSV.
    """
    folders = [user_path(run, "the run") for run in ([runs] if isinstance(runs, os.PathLike | str) else runs)]
    read_runs = _read(folders)
    text = _render(read_runs, live=False)
    path = folders[0] / "report.html" if out is None else user_path(out, "out")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
    if figures is not None:
        save_figures(read_runs, user_path(figures, "figures"))
    return path


def page_of(folders: Sequence[Path], live: bool = False) -> str:
    """The page as text; live: one that asks its server for newer ones. Raises RunFolderError."""
    return _render(_read(folders), live)


def _read(folders: Sequence[Path]) -> list[RunFiles]:
    if not folders:
        raise RunFolderError("A report needs at least one run folder.")
    return [read(folder, index, folders) for index, folder in enumerate(folders)]


def _steps(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    along = along_run(runs)
    return {"along": along} if along["panels"] else None


SECTIONS: Mapping[str, Section] = {
    "summary": summary,
    "comparison": runs_compared,
    "curves": curves,
    "masks": masks,
    "probes": probes,
    "steps": _steps,
    "sees": sees,
    "segmented": segmented,
    "neighbours": nearest_images,
    "embeddings": embeddings,
    "predictions": predictions,
    "configuration": lambda runs: {},
}


def _render(runs: Sequence[RunFiles], live: bool) -> str:
    STILL.set(not live)
    page = _environment()
    values = {name: found for name, section in SECTIONS.items() if (found := section(runs)) is not None}
    sections = [Markup(page.get_template(f"sections/{name}.html").render(runs=runs, **values[name])) for name in values]
    script, style = (_joined(TEMPLATES, values, suffix, live) for suffix in (".js", ".css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.get_template("base.html").render(
        runs=runs, sections=sections, script=script, style=style, digest=digest, live=live
    )


@cache
def _environment() -> Environment:
    """The templates, read and compiled once a process."""
    page = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters["finite"] = finite
    return page


def _joined(folder: Path, names: Mapping[str, Any], suffix: str, live: bool) -> Markup:
    """The page's own script or style, and those of its sections."""
    shared = [folder / f"{name}{suffix}" for name in ("page", "scales", "charts")]
    files = [*shared, *(folder / "sections" / f"{name}{suffix}" for name in names), *([folder / f"live{suffix}"] if live else [])]
    return Markup("\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file()))
