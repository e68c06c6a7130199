"""Line charts. The lines are an SVG that stretches to the width of the page. The labels around it have a fixed size."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from bert_fast.reporting import scales
from bert_fast.reporting.markup import Html, join, tag
from bert_fast.reporting.scales import AxisUnit, Scale

WIDTH = 1000  # in the SVG's own coordinates; the SVG is stretched to the width of the page
POINTS = 240  # the most points that are drawn of a line
COLOURS, DASHES, SHAPES = 7, 4, 2  # see page.css; lines of equal colour differ in dash or marker
LINE_HEIGHT = 18  # the height of a label at the end of a line, in pixels
NAMED = 10  # the most lines that have a name at their end
MARKED = 30  # lines of at most this many points have markers


@dataclasses.dataclass(frozen=True)
class ChartLine:
    """A line of a chart. points: (x, y) in order of x. Where y is not finite, the line has a gap.

    look: a number that selects the line's colour, dash and marker. name: the text at the line's end, or "" for no text.
    """

    label: str
    look: int
    points: Sequence[tuple[float, float]]
    name: str = ""


def look(number: int) -> str:
    """The CSS classes for a line's colour, dash and marker."""
    return f"c{number % COLOURS} d{number % DASHES} m{number % SHAPES}"


def swatch(number: int) -> Html:
    """A short piece of a line, for legends."""
    line = tag("path", d="M2 7H26", class_="line")
    dot = tag("path", d="M14 7h0", class_="dot")
    return tag("svg", line, dot, viewBox="0 0 28 14", class_=f"swatch {look(number)}", aria_hidden="true")


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points: the first, the last, and the lowest and the highest of each part of the line."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2 - 1))
    kept = {0, len(points) - 1}
    for begin in range(0, len(points), size):
        part = [index for index in range(begin, min(begin + size, len(points))) if math.isfinite(points[index][1])]
        if part:
            kept |= {min(part, key=lambda index: points[index][1]), max(part, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def drawn(line: ChartLine, x: Scale, y: Scale, height: int, steps: bool) -> Html:
    """A line with its markers.

    steps: whether the line is a staircase without markers. A point's value then holds from the previous point to this
        point. The first value holds from the left edge.
    """
    parts, dots, left, down = [], [], "0", False
    for at, value in thinned(line.points):
        if not math.isfinite(value):
            down = False
            continue
        before, left, top = left, f"{WIDTH * x.place(at):.5g}", f"{height * (1 - y.place(value)):.5g}"
        if steps:
            parts.append(f"{'L' if down else 'M'}{before} {top}L{left} {top}")
        else:
            parts.append(f"{'L' if down else 'M'}{left} {top}")
        dots.append(f"M{left} {top}h0")
        down = True
    fixed = {"vector_effect": "non-scaling-stroke"}
    children = [tag("path", d="".join(parts), class_="line", **fixed)]
    if len(dots) <= MARKED and not steps:
        children.append(tag("path", d="".join(dots), class_="dot", **fixed))
    return tag("g", *children, class_=look(line.look), data_label=line.label)


def spread(tops: Sequence[float], height: float) -> list[float]:
    """Moves labels apart so that they do not overlap. Their order stays the same. If they all fit, they stay in the
    chart. tops: the distances of the labels from the upper edge of the chart.
    """
    order = sorted(range(len(tops)), key=lambda index: tops[index])
    placed = list(tops)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + LINE_HEIGHT)
    limit = height
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - LINE_HEIGHT
    return placed


def chart(
    lines: Sequence[ChartLine],
    x: AxisUnit,
    y: str,
    about: str,
    height: int = 300,
    steps: bool = False,
    x_log: bool | None = None,
    y_log: bool | None = None,
    zero: bool = False,
    level: tuple[str, float] | None = None,
) -> Html:
    """A chart of lines. about: what the chart shows, for screen readers.

    x: the unit of the horizontal axis. y: the name of the vertical axis, or "" if the figure's title names it.
    steps: as in `drawn`.
    x_log, y_log: whether the axis is logarithmic; with None, it is if that reads better.
    zero: whether the vertical axis begins at 0.
    level: the name and the value of a line across the whole chart.
    """
    across = scales.scale_of((at / x.size for line in lines for at, _ in line.points), x_log, zero=x_log is False)
    values = [value for line in lines for _, value in line.points] + ([level[1]] if level else [])
    up = scales.scale_of(values, y_log, zero=zero, room=0.04)
    lines = [dataclasses.replace(line, points=[(at / x.size, value) for at, value in line.points]) for line in lines]
    rows, columns = up.ticks(max(3, height // 50)), across.ticks(7)
    levels = [top_of(value, up, height) for value in rows]
    fixed = {"vector_effect": "non-scaling-stroke"}
    grid = [tag("line", x1=0, x2=WIDTH, y1=level, y2=level, **fixed) for level in levels]
    picture = tag(
        "svg",
        tag("g", *grid, class_="grid"),
        tag("line", x1=0, x2=WIDTH, y1=(top := top_of(level[1], up, height)), y2=top, class_="level", **fixed)
        if level
        else "",
        *(drawn(line, across, up, height, steps) for line in lines),
        viewBox=f"0 0 {WIDTH} {height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=about,
        data_x=f"{across.low} {across.high} {int(across.log)} {x.label}",
        data_y=f"{up.low} {up.high} {int(up.log)} {y}",
    )
    left = join(
        tag("span", scales.shown(value), style=f"top:{level}px") for value, level in zip(rows, levels, strict=True)
    )
    below = join(scales.tick_labels(across, columns))
    named = [line for line in lines if line.name and any(math.isfinite(value) for _, value in line.points)]
    tops = spread([height * (1 - up.place(end_of(line))) for line in named], height)
    ends = join(
        tag("span", swatch(line.look), tag("span", line.name), style=f"top:{top:.5g}px")
        for line, top in zip(named, tops, strict=True)
    )
    note = " (log scale)" if across.log else ""
    y_note = " (log scale)" if up.log else ""
    hidden = {"aria_hidden": "true"}
    return tag(
        "div",
        tag("div", y + y_note, class_="y-name", **hidden) if y else "",
        tag(
            "div",
            tag("div", left, class_="y-ticks", **hidden),
            tag(
                "div",
                picture,
                tag("span", f"{level[0]} {level[1]:.3f}", class_="level-name", style=f"top:{top}px", **hidden)
                if level
                else "",
                tag("div", below, class_="x-ticks", **hidden),
                class_="area",
            ),
            tag("div", ends, class_="ends", **hidden) if named else "",
            class_="plot",
            style=f"--height:{height}px",
        ),
        tag("div", x.label + note, class_="x-name", **hidden),
        class_="chart" if named else "chart bare",
        style=f"--right:{room(named)}px" if named else None,
    )


def top_of(value: float, scale: Scale, height: float) -> str:
    """The distance of a value from the upper edge of a chart, as text."""
    return f"{height * (1 - scale.place(value)):.5g}"


def room(named: Sequence[ChartLine]) -> int:
    """The width of the labels at the ends of lines, in pixels."""
    return min(60 + 7 * max(len(line.name) for line in named), 240)


def end_of(line: ChartLine) -> float:
    """The last finite value of a line."""
    return next(value for _, value in reversed(line.points) if math.isfinite(value))


def legend(entries: Sequence[tuple[str, int]]) -> Html:
    """The names of lines, each next to a short piece of its line. Empty for a single line."""
    if len(entries) < 2:
        return join([])
    items = (tag("li", swatch(number), label) for label, number in entries)
    return tag("ul", *items, class_="legend")
