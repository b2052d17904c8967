"""OUT/figure.svg: a study's points, a row for each panel: mean and interval over seeds, and what is published beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepakit.core.compare import mean_and_margin
from jepakit.core.files import atomic_write
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME
from jepakit.study.comparison import BASELINES, ComparisonLine

_OURS, _THEIRS = "#1f77b4", "#8c564b"
_PREFERRED = ("linear", "kNN", "RankMe")  # the first that all have is drawn


def save_figure(path: Path, lines: Sequence[ComparisonLine], measure: str | None = None, beside: str = "published") -> None:
    """Draw one measure of every point (default: linear, kNN or RankMe); what is published on axes of their own.

    A measure that is given has its own scale in each panel; accuracies share one, in which an untrained encoder is a line.
    beside: what the other axes are called.
    """
    shared = measure is None
    measure = measure or next((m for m in _PREFERRED if any(m in line.measures for line in lines)), _PREFERRED[0])
    untrained = next((line.measures.get(measure, ()) for line in lines if line.called == UNTRAINED_NAME), ())
    lines = [line for line in lines if line.panel != BASELINES]
    panels, columns = list(dict.fromkeys(line.panel for line in lines)), 1 + any(map(_number, lines))
    heights = [max(2, sum(line.panel == panel for line in lines)) for panel in panels]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}):
        figure = Figure(figsize=(3 + 3 * columns, 0.9 * len(panels) + 0.26 * sum(heights)), layout="constrained")
        both = figure.subplots(len(panels), columns, squeeze=False, width_ratios=(3, 2)[:columns], height_ratios=heights)
        for (left, *right), panel in zip(both, panels, strict=True):
            own = [line for line in lines if line.panel == panel]
            _draw(left, own, measure)
            if untrained:
                left.axvline(mean_and_margin(untrained)[0], color="0.5", linestyle="--", linewidth=1)
            for axes in right:
                _draw_published(axes, own, beside)
            dashed = f" (dashed: {UNTRAINED_NAME})" if untrained else ""
            left.set_title(f"{panel}: {measure}{dashed}", fontsize=9, loc="left")
        drawn = [left.get_xlim() for left in both[:, 0] if left.has_data()]
        for left in both[:, 0] if shared and drawn else ():
            left.set_xlim(min(low for low, _ in drawn), max(high for _, high in drawn))
        with atomic_write(path) as draft:
            figure.savefig(draft, format="svg", metadata={"Date": None})


def _draw(axes: Axes, lines: Sequence[ComparisonLine], measure: str) -> None:
    for place, line in enumerate(lines):
        values = line.measures.get(measure, ())
        if values:
            mean, half = mean_and_margin(values)
            axes.errorbar(mean, place, xerr=half, fmt="o", color=_OURS, capsize=3, markersize=5)
            axes.plot(values, [place] * len(values), "|", color=_OURS, alpha=0.5)
    axes.set_yticks(range(len(lines)), [line.called for line in lines])
    _dress(axes, len(lines))


def _draw_published(axes: Axes, lines: Sequence[ComparisonLine], title: str) -> None:
    numbers = [(place, float(found)) for place, line in enumerate(lines) if (found := _number(line))]
    if not numbers:
        axes.set_axis_off()
        return
    axes.plot([number for _, number in numbers], [place for place, _ in numbers], "D", color=_THEIRS, fillstyle="none")
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_yticks([])
    _dress(axes, len(lines))


def _number(line: ComparisonLine) -> str:
    """The number that what is published begins with, as it stands there; '' for none, or one of another set ('74.5 count')."""
    found = re.match(r"(\d[\d.]*)(?: (\w+))?", line.published)
    return found[1] if found and not any(measure.startswith(f"{found[2]}:") for measure in line.measures) else ""


def _dress(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.6, alpha=0.5)
    axes.tick_params(length=0)
