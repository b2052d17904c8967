"""`evaluate --steps`: each kept encoder of a run on the same images, read once; metric against images seen."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from jepakit.artifacts.checkpoint import MANIFEST, step_name
from jepakit.artifacts.load import load, require_kept, run_and_step
from jepakit.artifacts.run import Run
from jepakit.core import distributed
from jepakit.core.errors import UserError
from jepakit.core.files import load_json, user_path
from jepakit.data.identity import Identity
from jepakit.data.labels.table import GivenTable, TableColumns, table_settings
from jepakit.data.opening import GivenImages
from jepakit.data.sources import Source
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME, EvaluatedModel, subject
from jepakit.evaluation.features import MOST_TOKENS, RAW, FrozenFeatures
from jepakit.evaluation.probe_results import Baselines, ResultRow
from jepakit.evaluation.probes.protocol import LAST4, TOKENS
from jepakit.evaluation.probes.spectrum import rankme_rows
from jepakit.evaluation.probing import Question, probe_features
from jepakit.evaluation.results import save_rows
from jepakit.evaluation.shortcuts import save_shortcuts, shortcut_tasks
from jepakit.evaluation.steps.step_results import STEPS_FILE, JudgedStep, StepResults, save_steps_figure
from jepakit.evaluation.tasks import DEFAULT, FROZEN, chosen_tasks, question_on, require_same_data, settings_of
from jepakit.model.encoder import Encoder
from jepakit.model.method import encoder_label

log = logging.getLogger("jepakit")
FIGURE = "steps.png"
WEIGHTS_AT_ONCE = 4 << 30  # bytes of encoders that look at an image together
FEATURES_AT_ONCE = 16 << 30  # bytes of their features; large ones lie in files


def evaluate_steps(
    runs: Sequence[Run | str | Path],
    steps: Sequence[int] | str = "all",
    data: GivenImages | None = None,
    tasks: Sequence[str] | str = DEFAULT,
    *,
    labels: str | None = None,
    table: GivenTable | None = None,
    out: str | Path | None = None,
    set: Sequence[str] | str = (),
    **columns: Unpack[TableColumns],
) -> tuple[list[StepResults], Path]:
    """Judge the encoder of each kept step of each run (run.keep_every_steps) by tasks on frozen features, and draw them.

    steps: 'all' that are kept, or some, in a list or with commas. All else is as of `evaluate`. Images are read, and baselines
    judged, once for all steps; a step that was judged so before is not judged again. Results go to RUN/evaluation/step-…, and
    together to RUN/evaluation/steps.json (of several runs with `out` to OUT/0, OUT/1 ...). Returns the results of each run, and
    the figure of all. Raises UserError as `evaluate`, and for a step that is not kept.
    """
    wanted, protocol = chosen_tasks(tasks), settings_of(set)
    place = None if out is None else user_path(out, "out")

    def asked() -> tuple[list[tuple[_Steps, list[int]]], Path, list[str]]:
        _require_frozen(wanted)
        opened = [_run_alone(run) for run in runs]
        which = [_asked_steps(run, steps) for run in opened]
        folders = [place / str(n) if place and len(runs) > 1 else place for n in range(len(runs))]
        judged = [subject(run, folder) for run, folder in zip(opened, folders, strict=True)]
        if data is None:
            require_same_data(judged)
        told = table_settings(table, columns)
        each = [
            _Steps.of(run, one, question_on(one, data, wanted, labels, protocol, told))
            for run, one in zip(opened, judged, strict=True)
        ]
        return list(zip(each, which, strict=True)), (place or judged[0].folder) / FIGURE, _names(opened)

    with distributed.process_group():
        runs_steps, figure, names = distributed.agreed(asked)
        found = [each.judge(which) for each, which in runs_steps]
        distributed.from_main(lambda: save_steps_figure(figure, dict(zip(names, found, strict=True))))
    return found, figure


def _require_frozen(tasks: Sequence[str]) -> None:
    """Raises UserError for what is not asked of frozen features of many encoders."""
    if others := " and ".join(task for task in tasks if task not in FROZEN):
        why = "takes an encoder's own passes over all images, each step as long as the first"
        raise UserError(f"--steps judges frozen features, and {others} {why}: give RUN@STEP for a few steps, without --steps")


def _run_alone(path: Run | str | Path) -> Run:
    given = user_path(path, "the run")
    run, step = run_and_step(given)
    if step is not None:
        raise UserError(f"{given}: with --steps give the run alone, {run}, and the step as --steps {step}")
    return Run.open(given)


def _asked_steps(run: Run, steps: Sequence[int] | str) -> list[int]:
    """Raises UserError for a step that is not kept."""
    if steps == "all":
        kept = run.kept_steps()
        if len(kept) < 3:
            log.warning("%s keeps step %s alone: run.keep_every_steps=N keeps more", run.path, " and ".join(map(str, kept)))
        return kept
    words = [word.strip() for word in steps.split(",")] if isinstance(steps, str) else [str(step) for step in steps]
    for word in words:
        require_kept(run, word)
    return sorted({int(word) for word in words})


def _names(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: their folders, with as much of the path as tells them apart."""
    paths = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len({*names}) == len(names):
            return names
    return [f"{'/'.join(path[-1:])} ({number})" for number, path in enumerate(paths, start=1)]


@dataclass
class _Steps:
    """A run whose steps are judged. judged: the run, whose untrained twin is a baseline; baselines, ranks: of these, by task."""

    run: Run
    judged: EvaluatedModel
    question: Question
    results: StepResults
    baselines: Baselines = field(default_factory=dict)
    ranks: dict[str, list[ResultRow]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, judged: EvaluatedModel, question: Question) -> "_Steps":
        of = {"data": question.source.name, **_digests(question.source), "settings": question.protocol.model_dump(mode="json")}
        of |= {"sites": question.sites.digest} if question.sites else {}
        return cls(run, judged, question, StepResults.read(judged.folder / STEPS_FILE, of))

    def judge(self, steps: Sequence[int]) -> StepResults:
        """All of the steps, those that were not judged before."""
        tasks, called = self.question.on_features, self.question.protocol.shortcuts
        tasks += [f"tells {called}"] if called else []
        self.question.require_alike(self.judged)
        todo = distributed.from_main(lambda: [s for s in steps if not self.results.has(s, self._weights(s), tasks)])
        if len(todo) < len(steps):
            log.info("%d of %d steps were judged before", len(steps) - len(todo), len(steps))
        for some in self._at_once(todo):
            self._judge_together(some)
        self.question.say_if_unlabelled()
        shown = [*tasks, *([f"{called} left out"] if called else [])]
        return distributed.from_main(lambda: self.results.only(steps, shown))

    def _at_once(self, steps: list[int]) -> Iterator[list[int]]:
        """Steps whose encoders, and what they make of the images, can be held together."""
        encoder, reads, n = self.judged.encoder, {*self.question.probes}, len(self.question.ids)
        height, width = encoder.images.height_width
        patches = height * width // encoder.vit.config.patch_size**2
        rooms = [
            WEIGHTS_AT_ONCE // (4 * sum(p.numel() for p in encoder.vit.parameters())),
            FEATURES_AT_ONCE // (4 * n * encoder.width * (5 if reads & LAST4 else 1)),
            *([MOST_TOKENS // (2 * n * encoder.width * patches) - 1] if reads & TOKENS else []),  # and the untrained twin's
        ]
        many = max(1, min(rooms))
        for start in range(0, len(steps), many):
            yield steps[start : start + many]

    def _judge_together(self, steps: Sequence[int]) -> None:
        """Steps whose features are made in one pass over the images; each is noted as it is done."""
        device, q = self.judged.encoder.device, self.question
        of_steps = distributed.agreed(lambda: {str(step): load(self._folder(step)).to(device) for step in steps})
        first = not self.ranks
        also = {UNTRAINED_NAME: self.judged.encoders[UNTRAINED_NAME]} if first else {}
        together = replace(self.judged, encoders={**of_steps, **also}).asked(q.protocol)
        features, ids = q.features(together)
        if not first:
            features.pop(RAW, None)
        ranks = {"rankme": distributed.from_main(lambda: rankme_rows(features, q.protocol.rankme, together.conditioned_names))}
        if "lidar" in q.tasks:
            ranks["lidar"] = q.lidar(together)
        if first:
            self.ranks = {task: [row for row in rows if row["name"] not in of_steps] for task, rows in ranks.items()}
        distributed.from_main(partial(self._judge_each, steps, together, ranks, features, ids))

    def _judge_each(
        self,
        steps: Sequence[int],
        together: EvaluatedModel,
        ranks: dict[str, list[ResultRow]],
        features: dict[str, FrozenFeatures],
        ids: Any,
    ) -> None:
        rest = {name: features.pop(name) for name in (UNTRAINED_NAME, RAW) if name in features}
        for step in steps:
            name = str(step)
            own = {task: next(row for row in rows if row["name"] == name) for task, rows in ranks.items()}
            self._judge(step, together.encoders[name], own, {name: features.pop(name), **rest}, ids)
            rest = {}

    def _judge(
        self, step: int, encoder: Encoder, ranks: dict[str, ResultRow], features: dict[str, FrozenFeatures], ids: Any
    ) -> None:
        """One step, whose features come first, with those of baselines where they were not judged yet."""
        label, q = encoder_label(encoder.which), self.question
        folder = self.judged.folder / step_name(step)
        model = replace(self.judged, encoders={label: encoder}, folder=folder)
        results = {
            task: save_rows(folder, task, q.source.name, [{**row, "name": label}, *self.ranks[task]], q.protocol)
            for task, row in ranks.items()
        }
        named = {label if name == str(step) else name: x for name, x in features.items()}
        if q.probes:
            results |= probe_features(model, q, ids, named, self.baselines)
        if (found := results.pop("shortcuts", None)) and q.source.labels is not None:
            told = [found[0], *self.ranks.setdefault("shortcuts", found[1:])]  # baselines, asked once
            save_shortcuts(folder, told, q.protocol.shortcuts, q.source.name, q.source.labels.name, q.protocol.seed)
            results |= shortcut_tasks(told)
        rows = {task: [{k: v for k, v in row.items() if k != "heads"} for row in found] for task, found in results.items()}
        assert self.judged.config is not None  # that of a run always is
        images = step * self.judged.config.optim.batch_size
        done = JudgedStep(step, images, self._weights(step), {task: found[0] for task, found in rows.items()})
        self.results.add(done, {task: found[1:] for task, found in rows.items()})
        self.results.save(self.judged.folder / STEPS_FILE)

    def _folder(self, step: int) -> Path:
        """A step's snapshot, which stays, or else its checkpoint."""
        snapshot = self.run.snapshots / step_name(step)
        return snapshot if snapshot.is_dir() else self.run.at_step(step)

    def _weights(self, step: int) -> str:
        """The sha256 of a kept step's weights, as its manifest has it."""
        try:
            sums = load_json(self._folder(step) / MANIFEST)
            return str(sums.get("encoder.safetensors") or sums["model.safetensors"])
        except (OSError, ValueError, KeyError, AttributeError):
            return ""  # reading the weights says what is wrong


def _digests(source: Source) -> dict[str, Any]:
    """What images and labels are recognised by."""
    identity, labels = Identity.of(source), source.labels
    found: dict[str, Any] = {"images": [identity.names, *(identity.content or ())]}
    if labels is not None:
        found |= {"labels": labels.name, "digest": labels.digest}
    return found
