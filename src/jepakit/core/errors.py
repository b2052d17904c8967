"""The one exception that speaks to the user: printed as one sentence, exit code 2, no traceback."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")
OWN_SENTENCES = ("data", "config", "set")  # arguments that are looked at where they are used
_KINDS: dict[Any, str] = {str: "a name", int: "a whole number", float: "a number", bool: "True or False", Callable: "a function"}


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


def checked(verb: Callable[P, R]) -> Callable[P, R]:
    """A public function that raises UserError for an argument of another kind than it is annotated with."""
    of = signature(verb)

    @wraps(verb)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = get_type_hints(verb)
        try:
            given = of.bind(*args, **kwargs).arguments
        except TypeError:  # too many, or unknown ones: the call itself says so
            given = {}
        for name, value in given.items():
            known = name in OWN_SENTENCES or of.parameters[name].kind is Parameter.VAR_KEYWORD
            if not known and not _is(value, hints[name]):
                what = "None" if value is None else f"a {type(value).__name__}"
                raise UserError(f"{name}: give {' or '.join(_kinds(hints[name]))}, not {what}")
        return verb(*args, **kwargs)

    return checking


def _is(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated kind; any path is a Path, and whatever holds several a Sequence."""
    parts = _parts(hint)
    if len(parts) > 1:
        return any(_is(value, part) for part in parts)
    kind = get_origin(hint) or hint
    if kind is Any or not isinstance(kind, type):  # Literal; Any is a type since Python 3.11
        return True
    if issubclass(kind, os.PathLike):
        return isinstance(value, os.PathLike)
    if issubclass(kind, Sequence) and kind is not str:
        many = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
        return many and (not isinstance(value, list | tuple) or all(_is(each, get_args(hint)[0]) for each in value))
    return isinstance(value, Integral if kind is int else Real if kind is float else kind)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The kinds that a union allows; any other hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _kinds(hint: Any) -> list[str]:
    """What a hint asks for, in words; a path where it may be text or a path."""
    kinds = [get_origin(part) or part for part in _parts(hint) if part is not NoneType]
    paths = any(issubclass(kind, os.PathLike) for kind in kinds)
    words = ["a path" if issubclass(kind, os.PathLike) or (paths and kind is str) else _KINDS.get(kind, "") for kind in kinds]
    plain_words = ["a list" if issubclass(kind, Sequence) else f"a {kind.__name__}" for kind in kinds]
    return [*dict.fromkeys(word or other for word, other in zip(words, plain_words, strict=True))]
