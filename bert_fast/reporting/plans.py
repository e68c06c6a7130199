"""The plan of each run as a picture, layers by steps: what runs, what learns, how many tokens, how wide."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from bert_fast import BadInput, methods
from bert_fast.method import Method, Stage
from bert_fast.reporting import chart
from bert_fast.reporting.blocks import Figure, Pairs, Section, Table
from bert_fast.reporting.chart import NAMED, ChartLine
from bert_fast.reporting.markup import Html, join, tag
from bert_fast.reporting.read import LoggedRun, LoggedStage
from bert_fast.reporting.scales import AxisUnit
from bert_fast.train import timeline

WIDTH = 1000
SLICES = 60  # if layers are dropped at random, a run's picture has about this many slices, or fewer
LEAST = 6  # the fewest steps of a slice
DRAWS = 24  # random draws are repeated for at most this many steps of a slice
HEIGHT = 216  # height of a picture, in pixels, if its layers fit
ROW = (12, 26)  # smallest and largest height of a layer
GAP = 3
SHOWN = 12  # the most runs whose plans are shown
LINE = 18  # height of a line of stage names, in pixels
CHARACTER = 22  # width of a character in a stage name on a phone, where the picture's width counts as WIDTH


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer in one stage. on: for each slice of the stage, the share of steps that run the layer. width: its heads
    and neurons, as a share of those of the run's widest layer.
    """

    index: int
    frozen: bool
    queries: int
    keys: int
    heads: int
    neurons: int
    width: float
    on: np.ndarray


def method_of(run: LoggedRun) -> Method | None:
    """The chain of a run's methods; None if one is not installed, or was made by another version."""
    try:
        return methods.make(run.methods)
    except (BadInput, TypeError):
        return None


def shares(run: LoggedRun, index: int, method: Method | None) -> np.ndarray:
    """The share of steps that run each layer, in each slice of stage `index`, as an array [slices, layers].

    This function repeats the run's random draws. If there are none, or they cannot be repeated, there is one slice.
    """
    span, stage = run.spans[index], run.spans[index].stage
    assert stage is not None
    depth = stage.program.model.depth
    steps, total = span.end - span.begin, run.planned_steps
    if method is None or steps < 1 or any(one.stage is None for one in run.spans):
        return np.ones((1, depth))
    timed = [dataclasses.replace(one.stage, steps=one.end - one.begin) for one in run.spans if one.stage is not None]
    restarts = [one.begin for one in run.spans[: index + 1] if one.stage is not None and one.stage.data == "restart"]

    def share(step: int) -> np.ndarray:
        clock = timeline.clock_of(timed, index, step, restarts[-1] if restarts else 0)
        scale_ML = method.draw(stage, clock, timeline.rng_of(run.config["seed"], step))
        return np.zeros(0) if scale_ML is None else (scale_ML != 0).mean(0)

    if not share(span.begin).size:
        return np.ones((1, depth))
    slices = max(1, min(steps // LEAST, round(SLICES * steps / total)))
    edges = np.linspace(span.begin, span.end, slices + 1).astype(int)
    found = []
    for begin, end in itertools.pairwise(edges.tolist()):
        drawn = np.unique(np.linspace(begin, end - 1, min(end - begin, DRAWS)).astype(int))
        found.append(np.mean([share(int(step)) for step in drawn], axis=0))
    return np.array(found)


def layers_of(stage: Stage, on_SL: np.ndarray, widest: tuple[int, int]) -> list[Layer]:
    program, model = stage.program, stage.program.model
    found = []
    for span in program.plan:
        for index in range(span.start, span.stop):
            heads, neurons = model.heads_L[index], model.mlp_dim_L[index]
            width = (4 * heads * model.head_size + 2 * neurons) / (4 * widest[0] * model.head_size + 2 * widest[1])
            found.append(
                Layer(index, span.frozen, tokens(span.queries, stage), tokens(span.keys, stage), heads, neurons, width,
                      on_SL[:, index])
            )  # fmt: skip
    return found


def tokens(count: int | None, stage: Stage) -> int:
    return stage.program.seq_len if count is None else count


def kind(layer: Layer, seq_len: int) -> str:
    """The class of a layer's colour."""
    if layer.frozen:
        return "frozen"
    return "whole" if layer.queries == seq_len else "part"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's stages with their layers. A stage that is not settled yet has an empty list."""

    run: LoggedRun
    stages: Sequence[tuple[LoggedStage, list[Layer]]]

    @property
    def depth(self) -> int:
        return max((len(layers) for _, layers in self.stages), default=0)


def plan_of(run: LoggedRun) -> Plan:
    method = method_of(run)
    settled = [span.stage.program.model for span in run.spans if span.stage is not None]
    widest = max(max(m.heads_L) for m in settled), max(max(m.mlp_dim_L) for m in settled)
    stages = []
    for index, span in enumerate(run.spans):
        layers = [] if span.stage is None else layers_of(span.stage, shares(run, index, method), widest)
        stages.append((span, layers))
    return Plan(run, stages)


def picture(plan: Plan) -> Html:
    """Layers by steps, the lowest layer at the bottom."""
    run, depth, total = plan.run, plan.depth, max(plan.run.planned_steps, 1)
    row = max(ROW[0], min(ROW[1], HEIGHT // max(depth, 1)))
    height = row * depth
    cells, names, heads = [], [], []
    for span, layers in plan.stages:
        left, width = 1000 * span.begin / total, 1000 * (span.end - span.begin) / total
        for layer in layers:
            middle = height - row * (layer.index + 0.5)
            thick = max((row - GAP) * layer.width, 2)
            about = describe(layer, span)
            slice_, place = width / len(layer.on), {"y": f"{middle - thick / 2:.5g}", "height": f"{thick:.5g}"}
            bars = []
            for s, on in enumerate(layer.on):
                at = {"x": f"{left + slice_ * s:.5g}", "width": f"{slice_:.5g}", **place}
                bars.append(tag("rect", **at, fill_opacity=None if on == 1 else f"{on:.2f}"))
            seq_len = span.stage.program.seq_len if span.stage else 0
            cells.append(tag("g", tag("title", about), *bars, class_=kind(layer, seq_len)))
        names.append((span, left))
        heads.append(
            tag("line", x1=f"{left:.5g}", x2=f"{left:.5g}", y1=0, y2=height, vector_effect="non-scaling-stroke")
        )
    now = []
    if run.summary is None and run.last["step"] < total:
        at = f"{1000 * run.last['step'] / total:.5g}"
        now = [tag("line", x1=at, x2=at, y1=0, y2=height, class_="now", vector_effect="non-scaling-stroke")]
    svg = tag(
        "svg",  *cells, tag("g", *heads[1:], class_="edges"), *now,
        viewBox=f"0 0 {WIDTH} {height}", preserveAspectRatio="none", role="img",
        aria_label=f"Plan of {run.label}. " + " ".join(row_words(plan)),
    )  # fmt: skip
    lines = stacked([(span.name, left) for span, left in names])
    above = join(
        tag("span", span.name, style=f"{place_of(span.name, left)};bottom:{LINE * line}px")
        for (span, left), line in zip(names, lines, strict=True)
    )
    tall = LINE * (max(lines) + 1)
    every = max(1, -(-depth // 12))
    side = join(
        tag("span", layer + 1, style=f"top:{height - row * (layer + 0.5):.5g}px") for layer in range(0, depth, every)
    )
    ends = join(tag("span", f"{step:,}") for step in (0, total))
    hidden = {"aria_hidden": "true"}
    stages = tag("div", above, class_="stages", style=f"height:{tall}px", **hidden)
    area = tag("div", stages, svg, tag("div", ends, class_="ends-of", **hidden), class_="area")
    layers = tag("div", side, class_="layers", **hidden)
    return tag("div", layers, area, class_="plan", style=f"--height:{height}px")


def place_of(name: str, left: float) -> str:
    """The style that puts a name above the beginning of its stage, or at the right edge if the name does not fit."""
    return "right:0" if left + CHARACTER * len(name) > WIDTH else f"left:{left / 10:.5g}%"


def stacked(names: Sequence[tuple[str, float]]) -> list[int]:
    """The line of each name, counted from the lowest: the first line on which the name overlaps no earlier name.

    names: (name, left edge).
    """
    lines: list[int] = []
    ends: list[float] = []  # right edge of the last name on each line
    for name, left in names:
        length = CHARACTER * (len(name) + 1)
        left = min(left, WIDTH - length)
        line = next((line for line, end in enumerate(ends) if end <= left), len(ends))
        ends[line:] = [left + length, *ends[line + 1 :]]
        lines.append(line)
    return lines


def describe(layer: Layer, span: LoggedStage) -> str:
    """A layer in one stage, as text."""
    assert span.stage is not None
    seq_len = span.stage.program.seq_len
    parts = [f"layer {layer.index + 1}, {span.name}"]
    if layer.queries == seq_len:
        parts.append(f"all {seq_len} tokens")
    else:
        parts.append(f"updates {layer.queries} of {seq_len} tokens and attends to {layer.keys}")
    parts.append(f"{layer.heads} heads, {layer.neurons:,} neurons")
    if layer.on.min() < 1:
        parts.append(f"runs in {layer.on.mean():.0%} of the steps")
    parts.append("frozen" if layer.frozen else "learns")
    return "; ".join(parts)


def grouped(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Groups of neighbouring layers that are alike."""
    found: list[list[Layer]] = []
    for layer in layers:
        same = found and _alike(found[-1][-1]) == _alike(layer)
        if same:
            found[-1].append(layer)
        else:
            found.append([layer])
    return found


def _alike(layer: Layer) -> tuple:
    return (layer.frozen, layer.queries, layer.keys, layer.heads, layer.neurons, f"{layer.on.mean():.2f}")


def rows_of(plan: Plan) -> list[list[str]]:
    """A row for each group of layers of each stage."""
    found = []
    for span, layers in plan.stages:
        steps = f"{span.begin:,} to {span.end:,}"
        if not layers or span.stage is None:
            found.append([plan.run.label, span.name, steps, "not decided yet", "", "", "", "", "", ""])
            continue
        seq_len = span.stage.program.seq_len
        for group in grouped(layers):
            low, layer = group[0], group[-1]
            found.append(
                [plan.run.label, span.name, steps,
                 f"{low.index + 1}" if len(group) == 1 else f"{low.index + 1} to {layer.index + 1}",
                 f"{np.mean([one.on.mean() for one in group]):.0%}", "no" if low.frozen else "yes",
                 f"{low.queries} of {seq_len}", str(low.keys), str(low.heads), f"{low.neurons:,}"]
            )  # fmt: skip
    return found


HEADS = ("run", "stage", "steps", "layers", "run in", "learn", "tokens updated", "attended", "heads", "neurons")


def row_words(plan: Plan) -> list[str]:
    return [
        f"{stage}, steps {steps}: layers {layers} run in {on}, "
        f"{'learn' if learn == 'yes' else 'are frozen'}, {updated} tokens, {heads} heads, {neurons} neurons."
        if on
        else f"{stage}: {layers}."
        for _, stage, steps, layers, on, learn, updated, _, heads, neurons in rows_of(plan)
    ]


def legend() -> Html:
    """The meaning of colours and shapes. Also defines the hatching that all pictures on the page use."""
    hatch = tag(
        "pattern",
        tag("path", d="M-2 2L2 -2M0 8L8 0M6 10L10 6"),
        id="hatch",
        width=8,
        height=8,
        patternUnits="userSpaceOnUse",
    )
    kinds = {
        "whole": "updates every token",
        "part": "updates some of the tokens",
        "frozen": "runs, but does not learn",
        "whole pale": "fainter: runs in fewer of the steps",
        "whole thin": "thinner: fewer heads and neurons",
    }
    items = []
    for kind, words in kinds.items():
        shape = tag("rect", x=0, y=2, width=28, height=10)
        defined = tag("defs", hatch) if kind == "frozen" else ""
        look = {"class_": f"swatch {kind}", "aria_hidden": "true"}
        items.append(tag("li", tag("svg", defined, shape, viewBox="0 0 28 14", **look), words))
    return tag("ul", *items, class_="legend")


def chosen(runs: Sequence[LoggedRun]) -> list[LoggedRun]:
    """Each arm's run with the most FLOPs. An arm's runs with other seeds have the same plan."""
    found: dict[str, LoggedRun] = {}
    for run in sorted(runs, key=lambda run: -run.last["flops"]):
        if any(span.stage is not None for span in run.spans):
            found.setdefault(run.arm, run)
    arms = dict.fromkeys(run.arm for run in runs if run.arm in found)
    return [found[arm] for arm in arms]


def layers_run(runs: Sequence[LoggedRun], looks: Mapping[str, int]) -> Figure | None:
    """The number of layers that run in each step; None if it never changes."""
    lines, rows = [], []
    for run in runs:
        points = [(float(row["step"]), row["layers_run"]) for row in run.split("train") if "layers_run" in row]
        if points:
            lines.append(ChartLine(run.label, looks[run.arm], points, run.arm if 1 < len(runs) <= NAMED else ""))
            counts = [count for _, count in points]
            rows.append([run.label, *(f"{count:.2f}" for count in (counts[0], min(counts), max(counts), counts[-1]))])
    if len({count for line in lines for _, count in line.points}) < 2:
        return None
    text = "Layers run per step: " + "; ".join(f"{row[0]} {row[-1]} at the end" for row in rows)
    drawing = chart.chart(lines, AxisUnit("steps"), "layers per step", text, height=220, x_log=False, zero=True)
    entries = [(run.arm, looks[run.arm]) for run in runs]
    table = Table("Layers run per step", ["run", "first", "fewest", "most", "last"], rows)
    note = "Means over the steps since the last log row."
    return Figure("Layers run per step", tag("div", drawing, chart.legend(entries)), table, note)


def section(runs: Sequence[LoggedRun], looks: Mapping[str, int]) -> Section | None:
    """The section with the plans; None if no run has one. looks: the number of each arm's colour, dash and marker."""
    own = chosen(runs)[:SHOWN]
    shown = [plan_of(run) for run in own]
    if not shown:
        return None
    words = "Each picture has the layers from bottom to top, and the steps from left to right."
    if len(own) < len(runs):
        words += " One run of each arm is drawn; arms with equal plans share a picture."
    alike: dict[tuple, list[Plan]] = {}
    for plan in shown:
        unfinished = plan.run.last["step"] if plan.run.summary is None else None
        key = unfinished, *(tuple(row[1:]) for row in rows_of(plan))
        alike.setdefault(key, []).append(plan)
    figures = []
    for first, *others in alike.values():
        rows = [row[1:] for row in rows_of(first)]
        title = "; ".join(plan.run.arm for plan in (first, *others))
        figures.append(Figure(title, picture(first), Table(f"Plan of {first.run.label}", HEADS[1:], rows, words=3)))
    count = layers_run(own, looks)
    more = [] if count is None else [count]
    return Section("plan", "What runs, layer by layer", [words, legend(), Pairs(figures), *more])
