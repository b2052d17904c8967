"""The report: one page from the files of a run's folder, whatever of them is there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepakit.evaluation import results as written
from jepakit.evaluation.tasks import TASKS
from jepakit.reporting import RunFolderError, reading, report
from jepakit.reporting.figures import POINTS, short, thinned
from jepakit.reporting.sections.curves import CHANGED
from jepakit.training import collapse
from run_files import EVIL, add_result, healthy, log_rows, make_run, part, render, scored


def test_one_run(tmp_path: Path) -> None:
    text = render(make_run(tmp_path / "run"))
    assert "kNN 55.2 % [52–58], +14.9 over the untrained encoder, −1.3 against raw pixels." in text
    assert "Trained 490 of 100,000 steps" in text
    for title in ("Loss", "Prediction loss", "Similarity term", "Effective rank", "Standard deviation", "Tokens"):
        assert f"<h3>{title}</h3>" in text
    assert text.count('class="masked"') == 3
    assert text.count('<figure class="query">') == 2
    assert "Not measured yet" not in text
    assert [path.name for path in tmp_path.joinpath("run").glob("*report*")] == ["report.html"]


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    text = render(make_run(tmp_path / "run"))
    assert EVIL not in text
    assert text.count("faces &lt;script&gt;") == 3  # the verdict, the facts and the configuration
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, 9 classes" in text
    assert "● &lt;script&gt;" in text


def test_missing_evaluation_says_how_to_get_it(tmp_path: Path) -> None:
    text = render(make_run(tmp_path / "run", evaluated=False))
    assert text.count("<code>jepakit evaluate run <span>--data SRC</span></code>") == 3  # masks, probes, neighbours


def test_truncated_last_line_and_nonfinite_values(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.joinpath("metrics.jsonl").open("a") as lines:
        lines.write('{"step": 500, "loss": NaN}\n{"step": 510, "lo')
    text = render(run)
    assert "Trained 500 of" in text
    assert "1 unreadable line of metrics.jsonl skipped" in text
    assert "1 non-finite." in text


def test_run_without_a_logged_step(tmp_path: Path) -> None:
    text = render(make_run(tmp_path / "run", steps=0))
    assert "No training step has been logged yet." in text


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", steps=1200, accuracy=0.39)
    out = report([first, second], tmp_path / "new" / "both.html")
    assert [path.name for path in out.parent.iterdir()] == ["both.html"]
    text = render(first, second)
    assert text == out.read_text(encoding="utf-8")
    assert "2 runs side by side" in text
    assert "−1.3 against the untrained encoder (intervals overlap)" in text
    loss = text[text.index("<h3>Loss</h3>") :]
    loss = loss[: loss.index("</article>")]
    assert "stroke: var(--c0)" in loss and "stroke: var(--c1)" in loss


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    text = render(make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", evaluated=False))
    assert "a/run</h2>" in text and "b/run</h2>" in text
    assert "jepakit evaluate b/run <span>--data SRC</span>" in text


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.joinpath("config.yaml").unlink()
    with pytest.raises(RunFolderError, match=r"holds no run: it has no config\.yaml"):
        report([run])
    run.joinpath("config.yaml").write_text("theme: dark")
    with pytest.raises(RunFolderError, match="of something else"):
        report([run])


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.joinpath("config.yaml").write_text("[1, {")
    with pytest.raises(RunFolderError, match=r"config\.yaml"):
        report([run])
    assert not run.joinpath("report.html").exists()


def test_no_run_at_all() -> None:
    with pytest.raises(RunFolderError, match="at least one"):
        report([])


def test_thinned_keeps_means_and_gaps() -> None:
    steps = np.arange(10 * POINTS, dtype=np.float64)
    values = np.where(steps < 10, np.nan, steps)
    x, y = thinned(steps, values)
    assert len(x) == len(y) == POINTS
    assert np.isnan(y[0]) and np.allclose(x[1:], y[1:])


def test_short_numbers() -> None:
    assert [short(value) for value in (0, -0.25, 12000, 2e-5, 3.2e6)] == ["0", "−0.25", "12k", "2e−05", "3.2M"]


def test_the_report_reads_what_the_evaluation_and_the_doctor_write() -> None:
    assert {*reading.PROBE_NAMES, *reading.RANKS} == set(TASKS)
    assert reading.counted_figure is written.counted_figure
    assert (reading.SIGN_KEYS, reading.PROBE_METRICS) == (collapse.COLLAPSE_SIGNS, collapse.MEDIAN_ROWS)


def test_every_probe_that_is_there_has_a_table_in_order_and_no_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    about = {"labels": "kind", "classes": 3, "n_train": 90, "n_test": 30}
    for task in ("finetune", "logistic", "attentive", "low_shot", "transfer", "knn"):
        add_result(run, task, [scored("target encoder", 0.5), scored("untrained encoder", 0.3)], **about)
    text = render(run)
    titles = ("kNN", "Transfer probe", "Low-shot", "Attentive probe", "Logistic", "Fine-tuning")
    places = [text.index(f'<h3 class="sub">{title}</h3>') for title in titles]
    assert places == sorted(places)
    for title in ("Linear probe", "Segmentation mIoU", "DAVIS J&amp;F", "RankMe and LiDAR"):
        assert f">{title}</h3>" not in text
    for title in titles:
        assert f"<li>{title} 50.0 % [48–52], +20.0 over the untrained encoder.</li>" in text


def test_the_encoder_is_compared_with_the_best_that_pixels_give_and_overlaps_are_told_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    baselines = [scored("raw pixels", 0.51), scored("pixel PCA", 0.6), scored("majority class", 0.7)]
    add_result(run, "knn", [scored("target encoder", 0.5), scored("untrained encoder", 0.47), *baselines])
    add_result(run, "logistic", [scored("target encoder", 0.5), scored("untrained encoder", 0.47), *baselines[:1]])
    text = render(run)
    assert "kNN 50.0 % [48–52], +3.0 over the untrained encoder (intervals overlap), −10.0 against pixel PCA." in text
    assert "Logistic 50.0 % [48–52], +3.0 over the untrained encoder, −1.0 against raw pixels (both intervals overlap)." in text


def test_an_interval_is_never_shown_as_a_point(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    row = {"name": "target encoder", "accuracy": 1.0, "low": 0.9963, "high": 1.0}
    add_result(run, "knn", [row, {**row, "name": "untrained encoder", "accuracy": 0.0, "low": 0.0, "high": 0.0009}])
    text = render(run)
    assert "kNN 100.0 % [99.6–100.0]" in text and "[0.0–0.1]" in text and "[100–100]" not in text


def test_fewer_independent_images_than_test_images_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    about = {"labels": "kind", "classes": 3, "n_train": 5094, "n_test": 1290}
    add_result(run, "knn", [scored("target encoder", 0.5)], **about, independent=391)
    add_result(run, "logistic", [scored("target encoder", 0.5)], **about, independent=1290)
    text = render(run)
    assert "toy, kind, 3 classes, 5,094 train, 1,290 test images (391 independent)" in part(text, "kNN")
    assert "1,290 test images" in part(text, "Logistic") and "independent)" not in part(text, "Logistic")


def test_the_account_tells_the_head_chosen_and_the_best_on_test_images_and_draws(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    head = {"layers": EVIL, "kind": "bn", "lr": 0.05, "weight_decay": 0.0, "accuracy": {"held": 0.52, "test": 0.5}}
    add_result(run, "linear", [scored("target encoder", 0.5, head=head, best_on_test=0.513, heads=[head] * 24)])
    drawn = scored("target encoder", 0.3, accuracies=[0.3] * 5, n_train=52, interval="t over draws")
    add_result(run, "low_shot", [drawn])
    text = render(run)
    chosen = "Head chosen among 24 on held-out training images: bn, layers &lt;script&gt;"
    assert chosen in part(text, "Linear probe") and "lr 0.05, weight_decay 0.0; the best on the test images has 51.3 %" in text
    assert "5 draws of 52 training images; intervals are over draws." in part(text, "Low-shot")


def test_segmentation_and_davis_show_their_own_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    classes: dict[str, Any] = {"pixel_accuracy": 0.701, "per_class": [0.2, None, 0.3]}
    add_result(run, "segmentation", [scored("target encoder", 0.231, key="miou", **classes)])
    j_and_f: dict[str, Any] = {"j": 0.412, "f": 0.452, "objects": 61}
    kept = scored("first mask kept", 0.3, key="j_and_f", **j_and_f)
    add_result(run, "davis", [scored("target encoder", 0.432, key="j_and_f", **j_and_f), kept])
    text = render(run)
    assert "Segmentation mIoU 23.1 % [21–25]." in text
    segmentation, davis = part(text, "Segmentation mIoU"), part(text, "DAVIS J&amp;F")
    assert "toy, 3 classes" in segmentation and "pixel accuracy 70.1" in segmentation
    assert "toy, 61 objects" in davis and "J 41.2, F 45.2" in davis
    assert "DAVIS J&amp;F 43.2 % [41–45], +13.2 over first mask kept." in text
    assert "?" not in segmentation + davis


def test_bars_and_marks_lie_at_their_shares_of_the_scale(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    add_result(run, "knn", [scored("target encoder", 0.4, 0.05)])  # the highest end is 45 %: the scale ends at 50
    table = part(render(run), "kNN")
    assert "Bars run from 0 to 50 %." in table
    assert "left:70.0%;width:20.0%" in table and "left:80.0%" in table


def test_ranks_stand_in_one_table_with_their_warnings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0, evaluated=False)
    warning = f"99 directions at most {EVIL}"
    rankme = {"target encoder": 17.98, "untrained encoder": 4.02, "raw pixels": 141.99}
    add_result(run, "rankme", [{"name": name, "rankme": value} for name, value in rankme.items()])
    about = {"n": 1000, "q": 10, "by": "masks", "delta": 1e-4, "eps": 1e-8, "warning": warning}
    add_result(run, "lidar", [{"name": name, "lidar": 33.86, **about} for name in ("target encoder", "encoder")])
    text = render(run)
    assert "<li>RankMe 18.0 (untrained 4.0); LiDAR 33.9.</li>" in text
    table = part(text, "RankMe and LiDAR")
    rows = {row[0]: row[1:] for row in re.findall(r'row">([^<]+)</th>\s*<td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>', table)}
    assert rows == {
        "target encoder": ("<b>18.0</b>", "<b>33.9</b> *"),
        "untrained encoder": ("<b>4.0</b>", "–"),
        "raw pixels": ("<b>142.0</b>", "–"),
        "encoder": ("–", "<b>33.9</b> *"),
    }
    assert "LiDAR: toy, 1,000 images, 10 views, by masks, delta 0.0001, eps 1e-08." in table
    assert table.count("99 directions at most &lt;script&gt;") == 1
    assert "* LiDAR of target encoder, encoder: 99 directions" in table


def test_ranks_of_other_numbers_of_images_are_said_not_to_compare(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, steps=0, evaluated=False) for name in ("first", "second")]
    for run, n in zip(runs, (1000, 500), strict=True):
        add_result(run, "lidar", [{"name": "target encoder", "lidar": 30.0, "n": n, "q": 10}])
    words = "their columns do not compare"
    table = part(render(*runs), "RankMe and LiDAR")
    assert words in table and "LiDAR of second: toy, 500 images, 10 views." in table
    add_result(runs[1], "lidar", [{"name": "target encoder", "lidar": 30.0, "n": 1000, "q": 10}])
    assert words not in part(render(*runs), "RankMe and LiDAR")


def test_labels_at_once_are_no_classes_and_numbers_have_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0)
    about = {"labels": "a, b", "n_train": 90, "n_test": 30}
    each = [{"class": "a", "n_test": 9, "auroc": 0.7, "average_precision": 0.6}]
    add_result(run, "knn", [scored("target encoder", 0.5)], **about, kind="multi", classes=2, per_class=each)
    add_result(run, "linear", [scored("target encoder", 0.5)], **about, kind="number", classes=0)
    page = render(run)
    assert "a, b, 2 labels at once, 90 train" in page and "a, b, 90 train" in page
    assert "each label</summary>" in page and "<th>label</th>" in page and "classes," not in part(page, "kNN")


def test_a_probe_that_one_run_lacks_is_a_column_not_measured(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, steps=0) for name in ("first", "second")]
    about = {"labels": "kind", "classes": 3, "n_train": 90, "n_test": 30}
    add_result(runs[0], "attentive", [scored("target encoder", 0.5)], **about)
    table = part(render(*runs), "Attentive probe")
    assert table.count("not measured") == 1 and table.count("toy, kind, 3 classes, 90 train, 30 test images") == 1


def test_alarms_stand_above_the_summary_of_their_run(tmp_path: Path) -> None:
    sick, well = make_run(tmp_path / "sick"), make_run(tmp_path / "well")
    alarms = [f"positional collapse: {EVIL}", "full collapse: one vector"]
    log_rows(sick, [healthy(i * 250, **({"alarms": alarms[i - 4 : i - 3]} if i in (4, 5) else {})) for i in range(7)])
    log_rows(well, [healthy(i * 5000) for i in range(7)])  # of 100,000
    text = render(sick, well)
    first = "<b>The collapse doctor says:</b> positional collapse: &lt;script&gt;alert(1)&lt;/script&gt; (step 1,000)"
    assert text.index(first) < text.index("full collapse: one vector (step 1,250)") < text.index("<li>kNN")
    assert text.count("The collapse doctor says") == 2
    assert text.count("<li>Collapse doctor: no alarm.</li>") == 1
    assert text.index(first) < text.index("no alarm")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([healthy(i) for i in range(collapse.MEDIAN_ROWS)], True),
        ([healthy(i) for i in range(collapse.MEDIAN_ROWS - 1)], False),  # the doctor has no opinion yet
        ([{k: v for k, v in healthy(i).items() if k != "own_cosine"} for i in range(9)], False),  # a run of before the doctor
        ([healthy(i) for i in range(8)] + [healthy(8, effective_rank=float("nan"))], False),  # nobody can tell
    ],
)
def test_no_alarm_is_said_only_where_the_doctor_could_look(tmp_path: Path, rows: list[dict[str, Any]], told: bool) -> None:
    run = log_rows(make_run(tmp_path / "run"), rows)
    text = render(run)
    assert ("<li>Collapse doctor: no alarm (too early to judge position).</li>" in text) == ("no alarm" in text) == told
    assert "The collapse doctor says" not in text
    with run.joinpath("config.yaml").open("a") as config:
        config.write("target: {kind: pixels}\n")  # pixels cannot collapse: the doctor leaves them alone
    assert "no alarm" not in render(run)


def test_looks_begin_with_the_value_at_start_and_a_dashed_line_keeps_it(tmp_path: Path) -> None:
    rows = [healthy(i * 10, **({"probe/knn": 0.3 + i / 100, "probe/seconds": 2.0} if i % 2 else {})) for i in range(1, 8)]
    rows[0]["probe/knn_at_start"] = 0.25
    run = log_rows(make_run(tmp_path / "run"), rows)
    steps, values = reading.read(run, 0, [run]).metrics.series["probe/knn"]
    assert steps.tolist() == [0, 10, 30, 50, 70] and np.allclose(values, [0.25, 0.31, 0.33, 0.35, 0.37])
    text = render(run)
    panel = part(text, "kNN accuracy")
    lines = [path for path in re.findall(r"<path [^>]*>", panel) if "var(--c0)" in path]
    assert ["stroke-dasharray" in path for path in lines] == [False, True]
    heights = [{y for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)} for path in lines]
    assert len(heights[0]) == 5 and len(heights[1]) == 1 and heights[1] < heights[0]
    assert "<h3>RankMe</h3>" not in text and "at_start" not in text
    log_rows(run, [healthy(10, **{"probe/rankme_at_start": 3.0, "probe/rankme": 5.0})])
    assert "var(--c0)" in part(render(run), "RankMe")


def test_cosines_share_a_panel_and_position_has_one(tmp_path: Path) -> None:
    run = log_rows(make_run(tmp_path / "run"), [healthy(i) for i in range(9)])
    text = render(run)
    cosine = part(text, "Cosine")
    assert cosine.count("stroke: var(--c0)") == 2 and "stroke-dasharray" in cosine
    assert ">0.8</span>" in cosine and ">0.5</span>" in cosine
    assert ">0.3</span>" in part(text, "Position share")


def test_a_change_of_targets_is_drawn_and_said_once_and_a_frozen_teacher_is_not_called_healthy(tmp_path: Path) -> None:
    plain = log_rows(make_run(tmp_path / "plain"), [healthy(i) for i in range(9)])
    changed = log_rows(make_run(tmp_path / "changed"), [healthy(i) for i in range(10)])
    with changed.joinpath("config.yaml").open("a") as config:
        config.write("target: {kind: features, pixels_first: 4}\n")
    assert 'id="change"' not in render(plain)
    text = render(changed)
    assert 'id="change"' in part(text, "Effective rank") and text.count(CHANGED) == 1
    with plain.joinpath("config.yaml").open("a") as config:
        config.write("target: {kind: features, teacher: somewhere}\n")
    assert reading.read(changed, 0, [changed]).watched and not reading.read(plain, 0, [plain]).watched


@pytest.mark.parametrize(("first", "reached", "watched"), [(30, True, True), (60, True, False), (500, False, False)])
def test_a_run_that_is_not_past_its_pixels_is_not_called_healthy(
    first: int, reached: bool, watched: bool, tmp_path: Path
) -> None:
    rows = [{**healthy(i), "step": i * 10} for i in range(9)]  # up to step 80; 5 rows of features are what the doctor wants
    run = log_rows(make_run(tmp_path / "run"), rows)
    with run.joinpath("config.yaml").open("a") as config:
        config.write(f"target: {{kind: features, pixels_first: {first}}}\n")
    text = render(run)
    assert ('id="change"' in text, CHANGED in text) == (reached, reached)
    assert reading.read(run, 0, [run]).watched == watched == ("Collapse doctor: no alarm" in text)
