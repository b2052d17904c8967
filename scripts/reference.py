"""Writes the pages of the site that come from the program itself: every verb, every public Python name, the notebook as a page.

docs/conf.py calls `write_pages` at each build (`make docs`), so that they cannot be of another version; nothing of it is kept.
"""

import base64
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import typer
from typer.utils import get_params_from_function

import jepakit
from jepakit.cli.options import app

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def write_pages(folder: Path) -> None:
    """verbs.md, names.md and tour.md with its pictures, in a folder that is made."""
    folder.mkdir(exist_ok=True)
    (folder / "verbs.md").write_text("\n".join(verbs()) + "\n")
    (folder / "names.md").write_text("\n".join(names()) + "\n")
    (folder / "tour.md").write_text("\n".join(notebook_page(json.loads(NOTEBOOK.read_text()), folder)) + "\n")


def prose(text: str) -> str:
    """A docstring as Markdown: signs of its own kept as they are outside of code, paragraphs with columns as blocks."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"```text\n{each}\n```" if re.search(r"^ |\S {2,}\S", each, re.M) else plain(each) for each in paragraphs)


def plain(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|\\$~])", r"\\\1", part) for part in parts)


# verbs


def verbs() -> Iterator[str]:
    """The page of all verbs, from the commands that parse them."""
    yield "# Verbs\n\nWhat `jepakit VERB --help` says, of all verbs; made from the program when this page was built."
    yield "Behind the options of `pretrain`, `demo`, `plan`, `study` and `data check` stand [settings](../settings.md) as words,"
    yield "behind those of `evaluate` its own.\n"
    root: Any = typer.main.get_command(app)
    yield from command("jepakit", root)
    for name, each in root.commands.items():
        if hasattr(each, "commands"):
            for inner, below in each.commands.items():
                yield from command(f"jepakit {name} {inner}", below)
        else:
            yield from command(f"jepakit {name}", each)


def command(name: str, each: Any) -> Iterator[str]:
    """A command: what it does, how it is called, and its options as a table."""
    context = typer.Context(each, info_name=name)
    usage = re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), " ".join(each.collect_usage_pieces(context)))
    yield f"## {name}\n\n{plain(each.help or '')}\n\n```text\n{name} {usage}\n```\n"
    meant = parameters(each.callback)
    rows = [row(param, meant.get(param.name)) for param in each.params if not getattr(param, "hidden", False)]
    if rows:
        yield "| option | takes | default | meaning |\n|---|---|---|---|"
        yield from rows
        yield ""


def parameters(callback: Any) -> dict[str, Any]:
    """What a command's function says of its parameters, of those too that come from a table of options."""
    return get_params_from_function(inspect.unwrap(callback, stop=lambda each: hasattr(each, "__signature__")))


def row(param: Any, meant: Any) -> str:
    """An option or argument; meant: what its function says of it."""
    option = param.param_type_name == "option"
    words = [*param.opts, *param.secondary_opts] if option else [param.metavar or str(param.name).upper()]
    takes = "" if not option or param.is_flag else choices(meant)
    default = param.default if isinstance(param.default, str | int | float | Path) and not isinstance(param.default, bool) else ""
    needed = "to be given" if param.required and option else f"`{default}`" if str(default) else ""
    cells = (", ".join(f"`{word}`" for word in words), takes, needed, plain(getattr(param, "help", "") or ""))
    return f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def choices(meant: Any) -> str:
    """What an option takes, in words, with its bounds."""
    words = {str: "words", Path: "a path", int: "a whole number", float: "a number"}
    kinds = (meant.annotation, *get_args(meant.annotation))
    kind = next((words[each] for each in kinds if each in words), "words")
    bounds = [f"{sign} {value:g}" for sign, value in (("≥", meant.default.min), ("≤", meant.default.max)) if value is not None]
    return ", ".join([kind, *bounds])


# Python names


def names() -> Iterator[str]:
    """The page of all public names of `jepakit`, from their docstrings."""
    yield "# Python names\n\nAll that `import jepakit` offers, from its docstrings, made when this page was built;"
    yield "how they go together: [from Python](../python.md).\n"
    for name in jepakit.__all__:
        thing = getattr(jepakit, name)
        yield f"## jepakit.{name}\n"
        if isinstance(thing, ModuleType):
            yield prose(thing.__doc__ or "") + "\n"
            for inner in thing.__all__:
                yield from described(f"{name}.{inner}", getattr(thing, inner), 3)
        else:
            yield from described(name, thing, 3, title=False)


def described(name: str, thing: Any, level: int, *, title: bool = True) -> Iterator[str]:
    """A function, or a class with its own public methods and properties."""
    if title:
        yield f"{'#' * level} {plain(name)}\n"
    yield f"```python\n{signature(name, thing)}\n```\n\n{prose(inspect.getdoc(thing) or '')}\n"
    if not inspect.isclass(thing) or issubclass(thing, Exception):
        return
    for inner, value in vars(thing).items():
        method = getattr(value, "__func__", value)
        if inner.startswith("_") or not (inspect.isfunction(method) or isinstance(value, property)) or not inspect.getdoc(method):
            continue
        shown = inner if isinstance(value, property) else signature(inner, method)
        yield f"```python\n{shown}\n```\n\n{prose(inspect.getdoc(method) or '')}\n"


def signature(name: str, thing: Any) -> str:
    """A call with its annotations, an argument a line where it is long."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    called = name.rpartition(".")[2]
    if len(words := short(f"{called}{found}")) < 100:
        return words
    arguments = [short(str(each)) for each in found.parameters.values()]
    first = next((i for i, each in enumerate(found.parameters.values()) if each.kind is each.KEYWORD_ONLY), None)
    if first is not None and not any(each.startswith("*") for each in arguments[:first]):
        arguments.insert(first, "*")
    inner = "".join(f"    {each},\n" for each in arguments)
    return f"{called}(\n{inner})" + (f" -> {words.rpartition(' -> ')[2]}" if " -> " in words else "")


def short(words: str) -> str:
    """A signature without the modules of its names; keywords that a class lists by that class."""
    return re.sub(r"\*<class '(\w+)'>", r"\1", re.sub(r"(?:\w+\.)+(?=[A-Za-z_])", "", words))


# the notebook


def notebook_page(notebook: dict[str, Any], folder: Path) -> Iterator[str]:
    """Cells of a notebook as Markdown; pictures that they gave are written into the folder."""
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield re.sub(r"\]\((?=[\w-]+\.md)", "](../", source) + "\n"  # pages beside the notebook
            continue
        yield f"```python\n{source}\n```\n"
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                picture = folder / f"tour-{number}-{place}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                yield f"![what the cell shows]({picture.name})\n"
            elif text := "".join(output.get("text", data.get("text/plain", ""))).strip():
                yield f"```text\n{text}\n```\n"
