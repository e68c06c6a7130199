"""Charts with one row for each name: means with their intervals, and bars made of parts."""

import dataclasses
import math
from collections.abc import Sequence

from bert_fast.reporting import scales
from bert_fast.reporting.blocks import with_minus
from bert_fast.reporting.chart import WIDTH, look
from bert_fast.reporting.markup import Html, join, tag

FIXED = {"vector_effect": "non-scaling-stroke"}


@dataclasses.dataclass(frozen=True)
class Dot:
    """A value with its interval. filled: a filled dot, else a ring. words: the text at the right."""

    name: str
    value: float
    low: float
    high: float
    look: int
    words: str
    filled: bool = True


def widths(texts: Sequence[tuple[str, str]]) -> str:
    """The style that gives names and words enough room, in characters."""
    name, words = (max(map(len, column), default=0) for column in zip(*texts, strict=True))
    return f"--name:{min(name + 1, 36)}ch;--words:{min(words + 1, 24)}ch"


def dots(entries: Sequence[Dot], axis: str, about: str, zero: bool = False) -> Html:
    """A row for each entry. zero: whether 0 is on the axis, with its own line."""
    values = [value for dot in entries for value in (dot.low, dot.value, dot.high)] + ([0.0] if zero else [])
    scale = scales.scale_of(values, log=False, room=0.05)
    rows = []
    grid = join(
        tag(
            "line", x1=f"{at:.5g}", x2=f"{at:.5g}", y1=0, y2=24, class_="zero" if zero and value == 0 else None, **FIXED
        )
        for value in scale.ticks(6)
        for at in [WIDTH * scale.place(value)]
    )
    for dot in entries:
        low, high, middle = (WIDTH * scale.place(value) for value in (dot.low, dot.high, dot.value))
        parts = [tag("path", d=f"M{low:.5g} 12H{high:.5g}", class_="interval", **FIXED)] if high > low else []
        parts.append(tag("path", d=f"M{middle:.5g} 12h0", class_="spot", **FIXED))
        if not dot.filled:
            parts.append(tag("path", d=f"M{middle:.5g} 12h0", class_="hole", **FIXED))
        svg = tag(
            "svg", tag("g", grid, class_="grid"), tag("g", *parts, class_=look(dot.look)),
            viewBox=f"0 0 {WIDTH} 24", preserveAspectRatio="none", aria_hidden="true",
        )  # fmt: skip
        rows.append(
            tag(
                "div",
                tag("span", dot.name, class_="name"),
                svg,
                tag("span", with_minus(dot.words), class_="words"),
                class_="row",
            )
        )
    ticks = join(scales.tick_labels(scale, scale.ticks(6)))
    foot = tag("div", tag("span"), tag("div", ticks, class_="x-ticks"), tag("span"), class_="row foot")
    return tag(
        "div",
        *rows,
        foot,
        tag("div", axis, class_="x-name"),
        class_="rows dots",
        role="img",
        aria_label=about,
        style=widths([(dot.name, dot.words) for dot in entries]),
    )


def bars(entries: Sequence[tuple[str, Sequence[float], str]], parts: Sequence[str], about: str) -> Html:
    """A bar for each entry (name, amounts of the parts, words at the right), and a legend.

    Each part is drawn as a share of the sum of its bar.
    """
    rows = []
    for name, amounts, words in entries:
        total = math.fsum(amounts) or 1.0
        left, cells = 0.0, []
        for number, amount in enumerate(amounts):
            width = WIDTH * amount / total
            about_it = tag("title", f"{name}: {parts[number]} {amount / total:.1%}")
            cells.append(
                tag(
                    "g",
                    about_it,
                    tag("rect", x=f"{left:.5g}", y=3, width=f"{width:.5g}", height=18),
                    class_=f"p{number}",
                )
            )
            left += width
        svg = tag("svg", *cells, viewBox=f"0 0 {WIDTH} 24", preserveAspectRatio="none", aria_hidden="true")
        rows.append(tag("div", tag("span", name, class_="name"), svg, tag("span", words, class_="words"), class_="row"))
    box = tag("rect", x=0, y=1, width=14, height=12)
    legend = tag(
        "ul",
        *(
            tag("li", tag("svg", box, viewBox="0 0 14 14", class_=f"box p{number}", aria_hidden="true"), part)
            for number, part in enumerate(parts)
        ),
        class_="legend",
    )
    style = widths([(name, words) for name, _, words in entries])
    return join([tag("div", *rows, class_="rows", role="img", aria_label=about, style=style), legend])
