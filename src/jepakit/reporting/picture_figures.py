"""Figures of a run's pictures as files have them: what the page shows in its sections of pictures, with all numbers as rows.

n images of the gallery, r x c patches of the grid, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .pictured import RunPictures, heat, made_of
from .reading import RunFiles
from .segmented_images import PIXEL_TASKS, SegmentedImages, segmented_images
from .whole_files import DamagedFileError

ACROSS, HEADS = 8, 6  # pictures side by side, and heads, that are drawn; rows have all
_GAP = 0.06
Rows = list[list[Any]]


@dataclass(frozen=True, eq=False)
class FigureWithRows:
    """A figure, what its file is called, and its data."""

    title: str
    figure: Figure
    head: Sequence[str]
    rows: Rows


def picture_figures(run: RunFiles) -> Iterator[FigureWithRows]:
    """Those whose pictures are there and whole."""
    makers: dict[str, Callable[[RunPictures], FigureWithRows | None]] = {
        "coverage": _coverage, "pca": _colours, "attention": _attention, "tokens": _similarity, "map": _map,
        "predictions": _predictions, "noise": lambda own: _draws(own, "noise"), "samples": lambda own: _draws(own, "samples"),
    }  # fmt: skip
    for part, make in makers.items():
        found, _ = made_of(run.pictured, part, make)
        if found is not None:
            yield found
    for task in PIXEL_TASKS:
        try:
            segmented = segmented_images(run, task)
        except DamagedFileError:
            continue
        if segmented is not None:
            yield _segmented(task, segmented)


def picture_grid(rows: Sequence[Sequence[NDArray[Any]]], heads: Sequence[str] = (), names: Sequence[str] = ()) -> Figure:
    """Pictures (h, w, 3 or 4) in rows; heads stand above the first, names before each."""
    tall, across = max(each.shape[0] / each.shape[1] for row in rows for each in row), max(map(len, rows))
    left, wide, high = -1.0 if names else 0.0, across * (1 + _GAP), len(rows) * (tall + _GAP)
    figure = Figure(figsize=(1.25 * (wide - left), 1.25 * (high + 0.25)))
    axes = figure.add_axes((0, 0, 1, 1))
    for i, row in enumerate(rows):
        top = i * (tall + _GAP)
        for j, each in enumerate(row):
            x, height = j * (1 + _GAP), each.shape[0] / each.shape[1]
            axes.imshow(each, extent=(x, x + 1, top + height, top), interpolation="nearest")
        if names:
            axes.text(-_GAP, top + tall / 2, names[i], fontsize=8, ha="right", va="center")
    for j, head in enumerate(heads):
        axes.text(j * (1 + _GAP) + 0.5, -_GAP, head, fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(left, wide), ylim=(high, -0.25))
    axes.set_axis_off()
    return figure


def _cells(titles: Sequence[str], *values: NDArray[Any]) -> Rows:
    """A row for each patch of each image: its place, its title, row and column, and what each of values (n, r, c, ...) has."""
    n, r, c = values[0].shape[:3]
    return [
        [i, titles[i], y, x, *(number for each in values for number in np.atleast_1d(each[i, y, x]).tolist())]
        for i in range(n)
        for y in range(r)
        for x in range(c)
    ]


def _coverage(own: RunPictures) -> FigureWithRows:
    names = [
        (law, part, f"{prefix}{part}_coverage")
        for prefix, law in (("", "this run's law"), ("released_", "the released law"))
        for part in ("context", "target")
    ]
    there = [(law, part, own.array(name)) for law, part, name in names if own.array(name).size]
    figure = picture_grid([[heat(shares, 0, 1) for *_, shares in there]], [f"{part}, {law}" for law, part, _ in there])
    rows = [[law, part, *place, float(share)] for law, part, shares in there for place, share in np.ndenumerate(shares)]
    return FigureWithRows("coverage", figure, ["law", "of", "row", "column", "share"], rows)


def _colours(own: RunPictures) -> FigureWithRows | None:
    colours, images = own.array("pca_colours"), own.tiles("gallery")
    if not colours.size:
        return None
    figure = picture_grid([[*images[:ACROSS]], [*colours[:ACROSS]]], names=["image", "PCA"])
    rows = _cells(own.titles("gallery"), colours)
    return FigureWithRows("colours", figure, ["image", "title", "row", "column", "red", "green", "blue"], rows)


def _attention(own: RunPictures) -> FigureWithRows:
    images = own.tiles("gallery")
    received, told = (own.array(f"attention_{name}").astype(np.float64) for name in ("received", "conditioning"))
    drawn = {"mean": received.mean(1), **{f"head {h}": received[:, h] for h in range(min(HEADS, received.shape[1]))}}
    maps = {name: [heat(each, 0, each.max()) for each in values[:ACROSS]] for name, values in drawn.items()}
    if told.size:
        maps["to positions"] = [heat(each, 0, 1) for each in told.mean(1)[:ACROSS]]
    figure = picture_grid([[*images[:ACROSS]], *maps.values()], names=["image", *maps])
    heads = [f"head {h}" for h in range(received.shape[1])]
    parts = [received.transpose(0, 2, 3, 1), *([told.transpose(0, 2, 3, 1)] if told.size else [])]
    columns = [*heads, *(f"to positions, {head}" for head in heads if told.size)]
    rows = _cells(own.titles("gallery"), *parts)
    return FigureWithRows("attention", figure, ["image", "title", "row", "column", *columns], rows)


def _similarity(own: RunPictures) -> FigureWithRows:
    """Of the patch that the page begins with: the middle one of the first image."""
    images, titles, (r, c) = own.tiles("gallery"), own.titles("gallery"), map(int, own.about["grid"])
    tokens = own.array("tokens").reshape(len(titles), r * c, -1).astype(np.float64)
    units = tokens / np.maximum(np.linalg.norm(tokens, axis=2, keepdims=True), 1e-12)
    cosines = (units @ units[0, r // 2 * c + c // 2]).reshape(-1, r, c)
    figure = picture_grid([[*images[:ACROSS]], [heat(each, 0, 1) for each in cosines[:ACROSS]]], names=["image", "cosine"])
    figure.suptitle(f"cosine with the patch in row {r // 2 + 1}, column {c // 2 + 1} of the first image", fontsize=8)
    return FigureWithRows("similarity", figure, ["image", "title", "row", "column", "cosine"], _cells(titles, cosines))


def _map(own: RunPictures) -> FigureWithRows:
    names = {key: own.titles("map", key) for key in ("titles", "labels", "groups")}
    clusters = [f"cluster {c + 1}" for c in own.array("map_clusters").tolist()]
    maps = {name: own.array(f"map_{key}") for key, name in (("tsne", "t-SNE"), ("pca", "PCA")) if own.array(f"map_{key}").size}
    of, colours = np.unique(names["labels"] if any(names["labels"]) else clusters, return_inverse=True)
    figure = Figure(figsize=(4.2 * len(maps), 4.2), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        for i, label in enumerate(of.tolist()):
            marker = "os^Dv*"[i // 10 % 6]
            axes.scatter(*points[colours == i].T, s=6, color=f"C{i % 10}", marker=marker, linewidths=0, label=label or "no label")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    if len(of) <= 20:
        axes.legend(fontsize=6, frameon=False, markerscale=2)
    ends = [f"{name} {axis}" for name in maps for axis in (1, 2)]
    rows = [
        [*(each[i] for each in names.values()), cluster, *(float(x) for points in maps.values() for x in points[i])]
        for i, cluster in enumerate(clusters)
    ]
    return FigureWithRows("map", figure, ["title", "label", "group", "cluster", *ends], rows)


def _predictions(own: RunPictures) -> FigureWithRows:
    panels, titles = own.titles("predictions", "panels"), own.titles("predictions")
    context, blocks = own.array("predicted_context"), own.array("predicted_blocks")
    cosines, field = (own.array(f"predicted_{name}").astype(np.float64) for name in ("cosines", "field"))
    tiles = own.tiles("predictions")
    tiles = tiles.reshape(len(titles), len(panels), *tiles.shape[1:])
    rows = [[*own_tiles, heat(cosines[i], 0, 1), heat(field[i], 0, 1)] for i, own_tiles in enumerate(tiles)]
    figure = picture_grid(rows, [*panels, "cosine with the truth", "first block with all"])
    wanted = blocks.transpose(0, 2, 3, 1).astype(np.int64)
    columns = ["context", *(f"block {k + 1}" for k in range(blocks.shape[1])), "cosine", "first block"]
    cells = _cells(titles, context.astype(np.int64), wanted, cosines, field)
    return FigureWithRows("predictions", figure, ["image", "title", "row", "column", *columns], cells)


def _draws(own: RunPictures, part: str) -> FigureWithRows:
    panels, titles, tiles = own.titles(part, "panels"), own.titles(part), own.tiles(part)
    rows = [[*each] for each in tiles.reshape(len(titles), len(panels), *tiles.shape[1:])]
    named = [[i, title, j, panel] for i, title in enumerate(titles) for j, panel in enumerate(panels)]
    title = {"noise": "predictions by noise", "samples": "predictions sampled"}[part]
    return FigureWithRows(title, picture_grid(rows, panels), ["image", "title", "column", "panel"], named)


def _segmented(task: str, found: SegmentedImages) -> FigureWithRows:
    columns = [[one.image, found.painted(one.truth), found.painted(one.predicted)] for one in found.images]
    figure = picture_grid([*zip(*columns, strict=True)], names=["image", "labels", "linear head"])
    for name, colour in found.legend:
        figure.axes[0].plot([], [], "s", color=colour, label=name)
    figure.legend(frameon=False, fontsize=7, ncols=6, loc="upper left", bbox_to_anchor=(0, 0))
    rows = []
    for i, one in enumerate(found.images):
        for c in found.shown:
            truth, said = one.truth == c, (one.predicted == c) & (one.truth >= 0)
            rows.append([i, one.title, found.names[c], int(truth.sum()), int(said.sum()), int((truth & said).sum())])
    return FigureWithRows(f"{task} beside labels", figure, ["image", "title", "class", "labelled", "predicted", "both"], rows)
