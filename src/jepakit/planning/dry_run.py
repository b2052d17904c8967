"""`jepakit pretrain --dry-run`: what a pretraining would begin with, and what it would take. Nothing is written or trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepakit.artifacts.run import Run
from jepakit.config.commented import commented_yaml
from jepakit.config.recipes import sources
from jepakit.core.errors import UserError, checked
from jepakit.data.labels.table import GivenTable
from jepakit.data.opening import GivenImages
from jepakit.planning.plan import PROBE_SECONDS, forecast
from jepakit.planning.table import plan_table
from jepakit.training.beginning import beginning, chosen_settings, given_settings


@checked
def dry_run(
    data: GivenImages | None = None,
    out: str | Path | None = None,
    recipe: str | None = None,
    method: str | None = None,
    *,
    config: str | Path | None = None,
    resume: object = None,
    init_from: Run | str | Path | None = None,
    overwrite: bool = False,
    table: GivenTable | None = None,
    seconds: float = PROBE_SECONDS,
    set: Sequence[str] | str | None = None,
    **settings: Any,
) -> str:
    """The settings that `pretrain` of the same arguments would write to config.yaml, as YAML with comments, and in comments
    below it the forecast of `plan` for this machine, where steps are timed for some `seconds`.

    What was found in the images is logged, as `pretrain` logs it. Raises UserError for all that `pretrain` would refuse.
    """
    if resume is not None:
        raise UserError("--dry-run is of a new run: what a run that goes on has stands in its config.yaml")
    given = given_settings(set, settings, table, init_from)
    if out is not None:
        Run.new(out, overwrite=overwrite)
    chosen, source, choice, start = chosen_settings(data, recipe, method, config, given)
    begun = beginning(chosen, source, choice, start)
    begun.say()
    found = begun.training.config
    planned = forecast(found, source, seconds)
    lines = [f"# {line}".rstrip() for line in plan_table(planned).splitlines()]
    return commented_yaml(found, sources(found)) + "\n".join(["", *lines])
