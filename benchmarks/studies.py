"""Every study that repeats a paper, at smoke, in one process: python benchmarks/studies.py (CI runs it)

Exits with 1 where a run failed, or a point of a table has no numbers.
"""

import tempfile
import time
from pathlib import Path

from jepakit.study import THEORY, study
from jepakit.study.papers import PAPER_STUDIES


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in (*PAPER_STUDIES, THEORY):
            started = time.monotonic()
            rows = study(name, out=Path(folder) / name, scale="smoke")
            missing = [f"{name}: {row['run']}: {row['said']}" for row in rows if row.get("status", "finished") != "finished"]
            table = (Path(folder) / name / "table.md").read_text()
            missing += [f"{name}: {line}" for line in table.partition("## How")[0].splitlines() if "| 0 |" in line]
            print(f"{name:18}{len(rows):4} rows{time.monotonic() - started:8.1f} s", flush=True)
            if missing:  # the others are not begun: a study that was stopped ends them all
                raise SystemExit("\n".join(missing))


if __name__ == "__main__":
    main()
