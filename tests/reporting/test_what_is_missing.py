"""Whatever a run's folder lacks or holds, the report comes, and says what is missing."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepakit.data.crops import to_show
from jepakit.reporting import page, report
from jepakit.reporting.figures import COLOURS, PALETTE
from run_files import EVIL, add_result, healthy, log_rows, make_run, render, scored

CSS = Path(page.__file__).parent / "templates" / "page.css"


def test_interrupted_before_its_first_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    run.joinpath("metrics.jsonl").unlink()
    text = render(run)
    assert "no step is logged yet" in text and "Not judged yet" in text
    assert text.count("jepakit evaluate run <span>--data SRC</span>") == 3


def test_interrupted_at_step_3(tmp_path: Path) -> None:
    run = log_rows(make_run(tmp_path / "run", evaluated=False), [healthy(i, seconds=i * 1.0) for i in (1, 2, 3)])
    text = render(run)
    assert "for 3 s: 3 of 100,000 steps, then it stopped." in text
    assert "Collapse doctor: too little was logged to tell." in text


def test_judged_on_images_without_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    add_result(run, "rankme", [{"name": "target encoder", "rankme": 18.0}])
    text = render(run)
    assert "Not judged with labels yet" in text
    assert "No probe: it was judged on images without labels" in text and "RankMe 18.0." in text


def test_rows_and_figures_that_are_no_numbers(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": None if i > 2 else 1.0, "lr": None, "seconds": None, "images_per_second": None} for i in range(6)]
    run = log_rows(make_run(tmp_path / "run", evaluated=False), rows)
    with run.joinpath("metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "loss": Infinity, "effective_rank": "none", "alarms": "x"}\n')
    none: dict[str, Any] = {"accuracy": None, "low": None, "high": None}
    add_result(run, "linear", [{"name": "target encoder", **none}, {"name": "raw pixels", **none}])
    text = render(run)
    assert "Linear probe: no figure." in text and "4 non-finite." in text
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert data and not [each for each in data if "NaN" in each or "Infinity" in each]


@pytest.mark.parametrize("channels", [13, 1])
def test_images_of_many_or_deep_bands(channels: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.joinpath("config.yaml").open("a") as config:
        config.write(f"images: {{channels: {channels}, depth: uint16, size: 32}}\n")
    rng = np.random.default_rng(0)
    deep = torch.from_numpy(rng.integers(0, 60_000, (3, channels, 32, 32)).astype(np.float32))
    shown = torch.stack([to_show(each) for each in deep]).permute(0, 2, 3, 1).numpy()
    with np.load(run / "evaluation/pictures.npz") as arrays:
        np.savez(run / "evaluation/pictures.npz", **{**arrays, "images": shown})
    assert render(run).count('class="masked"') == 3


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    names = [EVIL, "\u202eevil\u2069", '"><img src=x onerror=alert(1)>', "'; DROP", "</script><b>"]
    run = make_run(tmp_path / "<i>run & 'co'")
    per_class = [{"class": name, "n_test": 1, "recall": 0.5} for name in names]
    confusion = np.eye(len(names)).tolist()
    add_result(
        run, "linear", [scored("target encoder", 0.5)], labels=EVIL, per_class=per_class, confusion=confusion, class_names=names
    )
    text = render(run)  # every element closed in order, one script, no handler, nothing loaded
    assert not [name for name in names[:1] + names[2:3] + names[4:] if name in text]
    assert "<i>run" not in text


def test_every_figure_is_a_picture_a_drawing_and_a_table(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, steps=20) for name in ("a", "b")]
    report(runs, tmp_path / "page.html", tmp_path / "new" / "figures")
    folder = tmp_path / "new" / "figures"
    stems = {path.stem for path in folder.iterdir()}
    assert {"loss", "effective-rank", "probe-knn", "probe-linear", "runs-across-tasks", "masks-a", "neighbours-b"} <= stems
    assert {path.name for path in folder.iterdir()} == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "csv")}
    assert min(Image.open(folder / "loss.png").size) > 300 and "<svg" in (folder / "loss.svg").read_text()
    rows = list(csv.DictReader((folder / "loss.csv").open()))
    assert len(rows) == 40 and rows[0].keys() == {"run", "line", "step", "value"}
    written = next(line for line in (runs[1] / "metrics.jsonl").read_text().splitlines() if '"step": 190' in line)
    assert f'"loss": {rows[-1]["value"]}' in written and rows[-1]["run"] == "b"  # all digits


def simulated(colour: str, kind: str) -> np.ndarray:
    """CIELAB of a colour as people see it who lack a kind of cone (Machado et al. 2009, severity 1)."""
    machado = {
        "all": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    coded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    white = xyz.sum(1)
    x, y, z = np.cbrt(np.maximum(xyz @ np.clip(np.array(machado[kind]) @ linear, 0, 1) / white, 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_of_runs_are_told_apart_without_any_kind_of_cone() -> None:
    themes = [re.findall(r"--c\d: (#[0-9a-f]{6})", part) for part in CSS.read_text().split("prefers-color-scheme: dark")]
    assert [len(theme) for theme in themes] == [PALETTE, PALETTE] and tuple(themes[0]) == COLOURS
    for theme in themes:
        for kind in ("all", "protan", "deutan", "tritan"):
            seen = [simulated(colour, kind) for colour in theme[:7]]
            assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 15
