"""One tree of frozen, validated settings: the command line, the YAML file and the Python keywords are the same."""

import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from jepakit.config.init import Init
from jepakit.config.optim import Optim
from jepakit.config.renamed import RENAMED, current_key, current_layer, current_value
from jepakit.config.run_settings import RunSettings
from jepakit.core.errors import UserError, nearest
from jepakit.core.guesses import suggestion
from jepakit.data.labels.table import TableSettings
from jepakit.model.images import ImageSettings
from jepakit.model.method import METHODS, Method
from jepakit.model.vit import SHAPE

NO_YAML = (yaml.YAMLError, ValueError, RecursionError)  # a date that is none is a ValueError
_DEEPEST = 20  # groups in groups


class Config(Method):
    """A method, the data, the optimisation and the seed make the result; `run` says how it is run."""

    recipe: str | None = Field(None, description="the preset this began from")
    method: str | None = Field(None, description="the method's name in the family")
    data: str | None = Field(
        None,
        description="where the images are: a folder, pack, tar or Parquet files, npz, emoji; 'in memory: ...': Python held them",
    )
    table: TableSettings = Field(default_factory=TableSettings)
    init: Init = Field(default_factory=Init)
    images: ImageSettings = Field(default_factory=ImageSettings)
    optim: Optim = Field(default_factory=Optim)
    seed: int = Field(0, ge=0, le=2**63 - 1, description="order, crops, masks and first weights are functions of it")
    run: RunSettings = Field(default_factory=RunSettings)

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        patch = self.encoder.patch_size
        for side in self.images.height_width:
            if side % patch:
                near = max(patch, round(side / patch) * patch)
                raise ValueError(f"images.size {side} is not a multiple of encoder.patch_size {patch}; the nearest is {near}")
        if self.images.target_crop == "own" and self.target.kind == "pixels":
            raise ValueError(
                "images.target_crop=own asks for pixels of a crop that nothing was seen of; set images.target_crop=same"
            )
        if self.regularizer and self.optim.batch_size // self.optim.accumulate < 2:
            raise ValueError("the regulariser needs two images at a time: lower optim.accumulate")
        heads = self.predictor.heads or self.encoder.heads
        if self.predictor.width % heads:
            raise ValueError(
                f"predictor.width {self.predictor.width} is not a multiple of its {heads} heads; set predictor.heads"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.images.height_width
        return height // self.encoder.patch_size, width // self.encoder.patch_size


def resolve(*layers: Mapping[str, Any], where: str = "settings") -> Config:
    """Settings from layers, later over earlier; old names of settings are read as the present ones.

    Raises UserError naming the key, and the nearest one if it is unknown.
    """
    merged: dict[str, Any] = {"masking": {"kind": "multi_block"}, "target": {"kind": "features"}}
    for layer in (current_layer(given, where) for given in layers):
        if isinstance(merged.get("encoder"), dict) and isinstance(layer.get("encoder"), Mapping) and layer["encoder"].get("size"):
            merged["encoder"] = {key: value for key, value in merged["encoder"].items() if key not in SHAPE}  # a size is whole
        if isinstance(layer.get("images"), Mapping) and "channels" in layer["images"]:  # of other channels nothing is known
            below = merged.get("images", {})
            if layer["images"]["channels"] != below.get("channels", ImageSettings.model_fields["channels"].default):
                merged["images"] = {key: value for key, value in below.items() if key not in ("mean", "std")}
        if isinstance(layer.get("target"), Mapping) and layer["target"].get("kind") == "pixels":  # of the crop that is seen
            merged["images"] = {key: value for key, value in merged.get("images", {}).items() if key != "target_crop"}
        if isinstance(layer.get("regularizer"), Mapping) and not merged.get("regularizer"):  # runs of old name no kind
            layer = {**layer, "regularizer": {"kind": "vicreg", **layer["regularizer"]}}
        merged = merge(merged, layer)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError(validation_sentence(error, where)) from None


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings joined; another `kind` of a part replaces it whole."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if not isinstance(value, Mapping):
            result[key] = value
        elif isinstance(below, Mapping) and value.get("kind") in (None, below.get("kind", value.get("kind"))):
            result[key] = merge(below, value)
        else:
            result[key] = dict(value)
    return result


def method_layer(name: str) -> dict[str, Any]:
    """The layer that turns settings into a method of the family. Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}': choose from {', '.join(METHODS)}{nearest(name, METHODS)}")
    return {**METHODS[name], "method": name}


def setting_words(given: Sequence[str] | str | None) -> list[str]:
    """'group.key=value' words; one string may hold several. Raises UserError for what is no string."""
    if isinstance(given, str):
        return re.split(r"\s+(?=[\w.]+=)", given.strip())
    if not isinstance(given, Iterable | None) or isinstance(given, Mapping) or not all(isinstance(w, str) for w in given or ()):
        raise UserError(f"set={given!r}: give words, as in set=['optim.lr=1e-3'], or groups, as in optim={{'lr': 1e-3}}")
    return [*(given or ())]


def overrides(pairs: Sequence[str] | str | None, model: type[BaseModel] = Config) -> dict[str, Any]:
    """'group.key=value' words to a layer of a tree of settings; values as in YAML, 'none' is none. Raises UserError."""
    layer: dict[str, Any] = {}
    known = known_keys(model)
    for pair in setting_words(pairs):
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"'{pair}': settings are written group.key=value, as in optim.lr=1e-3{nearest(key, known)}")
        try:
            value = yaml.safe_load(text)
        except NO_YAML:
            raise UserError(f"'{pair}': the value is not valid YAML; quote it") from None
        if RENAMED.get(key) in known:
            key, value = current_key(key), current_value(key, value)
        if key not in known:
            raise UserError(f"'{pair}': {key}: unknown key{suggestion(key, known)}")
        value = text if key in ("recipe", "method") else value
        value = None if is_none(text) else value
        layer = merge(layer, nested(key, value))
    return layer


def given_layer(words: Sequence[str] | str | None, groups: Mapping[str, Any]) -> dict[str, Any]:
    """The layer of what a caller gave: 'group.key=value' words, and over them keywords. Raises UserError."""
    return merge(overrides(words), current_layer(grouped(groups, "settings"), tell=True))


def nested(key: str, value: Any) -> dict[str, Any]:
    """'a.b', value -> {'a': {'b': value}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def read_yaml(path: Path) -> dict[str, Any]:
    """A layer from a YAML file. Raises UserError."""
    try:
        layer = yaml.load(path.read_text(encoding="utf-8"), _OnceOnly)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except NO_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    layer = {} if layer is None else layer
    if not isinstance(layer, dict):
        raise UserError(f"{path}: expected settings in groups, as in 'optim: {{lr: 1e-3}}'")
    return layer_from(layer, str(path))


def layer_from(given: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """A layer from what a file or a mapping holds. Raises UserError."""
    layer = grouped(given, where)
    for key in ("recipe", "method"):
        if not isinstance(layer.get(key), str | None):
            raise UserError(f"{where}: {key}: give a name, not {layer[key]!r}")
    return layer


def is_none(value: object) -> bool:
    """Whether a value is the word none, which is written where a setting shall have no value."""
    return isinstance(value, str) and value.strip().lower() == "none"


class _OnceOnly(yaml.SafeLoader):
    """YAML in which no key is given twice: which of the two would count is nobody's guess."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice, from line {node.start_mark.line + 1} on: write one of the two")
        return super().construct_mapping(node, deep)


def grouped(layer: Mapping[Any, Any], where: str, depth: int = 0) -> dict[str, Any]:
    """A layer whose dotted keys are groups: {'optim.lr': 1} as {'optim': {'lr': 1}}; the word none is no value.

    Raises UserError for a key given twice, and for groups that hold themselves (an alias of YAML may).
    """
    result: dict[str, Any] = {}
    if depth > _DEEPEST:
        raise UserError(f"{where[:200]} is not valid YAML of settings: its groups lie in each other without end")
    for name, value in layer.items():
        head, dot, rest = str(name).partition(".")
        inner: Any = {rest: value} if dot else None if is_none(value) else value
        inner = grouped(inner, f"{where}: {head}", depth + 1) if isinstance(inner, Mapping) else inner
        if head in result and not (isinstance(result[head], Mapping) and isinstance(inner, Mapping)):
            raise UserError(f"{where}: {head} is given twice: write one of the two")
        result[head] = _joined(result[head], inner, f"{where}: {head}") if head in result else inner
    return result


def _joined(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Two parts of a group that have no key in common. Raises UserError for one that both have."""
    result = dict(a)
    for key, value in b.items():
        if key not in result:
            result[key] = value
        elif isinstance(result[key], Mapping) and isinstance(value, Mapping):
            result[key] = _joined(result[key], value, f"{where}.{key}")
        else:
            raise UserError(f"{where}.{key} is given twice: write one of the two")
    return result


def to_yaml(config: Config) -> str:
    """All settings, resolved: enough to repeat the run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting's dotted name with its description, groups themselves included."""
    for name, info in model.model_fields.items():
        yield prefix + name, info.description or ""
        for part in models_in(info.annotation):
            yield from fields(part, f"{prefix}{name}.")


def known_keys(model: type[BaseModel] = Config) -> list[str]:
    """Dotted names of all settings of a tree."""
    return list(dict.fromkeys(name for name, _ in fields(model)))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The groups of settings that an annotation allows."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [m for part in get_args(annotation) for m in models_in(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def validation_sentence(error: ValidationError, where: str, model: type[BaseModel] = Config) -> str:
    """The first thing that pydantic found, as one sentence."""
    first = error.errors()[0]
    known = known_keys(model)
    path = [str(p) for p in first["loc"]]
    path = [
        p
        for i, p in enumerate(path)
        if i == 0 or ".".join([path[0], p]) in known or (i == len(path) - 1 and first["type"] == "extra_forbidden")
    ]
    key = ".".join(path)  # without pydantic's words for the kind of a part
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        other = f"{where}: {key}: a key of another {path[0]}.kind" if key in known else ""
        return other or f"{where}: {key}: unknown key{suggestion(key, known)}"
    given = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
    return f"{where}: {key + ': ' if key else ''}{message[0].lower() + message[1:]}{given}"
