"""How soon does a small BERT leave the plateau on which every BERT sits first?

    bert-fast compare plateau --out=runs/plateau
    python -m experiments.plateau --folder=runs/plateau

The first command trains; the second writes experiments/plateau.md and experiments/plateau.png from its folder.
"""

import pathlib
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bert_fast.compare import costs, results, study
from bert_fast.compare.study import Run
from bert_fast.data import shards
from bert_fast.data.masking import read_vocab
from bert_fast.data.unigram import unigram_loss
from bert_fast.train import step_costs
from bert_fast.train.evaluate import eval_batches
from bert_fast.train.log import read_rows
from experiments import common

BELOW = 1.0  # nats below the unigram model: off the plateau


def crossing(rows: list[dict], loss: float) -> int | None:
    """Tokens (positions) at the first evaluation with at most this loss behind [MASK]; None if it is never reached."""
    return next((row["tokens_padded"] for row in rows if row["mask_loss"] <= loss), None)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", required=True, help="the folder of the comparison")
    folder = pathlib.Path(parser.parse_args().folder)
    made, data = study.load("plateau"), folder / "shards"
    table = step_costs.read(folder / costs.NAME)
    (budget,) = made.budgets
    settings = study.settings_of(made, Run(next(iter(made.arms)), budget, 0), data, None)
    held_out = eval_batches(settings.data, settings.eval)
    split, mask = shards.Split(data, "train"), read_vocab(data).mask
    hidden = [{**b, "weights": b["weights"] * (np.take_along_axis(b["ids"], b["slots"], 1) == mask)} for b in held_out]
    unigram = unigram_loss(split, settings.model.vocab_size, hidden)
    goal = unigram - BELOW

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    lines = []
    for number, arm in enumerate(made.arms):
        finished = []
        for seed in made.seeds:
            run = Run(arm, budget, seed)
            about = results.figures(made, run, folder, data, table)
            if about is None:
                continue
            rows = [row for row in read_rows(folder / run.folder / "metrics.jsonl") if row["split"] == "valid"]
            finished.append((about, crossing(rows, goal)))
            millions = [row["tokens_padded"] / 1e6 for row in rows]
            label = arm if seed == made.seeds[0] else None
            axis.plot(millions, [row["mask_loss"] for row in rows], color=f"C{number}", label=label, linewidth=1)
        if not finished:
            continue
        reached = [tokens for _, tokens in finished if tokens is not None]
        each = statistics.fmean(about["seconds"] / about["tokens"] for about, _ in finished)
        count = f"{len(reached)} of {len(finished)}"
        tokens = common.with_deviation([value / 1e6 for value in reached], ".2f") if reached else "-"
        seconds = common.with_deviation([value * each for value in reached], ".0f") if reached else "-"
        final = common.with_deviation([about["mask_loss"] for about, _ in finished], ".2f")
        every = common.with_deviation([about["mlm_loss"] for about, _ in finished], ".2f")
        accuracy = common.with_deviation([100 * about["mlm_accuracy"] for about, _ in finished], ".1f")
        clock = statistics.fmean(about["seconds"] for about, _ in finished)
        lines.append(f"| {arm} | {count} | {tokens} | {seconds} | {final} | {every} | {accuracy} | {clock:.0f} |")
    for loss, label in ((unigram, "unigram"), (goal, f"{BELOW:.0f} nat below")):
        axis.axhline(loss, color="gray", linestyle="--", linewidth=0.8)
        axis.annotate(label, (0, loss), fontsize=8, color="gray", va="bottom")
    axis.set(xlabel="tokens (millions of positions)", ylabel="held-out loss behind [MASK] (nats)", ylim=(None, 7.2))
    axis.legend(fontsize=8)
    figure.savefig(common.HERE / "plateau.png", dpi=110)

    changes = {**made.changes}
    text = f"""# Off the plateau

A BERT first learns word frequencies, and then stays at the loss of a unigram model for long. Methods that are compared
on this plateau are compared before the model has learned anything from context. How soon does a small one leave it?

`bert-fast compare plateau --out=runs/plateau`, then `python -m experiments.plateau --folder=runs/plateau`. Two layers of width 128,
the documentation on the machine ({shards.read_manifest(data)["splits"]["train"]["tokens"] / 1e6:.1f} M tokens, a vocabulary of {settings.model.vocab_size:,}), 2,048 tokens a step, {float(budget.split(":")[1]) / 1e6:.2f} M tokens, and a
learning rate that falls to 0 at the end. Common to all: {", ".join(f"`{key}={value}`" for key, value in changes.items())}.

A unigram model has {unigram:.2f} nats on the same masked words. *Off the plateau* is {BELOW:.0f} nat below it: {goal:.2f}. Means over seeds,
± their standard deviation. Seconds are reference time of one core ({table.machine}).

| recipe | off the plateau | after M tokens | after seconds | final loss behind [MASK] | final loss, all predicted words | accuracy (%) | seconds of the whole run |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

The changes of each recipe are in [configs/studies/plateau.py](../configs/studies/plateau.py).

![held-out loss behind [MASK] against tokens](plateau.png)
{TRIED}"""
    common.write_page("plateau", text)


TRIED = ""


if __name__ == "__main__":
    main()
