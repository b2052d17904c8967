"""Rows of images and maps as one Matplotlib figure, for notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

PICTURE_INCHES = 1.15  # inches of a picture
# a title, what is drawn, and its colour map by its own scale, or the ends of a shared one; None for an image
PicturePanel = tuple[str, NDArray[Any], "str | tuple[float, float] | None"]


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side."""

    panels: Sequence[PicturePanel]


def image_rows(rows: Sequence[PictureRow], title: str, *, down: bool = False, mark: tuple[int, int] | None = None) -> Figure:
    """Draw rows below each other, or as columns beside each other (`down`), with titles at the first, and where others differ.

    mark: a patch (row, column) of the first row's maps to be outlined.
    """
    across = max(len(row.panels) for row in rows)
    shape = (across, len(rows)) if down else (len(rows), across)
    figure = Figure(figsize=(PICTURE_INCHES * shape[1] + 0.3, PICTURE_INCHES * shape[0] + 0.6), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for each in axes.flat:
        each.set_axis_off()
    for i, row in enumerate(rows):
        for j, (name, values, scale) in enumerate(row.panels):
            ax = axes[j, i] if down else axes[i, j]
            how: dict[str, Any] = {"cmap": scale} if isinstance(scale, str) else {}
            how = {"cmap": "magma", "vmin": scale[0], "vmax": scale[1]} if isinstance(scale, tuple) else how
            ax.imshow(values, interpolation="nearest", **how)
            if i == 0 or name != rows[0].panels[j][0]:
                ax.set_title(name, fontsize=7)
            if i == 0 and mark and scale is not None:
                ax.add_patch(Rectangle((mark[1] - 0.5, mark[0] - 0.5), 1, 1, fill=False, color="#37e0c0", linewidth=1.6))
    figure.suptitle(title, fontsize=9)
    return figure
