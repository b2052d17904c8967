"""Whether a run is good: its encoder beside the untrained one and what pixels give, by their intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jepakit.core.counted import LESS_IS_BETTER, METRIC_NAMES

from ..reading import PROBE_NAMES, MetricsRow, RunFiles
from ..wording import data_name, in_words, interval

UNTRAINED = "untrained encoder"
PIXELS = ("raw pixels", "pixel PCA", "first mask kept")  # the best of them is what an encoder must beat
# Which task speaks for a run, the first of these that it has; the others are told where they say another thing.
SPEAKS = ("linear", "logistic", "attentive", "knn", "low_shot", "transfer", "segmentation", "boxes", "davis", "finetune")
BETTER, LEVEL, WORSE = 1, 0, -1


@dataclass(frozen=True)
class Judged:
    """A task's figure of the encoder, and what became of it against the untrained one and pixels (None: not measured)."""

    task: str
    best: MetricsRow
    untrained: MetricsRow | None
    pixels: MetricsRow | None

    @property
    def against_untrained(self) -> int | None:
        return None if self.untrained is None else relation(self.best, self.untrained)

    @property
    def against_pixels(self) -> int | None:
        return None if self.pixels is None else relation(self.best, self.pixels)

    @property
    def beats_all(self) -> bool:
        """Better than each baseline that there is, and there is one."""
        found = {self.against_untrained, self.against_pixels} - {None}
        return found == {BETTER}


@dataclass(frozen=True)
class Verdict:
    """kind: good, fair, bad or none; what to think of the encoder in a headline; when not to use it, in a sentence."""

    kind: str
    headline: str
    unfit: str
    judged: Judged | None = None


def relation(row: MetricsRow, other: MetricsRow) -> int:
    """BETTER or WORSE where the intervals are apart; LEVEL where they overlap or one is missing."""
    ends = [row["low"], row["high"], other["low"], other["high"]]
    if not all(map(math.isfinite, ends)):
        return LEVEL
    sign = -1 if row["metric"] in LESS_IS_BETTER else 1
    if row["low"] > other["high"]:
        return sign
    return -sign if row["high"] < other["low"] else LEVEL


def judged_by(task: str, rows: Mapping[str, MetricsRow]) -> Judged | None:
    """The first of a result's rows beside its baselines; None where it has no figure."""
    measured = {key: row for key, row in rows.items() if not math.isnan(row["value"])}
    best = measured.get(next(iter(rows), ""))
    if best is None:
        return None
    sign = -1 if best["metric"] in LESS_IS_BETTER else 1
    pixels = max((key for key in PIXELS if key in measured), key=lambda key: sign * measured[key]["value"], default="")
    return Judged(task, best, measured.get(UNTRAINED), measured.get(pixels))


def verdict(run: RunFiles) -> Verdict:
    """What the numbers of a run's files say of its encoder."""
    each = {task: found for task in SPEAKS if task in run.results and (found := judged_by(task, run.results[task]["rows"]))}
    first = next(iter(each.values()), None)
    alarm = run.metrics.alarms[-1][1] if run.metrics.alarms else ""
    if alarm and not (first and first.beats_all):
        kind, _, words = alarm.partition(": ")
        also = f"; {_beside(run, first)}" if first else ""
        return Verdict("bad", "Collapsed", f"Do not use it: {kind}, {words.partition(';')[0]}{also}.", first)
    if first is None and run.results:
        unfit = "Do not use it before it is judged with labels: ranks tell how many directions it uses, not their worth."
        return Verdict("none", "Not judged with labels yet", unfit)
    if first is None:
        unfit = "Do not use it before it is judged: nothing says yet whether it is better than raw pixels."
        return Verdict("none", "Not judged yet", unfit)
    others = [*each.values()][1:]
    said = _good(run, first, others) if first.beats_all else _short_of(run, first, others)
    return replace(said, headline=f"{said.headline}, yet the collapse doctor gave an alarm") if alarm else said


def _good(run: RunFiles, first: Judged, others: list[Judged]) -> Verdict:
    doubted = next((other for other in others if not other.beats_all and other.task != "finetune"), None)
    if doubted:
        by = _task(doubted.task)
        unfit = f"Do not rely on it where features are used as by {by}: {_beside(run, doubted)}."
        return Verdict("good", f"Better than every baseline by {_task(first.task)}, not by {by}", unfit, first)
    figure, probed = first.best["counted"], _probed(run, first.task)
    if figure.share and figure.metric == "accuracy":
        missed = f"{figure.told(1 - figure.value)} % wrong answers are too many: so many {probed} gives"
    else:
        metric = METRIC_NAMES.get(figure.metric, figure.metric)
        missed = f"{metric} of {_told(first.best)} is not enough: that is what {probed} reaches"
    unfit = f"Do not use it as it is where {missed}; and of other images than these nothing was measured."
    baselines = [row["name"] for row in (first.untrained, first.pixels) if row is not None]
    than = "every baseline" if len(baselines) > 1 else _the(baselines[0])
    return Verdict("good", f"Better than {than}", unfit, first)


def _short_of(run: RunFiles, first: Judged, others: list[Judged]) -> Verdict:
    """Where a baseline is level or better, or there is none."""
    pixels, beside = first.pixels["name"] if first.pixels else "", _beside(run, first)
    if first.against_untrained == WORSE:
        return Verdict("bad", "Worse than an untrained encoder", f"Do not use it: training did harm; {beside}.", first)
    if first.against_untrained == LEVEL:
        gained = next((other for other in others if other.against_untrained == BETTER and other.task != "finetune"), None)
        if gained:
            by, not_by = _task(gained.task), _task(first.task)
            unfit = f"Do not rely on it where features are used as by {not_by}: {beside}."
            return Verdict("fair", f"Better than an untrained encoder by {by}, not by {not_by}", unfit, first)
        below = f", and below {pixels}" if first.against_pixels == WORSE else ""
        unfit = f"Do not use it: training has shown no gain; {beside}."
        return Verdict("bad", f"No better than an untrained encoder{below}", unfit, first)
    if first.against_pixels == WORSE:
        return Verdict("fair", f"Learned, but {pixels} is better", f"Do not use it for such labels: {beside}.", first)
    if first.against_pixels == LEVEL:
        unfit = f"Do not use it where {pixels} will do: {beside}."
        return Verdict("fair", f"Level with {pixels}", unfit, first)
    unfit = f"Do not use it on these numbers alone: {beside}, and no baseline stands beside it."
    return Verdict("fair", "Judged without baselines", unfit, first)


def _beside(run: RunFiles, judged: Judged) -> str:
    """The encoder's figure against that of the baselines that it does not beat, or of all."""
    baselines = [row for row in (judged.untrained, judged.pixels) if row is not None]
    kept = [row for row in baselines if relation(judged.best, row) != BETTER] or baselines
    told = [f"{_the(row['name'])} {_told(row)} ({_how(judged.best, row)})" for row in kept]
    return f"{_probed(run, judged.task)} gives it {_told(judged.best)}" + (f", {' and '.join(told)}" if told else "")


def _how(best: MetricsRow, row: MetricsRow) -> str:
    if not all(map(math.isfinite, (best["low"], row["low"]))):
        return "without an interval to judge by"
    return {BETTER: "worse", LEVEL: "level with it", WORSE: "better"}[relation(best, row)]


def _the(name: str) -> str:
    return f"the {name}" if name == UNTRAINED else name


def _told(row: MetricsRow) -> str:
    return f"{row['counted'].told(row['value'])}{' %' if row['counted'].share else ''}{interval(row)}"


def _probed(run: RunFiles, task: str) -> str:
    """The task, and on which labels and images: 'the linear probe on emoji (labels: group)'."""
    result = run.results[task]
    on = data_name(result["data"]) if result.get("data") else "its test images"
    labels = f" (labels: {in_words(result['labels'])})" if result.get("labels") else ""
    return f"{_task(task)} on {on}{labels}"


def _task(task: str) -> str:
    """Its name within a sentence: the linear probe; kNN."""
    title = PROBE_NAMES[task]
    return title if title[1:2].isupper() or title.isupper() else f"the {title[:1].lower()}{title[1:]}"
