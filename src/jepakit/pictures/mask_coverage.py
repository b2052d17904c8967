"""How often a patch is context, and how often target, over many draws of a mask law; beside it the released law's.

rows and columns of the grid of patches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jepakit.core.errors import UserError
from jepakit.model.masking.masks import Masking, MultiBlock
from jepakit.pictures.drawing import PictureRow, image_rows
from jepakit.pictures.given import Array32

DRAWS = 2048  # of which a share of one half is known to 2 in 100
RELEASED_BATCH = 64  # images of a released batch, whose contexts are cut to the shortest


@dataclass(frozen=True, eq=False)
class Coverage:
    """Share of draws in which a patch of the grid (rows, columns) is in the context, and in some target block.

    released: the same of the released collator with the same sizes; None where it cannot serve the grid (`why`), or is the law.
    """

    context: Array32
    targets: Array32
    released: "Coverage | None" = None
    why: str = ""

    def figure(self) -> Figure:
        """Maps of context and targets from 0 to 1, and below them the released law's."""
        laws = {"these masks": self, **({"released law": self.released} if self.released else {})}
        rows = [
            PictureRow([(f"context, {name}", law.context, (0.0, 1.0)), (f"targets, {name}", law.targets, (0.0, 1.0))])
            for name, law in laws.items()
        ]
        return image_rows(rows, "How often a patch is context, and target")


def mask_coverage(masking: Masking, grid: tuple[int, int], *, draws: int = DRAWS, seed: int = 0) -> Coverage:
    """Coverage of a grid (rows, columns) by a mask law, beside the released law of the same sizes (of other kinds of law: of
    its default sizes). A law with a prior is drawn without it, as its foreground is each image's own.

    Raises UserError where the law cannot serve the grid.
    """
    masking.check(grid)
    own = _counted(masking, grid, draws, seed)
    if isinstance(masking, MultiBlock) and masking.compat == "released":
        return own
    sizes: dict[str, Any] = {}
    if isinstance(masking, MultiBlock):
        kept = ("targets", "target_scale", "target_aspect", "contexts", "context_scale", "min_keep", "allow_overlap")
        sizes = {name: getattr(masking, name) for name in kept}
    try:
        released = MultiBlock(**sizes, compat="released")
        released.check(grid)
        beside = _counted(released, grid, draws, seed)
    except UserError as error:
        return Coverage(own.context, own.targets, why=str(error))
    return Coverage(own.context, own.targets, beside)


def _counted(masking: Masking, grid: tuple[int, int], draws: int, seed: int) -> Coverage:
    n, images = grid[0] * grid[1], max(RELEASED_BATCH, draws - draws % RELEASED_BATCH)
    context, targets, of = np.zeros(n), np.zeros(n), 0
    for step, first in enumerate(range(0, images, RELEASED_BATCH)):
        masks = masking.sample(grid, np.arange(first, first + RELEASED_BATCH), seed=seed, step=step)
        context += np.bincount(masks.context, minlength=n)
        draw = np.repeat(masks.draw_of_block, masks.target_lengths)
        targets += np.bincount(np.unique(draw * n + masks.targets) % n, minlength=n)
        of += len(masks.context_lengths)
    seen, wanted = ((count / of).reshape(grid).astype(np.float32) for count in (context, targets))
    return Coverage(seen, wanted)
