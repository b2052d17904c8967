"""The report's drawings: curves as SVG in the page's own colours, pictures as data URIs, masks over pictures."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from jepakit.core.files import finite

COLOURS = (
    "#2c5f8f",
    "#864c20",
    "#1898a3",
    "#89053e",
    "#a78b1f",
    "#d56f70",
    "#9681d7",
    "#6b6b6b",
)  # --c0 … --c7 of page.css, for files
PALETTE = 8  # CSS variables --c0 … --c7 in page.css: one per run, and one per target
POINTS = 200  # a longer curve is averaged into this many pieces
KEPT_POINTS = 1500  # those that the page keeps of it, to zoom into
WIDTH, HEIGHT = 340, 190

SVG_AS_TEXT: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 10, "path.simplify": True}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the same bytes each time

STILL = ContextVar("STILL", default=True)  # whether curves are drawn for those without a script too, which takes a second

# Placeholder colours: matplotlib writes them, `_themed` turns them into CSS variables, so dark mode works.
_INK, _RULE = "#0a0bfe", "#0a0bff"

_Floats = NDArray[np.float64]
Series = Mapping[str, tuple[_Floats, _Floats]]  # steps and values of each logged name
Pictures = Mapping[str, NDArray[Any]]  # the arrays of evaluation/pictures.npz


@dataclass(frozen=True)
class Line:
    """One curve of a panel; `colour` counts the runs."""

    steps: _Floats
    values: _Floats
    colour: int = 0
    dashed: bool = False
    label: str = ""  # what it is, where a run has several in a panel
    run: str = ""


def finite_values(series: Series, key: str) -> _Floats:
    """The numbers logged under a name, without NaN and infinity."""
    values = series[key][1] if key in series else np.empty(0)
    return values[np.isfinite(values)]


def curve(title: str, lines: Sequence[Line], changes: Sequence[float] = ()) -> Markup:
    """The lines over the training steps, as inline SVG; non-finite values leave gaps; upright lines at `changes`.

    Their numbers stand behind it: the page's script draws them anew (charts.js), to hover and to zoom.
    """
    if not STILL.get():
        return Markup('<svg class="curve"></svg>') + _numbers(lines, changes)
    with rc_context(SVG_AS_TEXT | {"svg.hashsalt": title}):
        buffer = io.StringIO()
        lines_figure(lines, changes).savefig(buffer, format="svg", metadata=NO_METADATA)
    return Markup(_themed(buffer.getvalue(), title)) + _numbers(lines, changes)


def lines_figure(lines: Sequence[Line], changes: Sequence[float] = (), colours: Sequence[str] = (), ink: str = _INK) -> Figure:
    """The lines as a matplotlib figure; without colours in those that `_themed` makes the page's."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((0.135, 0.125, 0.845, 0.84))
    rule = _RULE if ink == _INK else "#dddddd"
    for line in lines:
        steps, values = thinned(line.steps, line.values)
        alone = np.isfinite(values).sum() == 1
        axes.plot(
            steps, values, color=colours[line.colour] if colours else f"#0a0b{line.colour:02x}", linewidth=1.6,
            solid_joinstyle="round", linestyle=(0, (3, 2)) if line.dashed else "-", marker="o" if alone else "", markersize=4,
        )  # fmt: skip
    for step in changes:
        axes.axvline(step, color=ink, linewidth=0.8, linestyle=(0, (1, 3)), gid="change")
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(rule)
    axes.grid(axis="y", color=rule, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink, length=0, pad=5, labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, thousands=1e3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    return figure


def _numbers(lines: Sequence[Line], changes: Sequence[float]) -> Markup:
    """The lines' points as JSON that no browser runs; five digits of each value."""
    each = []
    for line in lines:
        steps, values = thinned(line.steps, line.values, KEPT_POINTS)
        points = {"x": [round(step) for step in steps.tolist()], "y": [float(f"{value:.5g}") for value in values.tolist()]}
        said = {"colour": line.colour, "dashed": line.dashed, "label": line.label, "run": line.run}
        each.append({**points, **said})
    return json_block({"lines": each, "uprights": list(changes)})


def json_block(value: Any, **attributes: str) -> Markup:
    """A value for the page's script; what is not finite becomes null."""
    named = "".join(f' {name}="{escape(text)}"' for name, text in attributes.items())
    return Markup(f'<script type="application/json"{named}>{htmlsafe_json_dumps(finite(value))}</script>')


def thinned(steps: _Floats, values: _Floats, most: int = POINTS) -> tuple[_Floats, _Floats]:
    """At most so many points: means of equal pieces, over the finite values of each."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= most:
        return steps, values
    starts = np.linspace(0, len(steps), most, endpoint=False).astype(np.int64)
    finite = np.isfinite(values)
    count = np.add.reduceat(finite.astype(np.float64), starts)
    total = np.add.reduceat(np.where(finite, values, 0.0), starts)
    pieces = np.diff(np.append(starts, len(steps)))
    means = np.divide(total, count, out=np.full(most, np.nan), where=count > 0)
    return np.add.reduceat(steps, starts) / pieces, means


def short(value: float, thousands: float = 1e4) -> str:
    """A tick or last value in few characters, with a k from `thousands` on: 12k, 0.034, 2e−05."""
    if abs(value) >= 1e6:
        text = f"{value / 1e6:.4g}M"
    elif abs(value) >= thousands:
        text = f"{value / 1e3:.4g}k"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def _themed(svg: str, title: str, height: int = HEIGHT) -> str:
    """matplotlib's SVG as an inline element: fluid size, CSS colours, the page's font, no repeated ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening = f'<svg class="curve" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    svg = re.sub(r"^<svg[^>]*>", lambda _: opening, svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9]+(?:\.[a-z]+)?_\d+"', "", svg)
    svg = re.sub(r"font: [^;\"]*", "font-size: 10px", svg)
    svg = svg.replace(_INK, "var(--quiet)").replace(_RULE, "var(--rule)").replace("xlink:href", "href")
    return re.sub(r"#0a0b([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", svg)


@dataclass(frozen=True)
class Slope:
    """A run's figures across tasks, NaN where there is none."""

    name: str
    colour: int
    values: Sequence[float]


def slope_chart(slopes: Sequence[Slope], tasks: Sequence[str]) -> Markup:
    """A line for each run across the tasks, as inline SVG."""
    buffer = io.StringIO()
    with rc_context(SVG_AS_TEXT | {"svg.hashsalt": "slopes"}):
        slopes_figure(slopes, tasks).savefig(buffer, format="svg", metadata=NO_METADATA)
    return Markup(_themed(buffer.getvalue(), f"{', '.join(tasks)} of {len(slopes)} runs in per cent", HEIGHT + 60))


def slopes_figure(slopes: Sequence[Slope], tasks: Sequence[str], colours: Sequence[str] = (), ink: str = _INK) -> Figure:
    """The lines as a matplotlib figure; without colours in those that `_themed` makes the page's."""
    figure = Figure(figsize=(WIDTH / 72, (HEIGHT + 60) / 72))
    axes = figure.add_axes((0.12, 0.17, 0.84, 0.79))
    rule = _RULE if ink == _INK else "#dddddd"
    for slope in slopes:
        colour = colours[slope.colour] if colours else f"#0a0b{slope.colour:02x}"
        axes.plot(range(len(tasks)), slope.values, color=colour, linewidth=1.8, marker="o", markersize=5, label=slope.name)
    for place in range(len(tasks)):
        axes.axvline(place, color=rule, linewidth=0.8, zorder=0)
    axes.set_xlim(-0.25, len(tasks) - 0.75)
    axes.set_xticks(range(len(tasks)), ["\n".join(task.split()) for task in tasks], fontsize=10)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(colors=ink, length=0, pad=6, labelsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure


def data_uri(image: NDArray[np.uint8]) -> str:
    """The picture as a PNG inside the page."""
    buffer = io.BytesIO()
    nothing: dict[str, Any] = {"Software": None}
    imsave(buffer, np.ascontiguousarray(image), format="png", metadata=nothing)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def masked(image: NDArray[np.uint8], context: NDArray[np.bool_], targets: NDArray[np.bool_]) -> Markup:
    """The picture with all but its context dimmed and each target outlined."""
    rows, columns = context.shape
    outlines = "".join(
        f'<path class="target" style="stroke:var(--t{index % PALETTE})" d="{_outline(target)}"/>'
        for index, target in enumerate(targets)
        if target.any()
    )
    return Markup(
        f'<svg class="masked" viewBox="0 0 {columns} {rows}" role="img" aria-label="context and targets">'
        f'<image href="{data_uri(image)}" width="{columns}" height="{rows}" preserveAspectRatio="none"/>'
        f'<path class="dim" d="{_cells(~context)}"/>{outlines}</svg>'
    )


def _cells(mask: NDArray[np.bool_]) -> str:
    """The mask's cells as path data."""
    return "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(mask))


def _outline(mask: NDArray[np.bool_]) -> str:
    """The mask's edges as path data: wherever a cell and its neighbour differ."""
    padded = np.pad(mask, 1)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    return "".join(f"M{x} {y}h1" for y, x in level) + "".join(f"M{x} {y}v1" for y, x in upright)
