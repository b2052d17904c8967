"""Synthetic folders of runs, and what a report's page must always be."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from jepakit.reporting import report

SECTIONS = ("summary", "comparison", "curves", "masks", "probes", "sees", "neighbours", "configuration")
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Collects what a browser would load, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append("data" if tag == "script" and ("type", "application/json") in attrs else tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
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


def add_result(run: Path, task: str, rows: list[dict[str, Any]], **about: Any) -> None:
    run.joinpath("evaluation").mkdir(exist_ok=True)
    run.joinpath(f"evaluation/{task}.json").write_text(json.dumps({"task": task, "data": "sets/toy", **about, "rows": rows}))


def add_pixels(run: Path) -> None:
    """A segmentation of two classes and one image, whose corner has no label."""
    pixels = {"classes": ["x", EVIL], "per_class": [0.2, None], "images_with": [1, 0]}
    add_result(run, "segmentation", [scored("target encoder", 0.3, key="miou", **pixels)])
    labels = np.arange(48).reshape(6, 8) // 16 - 1
    kept: dict[str, Any] = {"image/0": np.zeros((6, 8, 3), np.uint8), "truth/0": labels, "predicted/0": abs(labels)}
    np.savez(run / "evaluation/segmentation.npz", ids=["one"], classes=["x", EVIL], **{**kept, "title/0": EVIL})


def log_rows(run: Path, rows: list[dict[str, Any]]) -> Path:
    run.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def healthy(step: int, **others: Any) -> dict[str, Any]:
    """A row with what the collapse doctor looks at."""
    signs = {"target_std": 0.9, "effective_rank": 20.0, "position_share": 0.3, "own_cosine": 0.8, "other_cosine": 0.5}
    return {"step": step, "loss": 0.5, "settled": 200, **signs, **others}


def scored(name: str, figure: float, half: float = 0.02, key: str = "accuracy", **about: Any) -> dict[str, Any]:
    return {"name": name, key: figure, "low": figure - half, "high": figure + half, **about}


def part(text: str, title: str) -> str:
    """What the page has from a heading to the next one."""
    found = text[text.index(f">{title}</h3>") + 1 :]
    return found[: min(end for end in (found.find("<h3"), found.find("</section>"), len(found)) if end >= 0)]


def render(*runs: Path) -> str:
    text = report(runs).read_text(encoding="utf-8")
    page = Page(text)
    assert page.ids == [name for name in SECTIONS if name != "comparison" or len(runs) > 1]
    assert page.tags.count("script") == 1 and not page.handlers
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() if script else ""
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text  # no other script runs, and nothing loads
    assert not [load for load in page.loads if not load.startswith(("data:", "#"))]
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:|\$\{src\})", text)  # url(…) are clip paths, and pictures of the page
    return text
