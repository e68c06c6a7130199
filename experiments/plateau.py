"""How soon does a small BERT leave the plateau that every BERT reaches first?

    bert-fast compare plateau --out=runs/plateau
    python -m experiments.plateau --folder=runs/plateau    reads the folder, and keeps its figures in plateau.json
    python -m experiments.plateau                          writes the page from plateau.json

Writes experiments/plateau.md and experiments/plateau.png.
"""

import json
import pathlib
import re
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast.compare import costs, results, study
from bert_fast.compare.study import Run
from bert_fast.data import shards
from bert_fast.train import step_costs
from bert_fast.train.log import read_rows
from experiments import common

BELOW = 1.0  # a model is off the plateau if its loss is this many nats below the unigram model's
RAW = common.HERE / "plateau.json"


def collect(folder: pathlib.Path) -> dict:
    """The figures of the finished runs: final figures, and curves of the loss on words hidden by [MASK]."""
    made, data = study.load("plateau"), folder / "shards"
    table = step_costs.read(folder / costs.NAME)
    (budget,) = made.budgets
    settings = study.settings_of(made, Run(next(iter(made.arms)), budget, 0), data, None)
    arms: dict[str, list] = {arm: [] for arm in made.arms}
    for run in study.runs_of(made):
        about = results.figures(made, run, folder, data, table)
        if about is not None:
            rows = [row for row in read_rows(folder / run.folder / "metrics.jsonl") if row["split"] == "valid"]
            curve = [[row["tokens_padded"], round(row["mask_loss"], 4)] for row in rows]
            arms[run.arm].append({**about, "curve": curve})
    return {
        "arms": arms,
        "seeds": list(made.seeds),
        "changes": dict(made.changes),
        "budget": budget,
        "unigram": results.unigram(settings)["unigram_mask_loss"],
        "vocab_size": settings.model.vocab_size,
        "corpus_tokens": shards.read_manifest(data)["splits"]["train"]["tokens"],
        "machine": table.machine,
    }


def label(arm: str) -> str:
    """An arm's name on the page. For example, "rows of 8" in the name becomes "sequences of 8 tokens"."""
    return re.sub(r"rows of (\d+)", r"sequences of \1 tokens", arm)


def crossing(curve: list, loss: float) -> int | None:
    """How many positions the run had trained on when its loss was first at most `loss`; None if it never was."""
    return next((tokens for tokens, found in curve if found <= loss), None)


def row(arm: str, finished: list[dict], goal: float) -> str:
    """An arm's row of the table."""
    reached = [tokens for about in finished if (tokens := crossing(about["curve"], goal)) is not None]
    each = statistics.fmean(about["seconds"] / about["tokens"] for about in finished)
    cells = [
        label(arm),
        f"{len(reached)} of {len(finished)}",
        common.with_deviation([value / 1e6 for value in reached], ".2f") if reached else "-",
        common.with_deviation([value * each for value in reached], ".0f") if reached else "-",
        common.with_deviation([about["mask_loss"] for about in finished], ".2f"),
        common.with_deviation([about["mlm_loss"] for about in finished], ".2f"),
        common.with_deviation([100 * about["mlm_accuracy"] for about in finished], ".1f"),
        f"{statistics.fmean(about['seconds'] for about in finished):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def page(found: dict):
    """Writes the page and the plot."""
    arms = {arm: finished for arm, finished in found["arms"].items() if finished}
    unigram, goal = found["unigram"], found["unigram"] - BELOW
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (arm, finished) in enumerate(arms.items()):
        for index, about in enumerate(finished):
            millions, losses = [tokens / 1e6 for tokens, _ in about["curve"]], [loss for _, loss in about["curve"]]
            axis.plot(millions, losses, color=f"C{number}", label=None if index else label(arm), linewidth=1)
    for loss, words in ((unigram, "unigram"), (goal, f"{BELOW:.0f} nat below")):
        axis.axhline(loss, color="gray", linestyle="--", linewidth=0.8)
        axis.annotate(words, (1.01, loss), xycoords=("axes fraction", "data"), fontsize=8, color="gray", va="center")
    axis.set(
        xlabel="tokens (millions of positions)",
        ylabel="held-out loss on words hidden by [MASK] (nats)",
        ylim=(None, 7.2),
    )
    axis.legend(fontsize=8, loc="lower left")
    figure.savefig(common.HERE / "plateau.png", dpi=110)

    unfinished = {arm: len(found["seeds"]) - len(finished) for arm, finished in found["arms"].items()}
    missing = sum(unfinished.values())
    note = f"\n{missing} of {missing + sum(map(len, arms.values()))} runs have not finished; the second column counts those that have.\n"
    adam, muon = (
        statistics.fmean(a["seconds"] for a in arms[name]) for name in ("AdamW, rows of 64", "Muon, rows of 64")
    )
    text = f"""# Off the plateau

A BERT first learns word frequencies, and then stays near the loss of a unigram model for a long time. Methods that are
compared on this plateau are compared before the model has learned anything from context. How soon does a small one
leave it?

`bert-fast compare plateau --out=runs/plateau`, then `python -m experiments.plateau --folder=runs/plateau`. Two layers of width 128,
the documentation of Python and of the installed packages ({found["corpus_tokens"] / 1e6:.1f} M tokens, a vocabulary of {found["vocab_size"]:,}), 2,048 tokens a step, {float(found["budget"].split(":")[1]) / 1e6:.2f} M tokens in all, and a
learning rate that falls to 0 at the end. Common to all, unless a recipe changes it: {", ".join(f"`{key}={value}`" for key, value in found["changes"].items())}.

A unigram model has {unigram:.2f} nats on the same masked words. *Off the plateau* is {BELOW:.0f} nat below it: {goal:.2f}. Means over seeds,
± their standard deviation. Seconds are reference time of one core ({found["machine"]}). A recipe that begins with
"and" is the recipe above it plus one change.
{note if missing else ""}
| recipe | off the plateau | after tokens (millions) | after seconds | final loss on words hidden by [MASK] | final loss, all predicted words | accuracy (%) | seconds of the whole run |
|---|---|---|---|---|---|---|---|
{chr(10).join(row(arm, finished, goal) for arm, finished in arms.items())}

Muon's steps take {muon / adam:.2f} times as long as AdamW's here, where a step is small.

The changes of each recipe are in [configs/studies/plateau.py](../configs/studies/plateau.py).

![held-out loss on words hidden by [MASK], against tokens](plateau.png)
"""
    common.write_page("plateau", text)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", default="", help="the folder of the comparison; without it, plateau.json is read")
    folder = parser.parse_args().folder
    if folder:
        RAW.write_text(json.dumps(collect(pathlib.Path(folder)), indent=None) + "\n")
    page(json.loads(RAW.read_text()))


if __name__ == "__main__":
    main()
