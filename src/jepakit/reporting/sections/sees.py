"""Sections on what the encoder sees: patches alike, as colours, attention; and the map of embeddings."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..figures import data_uri
from ..pictured import RunPictures, as_base64, heat_uri, made_of, missing_parts, places
from ..reading import RunFiles

PICTURED_RUNS = 4  # of which a page shows pictures, so that it stays small
_COLUMNS = 8  # gallery images that have a column of maps
_MOST_HEADS = 6


def sees(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Each run's gallery with its maps, and what the script needs to compare patches."""
    words = ("pictures of images", "gallery", "attention", "pca", "tokens")
    return dict(zip(("seen", "lacking"), of_runs(runs, "gallery", _seen, words), strict=True))


def embeddings(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Each run's map, for the script; None where no run has one."""
    maps, lacking = of_runs(runs, "map", _map, ("map",))
    maps = {name: found for name, found in maps.items() if found}
    return {"maps": maps, "lacking": lacking} if maps or any(lacking.values()) else None


def of_runs(
    runs: Sequence[RunFiles], part: str, make: Callable[[RunPictures], dict[str, Any]], words: Sequence[str]
) -> tuple[dict[str, dict[str, Any] | None], dict[str, list[str]]]:
    """By run what is made of a part of its pictures, and what is missing of those that begin with one of these words."""
    made, lacking = {}, {}
    for run in runs[:PICTURED_RUNS]:
        made[run.name], damaged = made_of(run.pictured, part, make)
        lacking[run.name] = [*missing_parts(run.pictured, words), *damaged]
    return made, lacking


def _seen(own: RunPictures) -> dict[str, Any]:
    atlas, grid = own.atlas("gallery"), [*map(int, own.about["grid"])]
    titles, labels = own.titles("gallery"), own.titles("gallery", "labels")
    if not len(titles) == len(labels) == atlas["count"]:
        raise ValueError
    tokens = own.array("tokens")
    if tokens.size:
        tokens = tokens.reshape(len(titles), math.prod(grid), -1)
    alike = {"grid": grid, "width": tokens.shape[-1], "tokens": as_base64(tokens)} if tokens.size else None
    about = {"atlas": atlas, "places": places(atlas), "titles": titles, "labels": labels}
    error = float(own.part("tokens").get("error") or 0)
    return about | {"alike": alike, "error": error, "rows": _rows(own), "columns": _COLUMNS}


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
        means = told.mean(1)
        note = f"{100 * means.mean():.0f} % of all attention; brightest {100 * means.max():.0f} %"
        rows.append({"title": "To positions", "note": note, "maps": [heat_uri(maps, 0, means.max()) for maps in means]})
    return rows


def _map(own: RunPictures) -> dict[str, Any]:
    about, atlas = own.part("map"), own.atlas("map")
    count = atlas["count"]
    flat = {"pca": own.array("map_pca"), "tsne": own.array("map_tsne")}
    points = {name: as_base64(x.astype(np.float32).reshape(count, 2)) for name, x in flat.items() if x.size}
    nearest, cosines = (own.array(f"map_{name}").reshape(count, -1) for name in ("nearest", "cosines"))
    near = {
        "k": nearest.shape[1],
        "nearest": as_base64(nearest.astype(np.uint16)),
        "cosines": as_base64(cosines.astype(np.float32)),
    }
    names = {key: own.titles("map", key) for key in ("titles", "labels", "groups") if any(about[key])}
    if any(len(each) != count for each in names.values()):
        raise ValueError
    clusters = [f"cluster {c + 1}" for c in own.array("map_clusters").tolist()]
    colours = {"labels": names.get("labels"), "groups": names.get("groups"), "clusters": clusters}
    kept = {"titles": names.get("titles", [""] * count), "colours": {k: v for k, v in colours.items() if v}}
    first, second, *_ = map(float, about["explained"])
    return {"atlas": atlas, "points": points, "near": near, **kept, "of": int(about["of"]), "explained": [first, second]}
