"""A new run before its first step: its settings chosen, its images measured, its weights made or taken."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jepakit.artifacts.init import Start, put_in, read_start, require_fits
from jepakit.artifacts.teacher import with_teacher
from jepakit.config.choice import Choice, resolve_with_data
from jepakit.config.config import Config, given_layer, layer_from, merge, method_layer, read_yaml
from jepakit.config.released_yaml import ReleasedYaml, has_released_groups, released_yaml
from jepakit.config.renamed import current_layer
from jepakit.core import distributed
from jepakit.core.errors import UserError, plain
from jepakit.core.files import user_path
from jepakit.data.findings import Tally
from jepakit.data.labels.table import COLUMN_WORDS, GivenTable, table_layer, table_settings
from jepakit.data.opening import GivenImages, given_images
from jepakit.data.sources import Source
from jepakit.data.statistics import fitted, measured_instead
from jepakit.data.training_part import split_sentences, training_part
from jepakit.training.step import Training

log = logging.getLogger("jepakit")


def given_settings(
    words: Sequence[str] | str | None,
    settings: Mapping[str, Any],
    table: GivenTable | None,
    init_from: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """The layer of all that a caller of `pretrain` gave beside a recipe, a method and a file; settings: its keywords, those of
    a table's columns among them. Raises UserError."""
    columns = {name: settings[name] for name in COLUMN_WORDS if name in settings}
    groups = {name: value for name, value in settings.items() if name not in columns}
    given = merge(given_layer(words, groups), table_layer(table_settings(table, columns)))
    return given if init_from is None else merge(given, {"init": {"path": os.fspath(init_from)}})


def chosen_settings(
    data: GivenImages | None,
    recipe: str | None,
    method: str | None,
    config: str | Path | Mapping[str, Any] | None,
    given: dict[str, Any],
) -> tuple[Config, Source, Choice | ReleasedYaml, Start | None]:
    """The settings of a new run: recipe, method, the file, the command line's words; its images; the weights it begins from.

    Those weights' shape lies under all that the user says, and over the recipe.
    """
    file = (
        layer_from(config, "config") if isinstance(config, Mapping) else read_yaml(user_path(config, "config")) if config else {}
    )
    released = None
    if has_released_groups(file):
        where = "config" if isinstance(config, Mapping) else str(config)
        released = released_yaml(file, where, own_data=data is not None or bool(given.get("data")))
        file = released.layer
    file = current_layer(file, "config", tell=True)
    asked_recipe, asked_method = given.pop("recipe", None), given.pop("method", None)
    recipe, method = recipe or asked_recipe, method or asked_method
    if recipe and file.get("recipe") not in (None, recipe):
        also = "" if released else ", or 'recipe' in the file"
        raise UserError(f"the config holds recipe {file['recipe']}, not {recipe}: leave out --recipe{also}")
    recipe = recipe or file.get("recipe") or ("small" if config else None)
    name, opened = (None, None) if data is None else given_images(data)
    layers = [file, method_layer(method) if method else {}, given, {} if data is None else {"data": name}]
    try:
        start = read_start(layers, sizes_are_chosen=not recipe)
        if start:
            layers = [start.settings, *layers, {"init": {"path": start.path, "parts": start.parts}}]
        found, source, choice = resolve_with_data(recipe, file.get("method"), *layers, source=opened)
    except UserError as error:
        raise UserError(released.in_their_words(str(error), given) if released else str(error)) from None
    return found, source, released or choice, start


@dataclass(frozen=True)
class Beginning:
    """A new run before its first step: what it trains, what was taken from other weights, and what the images were like."""

    training: Training
    choice: Choice | ReleasedYaml
    taken: Any
    split: str
    warnings: tuple[str, ...]

    def say(self) -> None:
        """Log it."""
        config, images = self.training.config, len(self.training.loader.source)
        self.choice.say(log)
        if self.taken:
            self.taken.say(log)
        steps, name = self.training.steps, config.method or "a method of your own"
        log.info(
            "%s on %s: %d images, %d steps of %d", name, plain(self.training.source.name), images, steps, config.optim.batch_size
        )
        log.info("%s", self.split)
        for warning in self.warnings:
            log.warning("%s", plain(warning))


def beginning(chosen: Config, source: Source, choice: Choice | ReleasedYaml, start: Start | None) -> Beginning:
    """The start of a run with these settings: its images measured, its weights made or taken. Raises UserError."""
    distributed.allow_silence(chosen.run.timeout_seconds)
    distributed.doing("while the images were measured")
    if start:  # before the images are measured
        distributed.agreed(partial(require_fits, start.weights, chosen, chosen.images.channels))
    threads, seconds = chosen.run.loader_threads, chosen.run.read_timeout_seconds
    part, given_images, tally = training_part(source, chosen.images), chosen.images, Tally()
    images = distributed.from_main(partial(fitted, given_images, part, threads=threads, seconds=seconds, tally=tally))

    def prepared() -> tuple[Training, Any]:
        distributed.doing("while the model was made")
        config, teacher = with_teacher(chosen.model_copy(update={"images": images}))
        training = Training.prepare(config, source, teacher)
        return training, put_in(training.jepa, start) if start else None

    training, taken = distributed.agreed(prepared)
    split, *warnings = split_sentences(source, chosen.images)
    warnings += [*source.notes, *measured_instead(given_images, images), *tally.notes(part, len(part))]
    return Beginning(training, choice, taken, split, tuple(warnings))
