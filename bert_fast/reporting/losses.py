"""The loss of each run against tokens, FLOPs and seconds."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from bert_fast.reporting import axes, chart, scales
from bert_fast.reporting.axes import ReferenceClock
from bert_fast.reporting.blocks import Block, Figure, Section, Table
from bert_fast.reporting.chart import NAMED, ChartLine
from bert_fast.reporting.markup import Html, tag
from bert_fast.reporting.read import LoggedRun, ReportContent
from bert_fast.reporting.switch import Group, switch

WORDS = {"tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds", "valid": "Held-out", "train": "Training"}
SPLITS = {"valid": "held-out loss", "train": "training loss"}
TABLED = 12  # a run has at most this many rows in the table


@dataclasses.dataclass(frozen=True)
class Curves:
    """What the charts of losses need.

    looks: the index of each arm's colour, dash and marker. unigram: the held-out loss of a model that only knows word
    frequencies, if this loss is known.
    """

    runs: Sequence[LoggedRun]
    looks: dict[str, int]
    clock: ReferenceClock
    unigram: float | None = None


def curves_of(content: ReportContent) -> Curves:
    arms = list(dict.fromkeys(run.arm for run in content.runs))
    unigram = (content.study or {}).get("unigram_loss")
    return Curves(content.runs, {arm: index for index, arm in enumerate(arms)}, axes.clock_of(content.runs), unigram)


def points(run: LoggedRun, axis: str, split: str, clock: ReferenceClock) -> list[tuple[float, float]]:
    """(position on the axis, MLM loss) at each row of a split."""
    far = axes.places(run, axis, clock)
    return [
        (place, row.get("mlm_loss", math.nan))
        for place, row in zip(far, run.rows, strict=True)
        if row["split"] == split
    ]


def lines_of(curves: Curves, runs: Sequence[LoggedRun], axis: str, split: str) -> list[ChartLine]:
    """A line for each run. If an arm has several runs, the run with the median final loss has the arm's name."""
    found = []
    for arm, number in curves.looks.items():
        own = [run for run in runs if run.arm == arm]
        drawn = [(run, points(run, axis, split, curves.clock)) for run in own]
        drawn = [(run, line) for run, line in drawn if any(math.isfinite(value) for _, value in line)]
        ends = sorted(drawn, key=lambda one: chart.end_of(ChartLine("", 0, one[1])))
        middle = ends[len(ends) // 2][0].label if ends else ""
        for run, line in drawn:
            name = arm if run.label == middle and 1 < len(curves.looks) <= NAMED else ""
            found.append(ChartLine(run.label, number, line, name))
    return found


def splits_of(runs: Sequence[LoggedRun]) -> list[str]:
    """The losses to choose from.

    The held-out loss comes first if most runs of the largest budget have more than two values of it.
    """
    largest = budgets_of(runs)[0]
    counts = [len(run.split("valid")) for run in runs if run.budget == largest]
    order = ["valid", "train"] if statistics.median(counts) > 2 else ["train", "valid"]
    return [split for split in order if any(run.split(split) for run in runs)]


def budgets_of(runs: Sequence[LoggedRun]) -> list[str]:
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
        level = None
        if split == "valid" and curves.unigram is not None:
            level = ("a unigram model", curves.unigram)
            about += f" A unigram model has {curves.unigram:.3f}."
        return chart.chart(lines, unit, f"{SPLITS[split]}, nats per masked word", about, height=340, level=level)

    groups = [
        Group("budget", "Budget", [(budget, budget) for budget in budgets]),
        Group("split", "Loss", [(split, WORDS[split]) for split in splits]),
        Group("axis", "Against", [(axis, WORDS[axis]) for axis in axes.AXES]),
    ]
    entries = [(arm, number) for arm, number in curves.looks.items()]
    picture = tag("div", switch("losses", groups, view), chart.legend(entries))
    note = (
        "Lower is better. The held-out loss is measured with every layer and token active. The training loss is "
        f"measured only with those that a step uses. Seconds: {curves.clock.words}."
    )
    if curves.unigram is not None:
        note += (
            f" A unigram model, which only knows word frequencies, has a held-out loss of {curves.unigram:.3f} nats."
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
