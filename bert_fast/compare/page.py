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
        return f"{about['difference']:+.3f} (one seed: unresolved)"
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
        "Arms with equal seeds share data, masks and initial weights, as far as their lengths and shapes are equal. "
        f"All are compared with *{first}*. "
        "The loss (nats) is held out, at the end of a schedule that ends at the budget, with every layer and token."
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
        f"- *minus {first}*: mean difference of the loss over paired seeds. It is unresolved if |t| is below "
        f"{RESOLVED}, or below the critical value at {CONFIDENCE:.0%} (12.7 with two seeds, 4.3 with three), or with "
        "only one seed.",
        f"- *seconds*: reference time of all steps, search included, by one table of step costs "
        f"({costs['instrument']} on {costs['machine']}; `{costs['fingerprint']}`). *own clock*: what the runs' clocks "
        "counted for steps, with whatever else the machine did. *overhead*: compiling, growing and saving, by the same "
        "clocks; it is not part of a budget.",
        f"- *realised*: the share of the saved FLOPs per token that is also saved as time, relative to *{first}*.",
        f"- *speed-up*: how much more {first} needs for the same final loss, interpolated between its final losses at "
        "the budgets of one unit; - outside them. Ranked are arms with all seeds, by loss also the unresolved ones.",
    ]
    return "\n".join(lines) + "\n"


def changes(about: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in about.items())
