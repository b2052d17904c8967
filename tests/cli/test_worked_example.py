"""The worked example of docs/solar-cells.md: its own commands, in a smoke size, on a small set in the fetched one's place."""

import csv
import io
import re
import shlex
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepakit import cli

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import solar_cells

SHAPE = "images.size=16 encoder.patch_size=4 encoder.width=16 encoder.depth=1 encoder.heads=2 predictor.width=8 predictor.depth=1"
SMOKE = {
    "pretrain": f"{SHAPE} masking.min_keep=2 optim.batch_size=16 run.threads=1".split(),
    "evaluate": ["linear.epochs=2"],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip gives it, with 700 cells of 20 pixels: defective ones are dark on the left."""
    random = np.random.RandomState(0)
    path = tmp_path_factory.mktemp("package") / "elpv_dataset.whl"
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for place in range(700):
            probability = float(random.choice([0, 1 / 3, 2 / 3, 1]))
            pixels = random.randint(90, 160, (20, 20)).astype(np.uint8)
            pixels[:, : int(10 * probability)] //= 3
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "PNG")
            archive.writestr(f"elpv_dataset/data/images/cell{place + 1:04d}.png", image.getvalue())
            lines.append(f"images/cell{place + 1:04d}.png  {probability!r:18}  {'mono' if place < 350 else 'poly'}")
        archive.writestr(solar_cells.LABELS, "\n".join(lines) + "\n")
    return path


def commands() -> list[list[str]]:
    """The page's commands, words each: lines that are indented by four, one of them continued."""
    page = (ROOT / "docs/solar-cells.md").read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^    ((?:python|jepakit) .*)$", page, re.MULTILINE)]


def test_the_commands_of_the_worked_example_go_from_images_to_auroc_with_intervals(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (first, *others), said = commands(), {}
    assert first == ["python", "benchmarks/solar_cells.py", "solar"]
    solar_cells.prepare(Path("solar"), wheel)
    for _, verb, *words in others:
        small = [*(word for word in words if not word.startswith("optim.epochs")), *SMOKE.get(verb, [])]
        small += ["optim.epochs=1"] if verb == "pretrain" else []
        cli.main([verb, *small])
        said[" ".join([verb, *words])] = capsys.readouterr().out
    assert [verb for _, verb, *_ in others] == ["data", "pretrain", "evaluate", "evaluate", "evaluate", "report"]
    check, classes, sites, numbers = (said[line] for line in said if line.startswith(("data", "evaluate")))
    assert "700 of 700 images have a row" in check and "2 classes" in check
    found = [
        float(low) <= float(value) <= float(high) for value, low, high in re.findall(r"([\d.]+) % \[([\d.]+)-([\d.]+)\]", classes)
    ]
    assert len(found) > 8 and all(found) and "AUROC" in classes
    assert "type" in sites and "R²" in numbers
    assert Path("runs/solar/report.html").is_file()


def test_the_table_is_that_of_the_package_with_blocks_that_a_split_does_not_divide(wheel: Path, tmp_path: Path) -> None:
    solar_cells.prepare(tmp_path / "solar", wheel)
    rows = list(csv.DictReader((tmp_path / "solar/table.csv").open()))
    assert len(rows) == 700 and len(list((tmp_path / "solar/images").iterdir())) == 700
    assert {(row["probability"], row["defective"]) for row in rows} == {
        ("0.0", "0"),
        ("0.333", "0"),
        ("0.667", "1"),
        ("1.0", "1"),
    }
    blocks = {block: [row for row in rows if row["block"] == block] for block in sorted({row["block"] for row in rows})}
    assert [len(held) for held in blocks.values()] == [60] * 5 + [50] + [60] * 5 + [50]
    assert all(len({(row["type"], row["split"]) for row in held}) == 1 for held in blocks.values())
    assert [block for block, held in blocks.items() if held[0]["split"] == "test"] == ["b05", "b10"]
