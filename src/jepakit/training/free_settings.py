"""What of a run's settings may change when it goes on: how it runs, and where what it reads lies now."""

from collections.abc import Mapping
from typing import Any

from jepakit.config.config import Config
from jepakit.core.errors import UserError
from jepakit.model.targets import FeatureTargets


def with_free_settings(config: Config, other: Config) -> Config:
    """A config with another's values of what may change when a run goes on: how it runs, and where its images and teacher are."""
    images, target = config.images.model_copy(update={"max_bad": other.images.max_bad}), config.target
    table = config.table.model_copy(update={"file": other.table.file}) if config.table.file and other.table.file else config.table
    if _has_teacher(config) and _has_teacher(other):
        target = target.model_copy(update={"teacher": other.target.teacher})  # type: ignore[union-attr]
    moved = {"run": other.run, "data": other.data, "table": table, "images": images, "target": target}
    return config.model_copy(update=moved)


def _has_teacher(config: Config) -> bool:
    return isinstance(config.target, FeatureTargets) and config.target.teacher is not None


def require_free(changes: Mapping[str, Any], config: Config) -> None:
    """Raises UserError for changes to a run with these settings that a resume cannot make."""
    free = {"images": {"max_bad"}, "target": {"teacher"} if _has_teacher(config) else set()}
    free["table"] = {"file"} if config.table.file else set()
    may = [key for key, given in changes.items() if isinstance(given, Mapping) and {*given} == free.get(key)]
    fixed = [key for key in changes if key not in ("run", "data", *may)]
    if fixed:
        length = fixed[0] == "optim" and {"epochs", "steps"} & {*changes["optim"]}
        why = (
            ": its length is fixed from the start, as the schedules run to its end; another length is a new run" if length else ""
        )
        raise UserError(
            f"--resume goes on with the run's own settings; only run.* and images.max_bad may change, and data, table.file or a "
            f"frozen target.teacher where they have moved, not {fixed[0]}{why}"
        )
