"""The report: one page from the files of a run's folder, whatever of them is there."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jepakit.report import RunFolderError, report
from jepakit.report.figures import POINTS, short, thinned

SECTIONS = ("summary", "curves", "masks", "probes", "neighbours", "configuration")
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects what a browser would load, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id" and tag == "section"]
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_run(folder: Path, *, steps: int = 50, evaluated: bool = True, accuracy: float = 0.552) -> Path:
    """A synthetic run's folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    folder.joinpath("config.yaml").write_text(
        f"method: c-jepa\nrecipe: tiny\nseed: 3\ndata: {{source: 'faces {EVIL}', labels: group}}\n"
        f"encoder: {{name: vit-tiny, patch: 8}}\noptim: {{batch_size: 64, steps: 100000}}\n"
    )
    keys = ("loss", "loss/prediction", "loss/sim", "lr", "target_std", "prediction_std", "effective_rank", "surprise")
    with folder.joinpath("metrics.jsonl").open("w") as lines:
        for step in range(steps):
            lines.write(json.dumps({"step": step * 10, **{key: rng.random() for key in keys}}) + "\n")
        lines.write(json.dumps({"step": steps * 10 - 10, "context_tokens": 40}) + "\n" if steps else "")
    if evaluated:
        evaluate(folder, accuracy)
    return folder


def evaluate(folder: Path, accuracy: float) -> None:
    rng = np.random.default_rng(1)
    where = folder / "evaluation"
    where.mkdir()
    rows = [
        {"name": "target encoder", "accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03},
        {"name": "untrained encoder", "accuracy": 0.403, "low": 0.38, "high": 0.43},
        {"name": "raw pixels", "accuracy": 0.565, "low": None, "high": None},
        {"name": "majority class", "accuracy": None},
    ]
    probe = {"labels": EVIL, "classes": 9, "n_train": 520, "n_test": 130, "settings": {"k": 20}, "rows": rows}
    for task in ("knn", "linear"):
        where.joinpath(f"{task}.json").write_text(json.dumps({"task": task, **probe}))
    np.savez(
        where / "pictures.npz",
        images=rng.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8),
        context=rng.random((3, 4, 4)) < 0.5,
        targets=rng.random((3, 2, 4, 4)) < 0.3,
        query_images=rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8),
        neighbour_images=rng.integers(0, 255, (2, 3, 32, 32, 3), dtype=np.uint8),
        query_labels=np.array([EVIL, ""]),
        neighbour_labels=np.array([[EVIL, "b", "c"], ["", "", ""]]),
    )


def render(*runs: Path) -> str:
    text = report(runs).read_text(encoding="utf-8")
    page = Page(text)
    assert page.ids == list(SECTIONS)
    assert "script" not in page.tags
    assert not [load for load in page.loads if not load.startswith(("data:", "#"))]
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)  # clip paths are the only url(…)
    return text


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
    assert text.count("faces &lt;script&gt;") == 2  # the facts and the configuration
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, 9 classes" in text
    assert "● &lt;script&gt;" in text


def test_missing_evaluation_says_how_to_get_it(tmp_path: Path) -> None:
    text = render(make_run(tmp_path / "run", evaluated=False))
    assert text.count("<code>jepakit evaluate run --data SRC</code>") == 4


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
    assert "a/run</h3>" in text and "b/run</h3>" in text
    assert "jepakit evaluate b/run --data SRC" in text


@pytest.mark.parametrize("removed", ["config.yaml", "metrics.jsonl"])
def test_a_folder_without_a_run(tmp_path: Path, removed: str) -> None:
    run = make_run(tmp_path / "run")
    run.joinpath(removed).unlink()
    with pytest.raises(RunFolderError, match=f"holds no run: it has no {removed}"):
        report([run])


@pytest.mark.parametrize("name", ["config.yaml", "evaluation/knn.json", "evaluation/pictures.npz"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    run.joinpath(name).write_text("[1, {")
    with pytest.raises(RunFolderError, match=Path(name).name):
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
