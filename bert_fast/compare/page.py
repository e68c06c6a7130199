"""The results of a study as Markdown."""

from collections.abc import Mapping
from typing import Any

from bert_fast.compare.results import CONFIDENCE, RESOLVED, UNITS


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def difference(about: Mapping[str, Any], is_first: bool) -> str:
    """The difference to the first arm, and whether it is more than the noise of seeds."""
    if is_first or about["difference"] is None:
        return "-"
    if about["t"] is None:
        return f"{about['difference']:+.3f} (unresolved)"
    verdict = "" if about["resolved"] else ", unresolved"
    return f"{about['difference']:+.3f} (t {about['t']:+.1f}{verdict})"


def table(budget: Mapping[str, Any], first: str, tasks: list[str]) -> list[str]:
    """One row per arm, best loss first. first: the arm that the others are compared with."""
    arms = budget["arms"]
    anyone = next(iter(arms.values()))
    heads = [
        "arm", "seeds", "loss", f"minus {first}", "loss at [MASK]", "accuracy", "tokens", "FLOPs", "seconds",
        "own clock", "overhead", "FLOPs per token", "seconds per token", "realised",
        *(f"speed-up in {unit}" for unit in UNITS),
    ]  # fmt: skip
    if "chip_hours" in anyone:
        heads += ["chip-hours", "USD"]
    heads += tasks
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for arm in sorted(arms, key=lambda arm: arms[arm]["mlm_loss"]):
        about = arms[arm]
        deviation = "" if about["deviation"] is None else f" ± {about['deviation']:.3f}"
        cells = [
            arm,
            str(len(about["runs"])),
            f"{about['mlm_loss']:.3f}{deviation}",
            difference(about, arm == first),
            f"{about['mask_loss']:.3f}",
            f"{about['mlm_accuracy']:.1%}",
            f"{about['tokens']:,.0f}",
            f"{about['flops']:.3g}",
            f"{about['seconds']:.1f}",
            f"{about['clock_seconds']:.1f}",
            f"{about['overhead']:.1f}",
            number(about.get("flops_per_token"), ".2f"),
            number(about.get("seconds_per_token"), ".2f"),
            number(about.get("realised"), ".0%"),
            *(number(about["speedup"][unit], ".2f") for unit in UNITS),
        ]
        if "chip_hours" in about:
            cells += [f"{about['chip_hours']:.3g}", number(about.get("usd"), ".3g")]
        cells += [number(about["scores"].get(task), ".1f") for task in tasks]
        lines.append("| " + " | ".join(cells) + " |")
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
        lines += ["", f"## Budget {text}", "", *table(budget, first, results["tasks"])]
        for unit in ("loss", *UNITS):
            if len(budget["ranking"][unit]) > 1:
                of = "by final loss" if unit == "loss" else f"by speed-up in {unit}"
                left = [arm for arm in budget["arms"] if arm not in budget["ranking"][unit]]
                more = f" Not ranked: {', '.join(left)}." if left else ""
                lines += ["", f"Ranking {of}: {', '.join(budget['ranking'][unit])}.{more}"]
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
        f"- *minus {first}*: mean difference of the loss over paired seeds. It is unresolved with only one seed, or "
        f"if |t| is below {RESOLVED} or below the critical value at {CONFIDENCE:.0%} (12.7 with two seeds, 4.3 with "
        "three).",
        "- *seconds*: reference time of all steps, including the steps of a search. It is computed from one table of "
        f"step costs ({costs['instrument']} on {costs['machine']}; `{costs['fingerprint']}`). *own clock*: the time of "
        "the steps by each run's own clock, which also counts whatever else the machine did. *overhead*: compiling, "
        "growing and saving, by the same clocks; it is not part of a budget.",
        "- *realised*: the share of time saved per token, divided by the share of FLOPs saved per token, both relative "
        f"to *{first}*.",
        f"- *speed-up*: how many times as many tokens, FLOPs or seconds {first} needs for the arm's final loss. It is "
        f"interpolated between the final losses of {first} at the budgets given in the same unit; `-` where that is "
        "impossible. Only arms that finished with all seeds are ranked, even if their difference is unresolved.",
    ]
    return "\n".join(lines) + "\n"


def changes(about: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in about.items())
