"""The verb `search`: the images of a file of embeddings that are nearest to an image, a folder of images, or a row."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jepakit.artifacts.run import Run
from jepakit.config.renamed import stored_images
from jepakit.core.errors import UserError, checked, plain
from jepakit.data.crops import channels_of, resize, to_show
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.opening import named, open_source
from jepakit.data.samples import read_many
from jepakit.data.sources import Source
from jepakit.evaluation.embeddings.index import Index, Neighbours, nearest_rows, queries_of, vectors_of
from jepakit.evaluation.embeddings.parts import LABEL_OF, as_text
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings

log = logging.getLogger("jepakit")
THUMBNAIL_SIDE = 160  # pixels of the longer side of a thumbnail
Picture = tuple[bytes | None, str, str]  # JPEG, if it can be had, a title, a note


@dataclass(frozen=True)
class SearchResult:
    """The rows nearest to a query, nearest first: rows (k), cosines, paths, and labels (None where there is none).

    images, place: the source that the query is of, and where in it.
    """

    query: str
    rows: list[int]
    scores: list[float]
    paths: list[str]
    labels: list[str | None]
    images: Source | None = field(default=None, repr=False)
    place: int = 0


@checked
def search(
    file: str | Path,
    query: str | Path | None = None,
    k: int = 10,
    *,
    row: int | None = None,
    encoder: Encoder | Run | str | Path | None = None,
) -> list[SearchResult]:
    """The k images of `file`, which `embed` wrote, that are nearest by cosine to a query: an image file, each image of a folder
    (or of anything that pretrain takes), or a row of the file, which is then not among its own neighbours.

    encoder: where the one that made the file lies now, if not where the file says. Raises UserError for a query that cannot
    be read, an encoder of other weights, and files that `embed` did not write.
    """
    if (query is None) == (row is None) or query == "":
        raise UserError("what to look for? give an image, a folder of images, or --row N")
    if k < 1:
        raise UserError(f"k={k}: give a whole number from 1 on")
    index = Index(file, encoder)
    if row is not None:
        return [_of_row(index, row, k)]
    place = named(query)  # type: ignore[arg-type]
    images = queries_of([place]) if Path(place).is_file() and not _is_set(place) else open_source(place)
    vectors, places, bad = vectors_of(index.embedder, images)
    for _, title, reason in bad:
        log.warning("left out: %s: %s", plain(title), reason)
    if not places:
        raise UserError(f"{plain(bad[0][1])} cannot be read: {bad[0][2]}")
    found = index.search(vectors, k)
    return [_result(index, found, i, images.title(at), images, at) for i, at in enumerate(places)]


def _is_set(place: str) -> bool:
    return place.endswith((".parquet", ".tar", ".npz", ".arrow"))


def _of_row(index: Index, row: int, k: int) -> SearchResult:
    if not 0 <= row < len(index):
        raise UserError(f"--row {row}: {index.where} has the rows 0 to {len(index) - 1}")
    asked = np.array([row])
    scores, rows = nearest_rows(index.rows, index.rows.rows("vector", asked).reshape(1, -1), k + 1)
    kept = np.flatnonzero(rows[0] != row)[:k]
    paths = index.rows.rows("path", rows[0, kept]).tolist()
    found = Neighbours(rows[:, kept], scores[:, kept], [paths])
    return _result(index, found, 0, str(index.rows.rows("path", asked)[0]), None, row)


def _result(index: Index, found: Neighbours, i: int, query: str, images: Source | None, place: int) -> SearchResult:
    rows = found.indices[i]
    return SearchResult(query, rows.tolist(), found.scores[i].tolist(), found.paths[i], _labels(index, rows), images, place)


def _labels(index: Index, rows: NDArray[np.int64]) -> list[str | None]:
    """What a file says of rows (k), in words; of several labels those that hold."""
    several = [name for name in index.rows.names if name.startswith(LABEL_OF)]
    if several:
        held = np.stack([index.rows.rows(name, rows) for name in several], 1) == 1
        return ["|".join(name.removeprefix(LABEL_OF) for name, is_so in zip(several, row, strict=True) if is_so) for row in held]
    if "label" not in index.rows.names:
        return [None] * len(rows)
    words = [f"{each:g}" if isinstance(each, float) else each for each in index.rows.rows("label", rows).tolist()]
    return [None if word in ("", "nan", None) else word for word in words]


def search_table(results: Sequence[SearchResult]) -> str:
    """Lines to print: each query, and below it cosine, row, path and label of its neighbours."""
    lines = []
    for result in results:
        lines.append(plain(result.query))
        for score, row, path, label in zip(result.scores, result.rows, result.paths, result.labels, strict=True):
            lines.append(f"  {score:7.4f}  {row:8}  {plain(path)}" + (f"  [{plain(label)}]" if label else ""))
    return "\n".join(lines)


def pictures_of(file: str | Path, results: Sequence[SearchResult]) -> list[list[Picture]]:
    """For each result the query and then its neighbours as thumbnails, with path, and cosine and label.

    The neighbours' images are read where they lay when the file was made; where they lie there no more, the log says so.
    """
    index = Index(file)
    settings = stored_images(index.about["images"])
    source: Source | None = None
    try:
        source = open_source(index.about["data"], images=settings)
    except UserError as error:
        log.warning("the page is without the images of the file: %s", error)
    sheet = []
    for result in results:
        rows = np.array(result.rows if result.images else [result.place, *result.rows], np.int64)
        jpegs = _thumbnails(index, source, rows, settings)
        if result.images:
            jpegs = [_read_thumbnails(result.images, [result.place], settings)[0], *jpegs]
        notes = [
            f"{score:.4f}" + (f" · {label}" if label else "") for score, label in zip(result.scores, result.labels, strict=True)
        ]
        titles = [plain(title) for title in (as_text(result.query), *result.paths)]
        sheet.append(list(zip(jpegs, titles, ["", *notes], strict=True)))
    return sheet


def _thumbnails(index: Index, source: Source | None, rows: Any, settings: ImageSettings) -> list[bytes | None]:
    """Of rows of a file; None where the source has no such image, or another one there."""
    places, paths = index.rows.rows("index", rows).tolist(), index.rows.rows("path", rows).tolist()
    if source is None:
        return [None] * len(places)
    same = [at < len(source) and as_text(source.title(at)) == path for at, path in zip(places, paths, strict=True)]
    if not all(same):  # such as images that a table listed
        where = {as_text(source.title(at)): at for at in range(len(source))}
        places, same = [where.get(path, 0) for path in paths], [path in where for path in paths]
    found = iter(_read_thumbnails(source, [at for at, is_it in zip(places, same, strict=True) if is_it], settings))
    return [next(found) if is_it else None for is_it in same]


def _read_thumbnails(source: Source, places: list[int], settings: ImageSettings) -> list[bytes | None]:
    def read(place: int) -> bytes:
        pixels = channels_of(source.read(place, settings.max_pixels), settings)
        height, width = pixels.shape[:2]
        scale = THUMBNAIL_SIDE / max(height, width)
        small = to_show(resize(pixels, max(1, round(height * scale)), max(1, round(width * scale))))
        content = io.BytesIO()
        Image.fromarray(small.permute(1, 2, 0).contiguous().numpy()).save(content, "JPEG", quality=85)
        return content.getvalue()

    found = read_many(source, np.array(places, np.int64), read)
    return [None if isinstance(each, BadImageError) else each for each in found]
