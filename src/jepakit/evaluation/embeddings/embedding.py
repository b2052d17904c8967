"""The verb `embed`: a vector, or patch tokens, of every image of a collection, in a Parquet or .npz file; a kill loses little."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from jepakit import __version__
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError, checked, plain
from jepakit.core.files import locked, user_path
from jepakit.core.progress import progress
from jepakit.data.formats.remote import shown
from jepakit.data.identity import Identity
from jepakit.data.labels.table import GivenTable, TableColumns, table_settings
from jepakit.data.opening import GivenImages, absolute, given_images, open_given
from jepakit.data.sources import Labels, Source
from jepakit.data.statistics import require_bands
from jepakit.evaluation.embeddings.embedder import (
    Embedded,
    Embedder,
    embedded,
    embedder_of,
    encoder_and_settings,
    encoder_digest,
    in_batches,
)
from jepakit.evaluation.embeddings.files import open_embeddings
from jepakit.evaluation.embeddings.parts import (
    LABEL_OF,
    Columns,
    EmbeddingParts,
    as_text,
    bad_path,
    begin,
    described,
    join,
    require_ours,
)
from jepakit.evaluation.features import BATCH, UnreadRow
from jepakit.model.encoder import Encoder

log = logging.getLogger("jepakit")
PART_BYTES, PART_ROWS = 32 << 20, 2048  # of a part, and so of a row group: the less of the two
MUST_AGREE = {  # what must be the same where a file goes on, and how to say what it was
    "weights": "another encoder",
    "layer": "another layer",
    "pool": "another pooling",
    "precision": "another precision",
    "view": "another view of the images",
    "labels": "other labels",
    "labels_digest": "other labels, groups or splits",
    "images_count": "another number of images",
    "part_rows": "parts of another length",
    "jepakit": "another version of jepakit",
}


@checked
def embed(
    run: Encoder | Run | str | Path,
    data: GivenImages | None,
    out: str | Path,
    *,
    layer: str | int = "last",
    pool: str = "mean",
    precision: str | None = None,
    labels: str | None = None,
    table: GivenTable | None = None,
    overwrite: bool = False,
    **columns: Unpack[TableColumns],
) -> Path:
    """Write a row for each image of `data` that can be read, in the order of the source, to `out`.

    data, table, columns: as of `jepakit.pretrain`; None: the run's own, its table where data is none, too. run: a run, anything
    that `jepakit.load` takes, or an encoder. out: .parquet, or .npz. A row has the image's place in the source (index) and path,
    label, split and group where there are, and the vector that evaluation would see: layer 'last', 'last4' or a block from 1 on;
    pool 'mean' over the patch tokens, or 'none' for all of them (half floats); precision fp32, fp16 (stored as half floats, too)
    or bf16, by default the run's own.
    Images that cannot be read are named in OUT.bad.csv. After a stop or kill the same call goes on; a call whose file is there
    returns at once. Raises UserError where the file, or what a stopped call left, is of something else and `overwrite` is not
    set, and as `load` and `open_source` do.
    """
    out = _place(out)
    encoder, settings, own, where = encoder_and_settings(run)
    told = table_settings(table, columns)
    if told is None and data is None and own and own.table.file:
        told = own.table
    place, opened = ((own and own.data) or "", None) if data is None else given_images(data, None if told else labels)
    if not place:
        raise UserError("which images? give --data SRC")
    source = open_given(place, opened, labels, encoder.images, told)
    for note in source.notes:
        log.warning("%s", plain(note))
    whole = source.labels is not None and source.labels.whole_image
    embedder = embedder_of(encoder, settings, layer, pool, precision, whole)
    require_bands(source, encoder.images, settings.read_timeout_seconds)
    lies = place if opened else shown(absolute(place))  # without a password: the file may go to others
    return embed_source(embedder, source, out, encoder=where, data=lies, overwrite=overwrite)


def embed_source(embedder: Embedder, source: Source, out: Path, *, encoder: str, data: str, overwrite: bool = False) -> Path:
    """`embed` of a source that is open; encoder, data: where the two lie, for those who read the file."""
    about = _about(embedder, source, encoder, data)
    folder = out.with_name(f"{out.name}.parts")
    if out.exists() and not folder.exists() and not overwrite:
        _require_same(open_embeddings(out).about, about, str(out))
        return out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_ours(folder)
        with locked(folder):
            if _is_done(out, folder, about, overwrite):
                shutil.rmtree(folder)
                return out
            begin(folder, about)
            parts = EmbeddingParts(folder, -(-len(source) // about["part_rows"]))
            _fill(parts, embedder, source, about["part_rows"])
            bad = join(parts, out, about)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror or error}") from None
    if bad:
        log.warning("%d of %d images could not be read: %s names them", bad, len(source), bad_path(out))
    return out


def _place(out: str | Path) -> Path:
    path = user_path(out, "out")
    if path.suffix not in (".parquet", ".npz") or path.is_dir():
        raise UserError(f"--out {path}: give the name of a file that ends with .parquet or .npz")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(
                f"{path} needs pyarrow to be written: pip install 'jepakit[parquet]', or give a name that ends with .npz"
            ) from None
    return path


def _about(embedder: Embedder, source: Source, encoder: str, data: str) -> dict[str, Any]:
    """What a file holds, and of what: its metadata."""
    identity, labels, shape = Identity.of(source), source.labels, embedder.shape
    row = int(np.prod(shape)) * embedder.dtype.itemsize
    return {
        "jepakit": __version__,
        "encoder": encoder,
        "which": embedder.encoder.which,
        "weights": encoder_digest(embedder.encoder),
        "layer": embedder.layer,
        "pool": embedder.pool,
        "precision": embedder.precision,
        "shape": list(shape),
        "view": "whole image" if embedder.whole_image else "centre crop",
        "images": embedder.encoder.images.model_dump(mode="json"),
        "data": data,
        "names": identity.names,
        "content": identity.content,
        "images_count": len(source),
        "part_rows": max(BATCH, min(PART_ROWS, PART_BYTES // row) // BATCH * BATCH),  # whole batches: a resume has the same ones
        "labels": labels.name if labels else None,
        "own_split": labels.own_split if labels else None,
        "labels_digest": labels.digest if labels else None,
        "kind": labels.kind if labels else None,
        "classes": list(labels.classes) if labels else [],
    }


def _is_done(out: Path, folder: Path, about: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the file is there already, made of the same. Raises UserError where other work is there and must stay."""
    if overwrite:
        for path in folder.iterdir():
            if path.name != ".lock":
                path.unlink()
        return False
    if (begun := described(folder)) is not None:
        _require_same(begun, about, str(folder))
    elif out.exists():
        _require_same(open_embeddings(out).about, about, str(out))
    return out.exists() and _differs(open_embeddings(out).about, about) is None


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What of two descriptions is not the same; None if all is."""
    for key, words in MUST_AGREE.items():
        if before.get(key) != now[key]:
            told = {"weights": f", {before.get('encoder')}", "labels_digest": ""}
            return words + told.get(key, f", {before.get(key)}, not {now[key]}")
    was, is_now = Identity.from_state(before), Identity.from_state(now)
    same = was is not None and is_now is not None and was.agrees(is_now)
    return None if same else f"other images, {before.get('data')}"


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    if difference := _differs(before, now):
        raise UserError(f"{where} holds embeddings of {difference}: say the same again, give another --out, or --overwrite")


def _fill(parts: EmbeddingParts, embedder: Embedder, source: Source, rows: int) -> None:
    """Make the parts that are missing."""
    numbers, n = parts.missing, len(source)
    batches = {k: in_batches(np.arange(k * rows, min((k + 1) * rows, n))) for k in numbers}
    made = embedded(embedder, source, [batch for number in numbers for batch in batches[number]])
    done = rows * (parts.count - len(numbers))
    with progress("embeddings", n, min(done, n)) as report:
        for number in numbers:
            chunks = []
            for batch in batches[number]:
                chunks.append(next(made))
                done += len(batch)
                report(min(done, n))
            parts.save(number, *_columns(embedder, source, chunks))


def _labels(labels: Labels, places: NDArray[np.int64]) -> Columns:
    """Of samples at places (n,): 'label', places of classes or numbers (n,); of several labels a column of 0, 1, NaN each."""
    if labels.kind != "multi":
        return {"label": labels.y[places]}
    return {f"{LABEL_OF}{as_text(name)}": labels.y[places, k] for k, name in enumerate(labels.classes)}


def _groups(labels: Labels, places: NDArray[np.int64]) -> NDArray[Any]:
    """Of samples at places (n,): names of groups, '' for an image that stands alone; numbers where groups have no names."""
    assert labels.groups is not None
    groups, names = labels.groups[places], labels.group_names
    return np.array([names[group] if group < len(names) else "" for group in groups], np.str_) if names else groups


def _columns(embedder: Embedder, source: Source, chunks: list[Embedded]) -> tuple[Columns, list[UnreadRow]]:
    """The rows of a part, and the images that could not be read."""
    places = np.array([place for chunk in chunks for place in chunk.places], np.int64)
    columns: Columns = {"index": places, "path": np.array([source.title(i) for i in places.tolist()], np.str_)}
    labels, held = source.labels, source.held_out
    test = np.zeros(len(places), bool) if held is None else held[places]
    if labels is not None:
        values = labels.values[places]
        test = test | labels.test[places]
        columns |= _labels(labels, places) | {"split": np.where(test, 1, np.where(values >= 0, 0, -1))}
        columns |= {} if labels.groups is None else {"group": _groups(labels, places)}
    elif held is not None:
        columns["split"] = test.astype(np.int64)
    vectors = [chunk.vectors for chunk in chunks]
    columns["vector"] = np.concatenate(vectors) if vectors else np.zeros((0, *embedder.shape))
    return columns, [each for chunk in chunks for each in chunk.bad]
