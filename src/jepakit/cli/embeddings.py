"""Commands on vectors of images: embed, search."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from jepakit.cli.options import app, print_once, takes_table


@app.command()
@takes_table
def embed(
    run: Annotated[str, typer.Argument(help="A run, or any encoder that jepakit.load takes.")],
    out: Annotated[Path, typer.Option(help="The file, .parquet or .npz; the same command again goes on after a stop.")],
    data: Annotated[str | None, typer.Option(help="Images: all that pretrain takes; default: the run's own.")] = None,
    layer: Annotated[str, typer.Option(help="last; last4: the last four blocks side by side; or a block's number.")] = "last",
    pool: Annotated[str, typer.Option(help="mean over the patch tokens; none: all of them, as half floats.")] = "mean",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 (stored as half floats too) or bf16; default: the run's own.")
    ] = None,
    *,
    told: dict[str, Any],
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """A vector of every image, in a Parquet or .npz file; images that cannot be read are named in OUT.bad.csv."""
    from jepakit.evaluation.embeddings.embedding import embed as write

    how: dict[str, Any] = {"layer": layer, "pool": pool, "precision": precision, "overwrite": overwrite, **told}
    path = write(run, data, out, **how)
    print_once(f"embeddings: {path}" + (f"\nnext: jepakit search {quote(str(path))} IMAGE" if pool == "mean" else ""))


@app.command()
def search(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What jepakit embed wrote.")],
    query: Annotated[str | None, typer.Argument(metavar="[IMAGE]", help="An image file, or a folder of images.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many neighbours.")] = 10,
    row: Annotated[int | None, typer.Option(min=0, help="Look for the neighbours of this row, from 0 on.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the images, too, that needs nothing else.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Where the encoder that made the file lies now, if not where it was.")
    ] = None,
) -> None:
    """The images of a file of embeddings nearest to an image, to each of a folder, or to a row: cosine, exact."""
    from jepakit.evaluation.embeddings.search import pictures_of, search_table
    from jepakit.evaluation.embeddings.search import search as look

    results = look(file, query, k, row=row, encoder=encoder)
    print(search_table(results))
    if html is not None:
        from jepakit.reporting.contact_sheet import contact_sheet

        note = f"The nearest images of {file}, by cosine, nearest first."
        title = f"row {row}" if query is None else query
        print(f"page: {contact_sheet(pictures_of(file, results), html, title, note)}")
