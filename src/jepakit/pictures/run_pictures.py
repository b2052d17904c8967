"""All pictures of a run, from its newest checkpoint and some of its images, as data in RUN/pictures/, which the report shows.

Files (format 1). Nothing is pickled; each is complete, or the folder is not there.

about.json      format, checkpoint (sha256 of its manifest), step, data, images (how many the set has), encoder (which of the
                two), grid [rows, columns], missing (sentences: what is not there, and why), seconds (of each part), and a
                mapping for each part that is there:
  coverage      why (a sentence, where the released law cannot serve the grid)
  gallery       an atlas (below), titles [n], labels [n] ("" for none)
  attention     block, heads, conditioned (whether the encoder is told positions)
  pca           explained [3]
  tokens        error: the largest difference between cosines of short tokens and of the encoder's
  predictions   an atlas, image by image its panels (names); shown (images), titles [shown], images (of which all numbers are),
                numbers (of `prediction_numbers`, and of the decoder), decoder, caption
  noise         an atlas, image by image its panels; shown, titles [shown], caption; where positions are told with noise (StoP)
  samples       an atlas, image by image its panels; shown, titles [shown], steps and pairs (of the decoder's training), caption;
                where a diffusion decoder was asked for
  map           an atlas, of (how many images the set has), titles [m], labels [m], groups [m] ("" for none), explained [2]
An atlas is a file of tiles side by side: file, tile [height, width] in pixels, columns, count; tile i is at row i // columns.

arrays.npz      n gallery images, m points, r x c patches, H heads
  context_coverage, target_coverage, released_context_coverage, released_target_coverage   (r, c) float32, shares of draws
  attention_received     (n, H, r, c) float16, of one patch's attention, 1 / (r c) were it even
  attention_conditioning (n, H, r, c) float16, what each patch gives to all conditioning tokens together
  pca_colours            (n, r, c, 3) uint8
  tokens                 (n, r c, K) int8: their cosines are nearly those of the patch tokens
  predicted_context (k, r, c) and predicted_blocks (k, M, r, c) bool, of the k images shown
  predicted_cosines (k, r, c) float16, of a prediction with the true token, NaN where none is; predicted_field (k, r, c), of the
                    first block's mean prediction with each true token of the image
  map_pca, map_tsne      (m, 2) float32; map_clusters (m,) uint8; map_nearest (m, k) int16; map_cosines (m, k) float16
"""

import hashlib
import logging
import os
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepakit.artifacts.checkpoint import MANIFEST, step_name, steps
from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.core.device import configure_cpu, device_of
from jepakit.core.errors import UserError, checked, line_of, nearest
from jepakit.core.files import load_json, save_json
from jepakit.data.opening import is_in_memory, open_source
from jepakit.data.sources import Source, evenly
from jepakit.evaluation.pictures import labels_in_words
from jepakit.model.encoder import Encoder
from jepakit.model.method import encoder_label
from jepakit.pictures.attention_maps import attention_maps
from jepakit.pictures.embedding_map import CLUSTERS, MOST_POINTS, embedding_map
from jepakit.pictures.given import patch_tokens
from jepakit.pictures.mask_coverage import mask_coverage
from jepakit.pictures.patch_colours import colours_of
from jepakit.pictures.patch_similarity import short_tokens
from jepakit.pictures.picture_files import WrittenPictures, save_atlas
from jepakit.pictures.predicted_tokens import model_of
from jepakit.pictures.run_images import PicturedImages, group_names, read_images
from jepakit.pictures.run_predictions import predictions_part, samples_part
from jepakit.pictures.sampled_blocks import DECODER_STEPS

log = logging.getLogger("jepakit")
FORMAT = 1
GALLERY = 12  # images of which patches are shown
ABOUT_SECONDS = 20.0  # that all pictures may take
TIMED = 24  # images that are timed, to know how many the map can have
TSNE_SECONDS = 6.0  # that are kept for the map of 2,000 points
GALLERY_SIDE, MAP_SIDE = 224, 32  # pixels of a tile's longer side
MAP_LEAST = 100  # images of the map, however slow they are
DECODERS = ("ridge", "diffusion")


@checked
def make_pictures(
    run: Run | str | Path,
    data: str | Path | None = None,
    *,
    decoder: str = "ridge",
    seconds: float = ABOUT_SECONDS,
    decoder_steps: int = DECODER_STEPS,
) -> Path:
    """Write RUN/pictures/ (default images: the run's own), unless it is there already, whole, of this checkpoint and data.

    decoder: ridge, or diffusion, which is trained for `decoder_steps` besides: minutes of a GPU, or hours of a CPU. seconds: that
    all else may take, about; slow encoders get fewer points on the map. What cannot be made is said in about.json. Raises
    UserError where there is no run, for an unknown decoder, and where nothing can be written.
    """
    if decoder not in DECODERS:
        raise UserError(f"decoder={decoder}: choose ridge or diffusion{nearest(decoder, DECODERS)}")
    opened, steps = Run.open(run), decoder_steps if decoder == "diffusion" else 0
    config, folder = opened.config, opened.path / "pictures"
    of = {"format": FORMAT, "checkpoint": _digest(opened), "data": os.fspath(data or config.data or "")}
    wanted = [*(["samples"] if steps else []), *(["noise_spread"] if config.predictor.stop else [])]
    if _there(folder, of, wanted):
        return folder
    draft = folder.with_name(f".tmp-pictures-{os.getpid()}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        written = WrittenPictures(draft, time.monotonic(), {**of, "missing": [], "seconds": {}})
        with torch.inference_mode():
            _make(written, opened, config, seconds, steps)
        np.savez_compressed(draft / "arrays.npz", **written.arrays)  # type: ignore[arg-type]
        save_json(draft / "about.json", written.about)
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _digest(run: Run) -> str:
    """sha256 of the newest checkpoint's manifest; empty where there is none."""
    with suppress(OSError, IndexError):
        manifest = (run.checkpoints / step_name(steps(run.checkpoints)[0]) / MANIFEST).read_bytes()
        return hashlib.sha256(manifest).hexdigest()
    return ""


def _there(folder: Path, of: Mapping[str, Any], parts: Sequence[str]) -> bool:
    """Whether the folder holds all pictures of the same, and these parts or numbers of predictions; where it has samples, which
    take hours, no number is worth them."""
    try:
        about = load_json(folder / "about.json")
        there = {*about, *(about["predictions"]["numbers"] if "predictions" in about else ())}
        whole = not about["missing"] and ("samples" in there or there.issuperset(parts))
        with zipfile.ZipFile(folder / "arrays.npz") as arrays:
            whole = whole and arrays.testzip() is None
        return whole and all(about[key] == value for key, value in of.items())
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile, zlib.error):
        return False


def _make(written: WrittenPictures, run: Run, config: Config, seconds: float, decoder_steps: int) -> None:
    written.about["grid"] = list(config.grid)
    written.part("coverage", lambda: _coverage(written, config))
    try:
        configure_cpu(config.run.threads)
        jepa, encoder, step = model_of(run.path)
        jepa.to(device_of(config.run.device))
        source = _opened(written.about["data"], config)
        gallery = read_images(source, encoder, evenly(len(source), GALLERY), GALLERY_SIDE, config.run.read_timeout_seconds)
        each = _seconds_an_image(source, encoder, config)
    except UserError as error:
        written.about["missing"].append(f"pictures of images: {line_of(error)}")
        return
    written.about |= {"step": step, "encoder": encoder_label(config.which), "images": len(source)}
    written.part("gallery", lambda: _gallery(written, source, gallery))
    tokens = patch_tokens(encoder, gallery.x)
    written.part("attention", lambda: _attention(written, encoder, gallery))
    written.part("pca", lambda: _pca(written, config, tokens, gallery))
    written.part("tokens", lambda: _tokens(written, tokens))
    written.part("predictions", lambda: predictions_part(written, config, (jepa, encoder), source, seconds / 5 / each))
    most = int((seconds - TSNE_SECONDS - written.passed) / each)
    written.part("map", lambda: _map(written, config, encoder, source, max(MAP_LEAST, min(MOST_POINTS, most))))
    if decoder_steps:
        written.part("samples", lambda: samples_part(written, config, (jepa, encoder), source, decoder_steps))


def _seconds_an_image(source: Source, encoder: Encoder, config: Config) -> float:
    """Of reading and embedding one, once everything is warm."""
    places = evenly(len(source), TIMED)
    start = time.monotonic()
    read_images(source, encoder, places, MAP_SIDE, config.run.read_timeout_seconds, embed=True)
    return (time.monotonic() - start) / len(places)


def _opened(data: str, config: Config) -> Source:
    if is_in_memory(data):
        raise UserError("the run was given its images by Python, and they are not kept: say where some lie with --data SRC")
    if not data:
        raise UserError("the run names no images: say where some lie with --data SRC")
    table = config.table if config.table.file and data == config.data else None
    return open_source(data, images=config.images, table=table)


def _coverage(written: WrittenPictures, config: Config) -> dict[str, Any]:
    found = mask_coverage(config.masking, config.grid, seed=config.seed)
    written.arrays |= {"context_coverage": found.context, "target_coverage": found.targets}
    if found.released:
        beside = {"released_context_coverage": found.released.context, "released_target_coverage": found.released.targets}
        written.arrays |= beside
    return {"why": found.why}


def _gallery(written: WrittenPictures, source: Source, gallery: PicturedImages) -> dict[str, Any]:
    titles = [source.title(i) for i in gallery.places.tolist()]
    atlas = save_atlas(written.folder, "gallery", gallery.pictures)
    return {**atlas, "titles": titles, "labels": labels_in_words(source, gallery.places).tolist()}


def _attention(written: WrittenPictures, encoder: Encoder, gallery: PicturedImages) -> dict[str, Any]:
    found = attention_maps(encoder, gallery.x)
    written.arrays["attention_received"] = found.received.astype(np.float16)
    if found.conditioning is not None:
        written.arrays["attention_conditioning"] = found.conditioning.astype(np.float16)
    return {"block": found.block, "heads": found.weights.shape[1], "conditioned": found.conditioning is not None}


def _pca(written: WrittenPictures, config: Config, tokens: Tensor, gallery: PicturedImages) -> dict[str, Any]:
    found = colours_of(tokens, config.grid, gallery.pictures)
    written.arrays["pca_colours"] = (found.colours * 255).round().astype(np.uint8)
    return {"explained": found.explained.tolist()}


def _tokens(written: WrittenPictures, tokens: Tensor) -> dict[str, Any]:
    written.arrays["tokens"], error = short_tokens(tokens)
    return {"error": error}


def _map(written: WrittenPictures, config: Config, encoder: Encoder, source: Source, most: int) -> dict[str, Any]:
    places, wait = evenly(len(source), most), config.run.read_timeout_seconds
    images = read_images(source, encoder, places, MAP_SIDE, wait, embed=True, say=True)
    labels = labels_in_words(source, images.places).tolist()
    found = embedding_map(images.vectors, clusters=min(20, len({*labels}) if any(labels) else CLUSTERS), seed=config.seed)
    written.arrays |= {"map_pca": found.pca, "map_clusters": found.clusters.astype(np.uint8)}
    written.arrays |= {"map_nearest": found.nearest.astype(np.int16), "map_cosines": found.cosines.astype(np.float16)}
    if found.tsne is not None:
        written.arrays["map_tsne"] = found.tsne
    about = {"of": len(source), "explained": found.explained.tolist(), "labels": labels}
    names = {"titles": [source.title(i) for i in images.places.tolist()], "groups": group_names(source, images.places)}
    return {**save_atlas(written.folder, "map", images.pictures, sharp=False), **about, **names}
