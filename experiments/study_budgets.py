"""Writes the page of the study about smaller budgets, from its records.

python -m experiments.study_budgets    writes budgets.md and budgets.png
"""

from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast.compare import page as compared
from bert_fast.compare import results
from bert_fast.compare import study as studies
from experiments import common
from experiments.study_pages import DENSE, MARGIN, read, summarized

Arms = Mapping[str, Mapping]  # the statistics of each arm at one budget


def measured() -> dict[float, Arms]:
    """Statistics of each arm by reference seconds: the smaller budgets from tier2, the largest from tier1."""
    found = [(text, arms) for part in ("tier1", "tier2") for text, arms in summarized(part, read(part)).items()]
    return dict(sorted((float(text.partition(":")[2]), arms) for text, arms in found))


def below_unigram(arms: Arms) -> list[float]:
    """How far each run of dense training ends below a unigram model on words hidden by [MASK], in nats."""
    return [row["unigram_mask_loss"] - row["mask_loss"] for row in arms[DENSE]["runs"]]


def changes(smaller: Arms, larger: Arms) -> tuple[list[str], list[str], list[str]]:
    """The arms whose gain over dense training shrinks, grows, or does not change by more than the noise between seeds,
    from one budget to another. Only arms that gain at the larger budget count.
    """
    shrinks, grows, unresolved = [], [], []
    for arm in (arm for arm in larger if arm != DENSE and larger[arm]["difference"] < 0):
        before, after = (
            {row["seed"]: row["mlm_loss"] - dense[row["seed"]] for row in arms[arm]["runs"] if row["seed"] in dense}
            for arms in (smaller, larger)
            for dense in [{row["seed"]: row["mlm_loss"] for row in arms[DENSE]["runs"]}]
        )
        change = results.paired(after, before)
        kind = unresolved if not change["resolved"] else shrinks if change["difference"] > 0 else grows
        kind.append(arm)
    return shrinks, grows, unresolved


def changed(found: Mapping[float, Arms]) -> str:
    """Sentences about the gains at the two largest budgets."""
    *_, (before, smaller), (after, larger) = found.items()
    shrinks, grows, unresolved = changes(smaller, larger)
    kinds = {"It shrinks": shrinks, "It grows": grows, "The change is unresolved": unresolved}
    said = " ".join(f"{verb}: {', '.join(arms)}." for verb, arms in kinds.items() if arms)
    return f"The gain of each arm from {before:g} to {after:g} s, over the seeds that both have. {said}"


def text() -> str:
    found, kept = measured(), read("tier2")
    missing = len(set(studies.runs_of(studies.load("tier2"))) - set(kept))
    below = [", ".join(f"{margin:.2f}" for margin in below_unigram(arms)) for arms in found.values()]
    lines = [
        "| arm | " + " | ".join(f"{seconds:g} s" for seconds in found) + " |",
        "|" + "---|" * (len(found) + 1),
        "| dense: each seed below a unigram model at [MASK] | " + " | ".join(below) + " |",
    ]
    for arm in compared.ordered(found[max(found)]):
        if arm != DENSE:
            cells = [compared.difference(arms[arm], False) for arms in found.values()]
            lines.append("| " + " | ".join([f"{arm}, minus dense", *cells]) + " |")
    *some, last = (f"{seconds:g}" for seconds in found)
    *few, most = (str(len(arms[DENSE]["runs"])) for arms in found.values())
    left = f" **{missing} runs are missing; nothing below is final.**" if missing else ""
    return f"""# Do the differences of the study depend on the budget?

`python -m experiments.study tier2`, then `python -m experiments.study_budgets`.

The arms of the [study](README.md#the-study) at {", ".join(some)} and {last} reference seconds of one core, with {", ".join(few)} and {most} seeds. Each run's learning
rate falls to 0 at the end of its own budget. The peak rates were tuned at the largest budget, and the warm-up takes 50 steps at all of them.{left}

{chr(10).join(lines)}

Held-out loss of the whole model in nats: the mean difference over paired seeds with its interval at {results.CONFIDENCE:.0%}.

![loss of each arm against the budget](budgets.png)

The first row tells where each dense run is. Near 0, it is still on the plateau at which a model knows only how frequent each word is. The study
asks for at least {MARGIN} at the largest budget. At a budget where some runs have left the plateau and others have not, the differences mostly show
which arm leaves it first.

{changed(found)}

## What this does not establish

How large the differences are at larger budgets, in other sizes and with other texts.
"""


def draw():
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    found = measured()
    for index, arm in enumerate(compared.ordered(found[max(found)])):
        losses = [arms[arm]["mlm_loss"] for arms in found.values()]
        color = "black" if arm == DENSE else f"C{index}"
        axes.plot(list(found), losses, "o-", color=color, lw=2.2 if arm == DENSE else 1.2, label=arm)
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
