"""A sheet of pictures as one HTML file that opens anywhere: each row a query, and what is nearest to it."""

import base64
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jepakit.core.errors import UserError
from jepakit.core.files import atomic_write, user_path


def contact_sheet(
    rows: Sequence[Sequence[tuple[bytes | None, str, str]]], out: str | os.PathLike[str], title: str, note: str = ""
) -> Path:
    """Write rows of pictures, (JPEG or None, title, note) each, the first of a row being what was looked for, to `out`.

    Raises UserError where that cannot be written, and for a name of another kind.
    """
    path = user_path(out, "the page")
    if path.suffix.lower() not in (".html", ".htm"):  # rather than write over an image, or the file that was searched
        raise UserError(f"the page {path}: give the name of a file that ends with .html")
    tiles = [[{"src": _data_uri(jpeg), "title": name, "note": words} for jpeg, name, words in row] for row in rows]
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.get_template("contact_sheet.html").render(title=title, note=note, rows=tiles)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        with suppress(OSError):
            path.with_name(f".tmp-{path.name}").unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path


def _data_uri(jpeg: bytes | None) -> str:
    return "" if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
