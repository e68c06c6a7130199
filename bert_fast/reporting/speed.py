"""Where the time of each run went: throughput, the share of time in steps, and stalls."""

import dataclasses
import itertools
import math
import statistics

from bert_fast.reporting import bars, chart
from bert_fast.reporting.blocks import Block, Figure, Section, Table
from bert_fast.reporting.chart import NAMED, ChartLine
from bert_fast.reporting.losses import Curves, budgets_of
from bert_fast.reporting.markup import Html, tag
from bert_fast.reporting.read import LoggedRun
from bert_fast.reporting.scales import AxisUnit
from bert_fast.reporting.switch import Group, switch
from bert_fast.train.log import clock

PARTS = {
    "seconds": "steps",
    "input_seconds": "input",
    "compile_seconds": "compiling",
    "eval_seconds": "evaluating",
    "save_seconds": "saving",
    "restore_seconds": "restoring",
    "wasted_seconds": "wasted",
    "idle_seconds": "idle",
}
STALL = 2.0  # an interval is a stall if its steps took at least this many times the median of their stage


@dataclasses.dataclass(frozen=True)
class Interval:
    """The steps between two training rows. seconds: in steps and waiting for input. tokens: without padding."""

    stage: str
    begin: int
    end: int
    seconds: float
    tokens: int

    @property
    def each(self) -> float:
        return self.seconds / (self.end - self.begin)


def intervals(run: LoggedRun) -> list[Interval]:
    found = []
    rows = [{"step": 0, "seconds": 0.0, "tokens_real": 0}, *run.split("train")]
    for before, row in itertools.pairwise(rows):
        if row["step"] > before["step"]:
            seconds, tokens = row["seconds"] - before["seconds"], row["tokens_real"] - before["tokens_real"]
            found.append(Interval(row["stage"], before["step"], row["step"], seconds, tokens))
    return found


def stalls(run: LoggedRun) -> list[tuple[Interval, float]]:
    """Intervals that took at least STALL times their stage's median, each with its seconds above the median."""
    by_stage: dict[str, list[Interval]] = {}
    for interval in intervals(run):
        by_stage.setdefault(interval.stage, []).append(interval)
    found = []
    for own in by_stage.values():
        usual = statistics.median(interval.each for interval in own)
        for interval in own:
            if interval.each >= STALL * usual > 0:
                found.append((interval, interval.seconds - usual * (interval.end - interval.begin)))
    return found


def times(run: LoggedRun) -> list[float]:
    """The seconds of each part in PARTS. A part that the run's version did not count has 0. They add up to the wall
    time.
    """
    source = run.last if run.summary is None else run.summary
    found = {key: float(source.get(key, 0.0)) for key in PARTS}
    return list((found | {"seconds": found["seconds"] - found["input_seconds"]}).values())


def goodput(run: LoggedRun) -> float:
    """The share of the wall time that was spent in steps which were not lost."""
    spent = times(run)
    return spent[0] / math.fsum(spent) if math.fsum(spent) else 0.0


def figures_of(run: LoggedRun) -> list[str]:
    """A run's row in the table of times."""
    found, spent = stalls(run), times(run)
    source = run.last if run.summary is None else run.summary
    tokens = run.last["tokens_real"] / source["seconds"] if source["seconds"] else 0.0
    lost = math.fsum(seconds for _, seconds in found)
    used = (run.summary or {}).get("utilisation")
    return [
        run.label,
        f"{tokens:,.0f}",
        "-" if used is None else f"{used:.1%}",
        f"{goodput(run):.0%}",
        *(clock(seconds) if seconds >= 60 else f"{seconds:.1f} s" for seconds in spent),
        f"{len(found)} ({lost:.1f} s)" if found else "none",
    ]


def section(curves: Curves) -> Section:
    runs = curves.runs
    heads = ["run", "tokens per second", "of the peak", "in steps", *PARTS.values(), "stalls"]
    table = Table("Time of each run, by its own clock", heads, [figures_of(run) for run in runs])
    entries = [(run.label, times(run), f"{goodput(run):.0%} in steps") for run in runs]
    about = "Share of each run's time in steps and in other work. " + "; ".join(
        f"{run.label}: {goodput(run):.0%} in steps" for run in runs
    )
    blocks: list[Block] = [
        Figure(
            "Where the time went", bars.bars(entries, list(PARTS.values()), about), table,
            "The share in steps is the run's goodput. Wasted: steps that were lost when a run was killed or went back "
            "to a checkpoint. Idle: the start-up of each process, and the time between processes. Older versions "
            "counted neither, and counted input as part of the steps. A stall is an interval between two log rows "
            f"whose steps took at least {STALL:g} times the median of their stage; "
            "in brackets, the seconds above the median.",
        )
    ]  # fmt: skip
    if any(len(run.split("train")) > 1 for run in runs):
        blocks.append(throughput(curves))
    return Section("speed", "Speed", blocks)


def rates_of(run: LoggedRun) -> list[tuple[float, float]]:
    """(step, real tokens per second) between training rows."""
    return [(float(one.end), one.tokens / one.seconds) for one in intervals(run) if one.seconds > 0]


def throughput(curves: Curves) -> Figure:
    """Tokens per second over steps."""
    found = {run.label: rates_of(run) for run in curves.runs}
    rows = []
    for run in curves.runs:
        if rates := [rate for _, rate in found[run.label]]:
            values = (rates[0], statistics.median(rates), min(rates), max(rates))
            rows.append([run.label, *(f"{value:,.0f}" for value in values)])

    def view(budget: str) -> Html:
        lines: list[ChartLine] = []
        for run in curves.runs:
            if run.budget == budget and found[run.label]:
                look = curves.looks[run.arm]
                first = all(line.look != look for line in lines)
                name = run.arm if first and 1 < len(curves.looks) <= NAMED else ""
                lines.append(ChartLine(run.label, look, found[run.label], name))
        text = "Real tokens per second over steps: " + "; ".join(
            f"{line.label} {statistics.median(rate for _, rate in line.points):,.0f}" for line in lines
        )
        return chart.chart(lines, AxisUnit("steps"), "real tokens per second", text, height=220, x_log=False, zero=True)

    groups = [Group("budget", "Budget", [(budget, budget) for budget in budgets_of(curves.runs)])]
    drawing = switch("throughput", groups, view)
    picture = tag("div", drawing, chart.legend(list(curves.looks.items())))
    table = Table("Real tokens per second", ["run", "first rows", "median", "lowest", "highest"], rows)
    return Figure("Tokens per second between log rows", picture, table)
