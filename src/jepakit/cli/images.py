"""Commands on sets of images: data check, data pack."""

import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from jepakit.cli.options import (
    ImagesArgument,
    LabelsOption,
    SettingWords,
    ThreadsOption,
    a_recipe,
    data_app,
    takes_table,
)


@data_app.command()
@takes_table
def check(
    data: ImagesArgument,
    recipe: Annotated[
        str | None,
        typer.Option(help="The preset that shall fit. Default: what pretrain would choose.", autocompletion=a_recipe),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all that was found to this file, too.")] = None,
    *,
    told: dict[str, Any],
    threads: ThreadsOption = None,
    settings: SettingWords = None,
) -> None:
    """Read every image: what is there, what is broken or double, and whether a recipe fits. Exit code 1 where it does not."""
    from jepakit.planning.check import check as check_data
    from jepakit.planning.check_results import check_table

    checked = check_data(data, recipe, json=json, threads=threads, set=settings, **told)  # type: ignore[arg-type]
    print(check_table(checked))
    if checked.stops:
        sys.exit(1)


@data_app.command()
def pack(
    data: ImagesArgument,
    out: Annotated[Path, typer.Option(help="The pack's folder; given again, packing goes on where it was stopped.")],
    size: Annotated[int, typer.Option(min=1, help="Pixels of the shorter side; smaller images stay as they are.")] = 256,
    labels: LabelsOption = None,
    threads: ThreadsOption = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of an image; more are taken for a bomb.")] = 100_000_000,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable images at which packing stops.")] = 0.01,
    overwrite: Annotated[bool, typer.Option(help="Replace a pack that is there.")] = False,
) -> None:
    """Decode and shrink every image once, into files that training crops without decoding."""
    from jepakit.data.formats.pack import pack as write

    root = write(data, out, size, labels=labels, threads=threads, max_pixels=max_pixels, max_bad=max_bad, overwrite=overwrite)
    print(f"packed: {root}\nnext: jepakit pretrain --data {quote(str(root))} --out RUN")
