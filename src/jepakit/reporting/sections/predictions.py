"""The section on what the predictor predicts: painted, pasted, as cosines, and in numbers."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jepakit.core.counted import number

from ..pictured import RunPictures, heat_uri, made_of, places
from ..reading import RunFiles
from .sees import of_runs

_PANELS = {
    "image": "",
    "context": "what the encoder sees",
    "decoded truth": "what the decoder can do",
    "decoded prediction": "what of it is predicted",
    "nearest patches": "of other images, by their tokens",
}
# parts in which each image has several draws of its prediction
_DRAWN = {"noise": "With other draws of the noise", "samples": "Samples"}
# cosines of a prediction, and what they are with
_WITH = {
    "own": "the true token of its patch",
    "elsewhere": "other masked patches of the image",
    "other_image": "another image at the same place",
}


def predictions(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Each run's predictions; None where no run has any, nor a reason why not."""
    told, lacking = of_runs(runs, "predictions", _told, ("predictions", *_DRAWN))
    for run in runs:
        if found := told.get(run.name):
            found["drawn"] = []
            for part, title in _DRAWN.items():
                sheet, damaged = made_of(run.pictured, part, partial(_drawn, part=part, title=title))
                found["drawn"] += [sheet] if sheet else []
                lacking[run.name] += damaged
    told = {name: found for name, found in told.items() if found}
    return {"predicted": told, "lacking": lacking} if told or any(lacking.values()) else None


def _told(own: RunPictures) -> dict[str, Any]:
    about, atlas, titles = own.part("predictions"), own.atlas("predictions"), own.titles("predictions")
    panels = own.titles("predictions", "panels")
    cosines, field = (own.array(f"predicted_{name}").astype(np.float64) for name in ("cosines", "field"))
    rows = [
        {"title": title, "tiles": tiles, "maps": [heat_uri(cosines[i], 0, 1), heat_uri(field[i], 0, 1)]}
        for i, (title, tiles) in enumerate(_tiled(atlas, titles, panels))
    ]
    heads = [
        *((name, _PANELS.get(name, "")) for name in panels),
        ("cosine", "with the truth"),
        ("first block", "with all patches"),
    ]
    return {"atlas": atlas, "heads": heads, "rows": rows, "caption": str(about["caption"])} | _numbers(about)


def _drawn(own: RunPictures, part: str, title: str) -> dict[str, Any]:
    """Several draws of each image's prediction beside each other."""
    atlas, heads = own.atlas(part), own.titles(part, "panels")
    rows = [{"title": name, "tiles": tiles} for name, tiles in _tiled(atlas, own.titles(part), heads)]
    return {"title": title, "atlas": atlas, "heads": heads, "rows": rows, "caption": str(own.part(part)["caption"])}


def _tiled(atlas: Mapping[str, Any], titles: Sequence[str], panels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each image's title, and where its panels lie in the atlas."""
    where, across = places(atlas), len(panels)
    if len(where) != len(titles) * across:
        raise ValueError
    return [(title, where[i * across : (i + 1) * across]) for i, title in enumerate(titles)]


def _numbers(about: Any) -> dict[str, Any]:
    """Bars of cosines, and sentences."""
    n = {key: number(value) for key, value in about["numbers"].items()}
    bars = [{"words": words, "value": n[key], "text": f"{n[key]:.2f}"} for key, words in _WITH.items() if _is(n.get(key))]
    said = []
    if _is(n.get("found")):
        of = f"Looked for among all {1 / n['chance']:,.0f} patches, a prediction is nearest to its own patch in"
        said.append(
            f"{of} {_share(n['found'])} (chance {_share(n['chance'])}), to one of its own image in {_share(n['found_image'])}."
        )
    if _is(n.get("prediction_spread")):
        moved = f"{n['prediction_spread']:.2f} (1 less their cosine), true tokens by {n['true_spread']:.2f}"
        said.append(f"Asked elsewhere in an image, predictions change by {moved}.")
    if _is(n.get("noise_spread")):
        said.append(f"Asked with another draw of the noise, a prediction changes by {n['noise_spread']:.2g}.")
    if _is(n.get("r2_true")):
        explained = f"{_share(n['r2_true'])} of the pixels from true tokens and {_share(n['r2_predicted'])} from predictions"
        said.append(f"Against the mean patch, the decoder explains {explained}, on images that it was not fitted on.")
    return {"bars": bars, "said": said, "images": int(about["images"])}


def _is(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _share(value: float) -> str:
    """A share in per cent, not parted from its sign."""
    digits = f"{100 * value:.2g}" if abs(value) < 0.1 else f"{100 * value:.0f}"
    return digits.replace("-", "−") + "\u00a0%"
