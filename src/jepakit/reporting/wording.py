"""How the page says values: settings in a few words, shares in per cent, intervals in brackets."""

import math
from collections.abc import Mapping
from typing import Any

_NAMES = ("name", "kind", "preset", "size", "source", "path")  # keys whose value speaks for itself


def percent(fraction: float) -> str:
    """55.2 for 0.552; a dash for none."""
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "–"


def interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval in brackets, or nothing."""
    if not (math.isfinite(row["low"]) and math.isfinite(row["high"])):
        return ""
    if not row["counted"].share:
        return f" [{row['counted'].told(row['low'])}–{row['counted'].told(row['high'])}]"
    rounded, exact = (f" [{100 * row['low']:.{digits}f}–{100 * row['high']:.{digits}f}]" for digits in (0, 1))
    return rounded if round(100 * row["low"]) < round(100 * row["high"]) else exact  # no interval looks like a point


def in_words(value: Any) -> str:
    """A setting in a few words: of a mapping, its name and its first plain values."""
    if isinstance(value, Mapping):
        plain = {key: item for key, item in value.items() if item is not None and not isinstance(item, Mapping | list)}
        named = [str(plain.pop(key)) for key in _NAMES if key in plain]
        return ", ".join([*named, *(f"{key} {item}" for key, item in plain.items())][:6])
    if isinstance(value, list | tuple):
        return ", ".join(in_words(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def data_name(place: Any) -> str:
    """Images in a word or two: the end of their path."""
    return "/".join(str(in_words(place)).rstrip("/").split("/")[-2:]) if place else "images that no file names"


def duration(seconds: float) -> str:
    """10 min 34 s; 2 h 5 min; 3 d 4 h."""
    whole = round(seconds)
    for large, small, length, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length:,} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
