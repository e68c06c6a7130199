"""The results of a study: its table, and the differences from the first arm with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bert_fast.compare.page import half_width, ordered, parts
from bert_fast.compare.results import CONFIDENCE, RESOLVED
from bert_fast.reporting import bars, scales
from bert_fast.reporting.axes import places
from bert_fast.reporting.bars import Dot
from bert_fast.reporting.blocks import Block, Figure, Heading, Section, Table
from bert_fast.reporting.losses import Curves


def tables(budget: Mapping[str, Any], first: str, tasks: Sequence[str], text: str) -> list[Table]:
    """The tables of a budget."""
    found = parts(budget, first, tasks, scales.power)
    captions = ["Results", *(part.title for part in found[1:])]
    return [
        Table(f"{caption} at {text}", part.heads, part.rows, marked=[row[0] == first for row in part.rows])
        for caption, part in zip(captions, found, strict=True)
    ]


def figure(budget: Mapping[str, Any], first: str, text: str, looks: Mapping[str, int]) -> Figure:
    """The differences from the first arm."""
    arms = budget["arms"]
    entries = []
    for arm in ordered(arms):
        about = arms[arm]
        if arm == first or about["difference"] is None:
            continue
        half, middle = half_width(about), about["difference"]
        words = f"{middle:+.3f} " + ("resolved" if about["resolved"] else "unresolved")
        entries.append(Dot(arm, middle, middle - half, middle + half, looks.get(arm, 0), words, about["resolved"]))
    if not entries:
        entries = [Dot(first, 0.0, 0.0, 0.0, 0, "baseline")]
    about_all = f"Difference of the held-out loss from {first} at {text}: " + "; ".join(
        f"{dot.name} {dot.value:+.3f} nats, from {dot.low:+.3f} to {dot.high:+.3f}, {dot.words.split()[-1]}"
        for dot in entries
    )
    picture = bars.dots(entries, f"held-out loss minus {first}, nats (left is better)", about_all, zero=True)
    note = (
        f"Means over paired seeds with {CONFIDENCE:.0%} intervals. A filled dot is a resolved difference: |t| is at "
        f"least {RESOLVED} and above the critical value at {CONFIDENCE:.0%}. A ring is an unresolved one. "
        "One seed has no interval."
    )
    rows = []
    for dot in entries:
        interval = f"{dot.low:+.3f} to {dot.high:+.3f}" if dot.high > dot.low else "-"
        rows.append([dot.name, f"{dot.value:+.3f}", interval, dot.words.split()[-1]])
    heads = ["arm", "difference", f"{CONFIDENCE:.0%} interval", "verdict"]
    small = Table(f"Differences at {text}, in nats", heads, rows)
    return Figure(f"Difference from {first}", picture, small, note)


def sentence(budget: Mapping[str, Any], first: str, text: str) -> str:
    """The result at a budget, as text."""
    arms = budget["arms"]
    # By differences, because arms of an unfinished comparison have different seeds.
    paired = {arm: one["difference"] for arm, one in arms.items() if arm != first and one["difference"] is not None}
    if not paired:
        return f"No arm has a seed in common with {first} yet."
    best = min(paired, key=paired.__getitem__)
    if paired[best] >= 0:
        return f"No arm ends lower than {first}: {arms[first]['mlm_loss']:.3f} nats."
    loss = f"{arms[best]['mlm_loss']:.3f} nats"
    about = arms[best]
    verdict = (
        "The difference is resolved." if about["resolved"] else "The difference is within the noise between seeds."
    )
    if len(about["runs"]) == 1:
        verdict = "One seed does not show whether that is more than noise."
    return f"{best} ends lowest: {loss}, {abs(about['difference']):.3f} below {first}. {verdict}"


def below_unigram(budget: Mapping[str, Any], unigram: float) -> str:
    """A sentence that says how far the losses of the arms are below the loss of a unigram model."""
    below = sorted(unigram - about["mlm_loss"] for about in budget["arms"].values())
    by = f"{below[0]:.3f}" if len(below) == 1 else f"{below[0]:.3f} to {below[-1]:.3f}"
    return f"A unigram model, which only knows how frequent words are, has {unigram:.3f} nats. The arms are {by} below."


def section(study: Mapping[str, Any], looks: Mapping[str, int]) -> Section:
    first = next(iter(study["arms"]))
    costs = study["costs"]
    blocks: list[Block] = []
    for text, budget in reversed(study["budgets"].items()):
        if budget["arms"]:
            blocks += [Heading(f"Budget {text}"), sentence(budget, first, text), figure(budget, first, text, looks)]
            if "unigram_loss" in study:
                blocks.append(below_unigram(budget, study["unigram_loss"]))
            blocks += tables(budget, first, study["tasks"], text)
    blocks.append(
        f"All arms are compared with {first}, seed by seed. Seconds are reference time from one table of step costs "
        f"({costs['instrument']} on {costs['machine']}). Realised is the share of time saved per token, divided by the "
        f"share of FLOPs saved. A speed-up is the tokens, FLOPs or seconds that {first} needs for the arm's final "
        "loss, divided by what the arm needs. A dash means that the budgets do not determine it."
    )
    return Section("results", "Results", blocks)


def runs_section(curves: Curves) -> Section:
    """The final numbers of runs that do not belong to a study."""
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
