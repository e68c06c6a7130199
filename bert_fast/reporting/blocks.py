"""What a report is made of: sections of paragraphs, tables and figures, as HTML and as Markdown."""

import dataclasses
import re
from collections.abc import Sequence

from bert_fast.reporting.markup import Html, join, tag


def with_minus(cell: object) -> str:
    """A cell with minus signs in place of hyphens before numbers."""
    return re.sub(r"(?<![\w.-])-(?=[\d.])", "\N{MINUS SIGN}", str(cell))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of words and numbers. words: the number of columns, from the left, that hold words.

    marked: whether each row is highlighted. If this is empty, no row is.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
    marked: Sequence[bool] = ()

    def html(self) -> Html:
        """The table in a box that can be scrolled sideways, also by keyboard."""
        kinds = ["words" if column < self.words else "number" for column in range(len(self.heads))]
        head = join(tag("th", name, scope="col", class_=kind) for name, kind in zip(self.heads, kinds, strict=True))
        body = []
        for index, row in enumerate(self.rows):
            first, *others = row
            cells = [tag("th", first, scope="row", class_=kinds[0])]
            cells += [tag("td", with_minus(cell), class_=kind) for cell, kind in zip(others, kinds[1:], strict=True)]
            marked = bool(self.marked) and self.marked[index]
            body.append(tag("tr", *cells, class_="marked" if marked else None))
        table = tag(
            "table", tag("caption", self.caption), tag("thead", tag("tr", head)), tag("tbody", join(body))
        )  # fmt: skip
        return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=self.caption)

    def markdown(self) -> str:
        def line(cells: Sequence[object]) -> str:
            texts = (" ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
            return "| " + " | ".join(texts) + " |"

        rule = "|" + "".join("---|" if column < self.words else "---:|" for column in range(len(self.heads)))
        return "\n".join([line(self.heads), rule, *map(line, self.rows)])


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture with a caption, and a table of the numbers in it."""

    title: str
    picture: Html
    table: Table
    note: str = ""

    def html(self) -> Html:
        parts: list[object] = [tag("figcaption", self.title), self.picture]
        if self.note:
            parts.append(tag("p", self.note, class_="note"))
        parts.append(tag("details", tag("summary", "Table of these numbers"), self.table.html()))
        return tag("figure", *parts)

    def markdown(self) -> str:
        return "\n\n".join(part for part in (f"**{self.title}**", self.note, self.table.markdown()) if part)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Figures that share a line where there is room."""

    figures: Sequence[Figure]

    def html(self) -> Html:
        return tag("div", *(figure.html() for figure in self.figures), class_="pairs")

    def markdown(self) -> str:
        return "\n\n".join(figure.markdown() for figure in self.figures)


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of a part of a section."""

    text: str

    def html(self) -> Html:
        return tag("h3", self.text)

    def markdown(self) -> str:
        return f"### {self.text}"


Block = str | Html | Heading | Table | Figure | Pairs  # a str is a paragraph; Html is left out of Markdown


def as_html(block: Block) -> Html:
    if isinstance(block, Html):
        return block
    return tag("p", block) if isinstance(block, str) else block.html()


def as_markdown(block: Block) -> str:
    if isinstance(block, Html):
        return ""
    return block if isinstance(block, str) else block.markdown()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page. name: the target of links."""

    name: str
    title: str
    blocks: Sequence[Block]

    def html(self) -> Html:
        return tag("section", tag("h2", self.title), *map(as_html, self.blocks), id=self.name)

    def markdown(self) -> str:
        texts = map(as_markdown, self.blocks)
        return "\n\n".join([f"## {self.title}", *(text for text in texts if text)])


def page(title: str, lead: str, warnings: Sequence[str], sections: Sequence[Section], style: str, script: str) -> Html:
    """The whole HTML page. It loads no other files."""
    links = join(tag("a", section.title, href=f"#{section.name}") for section in sections)
    notes = [tag("div", tag("ul", *(tag("li", text) for text in warnings)), class_="warning", role="note")]
    main = tag(
        "main",
        tag("header", tag("h1", title), tag("p", lead, class_="lead"), *(notes if warnings else [])),
        tag("nav", links, aria_label="Sections") if len(sections) > 1 else "",
        *(section.html() for section in sections),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="bert_fast"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag("body", main, tag("div", "", id="tip", role="presentation", hidden=True), tag("script", Html(script)))
    return Html(f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n")


def markdown(title: str, lead: str, warnings: Sequence[str], sections: Sequence[Section], picture: str) -> str:
    """The report as Markdown. picture: the name of the PNG file that the report shows; empty if it shows none."""
    parts = [f"# {title}", lead, *(f"**Note:** {text}" for text in warnings)]
    if picture:
        parts.append(f"![Loss against tokens, FLOPs and seconds]({picture})")
    return "\n\n".join([*parts, *(section.markdown() for section in sections)]) + "\n"
