"""The one exception that speaks to the user: printed as one sentence, exit code 2, no traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend. The message says what was wrong, where, and what to do."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the choice nearest to `word`, or `""` where none is near."""
    found = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def line_of(error: Exception) -> str:
    """What an error says, in one line; of pydantic's many, the first."""
    found = getattr(error, "errors", None)
    message = found()[0]["msg"] if callable(found) else str(error)
    return str(message).removeprefix("Value error, ").split("\n")[0]


def plain(text: str) -> str:
    """Text of unknown origin, such as a file's name, for people: control characters and the like as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
