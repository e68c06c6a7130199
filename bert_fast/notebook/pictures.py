"""Figures for notebooks: a run's plan (layers by steps), its loss curves, and words shaded by a number.

Axes: T sampled steps, L layers of the final model.
"""

import dataclasses
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_fast import BadInput, methods
from bert_fast.commands import config_flag
from bert_fast.cost.flops import dense_equivalent, step_flops
from bert_fast.data import shards
from bert_fast.planner import estimate
from bert_fast.train import budget, settings, timeline
from bert_fast.train.log import read_rows

COLUMNS = 200  # sampled steps
# States of a layer, the cheapest first, with colours that differ in lightness too.
STATES = ("not there yet", "skipped", "runs, does not learn", "learns from some tokens", "learns from all tokens")
COLOURS = ("#ffffff", "#f3ead7", "#c9c9c9", "#74add1", "#1f4e79")
LINES = ("#1f4e79", "#d1661a", "#3a8f5c", "#8a5aa8", "#777777", "#b8366b")
DASHES = ("-", "--", "-.", ":")


class Course(NamedTuple):
    """What a run does at sampled steps.

    steps: number of steps of the run, including those of a search. at_T: the sampled steps. state_LT: index of STATES.
    width_LT: share of the layer's heads and neurons that exist. cost_T: FLOPs of the step, divided by the FLOPs of a
    dense step. flops: FLOPs of the whole run. dense: FLOPs of the same training without methods and without a search.
    """

    steps: int
    at_T: np.ndarray
    state_LT: np.ndarray
    width_LT: np.ndarray
    cost_T: np.ndarray
    flops: float
    dense: float


def settings_of(config: str, changes: Mapping[str, Any]) -> settings.PretrainSettings:
    """The settings of a pre-training config. changes: new values by dotted key.

    Without a shards folder (`data.dir`), the vocabulary is BERT's.
    """
    made = config_flag.load(config, changes).to_dict()
    folder = made["data"]["dir"]
    words = shards.read_manifest(folder)["vocab"] if folder else estimate.BERT
    return settings.make(made, words, tuple(methods.known()))


def flops_of(made: settings.PretrainSettings) -> float:
    """FLOPs of a whole run."""
    return estimate.plan(made, estimate.on("cpu"), pathlib.Path(), print).flops


def course(made: settings.PretrainSettings, columns: int = COLUMNS) -> Course:
    """What a run with these settings would do. Its random draws are those of the run itself. Raises BadInput."""
    method = methods.make(made.methods)
    made = budget.resolved(made, method)
    stages = timeline.stages(made, method)
    ends = np.cumsum([stage.steps for stage in stages])
    at_T = np.unique(np.linspace(0, ends[-1] - 1, columns).astype(int))
    depth = made.model.depth
    state_LT, width_LT = np.zeros((depth, len(at_T)), int), np.zeros((depth, len(at_T)))
    cost_T = np.zeros(len(at_T))
    for column, step in enumerate(at_T):
        index = int(np.searchsorted(ends, step, side="right"))
        stage, program = stages[index], stages[index].program
        restarts = [i for i in range(index + 1) if stages[i].data == "restart"]
        began = int(ends[restarts[-1] - 1]) if restarts and restarts[-1] else 0
        clock = timeline.clock_of(stages, index, int(step), began)
        packed, _, on_L = timeline.drawn(method, stage, clock, timeline.rng_of(made.seed, int(step)))
        for span in program.plan:
            all_tokens = span.queries is None or span.queries == program.seq_len
            runs = 2 if span.frozen else 4 if all_tokens else 3
            for layer in range(span.start, span.stop):
                state_LT[layer, column] = runs if on_L[layer] else 1
        present = slice(program.model.depth)
        heads_L, neurons_L = (np.array(n_L)[present] for n_L in (made.model.heads_L, made.model.mlp_dim_L))
        shares = np.array(program.model.heads_L) / heads_L, np.array(program.model.mlp_dim_L) / neurons_L
        width_LT[present, column] = np.mean(shares, axis=0)
        cost_T[column] = step_flops(packed, on_L.tolist()).executed / dense_equivalent(program, made.model)
    dense = dataclasses.replace(made, methods=(), budget=None, costs=None)
    return Course(int(ends[-1]), at_T, state_LT, width_LT, cost_T, flops_of(made), flops_of(dense))


def plan(config: str, changes: Mapping[str, Any] | None = None, title: str = ""):
    """A figure of a run: each layer over the steps, and below it what a step costs."""
    return plans({title or (changes or {}).get("methods", "") or config: (config, changes or {})})


def plans(runs: Mapping[str, tuple[str, Mapping[str, Any]]], columns: int = 2):
    """Figures of several runs side by side. runs: (config, changes) by title."""
    return plans_of({title: settings_of(config, changes) for title, (config, changes) in runs.items()}, columns)


def plans_of(runs: Mapping[str, settings.PretrainSettings], columns: int = 2):
    """Figures of several runs side by side. runs: settings by title."""
    pyplot = matplotlib_pyplot()
    from matplotlib.patches import Patch

    wide = min(columns, len(runs))
    tall = -(-len(runs) // wide)
    figure, axes = pyplot.subplots(
        2 * tall, wide, figsize=(5.6 * wide, 3.9 * tall + 0.5), squeeze=False,
        gridspec_kw={"height_ratios": [3, 1] * tall}, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat:
        axis.set_visible(False)
    for number, (title, made) in enumerate(runs.items()):
        row, column = divmod(number, wide)
        found = course(made)
        draw_layers(axes[2 * row, column], found, f"{title}: {found.flops / found.dense:.0%} of dense FLOPs")
        draw_cost(axes[2 * row + 1, column], found)
    patches = [Patch(facecolor=colour, edgecolor="#888888", linewidth=0.6) for colour in COLOURS]
    figure.legend(patches, STATES, loc="outside lower center", ncols=1 + 2 * wide, frameon=False, fontsize=9)
    pyplot.close(figure)  # so that a notebook shows it once, as the value of the cell
    return figure


def draw_layers(axis, found: Course, title: str):
    """Draws layers over steps. The colour says what a layer does, and the height of its bar says how wide it is."""
    axis.set_visible(True)
    edges = np.append(found.at_T, found.steps)
    for layer, (state_T, width_T) in enumerate(zip(found.state_LT, found.width_LT, strict=True)):
        parts = np.flatnonzero(np.diff(state_T) | (np.abs(np.diff(width_T)) > 1e-9)) + 1
        for first, last in zip([0, *parts], [*parts, len(state_T)], strict=True):
            if state := state_T[first]:
                height = 0.9 * width_T[first]
                span = [(edges[first], edges[last] - edges[first])]
                axis.broken_barh(span, (layer + 0.5 - height / 2, height), color=COLOURS[state], linewidth=0)
    depth = len(found.state_LT)
    axis.set(xlim=(0, found.steps), ylim=(0, depth), ylabel="layer", xticklabels=[])
    axis.set_yticks([0.5, depth - 0.5], ["1", str(depth)])
    axis.set_title(title, fontsize=11, loc="left")


def draw_cost(axis, found: Course):
    """Draws what each step costs, in percent of a dense step."""
    axis.set_visible(True)
    edges, cost = np.append(found.at_T, found.steps), np.append(found.cost_T, found.cost_T[-1])
    axis.fill_between(edges, 100 * cost, step="post", color=COLOURS[3], linewidth=0)
    axis.axhline(100, color="#555555", linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, found.steps), ylim=(0, 115), xlabel="step", ylabel="FLOPs, %")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def curves(runs: Mapping[str, str | pathlib.Path], against: Sequence[str] = ("tokens_padded", "flops", "seconds")):
    """A figure of held-out losses against totals of the log, such as tokens, FLOPs and seconds. runs: folders by name.

    Raises BadInput if a run has no evaluation yet.
    """
    pyplot = matplotlib_pyplot()
    names = {"tokens_padded": "tokens", "flops": "FLOPs", "seconds": "seconds of steps"}
    figure, axes = pyplot.subplots(
        1, len(against), figsize=(4.2 * len(against), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for number, (name, folder) in enumerate(runs.items()):
        rows = [row for row in read_rows(pathlib.Path(folder, "metrics.jsonl")) if row["split"] == "valid"]
        if not rows:
            raise BadInput(f"{folder} has no evaluation yet: train first, or set --config.eval.every")
        style = {"color": LINES[number % len(LINES)], "linestyle": DASHES[number % len(DASHES)], "marker": "."}
        for axis, key in zip(axes[0], against, strict=True):
            axis.plot([row[key] for row in rows], [row["mlm_loss"] for row in rows], label=name, **style)
    for axis, key in zip(axes[0], against, strict=True):
        axis.set(xlabel=names.get(key, key), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out loss, nats per masked word")
    axes[0][-1].legend(frameon=False)
    pyplot.close(figure)
    return figure


def marked(words: Sequence[str], values: Sequence[float], kept: Sequence[bool] | None = None) -> str:
    """HTML of words. The higher a word's value, the darker its background. Words that are not kept are struck out."""
    low, high = min(values), max(values)
    spans = []
    for number, (word, value) in enumerate(zip(words, values, strict=True)):
        share = (value - low) / ((high - low) or 1.0)
        shade = f"background:rgba(116,173,209,{0.1 + 0.8 * share:.2f});color:#111"
        if kept is not None and not kept[number]:
            shade += ";text-decoration:line-through;opacity:.55"
        style = f"{shade};padding:2px 4px;margin:1px;border-radius:3px;display:inline-block"
        spans.append(f'<span style="{style}" title="{value:.2f}">{html.escape(word)}</span>')
    return f'<div style="line-height:2">{"".join(spans)}</div>'


def page(path: str | pathlib.Path, height: int = 900) -> str:
    """HTML that shows a page, such as a report, in a separate frame, so that its styles do not affect the notebook."""
    text = html.escape(pathlib.Path(path).read_text())
    return f'<div><iframe srcdoc="{text}" style="width:100%;height:{height}px;border:0" title="report"></iframe></div>'


def matplotlib_pyplot():
    """matplotlib.pyplot. Raises BadInput if matplotlib is missing."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise BadInput('pictures need matplotlib: pip install "bert_fast[notebooks]", or matplotlib alone') from None
    return pyplot
