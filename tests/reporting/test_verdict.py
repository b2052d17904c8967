"""The verdict on top of a report: the headline and the sentence on when not to use the encoder, from the numbers."""

from pathlib import Path
from typing import Any

import pytest

from jepakit.reporting.reading import read
from jepakit.reporting.sections.summary import summary
from jepakit.reporting.sections.verdict import Verdict, verdict
from jepakit.reporting.wording import duration
from run_files import add_result, healthy, log_rows, make_run, scored


def judged(folder: Path, *rows: dict[str, Any], knn: list[dict[str, Any]] | None = None) -> Verdict:
    run = make_run(folder / "run", steps=3, evaluated=False)
    for name, each in {"linear": list(rows), **({"knn": knn} if knn else {})}.items() if rows else ():
        add_result(run, name, each, labels="kind", n_test=100)
    return verdict(read(run, 0, [run]))


def beside(encoder: float, untrained: float, pca: float) -> list[dict[str, Any]]:
    """Figures with intervals of 2 points to each side."""
    return [scored("target encoder", encoder), scored("untrained encoder", untrained), scored("pixel PCA", pca)]


@pytest.mark.parametrize(
    ("figures", "kind", "headline", "unfit"),
    [
        ((0.64, 0.40, 0.50), "good", "Better than every baseline", "where 36.0 % wrong answers are too many"),
        ((0.541, 0.40, 0.5), "good", "Better than every baseline", ""),  # 52.1 > 52: just apart
        ((0.539, 0.40, 0.5), "fair", "Level with pixel PCA", "where pixel PCA will do"),
        ((0.45, 0.40, 0.5), "fair", "Learned, but pixel PCA is better", "pixel PCA 50.0 % [48–52] (better)"),
        ((0.35, 0.40, 0.2), "bad", "Worse than an untrained encoder", "training did harm"),
        ((0.41, 0.40, 0.2), "bad", "No better than an untrained encoder", "no gain"),
        (
            (0.41, 0.40, 0.6),
            "bad",
            "No better than an untrained encoder, and below pixel PCA",
            "pixel PCA 60.0 % [58–62] (better)",
        ),
    ],
)
def test_the_headline_follows_from_the_intervals(
    figures: tuple[float, float, float], kind: str, headline: str, unfit: str, tmp_path: Path
) -> None:
    found = judged(tmp_path, *beside(*figures))
    assert (found.kind, found.headline) == (kind, headline)
    assert unfit in found.unfit and found.unfit.startswith("Do not use it") and found.unfit.count(".") >= 1


def test_without_an_interval_nothing_is_called_better(tmp_path: Path) -> None:
    rows = beside(0.64, 0.40, 0.50)
    rows[2] |= {"low": None, "high": None}
    assert judged(tmp_path, *rows).headline == "Level with pixel PCA"


def test_less_is_better_of_an_error(tmp_path: Path) -> None:
    rows = [{**row, "counts": "mae", "metrics": {"mae": {"value": row["accuracy"], "low": row["low"], "high": row["high"]}}}
            for row in [*beside(0.2, 0.6, 0.4), scored("raw pixels", 0.5)]]  # fmt: skip
    found = judged(tmp_path, *rows)
    assert found.headline == "Better than every baseline" and "MAE of 0.2" in found.unfit
    assert found.judged and found.judged.pixels and found.judged.pixels["name"] == "pixel PCA"  # 0.4, not the larger error


def test_another_probe_that_says_otherwise_is_told(tmp_path: Path) -> None:
    found = judged(tmp_path, *beside(0.64, 0.40, 0.50), knn=beside(0.5, 0.3, 0.5))
    assert found.headline == "Better than every baseline by the linear probe, not by kNN"
    assert "kNN on sets/toy (labels: kind) gives it 50.0 % [48–52], pixel PCA 50.0 % [48–52] (level with it)" in found.unfit

    found = judged(tmp_path / "level", *beside(0.41, 0.40, 0.50), knn=beside(0.5, 0.3, 0.5))
    assert (found.kind, found.headline) == ("fair", "Better than an untrained encoder by kNN, not by the linear probe")
    assert "untrained encoder 40.0 % [38–42] (level with it) and pixel PCA 50.0 % [48–52] (better)" in found.unfit
    worse = judged(tmp_path / "worse", *beside(0.35, 0.40, 0.50), knn=beside(0.5, 0.3, 0.5))
    assert worse.headline == "Worse than an untrained encoder"  # harm that is seen is not made up for


def test_not_judged_and_judged_without_baselines(tmp_path: Path) -> None:
    found = judged(tmp_path / "a")
    assert (found.kind, found.headline) == ("none", "Not judged yet") and "before it is judged" in found.unfit
    assert judged(tmp_path / "b", scored("target encoder", 0.9)).headline == "Judged without baselines"


def test_a_collapsed_run_is_not_called_level_and_an_alarm_is_never_kept_back(tmp_path: Path) -> None:
    rows = [
        healthy(i, **({"alarms": ["full collapse: targets are nearly one vector; try …"]} if i == 6 else {})) for i in range(9)
    ]
    for name, figures, headline in (
        ("bad", (0.5, 0.4, 0.5), "Collapsed"),
        ("good", (0.9, 0.4, 0.5), "Better than every baseline, yet the collapse doctor gave an alarm"),
    ):
        run = log_rows(make_run(tmp_path / name, evaluated=False), rows)
        add_result(run, "linear", beside(*figures))
        found = verdict(read(run, 0, [run]))
        assert found.headline == headline
    bare = log_rows(make_run(tmp_path / "bare", evaluated=False), rows)
    assert verdict(read(bare, 0, [bare])).unfit == "Do not use it: full collapse, targets are nearly one vector."


def test_what_was_trained_for_how_long_over_all_lives_of_a_run(tmp_path: Path) -> None:
    seconds = [60, 120, 30, 90]  # resumed after two rows: its clock begins anew
    run = make_run(tmp_path / "run", evaluated=False)
    log_rows(run, [{"step": 10 * (i + 1), "loss": 1.0, "images_per_second": 100, "seconds": s} for i, s in enumerate(seconds)])
    checkpoint = run / "checkpoints" / "step-00000040"
    checkpoint.mkdir(parents=True)
    checkpoint.joinpath("state.json").write_text('{"step": 40, "finished": false, "images": 1280}')
    top = summary([read(run, 0, [run])])["tops"]["run"]
    assert top["trained"].startswith("C-JEPA trained an encoder on 1,280 images of ")
    assert top["trained"].endswith("for 3 min 30 s: 40 of 100,000 steps, then it stopped.")
    assert dict(top["cost"]) == {"Training time": "3 min 30 s", "Pace": "100 images/s", "Images seen": "2,560, each 2 times"}


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 634, 7200, 7500, 273600)] == [
        "0 s", "1 min", "10 min 34 s", "2 h", "2 h 5 min", "3 d 4 h",
    ]  # fmt: skip
