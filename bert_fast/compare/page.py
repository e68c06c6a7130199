"""The results of a study as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bert_fast.compare.results import CONFIDENCE, RESOLVED, UNITS

PRICES = {"chip_hours": "chip-hours", "usd": "USD"}


class ArmTable(NamedTuple):
    """A table of the results at a budget: a title, column heads, and a row for each arm."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def half_width(about: Mapping[str, Any]) -> float:
    """Half the width of a difference's interval; 0 if there is none, or if an older version wrote the results."""
    return about.get("half_width") or 0.0


def difference(about: Mapping[str, Any], is_first: bool) -> str:
    """The difference from the first arm with its interval, and whether it is larger than the noise between seeds."""
    if is_first or about["difference"] is None:
        return "-"
    middle, half = about["difference"], half_width(about)
    if not half:
        return f"{middle:+.3f} ({'one seed' if len(about['runs']) == 1 else 'unresolved'})"
    verdict = "" if about["resolved"] else " (unresolved)"
    return f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}]{verdict}"


def ordered(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The arms, best loss first. They are in the study's order if each has only one seed, which cannot rank them."""
    if max(len(about["runs"]) for about in arms.values()) < 2:
        return list(arms)
    return sorted(arms, key=lambda arm: arms[arm]["mlm_loss"])


def parts(
    budget: Mapping[str, Any], first: str, tasks: Sequence[str], power: Callable[[float], str] = "{:.3g}".format
) -> list[ArmTable]:
    """The tables of a budget: first what is compared, then where savings come from, then the rest.

    first: the arm that the others are compared with. power: formats a large number.
    """
    arms = budget["arms"]
    prices = {key: words for key, words in PRICES.items() if any(key in about for about in arms.values())}
    compared = ArmTable("", ["arm", "seeds", "loss", f"minus {first}", "tokens", "FLOPs", "seconds", *tasks], [])
    known = [unit for unit in UNITS if any(about["speedup"][unit] is not None for about in arms.values())]
    units = (f"speed-up in {unit}" for unit in known)
    savings = ArmTable("Savings", ["arm", "FLOPs per token", "seconds per token", "realised", *units], [])
    heads = ["arm", "loss at [MASK]", "accuracy", "t", "own clock", "overhead", *prices.values()]
    others = ArmTable("Other figures", heads, [])
    for arm in ordered(arms):
        about = arms[arm]
        deviation = "" if about["deviation"] is None else f" ± {about['deviation']:.3f}"
        compared.rows.append(
            [
                arm,
                str(len(about["runs"])),
                f"{about['mlm_loss']:.3f}{deviation}",
                difference(about, arm == first),
                f"{about['tokens']:,.0f}",
                power(about["flops"]),
                f"{about['seconds']:.1f}",
                *(number(about["scores"].get(task), ".1f") for task in tasks),
            ]
        )
        savings.rows.append(
            [
                arm,
                number(about.get("flops_per_token"), ".2f"),
                number(about.get("seconds_per_token"), ".2f"),
                number(about.get("realised"), ".0%"),
                *(number(about["speedup"][unit], ".2f") for unit in known),
            ]
        )
        others.rows.append(
            [
                arm,
                f"{about['mask_loss']:.3f}",
                f"{about['mlm_accuracy']:.1%}",
                number(None if arm == first else about["t"], "+.1f"),
                f"{about['clock_seconds']:.1f}",
                f"{about['overhead']:.1f}",
                *(number(about.get(key), ".3g") for key in prices),
            ]
        )
    return [compared, savings, others]


def table(part: ArmTable) -> list[str]:
    """A table as Markdown, under its title."""
    title = [f"### {part.title}", ""] if part.title else []
    head = "| " + " | ".join(part.heads) + " |"
    return [*title, head, "|" + "---|" * len(part.heads), *("| " + " | ".join(row) + " |" for row in part.rows)]


def rankings(budget: Mapping[str, Any], seeds: int) -> list[str]:
    """Lines with the rankings; with one seed, the reason why there are none."""
    if seeds < 2 and len(budget["arms"]) > 1:
        return ["", "One seed cannot rank the arms: another seed may reverse their order. Give the study two or more."]
    lines = []
    for unit in ("loss", *UNITS):
        if len(budget["ranking"][unit]) > 1:
            of = "by final loss" if unit == "loss" else f"by speed-up in {unit}"
            left = [arm for arm in budget["arms"] if arm not in budget["ranking"][unit]]
            more = f" Not ranked: {', '.join(left)}." if left else ""
            lines += ["", f"Ranking {of}: {', '.join(budget['ranking'][unit])}.{more}"]
    return lines


def markdown(results: Mapping[str, Any], name: str) -> str:
    """The whole page."""
    first = next(iter(results["arms"]))
    costs = results["costs"]
    seeds = len(results["seeds"])
    lines = [f"# Comparison: {name}", ""]
    lines.append(
        f"{len(results['arms'])} arms from `{results['config']}`, {seeds} seed{'s' if seeds > 1 else ''} each. "
        "Runs with the same seed share data and masks where their sequence lengths are equal, and initial weights "
        f"where the shapes are equal. All arms are compared with *{first}*. "
        "The loss (nats) is measured on held-out text with every layer and token active, at the end of a schedule that "
        "ends at the budget."
    )
    for text, budget in results["budgets"].items():
        if not budget["arms"]:
            continue
        compared, *more = parts(budget, first, results["tasks"])
        lines += ["", f"## Budget {text}", "", *table(compared), *rankings(budget, seeds)]
        lines += [line for part in more for line in ("", *table(part))]
    if results["missing"]:
        missing = ", ".join(f"{run['arm']} ({run['budget']}, seed {run['seed']})" for run in results["missing"])
        lines += ["", f"Not finished: {missing}."]
    lines += ["", "## Changes of each arm", ""]
    lines += [f"- {arm}: {changes(about) or 'none'}" for arm, about in results["arms"].items()]
    if results["changes"]:
        lines.append(f"- all arms: {changes(results['changes'])}")
    lines += [
        "",
        "## How to read it",
        "",
        f"- *minus {first}*: mean difference of the loss over paired seeds, with its interval at {CONFIDENCE:.0%}. It "
        f"is unresolved if |*t*| is below {RESOLVED} or below the critical value at {CONFIDENCE:.0%} (12.7 with two "
        "seeds, 4.3 with three). With one seed, there is no interval and no *t*.",
        "- *seconds*: reference time of all steps, including the steps of a search. It is computed from one table of "
        f"step costs ({costs['instrument']} on {costs['machine']}; `{costs['fingerprint']}`). *own clock*: the time of "
        "the steps by each run's own clock, which also counts the machine's other work. *overhead*: compiling, "
        "growing the model and saving, by the same clocks; it is not part of a budget.",
        "- *realised*: the share of time saved per token, divided by the share of FLOPs saved per token, both relative "
        f"to *{first}*.",
        f"- *speed-up*: the tokens, FLOPs or seconds that {first} needs to reach the arm's final loss, divided by what "
        f"the arm used. What {first} needs is interpolated between its final losses at the budgets given in the same "
        "unit; `-` where that is impossible. An arm is ranked if it finished with all seeds, even if its "
        "difference is unresolved.",
    ]
    return "\n".join(lines) + "\n"


def changes(about: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in about.items())
