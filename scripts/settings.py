"""Writes docs/settings.md, the reference of all settings, from the models that check them: python scripts/settings.py"""

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jepakit.config.config import Config, models_in
from jepakit.evaluation.probes.protocol import Protocol

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
HEAD = """# Settings

Written by `python scripts/settings.py` from the models that check them; do not edit. Any of these is a word on the command line
(`optim.lr=5e-4`), a key in a YAML file, or a keyword in Python. `jepakit recipes NAME` shows what a recipe sets, and where each
value comes from. A part that is one of several kinds takes the settings of its own `kind`; `none` leaves a part, or a value, out.
"""


def parts(annotation: Any) -> list[Any]:
    """The alternatives of a union, Annotated taken off."""
    if get_origin(annotation) is Annotated:
        return parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for each in get_args(annotation) for part in parts(each)]
    return [annotation]


def kind(annotation: Any) -> str:
    """A type in words: int, float, or the words to choose from."""
    if get_origin(annotation) is Literal:
        return ", ".join(str(word) for word in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = [part for part in get_args(annotation) if part is not ...]
        return f"[{kind(inner[0])}, ...]" if ... in get_args(annotation) else f"[{', '.join(map(kind, inner))}]"
    others = parts(annotation)
    if len(others) > 1 or others[0] is not annotation:
        return " or ".join("none" if part is type(None) else kind(part) for part in others)
    return str(getattr(annotation, "__name__", annotation))


def bounds(info: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(bound, name):g}" for bound in info.metadata for name, sign in BOUNDS.items() if hasattr(bound, name)
    ]
    return f" {', '.join(found)}" if found else ""


def default(info: FieldInfo) -> str:
    if info.is_required():
        return "to be given"
    if info.default_factory_takes_validated_data:
        return "from the others"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = [getattr(each, "value", each) for each in value]
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or "''"


def rows(model: type[BaseModel], prefix: str = "", of: str = "") -> Iterator[tuple[str, ...]]:
    """Of each setting: its dotted name, the kind it belongs to, its type, default and meaning."""
    for name, info in model.model_fields.items():
        inner = models_in(info.annotation)
        for part in inner:
            kinds = part.model_fields["kind"].default if "kind" in part.model_fields and len(inner) > 1 else of
            yield from rows(part, f"{prefix}{name}.", kinds)
        if not inner:
            meaning = info.description or (first_sentence(model) if name == "kind" else "")
            yield prefix + name, of, kind(info.annotation) + bounds(info), default(info), meaning


def first_sentence(model: type[BaseModel]) -> str:
    """What a kind of a part is, by its docstring."""
    return re.split(r"(?<=\.) ", " ".join((inspect.getdoc(model) or "").split()))[0].rstrip(".")


def text() -> str:
    """The page."""
    lines = [HEAD]
    for title, model in (("`jepakit pretrain`", Config), ("`jepakit evaluate`", Protocol)):
        lines += [f"## {title}", "", "| setting | with kind | takes | default | meaning |", "|---|---|---|---|---|"]
        lines += [
            "| " + " | ".join([f"`{row[0]}`", *(cell.replace("|", "\\|") for cell in row[1:])]) + " |" for row in rows(model)
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(text())
