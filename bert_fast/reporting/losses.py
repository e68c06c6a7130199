"""The loss of each run against tokens, FLOPs and seconds."""

import dataclasses
import math
from collections.abc import Sequence

from bert_fast.reporting import axes, chart, scales
from bert_fast.reporting.axes import Clock
from bert_fast.reporting.blocks import Block, Figure, Section, Table
from bert_fast.reporting.chart import NAMED, Line
from bert_fast.reporting.markup import Html, tag
from bert_fast.reporting.read import Content, Run
from bert_fast.reporting.switch import Group, switch

WORDS = {"tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds", "valid": "Held-out", "train": "Training"}
SPLITS = {"valid": "held-out loss", "train": "training loss"}
TABLED = 12  # rows of a run in the table, at most


@dataclasses.dataclass(frozen=True)
class Curves:
    """What the charts of losses need. looks: the number of each arm's colour, dash and marker."""

    runs: Sequence[Run]
    looks: dict[str, int]
    clock: Clock


def curves_of(content: Content) -> Curves:
    arms = list(dict.fromkeys(run.arm for run in content.runs))
    return Curves(content.runs, {arm: index for index, arm in enumerate(arms)}, axes.clock_of(content.runs))


def points(run: Run, axis: str, split: str, clock: Clock) -> list[tuple[float, float]]:
    """(how far, MLM loss) at each row of a split."""
    far = axes.places(run, axis, clock)
    return [
        (place, row.get("mlm_loss", math.nan))
        for place, row in zip(far, run.rows, strict=True)
        if row["split"] == split
    ]


def lines_of(curves: Curves, runs: Sequence[Run], axis: str, split: str) -> list[Line]:
    """A line for each run. Of runs of one arm, the one in the middle bears the arm's name."""
    found = []
    for arm, number in curves.looks.items():
        own = [run for run in runs if run.arm == arm]
        drawn = [(run, points(run, axis, split, curves.clock)) for run in own]
        drawn = [(run, line) for run, line in drawn if any(math.isfinite(value) for _, value in line)]
        ends = sorted(drawn, key=lambda one: chart.end_of(Line("", 0, one[1])))
        middle = ends[len(ends) // 2][0].label if ends else ""
        for run, line in drawn:
            name = arm if run.label == middle and 1 < len(curves.looks) <= NAMED else ""
            found.append(Line(run.label, number, line, name))
    return found


def splits_of(runs: Sequence[Run]) -> list[str]:
    """The losses to choose from: first the held-out loss, if some run has more than its last."""
    several = any(len(run.split("valid")) > 2 for run in runs)
    order = ["valid", "train"] if several else ["train", "valid"]
    return [split for split in order if any(run.split(split) for run in runs)]


def budgets_of(runs: Sequence[Run]) -> list[str]:
    """The budgets of a study, largest first."""
    found = dict.fromkeys(run.budget for run in runs)
    reach = {budget: max(run.last["flops"] for run in runs if run.budget == budget) for budget in found}
    return sorted(found, key=lambda budget: -reach[budget])


def figure(curves: Curves) -> Figure:
    runs = curves.runs
    budgets, splits = budgets_of(runs), splits_of(runs)

    def view(budget: str, split: str, axis: str) -> Html:
        shown = [run for run in runs if run.budget == budget]
        lines = lines_of(curves, shown, axis, split)
        largest = max((place for line in lines for place, _ in line.points), default=1.0)
        unit = axes.UNITS[axis](largest)
        names = ", ".join(f"{line.label} {chart.end_of(line):.3f}" for line in lines)
        about = f"{SPLITS[split].capitalize()} against {unit.label}. Last values: {names}."
        if not lines:
            return tag("p", f"No run has a {SPLITS[split]}.")
        return chart.chart(lines, unit, f"{SPLITS[split]}, nats per masked word", about, height=340)

    groups = [
        Group("budget", "Budget", [(budget, budget) for budget in budgets]),
        Group("split", "Loss", [(split, WORDS[split]) for split in splits]),
        Group("axis", "Against", [(axis, WORDS[axis]) for axis in axes.AXES]),
    ]
    entries = [(arm, number) for arm, number in curves.looks.items()]
    picture = tag("div", switch("losses", groups, view), chart.legend(entries))
    note = (
        "Lower is better. The held-out loss is measured with every layer and token active, the training loss with what "
        f"each method runs. Seconds: {curves.clock.words}."
    )
    return Figure("Loss against tokens, FLOPs and seconds", picture, table(curves), note)


def table(curves: Curves) -> Table:
    rows = []
    for run in curves.runs:
        seconds = axes.places(run, "seconds", curves.clock)
        every = max(1, math.ceil(len(run.rows) / TABLED))
        for index, (row, second) in enumerate(zip(run.rows, seconds, strict=True)):
            if (len(run.rows) - 1 - index) % every == 0:
                loss = f"{row['mlm_loss']:.3f}" if math.isfinite(row.get("mlm_loss", math.nan)) else "not finite"
                losses = [loss, ""] if row["split"] == "valid" else ["", loss]
                amounts = f"{row['step']:,}", f"{row['tokens_padded']:,}", scales.power(row["flops"]), f"{second:.1f}"
                rows.append([run.label, *amounts, *losses])
    heads = ["run", "step", "tokens", "FLOPs", "seconds", "held-out loss", "training loss"]
    return Table("Losses of each run, in nats", heads, rows)


def section(curves: Curves) -> Section:
    blocks: list[Block] = [figure(curves)]
    return Section("loss", "Loss", blocks)
