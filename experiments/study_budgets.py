"""Writes the page of the study about budgets, from its records.

python -m experiments.study_budgets    writes budgets.md and budgets.png
"""

import itertools
import math
import statistics
from collections.abc import Collection, Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast.compare import page as compared
from bert_fast.compare import results
from bert_fast.compare import study as studies
from bert_fast.compare.costs import NAME
from bert_fast.train import step_costs
from bert_fast.train.step_costs import StepCosts
from experiments import common
from experiments.study import RECORDS
from experiments.study_pages import MARGIN
from experiments.study_statistics import DENSE, difference, losses_of, read, summarized

Arms = Mapping[str, Mapping]  # the statistics of each arm at one budget
PARTS_SHOWN = ("tier1", "tier2", "tier2_growth", "tier2_larger")  # the parts on the page: all with the same text


def measured() -> dict[float, Arms]:
    """Statistics of each arm by reference seconds, of the arms that were measured at several budgets.

    If several parts have an arm at one budget, the first part counts.
    """
    found: dict[float, dict[str, Mapping]] = {}
    for part in PARTS_SHOWN:
        for text, arms in summarized(part).items():
            budget = found.setdefault(float(text.partition(":")[2]), {})
            budget.update({arm: about for arm, about in arms.items() if arm not in budget})
    several = {arm for arms in found.values() for arm in arms if sum(arm in other for other in found.values()) > 1}
    return {
        seconds: {arm: found[seconds][arm] for arm in found[seconds] if arm in several} for seconds in sorted(found)
    }


def arms_of(found: Mapping[float, Arms]) -> list[str]:
    """The arms, ordered by the loss at their largest budget."""
    last = {arm: about for seconds in sorted(found) for arm, about in found[seconds].items()}
    return compared.ordered(last)


def below_unigram(arms: Arms) -> list[float]:
    """How far each run of dense training ends below a unigram model on words hidden by [MASK], in nats."""
    return [row["unigram_mask_loss"] - row["mask_loss"] for row in arms[DENSE]["runs"]]


def against_dense(arms: Arms, arm: str) -> dict[int, float]:
    """Each seed's loss minus dense training's."""
    dense = losses_of(arms[DENSE])
    return {seed: loss - dense[seed] for seed, loss in losses_of(arms[arm]).items() if seed in dense}


def changes(smaller: Arms, larger: Arms) -> tuple[list[str], list[str], list[str]]:
    """The arms whose gain over dense training shrinks, grows, or does not change by more than the noise between seeds,
    from one budget to another. Only arms that have both budgets and gain at the larger one count.
    """
    shrinks, grows, unresolved = [], [], []
    for arm in (arm for arm in larger if arm in smaller and arm != DENSE and larger[arm]["difference"] < 0):
        change = results.paired(against_dense(larger, arm), against_dense(smaller, arm))
        kind = unresolved if not change["resolved"] else shrinks if change["difference"] > 0 else grows
        kind.append(arm)
    return shrinks, grows, unresolved


def changed(found: Mapping[float, Arms]) -> str:
    """A paragraph about the gains from each budget to the next, without the smallest budget."""
    paragraphs = []
    for (before, smaller), (after, larger) in itertools.pairwise(list(found.items())[1:]):
        shrinks, grows, unresolved = changes(smaller, larger)
        kinds = {"shrinks for": shrinks, "grows for": grows, "does not change by more than the noise for": unresolved}
        said = "; it ".join(f"{verb} {', '.join(arms)}" for verb, arms in kinds.items() if arms)
        paragraphs.append(
            f"From {before:g} to {after:g} s, the gain over dense training {said} (over the seeds that both have)."
        )
    return "\n\n".join(paragraphs)


def sooner(found: Mapping[float, Arms]) -> str:
    """A sentence about the arms whose loss at the second largest budget is below dense training's at the largest."""
    *_, (before, smaller), (after, larger) = found.items()
    dense, below = losses_of(larger[DENSE]), []
    for arm in (arm for arm in arms_of(found) if arm in smaller and arm != DENSE):
        paired = results.paired(losses_of(smaller[arm]), dense)
        if paired["resolved"] and paired["difference"] < 0:
            below.append(f"{arm} {difference(losses_of(smaller[arm]), dense)}")
    if not below:
        return f"No arm ends at {before:g} s clearly below dense training at {after:g} s."
    return f"These arms end at {before:g} s below dense training at {after:g} s: {', '.join(below)}."


def programs_with_equal_flops(costs: StepCosts) -> dict[float, dict[str, float]]:
    """The measured seconds of a step by stage, for all FLOPs that several programs have: the same products in another
    method.
    """
    seconds: dict[float, dict[str, float]] = {}
    for key, curve in costs.curves.items():
        for point in curve:
            seconds.setdefault(point.flops, {})[key] = point.seconds
    return {flops: found for flops, found in sorted(seconds.items()) if len(found) > 1}


def spread(found: Mapping[str, float]) -> float:
    """How far the costs of equal programs are apart, as a share of their mean."""
    return (max(found.values()) - min(found.values())) / statistics.fmean(found.values())


def deviation(groups: Collection[Mapping[str, float]]) -> float:
    """The root mean square deviation of costs from the mean of their group, as a share of that mean."""
    squares = [(one / statistics.fmean(found.values()) - 1) ** 2 for found in groups for one in found.values()]
    return math.sqrt(sum(squares) / (len(squares) - len(groups)))


def clock(costs: StepCosts) -> str:
    """How exact the step costs are."""
    groups = programs_with_equal_flops(costs).values()
    widest = max(groups, key=spread)
    rows = [
        f"| {key.rpartition(' ')[0]} | {seconds:.4f} |" for key, seconds in sorted(widest.items(), key=lambda of: of[1])
    ]
    return f"""Some arms have stages in common, or stages with the same products: {sum(map(len, groups))} programs fall into {len(groups)} groups of equal FLOPs. In a group, costs
are up to {spread(widest):.0%} apart; their root mean square deviation from the mean of their group is {deviation(groups):.1%}. The group that is farthest apart:

| methods/stage | seconds per step |
|---|---|
{chr(10).join(rows)}

{worth(deviation(groups))}"""


def worth(error: float) -> str:
    """A paragraph about what an error of the step costs is worth, from dense training with less and with more time."""
    if not (kept := read("tier2_clock")):
        return "What such an error is worth has not been measured yet (`tier2_clock`)."
    ((usual, arms),) = summarized("tier1").items()
    usual, dense = usual.partition(":")[2], losses_of(arms[DENSE])
    found = {float(text.partition(":")[2]): losses_of(of[DENSE]) for text, of in summarized("tier2_clock").items()}
    said = ", ".join(f"{difference(losses, dense)} at {seconds:g} s" for seconds, losses in sorted(found.items()))
    low, high = min(found), max(found)
    slope = -results.paired(found[high], found[low])["difference"] / math.log(high / low)
    wanted = len(studies.runs_of(studies.load("tier2_clock")))
    left = "" if len(kept) >= wanted else f" ({wanted - len(kept)} runs are missing)"
    return f"""`python -m experiments.study tier2_clock` trained dense BERT for a little less and a little more time{left}. Minus its loss at {usual} s: {said}.
So if all steps of an arm are charged {error:.1%} too much or too little, its loss changes by about {slope * error:.2f} nats. A smaller difference between
two arms may come from the clock, even if more seeds confirm it."""


def text() -> str:
    found = measured()
    wanted = {part: studies.runs_of(studies.load(part)) for part in PARTS_SHOWN}
    missing = sum(len(set(runs) - set(read(part))) for part, runs in wanted.items())
    below = [", ".join(f"{margin:.2f}" for margin in below_unigram(arms)) for arms in found.values()]
    lines = [
        "| arm | " + " | ".join(f"{seconds:g} s" for seconds in found) + " |",
        "|" + "---|" * (len(found) + 1),
        "| dense: each seed below a unigram model at [MASK] | " + " | ".join(below) + " |",
    ]
    for arm in arms_of(found):
        if arm != DENSE:
            cells = [compared.difference(arms[arm], False) if arm in arms else "-" for arms in found.values()]
            lines.append("| " + " | ".join([f"{arm}, minus dense", *cells]) + " |")
    parts = ", ".join(f"`{part}`" for part in PARTS_SHOWN)
    *some, last = (f"{seconds:g}" for seconds in found)
    *few, most = (str(len(arms[DENSE]["runs"])) for arms in found.values())
    tuned = next(iter(read("tier1_rates"))).budget.partition(":")[2]
    left = f" **{missing} runs are missing; nothing below is final.**" if missing else ""
    return f"""# Do the differences of the study depend on the budget?

`python -m experiments.study PART` with {parts} and `tier2_clock`, then `python -m experiments.study_budgets`.

The arms of the [study](README.md#the-study) at {", ".join(some)} and {last} reference seconds of one core, with {", ".join(few)} and {most} seeds. Each run's learning
rate falls to 0 at the end of its own budget. The peak rates were tuned at {tuned} s (late growth has dense training's), and the warm-up takes 50 steps at
all budgets.{left}

{chr(10).join(lines)}

Held-out loss of the whole model in nats: the mean difference over paired seeds with its interval at {results.CONFIDENCE:.0%}.

![loss of each arm against the budget](budgets.png)

The first row tells where each dense run is. Near 0, it is still on the plateau at which a model knows only how frequent each word is. The study
asks for at least {MARGIN} at {tuned} s. At a budget where some runs have left the plateau and others have not, the differences mostly show
which arm leaves it first.

{changed(found)}

{sooner(found)}

## How exact the clock is

{clock(step_costs.read(RECORDS / "tier2_growth" / NAME))}

## What this does not establish

How large the differences are at larger budgets, in other sizes and with other texts.
"""


def draw():
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    found = measured()
    for index, arm in enumerate(arms_of(found)):
        points = [(seconds, arms[arm]["mlm_loss"]) for seconds, arms in found.items() if arm in arms]
        color = "black" if arm == DENSE else f"C{index}"
        axes.plot(*zip(*points, strict=True), "o-", color=color, lw=2.2 if arm == DENSE else 1.2, label=arm)
    axes.set(xlabel="reference seconds of one core", ylabel="held-out loss (nats), mean over seeds", xscale="log")
    axes.set_xticks(list(found), [f"{seconds:g}" for seconds in found])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(common.HERE / "budgets.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


def main():
    common.parser(__doc__).parse_args()
    draw()
    common.write_page("budgets", text())


if __name__ == "__main__":
    main()
