"""One self-contained HTML page from the files of a run's folder; tables of runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import report
    from .reading import RunFolderError
    from .run_table import runs

__all__ = ["RunFolderError", "report", "runs"]

_PLACES = {"RunFolderError": "reading", "report": "page", "runs": "run_table"}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: a table of runs needs no matplotlib."""
    if name in _PLACES:
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
