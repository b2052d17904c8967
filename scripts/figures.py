"""Draws the figures of docs/method.md from the code that they explain: python scripts/figures.py

Masks are drawn by the mask laws, windows are those that `PositionConditioning` averages, rows are those of `interleave`.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from jepakit.model.conditioning import PositionConditioning
from jepakit.model.layout import interleave, starts
from jepakit.model.masking.masks import Masking, MultiBlock, Quadrants, RandomPatches, SingleBlock
from jepakit.model.masking.packed_masks import Masks

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
GRID, SIDE, SEED = (14, 14), 9, 0  # a grid of ViT/16 at 224 pixels; pixels of a patch in the figure
CONTEXT, REST = "#3b6fb6", "#e6e6e6"
TARGETS = ("#e08214", "#b2182b", "#1b7837", "#762a83")
TOKENS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#86bcb6")


def rectangle(x: float, y: float, width: float, height: float, fill: str, stroke: str = "#fff") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}" stroke-width=".5"/>'


def words(x: float, y: float, text: str, size: int = 12) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}">{text}</text>'


def svg(width: int, height: int, parts: Iterable[str]) -> str:
    """The file, on white: it is shown on dark pages too."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" fill="#222">'
    return "\n".join([head, rectangle(0, 0, width, height, "#fff"), *parts, "</svg>"]) + "\n"


def patches(x: float, y: float, colours: dict[int, str]) -> list[str]:
    """A grid of patches, each in its colour: a path for each colour."""
    squares: dict[str, str] = {}
    for i in range(GRID[0] * GRID[1]):
        colour, gap = colours.get(i, REST), SIDE - 1
        square = f"M{x + i % GRID[1] * SIDE:g} {y + i // GRID[1] * SIDE:g}h{gap}v{gap}h-{gap}z"
        squares[colour] = squares.get(colour, "") + square
    return [f'<path fill="{colour}" d="{path}"/>' for colour, path in squares.items()]


def of_image(masks: Masks, image: int) -> tuple[list[int], list[list[int]]]:
    """The context of an image, and its target blocks: indices of patches."""
    own = masks.of_images(slice(image, image + 1))
    return own.context.tolist(), [block.tolist() for block in np.split(own.targets, starts(own.target_lengths)[1:])]


def draw_masks() -> str:
    """Three images of each law: context blue, target blocks in other colours, patches that nobody sees gray."""
    laws: dict[str, Masking] = {
        "multi_block": MultiBlock(),
        "quadrants": Quadrants(),
        "block": SingleBlock(),
        "random": RandomPatches(),
    }
    parts, width = [], GRID[1] * SIDE
    for column, (name, law) in enumerate(laws.items()):
        left = 12 + column * (width + 22)
        masks = law.sample(GRID, np.arange(3), seed=SEED)
        parts.append(words(left, 20, name))
        for row in range(3):
            context, targets = of_image(masks, row)
            colours = dict.fromkeys(context, CONTEXT)
            for block, colour in zip(targets, TARGETS, strict=False):
                colours |= dict.fromkeys(block, colour)
            parts += patches(left, 28 + row * (width + 12), colours)
    return svg(4 * (width + 22) + 2, 28 + 3 * (width + 12), parts)


def pooled(tokens: torch.Tensor) -> dict[int, str]:
    """Where positions are the unit vectors, a token's entries say which patches it averages: those in one colour."""
    return {patch: TOKENS[i % len(TOKENS)] for i, token in enumerate(tokens) for patch in token.nonzero()[:, 0].tolist()}


def draw_conditioning() -> str:
    """What is told to whom: patches whose positions are averaged into one token have one colour."""
    masks, positions = MultiBlock().sample(GRID, np.arange(1), seed=SEED), torch.eye(GRID[0] * GRID[1])
    told, width = PositionConditioning(), GRID[1] * SIDE
    to_encoder, to_target = told.for_encoder(masks, positions, GRID)[0], told.for_target_encoder(masks, positions, GRID)[0]
    context, targets = of_image(masks, 0)
    drawn = dict.fromkeys(context, CONTEXT) | {i: colour for block, colour in zip(targets, TARGETS, strict=True) for i in block}
    inference = told.for_inference(positions, GRID)
    columns = (
        ("the masks", "one image", drawn),
        ("to the encoder", f"{len(to_encoder)} tokens of the targets", pooled(to_encoder)),
        ("to the target encoder", f"{len(to_target)} tokens of the context", pooled(to_target)),
        ("at inference", f"{len(inference)} tokens, 4x4 squares", pooled(inference)),
    )
    parts = []
    for column, (title, below, colours) in enumerate(columns):
        left = 12 + column * (width + 36)
        parts += [words(left, 20, title), *patches(left, 28, colours), words(left, 28 + width + 16, below, 11)]
    return svg(4 * (width + 36) + 2, 28 + width + 28, parts)


def draw_packing() -> str:
    """The encoder's input of four images: padded to the longest, trimmed to the shortest, and as it lies here."""
    masks = MultiBlock().sample(GRID, np.arange(4), seed=SEED)
    extra = PositionConditioning().for_encoder(masks, torch.eye(GRID[0] * GRID[1]), GRID)[1]
    joined = interleave(masks.context_lengths, extra, torch.device("cpu"))
    lengths, longest, shortest = (
        masks.context_lengths + extra,
        int((masks.context_lengths + extra).max()),
        int(masks.context_lengths.min()),
    )
    unit, left, parts, total = 1.55, 150, [], int(lengths.sum())

    def bar(x: float, y: float, tokens: int, fill: str) -> str:
        return rectangle(left + x * unit, y, tokens * unit, 13, fill)

    parts.append(words(12, 20, "padded to the longest"))
    for i, (own, told) in enumerate(zip(masks.context_lengths.tolist(), extra.tolist(), strict=True)):
        y = 30 + i * 16
        parts += [bar(0, y, longest, REST), bar(0, y, own, CONTEXT), bar(own, y, told, TARGETS[0])]
        parts.append(words(12, y + 10, f"image {i + 1}: {own} + {told}", 10))
    parts.append(words(12, 116, "trimmed to the shortest context, as the released collator does: what is lost is gray"))
    for i, own in enumerate(masks.context_lengths.tolist()):
        parts += [bar(0, 126 + i * 16, own, "#c9c9c9"), bar(0, 126 + i * 16, shortest, CONTEXT)]
    parts.append(
        words(
            12,
            212,
            f"packed: {total} rows ({joined.layout.rows} with the padding rows behind them), and where each sequence begins",
        )
    )
    kinds = np.full(joined.layout.rows, REST, dtype=object)
    kinds[joined.a_rows.numpy()], kinds[joined.b_rows.numpy()] = CONTEXT, TARGETS[0]
    edges = np.flatnonzero(np.concatenate([[True], kinds[1:] != kinds[:-1]]))
    for first, last in zip(edges, [*edges[1:], len(kinds)], strict=True):
        parts.append(rectangle(12 + first * unit, 222, (last - first) * unit, 16, str(kinds[first])))
    parts += [words(12 + first * unit, 252, str(first), 10) for first in starts(joined.layout.lengths).tolist()]
    parts += [rectangle(12, 264, 10, 10, CONTEXT), words(27, 273, "context tokens", 11)]
    parts += [rectangle(130, 264, 10, 10, TARGETS[0]), words(145, 273, "conditioning tokens", 11)]
    parts += [rectangle(275, 264, 10, 10, REST), words(290, 273, "rows of nothing", 11)]
    return svg(max(int(24 + joined.layout.rows * unit), 640), 284, parts)


FIGURES = {"masks.svg": draw_masks, "conditioning.svg": draw_conditioning, "packing.svg": draw_packing}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw())
