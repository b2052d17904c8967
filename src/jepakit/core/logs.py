"""How much is said on stderr, and in what form: text, warnings alone, or an object of JSON a line."""

import json
import logging
import sys
from datetime import UTC, datetime

from jepakit.core import progress


def say(*, quiet: bool = False, as_json: bool = False) -> None:
    """Set it for the whole program; quiet: warnings and mistakes alone. A run's run.log has all in any case."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])  # changes nothing where a program has handlers of its own
    progress.style = "quiet" if quiet else "json" if as_json else "text"


class _Json(logging.Formatter):
    """Each record as {"time" (ISO 8601, UTC), "level", "message"}."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname, "message": record.getMessage()}, ensure_ascii=False)
