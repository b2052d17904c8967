"""Files that are whole or as they were before."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to, renamed into place when it is written. A killed one is left as .tmp-NAME."""
    draft = path.with_name(f".tmp-{path.name}")
    yield draft
    draft.replace(path)


def save_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    with whole(path) as draft:
        draft.write_text(json.dumps(value, indent=1))
