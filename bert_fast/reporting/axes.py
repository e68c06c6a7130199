"""How far a run was at each row of its log: in tokens, FLOPs and seconds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.reporting import scales
from bert_fast.reporting.read import LoggedRun
from bert_fast.reporting.scales import AxisUnit
from bert_fast.train.step_costs import key_of

AXES = ("tokens", "flops", "seconds")
UNITS: dict[str, Callable[[float], AxisUnit]] = {
    "tokens": scales.tokens,
    "flops": scales.flops,
    "seconds": scales.seconds,
}


class ReferenceClock(NamedTuple):
    """Where the seconds of all runs come from. words: a description of that source.

    reference: the reference seconds of each row, by run label. If it is empty, each run's own clock is used.
    """

    words: str
    reference: dict[str, list[float]]


def reference_seconds(run: LoggedRun) -> list[float] | None:
    """Reference time of the steps before each row; None unless a table of step costs covers all stages of the run."""
    if run.costs is None or not run.spans:
        return None
    optimizer = run.config["optimizer"]["name"]
    total, step, flops, result = 0.0, 0, 0, []
    for row in run.rows:
        steps = row["step"] - step
        if steps > 0:
            span = next((span for span in run.spans if row["step"] <= span.end), run.spans[-1])
            if span.stage is None:
                return None
            try:
                each = run.costs.seconds(key_of(span.stage, run.methods, optimizer), (row["flops"] - flops) / steps)
            except BadInput:  # the table lacks the stage
                return None
            total, step, flops = total + steps * each, row["step"], row["flops"]
        result.append(total)
    return result


def clock_of(runs: Sequence[LoggedRun]) -> ReferenceClock:
    """Reference seconds if all runs have them from one table, else the seconds of their own clocks."""
    prints = {run.costs.fingerprint() for run in runs if run.costs is not None}
    reference = {run.label: found for run in runs if (found := reference_seconds(run)) is not None}
    if len(prints) == 1 and len(reference) == len(runs):
        costs = next(run.costs for run in runs if run.costs is not None)
        words = f"reference time, from one table of step costs ({costs.instrument} on {costs.machine})"
        return ReferenceClock(words, reference)
    why = (
        "the runs have different tables of step costs"
        if len(prints) > 1
        else "not every run has a table of step costs for all of its stages"
    )
    return ReferenceClock(f"each run's own clock, because {why}; it also counts the machine's other work", {})


def places(run: LoggedRun, axis: str, clock: ReferenceClock) -> list[float]:
    """How far the run was at each of its rows."""
    if axis == "seconds" and clock.reference:
        return clock.reference[run.label]
    key = {"tokens": "tokens_padded", "flops": "flops", "seconds": "seconds"}[axis]
    return [float(row[key]) for row in run.rows]
