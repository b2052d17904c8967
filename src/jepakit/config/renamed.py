"""Settings that once had another name: what was written with the old one is read as the new one."""

import logging
from collections.abc import Mapping
from typing import Any

from jepakit.core.errors import UserError
from jepakit.model.images import ImageSettings

log = logging.getLogger("jepakit")
# Old dotted key: new one, in the same group
RENAMED = {
    "optim.momentum": "optim.ema_momentum",
    "optim.final_momentum": "optim.final_ema_momentum",
    "images.flip": "images.symmetry",
    "finetune.flip": "finetune.symmetry",
}
_VALUES: dict[str, dict[Any, Any]] = {key: {True: "mirror", False: None} for key in ("images.flip", "finetune.flip")}


def current_key(key: str) -> str:
    """The present name of a dotted key that a user wrote; the log says so where it is another one."""
    if key not in RENAMED:
        return key
    log.warning("%s is called %s now, and taken as that", key, RENAMED[key])
    return RENAMED[key]


def current_value(key: str, value: Any) -> Any:
    """What the present name of a dotted key takes for an old one's value. Raises UserError for what is none of the old one."""
    if key not in _VALUES:
        return value
    if not isinstance(value, bool):
        raise UserError(f"{key}: give true or false, not {value!r}; or {RENAMED[key]}, as it is called now")
    return _VALUES[key][value]


def stored_images(given: Any) -> ImageSettings:
    """Settings of images that a model's folder or a file of embeddings keeps, in which old names may stand."""
    return ImageSettings.model_validate(current_layer({"images": given})["images"])


def current_layer(layer: Mapping[str, Any], where: str = "settings", *, tell: bool = False) -> dict[str, Any]:
    """A layer of nested settings under their present names.

    tell: a user wrote it, and the log names each old key. Raises UserError where a setting stands there under both names.
    """
    result = dict(layer)
    for old, new in RENAMED.items():
        (group, name), (_, new_name) = old.split("."), new.split(".")
        settings = result.get(group)
        if not isinstance(settings, Mapping) or name not in settings:
            continue
        if new_name in settings:
            raise UserError(f"{where}: {old} and {new} are one setting: write {new} alone")
        changed = {new_name: current_value(old, settings[name])}
        result[group] = {**{key: value for key, value in settings.items() if key != name}, **changed}
        if tell:
            current_key(old)
    return result
