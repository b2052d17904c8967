"""What the command line says of words that it does not know: click's sentence, with what was meant where that is known."""

import os
import re
from shlex import quote
from typing import Any

import typer

from jepakit.core import guesses
from jepakit.core.errors import UserError, nearest

RUNS = ("run", "runs", "r", "m", "model", "checkpoint", "ckpt", "weights", "encoder", "path")  # words of evaluate and report
LOUDER, QUIETER = ("verbose", "v", "vv", "debug"), ("q", "silent", "s")
GOES_ON = re.compile(r"-|run\.|images\.max_bad")  # what may be said beside --resume
FIXED = "its length and all else that it learns by are fixed from the start; start a new run, with --out RUN"
QUOTED = "give the folder that holds the images, or a pattern of .tar or .parquet files in quotes (a shell expands others)"


def usage_sentence(error: Any, words: list[str]) -> str:
    """A sentence on click's error about these words of the command line."""
    message, context = str(error.format_message()).rstrip("."), error.ctx
    if type(error).__name__ == "NoSuchOption":
        name, value = _typed(error.option_name, words)
        if name.lstrip("-") in QUIETER:
            return f"{context.info_name} has no option {name}: write --quiet"
        if name.lstrip("-") in LOUDER:
            return f"{context.info_name} has no option {name}: all that happens is said, and a run keeps it in RUN/run.log"
        meant = _option(context, name, value)
        if meant and any(word.partition("=")[0] == "--resume" for word in words) and not GOES_ON.match(meant):
            return f"{context.info_name} has no option {name}, and {meant} cannot be set where a run goes on: {FIXED}"
        return f"{context.info_name} has no option {name}: write {meant}" if meant else message
    if message.startswith("No such command") and "'" in message:
        word = message.split("'")[1]
        near = "" if "ean" in message else nearest(word, context.command.commands)  # newer click suggests it itself
        meant = guesses.verb_hint(word, words[words.index(word) + 1 :] if word in words else [])
        meant = f"jepakit data check {quote(word)}" if context.info_name == "data" and guesses.is_place(word) else meant
        return f"there is no verb '{word}': {meant}" if meant else message + near
    if message.startswith("Got unexpected extra argument") and "/" in message:
        return f"one place at a time, not also {message.rpartition('(')[2].split()[0].rstrip(')')}: {QUOTED}"
    return message


def settings_only(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """The words if all are settings, or unknown ones. Raises UserError for those that belong behind an option."""
    from jepakit.config.config import known_keys
    from jepakit.data.opening import NAMED
    from jepakit.model.method import METHODS

    options = {param.name for param in context.command.params if param.param_type_name == "option"}
    for index, word in enumerate(words or []):
        key, equals, value = word.partition("=")
        if equals and key in options - {"data", "recipe", "method"}:
            raise UserError(f"'{word}': {key} is no setting: write --{key} {quote(value)}")
        if equals:
            continue
        if word in NAMED and "data" in options:
            raise UserError(f"'{word}': to take these images write --data {word}")
        if word in known_keys() and not guesses.is_place(word):
            after = (words or [])[index + 1 : index + 2]
            raise UserError(
                f"'{word}': settings are written group.key=value: write {word}={quote(after[0]) if after else 'VALUE'}"
            )
        if word in METHODS and "method" in options:
            raise UserError(f"'{word}': write --method {word}")
        data, out = (context.params.get(name) for name in ("data", "out"))
        if data is not None and "out" in options and out is None and re.fullmatch(r"[\w/-]+", word) and not os.path.isfile(word):
            raise UserError(f"'{word}': the run's folder is given as --out {quote(word)}")
        if guesses.is_place(word):
            if data is None and os.path.isdir(os.path.expanduser(word)):
                raise UserError(f"'{word}' is a folder: to take its images write --data {quote(word)}")
            raise UserError(f"'{word}' is a place, not a setting: images are given with --data; {QUOTED}")
    return words


def _typed(name: str, words: list[str]) -> tuple[str, str | None]:
    """An option as it was typed (click names -lr by its first letter), and its value."""
    at = next((i for i, word in enumerate(words) if word.startswith(name)), None)
    if at is None:
        return name, None
    option, equals, value = words[at].partition("=")
    after = words[at + 1] if at + 1 < len(words) and not re.match(r"-\D", words[at + 1]) else None
    return option, value if equals else after


def _option(context: typer.Context, name: str, value: str | None) -> str:
    """What to write instead of an option that a verb has not; '' where nothing is known."""
    params = context.command.params
    options = [option for param in params if param.param_type_name == "option" for option in param.opts]
    arguments = {param.name for param in params if param.param_type_name == "argument"}
    word = name.lstrip("-").replace("-", "_")
    images = "data" in arguments and "--data" in (name, guesses.OPTIONS.get(word))
    if images or ({"words", "runs"} & arguments and word in RUNS):
        verb = " ".join(context.command_path.split()[1:])
        return f"jepakit {verb} {'WORD' if value is None else quote(value)}"
    if word in ("version", "V"):
        return "jepakit --version"
    if "--tasks" in options and word in _tasks():
        return f"--tasks {word}"
    from jepakit.config.config import Config, known_keys
    from jepakit.config.recipes import RECIPES
    from jepakit.evaluation.probes.protocol import Protocol
    from jepakit.model.method import METHODS

    keys = known_keys(Config) if "settings" in arguments else known_keys(Protocol) if "words" in arguments else []
    keys = [key for key in keys if f"--{key.rpartition('.')[2]}" not in options]
    presets = {**dict.fromkeys(RECIPES, "--recipe"), **dict.fromkeys(METHODS, "--method")}
    return guesses.option_hint(name, value, options, keys, presets)


def _tasks() -> tuple[str, ...]:
    from jepakit.evaluation.tasks import TASKS

    return (*TASKS, "frozen")
