"""Sphinx's configuration: the pages of this folder as a site, with references written at build time (`make docs`)."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "src"), str(HERE.parent / "scripts")]
from reference import write_pages

from jepakit import __version__

project, release, language = "jepakit", __version__, "en"
copyright = "the authors of jepakit; Apache-2.0"
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
highlight_language = "none"  # indented blocks are command lines and formulas
nitpicky = True

myst_heading_anchors = 4  # the anchors that a code host gives
myst_enable_extensions = ["colon_fence"]
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"jepakit {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it fetches each page that was found, which a page opened as a file may not

write_pages(HERE / "_reference")


# docs/index.md is the table of contents: its headings are the parts of the sidebar, its links their pages, in its order
MADE = "## Reference\n\n- [Every verb](_reference/verbs.md)\n- [Every public Python name](_reference/names.md)\n"  # at each build


def _contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Trees of contents after the index, from its own lists; the notebook is shown as the page that is made of it."""
    text = source[0].replace("(tour.ipynb)", "(_reference/tour.md)")
    if page == "index":
        text = text.replace("## Reference\n\n", MADE)
        for part in text.split("\n## ")[1:]:
            title, pages = part.split("\n", 1)[0], re.findall(r"^- \[(.*?)\]\((.*?)\.md\)", part, re.MULTILINE)
            entries = [f"{name} <{place}>" for name, place in pages]
            text += "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {title}", "", *entries, "```"])
    source[0] = text


def setup(app: Sphinx) -> None:
    app.connect("source-read", _contents)
