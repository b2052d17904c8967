"""The collapse doctor: from the logged rows alone, whether a run still learns or its targets have lost their content.

Three ways to lose (docs/collapse.md has the experiments behind the thresholds):
full: all targets become one vector; dimensional: they differ, along ever fewer directions; positional: they tell where a
patch lies, not what is on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_Row = Mapping[str, Any]
MEDIAN_ROWS = 5  # logged rows of which the median counts, so that one batch is no alarm
FULL = 0.1  # deviation of targets over a batch; layer-normed ones have 1 in all
RANK = 0.8  # effective rank over that of the first row, when the encoder is still as good as untrained
POSITION = 0.85  # share of the targets' variance that the patch's place explains
COSINE_GAP = 0.02  # cosine of a prediction with its own target, less that with another image's at the same place


@dataclass(frozen=True)
class Alarm:
    """A kind of collapse ('full', 'dimensional' or 'positional'), and what to tell the user."""

    kind: str
    words: str


def position_counts_from(steps: int, warmup: int) -> int:
    """The step from which position is an alarm, in a run of so many steps and steps of warm-up."""
    return max(200, 2 * warmup, steps // 4)


def diagnose(rows: Sequence[_Row], from_step: int = 0) -> list[Alarm]:
    """The collapses that the last of the logged rows show; none while there are fewer than `MEDIAN_ROWS` of them.

    rows: the run's first row, then its latest ones, oldest first, of a method whose targets are features. from_step: that
    from which position is an alarm: an untrained encoder's features are mostly position, and no predictor can tell images
    apart at first.
    """
    if len(rows) < MEDIAN_ROWS:
        return []
    # not a number where a sign was not logged or cannot be told, which is no alarm
    last = {key: float(np.median([row.get(key, np.nan) for row in rows[-MEDIAN_ROWS:]])) for key in COLLAPSE_SIGNS}
    rank, share = last["effective_rank"] / rows[0]["effective_rank"], last["position_share"]
    own, other = last["own_cosine"], last["other_cosine"]
    alarms = []
    if last["target_std"] < FULL:
        alarms.append(Alarm("full", f"targets are nearly one vector: their deviation is {last['target_std']:.3f} of 1; {MEND}"))
    elif rank < RANK:
        words = f"features lose directions: effective rank {last['effective_rank']:.1f}, {rank:.0%} of what it was at first"
        alarms.append(Alarm("dimensional", f"{words}; {MEND}"))
    if rows[-1]["step"] < from_step:
        return alarms
    if share > POSITION:
        words = f"targets are {share:.0%} position: where a patch lies tells nearly all of them"
        alarms.append(Alarm("positional", f"{words}; {MEND_POSITION}"))
    elif own - other < COSINE_GAP:
        words = f"predictions fit other images as well as their own (cosine {other:.2f} against {own:.2f}): they tell places"
        alarms.append(Alarm("positional", f"{words}; {MEND_POSITION}"))
    return alarms


class Doctor:
    """Examines each logged row of a run and reports each kind of collapse once."""

    def __init__(self, learned: bool, from_step: int, rows: Sequence[_Row]) -> None:
        """learned: whether the targets move with the encoder (pixels and a frozen teacher's features do not, and cannot
        collapse); rows: what was logged before a resume."""
        self.learned, self.from_step = learned, from_step
        self.rows: list[_Row] = []
        self.reported: set[str] = set()
        for row in rows:
            self.examine(row)

    def examine(self, row: _Row) -> list[Alarm]:
        """Add a row; returns the alarms that were not reported before."""
        if not self.learned:
            return []
        self.rows = [*self.rows[:1], *self.rows[1:][1 - MEDIAN_ROWS :], row]
        new = [alarm for alarm in diagnose(self.rows, self.from_step) if alarm.kind not in self.reported]
        self.reported |= {alarm.kind for alarm in new}
        return new


COLLAPSE_SIGNS = ("target_std", "effective_rank", "position_share", "own_cosine", "other_cosine")
MEND = "try --method c_jepa (VICReg) or a higher regularizer.weight, a higher optim.ema_momentum, or a lower optim.lr"
MEND_POSITION = (
    "try a higher masking.min_keep or smaller masking.target_scale, a wider images.crop_scale, or --method c_jepa; "
    "look whether the images differ at all"
)
