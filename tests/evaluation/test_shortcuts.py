"""Shortcuts on features made of known parts: what tells the site, what tells the label, and what they say together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource, Labels
from jepakit.evaluation.features import FrozenFeatures
from jepakit.evaluation.probes.protocol import ProbeLabels, Protocol
from jepakit.evaluation.shortcuts import Sites, shortcuts, shortcuts_table
from jepakit.evaluation.split import Split
from jepakit.training.train import pretrain

N, SITES = 900, 4


def told(
    *,
    site: float,
    label: float,
    confounded: bool,
    number: bool = False,
    sites: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """The row of features that hold the site and the label so loudly; confounded: sites of one half have mostly one label."""
    draw = np.random.default_rng(0)
    of = draw.integers(0, SITES, N) if sites is None else sites
    y = (draw.uniform(size=N) < (np.where(of < SITES // 2, 0.9, 0.1) if confounded else 0.5)).astype(np.int64)
    x = draw.standard_normal((N, 12))
    x[:, :SITES] += site * np.eye(SITES)[of]
    x[:, SITES] += label * y
    wanted = torch.from_numpy(20 + 5 * y + draw.standard_normal(N)) if number else torch.from_numpy(y)
    train, test = np.arange(600), np.arange(600, N)
    split = Split(train, test, wanted[:600], wanted[600:], None)
    problem = ProbeLabels(wanted[:600], wanted[600:], 0 if number else 2, list, False, "r2" if number else "auroc")
    at = Sites("scanner", tuple("abcd"), of)
    features = {"encoder": FrozenFeatures(torch.from_numpy(x).float())}
    rows = shortcuts(features, ["encoder"], problem, split, at, groups, "lesion", Protocol())
    assert shortcuts_table(rows).splitlines()[-1] == f"encoder: {rows[0]['sentence']}"
    return rows[0]


@pytest.mark.parametrize("number", [False, True])
def test_a_label_that_is_known_by_its_site_alone_is_found_out(number: bool) -> None:
    row = told(site=6, label=0, confounded=True, number=number)
    assert row["site"]["value"] > 0.95 and row["chance"] == 0.25
    assert row["difference"]["low"] > 0 and row["p"] < 0.01 and row["label"]["value"] - row["left_out"]["value"] > 0.2
    assert "a part of it rests on scanner" in row["sentence"] and row["n_test"] == 300


def test_a_label_that_does_not_need_the_site_stays_where_the_site_is_left_out() -> None:
    row = told(site=6, label=3, confounded=False)
    assert row["site"]["value"] > 0.95 and row["label"]["value"] > 0.95 and row["left_out"]["value"] > 0.95
    assert abs(row["difference"]["value"]) < 0.02 and "no sign that it rests on scanner" in row["sentence"]


def test_features_that_do_not_tell_the_site_are_said_not_to() -> None:
    row = told(site=0, label=3, confounded=False)
    assert row["site"]["low"] < 0.25 < row["site"]["high"] and "do not tell scanner better than chance" in row["sentence"]


def test_where_every_test_image_is_of_a_new_site_nothing_can_be_left_out() -> None:
    of = np.r_[np.arange(600) % 2, 2 + np.arange(300) % 2]
    row = told(site=6, label=3, confounded=False, sites=of)
    assert "label" not in row and "no scanner has both training and test images" in row["sentence"]


def test_few_groups_that_all_tell_the_site_are_no_sign_that_there_is_no_shortcut() -> None:
    row = told(site=9, label=3, confounded=False, sites=np.arange(N) % 2, groups=np.arange(N) % 4)  # two of each of two sites
    assert row["site"]["value"] > 0.95 and row["site"]["low"] < row["chance"]
    assert "may tell scanner" in row["sentence"] and "do not tell" not in row["sentence"]


def test_where_each_site_is_a_group_single_images_are_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    of = np.random.default_rng(0).integers(0, SITES, N)
    row = told(site=6, label=0, confounded=True, sites=of, groups=of)
    assert row["site"]["low"] > 0.9 and "rests on scanner" in row["sentence"]
    assert "no scanner has several groups" in caplog.text


def test_sites_that_are_no_sites_are_one_sentence() -> None:
    ids, test = np.arange(6), np.zeros(6, bool)
    with pytest.raises(UserError, match="all labelled images are of one site"):
        Sites.at(Labels("site", ("a",), np.zeros(6, np.int64), test), ids, "site")
    numbers = Labels("age", (), np.zeros(6, np.int64), test, targets=np.arange(6.0))
    for labels in (numbers, None):
        with pytest.raises(UserError, match="as a class"):
            Sites.at(labels, ids, "age")


def test_evaluate_says_it_beside_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8"]
    words += ["predictor.depth=1", "images.size=16", "masking.min_keep=2", "optim.batch_size=8", "optim.steps=2", "run.threads=1"]
    run: Run = pretrain("emoji", tmp_path / "run", set=words)
    draw = np.random.default_rng(0)
    site, test = np.arange(160) % 4, np.arange(160) >= 100
    images = (40 * site[:, None, None, None] + draw.integers(0, 60, (160, 20, 20, 3))).astype(np.uint8)
    kinds = {
        None: Labels("lesion", ("no", "yes"), draw.integers(0, 2, 160), test),
        "site": Labels("site", tuple("abcd"), site, test),
    }
    monkeypatch.setattr("jepakit.data.opening.open_source", lambda _, name=None, **__: ArraySource("set", images, kinds[name]))
    cli.main(["evaluate", str(run.path), "--tasks", "knn", "--shortcuts", "site"])
    said = capsys.readouterr().out
    assert "site (chance 25.0 %)" in said and "accuracy, site left out" in said and "target encoder: the features" in said
    assert (run.path / "evaluation/shortcuts.json").is_file()
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run.path), "--tasks", "rankme", "--shortcuts", "site"])
    assert "--shortcuts" in capsys.readouterr().err and "knn" in said
