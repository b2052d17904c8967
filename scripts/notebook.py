"""Runs docs/tour.ipynb from top to bottom and writes its outputs into it: python scripts/notebook.py (make notebook)

It works in a folder of its own that is removed afterwards. What the program says on standard error (progress) is not kept, and
neither are times and versions of the machine, so that the file changes only where a result does.
"""

import tempfile
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
MOST = 500_000  # bytes


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for each in cell.outputs:
                each.get("data", {}).pop("image/jpeg", None)  # a picture is kept once
    notebook.metadata.language_info = {"name": "python"}
    text = nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n"
    if len(text.encode()) > MOST:
        raise SystemExit(f"the notebook would have {len(text.encode()):,} bytes, more than {MOST:,}: show fewer pictures")
    NOTEBOOK.write_text(text)


if __name__ == "__main__":
    main()
