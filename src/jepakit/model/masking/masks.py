"""Mask laws: how context and target patches of an image are drawn.

`MultiBlock` is I-JEPA's law (arXiv 2301.08243, section 3 and appendix A); `Quadrants`, `SingleBlock` and `RandomPatches`
are its ablations (table 6). A law draws boolean grids for a whole batch at once; `Masks.from_grids` packs them.
B images, R draws (one sampling of masks), M target blocks of a draw, N patches.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from jepakit.core import rng
from jepakit.core.errors import UserError
from jepakit.core.settings import Settings
from jepakit.model.layout import Indices
from jepakit.model.masking.masks_released import released_grids, require_released
from jepakit.model.masking.packed_masks import Grids, Masks
from jepakit.model.masking.weighted_places import place_weights, weighted_firsts

Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
_MAX_TRIES = 400  # with the least acceptance that `check` lets pass, a failure in 1e18 draws


class _Law(Settings):
    draws: int = Field(1, ge=1, description="samplings of masks per image that share one pass of the target encoder")
    min_keep: int = Field(1, ge=1, description="least number of context patches")

    makes_room: ClassVar[str] = "a larger grid"

    @property
    def foreground(self) -> Literal["contrast"] | Path | None:
        """What tells an image's foreground: its contrast, or the masks of a folder; None where its places are all alike."""
        return None

    def try_grids(self, grid: tuple[int, int], key: NDArray[np.uint64], foreground: Grids | None = None) -> tuple[Grids, Grids]:
        """One try a key: context (R, C, N), C contexts that share targets (R, M, N). A pure function of the key, and of the
        foreground (R, N) where the law has a prior."""
        raise NotImplementedError

    def sample(
        self,
        grid: tuple[int, int],
        ids: Indices,
        *,
        seed: int,
        epoch: int = 0,
        step: int = 0,
        foreground: Grids | None = None,
    ) -> Masks:
        """Masks for the samples `ids` (B,): a function of (seed, epoch, id) and of the foreground (B, N) where the law has a
        prior, whatever else is in the batch."""
        image_of_draw = np.repeat(np.arange(len(ids)), self.draws)
        key = rng.keys(seed, "masks", epoch, ids[image_of_draw], np.tile(np.arange(self.draws), len(ids)))
        of_draw = None if foreground is None else foreground[image_of_draw]
        context, targets = self.try_grids(grid, key, of_draw)
        for attempt in range(1, _MAX_TRIES):
            small = np.nonzero((context.view(np.uint8).sum(-1, dtype=np.uint32) < self.min_keep).any(-1))[0]  # bool is slow
            if not len(small):
                break
            again = rng.keys(attempt, "retry", key[small].view(np.int64))
            context[small], targets[small] = self.try_grids(grid, again, None if of_draw is None else of_draw[small])
        else:
            raise UserError(f"no context of {self.min_keep} patches in {_MAX_TRIES} tries: lower masking.min_keep")
        contexts = context.shape[1]
        return Masks.from_grids(
            context.reshape(-1, context.shape[-1]), np.repeat(targets, contexts, 0), np.repeat(image_of_draw, contexts)
        )

    def check(self, grid: tuple[int, int]) -> None:
        """Raises UserError, with the nearest possible setting, where this law cannot serve this grid."""
        if min(grid) < 4:
            raise UserError(
                f"a grid of {grid[0]}x{grid[1]} patches is too small to mask: 4x4 is the least; "
                "lower encoder.patch_size or raise images.size"
            )
        context, _ = self.try_grids(grid, rng.keys(0, "check", np.arange(1000)))
        kept = context.sum(-1).min(-1)
        if (kept >= self.min_keep).mean() < 0.1:
            median = int(np.median(kept))
            way = f"masking.min_keep={median} or " if 0 < median < self.min_keep else ""
            raise UserError(
                f"masking.min_keep={self.min_keep} is out of reach on a grid of {grid[0]}x{grid[1]} patches: context blocks keep "
                f"{median} of them (median) beside the targets; set {way}{self.makes_room}"
            )


class MultiBlock(_Law):
    """Several target blocks, and a large context block without their patches."""

    kind: Literal["multi_block"] = "multi_block"
    targets: int = Field(4, ge=1, description="target blocks per image (M)")
    target_scale: Range = Field((0.15, 0.2), description="area of a target block over the grid's")
    target_aspect: Range = Field((0.75, 1.5), description="height over width of a target block, in patches")
    contexts: int = Field(1, ge=1, description="context blocks per image, each predicts all targets")
    context_scale: Range = Field((0.85, 1.0), description="area of the context block over the grid's")
    context_aspect: Range = Field((1.0, 1.0), description="height over width of the context block, in units of the grid's")
    min_keep: int = Field(10, ge=1, description="least number of context patches")
    allow_overlap: bool = Field(False, description="leave the targets' patches in the context")
    compat: Literal["released"] | None = Field(
        None, description="'released': the released collator, draw for draw, trimming included"
    )

    prior: Literal["contrast", "file"] | None = Field(
        None,
        description="target blocks rather on the foreground: patches of high contrast (contrast), or marked by masks (file)",
    )
    prior_folder: str | None = Field(
        None, description="with prior=file: a folder with a mask for each image, of the same path and name; 0 is background"
    )
    bias: float = Field(
        0.5,
        ge=0,
        le=1,
        description="with a prior: places are drawn by their mean weight, 1 on the foreground and 1 - bias off it",
    )

    makes_room: ClassVar[str] = "a smaller masking.target_scale or fewer masking.targets"

    @model_validator(mode="after")
    def _ordered(self) -> "MultiBlock":
        _require_ranges(self, "target_scale", "target_aspect", "context_scale", "context_aspect")
        if self.compat and self.draws > 1:
            raise ValueError("compat=released draws once per image; set draws=1")
        if self.compat and self.prior:
            raise ValueError("compat=released knows no prior; set masking.compat=none or masking.prior=none")
        if (self.prior == "file") != (self.prior_folder is not None):
            raise ValueError("masking.prior=file and masking.prior_folder=FOLDER go together: set both, or none of them")
        return self

    @property
    def foreground(self) -> Literal["contrast"] | Path | None:
        if not self.prior or not self.bias:
            return None
        return Path(self.prior_folder) if self.prior_folder else "contrast"

    def try_grids(self, grid: tuple[int, int], key: NDArray[np.uint64], foreground: Grids | None = None) -> tuple[Grids, Grids]:
        u = rng.uniform(key, 4 + 2 * (self.targets + self.contexts))
        rows, columns = grid
        # One size an image for its targets and one for its contexts, scale and aspect drawn apart; targets in patches,
        # the context in units of the grid, so that on a long grid too it can cover nearly everything.
        target_size = _target_size(self, grid, u)
        scale, aspect = _between(u[:, 2], self.context_scale), _between(u[:, 3], self.context_aspect)
        context_size = _whole(rows * np.sqrt(scale * aspect), rows), _whole(columns * np.sqrt(scale / aspect), columns)
        places = u[:, 4:].reshape(len(key), -1, 2)
        weights = None if foreground is None else place_weights(foreground, self.bias)
        targets = _blocks(grid, target_size, places[:, : self.targets], weights)
        context = _blocks(grid, context_size, places[:, self.targets :])
        return (context if self.allow_overlap else context & ~targets.any(1, keepdims=True)), targets

    def sample(
        self,
        grid: tuple[int, int],
        ids: Indices,
        *,
        seed: int,
        epoch: int = 0,
        step: int = 0,
        foreground: Grids | None = None,
    ) -> Masks:
        if self.compat is None:
            return super().sample(grid, ids, seed=seed, epoch=epoch, step=step, foreground=foreground)
        # The released sizes are a function of the step; its positions come from the process's generator.
        context, targets = released_grids(self, grid, len(ids), step, rng.torch_seed(seed, "released", step))
        return Masks.from_grids(
            context.reshape(-1, context.shape[-1]),
            np.repeat(targets, self.contexts, 0),
            np.repeat(np.arange(len(ids)), self.contexts),
        )

    def check(self, grid: tuple[int, int]) -> None:
        if self.compat:  # it has its own ways to find room, and its own ways to fail
            require_released(self, grid)
        else:
            super().check(grid)


class Quadrants(_Law):
    """The four quarters of the grid: one, drawn at random, is the context, the others are the targets (table 6)."""

    kind: Literal["quadrants"] = "quadrants"

    def try_grids(self, grid: tuple[int, int], key: NDArray[np.uint64], foreground: Grids | None = None) -> tuple[Grids, Grids]:
        low, left = (np.arange(n) < n // 2 for n in grid)
        quarters = np.stack([np.logical_and.outer(r, c).ravel() for r in (low, ~low) for c in (left, ~left)])
        chosen = (rng.uniform(key, 1)[:, 0] * 4).astype(np.int64)
        return quarters[chosen][:, None], quarters[(chosen[:, None] + np.arange(1, 4)) % 4]


class SingleBlock(_Law):
    """One target block; the context is all the rest (table 6)."""

    kind: Literal["block"] = "block"
    target_scale: Range = Field((0.6, 0.6), description="area of the target block over the grid's")
    target_aspect: Range = Field((0.75, 1.5), description="height over width of the target block, in patches")
    makes_room: ClassVar[str] = "a smaller masking.target_scale"

    @model_validator(mode="after")
    def _ordered(self) -> "SingleBlock":
        _require_ranges(self, "target_scale", "target_aspect")
        return self

    def try_grids(self, grid: tuple[int, int], key: NDArray[np.uint64], foreground: Grids | None = None) -> tuple[Grids, Grids]:
        u = rng.uniform(key, 4)
        targets = _blocks(grid, _target_size(self, grid, u), u[:, None, 2:])
        return ~targets, targets


class RandomPatches(_Law):
    """A random set of patches is the target; the context is all the rest (table 6, as MAE's masks)."""

    kind: Literal["random"] = "random"
    target_ratio: float = Field(0.6, gt=0, lt=1, description="share of patches that are target")
    makes_room: ClassVar[str] = "a smaller masking.target_ratio"

    def try_grids(self, grid: tuple[int, int], key: NDArray[np.uint64], foreground: Grids | None = None) -> tuple[Grids, Grids]:
        patches = grid[0] * grid[1]
        rank = rng.uniform(key, patches).argsort(-1).argsort(-1)
        targets = (rank < max(1, round(self.target_ratio * patches)))[:, None]
        return ~targets, targets


Masking = Annotated[MultiBlock | Quadrants | SingleBlock | RandomPatches, Field(discriminator="kind")]


def _require_ranges(law: _Law, *names: str) -> None:
    """Ranges have their smaller end first, and no scale is above 1; ValueError otherwise, for pydantic."""
    for name in names:
        low, high = getattr(law, name)
        if low > high:
            raise ValueError(f"{name}: {low} is above {high}; the smaller one comes first")
        if name.endswith("scale") and high > 1:
            raise ValueError(f"{name}: {high} is more than the whole grid; the largest is 1")


def _target_size(law: "MultiBlock | SingleBlock", grid: tuple[int, int], u: NDArray[np.float64]) -> tuple[Indices, Indices]:
    """Rows and columns (R,), (R,) of target blocks, scale and aspect from the first two of u (R, 2 or more)."""
    area = _between(u[:, 0], law.target_scale) * grid[0] * grid[1]
    aspect = _between(u[:, 1], law.target_aspect)
    return _whole(np.sqrt(area * aspect), grid[0]), _whole(np.sqrt(area / aspect), grid[1])


def _between(u: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.float64]:
    return span[0] + u * (span[1] - span[0])


def _whole(size: NDArray[np.float64], most: int) -> Indices:
    return np.minimum(np.maximum(np.rint(size), 1), most).astype(np.int64)  # clip takes three times as long on few numbers


def _blocks(
    grid: tuple[int, int],
    size: tuple[Indices, Indices],
    places: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> Grids:
    """Rectangles of a size (R,), (R,) at places (R, n, 2) in [0, 1): (R, n, N); every position of the grid alike, or by the
    mean of its weights (R, N)."""
    if weights is None:
        firsts = [(places[..., i] * (grid[i] - size[i] + 1)[:, None]).astype(np.int64) for i in (0, 1)]
    else:
        firsts = weighted_firsts(grid, size, places, weights)
    bands = []
    for axis, (length, first) in enumerate(zip(size, firsts, strict=True)):
        before, to_end = (_below(grid, axis).take(end, 0) for end in (first, first + length[:, None]))
        bands.append(np.bitwise_xor(before, to_end, out=to_end))  # what lies before the first lies before the end, too
    return np.bitwise_and(bands[0], bands[1], out=bands[0])


@lru_cache(maxsize=8)
def _below(grid: tuple[int, int], axis: int) -> Grids:
    """Row k: the patches whose row (axis 0) or column (axis 1) is below k, for k from 0 to all: (rows + 1, N)."""
    return np.indices(grid)[axis].ravel() < np.arange(grid[axis] + 1)[:, None]  # type: ignore[no-any-return]
