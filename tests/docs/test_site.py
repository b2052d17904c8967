"""The site: links and anchors lead somewhere, figures are those of the code, the index has every page, references are whole."""

import re
import sys
from pathlib import Path

import pytest
import typer

import jepakit
from jepakit.cli.options import app
from pages import DOCS, PAGES, ROOT, WRITTEN, Page, read

sys.path.append(str(ROOT / "scripts"))
import figures
import reference

EXTERNAL = re.compile(r"https?://[\w-]+(\.[\w-]+)+(/[\w%.~:@!$&'*+,;=/?#-]*)?")
LINKING = [*PAGES, ROOT / "docs" / "tour.ipynb"]
READ: dict[str, Page] = {str(path.resolve()): read(path) for path in LINKING}


@pytest.mark.parametrize("page", LINKING, ids=[path.name for path in LINKING])
def test_every_link_leads_to_a_file_that_is_there_and_to_a_heading_of_it(page: Path) -> None:
    """As a code host resolves them. Of addresses elsewhere the form alone is looked at: nothing is asked of a network."""
    for link in READ[str(page.resolve())].links:
        if "://" in link or link.startswith("mailto:"):
            assert EXTERNAL.fullmatch(link), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page.resolve()
        assert target.exists() and target.is_relative_to(ROOT.resolve()), link
        assert not anchor or anchor in READ[str(target)].slugs, f"{link}: no such heading"


def test_the_index_lists_every_page() -> None:
    listed = {link.partition("#")[0] for link in READ[str((DOCS / "index.md").resolve())].links}
    pages = {path.relative_to(DOCS).as_posix() for path in WRITTEN} - {"index.md"}
    assert pages <= listed, pages - listed


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_those_that_the_code_draws(name: str) -> None:
    assert (figures.FOLDER / name).read_text() == figures.FIGURES[name](), "python scripts/figures.py"


def test_the_reference_has_every_verb_with_its_options_and_every_public_name() -> None:
    page = "\n".join(reference.verbs())
    root = typer.main.get_command(app)
    commands = {f"jepakit {name}": each for name, each in root.commands.items() if not hasattr(each, "commands")}  # type: ignore[attr-defined]
    commands |= {f"jepakit data {name}": each for name, each in root.commands["data"].commands.items()}  # type: ignore[attr-defined]
    parts = dict(zip(re.findall(r"^## (.*)$", page, re.M), re.split(r"^## .*$", page, flags=re.M)[1:], strict=True))
    assert parts.keys() == {"jepakit", *commands}
    for name, command in commands.items():
        for param in command.params:
            if param.param_type_name == "option" and not param.hidden:
                assert all(f"`{option}`" in parts[name] for option in param.opts), (name, param.name)
                assert param.help, f"{name} {param.name}: say what it does"
    names = re.findall(r"^## jepakit\.(\w+)$", "\n".join(reference.names()), re.M)
    assert names == jepakit.__all__
    assert all(getattr(jepakit, name).__doc__ for name in jepakit.__all__)
