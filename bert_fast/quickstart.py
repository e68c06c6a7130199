"""`make quickstart`: prepares documentation, trains a small BERT on it, and shows what it learned."""

import argparse
import pathlib
import sys
import time

from bert_fast import BadInput, __main__, command, encoder, inference
from bert_fast.data.prepare import prepare
from bert_fast.train.log import clock

SENTENCES = (
    "The function returns a [MASK] of the input array.",
    "If the file does not exist, an exception is [MASK].",
    "The default [MASK] is None.",
    "This method is called when the object is [MASK].",
    "Return True if the two [MASK] are equal.",
)


def heading(text: str):
    print(f"\n== {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bert_fast.quickstart", description=__doc__)
    parser.add_argument("--out", default="runs/quickstart", help="the folder for shards and the run [%(default)s]")
    parser.add_argument("--steps", type=int, help="number of steps, instead of the config's")
    args = parser.parse_args()
    began = time.monotonic()
    shards, run = pathlib.Path(args.out, "shards"), pathlib.Path(args.out, "run")

    heading("1 of 4: make a vocabulary and shards from the documentation installed on this machine")
    prepare("docs", str(shards), vocab_size=8_000)

    heading("2 of 4: pre-train (Ctrl-C saves; the same command continues)")
    steps = [f"--config.steps={args.steps}"] if args.steps else []
    arguments = ["pretrain", "--config=quickstart", f"--workdir={run}", f"--config.data.dir={shards}", *steps]
    code = __main__.main(arguments)
    if code:
        return code

    heading("3 of 4: evaluate on held-out text")
    result = inference.evaluate(str(run), with_unigram=True)
    print(
        f"{result['predictions']:,} masked words of unseen text: {result['mlm_loss']:.2f} nats per word, "
        f"{result['mlm_accuracy']:.0%} predicted correctly.\n"
        f"A model that only knows word frequencies: {result['unigram_loss']:.2f} nats."
    )

    heading("4 of 4: fill in masks")
    trained = encoder.load(run)
    for text, masks in zip(SENTENCES, inference.fill_mask(trained, list(SENTENCES), top=4), strict=True):
        print(text)
        print("    " + "   ".join(f"{word} {share:.0%}" for word, share in masks[0]))

    heading(f"done in {clock(time.monotonic() - began)}")
    tokens = trained.about.counters.counts["tokens_real"]
    print(
        f"A BERT of {trained.model.depth} layers, trained here on {tokens:,} tokens.\n"
        f"  shards       {shards}\n  run          {run} (metrics.jsonl, summary.json, checkpoints)\n\n"
        "Try next:\n"
        f'  {command()} fill-mask --checkpoint={run} "Raise an [MASK] if the value is negative."\n'
        f'  {command()} prepare --source="files:YOUR_TEXT/*.txt" --out=runs/shards\n'
        f"  {command()} pretrain --config=bert:size=mini,objective=mlm,seq=128 "
        "--workdir=runs/mini --config.data.dir=runs/shards --config.steps=2800 --config.batch_size=32 "
        "--config.learning_rate.peak=1e-3 --config.learning_rate.warmup_steps=300"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from what was saved", file=sys.stderr)
        sys.exit(130)
