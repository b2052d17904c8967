"""The verb `embed`: a vector, or patch tokens, of every image of a collection, in a Parquet or .npz file; a kill loses little."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from jepakit import __version__
from jepakit.artifacts.run import Run
from jepakit.core import distributed
from jepakit.core.errors import UserError, checked, plain
from jepakit.core.files import locked, user_path
from jepakit.core.parallel import require_own_device
from jepakit.core.progress import progress
from jepakit.data.formats.remote import shown
from jepakit.data.identity import Identity
from jepakit.data.labels.table import GivenTable, TableColumns, table_settings
from jepakit.data.opening import GivenImages, absolute, given_images, open_given
from jepakit.data.sources import Source
from jepakit.data.statistics import require_bands
from jepakit.evaluation.embeddings.columns import columns_of
from jepakit.evaluation.embeddings.embedder import (
    Embedded,
    Embedder,
    embedded,
    embedder_of,
    encoder_and_settings,
    encoder_digest,
)
from jepakit.evaluation.embeddings.files import open_embeddings
from jepakit.evaluation.embeddings.parts import EmbeddingParts, bad_path, begin, described, join, require_ours
from jepakit.evaluation.features import BATCH, in_batches
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
    with distributed.process_group():
        opened = partial(_opened, run, data, out, layer, pool, precision, labels=labels, table=table, columns=columns)
        what = distributed.agreed(opened)
        return embed_source(*what[:3], encoder=what[3], data=what[4], overwrite=overwrite, seconds=what[5])


def _opened(
    run: Encoder | Run | str | Path,
    data: GivenImages | None,
    out: str | Path,
    layer: str | int,
    pool: str,
    precision: str | None,
    *,
    labels: str | None,
    table: GivenTable | None,
    columns: TableColumns,
) -> tuple[Embedder, Source, Path, str, str, float]:
    """What `embed_source` takes. Raises UserError."""
    path = _place(out)
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
    return embedder, source, path, where, lies, settings.timeout_seconds


def embed_source(
    embedder: Embedder,
    source: Source,
    out: Path,
    *,
    encoder: str,
    data: str,
    overwrite: bool = False,
    seconds: float = 600.0,
) -> Path:
    """`embed` of a source that is open; encoder, data: where the two lie, for those who read the file; seconds: in which each of
    several processes makes a batch."""
    about = _about(embedder, source, encoder, data)
    require_own_device(embedder.encoder.device)
    distributed.require_alike({"--out": str(out.absolute()), **{key: str(about[key]) for key in (*MUST_AGREE, "names")}})
    with ExitStack() as held:
        missing = distributed.from_main(partial(_begun, held, out, about, overwrite))
        if missing is None:
            return out
        with distributed.time_limit(seconds):
            _fill(out, missing, embedder, source, about)
        bad = distributed.from_main(partial(_joined, out, about))
    if bad:
        log.warning("%d of %d images could not be read: %s names them", bad, len(source), bad_path(out))
    return out


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raises UserError where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror or error}") from None


def _parts(out: Path, about: Mapping[str, Any]) -> EmbeddingParts:
    return EmbeddingParts(out.with_name(f"{out.name}.parts"), -(-about["images_count"] // about["part_rows"]))


def _begun(held: ExitStack, out: Path, about: Mapping[str, Any], overwrite: bool) -> list[int] | None:
    """Numbers of the parts that are still to be made, their folder begun and held; None where the file is there."""
    parts = _parts(out, about)
    if out.exists() and not parts.folder.exists() and not overwrite:
        _require_same(open_embeddings(out).about, about, str(out))
        return None
    with _writing(out):
        parts.folder.mkdir(parents=True, exist_ok=True)
        require_ours(parts.folder)
        held.enter_context(locked(parts.folder))
        if _is_done(out, parts.folder, about, overwrite):
            shutil.rmtree(parts.folder)
            return None
        begin(parts.folder, about)
        return parts.missing


def _joined(out: Path, about: Mapping[str, Any]) -> int:
    with _writing(out):
        return join(_parts(out, about), out, about)


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


def _fill(out: Path, missing: Sequence[int], embedder: Embedder, source: Source, about: Mapping[str, Any]) -> None:
    """Make the parts that are missing: batches by all processes, parts of them by the first."""
    parts, rows, n, chunks = _parts(out, about), about["part_rows"], len(source), list[Embedded]()
    batches = {number: in_batches(np.arange(number * rows, min((number + 1) * rows, n))) for number in missing}
    turns = [(number, batch) for number in missing for batch in batches[number]]
    done, left = rows * (parts.count - len(missing)), iter(turns)
    with progress("embeddings", n, min(done, n)) as report:

        def take(made: Embedded) -> None:
            nonlocal done
            number, batch = next(left)
            chunks.append(made)
            done += len(batch)
            report(min(done, n))
            if len(chunks) == len(batches[number]):
                with _writing(out):
                    parts.save(number, *columns_of(embedder, source, chunks))
                chunks.clear()

        distributed.spread([batch for _, batch in turns], partial(embedded, embedder, source), take)
