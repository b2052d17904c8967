"""Sections on what the encoder sees: patches alike, as colours, attention; and the map of embeddings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..figures import data_uri
from ..pictured import RunPictures, as_base64, heat_uri, missing_parts, places, read_pictured
from ..reading import RunFiles

PICTURED_RUNS = 4  # of which a page shows pictures, so that it stays small
_COLUMNS = 8  # gallery images that have a column of maps
_MOST_HEADS = 6


def sees(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Each run's gallery with its maps, and what the script needs to compare patches."""
    found = {run.name: read_pictured(run.folder) for run in runs[:PICTURED_RUNS]}
    words = ("pictures of images", "gallery", "attention", "pca", "tokens")
    seen = {name: _seen(each) if each and each.part("gallery") else None for name, each in found.items()}
    return {"seen": seen, "lacking": {name: missing_parts(each, words) for name, each in found.items()}}


def embeddings(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Each run's map, for the script; None where no run has one."""
    found = {run.name: read_pictured(run.folder) for run in runs[:PICTURED_RUNS]}
    maps = {name: _map(each) for name, each in found.items() if each and each.part("map")}
    lacking = {name: missing_parts(each, ("map",)) for name, each in found.items()}
    return {"maps": maps, "lacking": lacking} if maps or any(lacking.values()) else None


def _seen(own: RunPictures) -> dict[str, Any]:
    atlas, gallery = own.atlas("gallery"), own.part("gallery")
    tokens, grid = own.array("tokens"), own.about["grid"]
    alike = {"grid": grid, "width": tokens.shape[-1], "tokens": as_base64(tokens)} if tokens.size else None
    about = {"atlas": atlas, "places": places(atlas), "titles": gallery["titles"], "labels": gallery["labels"]}
    return about | {"alike": alike, "error": own.part("tokens").get("error"), "rows": _rows(own), "columns": _COLUMNS}


def _rows(own: RunPictures) -> list[dict[str, Any]]:
    """Rows of maps below the gallery's images: a title, a note, and a picture each."""
    rows = []
    colours, explained = own.array("pca_colours"), own.part("pca").get("explained", ())
    if colours.size:
        shares = ", ".join(f"{100 * share:.0f}" for share in explained)
        maps = [data_uri(x) for x in colours[:_COLUMNS]]
        rows.append({"title": "Colours", "note": f"{shares} % of the variance", "maps": maps})
    received = own.array("attention_received").astype(np.float64)[:_COLUMNS]
    if received.size:
        means = [heat_uri(maps, 0, maps.max()) for maps in received.mean(1)]
        rows.append({"title": "Attention", "note": "received in the last block, mean of heads", "maps": means})
        for head in range(min(received.shape[1], _MOST_HEADS)):
            own_maps = [heat_uri(maps, 0, maps.max()) for maps in received[:, head]]
            rows.append({"title": f"Head {head}", "note": "", "maps": own_maps})
    told = own.array("attention_conditioning").astype(np.float64)[:_COLUMNS]
    if told.size:
        share = f"{100 * told.mean():.0f} % of all attention"
        rows.append({"title": "To positions", "note": share, "maps": [heat_uri(maps, 0, 1) for maps in told.mean(1)]})
    return rows


def _map(own: RunPictures) -> dict[str, Any]:
    about = own.part("map")
    flat = {"pca": own.array("map_pca"), "tsne": own.array("map_tsne")}
    points = {name: as_base64(x.astype(np.float32)) for name, x in flat.items() if x.size}
    nearest, cosines = own.array("map_nearest"), own.array("map_cosines")
    near = {
        "k": nearest.shape[1],
        "nearest": as_base64(nearest.astype(np.uint16)),
        "cosines": as_base64(cosines.astype(np.float32)),
    }
    names = {key: list(about[key]) for key in ("titles", "labels", "groups") if any(about[key])}
    clusters = [f"cluster {c + 1}" for c in own.array("map_clusters").tolist()]
    colours = {"labels": names.get("labels"), "groups": names.get("groups"), "clusters": clusters}
    kept = {"titles": names.get("titles", [""] * about["count"]), "colours": {k: v for k, v in colours.items() if v}}
    return {"atlas": own.atlas("map"), "points": points, "near": near, **kept, "of": about["of"], "explained": about["explained"]}
