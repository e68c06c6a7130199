"""The results of a study: its table, and the differences to the first arm with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.stats

from bert_fast.compare.page import difference, number
from bert_fast.compare.results import CONFIDENCE, RESOLVED, UNITS
from bert_fast.reporting import bars, scales
from bert_fast.reporting.axes import places
from bert_fast.reporting.bars import Dot
from bert_fast.reporting.blocks import Block, Figure, Heading, Section, Table
from bert_fast.reporting.losses import Curves

PRICES = {"chip_hours": "chip-hours", "usd": "USD"}


def half_width(about: Mapping[str, Any]) -> float:
    """Half of the interval around a difference at CONFIDENCE, from its paired t; 0 if there is none."""
    if about["t"] is None:
        return 0.0
    seeds = len(about["runs"])
    return abs(about["difference"] / about["t"]) * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))


def table(budget: Mapping[str, Any], first: str, tasks: Sequence[str], caption: str) -> Table:
    """A row for each arm, best loss on top."""
    arms, rows = budget["arms"], []
    prices = {key: words for key, words in PRICES.items() if any(key in about for about in arms.values())}
    for arm in sorted(arms, key=lambda arm: arms[arm]["mlm_loss"]):
        about = arms[arm]
        deviation = "" if about["deviation"] is None else f" ± {about['deviation']:.3f}"
        rows.append(
            [
                arm,
                str(len(about["runs"])),
                f"{about['mlm_loss']:.3f}{deviation}",
                difference(about, arm == first),
                f"{about['mlm_accuracy']:.1%}",
                f"{about['tokens']:,.0f}",
                scales.power(about["flops"]),
                f"{about['seconds']:.1f}",
                number(about.get("flops_per_token"), ".2f"),
                number(about.get("seconds_per_token"), ".2f"),
                number(about.get("realised"), ".0%"),
                *(number(about["speedup"][unit], ".2f") for unit in UNITS),
                *(number(about.get(key), ".3g") for key in prices),
                *(number(about["scores"].get(task), ".1f") for task in tasks),
            ]
        )
    heads = ["arm", "seeds", "held-out loss", f"minus {first}", "accuracy", "tokens", "FLOPs", "seconds"]
    heads += ["FLOPs per token", "seconds per token", "realised", *(f"speed-up in {unit}" for unit in UNITS)]
    heads += [*prices.values(), *tasks]
    return Table(caption, heads, rows, marked=[row[0] == first for row in rows])


def figure(budget: Mapping[str, Any], first: str, text: str, looks: Mapping[str, int]) -> Figure:
    """The differences to the first arm."""
    arms = budget["arms"]
    entries = []
    for arm in sorted(arms, key=lambda arm: arms[arm]["mlm_loss"]):
        about = arms[arm]
        if arm == first or about["difference"] is None:
            continue
        half, middle = half_width(about), about["difference"]
        words = f"{middle:+.3f} " + ("resolved" if about["resolved"] else "unresolved")
        entries.append(Dot(arm, middle, middle - half, middle + half, looks.get(arm, 0), words, about["resolved"]))
    if not entries:
        entries = [Dot(first, 0.0, 0.0, 0.0, 0, "the only arm")]
    about_all = f"Difference of the held-out loss to {first} at {text}: " + "; ".join(
        f"{dot.name} {dot.value:+.3f} nats, from {dot.low:+.3f} to {dot.high:+.3f}, {dot.words.split()[-1]}"
        for dot in entries
    )
    picture = bars.dots(entries, f"held-out loss minus {first}, nats (left is better)", about_all, zero=True)
    note = (
        f"Means over paired seeds with {CONFIDENCE:.0%} intervals. A filled dot is a resolved difference: |t| is at "
        f"least {RESOLVED} and above the critical value at {CONFIDENCE:.0%}. A ring is not. One seed has no interval."
    )
    rows = []
    for dot in entries:
        interval = f"{dot.low:+.3f} to {dot.high:+.3f}" if dot.high > dot.low else "-"
        rows.append([dot.name, f"{dot.value:+.3f}", interval, dot.words.split()[-1]])
    heads = ["arm", "difference", f"{CONFIDENCE:.0%} interval", "verdict"]
    small = Table(f"Differences at {text}, in nats", heads, rows)
    return Figure(f"Difference to {first}", picture, small, note)


def sentence(budget: Mapping[str, Any], first: str, text: str) -> str:
    """What came out at a budget, in words."""
    arms = budget["arms"]
    best = min(arms, key=lambda arm: arms[arm]["mlm_loss"])
    loss = f"{arms[best]['mlm_loss']:.3f} nats"
    if best == first:
        return f"No arm ends lower than {first}: {loss}."
    about = arms[best]
    if about["difference"] is None:
        return f"{best} ends lowest: {loss}."
    verdict = "The difference is resolved." if about["resolved"] else "The difference is within the noise of seeds."
    if len(about["runs"]) == 1:
        verdict = "One seed does not show whether that is more than noise."
    return f"{best} ends lowest: {loss}, {abs(about['difference']):.3f} below {first}. {verdict}"


def section(study: Mapping[str, Any], looks: Mapping[str, int]) -> Section:
    first = next(iter(study["arms"]))
    costs = study["costs"]
    blocks: list[Block] = []
    for text, budget in reversed(study["budgets"].items()):
        if budget["arms"]:
            blocks += [Heading(f"Budget {text}"), sentence(budget, first, text), figure(budget, first, text, looks)]
            blocks.append(table(budget, first, study["tasks"], f"Results at {text}"))
    blocks.append(
        f"All arms are compared with {first}, seed by seed. Seconds are reference time from one table of step costs "
        f"({costs['instrument']} on {costs['machine']}). Realised is the share of time saved per token, divided by the "
        f"share of FLOPs saved. A speed-up is how many times as much {first} needs for the arm's final loss; "
        "- where the budgets do not tell."
    )
    return Section("results", "Results", blocks)


def runs_section(curves: Curves) -> Section:
    """The final numbers of runs that no study compares."""
    rows = []
    for run in curves.runs:
        last, held_out = run.last, run.held_out
        finite = held_out is not None and math.isfinite(held_out["mlm_loss"])
        total = run.planned_steps
        done = "finished" if run.summary is not None or not total else f"step {last['step']:,} of {total:,}"
        rows.append(
            [
                run.label,
                ", ".join(name for name, _ in run.methods) or "none",
                done,
                f"{held_out['mlm_loss']:.3f}" if finite and held_out else "-",
                f"{held_out['mlm_accuracy']:.1%}" if finite and held_out else "-",
                f"{last['step']:,}",
                f"{last['tokens_padded']:,}",
                scales.power(last["flops"]),
                f"{last['flops'] / last['flops_dense']:.0%}" if last["flops_dense"] else "-",
                f"{places(run, 'seconds', curves.clock)[-1]:.1f}",
            ]
        )
    heads = [
        "run",
        "methods",
        "state",
        "held-out loss",
        "accuracy",
        "steps",
        "tokens",
        "FLOPs",
        "of dense FLOPs",
        "seconds",
    ]
    table = Table("Final numbers of each run", heads, rows, words=3)
    return Section("results", "Results", [table, f"Seconds: {curves.clock.words}."])
