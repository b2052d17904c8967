"""Sections that show pictures: masks over images, and nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ..figures import Pictures, data_uri, masked
from ..pictured import RunPictures, heat_uri, made_of
from ..reading import RunFiles


def masks(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Some pictures of each run under their masks, and how often its laws take each patch."""
    tiles = {run.name: _tiles(run.pictures, 8 if len(runs) == 1 else 4) for run in runs}
    found = {run.name: made_of(run.pictured, "coverage", _coverage) for run in runs}
    covered, lacking = ({name: each[place] for name, each in found.items()} for place in (0, 1))
    return {"masks": tiles, "coverage": covered, "lacking": lacking}


def nearest_images(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Each run's queries with their neighbours."""
    return {"neighbours": {run.name: _neighbour_rows(run.pictures) for run in runs}}


def _coverage(pictured: RunPictures) -> dict[str, Any]:
    """Maps of context and targets, of the run's law and the released one."""
    maps = []
    for prefix, law in (("", "this run’s law"), ("released_", "the released law")):
        for part in ("context", "target"):
            shares = pictured.array(f"{prefix}{part}_coverage").astype(np.float64)
            if shares.size:
                ends = f"{100 * shares.min():.0f}–{100 * shares.max():.0f} %"
                maps.append({"title": f"{part.capitalize()}, {law}", "ends": ends, "src": heat_uri(shares, 0, 1)})
    rows, columns = map(int, pictured.about["grid"])
    return {"maps": maps, "why": str(pictured.part("coverage").get("why", "")), "shape": f"{columns}/{rows}"}


def _tiles(pictures: Pictures, most: int) -> list[Markup]:
    """The first pictures under their masks."""
    arrays = [pictures.get(name, np.empty(0)) for name in ("images", "context", "targets")]
    return [masked(*each) for each in list(zip(*arrays, strict=False))[:most]]


def _neighbour_rows(pictures: Pictures) -> list[dict[str, Any]]:
    """A row per query: its picture, then its neighbours and whether their label is the query's."""
    rows = []
    for index, query in enumerate(pictures.get("query_images", ())):
        label = _label(pictures, "query_labels", index)
        tiles = []
        for place, image in enumerate(pictures["neighbour_images"][index]):
            text = _label(pictures, "neighbour_labels", index, place)
            tiles.append({"src": data_uri(image), "label": text, "same": bool(text) and text == label})
        rows.append({"src": data_uri(query), "label": label, "near": tiles})
    return rows


def _label(pictures: Pictures, name: str, *at: int) -> str:
    """A label; empty where the file has none."""
    labels = pictures.get(name, np.empty(0))
    known = len(at) == labels.ndim and all(place < size for place, size in zip(at, labels.shape, strict=True))
    return str(labels[at]) if known else ""
