"""Blocks of README.md and docs/*.md, and the notebook: what they say exists, and what is said to run does.

Checked without being run, all of them: each `jepakit` command line, in blocks and in the text, by the program's own parser
(verbs, options, settings and their values, recipes, methods, tasks); each Python block is compiled, and each name and keyword
of jepakit's that it uses is looked up.
Run, in a smoke size: the commands of docs/tutorial.md in order, the Python blocks of `RUN` in order, and the cells of
docs/tour.ipynb. docs/solar-cells.md is run by tests/cli/test_worked_example.py.
Not run: what `NOT_RUN` lists, with the reason; of all pages the commands that take other data, GPUs, a network or hours. The
verbs that they name are run by tests of the rooms.
"""

import ast
import importlib
import inspect
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from PIL import Image

import jepakit
from jepakit import cli
from jepakit.cli.options import app
from jepakit.config.config import Config, known_keys, overrides
from jepakit.config.recipes import settings
from jepakit.config.renamed import RENAMED
from jepakit.data.sets.emoji import emoji
from jepakit.evaluation.probes.protocol import Protocol
from jepakit.evaluation.tasks import TASKS
from pages import PAGES, ROOT, read

RUN = ("python.md",)
NOT_RUN = {
    "README.md": "the first lines of the package, over again in docs/tutorial.md and docs/python.md, which are run",
    "embeddings.md": "the calls of the tutorial's commands, which are run",
    "pictures.md": "calls that tests/pictures runs",
    "evaluation.md": "needs the extra `detection`",
}
SHAPE = "images.size=16 encoder.patch_size=4 encoder.width=16 encoder.depth=1 encoder.heads=2 predictor.width=8 predictor.depth=1"
SMALL = f"{SHAPE} masking.min_keep=2 optim.batch_size=8 optim.epochs=2 run.threads=1".split()
COMMANDS: Any = typer.main.get_command(app)
BY_NAME = {path.name: read(path) for path in PAGES}


def parsed(words: list[str], *, whole: bool) -> tuple[str, dict[str, Any]]:
    """The verb, and the values of its parameters, as the program takes them; of what is not `whole` a word may be missing."""
    command, name = COMMANDS, "jepakit"
    while hasattr(command, "commands"):
        while words and words[0].startswith("-"):  # of the program itself; none takes a value
            assert any(words[0] in param.opts for param in command.params) or words[0] in ("-h", "--help"), words[0]
            words = words[1:]
        if not words:
            return name, {}
        assert words[0] in command.commands, f"no verb {words[0]}"
        command, name, words = command.commands[words[0]], f"{name} {words[0]}", words[1:]
    try:
        return name, command.make_context(name, [*words]).params
    except Exception as error:
        if type(error).__name__ == "MissingParameter" and not whole:
            return name, {}
        raise


def given(value: Any) -> bool:
    """Whether a value is one, not a word in its place such as NAME."""
    return bool(value) and not str(value).isupper()


def check_settings(verb: str, params: Mapping[str, Any]) -> None:
    """Settings are those of the verb, with values that it takes. Raises UserError, as the program does."""
    words = [word for word in params.get("settings") or [] if word.isascii() and not word.isupper()]
    recipe = params.get("recipe") if given(params.get("recipe")) else None
    if "settings" in params and not (params.get("config") or params.get("resume") or params.get("init_from")):
        settings(recipe, params.get("method"), overrides(words))
    else:
        overrides(words)
    if verb == "jepakit evaluate":
        overrides([word for word in params.get("words", []) if "=" in word], Protocol)
        assert {*params.get("tasks", "knn").split(",")} <= {*TASKS, "frozen"}, params["tasks"]


@pytest.mark.parametrize("page", BY_NAME)
def test_every_command_line_is_one_that_the_program_takes(page: str) -> None:
    for whole, lines in ((True, BY_NAME[page].commands()), (False, BY_NAME[page].mentions())):
        for words in lines:
            try:
                check_settings(*parsed(words, whole=whole and words[-1:] != [words[0]]))
            except Exception as error:
                pytest.fail(f"{page}: jepakit {' '.join(words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("page", BY_NAME)
def test_every_setting_that_a_text_names_is_one(page: str) -> None:
    keys = [*known_keys(Config), *known_keys(Protocol)]
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for text in BY_NAME[page].inline:
        for word in text.split():
            key = word.partition("=")[0]
            if "=" in word and key.partition(".")[0] in groups and "." in key and "(" not in key:
                assert key in keys or key in RENAMED, f"{page}: `{text}`: there is no setting {key}"


def test_the_check_of_command_lines_sees_what_is_wrong() -> None:
    for line in (
        "pretrian --data a",
        "--nosuch pretrain --data a",
        "pretrain --dta a --out b",
        "pretrain --data a --out b optim.lrr=1",
        "pretrain --data a --out b optim.lr=fast",
        "evaluate runs/a --tasks knnn",
        "evaluate runs/a knn.kk=3",
        "embed runs/a",
        "data chek photos/",
        "plan --recipe nosuch",
    ):
        with pytest.raises(Exception):  # noqa: B017  # click's, ours, or an assertion
            check_settings(*parsed(line.split(), whole=True))


# Python blocks: which object of jepakit's a name is, as far as calls and annotations tell


def named(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The object, or for a variable the class, that an expression of names and calls stands for; None where not known.

    Raises AssertionError for an attribute that it does not have, and for a keyword that a call does not take.
    """
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        return attribute(named(node.value, known), node.attr)
    if isinstance(node, ast.Call):
        called = named(node.func, known)
        if called is None:
            return None
        check_keywords(called, node)
        if inspect.isclass(called):
            return called
        return single(hints_of(called).get("return")) if inspect.isfunction(called) else None
    return None


def attribute(owner: Any, name: str) -> Any:
    if owner is None:
        return None
    hints = hints_of(owner) if inspect.isclass(owner) else {}
    own = inspect.isclass(owner) and f"self.{name}" in inspect.getsource(owner)
    assert hasattr(owner, name) or name in hints or own, f"{getattr(owner, '__name__', owner)} has no {name}"
    found = getattr(owner, name, None)
    return found if inspect.ismodule(found) or inspect.isclass(found) or inspect.isfunction(found) else single(hints.get(name))


def hints_of(thing: Any) -> dict[str, Any]:
    """Annotations; of foreign things that name what is imported for type checkers alone, none."""
    try:
        return get_type_hints(thing)
    except NameError:
        return {}


def single(annotation: Any) -> Any:
    """A class of ours that an annotation says, or None."""
    kinds = [part for part in (annotation, *get_args(annotation)) if inspect.isclass(part)]
    ours = [kind for kind in kinds if kind.__module__.startswith("jepakit") and not isinstance(kind, types.GenericAlias)]
    return ours[0] if annotation in ours else None


def check_keywords(called: Any, call: ast.Call) -> None:
    if not getattr(called, "__module__", "").startswith("jepakit"):
        return
    taken = inspect.signature(called).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    groups = {key.partition(".")[0] for model in (Config, Protocol) for key in known_keys(model)}
    any_other = free and called.__name__ not in jepakit.__all__  # of ours the others are groups of settings
    for keyword in call.keywords:
        known = keyword.arg is None or keyword.arg in taken or any_other or (free and keyword.arg in groups)
        assert known, f"{called.__name__} takes no {keyword.arg}"
        if keyword.arg in groups - {*taken} and isinstance(keyword.value, ast.Dict):
            for key in keyword.value.keys:
                dotted = f"{keyword.arg}.{ast.literal_eval(key)}" if key else ""
                assert not dotted or dotted in (*known_keys(Config), *known_keys(Protocol)), f"unknown setting {dotted}"


def check_python(text: str, known: dict[str, Any]) -> None:
    """A block compiles, and what of jepakit it names is there; `known` learns its variables."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "jepakit":
                    known[alias.asname or "jepakit"] = importlib.import_module(alias.name) if alias.asname else jepakit
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jepakit":
            for alias in node.names:
                known[alias.asname or alias.name] = attribute(importlib.import_module(str(node.module)), alias.name)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = named(node.value, known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call | ast.Attribute):
            named(node, known)


@pytest.mark.parametrize("page", [name for name, page in BY_NAME.items() if page.python()])
def test_every_python_block_compiles_and_names_what_is_there(page: str) -> None:
    known: dict[str, Any] = {}
    for text, line in BY_NAME[page].python():
        try:
            check_python(text, known)
        except (SyntaxError, AssertionError) as error:
            pytest.fail(f"{page}:{line}: {error}")
    assert page in (*RUN, *NOT_RUN), f"{page}: run its Python, or say in NOT_RUN why not"


def test_the_check_of_python_blocks_sees_what_is_wrong() -> None:
    for text in (
        "jepakit.pretran()",
        "jepakit.pretrain(dta='x')",
        "jepakit.pretrain('x', optim={'lrr': 1})",
        "encoder = jepakit.load('x')\nencoder.embedd([])",
        "from jepakit.model import nothing",
        "jepakit.search('x', k=5, html='y')",
    ):
        with pytest.raises((AssertionError, ImportError)):
            check_python(f"import jepakit\n{text}", {})
    check_python("import jepakit\nrun = jepakit.pretrain('x', optim={'lr': 1})\nrun.path\njepakit.load('x').vit", {})


# what is run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, as the notebook's smoke."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEPAKIT_TOUR", "smoke")
    return tmp_path


def test_the_tutorial_goes_from_photographs_to_a_page_of_neighbours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos").mkdir()
    for number, pixels in enumerate(emoji().images[::200]):
        Image.fromarray(pixels).save(folder / "photos" / f"{number:03d}.png")
    lines = BY_NAME["tutorial.md"].commands()
    wanted = ["data", "pretrain", "report", "embed", "search"]
    assert list(dict.fromkeys(words[0] for words in lines)) == wanted, "the way that the tutorial's title says"
    for words in lines:
        if "--dry-run" in words:  # times steps for 20 s; tests/cli/test_first_minutes.py runs it
            continue
        small = SMALL if words[0] == "pretrain" and "--resume" not in words else []
        words = [word for word in words if not word.startswith("optim.epochs")] if small else words
        if words[:1] == ["search"] and "--row" not in words:
            words[2] = "photos/003.png"
        cli.main([*words, *small])
    said = capsys.readouterr().out
    assert "verdict" in said and "photos/003.png" in said and "page: nearest.html" in said
    assert {path.name for path in folder.iterdir()} >= {"photos.parquet", "nearest.html"}
    assert (folder / "runs/first/report.html").is_file()


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, folder: Path) -> None:
    text = "\n".join(text for text, _ in BY_NAME[page].python())
    names: dict[str, Any] = {}
    exec(text.replace("num_workers=2", "num_workers=0"), names)
    assert all(len(vectors) == 16 for vectors in names["vectors"]) and names["table"]["knn"]


def test_the_notebook_runs_from_top_to_bottom(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Jupyter: its cells in order, in the size that JEPAKIT_TOUR=smoke gives them."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            text = "".join(line for line in cell["source"] if not line.startswith("%"))
            check_python("import jepakit\n" + text, dict(names))
            exec(text, names)
    assert len(names["near"].paths) == 8 and (folder / "runs/tour/hf/model.safetensors").is_file()


def test_the_notebook_holds_what_its_cells_gave() -> None:
    path = ROOT / "docs" / "tour.ipynb"
    assert path.stat().st_size < 500_000
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4, "make notebook"
    assert all(output["output_type"] != "error" for output in outputs)
