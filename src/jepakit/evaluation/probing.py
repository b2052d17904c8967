"""Probes side by side: which are possible, on features of images or of groups, each on every encoder and baseline."""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning

from jepakit.core.errors import UserError
from jepakit.core.progress import progress
from jepakit.data.sources import Labels, Source
from jepakit.data.unread_files import some
from jepakit.evaluation.aggregate import means, one_for_each_group
from jepakit.evaluation.evaluated_model import UNTRAINED_NAME, EvaluatedModel
from jepakit.evaluation.features import PCA, RAW, FrozenFeatures, pca
from jepakit.evaluation.metrics import Predictions, metrics_named
from jepakit.evaluation.probe_results import ProbeResults, ResultRow
from jepakit.evaluation.probes.protocol import LAST4, NOT_OF_NUMBERS, PROBES, TOKENS, Protocol
from jepakit.evaluation.shortcuts import Sites, save_shortcuts, shortcuts
from jepakit.evaluation.split import SplitRows, train_and_test, without_both_answers

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


def probe_features(
    judged: EvaluatedModel,
    source: Source,
    labels: Labels,
    ids: SplitRows,
    features: dict[str, FrozenFeatures],
    probes: Sequence[str],
    protocol: Protocol,
    about: Mapping[str, Any],
    sites: Labels | None = None,
) -> dict[str, list[ResultRow]]:
    """Probes of features of the samples at places `ids`, or of means over groups; where tokens are read, scores have the mean.

    about: what `ProbeResults.of` takes. sites: of `protocol.shortcuts`. Returns rows by task.
    """
    grouped, results = protocol.aggregate == "group", dict[str, list[ResultRow]]()
    if grouped:
        of_tokens = {task: ProbeResults.of(source, labels, ids, **about, grouped=True) for task in probes if task in TOKENS}
        results |= _probed(judged.folder, of_tokens, features, protocol) if of_tokens else {}
        labels, ids, which = one_for_each_group(labels, ids)
        features, probes = means(features, which, len(ids)), [task for task in probes if task not in TOKENS]
    split, raw = train_and_test(source, labels, ids), features[RAW].last
    features[PCA] = FrozenFeatures(pca(raw, split.train, min(judged.encoder.width, len(split.train), raw.shape[1])))
    probed = {task: ProbeResults.of(source, labels, ids, **about) for task in probes}
    results |= _probed(judged.folder, probed, features, protocol) if probed else {}
    if protocol.shortcuts:
        at = Sites.at(sites, ids, protocol.shortcuts)
        problem = ProbeResults.of(source, labels, ids, **about).problem
        groups = None if labels.groups is None else labels.groups[ids]
        names = (judged.name, UNTRAINED_NAME, RAW)
        results["shortcuts"] = rows = shortcuts(features, names, problem, split, at, groups, labels.name, protocol)
        save_shortcuts(judged.folder, rows, at.called, source.name, labels.name, protocol.seed)
    return results


def _probed(
    folder: Path, probed: Mapping[str, ProbeResults], features: Mapping[str, FrozenFeatures], protocol: Protocol
) -> dict[str, list[ResultRow]]:
    """Each probe on each encoder and baseline that has the features it needs, in parallel threads; rows by task."""
    jobs = [(task, name) for task in probed for name, x in features.items() if task not in TOKENS or x.tokens is not None]
    threads = torch.get_num_threads()
    workers = min(len(jobs), threads)
    results: dict[str, list[ResultRow]] = {}

    def work(job: tuple[str, str]) -> tuple[ResultRow, Predictions]:
        torch.set_num_threads(max(1, threads // workers))  # small products gain more from side by side than from sharing
        task, name = job
        one, x, started = probed[task], features[name], time.monotonic()
        split, reads = one.split, {"last4": task in LAST4, "tokens": task in TOKENS}
        found, about = PROBES[task](x.rows(split.train, **reads), x.rows(split.test, **reads), one.problem, protocol)
        return one.judge(name, found, {**about, "seconds": round(time.monotonic() - started, 1)})

    pool = ThreadPoolExecutor(workers, "jepakit-probe")
    try:
        with progress("probes", len(jobs)) as report, warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # once for all threads, since filters are the process's
            for done, ((task, name), outcome) in enumerate(zip(jobs, pool.map(work, jobs), strict=True), start=1):
                probed[task].note(*outcome)
                report(done, f"{task}, {name}")
                if done == len(jobs) or jobs[done][0] != task:  # its last: saved, whatever becomes of the next
                    results[task] = probed[task].save(folder, task, protocol)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return results
