"""Settings that once had another name: what was written with the old one is read as the new one."""

import logging
from collections.abc import Mapping
from typing import Any

from jepakit.core.errors import UserError

log = logging.getLogger("jepakit")
# Old dotted key: new one, in the same group
RENAMED = {"optim.momentum": "optim.ema_momentum", "optim.final_momentum": "optim.final_ema_momentum"}


def current_key(key: str) -> str:
    """The present name of a dotted key that a user wrote; the log says so where it is another one."""
    if key not in RENAMED:
        return key
    log.warning("%s is called %s now, and taken as that", key, RENAMED[key])
    return RENAMED[key]


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
        result[group] = {new_name if key == name else key: value for key, value in settings.items()}
        if tell:
            current_key(old)
    return result
