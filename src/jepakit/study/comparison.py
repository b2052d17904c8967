"""A study's points side by side: mean and interval over seeds, and the published numbers, as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepakit.core.compare import mean_and_margin
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME
from jepakit.evaluation.features import PCA, RAW
from jepakit.study.panels import Panel, PaperStudy, StudyRuns
from jepakit.study.table import OWN, SPECTRA, CellRow

TITLES = {"linear": "linear", "knn": "kNN", "low_shot": "low-shot", "rankme": "RankMe", "lidar": "LiDAR", "transfer": "transfer"}
BASELINES = "baselines"  # the panel of:
_BASELINES = (UNTRAINED_NAME, RAW, PCA)


@dataclass(frozen=True)
class ComparisonLine:
    """One point: its values by measure, one a seed (accuracies in per cent), and what is published.

    over_first: by measure, how much more each seed has than in the panel's first point.
    """

    panel: str
    called: str
    measures: Mapping[str, tuple[float, ...]]
    published: str = ""
    over_first: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def comparison(study: PaperStudy, panels: Sequence[Panel], made: StudyRuns, rows: Sequence[CellRow]) -> list[ComparisonLine]:
    """The lines of all panels, from the rows that there are; at the end baselines, which no training has a part in."""
    lines = []
    for panel in panels:
        places = [made.places[panel.name, point.called] for point in panel.points]
        measured = [_measures(study, [row for row in rows if row["cell"] == place.cell], place.look) for place in places]
        for number, (point, found) in enumerate(zip(panel.points, measured, strict=True)):
            over = _over(measured[0], found) if number else {}
            lines.append(ComparisonLine(panel.name, point.called, _values(found), point.published, over))
    of_first = [row for row in rows if row["cell"] == made.cells[0].called]
    baselines = [ComparisonLine(BASELINES, name, _values(_measures(study, of_first, OWN, name))) for name in _BASELINES]
    return lines + [line for line in baselines if line.measures]


def _values(measures: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[float, ...]]:
    return {measure: tuple(by_seed.values()) for measure, by_seed in measures.items()}


def _over(first: Mapping[str, Mapping[int, float]], found: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[float, ...]]:
    """How much more than the first point's, of each measure and seed that both have."""
    return {
        measure: tuple(value - first[measure][seed] for seed, value in by_seed.items() if seed in first[measure])
        for measure, by_seed in found.items()
        if measure in first
    }


def _measures(study: PaperStudy, rows: Sequence[CellRow], look: str, name: str | None = None) -> dict[str, dict[int, float]]:
    """Values by measure and seed, of the encoder `name` (default: the run's), in the evaluation `look` and on the other sets."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for place in (look, *(each.name for each in study.also)):
            for task, results in sorted(row["evaluations"].get(place, {}).items(), key=lambda item: _order(item[0])):
                spectrum, other = task in SPECTRA, place != look
                if (name or row["judged"]) in results and not (spectrum and other):
                    title = f"{place}: {TITLES[task]}" if other else TITLES.get(task, task)
                    found.setdefault(title, {})[row["seed"]] = results[name or row["judged"]][0] * (1 if spectrum else 100)
    return found


def _order(task: str) -> int:
    return [*TITLES, task].index(task)


def comparison_table(
    lines: Sequence[ComparisonLine], sources: Mapping[str, str], digits: int = 1, beside: str = "published"
) -> str:
    """Markdown: a table for each panel; a cell has the mean ± half of the 95 % interval over seeds, and in brackets how much that
    is more than the panel's first line has, of the same seeds.

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
                *(_shown(line, measure, digits) for measure in measures),
                str(max((len(values) for values in line.measures.values()), default=0)),
                *([line.published] if published else []),
            ]
            for line in own
        ]
        text = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
        parts.append("\n".join([*text, *([f"\n{beside.capitalize()}: {sources[panel]}."] if sources.get(panel) else [])]))
    return "\n\n".join(parts)


def _shown(line: ComparisonLine, measure: str, digits: int) -> str:
    """The mean, and that of the differences where there are several seeds."""
    values, over = line.measures.get(measure, ()), line.over_first.get(measure, ())
    return mean_shown(values, digits) + (f" ({mean_shown(over, digits, '+')})" if len(over) > 1 else "")


def mean_shown(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Mean ± half of the interval; a dash where there is nothing. sign: '+' for a sign in any case."""
    if not values:
        return "–"
    mean, half = mean_and_margin(values)
    shown = f"{mean:{sign}z.{digits}f}".replace("-", "−")
    return shown + (f" ± {half:.{digits}f}" if half is not None else "")


def as_data(lines: Sequence[ComparisonLine]) -> list[dict[str, Any]]:
    """The lines as JSON, with means and intervals."""
    return [
        {
            "panel": line.panel,
            "point": line.called,
            "published": line.published,
            "measures": _summary(line.measures),
            **({"over_first": _summary(line.over_first)} if line.over_first else {}),
        }
        for line in lines
    ]


def _summary(measures: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, Any]]:
    """Values, mean and half of the interval of each measure that has values."""
    return {
        name: dict(zip(("values", "mean", "half"), (list(values), *mean_and_margin(values)), strict=True))
        for name, values in measures.items()
        if values
    }
