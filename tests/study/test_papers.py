"""Studies that repeat the papers' tables: every point is a run that can be, shared where its settings are the same, and the
table beside the published numbers is complete."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from jepakit.config.config import overrides
from jepakit.core.compare import mean_and_margin
from jepakit.core.errors import UserError
from jepakit.study import study
from jepakit.study.cells import Cell, configuration, evaluations
from jepakit.study.comparison import ComparisonLine, as_data, comparison, comparison_table
from jepakit.study.comparison_figure import save_figure
from jepakit.study.panels import Panel, PaperStudy, Place, Point, StudyRuns, commands, layout
from jepakit.study.papers import PAPER_STUDIES
from jepakit.study.scales import Scale, about_base, base_words
from jepakit.study.theory import LinearJEPA


def runs_of(name: str, scale: Scale = "cpu", seeds: int = 1) -> StudyRuns:
    base = {"recipe": "small", **overrides(base_words(scale))}
    return layout(base, PAPER_STUDIES[name].panels(configuration(base, {})), seeds, 800, ["--tasks", "knn"])


def published(name: str, panel: str) -> list[str]:
    base = {"recipe": "small", **overrides(base_words("cpu"))}
    found = {each.name: each for each in PAPER_STUDIES[name].panels(configuration(base, {}))}[panel]
    assert "JEPA, table" in found.source
    return [point.published.split()[0] for point in found.points if point.published]


def test_baselines_are_asked_of_the_first_run_of_each_seed_alone() -> None:
    """They cost more than half of an evaluation. An untrained encoder is another for each seed, and its figure a mean of them."""
    cells = runs_of("methods", seeds=2).cells
    asked = [cell for cell in cells if cell.baselines]
    assert {cell.called for cell in asked} == {cells[0].called} and [cell.seed for cell in asked] == [0, 1]
    for cell in cells:
        alone = [line[-1] == "baselines=false" for line in evaluations(cell, "r", ["--tasks", "knn"])]
        assert not any(alone) if cell.baselines else all(alone)
    (looked_into, *_) = runs_of("pooling").cells  # whatever is turned at inference, an untrained encoder and pixels are the same
    own, *looks = evaluations(looked_into, "r", ["--tasks", "knn"])
    assert len(looks) == 7 and "baselines=false" not in own and all("baselines=false" in look for look in looks)


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
@pytest.mark.parametrize("name", PAPER_STUDIES)
def test_every_point_is_a_run_that_can_be_and_names_tell_runs_apart(name: str, scale: Scale) -> None:
    made = runs_of(name, scale)
    names = [cell.name for cell in made.cells]
    assert len({*names}) == len(names) >= 2 and not any("/" in each for each in names)
    assert {place.cell for place in made.places.values()} == {cell.called for cell in made.cells}
    looks = {(cell.called, look.name) for cell in made.cells for look in cell.looks} | {(c.called, "own") for c in made.cells}
    assert {(place.cell, place.look) for place in made.places.values()} <= looks


def test_points_of_the_same_settings_share_a_run_and_those_of_an_evaluation_too() -> None:
    places = runs_of("masking").places
    same = ("strategy", "multi_block"), ("target-scale", "(0.15, 0.2)"), ("context-scale", "(0.85, 1)"), ("targets", "4")
    assert len({places[each].cell for each in same}) == 1
    pooling = runs_of("pooling")
    assert len(pooling.cells) == 4  # both encoders conditioned, one of them, none: whatever is turned at inference
    looks = [place for (panel, _), place in pooling.places.items() if panel == "inference"]
    assert len({place.cell for place in looks}) == 1 and len({place.look for place in looks}) == len(looks)


def test_a_run_is_judged_on_its_way_at_quarters() -> None:
    for cell in runs_of("sample-efficiency").cells:
        assert [look.step for look in cell.looks] == [200, 400, 600]  # and at its end
        judged = commands(cell, [], "runs/s", [])[2]
        assert judged[1] == f"runs/s/{cell.name}@200" and judged[3] == f"runs/s/{cell.name}/evaluation/step-200"


def test_as_many_images_are_seen_whatever_the_batch() -> None:
    base = {"recipe": "small", **overrides(base_words("cpu"))}
    optims = [configuration(base, cell.change).optim for cell in runs_of("masking").cells]
    assert {o.batch_size * (o.steps or 0) for o in optims} == {64 * 800} and {o.batch_size for o in optims} == {16, 64, 256}
    assert all(o.warmup_steps * 10 == o.steps for o in optims if o.warmup_steps)


def test_a_frozen_teacher_is_the_run_on_pixels_of_the_same_seed_and_comes_before() -> None:
    cells = runs_of("targets", seeds=2).cells
    students = [cell for cell in cells if cell.teacher]
    assert [cell.seed for cell in students] == [0, 1]
    for student in students:
        (teacher,) = [cell for cell in cells if cell.called == student.teacher and cell.seed == student.seed]
        assert teacher.change == {"method": "mae_pixels"} and cells.index(teacher) < cells.index(student)
        assert f"target.teacher=runs/t/{teacher.name}" in commands(student, [], "runs/t", [])[0]


def test_published_numbers_are_those_of_the_papers() -> None:
    assert published("masking", "strategy") == ["54.2", "15.5", "20.2", "17.6"]  # I-JEPA, table 6
    assert published("masking", "target-scale") == ["54.2", "19.2", "39.2", "42.4", "38.9", "33.6"]  # table 8
    assert published("context-scale", "plain") == ["54.2", "49.3", "47.1", "31.2"]  # table 9
    assert published("masking", "targets") == ["54.2", "48.5", "22.0", "9.0"]  # table 10
    assert published("predictor", "depth") == ["64.0", "66.9"] and published("predictor", "width") == ["70.7", "68.4"]
    assert published("vicreg", "terms") == ["63.7", "68.3", "67.6", "69.5"]  # C-JEPA, table 3
    assert published("methods", "ec-tables-1-2") == ["74.8", "76.7"] and published("methods", "c-table-1") == ["72.9", "73.7"]


def test_intervals_are_students() -> None:
    mean, half = mean_and_margin([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)  # t of two degrees of freedom at .975
    assert mean_and_margin([5.0]) == (5.0, None)


def test_a_point_is_compared_with_the_first_of_its_panel_seed_by_seed() -> None:
    """Seeds 1 and 2 are 2 and 4 above; seed 0 of the first has no partner, and the mean of its three is not what counts."""
    base, turned = Point("base"), Point("turned", {"loss": "l1"})
    study = PaperStudy("?", lambda config: ())
    made = StudyRuns([Cell("p", {}, "base", 0)], {("p", "base"): Place("base", "own"), ("p", "turned"): Place("turned", "own")})
    knn = {("base", 0): 0.1, ("base", 1): 0.3, ("base", 2): 0.5, ("turned", 2): 0.54, ("turned", 1): 0.32}
    rows = [
        {"cell": cell, "seed": seed, "judged": "encoder", "evaluations": {"own": {"knn": {"encoder": [value]}}}}
        for (cell, seed), value in knn.items()
    ]
    first, second, *baselines = comparison(study, [Panel("p", (base, turned))], made, rows)
    assert not first.over_first and not baselines
    assert second.over_first["kNN"] == pytest.approx((4.0, 2.0))
    half = 12.7062 * 2**0.5 / 2**0.5  # t of one degree of freedom at .975; the deviation of 2 and 4 is the root of 2
    line = comparison_table([first, second], {}).splitlines()[3]
    assert line == f"| turned | 43.0 ± {12.7062 * 11:.1f} (+3.0 ± {half:.1f}) | 2 |"
    assert as_data([second])[0]["over_first"]["kNN"]["mean"] == pytest.approx(3.0)


def test_a_point_without_runs_is_a_line_all_the_same() -> None:
    lines = [ComparisonLine("p", "a", {"linear": (40.0, 42.0)}, "54.2"), ComparisonLine("p", "b", {}, "15.5")]
    text = comparison_table(lines, {"p": "a paper, table 6"}).splitlines()
    assert text[0] == "| p | linear | seeds | published |" and text[3] == "| b | – | 0 | 15.5 |"
    assert text[2] == "| a | 41.0 ± 12.7 | 2 | 54.2 |" and text[-1] == "Published: a paper, table 6."
    assert len({line.count("|") for line in text[:4]}) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "maskin"}, "'masking'"),
        ({"name": "masking"}, "benchmarks/textures.py"),
        ({"name": "masking", "scale": "smok"}, "'smoke'"),
        ({"name": "small-data", "scale": "paper"}, "no paper"),
        ({"name": "ema", "trials": 2}, "small-data"),
        ({"name": "ema", "scale": "smoke", "levers": ["momentun"]}, "'momentum'"),
    ],
)
def test_mistakes_end_in_a_sentence(asked: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        study(out=tmp_path / "out", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_page_says_which_method_the_base_is() -> None:
    method = str(configuration({"recipe": "small", **overrides(base_words("cpu"))}, {}).method)
    assert about_base("cpu", method).startswith("The base is C-JEPA")
    assert about_base("cpu", "ec_ijepa").startswith("The base is `ec_ijepa`, as asked, not C-JEPA")


def test_at_paper_scale_commands_are_printed_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepakit.study.scales._hours", lambda recipe, given, cell: 10.0)
    assert study("predictor", out=tmp_path / "out", scale="paper", seeds=1) == [] and not (tmp_path / "out").exists()
    said = capsys.readouterr().out.splitlines()
    trained = [line for line in said if line.startswith("jepakit pretrain --data IMAGENET --recipe ijepa_vitl16 ")]
    assert len(trained) == 5 and any("predictor.width=1024" in line for line in trained)  # depth 12 and width 384 are the base
    assert said[-1] == "# 5 runs, 50 hours on 16 A100-80 in all"


def test_a_study_of_real_runs_leaves_a_complete_table_and_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = study("targets", out=out, scale="smoke", levers=["teacher"], processes=2)
    assert [(row["status"], row["said"]) for row in rows] == [("finished", "")] * 2
    compared = json.loads((out / "comparison.json").read_text())
    assert [line["point"] for line in compared[:2]] == ["pixels", "frozen teacher"]
    assert all({"linear", "kNN", "RankMe"} <= {*line["measures"]} for line in compared[:2])
    assert ElementTree.parse(out / "figure.svg").getroot().tag.endswith("svg")
    (student,) = [row["settings"] for row in rows if row["settings"]["target"]["kind"] == "features"]
    assert student["target"]["teacher"].endswith("teacher-pixels-seed0") and student["loss"] == "l1"
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}
    assert study("targets", out=out, scale="smoke", levers=["teacher"], processes=2) == rows
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")} == before


@pytest.mark.parametrize(("published", "drawn"), [("74.5 linear", True), ("66.9 after 500 epochs", True), ("74.5 count", False)])
def test_a_published_number_of_another_set_is_not_drawn_beside_the_linear_probe(
    published: str, drawn: bool, tmp_path: Path
) -> None:
    save_figure(tmp_path / "f.svg", [ComparisonLine("ec", "a", {"linear": (44.0,), "count: linear": (16.5,)}, published)])
    assert (">published<" in (tmp_path / "f.svg").read_text()) == drawn


def test_order_flips_with_depth_in_the_study_as_in_the_closed_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = LinearJEPA.__init__

    def almost_aligned(model: LinearJEPA, *given: Any) -> None:
        """Off the closed form's start by what a CPU's rounding may be: steps that let it grow would give another time."""
        aligned(model, *given)
        draw = torch.Generator().manual_seed(0)
        for weight in (layer.weight.data for layer in [*model.encoder, model.predictor]):
            weight += 1e-12 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)

    monkeypatch.setattr(LinearJEPA, "__init__", almost_aligned)
    lines = study("theory", out=tmp_path, scale="smoke")
    ratios = {name: [line["measures"]["time"]["mean"] for line in lines if line["panel"] == name] for name in
              ("order flip, JEPA", "order flip, MAE")}  # fmt: skip
    jepa, mae = ratios.values()
    assert jepa[0] < 1 < jepa[1] and all(a < b for a, b in pairwise(jepa)) and max(mae) < 1
    assert all(
        line["measures"]["time"]["mean"] == pytest.approx(float(line["published"]), rel=0.02) for line in lines
    )  # closed forms
    assert "| depth 4 |" in (tmp_path / "table.md").read_text() and (tmp_path / "figure.svg").stat().st_size > 1000


def test_cells_without_looks_are_as_before() -> None:
    assert commands(Cell("a", {"loss": "l1"}, "a-l1", 3), ["--config", "b"], "r", ["--tasks", "knn"]) == [
        ["pretrain", "--config", "b", "--out", "r/a-l1-seed3", "loss=l1", "seed=3"],
        ["evaluate", "r/a-l1-seed3", "--tasks", "knn"],
    ]
