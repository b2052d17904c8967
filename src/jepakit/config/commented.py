"""Settings as YAML that explains itself, and their JSON Schema, by which editors complete and check such files."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from jepakit.config.config import Config, fields

_COLUMN = 44  # where comments begin


def commented_yaml(config: Config, sources: Mapping[str, str] | None = None) -> str:
    """All settings, resolved, each with its description; sources: where values come from, by dotted key.

    Read back it is the same settings as `to_yaml` writes.
    """
    return "\n".join(_lines(config, config.model_dump(mode="json"), dict(fields()), sources or {})) + "\n"


def _lines(
    model: BaseModel, values: Mapping[str, Any], about: Mapping[str, str], of: Mapping[str, str], at: str = ""
) -> Iterator[str]:
    indent = "  " * at.count(".")
    for name in type(model).model_fields:
        inner, key = getattr(model, name), f"{at}{name}"
        if isinstance(inner, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(inner, values[name], about, of, f"{key}.")
            continue
        value = (
            yaml.safe_dump(values[name], default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
        )
        words = "; ".join(part for part in (about.get(key, ""), of.get(key, "")) if part)
        yield f"{f'{indent}{name}: {value}':{_COLUMN}}  # {words}" if words else f"{indent}{name}: {value}"


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of settings in YAML files, of which every one may be left out.

    Whether settings fit each other it does not say; `resolve` does.
    """
    found = _open_unions(Config.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "jepakit settings"}


def _open_unions(part: Any) -> Any:
    """Of parts of several kinds any may match, not one: a file may leave out a part's kind, which a recipe says.

    Where there may be no value, the word none says it too.
    """
    if isinstance(part, list):
        return [_open_unions(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part == {"type": "null"}:
        return {"enum": [None, "none"]}
    kept = {key: _open_unions(value) for key, value in part.items() if key not in ("discriminator", "required")}
    return {("anyOf" if key == "oneOf" else key): value for key, value in kept.items()}
