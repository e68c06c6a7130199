"""What a mini BERT learns in half an hour on a CPU: held-out loss over tokens seen, and a unigram model's loss.

    python -m experiments.mini --workdir=RUN

Reads a finished run of the command shown on the page; writes experiments/mini.md and experiments/mini.png.
"""

import json
import pathlib
import platform

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast import encoder, inference
from bert_fast.train.log import clock, read_rows
from experiments import common

SENTENCES = (
    "The capital of France is [MASK].",
    "He was born in the [MASK] of London.",
    "The war ended in [MASK] .",
    "She opened the [MASK] and went into the house.",
)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of the finished run")
    workdir = pathlib.Path(parser.parse_args().workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    rows = read_rows(workdir / "metrics.jsonl")
    result = inference.evaluate(str(workdir), with_unigram=True)
    trained = encoder.load(workdir)
    filled = inference.fill_mask(trained, list(SENTENCES))

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for split, label, style in (("train", "training, mean of 50 steps", "-"), ("valid", "held out", "o-")):
        of_split = [row for row in rows if row["split"] == split]
        millions = [row["tokens_real"] / 1e6 for row in of_split]
        axis.plot(millions, [row["mlm_loss"] for row in of_split], style, label=label, alpha=0.9)
    axis.axhline(result["unigram_loss"], color="gray", linestyle="--", label="unigram model, held out")
    axis.set(xlabel="tokens seen (millions)", ylabel="MLM loss (nats a prediction)")
    axis.legend()
    figure.savefig(common.HERE / "mini.png", dpi=120)

    overrides = (
        "--config.batch_size={batch_size} --config.steps={steps} --config.log_every={log_every} "
        "--config.eval.every={eval[every]} --config.checkpoint.every={checkpoint[every]} "
        "--config.learning_rate.peak={learning_rate[peak]} "
        "--config.learning_rate.warmup_steps={learning_rate[warmup_steps]} "
        "--config.optimizer.bias_correction={optimizer[bias_correction]} --config.model.dropout={model[dropout]} "
        "--config.model.attention_dropout={model[attention_dropout]}"
    ).format(**config)
    text = f"""# A mini BERT after half an hour on a CPU

The training text is Wikipedia of 2015 and public-domain books: the two corpora of `$BERT_FAST_DATA/corpus`, split by a hash into
train and valid. The vocabulary is uncased BERT's, the seed is {config["seed"]}. The run took place on {platform.machine()}, {summary["devices"]}, with
2 cores that other jobs used occasionally. The commands:

    python -m bert_fast prepare --source="files:$BERT_FAST_DATA/corpus/*/*.txt.gz" --out=shards --vocab=$BERT_FAST_DATA/vocab/bert-base-uncased.txt
    python -m bert_fast pretrain --config=configs/bert.py:size=mini,objective=mlm,seq=128 --workdir=RUN --config.data.dir=shards {overrides}
    python -m bert_fast evaluate --checkpoint=RUN --unigram
    python -m experiments.mini --workdir=RUN

| | |
|---|---|
| held-out MLM loss | **{result["mlm_loss"]:.3f}** nats, accuracy {result["mlm_accuracy"]:.1%} |
| unigram model on the same masks (add-one counts over the train split) | **{result["unigram_loss"]:.3f}** nats |
| difference | {result["unigram_loss"] - result["mlm_loss"]:.3f} nats |
| predictions | {result["predictions"]:,} (first {config["eval"]["examples"]:,} examples of the valid split, at {config["eval"]["seq_len"]} tokens) |
| tokens seen | {summary["tokens_real"]:,} in {summary["steps"]:,} steps |
| time | steps {clock(summary["seconds"])}, compiling {clock(summary["compile_seconds"])}, evaluating {clock(summary["eval_seconds"])}, saving {clock(summary["save_seconds"])} |
| FLOPs executed | {summary["flops"]:.3g} |
| fingerprint of the evaluation | `{result["fingerprint"]}` |

![loss against tokens](mini.png)

The model's predictions for `[MASK]`:

"""
    for sentence, masks in zip(SENTENCES, filled, strict=True):
        text += f"- {sentence} - " + ", ".join(f"{word} {share:.0%}" for word, share in masks[0]) + "\n"
    common.write_page("mini", text)


if __name__ == "__main__":
    main()
