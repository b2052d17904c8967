"""The section on what the predictor predicts: painted, pasted, as cosines, and in numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..pictured import RunPictures, heat_uri, missing_parts, places, read_pictured
from ..reading import RunFiles, number
from .sees import PICTURED_RUNS

_PANELS = {
    "image": "",
    "context": "what the encoder sees",
    "decoded truth": "what the decoder can do",
    "decoded prediction": "what of it is predicted",
    "nearest patches": "of other images, by their tokens",
}
# cosines of a prediction, and what they are with
_WITH = {
    "own": "the true token of its patch",
    "elsewhere": "other masked patches of the image",
    "other_image": "another image at the same place",
}


def predictions(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Each run's predictions; None where no run has any, nor a reason why not."""
    found = {run.name: read_pictured(run.folder) for run in runs[:PICTURED_RUNS]}
    told = {name: _told(each) for name, each in found.items() if each and each.part("predictions")}
    lacking = {name: missing_parts(each, ("predictions", "samples")) for name, each in found.items()}
    return {"predicted": told, "lacking": lacking} if told or any(lacking.values()) else None


def _told(own: RunPictures) -> dict[str, Any]:
    about, atlas = own.part("predictions"), own.atlas("predictions")
    where, panels = places(atlas), about["panels"]
    cosines, field = (own.array(f"predicted_{name}").astype(np.float64) for name in ("cosines", "field"))
    rows = [
        {
            "title": title,
            "tiles": where[i * len(panels) : (i + 1) * len(panels)],
            "maps": [heat_uri(cosines[i], 0, 1), heat_uri(field[i], 0, 1)],
        }
        for i, title in enumerate(about["titles"])
    ]
    heads = [
        *((name, _PANELS.get(name, "")) for name in panels),
        ("cosine", "with the truth"),
        ("first block", "with all patches"),
    ]
    told = {"atlas": atlas, "heads": heads, "rows": rows, "caption": about["caption"], "samples": _samples(own)}
    return told | _numbers(about)


def _samples(own: RunPictures) -> dict[str, Any] | None:
    """What a diffusion decoder drew; None where none was asked for."""
    about = own.part("samples")
    if not about:
        return None
    atlas, count = own.atlas("samples"), len(about["panels"])
    where = places(atlas)
    rows = [{"title": title, "tiles": where[i * count : (i + 1) * count]} for i, title in enumerate(about["titles"])]
    learnt = f"It was trained for {about['steps']:,} steps on {about['pairs']:,} blocks."
    return {"atlas": atlas, "heads": about["panels"], "rows": rows, "caption": f"{about['caption']} {learnt}"}


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
    if _is(n.get("r2_true")):
        explained = f"{_share(n['r2_true'])} of the pixels from true tokens and {_share(n['r2_predicted'])} from predictions"
        said.append(f"Against the mean patch, the decoder explains {explained}, on images that it was not fitted on.")
    return {"bars": bars, "said": said, "images": about["images"]}


def _is(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _share(value: float) -> str:
    """A share in per cent, not parted from its sign."""
    digits = f"{100 * value:.2g}" if abs(value) < 0.1 else f"{100 * value:.0f}"
    return digits.replace("-", "−") + "\u00a0%"
