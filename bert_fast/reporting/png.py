"""The losses as a PNG: one panel each for tokens, FLOPs and seconds. Needs matplotlib, from the extra `report`."""

import importlib.util
import io
import pathlib

from bert_fast.data.files import atomic_write
from bert_fast.reporting import axes, losses
from bert_fast.reporting.chart import COLOURS, DASHES
from bert_fast.reporting.losses import SPLITS, Curves
from bert_fast.reporting.scales import LOG_FROM

# Okabe and Ito's colours, and the dashes of page.css.
PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)))
assert len(PALETTE) == COLOURS
assert len(STYLES) == DASHES


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(curves: Curves, path: pathlib.Path):
    """Writes the picture. For a study, it shows the runs with the largest budget."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    budget, split = losses.budgets_of(curves.runs)[0], losses.splits_of(curves.runs)[0]
    shown = [run for run in curves.runs if run.budget == budget]
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(axes.AXES), sharey=True)
    for panel, axis in zip(panels, axes.AXES, strict=True):
        lines = losses.lines_of(curves, shown, axis, split)
        places = [place for line in lines for place, _ in line.points]
        unit = axes.UNITS[axis](max(places, default=1.0))
        names: set[int] = set()
        for line in lines:
            name = next(arm for arm, number in curves.looks.items() if number == line.look)
            panel.plot(
                [place / unit.size for place, _ in line.points],
                [value for _, value in line.points],
                color=PALETTE[line.look % COLOURS],
                linestyle=STYLES[line.look % DASHES],
                marker="o" if len(line.points) == 1 else None,
                linewidth=1.5,
                label="_" + name if line.look in names else name,
            )
            names.add(line.look)
        if split == "valid" and curves.unigram is not None:
            panel.axhline(curves.unigram, color="#777777", linestyle=":", linewidth=1, label="a unigram model")
        if places and max(places) >= LOG_FROM * min(places) > 0:
            panel.set_xscale("log")
        panel.set_xlabel(unit.label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.8)
    panels[0].set_ylabel(f"{SPLITS[split]}, nats" + (f" ({budget})" if budget else ""))
    if len(curves.looks) > 1 or curves.unigram is not None:
        panels[-1].legend(frameon=False, fontsize="small")
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=144, metadata={"Software": "bert_fast"})
    atomic_write(path, held.getvalue())
