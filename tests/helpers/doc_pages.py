"""Reads the documentation: the pages, their links, their headings and their fences."""

import itertools
import pathlib
import re
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).parents[2]
RUN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # pages whose fences are run
LINKED = [*RUN, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").rglob("*.md"))]


class Fence(NamedTuple):
    """A fenced block of a page: its language, its text, and the line on which it begins."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The name of the file that the block shows, from the first line (`# mine.py`). Empty if it shows no file."""
        found = re.match(r"# ([\w/.-]+\.\w+)\n", self.text)
        return found[1] if found else ""


def parsed(path: pathlib.Path) -> list:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def fences(path: pathlib.Path) -> list[Fence]:
    """The page's fences, in order."""
    blocks = [token for token in parsed(path) if token.type == "fence"]
    return [Fence(token.info.strip(), token.content, token.map[0] + 1) for token in blocks]


def links(path: pathlib.Path) -> list[str]:
    """Targets of the page's links and pictures, in order."""
    inside = [child for token in parsed(path) for child in token.children or ()]
    return [str(child.attrs[key]) for child in inside for key in ("href", "src") if key in child.attrs]


def anchors(path: pathlib.Path) -> set[str]:
    """Anchors of the page's headings, as GitHub and MyST make them."""
    found, tokens = set(), parsed(path)
    for token, following in itertools.pairwise(tokens):
        if token.type == "heading_open":
            children = [child for child in following.children or () if child.type in ("text", "code_inline")]
            heading = "".join(child.content for child in children).strip().lower()
            slug = name = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
            number = 0
            while slug in found:
                number += 1
                slug = f"{name}-{number}"
            found.add(slug)
    return found
