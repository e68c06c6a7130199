"""Writes the pages of the study from its records: layer_drop, token_drop, early_bert, stacking and combined.

    python -m experiments.study_pages    writes PAGE.md and PAGE.png; once tier1 has finished, also the table and the
                                         picture of README.md

Every number of the pages comes from experiments/records, or from the table of costs in tpu_plan.md.
"""

import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast.compare import page as compared
from bert_fast.compare import results
from bert_fast.compare import study as studies
from bert_fast.compare.records import Record
from bert_fast.compare.study import Run
from experiments import common
from experiments.study import PARTS
from experiments.study_statistics import DENSE, difference, headline, losses_of, read, summarized
from experiments.study_words import METHODS, PAGES, Page

SHOWN = ("tier2", "tier2_larger", "tier2_epochs", "tier2_rivals", "tier2_growth", "tier3")  # on the methods' pages
BEGIN, END = (
    "<!-- The study: written by experiments/study_pages.py -->",
    "<!-- The end of the study -->",
)  # in README.md
MARGIN = 1.5  # dense training must end at least this many nats below a unigram model, on words hidden by [MASK]


def counted(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def table(arms: Mapping[str, dict], names: Sequence[str]) -> str:
    """The rows of some arms, compared with dense training at an equal budget."""
    head = "| arm | seeds | loss | minus dense | loss at [MASK] | accuracy | M tokens | FLOPs | FLOPs per token | seconds per token | realised |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for name in [DENSE, *names]:
        if name not in arms:
            continue
        about = arms[name]
        cells = [
            name,
            counted([row["seed"] for row in about["runs"]]),
            common.with_deviation([row["mlm_loss"] for row in about["runs"]], ".3f"),
            compared.difference(about, name == DENSE),
            f"{about['mask_loss']:.3f}",
            f"{about['mlm_accuracy']:.1%}",
            f"{about['tokens'] / 1e6:.2f}",
            f"{about['flops']:.3g}",
            *(compared.number(about.get(key), ".2f") for key in ("flops_per_token", "seconds_per_token")),
            compared.number(about.get("realised"), ".0%"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(name: str, about: Mapping) -> str:
    """One sentence about an arm at an equal budget."""
    seeds, difference = len(about["runs"]), about["difference"]
    if difference is None:
        return f"{name} has no seed in common with dense training yet."
    after = f"at equal time, after {seeds} seed{'s' if seeds > 1 else ''}"
    if not about["resolved"]:
        return f"The difference between {name} and dense training is unresolved ({difference:+.3f} nats {after})."
    side = "below" if difference < 0 else "above"
    return f"{name[0].upper()}{name[1:]} ends {abs(difference):.3f} nats {side} dense training {after} (t {about['t']:+.1f})."


def setting(part: str, kept: Mapping[Run, Record]) -> str:
    """How a part was run, from its records."""
    first = next(record for run, record in kept.items() if run.arm == DENSE).figures
    dense = [record.figures for run, record in kept.items() if run.arm == DENSE]
    margin = statistics.fmean(one["unigram_mask_loss"] - one["mask_loss"] for one in dense)
    wanted = studies.load(part)
    runs = len(wanted.arms) * len(wanted.seeds) * len(wanted.budgets)
    changes = ", ".join(f"`{k}={v}`" for k, v in first["changes"].items() if k not in ("checkpoint.keep", "sinks"))
    tokens = statistics.fmean(one["tokens"] for one in dense)
    done = (
        f"All {runs} runs have finished."
        if len(kept) >= runs
        else f"**{len(kept)} of {runs} runs have finished; the table says which seeds. Nothing below is final.**"
    )
    return f"""`python -m experiments.study {part}`; `{first["config"]}` with {changes}; each arm has the best of three peak rates (below).
Every arm has the same budget, {first["budget"].partition(":")[2]} [reference seconds](../docs/budgets.md) of one core ({first["machine"]}; step costs `{first["costs"]}`), and its learning rate falls to 0
at the end of it. Dense training sees {tokens / 1e6:.1f} M of the {first["corpus_tokens"] / 1e6:.1f} M tokens of the text ({tokens / first["corpus_tokens"]:.2f} epochs). It ends {margin:.2f} nats below a unigram model on words
hidden by [MASK] (the study asks for at least {MARGIN}). Runs with the same seed share data, masks and, where shapes are equal, initial weights. Commit
`{first["commit"][:12]}`. {done}"""


def trials() -> str:
    """The grid of learning rates, and the loss of each trial."""
    kept = {**read("tier1_rates"), **read("tier1_rates_mslt")}
    if not kept:
        return "No trial has finished yet."
    found: dict[str, dict[str, float]] = {}
    for run, record in kept.items():
        arm, _, rate = run.arm.rpartition(", rate ")
        found.setdefault(arm, {})[rate] = record.figures["mlm_loss"]
    rates = sorted({rate for losses in found.values() for rate in losses}, key=float)
    budget = next(iter(kept)).budget.partition(":")[2]
    order = sorted(found, key=[*studies.load("tier1").arms, *found].index)
    lines = ["| arm | " + " | ".join(rates) + " |", "|" + "---|" * (len(rates) + 1)]
    for arm in order:
        best = min(found[arm].values())
        cells = [
            ("**{:.3f}**" if found[arm].get(rate) == best else "{:.3f}").format(found[arm][rate])
            if rate in found[arm]
            else "-"
            for rate in rates
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    note = ""
    if {one.figures["fingerprint"] for one in (*kept.values(), *read("tier1").values())} != {
        next(iter(kept.values())).figures["fingerprint"]
    }:
        note = (
            "\n\nThe trials ran before the vocabulary was sorted: on the same word pieces, with other ids. So their losses "
            "are compared only with each other."
        )
    head = f"Held-out loss at {budget} reference seconds, one seed that the study does not use:\n\n"
    return head + "\n".join(lines) + note


def planned(names: Sequence[str]) -> str:
    """Rows of the table of costs in tpu_plan.md."""
    lines = (common.HERE / "tpu_plan.md").read_text().split("## What a BERT-base costs")[1].splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    head = [line for line in lines if line.startswith("|")][:2]
    return "\n".join([*head, *(rows[name] for name in names)])


def draw(name: str, page: Page, kept: Mapping[Run, Record]):
    """PAGE.png: held-out loss against FLOPs for the first seed, and the paired differences of all seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    dense = {run.seed: record.figures["mlm_loss"] for run, record in kept.items() if run.arm == DENSE}
    first = min(run.seed for run in kept)
    shown = [arm for arm in page.arms if any(run.arm == arm for run in kept)]
    for index, arm in enumerate([DENSE, *shown]):
        color = "black" if arm == DENSE else f"C{index - 1}"
        for run, record in kept.items():
            rows = [row for row in record.rows if row["split"] == "valid"]
            if run.arm == arm and run.seed == first:
                left.plot([r["flops"] for r in rows], [r["mlm_loss"] for r in rows], color=color, label=arm)
            if run.arm == arm != DENSE and run.seed in dense:
                right.plot(record.figures["mlm_loss"] - dense[run.seed], index, "o", color=color, alpha=0.7)
    unigram = next(iter(kept.values())).figures["unigram_loss"]
    left.axhline(unigram, color="gray", linestyle="--", linewidth=0.8, label="unigram")
    left.set(xlabel="FLOPs", ylabel="held-out loss, all predicted words (nats)", title=f"seed {first}")
    left.legend(fontsize=8)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(
        yticks=range(1, len(shown) + 1), yticklabels=shown, ylim=(0.5, len(shown) + 0.5),
        xlabel="final loss minus dense training's, same seed (nats)", title="each dot is a seed",
    )  # fmt: skip
    figure.savefig(common.HERE / f"{name}.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


def draw_all(path: pathlib.Path):
    """Draws each method's loss minus dense training's, at equal time, seed by seed."""
    text, arms = headline()
    dense = {row["seed"]: row["mlm_loss"] for row in arms[DENSE]["runs"]}
    names = sorted((arm for arm in arms if arm != DENSE), key=lambda arm: -arms[arm]["difference"])
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    if len(dense) > 1:
        spread = statistics.stdev(dense.values())
        axes.axvspan(-spread, spread, color="#d0d0d0", alpha=0.6, lw=0)
    axes.axvline(0, color="black", lw=0.8)
    for height, name in enumerate(names):
        paired = [row["mlm_loss"] - dense[row["seed"]] for row in arms[name]["runs"] if row["seed"] in dense]
        axes.plot(paired, [height] * len(paired), "o", color="#0072b2", ms=5, alpha=0.6)
        axes.plot(arms[name]["difference"], height, "|", color="black", ms=16, mew=2)
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_xlabel(
        "held-out loss minus dense training's, same seed (nats)\nbar: mean; grey: deviation of dense training's seeds"
    )
    axes.set_title(f"{text.partition(':')[2]} reference seconds each, {len(dense)} seeds", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def directly(methods: Mapping[str, dict], rivals: Mapping[str, dict]) -> str:
    """The differences between arms of another part and the methods, over paired seeds at an equal budget."""
    lines = ["| minus | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for name, rival in rivals.items():
        cells = [difference(losses_of(rival), losses_of(about)) for about in methods.values()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def others(page: Page) -> str:
    """A table for each other part of the study that has run arms of this page.

    Arms that the main part lacks are also compared with the page's methods, where text and budget are the same.
    """
    sections, not_run = [], []
    main = summarized("tier1")
    for part in SHOWN:
        found = summarized(part)
        if not found:
            not_run.append(f"`{part}`")
        for text, arms in found.items():
            names = [arm for arm in arms if arm != DENSE and (arm in page.arms or arm.startswith(tuple(page.more)))]
            if not names:
                continue
            head = f"### {PARTS[part].title} (`{part}`), {text.partition(':')[2]} reference seconds"
            sections.append(f"{head}\n\n{table(arms, names)}\n")
            known = main.get(text, {}) if PARTS[part].text == PARTS["tier1"].text else {}
            methods = {arm: known[arm] for arm in page.arms if arm in known}
            if methods and (rivals := {arm: arms[arm] for arm in names if arm not in known}):
                sections.append(f"Compared with the arms of the main part:\n\n{directly(methods, rivals)}\n")
    if not_run:
        sections.append(f"Not run yet: {', '.join(not_run)}.\n")
    return "\n".join(sections)


def text_of(name: str) -> str:
    """A page of the study."""
    page, kept = PAGES[name], read("tier1")
    ((_, arms),) = summarized("tier1").items()
    sentences = " ".join(verdict(arm, arms[arm]) for arm in page.arms if arm in arms)
    return f"""# {page.title}

## The claim

{page.claim}

## What was run

{setting("tier1", kept)}

The method's config: `bert-fast pretrain --config={page.config}:size=base` ([configs/{page.config}.py](../configs/{page.config}.py)). Its arms here are
in [configs/studies/tier1.py](../configs/studies/tier1.py).

## What was found

{sentences}

{table(arms, page.arms)}

*loss*: held-out loss of the whole model in nats, mean ± deviation of seeds. *minus dense*: the mean difference over paired seeds, with its interval
at 95 %; it is unresolved with one seed, or if |t| is below {results.RESOLVED} or below its critical value at {results.CONFIDENCE:.0%}. *per token*: relative to dense training. *realised*: share of time
saved / share of FLOPs saved.

![held-out loss against FLOPs, and paired differences]({name}.png)

## Learning rates

{trials()}

## Other budgets, rivals, ablations

{others(page)}
## At the paper's size

What a BERT-base with the paper's number of examples costs, by the planner ([tpu_plan](tpu_plan.md)): estimates, not measurements.

{planned(page.planned)}

## What did not work, and what was changed

{page.shortfall}

## What this does not establish

{page.limits} The size is far below BERT's: a difference found here may vanish or reverse there.
"""


def finished() -> bool:
    """Whether all runs of tier1 have records."""
    return set(studies.runs_of(studies.load("tier1"))) <= set(read("tier1"))


def readme_block() -> str:
    """The part of README.md that shows the study: picture, table, and how to read them."""
    text, arms = headline()
    first, dense = next(iter(read("tier1").values())).figures, arms[DENSE]
    head = "| | what is skipped | time saved, according to its paper | time per token | loss | difference from dense |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for arm, (name, what, promise) in {DENSE: ("dense", "nothing", ""), **METHODS}.items():
        if arm not in arms:
            continue
        about = arms[arm]
        time = compared.number(about.get("seconds_per_token"), ".2f")
        loss = common.with_deviation([row["mlm_loss"] for row in about["runs"]], ".3f")
        lines.append(f"| {name} | {what} | {promise} | {time} | {loss} | {compared.difference(about, arm == DENSE)} |")
    return f"""![Held-out loss minus dense training's at equal time, for each method and seed; the table below has the means.](docs/figures/loss_at_equal_time.png)

{chr(10).join(lines)}

Every run has {text.partition(":")[2]} [reference seconds](docs/budgets.md) of one core; in this time, dense training of {first["changes"]["model.depth"]} layers sees {dense["tokens"] / 1e6:.1f} M tokens. *Loss*:
held-out, in nats, mean ± deviation of {len(dense["runs"])} seeds. *Difference from dense*: the mean over paired seeds with its interval at 95 %;
*unresolved*: within the noise between seeds. *Time per token*: relative to dense training. The pages: [layer dropping](experiments/layer_drop.md), [token dropping](experiments/token_drop.md),
[EarlyBERT](experiments/early_bert.md), [stacking and MSLT](experiments/stacking.md), [methods together](experiments/combined.md);
[how claims are made](docs/claims.md)."""


def with_block(readme: str, block: str) -> str:
    """README.md, with its part about the study replaced by `block`."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def main():
    common.parser(__doc__).parse_args()
    kept = read("tier1")
    if not kept:
        sys.exit("error: no run of tier1 is recorded yet: python -m experiments.study tier1")
    for name, page in PAGES.items():
        draw(name, page, kept)
        common.write_page(name, text_of(name))
    if finished():
        readme = common.HERE.parent / "README.md"
        readme.write_text(with_block(readme.read_text(), readme_block()))
        draw_all(common.HERE.parent / "docs/figures/loss_at_equal_time.png")
    else:
        print("README.md is as before: tier1 has not finished")


if __name__ == "__main__":
    main()
