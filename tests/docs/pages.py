"""What a page of Markdown holds, by the parser that a code host's rules are written for: code, command lines, links, headings."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# All that are written, and none in _build or _reference, which are made of them
WRITTEN = sorted(path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).parts[0].startswith("_"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *WRITTEN]
PARSER = MarkdownIt("commonmark").enable("table")


@dataclass
class Page:
    """code: (language, text, first line) of each block, fenced or indented; inline: code in the text; slugs: of headings."""

    code: list[tuple[str, str, int]] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    slugs: set[str] = field(default_factory=set)

    def python(self) -> list[tuple[str, int]]:
        return [(text, line) for language, text, line in self.code if language == "python"]

    def commands(self) -> list[list[str]]:
        """Words of each line of a block that calls the program, without `...`; of lines that go on, all of them."""
        shell = "\n".join(text for language, text, _ in self.code if language in ("", "bash", "console"))
        found = []
        for line in shell.replace("\\\n", " ").splitlines():
            if "jepakit" not in line:
                continue
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a sentence with an apostrophe
                continue
            for part in _parts(words):
                if (program := _program(part)) is not None:
                    found.append([word for word in part[program + 1 :] if word not in ("...", "…")])
        return found

    def mentions(self) -> list[list[str]]:
        """Command lines within the text: brackets of what may be left out taken off, N a number, `key=…` left out."""
        lines = [text for text in self.inline if re.match(r"jepakit [a-z-]", text)]
        words = [re.sub(r"[\[\]]", "", line).split()[1:] if "=[" not in line else shlex.split(line)[1:] for line in lines]
        return [[{"N": "1"}.get(word, word) for word in each if not word.endswith("…")] for each in words]


def _parts(words: list[str]) -> list[list[str]]:
    """A line's commands: apart at && || | and ;"""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", "|", ";"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _program(words: list[str]) -> int | None:
    """Where the program stands in a command: its first word, or -m's of python, torchrun or srun."""
    words = words[1:] if words[:1] == ["$"] else words
    if words and words[0].rpartition("/")[2] == "jepakit":
        return 0
    at = [i for i, word in enumerate(words) if word == "jepakit" and i and words[i - 1] == "-m"]
    return at[0] if at and words[0] in ("python", "torchrun", "srun") else None


def slug(title: str) -> str:
    """The anchor that a code host gives a heading, and MyST too."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def read(path: Path) -> Page:
    """The page in a file; of a notebook its text."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    page, tokens = Page(), PARSER.parse(text)
    for i, token in enumerate(tokens):
        if token.type in ("fence", "code_block"):
            page.code.append((token.info.split(" ")[0], token.content, token.map[0] + 1 if token.map else 0))
        if token.type == "heading_open":
            page.slugs.add(slug(_plain(tokens[i + 1])))
        for child in token.children or []:
            if child.type == "code_inline":
                page.inline.append(child.content)
            if child.type in ("link_open", "image"):
                page.links.append(str(child.attrGet("href") or child.attrGet("src")))
    return page


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])
