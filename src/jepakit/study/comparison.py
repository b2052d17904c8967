"""A study's points side by side: mean and interval over seeds, and the published numbers, as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jepakit.core.compare import mean_and_margin
from jepakit.study.panels import Panel, PaperStudy, StudyRuns
from jepakit.study.table import OWN, SPECTRA, CellRow

TITLES = {"linear": "linear", "knn": "kNN", "low_shot": "low-shot", "rankme": "RankMe", "lidar": "LiDAR", "transfer": "transfer"}
_BASELINES = ("untrained encoder", "raw pixels", "pixel PCA")


@dataclass(frozen=True)
class ComparisonLine:
    """One point: its values by measure, one a seed (accuracies in per cent), and what is published."""

    panel: str
    called: str
    measures: Mapping[str, tuple[float, ...]]
    published: str = ""


def comparison(study: PaperStudy, panels: Sequence[Panel], made: StudyRuns, rows: Sequence[CellRow]) -> list[ComparisonLine]:
    """The lines of all panels, from the rows that there are; at the end baselines, which no training has a part in."""
    lines = []
    for panel in panels:
        for point in panel.points:
            place = made.places[panel.name, point.called]
            own = [row for row in rows if row["cell"] == place.cell]
            lines.append(ComparisonLine(panel.name, point.called, _measures(study, own, place.look), point.published))
    first = [row for row in rows if row["cell"] == made.cells[0].called]
    found = [ComparisonLine("baselines", name, _measures(study, first, OWN, name)) for name in _BASELINES]
    return lines + [line for line in found if line.measures]


def _measures(study: PaperStudy, rows: Sequence[CellRow], look: str, name: str | None = None) -> dict[str, tuple[float, ...]]:
    """Values over the rows, of the encoder `name` (default: the run's), in the evaluation `look` and on the other sets."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for place in (look, *(each.name for each in study.also)):
            for task, results in sorted(row["evaluations"].get(place, {}).items(), key=lambda item: _order(item[0])):
                spectrum, other = task in SPECTRA, place != look
                if (name or row["judged"]) in results and not (spectrum and other):
                    title = f"{place}: {TITLES[task]}" if other else TITLES.get(task, task)
                    found.setdefault(title, []).append(results[name or row["judged"]][0] * (1 if spectrum else 100))
    return {title: tuple(values) for title, values in found.items()}


def _order(task: str) -> int:
    return [*TITLES, task].index(task)


def comparison_table(
    lines: Sequence[ComparisonLine], sources: Mapping[str, str], digits: int = 1, beside: str = "published"
) -> str:
    """Markdown: a table for each panel; a cell has the mean, and ± half of the 95 % interval over seeds.

    beside: what the numbers are called that are not ours.
    """
    parts = []
    for panel in dict.fromkeys(line.panel for line in lines):
        own = [line for line in lines if line.panel == panel]
        measures = list(dict.fromkeys(measure for line in own for measure in line.measures))
        published = any(line.published for line in own)
        head = [panel, *measures, "seeds", *([beside] if published else [])]
        body = [
            [
                line.called,
                *(mean_shown(line.measures.get(measure, ()), digits) for measure in measures),
                str(max((len(values) for values in line.measures.values()), default=0)),
                *([line.published] if published else []),
            ]
            for line in own
        ]
        text = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
        parts.append("\n".join([*text, *([f"\n{beside.capitalize()}: {sources[panel]}."] if sources.get(panel) else [])]))
    return "\n\n".join(parts)


def mean_shown(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± half of the interval; a dash where there is nothing."""
    if not values:
        return "–"
    mean, half = mean_and_margin(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def as_data(lines: Sequence[ComparisonLine]) -> list[dict[str, Any]]:
    """The lines as JSON, with means and intervals."""
    return [
        {
            "panel": line.panel,
            "point": line.called,
            "published": line.published,
            "measures": {
                name: {"values": list(values), "mean": mean_and_margin(values)[0], "half": mean_and_margin(values)[1]}
                for name, values in line.measures.items()
            },
        }
        for line in lines
    ]
