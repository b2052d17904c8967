"""The verb `evaluate`: tasks on frozen encoders beside honest baselines, results as JSON, arrays and a table."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from pydantic import ValidationError

from jepakit.artifacts.run import Run
from jepakit.config.config import overrides, validation_sentence
from jepakit.core import distributed
from jepakit.core.compare import Difference
from jepakit.core.errors import UserError, checked, nearest, plain
from jepakit.core.files import user_path
from jepakit.data.labels.table import GivenTable, TableColumns, TableSettings, table_settings
from jepakit.data.opening import GivenImages, given_images, open_given
from jepakit.data.sources import Source
from jepakit.data.statistics import read_usable
from jepakit.evaluation.dense.davis import davis
from jepakit.evaluation.dense.segmentation import boxes, segmentation
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME, EvaluatedModel, subject
from jepakit.evaluation.features import FrozenFeatures, batches, in_batches, say_left_out
from jepakit.evaluation.pictures import save_pictures
from jepakit.evaluation.probe_results import ResultRow
from jepakit.evaluation.probes.finetune import finetune
from jepakit.evaluation.probes.finetune_recipe import recipe_for
from jepakit.evaluation.probes.logistic import as_predictions
from jepakit.evaluation.probes.protocol import PROBES, Protocol
from jepakit.evaluation.probes.spectrum import rankme_rows
from jepakit.evaluation.probing import Question, probe_features
from jepakit.evaluation.results import differences, save_rows
from jepakit.evaluation.split import SplitRows
from jepakit.evaluation.train_test_overlap import seen_in_training
from jepakit.model.images import ImageSettings, require_square

log = logging.getLogger("jepakit")
FROZEN = ("rankme", "lidar", *PROBES)  # on features that are made once
DENSE = ("segmentation", "boxes", "davis")  # these have data of their own kind
TASKS = (*FROZEN, "finetune", *DENSE)
DEFAULT = ("rankme", "knn", "linear")


@checked
def evaluate(
    run: Run | str | Path,
    data: GivenImages | None = None,
    tasks: Sequence[str] | str = DEFAULT,
    *,
    labels: str | None = None,
    table: GivenTable | None = None,
    out: str | Path | None = None,
    set: Sequence[str] | str = (),
    protocol: Protocol | None = None,
    **columns: Unpack[TableColumns],
) -> dict[str, list[ResultRow]]:
    """Judge a run, or anything that `jepakit.load` takes, on images (default: the run's own), beside baselines.

    data: as of `jepakit.pretrain`; (images, labels) where Python holds both. tasks: names of TASKS, or 'frozen': the papers'
    tasks on frozen features, all but logistic. labels: which labels, where a set has several. table, columns: as
    of `jepakit.pretrain`; default, without data: the run's own table. out: the folder for results
    (default RUN/evaluation). set: settings of the protocol as 'group.key=value'.
    Returns rows by task; a probe's have name, accuracy, low and high of its 95 % interval, and how it was trained. Raises
    UserError for mistakes that the user can mend.
    """

    def asked() -> Callable[[], dict[str, list[ResultRow]]]:
        wanted, how = chosen_tasks(tasks), protocol or settings_of(set)
        told = table_settings(table, columns)
        return _asked(subject(run, out).asked(how), data, wanted, labels, how, told)

    with distributed.process_group():
        return distributed.agreed(asked)()


def evaluate_both(
    runs: Sequence[Run | str | Path],
    data: GivenImages | None = None,
    tasks: Sequence[str] | str = DEFAULT,
    *,
    labels: str | None = None,
    table: GivenTable | None = None,
    out: str | Path | None = None,
    set: Sequence[str] | str = (),
    **columns: Unpack[TableColumns],
) -> tuple[list[dict[str, list[ResultRow]]], dict[str, dict[str, Difference]]]:
    """`evaluate` for two runs, and paired tests of the first minus the second: by task, then by name of the encoder.

    Results go to each run's folder, or to OUT/0 and OUT/1. Raises UserError as `evaluate`, and before any work where the two
    cannot be compared.
    """
    wanted, protocol = chosen_tasks(tasks), settings_of(set)
    places = [None if out is None else user_path(out, "out") / str(n) for n in range(len(runs))]

    def asked() -> tuple[list[Path], list[Callable[[], dict[str, list[ResultRow]]]]]:
        judged = [subject(run, place).asked(protocol) for run, place in zip(runs, places, strict=True)]
        if data is None:
            require_same_data(judged)
        if not {*wanted} & {*PROBES, "finetune"}:
            raise UserError(f"only {', '.join(PROBES)} and finetune can be paired: name one of them in --tasks")
        told = table_settings(table, columns)
        return [each.folder for each in judged], [_asked(each, data, wanted, labels, protocol, told) for each in judged]

    with distributed.process_group():
        folders, questions = distributed.agreed(asked)
        results = [answer() for answer in questions]
        done = [task for task in wanted if all(task in each for each in results)]
        return results, distributed.from_main(lambda: differences(folders[0], folders[1], done, protocol.metric))


def _asked(
    judged: EvaluatedModel,
    data: GivenImages | None,
    tasks: Sequence[str],
    labels: str | None,
    protocol: Protocol,
    table: TableSettings | None = None,
) -> Callable[[], dict[str, list[ResultRow]]]:
    """What answers these tasks, by all processes together. Raises UserError where they cannot be answered, before any work."""
    dense = [task for task in tasks if task in DENSE]
    if not dense:
        return partial(_on_images, judged, question_on(judged, data, tasks, labels, protocol, table))
    place, opened, _ = _images_of(judged, data, labels, table)
    _require_turnable(judged.encoder.images, protocol, tasks)
    if opened:
        raise UserError(f"{' and '.join(dense)} read a data set in its folder: give its path, not {opened.name}")
    return partial(_on_patches, judged, dense, place, user_path(place), protocol)


def question_on(
    judged: EvaluatedModel,
    data: GivenImages | None,
    tasks: Sequence[str],
    labels: str | None,
    protocol: Protocol,
    table: TableSettings | None,
) -> Question:
    """These tasks on images (default: the run's own), opened. Raises UserError as `evaluate`."""
    place, opened, table = _images_of(judged, data, labels, table)
    _require_turnable(judged.encoder.images, protocol, tasks)
    source = open_given(place, opened, labels, judged.encoder.images, table)
    for note in source.notes:
        log.warning("%s", plain(note))
    listed = bool(table and table.listed)
    seen = seen_in_training(judged.trained, source, place, listed=listed) if judged.trained else None
    sites = None
    if protocol.shortcuts:
        if not {*tasks} & {*PROBES}:
            raise UserError(f"--shortcuts asks frozen features: name one of {', '.join(PROBES)} in --tasks")
        if opened:
            raise UserError("--shortcuts takes other labels of a set that has several, so give images by a path, not from Python")
        of_sites = table.model_copy(update={"kind": "class"}) if table else None
        try:
            sites = open_given(place, None, protocol.shortcuts, judged.encoder.images, of_sites).labels
        except UserError as error:
            said = str(error).replace(" (--labels)", "")  # which it is not
            raise UserError(f"--shortcuts {protocol.shortcuts}: {said}") from None
    return Question.of(source, tasks, protocol, seen, sites)


def require_same_data(judged: Sequence[EvaluatedModel]) -> None:
    """Raises UserError where runs that are to be compared saw other images."""
    other = next((each.data for each in judged if each.data != judged[0].data), judged[0].data)
    if other != judged[0].data:
        raise UserError(f"the runs saw other images, {judged[0].data} and {other}: say with --data which to compare on")


def _images_of(
    judged: EvaluatedModel, data: GivenImages | None, labels: str | None, table: TableSettings | None
) -> tuple[str, Source | None, TableSettings | None]:
    """Where the images lie, those that Python holds, and the table: without data the run's own. Raises UserError."""
    if table is None and data is None and judged.config and judged.config.table.file:
        table = judged.config.table
    place, opened = (judged.data or "", None) if data is None else given_images(data, None if table else labels)
    if not place:
        raise UserError("which images? give --data SRC")
    return place, opened, table


def chosen_tasks(tasks: Sequence[str] | str) -> tuple[str, ...]:
    """The tasks named in a list or in a string with commas, in the order of TASKS; RankMe is added where features are made.

    Raises UserError for an unknown name, for none, and for dense tasks beside others.
    """
    tasks = [task.strip() for task in tasks.split(",")] if isinstance(tasks, str) else tasks
    if not {*tasks} - {""}:
        raise UserError(f"which tasks? choose from frozen, {', '.join(TASKS)}")
    set_of_papers = [task for task in FROZEN if task != "logistic"]  # exact, and too slow for many features
    wanted = [each for task in tasks for each in (set_of_papers if task == "frozen" else (task,))]
    for task in wanted:
        if task not in TASKS:
            raise UserError(f"unknown task '{task}': choose from frozen, {', '.join(TASKS)}{nearest(task, TASKS)}")
    if {*wanted} & {*DENSE} and not {*wanted} <= {*DENSE}:
        raise UserError(f"{', '.join(DENSE)} have data of their own kind: evaluate them apart from other tasks")
    return tuple(task for task in TASKS if task in wanted or (task == "rankme" and {*wanted} & {*FROZEN}))


def settings_of(words: Sequence[str] | str) -> Protocol:
    """The protocol with settings from 'group.key=value' words. Raises UserError, which gives the nearest name."""
    try:
        return Protocol.model_validate(overrides(words, Protocol))
    except ValidationError as error:
        raise UserError(validation_sentence(error, "evaluate", Protocol)) from None


def _on_images(judged: EvaluatedModel, question: Question) -> dict[str, list[ResultRow]]:
    """Several processes make what is asked of together; the first asks, and writes."""
    source, tasks, ids, results = question.source, question.tasks, question.ids, dict[str, list[ResultRow]]()
    question.require_alike(judged)
    if made := "rankme" in tasks:
        features, ids = question.features(judged)
        results |= distributed.from_main(partial(_of_features, judged, question, features, ids))
    if "lidar" in tasks:
        rows = question.lidar(judged)
        results["lidar"] = distributed.from_main(lambda: save_rows(judged.folder, "lidar", source.name, rows, question.protocol))
    if "finetune" in tasks and source.labels is not None:
        results["finetune"] = distributed.from_main(partial(_finetuned, judged, question, ids if made else None))
    question.say_if_unlabelled()
    return results


def _on_patches(
    judged: EvaluatedModel, tasks: Sequence[str], place: str, root: Path, protocol: Protocol
) -> dict[str, list[ResultRow]]:
    judged.require_alike({"--tasks": ",".join(tasks), "--data": place, "the settings": protocol.model_dump_json()})
    results = {}
    for task in tasks:
        rows = _dense(judged, task, root, protocol)
        results[task] = distributed.from_main(partial(save_rows, judged.folder, task, place, rows, protocol))
    return results


def _of_features(
    judged: EvaluatedModel, question: Question, features: dict[str, FrozenFeatures], ids: SplitRows
) -> dict[str, list[ResultRow]]:
    """RankMe, pictures and probes of frozen features."""
    source, p = question.source, question.protocol
    rows = rankme_rows(features, p.rankme, judged.conditioned_names)
    results = {"rankme": save_rows(judged.folder, "rankme", source.name, rows, p)}
    if judged.config:
        save_pictures(judged.folder / "pictures.npz", judged.config, source, features[judged.name].last, ids)
    return results | (probe_features(judged, question, ids, features) if question.probes else {})


def _require_turnable(images: ImageSettings, protocol: Protocol, tasks: Sequence[str]) -> None:
    """Raises UserError for a symmetry that the encoder's images do not have, or a task that averages nothing."""
    if protocol.symmetry and {*tasks} & {*DENSE}:
        raise UserError(f"symmetry={protocol.symmetry}: {', '.join(DENSE)} average nothing over turns: leave it out")
    asked = {"": protocol.symmetry, "finetune.": protocol.finetune.symmetry if "finetune" in tasks else None}
    for group, symmetry in asked.items():
        try:
            if symmetry == "d4":
                require_square(images.height_width)
        except ValueError as error:
            raise UserError(f"evaluate: {group}{error}") from None


def _readable(source: Source, ids: SplitRows, images: ImageSettings, seconds: float) -> SplitRows:
    """Places of the samples that can be read, with the encoder's bands; the others are named."""
    kept: list[int] = []
    for good, bad in batches(source, in_batches(ids), lambda index: read_usable(source, index, images).shape, seconds):
        say_left_out(bad)
        kept += [index for index, _ in good]
    return np.array(kept, np.int64)


def _finetuned(judged: EvaluatedModel, question: Question, readable: SplitRows | None) -> list[ResultRow]:
    """Fine-tuning end to end, of the judged encoder and of the untrained one, which is then trained from scratch."""
    source, protocol = question.source, question.protocol
    assert source.labels is not None
    ids = _readable(source, question.ids, judged.encoder.images, judged.seconds) if readable is None else readable
    results = question.results(judged, source.labels, ids, grouped=protocol.aggregate == "group")
    split, shape = results.split, judged.encoder.vit.config
    settings = protocol.finetune.over(recipe_for(shape.width, shape.depth))
    how: dict[str, Any] = {"precision": judged.precision, "seconds": judged.seconds, "symmetry": protocol.symmetry}
    y, rows = results.labels.y, (results.ids[split.train], results.ids[split.test])
    for name in (each for each in (judged.name, UNTRAINED_NAME) if each in judged.encoders):
        log.info("fine-tuning the %s", name)
        scores, about = finetune(
            judged.encoders[name], source, *rows, y, len(results.labels.classes), settings, protocol.seed, **how
        )
        results.enter(name, as_predictions(scores, split.test_labels, logits=True), about)
    return results.save(judged.folder, "finetune", protocol)


def _dense(judged: EvaluatedModel, task: str, root: Path, protocol: Protocol) -> list[ResultRow]:
    shared: dict[str, Any] = {"precision": judged.precision, "seconds": judged.seconds, "keep": judged.folder / f"{task}.npz"}
    if task == "segmentation":
        return segmentation(judged.encoders, root, **dict(protocol.segmentation), **shared, seed=protocol.seed)
    if task == "boxes":
        return boxes(judged.encoders, root, **dict(protocol.boxes), **shared, seed=protocol.seed)
    return davis(judged.encoders, root, **dict(protocol.davis), **shared)
