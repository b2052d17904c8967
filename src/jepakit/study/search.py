"""A joint search over a study's levers: Optuna's TPE sampler proposes, successive halving stops the worse half early.

What was proposed, and what came of it, lies in OUT/search.log, so that a search goes on; a trial that was running when the
study was killed is taken up again. Sources: TPE, Bergstra et al., NeurIPS 2011; asynchronous halving, Li et al., arXiv
1810.05934.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepakit.artifacts.run import Run
from jepakit.core import rng
from jepakit.core.errors import UserError
from jepakit.study.cells import BASE, Cell, Change, Lever, configuration, label
from jepakit.study.running import Job, Runner
from jepakit.study.table import PROBE_KEYS, probe_points, steps_of, value_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

LEVER = "search"  # what the table calls it
FIRST_PERCENT, FACTOR = 25, 2  # at 25 and at 50 % of a run, the better half of the trials that got so far goes on


@dataclass(frozen=True)
class Search:
    """`wanted` trials in all over `levers`; what the cells of `grid` have found is known to the sampler."""

    study: "Study"
    runner: Runner
    base: Mapping[str, Any]
    levers: Sequence[Lever]
    grid: Sequence[Cell]
    wanted: int

    @classmethod
    def open(
        cls, runner: Runner, base: Mapping[str, Any], levers: Sequence[Lever], grid: Sequence[Cell], wanted: int
    ) -> "Search":
        """The search of a study's folder, a new one or that which was begun. Raises UserError without the extra."""
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise UserError("--trials needs an extra: pip install 'jepakit[study]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = runner.out / "search.log"
        _mend(journal)
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            study_name=LEVER,
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_PERCENT, reduction_factor=FACTOR),
            load_if_exists=True,
        )
        return cls(study, runner, base, levers, grid, wanted)

    @property
    def trials(self) -> list["FrozenTrial"]:
        """Those that the sampler proposed, without the cells of the grid that it learned from."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "grid" not in trial.user_attrs]

    @property
    def over(self) -> int:
        """How many trials are over."""
        return sum(trial.state.is_finished() for trial in self.trials)

    def jobs(self) -> Iterator[Job]:
        """Trials that were under way, then new ones up to `wanted`, each asked for when there is room for it."""
        from optuna.samplers import TPESampler
        from optuna.trial import Trial

        for frozen in self.trials:
            if not frozen.state.is_finished():
                yield self._job(Trial(self.study, frozen._trial_id))
        while len(self.trials) < self.wanted:
            self._learn_of_grid()
            # a new one for each trial, a function of (seed, number): one that a resume starts again would repeat its draws
            number = len(self.study.get_trials(deepcopy=False))
            seed = rng.torch_seed(configuration(self.base, {}).seed, LEVER, number) % 2**32
            self.study.sampler = TPESampler(seed=seed)
            yield self._job(self.study.ask())

    def _job(self, trial: "Trial") -> Job:
        """Run a trial and tell what came of it; one that is stopped stays under way."""
        from optuna.trial import TrialState

        cell = Cell(LEVER, self._suggested(trial), f"trial-{trial.number:03}", configuration(self.base, {}).seed)
        reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        size = 0

        def prune(run: Run) -> bool:
            nonlocal size
            metrics = run.path / "metrics.jsonl"
            before, size = size, metrics.stat().st_size if metrics.is_file() else 0
            if size == before:
                return False
            for percent, value in percents(run):
                if percent not in reported:
                    reported.add(percent)
                    trial.report(value, percent)
                    if trial.should_prune():
                        return True
            return False

        yield from self.runner.job(cell, prune)
        row = self.runner.row(cell)
        value = value_of(row) if row else None
        if row and row["status"] == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif row:
            self.study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)

    def _suggested(self, trial: "Trial") -> Change:
        """What a trial changes: for each lever that belongs to its settings, one of the values or none."""
        change: dict[str, Any] = {}
        for lever in self.levers:
            if self._belongs(lever, change):
                values = _choices(lever)
                change |= values[trial.suggest_categorical(lever.name, list(values))]
        return change

    def _learn_of_grid(self) -> None:
        """Give TPE what the grid found, so that it knows something of each value from the first trial on."""
        from optuna.distributions import BaseDistribution, CategoricalDistribution
        from optuna.trial import create_trial

        known = {trial.user_attrs.get("grid") for trial in self.study.get_trials(deepcopy=False)}
        for cell in self.grid:
            row, turned = self.runner.row(cell), [lever for lever in self.levers if lever.name == cell.lever]
            value = value_of(row) if row else None
            if value is None or cell.name in known or not all(self._belongs(lever, {}) for lever in turned):
                continue
            there = [lever for lever in self.levers if self._belongs(lever, cell.change)]
            params = {lever.name: label(cell.change) if lever in turned else BASE for lever in there}
            space: dict[str, BaseDistribution] = {lever.name: CategoricalDistribution(list(_choices(lever))) for lever in there}
            self.study.add_trial(create_trial(params=params, distributions=space, value=value, user_attrs={"grid": cell.name}))

    def _belongs(self, lever: Lever, change: Change) -> bool:
        with suppress(UserError):  # settings that do not go together: the run will say so
            return lever.belongs(configuration(self.base, change))
        return False


def percents(run: Run) -> list[tuple[int, float]]:
    """The online probe of a run under way, as (per cent of the run, value), without those at its start and its end."""
    total, rows = steps_of(run), run.metrics()
    seen = [point for key in PROBE_KEYS for point in probe_points(rows, key)]
    return [(100 * step // total, value) for step, value in seen if 0 < step < total] if total else []


def _choices(lever: Lever) -> dict[str, Change]:
    return {BASE: {}, **{label(value): value for value in lever.values}}


def _mend(journal: Path) -> None:
    """Drop a last line that a kill cut short: Optuna would write on behind it."""
    text = journal.read_bytes() if journal.is_file() else b""
    if not text.endswith(b"\n"):
        journal.write_bytes(text[: text.rfind(b"\n") + 1])
