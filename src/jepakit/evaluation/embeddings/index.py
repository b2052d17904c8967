"""An index of vectors: the nearest by cosine of each query, exactly, with flat memory; ties go to the lower row.

n rows, m queries, D numbers of a vector.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError, plain
from jepakit.core.files import user_path
from jepakit.data.sets.held import HeldSource
from jepakit.data.sources import Source
from jepakit.evaluation.embeddings.embedder import (
    Embedder,
    embedded,
    embedder_of,
    encoder_and_settings,
    encoder_digest,
)
from jepakit.evaluation.embeddings.files import ArrayEmbeddings, Embeddings, open_embeddings
from jepakit.evaluation.features import UnreadRow, in_batches
from jepakit.model.encoder import Encoder

Floats = NDArray[np.floating]
_QUERIES = 128  # whose similarities to a block are in memory at a time
_PAIRS = 4096  # of a query and a row, that are compared in float64 at a time


class Neighbours(NamedTuple):
    """For each of m queries its k nearest, nearest first: rows (m, k) int64, cosines (m, k) float64, and the rows' paths."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]
    paths: list[list[str]]


class Index:
    """Vectors with a name each, to look for the nearest in."""

    def __init__(self, of: str | Path | tuple[Any, Sequence[str]], encoder: Encoder | Run | str | Path | None = None) -> None:
        """of: a file that `jepakit.embed` wrote, or vectors (n, D) with n paths. encoder: what makes a vector of an image; by
        default the one that the file names. Raises UserError for other files, vectors and encoders.
        """
        self.rows: Embeddings
        self._embedder: Embedder | None = None
        if isinstance(of, tuple):
            if len(of) != 2 or not isinstance(of[1], Sequence | np.ndarray) or isinstance(of[1], str):
                raise UserError("an index is of a file that jepakit.embed wrote, or of (vectors, paths)")
            vectors, paths = as_vectors(of[0]), np.asarray(list(of[1]), np.str_)
            if len(vectors) != len(paths):
                raise UserError(f"an index is of vectors (n, D) and n paths, not of {len(vectors)} and {len(paths)}")
            self.where, self.rows = "the index", ArrayEmbeddings({"vector": vectors, "path": paths}, {})
            self._embedder = None if encoder is None else _made_by(encoder, {}, "")
            return
        path = user_path(of, "the file of embeddings")
        self.where, self.rows = str(path), open_embeddings(path)
        if self.about["pool"] != "mean":
            raise UserError(f"{path} holds patch tokens, and a search wants one vector an image: embed with --pool mean")
        self._embedder = None if encoder is None else _made_by(encoder, self.about, self.where)

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of itself: encoder, layer, images; {} for vectors that were given."""
        return dict(self.rows.about)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def embedder(self) -> Embedder:
        """What made the vectors. Raises UserError where its weights are not those, or nobody knows them."""
        if self._embedder is None:
            if not self.about.get("encoder"):
                raise UserError(f"{self.where} does not say which encoder made its vectors: give encoder=")
            self._embedder = _made_by(self.about["encoder"], self.about, self.where)
        return self._embedder

    def search(self, queries: Any, k: int = 10) -> Neighbours:
        """The k nearest rows of each query, by cosine: of vectors (m, D) or one (D,), of an image's path or PIL image, or a list.

        As many as there are, where there are fewer than k. Raises UserError for an image that cannot be read, or other vectors.
        """
        if isinstance(queries, np.ndarray | torch.Tensor) or _is_numbers(queries):
            vectors = as_vectors(queries)
        else:
            images = queries_of(queries if isinstance(queries, list | tuple) else [queries])
            vectors, _, bad = vectors_of(self.embedder, images)
            if bad:
                raise UserError(f"{plain(bad[0][1])} cannot be read: {bad[0][2]}")
        if not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"k={k}: give a whole number from 1 on")
        scores, indices = nearest_rows(self.rows, vectors, k)
        paths = self.rows.rows("path", indices.reshape(-1)).reshape(indices.shape)
        return Neighbours(indices, scores, paths.tolist())


def nearest_rows(rows: Embeddings, queries: Floats, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosines (m, k) and rows (m, k) of the k nearest of each query (m, D), nearest first, the lower row of equals.

    Blocks are compared in float32; what may be among the nearest, for all that its rounding can hide, then in float64, row
    by row, so that equal vectors get equal cosines wherever they lie.
    """
    m, k = len(queries), min(k, len(rows))
    low, slack = _unit32(queries), 4 * (queries.shape[1] + 16) * 2.0**-24  # twice the bound of two rounded dot products
    best = np.full((m, k), -np.inf), np.full((m, k), -1, np.int64)
    for start, block in rows.blocks():
        if block.shape[1] != queries.shape[1]:
            raise UserError(f"the index has vectors of {block.shape[1]} numbers, the query has {queries.shape[1]}")
        block_low = _unit32(block)
        for first in range(0, m, _QUERIES):
            some = slice(first, first + _QUERIES)
            similarity, bound = low[some] @ block_low.T, best[0][some, -1]
            if k <= len(block):
                bound = np.maximum(bound, similarity.topk(k, 1).values[:, -1].numpy())
            query, row = (each.numpy() for each in (similarity >= torch.from_numpy(bound - slack)[:, None]).nonzero().T)
            scores = _cosines(queries[some], block, query, row)
            _keep_best(best[0][some], best[1][some], query, row + start, scores)
    return best


def _unit32(vectors: Floats) -> torch.Tensor:
    """Rows (n, D) of length 1 in float32, but for rounding; those of length 0 stay."""
    vectors = _unit(vectors) if vectors.dtype == np.float64 else vectors  # float32 may not hold them
    x = torch.from_numpy(np.array(vectors, np.float32))  # a copy: what Arrow and maps give is read-only
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64).float()
    return x / torch.where(length > 0, length, 1)


def _cosines(queries: Floats, rows: Floats, query: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of pairs (p,): each by its own sums, so that it depends on nothing but the two vectors."""
    parts = [slice(start, start + _PAIRS) for start in range(0, len(query), _PAIRS)]
    found = [(_unit(queries[query[part]]) * _unit(rows[row[part]])).sum(1) for part in parts]
    return np.asarray(np.concatenate([np.empty(0), *found]))


def _keep_best(
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    query: NDArray[np.int64],
    row: NDArray[np.int64],
    score: NDArray[np.float64],
) -> None:
    """Enter candidates (p,) into the best so far (m, k), in place."""
    m, k = scores.shape
    query = np.concatenate([np.repeat(np.arange(m), k), query])
    row, score = np.concatenate([rows.reshape(-1), row]), np.concatenate([scores.reshape(-1), score])
    order = np.lexsort((row, -score, query))
    firsts = np.searchsorted(query[order], np.arange(m))
    kept = order[firsts[:, None] + np.arange(k)]
    scores[:], rows[:] = score[kept], row[kept]


def _unit(vectors: Floats) -> NDArray[np.float64]:
    """Rows (n, D) of length 1; those of length 0 stay."""
    x = np.asarray(vectors, np.float64)
    _, power = np.frexp(np.abs(x).max(1, keepdims=True))
    x = np.ldexp(x, -power)  # exact, and no square over- or underflows
    length = np.sqrt((x * x).sum(1, keepdims=True))
    return np.asarray(np.divide(x, length, out=np.zeros_like(x), where=length > 0))


def as_vectors(given: Any) -> Floats:
    """Vectors (n, D), of one (D,) or several, as an array. Raises UserError for others, and numbers that are not finite."""
    try:
        x = given.detach().cpu().float().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    except ValueError:  # lists of different lengths
        raise UserError("give vectors (n, D), or one (D,): these are of different lengths") from None
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2 or x.dtype.kind not in "fiu" or not x.size:
        raise UserError(f"give vectors (n, D), or one (D,), of numbers, not {tuple(x.shape)} of {x.dtype}")
    if not np.isfinite(x).all():
        raise UserError("a vector holds numbers that are not finite")
    return x


def vectors_of(embedder: Embedder, source: Source) -> tuple[Floats, list[int], list[UnreadRow]]:
    """Vectors (m, D) of the images of a source that can be read, their places, and the others."""
    found = list(embedded(embedder, source, in_batches(np.arange(len(source)))))
    vectors = np.concatenate([each.vectors for each in found])
    return vectors, [i for each in found for i in each.places], [bad for each in found for bad in each.bad]


def queries_of(images: Sequence[Any]) -> HeldSource:
    """The source of images that are given: paths, or PIL's. Raises UserError for other things, and for none."""
    if not images:
        raise UserError("give an image at least")
    for image in images:
        if not isinstance(image, str | os.PathLike | Image.Image):
            raise UserError(f"an image is given as a path or a PIL image, not as a {type(image).__name__}")
    held = [each if isinstance(each, Image.Image) else user_path(each, "the image") for each in images]
    titles = [f"image {number}" if isinstance(each, Image.Image) else str(each) for number, each in enumerate(held)]
    return HeldSource("the images", len(held), held.__getitem__, titles)


def _is_numbers(queries: Any) -> bool:
    """Whether it is a list of numbers, or of such lists."""
    first = queries[0] if isinstance(queries, list | tuple) and len(queries) else queries
    first = first[0] if isinstance(first, list | tuple) and len(first) else first
    return isinstance(first, int | float | np.ndarray | torch.Tensor)


def _made_by(encoder: Encoder | Run | str | Path, about: dict[str, Any], where: str) -> Embedder:
    """What made the vectors of a file. Raises UserError where the encoder has other weights."""
    try:
        found, settings, _, name = encoder_and_settings(encoder, about.get("which") if isinstance(encoder, str | Path) else None)
    except UserError as error:
        moved = f" (the encoder that made {where}: if it lies elsewhere now, give --encoder)" if where else ""
        raise UserError(f"{error}{moved}") from None
    if about and encoder_digest(found) != about["weights"]:
        other = f"{name or 'the encoder'} has other weights than the encoder that made {where}"
        raise UserError(f"{other}: give that one with --encoder")
    whole = about.get("view") == "whole image"
    return embedder_of(found, settings, about.get("layer", "last"), "mean", about.get("precision", "fp32"), whole)
