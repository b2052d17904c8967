"""The house: imports run one way through the rooms, and one public name means one thing."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jepakit
from jepakit.config.config import Config, known_keys
from jepakit.evaluation.probes.protocol import Protocol

SOURCE = Path(jepakit.__file__).parent
ROOMS = ["core", "model", "data", "config", "artifacts", "evaluation", "pictures", "training", "planning", "study", "cli"]
# functions, and commands of the same name
VERBS = {
    "demo",
    "doctor",
    "pretrain",
    "evaluate",
    "embed",
    "search",
    "export",
    "push",
    "report",
    "runs",
    "study",
    "recipes",
    "plan",
    "check",
    "pack",
}


def imported(path: Path) -> Iterator[str]:
    """The room of each import of ours, anywhere in a file, for types too; `jepakit` itself is "".

    The package's own names are lazy, so that taking one from `jepakit` would hide where it lies.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        above = ["jepakit", *path.relative_to(SOURCE).parts[:-1]]
        base = above[: len(above) - level + 1] if level else []
        if isinstance(node, ast.ImportFrom):
            base = [*base, *(node.module or "").split(".")]
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = [part for part in name.split(".") if part]
            if parts[0] == "jepakit" and parts[-1] != "__version__":
                yield parts[1] if len(parts) > 1 else ""


def test_imports_run_one_way() -> None:
    for room in ROOMS:
        for path in sorted((SOURCE / room).rglob("*.py")):
            right = {*ROOMS[ROOMS.index(room) + 1 :]} | {""}
            allowed = {"reporting"} if room == "cli" else set()
            wrong = [there for there in imported(path) if there in right or there not in (*ROOMS, *allowed)]
            assert not wrong, (path, wrong)
    for path in (SOURCE / "reporting").rglob("*.py"):
        assert {*imported(path)} <= {"reporting", "core"}, path


def test_every_file_is_in_a_room_and_says_what_is_in_it() -> None:
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py", "metrics.py"}
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"} == {*ROOMS, "reporting"}
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_one_public_name_is_defined_once() -> None:
    """Verbs have a function and a command of the same name; type variables and loggers are what they are everywhere."""
    where = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names += [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            for name in names:
                where[name].add(path)
    repeated = {name: paths for name, paths in where.items() if len(paths) > 1 and not name.startswith("_")}
    assert repeated.keys() <= VERBS | {"T", "log"}, repeated


def test_text_files_have_one_encoding_on_every_system() -> None:
    """Where none is named it is the system's, on Windows often none that holds all names."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            modes = [word for word in given if re.fullmatch("[rwax][t+]*", word)]
            opens_text = isinstance(node.func, ast.Attribute) and name == "open" and not node.args
            inside_archive = ast.unparse(node.func).startswith("archive.")
            text = name == "write_text" or (name == "read_text" and not given) or (name == "open" and modes) or opens_text
            assert not text or inside_archive, (path.name, node.lineno)


def test_every_path_that_a_document_names_is_there() -> None:
    root = Path(__file__).parents[1]
    for page in [root / "README.md", *(root / "docs").glob("*.md"), *root.glob("CONTRIBUTING.md")]:
        for name in re.findall(r"\b(?:src|tests|benchmarks|scripts|docs)/[\w./-]*\w", page.read_text()):
            assert (root / name).exists(), (page.name, name)


def test_the_reference_of_settings_is_of_the_settings_as_they_are() -> None:
    root = Path(__file__).parents[1]
    sys.path.append(str(root / "scripts"))
    from settings import text

    assert (root / "docs" / "settings.md").read_text() == text(), "python scripts/settings.py"
    named = {line.split("`")[1] for line in text().splitlines() if line.startswith("| `")}
    for model in (Config, Protocol):
        keys = known_keys(model)
        assert {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)} <= named
