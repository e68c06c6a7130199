"""Writes the page of the study about smaller budgets, from its records.

python -m experiments.study_budgets    writes budgets.md and budgets.png
"""

import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast.compare import page as compared
from bert_fast.compare import results
from bert_fast.compare import study as studies
from experiments import common
from experiments.study_pages import DENSE, MARGIN, read, summarized

PLATEAU = 0.5  # a model less than this many nats below a unigram model knows little more than how frequent words are


def measured() -> dict[float, dict[str, dict]]:
    """Statistics of each arm by reference seconds: the smaller budgets from tier2, the largest from tier1."""
    found = {text: arms for part in ("tier2", "tier1") for text, arms in summarized(part, read(part)).items()}
    return {float(text.partition(":")[2]): arms for text, arms in sorted(found.items(), key=lambda x: x[0].zfill(20))}


def below_unigram(part: str, seconds: float) -> float:
    """How far dense training ends below a unigram model on words hidden by [MASK], in nats."""
    runs = [r.figures for run, r in read(part).items() if (run.arm, run.budget) == (DENSE, f"seconds:{seconds:g}")]
    return statistics.fmean(one["unigram_mask_loss"] - one["mask_loss"] for one in runs)


def margins() -> dict[float, float]:
    *smaller, largest = measured()
    return {seconds: below_unigram("tier2", seconds) for seconds in smaller} | {
        largest: below_unigram("tier1", largest)
    }


def missing() -> int:
    """The number of runs of tier2 without a record."""
    return len(set(studies.runs_of(studies.load("tier2"))) - set(read("tier2")))


def shrunk(found: dict[float, dict[str, dict]]) -> str:
    """One sentence about the gains at the two largest budgets."""
    *_, (before, smaller), (after, larger) = found.items()
    gains = [arm for arm in larger if arm != DENSE and larger[arm]["difference"] < 0]
    less = [arm for arm in gains if larger[arm]["difference"] > smaller[arm]["difference"]]
    return (
        f"Of the {len(gains)} arms that end below dense training at {after:g} s, {len(less)} gain less than at {before:g} s: the gains shrink "
        "once all arms are past the plateau."
        if less == gains
        else f"Of the {len(gains)} arms that end below dense training at {after:g} s, {len(less)} gain less than at {before:g} s."
    )


def text() -> str:
    found, below = measured(), margins()
    arms = compared.ordered(found[max(found)])
    lines = [
        "| arm | " + " | ".join(f"{seconds:g} s" for seconds in found) + " |",
        "|" + "---|" * (len(found) + 1),
        "| dense: below a unigram model at [MASK] | " + " | ".join(f"{below[seconds]:.2f}" for seconds in found) + " |",
    ]
    for arm in arms:
        if arm != DENSE:
            cells = [compared.difference(of_budget[arm], False) for of_budget in found.values()]
            lines.append("| " + " | ".join([f"{arm}, minus dense", *cells]) + " |")
    seeds = {seconds: len(of_budget[DENSE]["runs"]) for seconds, of_budget in found.items()}
    on_plateau = [f"{seconds:g}" for seconds in found if below[seconds] < PLATEAU]
    left = f" **{missing()} runs are missing; nothing below is final.**" if missing() else ""
    return f"""# Do the differences of the study depend on the budget?

`python -m experiments.study tier2`, then `python -m experiments.study_budgets`.

The arms of the [study](README.md#the-study) at {", ".join(f"{seconds:g}" for seconds in found)} reference seconds of one core, with {", ".join(map(str, seeds.values()))} seeds. Each run's learning rate
falls to 0 at the end of its own budget. The rates were tuned at the largest one.{left}

{chr(10).join(lines)}

Held-out loss of the whole model in nats: the mean difference over paired seeds with its interval at {results.CONFIDENCE:.0%}.

![loss of each arm against the budget](budgets.png)

At {" and ".join(on_plateau)} s, dense training has hardly left the plateau at which a model knows only how frequent each word is ({" and ".join(f"{below[float(seconds)]:.2f}" for seconds in on_plateau)}
nats below a unigram model; the study asks for {MARGIN} at the largest budget). There, the differences show who leaves the plateau first. {shrunk(found)}

## What this does not establish

How large the differences are at larger budgets, in other sizes and with other texts.
"""


def draw():
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    found = measured()
    for index, arm in enumerate(compared.ordered(found[max(found)])):
        losses = [of_budget[arm]["mlm_loss"] for of_budget in found.values()]
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
