"""Probes side by side: which are possible, on features of images or of groups, each on every encoder and baseline."""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from jepakit.core import distributed
from jepakit.core.errors import UserError
from jepakit.core.progress import progress
from jepakit.data.identity import Identity
from jepakit.data.sources import Labels, Source, evenly
from jepakit.data.unread_files import some
from jepakit.evaluation.aggregate import means, one_for_each_group, seen_groups
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME, EvaluatedModel
from jepakit.evaluation.features import PCA, RAW, FrozenFeatures, extract, pca
from jepakit.evaluation.metrics import Predictions, metrics_named
from jepakit.evaluation.probe_results import Baselines, ProbeResults, ResultRow
from jepakit.evaluation.probes.logistic import EXPECTED
from jepakit.evaluation.probes.protocol import LAST4, NOT_OF_NUMBERS, PROBES, TOKENS, Protocol, on_held_fifth
from jepakit.evaluation.probes.spectrum import lidar_rows
from jepakit.evaluation.shortcuts import Sites, save_shortcuts, shortcuts
from jepakit.evaluation.split import SplitRows, labelled, train_and_test, without_both_answers

log = logging.getLogger("jepakit")


def tasks_for_labels(tasks: Sequence[str], labels: Labels | None) -> list[str]:
    """Without classifiers' recipes where labels are numbers, which is said. Raises UserError where nothing is left."""
    left_out = [task for task in tasks if task in NOT_OF_NUMBERS] if labels is not None and labels.kind == "number" else []
    left = [task for task in tasks if task not in left_out]
    if left_out:
        said = f"{' and '.join(left_out)}: a recipe of classifiers, where {labels.name if labels else ''} are numbers"
        if not {*left} - {"rankme", "lidar"}:
            raise UserError(f"{said}: give --tasks linear, which is ridge regression there")
        log.warning("left out: %s", said)
    return left


def require_probes(source: Source, labels: Labels, ids: SplitRows, protocol: Protocol, sites: Labels | None = None) -> None:
    """Raises UserError now, not after the work, where there is nothing to probe, or no such metric, or no groups or sites."""
    metrics_named(protocol.metric, labels.kind)
    if protocol.aggregate == "group":
        labels, ids, _ = one_for_each_group(labels, ids)
    if protocol.shortcuts:
        Sites.at(sites, ids, protocol.shortcuts)
    one_sided = without_both_answers(labels, train_and_test(source, labels, ids))
    if one_sided:
        log.warning("labels with one answer only in training or test, so in no mean over labels: %s", some(one_sided))


@dataclass(frozen=True)
class Question:
    """What is asked of a source's images: tasks that their labels allow, of the samples at places `ids`.

    seen (n,): for each sample of the source, whether pretraining saw it, None where that is not known; sites: labels that
    `protocol.shortcuts` names.
    """

    source: Source
    tasks: Sequence[str]
    ids: SplitRows
    protocol: Protocol
    seen: NDArray[np.bool_] | None = None
    sites: Labels | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        tasks: Sequence[str],
        protocol: Protocol,
        seen: NDArray[np.bool_] | None = None,
        sites: Labels | None = None,
    ) -> "Question":
        """Of as many images as the tasks need. Raises UserError where they cannot be answered, before any work."""
        labels, limit = source.labels, protocol.images_limit
        tasks = tasks_for_labels(tasks, labels)
        if labels is not None and {*tasks} & {*PROBES, "finetune"}:
            ids = labelled(source, labels, limit)
            require_probes(source, labels, ids, protocol, sites)
        else:  # RankMe alone needs no more than it counts
            ids = evenly(len(source), min(limit or len(source), protocol.rankme.images))
        return cls(source, tasks, ids, protocol, seen, sites)

    @property
    def probes(self) -> list[str]:
        """Tasks on frozen features that need labels, which are there."""
        return [task for task in self.tasks if task in PROBES and self.source.labels is not None]

    @property
    def on_features(self) -> list[str]:
        """Tasks on frozen features that can be answered: probes and ranks."""
        return [task for task in self.tasks if task in ("rankme", "lidar") or task in self.probes]

    def say_if_unlabelled(self) -> None:
        """Warn where tasks were asked for that need labels, and there are none."""
        if self.source.labels is None and {*self.tasks} - {"rankme", "lidar"}:
            said = "%s has no labels: put images into sub-folders, one a class, to probe; RankMe was measured"
            log.warning(said, self.source.name)

    def features(self, judged: EvaluatedModel) -> tuple[dict[str, FrozenFeatures], SplitRows]:
        """What the tasks read, of each encoder and of raw pixels by name, and the places that could be read.

        Several processes share the work, and the first has all of it.
        """
        labels, reads = self.source.labels, {*self.probes}
        with distributed.time_limit(judged.timeout_seconds):
            return extract(
                self.source,
                judged.encoders,
                self.ids,
                whole_image=labels is not None and labels.whole_image,
                last4=bool(reads & LAST4),
                tokens=bool(reads & TOKENS),
                precision=judged.precision,
                seconds=judged.seconds,
                symmetry=self.protocol.symmetry,
                raw=self.protocol.baselines,
            )

    def lidar(self, judged: EvaluatedModel) -> list[ResultRow]:
        """LiDAR of each encoder; several processes share the work."""
        p = self.protocol
        with distributed.time_limit(judged.timeout_seconds):
            return lidar_rows(self.source, judged.encoders, judged.masking, p.lidar, p.seed, judged.precision, judged.seconds)

    def require_alike(self, judged: EvaluatedModel) -> None:
        """Raises AgreedError where several processes judge different things, or two of them on one GPU."""
        asked = {"--tasks": ",".join(self.tasks), "the settings": self.protocol.model_dump_json()}
        images = {"what the images are called": Identity.of(self.source).names, "the number of images": str(len(self.ids))}
        judged.require_alike(asked | images)

    def results(self, judged: EvaluatedModel, labels: Labels, ids: SplitRows, *, grouped: bool = False) -> ProbeResults:
        """Of one probe, empty, for the samples at places `ids`; grouped: scores are averaged over groups."""
        known, metric = judged.trained is not None, self.protocol.metric
        units: Literal["images", "groups"] = "groups" if self.protocol.aggregate == "group" else "images"
        return ProbeResults.of(self.source, labels, ids, self.seen, known=known, metric=metric, grouped=grouped, units=units)


def probe_features(
    judged: EvaluatedModel,
    question: Question,
    ids: SplitRows,
    features: dict[str, FrozenFeatures],
    baselines: Baselines | None = None,
) -> dict[str, list[ResultRow]]:
    """Probes of features of the samples at places `ids`, or of means over groups; where tokens are read, scores have the mean.

    The judged encoder's features come first. baselines: of several encoders that are judged on the same images, what was
    found of the others; those that are there are taken, not probed again, and the judged row gets its figure on the held fifth of
    the training images, `validation`; shortcuts are asked of those whose features are there. Returns rows by task.
    """
    labels, protocol, probes = question.source.labels, question.protocol, question.probes
    assert labels is not None  # there are no probes without
    grouped, results = protocol.aggregate == "group", dict[str, list[ResultRow]]()
    if grouped:
        of_tokens = {task: question.results(judged, labels, ids, grouped=True) for task in probes if task in TOKENS}
        results |= _probed(judged.folder, of_tokens, features, protocol, baselines) if of_tokens else {}
        of_images, (labels, ids, which) = ids, one_for_each_group(labels, ids)
        question = replace(question, seen=seen_groups(question.seen, of_images, ids, which))
        features, probes = means(features, which, len(ids)), [task for task in probes if task not in TOKENS]
    split = train_and_test(question.source, labels, ids)
    if RAW in features:
        raw = features[RAW].last
        features[PCA] = FrozenFeatures(pca(raw, split.train, min(judged.encoder.width, len(split.train), raw.shape[1])))
    probed = {task: question.results(judged, labels, ids) for task in probes}
    results |= _probed(judged.folder, probed, features, protocol, baselines) if probed else {}
    if protocol.shortcuts:
        at = Sites.at(question.sites, ids, protocol.shortcuts)
        problem = question.results(judged, labels, ids).problem
        groups = None if labels.groups is None else labels.groups[ids]
        names = [name for name in (judged.name, UNTRAINED_NAME, RAW) if name in features]
        results["shortcuts"] = rows = shortcuts(features, names, problem, split, at, groups, labels.name, protocol)
        save_shortcuts(judged.folder, rows, at.called, question.source.name, labels.name, protocol.seed)
    return results


def _probed(
    folder: Path,
    probed: Mapping[str, ProbeResults],
    features: Mapping[str, FrozenFeatures],
    protocol: Protocol,
    baselines: Baselines | None = None,
) -> dict[str, list[ResultRow]]:
    """Each probe on each encoder and baseline that has the features it needs, in parallel threads; rows by task."""
    jobs = [(task, name) for task in probed for name, x in features.items() if task not in TOKENS or x.tokens is not None]
    judged, threads = next(iter(features)), torch.get_num_threads()
    workers = min(len(jobs), threads)
    results: dict[str, list[ResultRow]] = {}

    def work(job: tuple[str, str]) -> tuple[ResultRow, Predictions]:
        torch.set_num_threads(max(1, threads // workers))  # small products gain more from side by side than from sharing
        task, name = job
        one, x, started = probed[task], features[name], time.monotonic()
        split, reads = one.split, {"last4": task in LAST4, "tokens": task in TOKENS}
        train, test = x.rows(split.train, **reads), x.rows(split.test, **reads)
        found, about = PROBES[task](train, test, one.problem, protocol)
        if baselines is not None and name == judged:
            about = {**about, "validation": on_held_fifth(task, train, one.problem, about, protocol)}
        return one.judge(name, found, {**about, "seconds": round(time.monotonic() - started, 1)})

    pool = ThreadPoolExecutor(workers, "jepakit-probe")
    try:
        with progress("probes", len(jobs)) as report, warnings.catch_warnings():
            warnings.filterwarnings("ignore", EXPECTED)  # once for all threads, since filters are the process's
            for done, ((task, name), outcome) in enumerate(zip(jobs, pool.map(work, jobs), strict=True), start=1):
                probed[task].note(*outcome)
                report(done, f"{task}, {name}")
                if done == len(jobs) or jobs[done][0] != task:  # its last: saved, whatever becomes of the next
                    if baselines is not None:
                        probed[task].share(baselines.setdefault(task, {}), judged)
                    results[task] = probed[task].save(folder, task, protocol)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return results
