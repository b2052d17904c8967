"""The section on labels of pixels: test images beside their labels and what the linear head on frozen tokens says."""

from collections.abc import Sequence
from typing import Any

from matplotlib.colors import to_hex

from ..figures import data_uri
from ..reading import RunFiles
from ..segmented_images import PIXEL_TASKS, SegmentedImages, segmented_images
from ..whole_files import DamagedFileError
from ..wording import interval


def segmented(runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """Each run's images by task; None where no run keeps any, nor has a file of them that is damaged."""
    sheets, lacking = [], []
    for run in runs:
        for task, title in PIXEL_TASKS.items():
            try:
                found = segmented_images(run, task)
                sheets += [{"run": run, "title": title, **_sheet(run, task, found)}] if found else []
            except DamagedFileError as error:
                lacking.append(f"{run.name}: evaluation/{task}.npz {error}")
    return {"sheets": sheets, "lacking": lacking} if sheets or lacking else None


def _sheet(run: RunFiles, task: str, found: SegmentedImages) -> dict[str, Any]:
    row = next(iter(run.results[task]["rows"].values()))
    told = f"mIoU of the {row['name']} over all test images: {row['counted'].told(row['value'])} %{interval(row)}"
    legend = [{"name": name, "colour": to_hex(colour)} for name, colour in found.legend]
    rows = {
        "Image": [data_uri(one.image) for one in found.images],
        "Labels": [data_uri(found.painted(one.truth)) for one in found.images],
        "Linear head": [data_uri(found.painted(one.predicted)) for one in found.images],
    }
    shapes = [f"{one.image.shape[1]}/{one.image.shape[0]}" for one in found.images]
    return {"told": told, "legend": legend, "rows": rows, "titles": [one.title for one in found.images], "shapes": shapes}
