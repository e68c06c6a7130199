"""How ranked lists of words changed in a run.

Each column shows the list of one log row. A curve joins a word's places in neighbouring columns.
"""

from collections.abc import Sequence

from bert_fast.reporting.markup import Html, tag

COLUMNS = 6  # at most this many log rows are shown
STEP, ROW, TOP = 150, 22, 26  # sizes in pixels


def chosen(lists: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[int, Sequence[str]]]:
    """At most COLUMNS of the lists, evenly spread, with the first and the last."""
    if len(lists) <= COLUMNS:
        return list(lists)
    return [lists[round(index * (len(lists) - 1) / (COLUMNS - 1))] for index in range(COLUMNS)]


def picture(lists: Sequence[tuple[int, Sequence[str]]], about: str) -> Html:
    """A picture of the lists, ordered by step, with the first word of each on top. It can be scrolled sideways."""
    columns = chosen(lists)
    texts, lines = [], []
    for number, (step, words) in enumerate(columns):
        left = number * STEP + 8
        texts.append(tag("text", f"step {step:,}", x=left, y=14, class_="head"))
        before = columns[number - 1][1] if number else []
        for place, word in enumerate(words):
            middle = TOP + ROW * place + ROW / 2
            new = bool(number) and word not in before
            text = word if len(word) <= 15 else f"{word[:14]}…"
            texts.append(
                tag("text", tag("title", word), text, x=left, y=f"{middle + 4:g}", class_="new" if new else None)
            )
            if number and not new:
                start = TOP + ROW * before.index(word) + ROW / 2
                x0 = (number - 1) * STEP + 18 + 7.4 * min(len(word), 15)
                x1 = left - 6
                bend = (x0 + x1) / 2
                curve = f"M{x0:g} {start:g}C{bend:g} {start:g} {bend:g} {middle:g} {x1:g} {middle:g}"
                lines.append(tag("path", d=curve, class_="moved" if start != middle else None))
    width, height = STEP * len(columns), TOP + ROW * max((len(words) for _, words in columns), default=0) + 4
    svg = tag(
        "svg", tag("g", *lines, class_="links"), *texts, viewBox=f"0 0 {width} {height}", width=width, height=height,
        role="img", aria_label=about, class_="ranks",
    )  # fmt: skip
    return tag("div", svg, class_="scroll", tabindex="0", role="region", aria_label=about)
