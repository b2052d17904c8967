"""One self-contained HTML page from the files of a run's folder."""

from .page import RunFolderError, report

__all__ = ["RunFolderError", "report"]
