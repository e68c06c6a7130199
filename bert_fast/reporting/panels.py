"""A panel for each method, derived from its keys in the rows: lines, maps of counts in layers, and ranked words.

No method is named here. A method from another package gets its panel in the same way.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bert_fast import BadInput, methods
from bert_fast.reporting import chart, words
from bert_fast.reporting.blocks import Block, Figure, Heading, Pairs, Section, Table
from bert_fast.reporting.chart import ChartLine
from bert_fast.reporting.losses import Curves
from bert_fast.reporting.markup import join, tag
from bert_fast.reporting.plans import chosen
from bert_fast.reporting.read import LoggedRun
from bert_fast.reporting.scales import AxisUnit

ENDINGS = ("max", "min", "mean")  # "distance_max" belongs to the chart of "distance"
STEPS = AxisUnit("steps")
MAPS = 4  # at most this many runs get a map of counts or a list of words
COLUMNS = 40  # of a map, at most
TABLED = 10  # about this many rows of a table for each run


def values_of(run: LoggedRun, key: str) -> list[tuple[int, Any]]:
    """(step, value) of a key, at each training row that has it."""
    return [(row["step"], row[key]) for row in run.rows if row["split"] == "train" and key in row]


def kind_of(value: Any) -> str:
    """How a value is drawn: as "number", "counts" (one for each layer), "words", or "" for none of these."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    if isinstance(value, list) and value:
        if all(isinstance(one, int | float) for one in value):
            return "counts"
        if all(isinstance(one, str) for one in value):
            return "words"
    return ""


def keys_of(runs: Sequence[LoggedRun], name: str) -> dict[str, str]:
    """A method's keys in the log rows, without the method's name, and the kind of each."""
    found: dict[str, str] = {}
    for run in runs:
        for row in run.rows:
            for key, value in row.items():
                if key.startswith(f"{name}/"):
                    found[key.removeprefix(f"{name}/")] = kind_of(value) or found.get(key.removeprefix(f"{name}/"), "")
    return {key: kind for key, kind in found.items() if kind}


def names_of(runs: Sequence[LoggedRun]) -> list[str]:
    """The methods with keys in the rows, in the order of the runs."""
    return list(dict.fromkeys(key.split("/")[0] for run in runs for row in run.rows for key in row if "/" in key))


def charts_of(keys: Sequence[str]) -> dict[str, list[str]]:
    """The keys of the numbers in each chart. Keys that end in the same word (before any of ENDINGS) share a chart."""
    found: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split("_")
        while len(parts) > 1 and parts[-1] in ENDINGS:
            parts.pop()
        found.setdefault(parts[-1], []).append(key)
    return found


def about(name: str) -> str:
    """The first paragraph of a method's documentation; "" if it is not installed or has no documentation."""
    try:
        module = methods.modules().get(name)
    except BadInput:
        return ""
    return " ".join((getattr(module, "__doc__", None) or "").split("\n\n")[0].split())


def meanings(name: str) -> Mapping[str, str]:
    """The meaning of each key of a method, where the method states it."""
    try:
        return methods.keys().get(name, {})
    except BadInput:
        return {}


def readable(key: str) -> str:
    return key.replace("_", " ")


def section(curves: Curves) -> Section | None:
    """The section about the methods. None if no method has keys in the rows."""
    runs = chosen(curves.runs) or list(curves.runs)
    blocks: list[Block] = []
    for name in names_of(runs):
        blocks += panel(
            name, [run for run in runs if any(key.startswith(f"{name}/") for row in run.rows for key in row)], curves
        )
    return Section("methods", "What the methods did", blocks) if blocks else None


def panel(name: str, runs: Sequence[LoggedRun], curves: Curves) -> list[Block]:
    """The figures of one method."""
    kinds = keys_of(runs, name)
    meant = meanings(name)
    blocks: list[Block] = [Heading(name)]
    if text := about(name):
        blocks.append(text)
    numbers = [key for key, kind in kinds.items() if kind == "number"]
    values = {key: {value for run in runs for _, value in values_of(run, f"{name}/{key}")} for key in numbers}
    same = {key: found.pop() for key, found in values.items() if len(found) == 1}
    if same:
        rows = [[readable(key), meant.get(key, ""), f"{value:.4g}"] for key, value in same.items()]
        blocks.append(Table("Numbers that are equal in all log rows", ["key", "meaning", "value"], rows, words=2))
    numbers = [key for key in numbers if key not in same]
    figures = [lines_figure(name, title, keys, runs, curves, meant) for title, keys in charts_of(numbers).items()]
    for key, kind in kinds.items():
        having = [run for run in runs if any(value for _, value in values_of(run, f"{name}/{key}"))]
        if kind == "counts":
            figures += [counts_figure(name, key, run, meant) for run in having[:MAPS]]
        if kind == "words":
            figures += [words_figure(name, key, run, meant) for run in having[:MAPS]]
    return [*blocks, Pairs(figures)]


def note_of(keys: Sequence[str], meant: Mapping[str, str]) -> str:
    """The meanings of these keys, where the method gives them."""
    if len(keys) == 1:
        return meant.get(keys[0], "")
    return " ".join(f"{readable(key)}: {meant[key]}" for key in keys if key in meant)


def lines_figure(
    name: str, title: str, keys: Sequence[str], runs: Sequence[LoggedRun], curves: Curves, meant: Mapping[str, str]
) -> Figure:
    """A chart of numbers over steps: a line for each run and key."""
    lines, rows = [], []
    for run in runs:
        for key in keys:
            found = values_of(run, f"{name}/{key}")
            if not found:
                continue
            label = " ".join(
                part for part in (run.arm if len(runs) > 1 else "", readable(key) if len(keys) > 1 else "") if part
            )
            number = curves.looks[run.arm] if len(keys) == 1 else len(lines)
            points = [(float(step), float(value)) for step, value in found]
            lines.append(ChartLine(label or readable(key), number, points))
            every = max(1, math.ceil(len(found) / TABLED))
            rows += [[run.label, readable(key), f"{s:,}", f"{v:.4g}"] for s, v in found[::-1][::every][::-1]]
    whole = all(float(value).is_integer() for line in lines for _, value in line.points)
    text = f"{readable(title)} of {name} over steps: " + "; ".join(
        f"{line.label} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines
    )
    drawing = chart.chart(lines, STEPS, "", text, height=190, steps=whole, x_log=False, y_log=False, zero=True)
    entries = [(line.label, line.look) for line in lines]
    picture = tag("div", drawing, chart.legend(entries))
    title = keys[0] if len(keys) == 1 else title
    table = Table(f"{name}/{title}", ["run", "key", "step", "value"], rows, words=2)
    return Figure(readable(title), picture, table, note_of(keys, meant))


def shade(count: float, smallest: float, largest: float) -> float:
    """How dark a count is drawn."""
    return 0.25 + 0.75 * (count - smallest) / (largest - smallest) if largest > smallest else 1.0


def counts_figure(name: str, key: str, run: LoggedRun, meant: Mapping[str, str]) -> Figure:
    """A map with a row for each layer and steps from left to right. Darker means a larger count. The last counts are
    written at the right.
    """
    found = values_of(run, f"{name}/{key}")
    depth, total = max(len(counts) for _, counts in found), found[-1][0]
    smallest, largest = min(min(counts) for _, counts in found), max(max(counts) for _, counts in found)
    row = max(12, min(22, 216 // depth))
    height, before, cells = row * depth, 0, []
    every = max(1, math.ceil(len(found) / COLUMNS))
    for step, counts in found[::-1][::every][::-1]:
        left, width = f"{1000 * before / total:.5g}", f"{1000 * (step - before) / total:.5g}"
        for layer, count in enumerate(counts):
            top, opacity = height - row * (layer + 1) + 1, f"{shade(count, smallest, largest):.2f}"
            cells.append(tag("rect", x=left, width=width, y=top, height=row - 2, fill_opacity=opacity))
        before = step
    last = found[-1][1]
    text = (
        f"{readable(key)} of each layer in {run.label}; at the end, from the lowest layer: {', '.join(map(str, last))}"
    )
    svg = tag("svg", tag("g", *cells, class_="whole"), viewBox=f"0 0 1000 {height}", preserveAspectRatio="none",
              role="img", aria_label=text)  # fmt: skip
    tops = [(layer, f"top:{height - row * (layer + 0.5):.5g}px") for layer in range(0, depth, max(1, -(-depth // 14)))]
    side = join(tag("span", layer + 1, style=top) for layer, top in tops)
    ends = join(tag("span", f"{last[layer]:,}", style=top) for layer, top in tops if layer < len(last))
    hidden = {"aria_hidden": "true"}
    foot = tag("div", tag("span", 0), tag("span", f"{total:,}"), class_="ends-of", **hidden)
    picture = tag(
        "div", tag("div", side, class_="layers", **hidden), tag("div", svg, foot, class_="area"),
        tag("div", ends, class_="layers last", **hidden), class_="plan", style=f"--height:{height}px",
    )  # fmt: skip
    rows = [
        [f"{step:,}", ", ".join(f"{count:,}" for count in counts)]
        for step, counts in found[::-1][:: max(1, len(found) // TABLED)][::-1]
    ]
    table = Table(f"{name}/{key} in {run.label}", ["step", "from the lowest layer up"], rows)
    return Figure(f"{readable(key)} in each layer, {run.arm}", picture, table, meant.get(key, ""))


def words_figure(name: str, key: str, run: LoggedRun, meant: Mapping[str, str]) -> Figure:
    lists = [(step, value) for step, value in values_of(run, f"{name}/{key}") if value]
    first, last = lists[0][1], lists[-1][1]
    stayed = [word for word in last if word in first]
    text = f"{readable(key)} in {run.label}, from the first place down. At the end: {', '.join(last)}"
    shown = words.chosen(lists)
    rows = [
        [place + 1, *(value[place] if place < len(value) else "" for _, value in shown)]
        for place in range(max(len(v) for _, v in shown))
    ]
    table = Table(
        f"{name}/{key} in {run.label}", ["place", *(f"step {step:,}" for step, _ in shown)], rows, words=1 + len(shown)
    )
    note = f"{meant.get(key, '')} {len(stayed)} of the {len(last)} at the end were already in the first list.".strip()
    return Figure(f"{readable(key)}, {run.arm}", words.picture(lists, text), table, note)
