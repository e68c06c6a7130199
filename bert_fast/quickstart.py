"""`make quickstart`: trains a dense and an accelerated BERT for the same time, and shows what they learned."""

import argparse
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from bert_fast import BadInput, Interrupted, command, encoder, inference, reporting
from bert_fast.compare import compare
from bert_fast.compare.study import Run
from bert_fast.data.files import atomic_json
from bert_fast.train.log import clock

STUDY = "quickstart"  # configs/studies/quickstart.py
TOP = 3  # number of words shown
# Sentences, each with the words that fit. The words were chosen before any model was trained.
SENTENCES = {
    "The function returns a [MASK] of the input array.": (
        "array column copy dict element function index instance item list length matrix number object part "
        "range representation row sample sequence set shape size slice string subset sum transpose tuple type "
        "value vector version view"
    ),
    "If the file does not exist, an exception is [MASK].": (
        "called caught created emitted generated given issued occurred produced raised returned set thrown"
    ),
    "The default [MASK] is None.": (
        "action argument behavior class encoding format function handler length level method mode name object "
        "option parameter path return setting size state string timeout type value"
    ),
    "This method is called when the object is [MASK].": (
        "accessed activated added available called changed closed collected compiled completed constructed copied "
        "created defined deleted destroyed executed initialized invoked loaded "
        "modified needed opened passed printed processed ready received released removed reset returned saved set "
        "started stopped updated used"
    ),
    "Return True if the two [MASK] are equal.": (
        "arguments arrays axes bytes classes columns characters dates dictionaries dicts dimensions elements examples "
        "expressions files functions groups indices inputs instances integers intervals items keys lines lists "
        "matrices methods names nodes numbers objects operands parameters parts points rows sequences sets shapes "
        "sides strings tensors trees tuples types values variables vectors versions words"
    ),
}  # fmt: skip


def heading(text: str):
    print(f"\n== {text}", file=sys.stderr, flush=True)


def table(results: Mapping[str, Any]) -> list[str]:
    """The arms of the only budget: held-out loss, tokens and FLOPs at equal time."""
    [(text, budget)] = results["budgets"].items()
    lines = [
        f"After {text.partition(':')[2]} reference seconds each:",
        f"{'':<12} {'held-out loss':>14} {'right':>7} {'tokens':>11} {'FLOPs':>9}",
    ]
    for arm, about in budget["arms"].items():
        loss, right = f"{about['mlm_loss']:.3f} nats", f"{about['mlm_accuracy']:.1%}"
        lines.append(f"{arm:<12} {loss:>14} {right:>7} {about['tokens']:>11,.0f} {about['flops']:>9.2e}")
    return lines


def fits(word: str, accepted: str) -> bool:
    return word in accepted.split()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bert_fast.quickstart", description=__doc__)
    parser.add_argument("--out", default="runs/quickstart", help="the folder for shards, runs and report [%(default)s]")
    parser.add_argument("--seconds", type=float, help="reference seconds of training for each model [the study's]")
    args = parser.parse_args()
    began = time.monotonic()
    out = pathlib.Path(args.out)

    heading("1 of 3: prepare a corpus, measure what a step costs, train both models (Ctrl-C saves; repeat to continue)")
    budgets = {"budgets": (f"seconds:{args.seconds:g}",)} if args.seconds is not None else {}
    results = compare(STUDY, str(out), changes=budgets)
    if results["failed"]:
        return 1

    heading("2 of 3: compare")
    [(text, budget)] = results["budgets"].items()
    best = min(budget["arms"], key=lambda arm: budget["arms"][arm]["mlm_loss"])
    run = out / Run(best, text, results["seeds"][0]).folder
    trained = encoder.load(run)
    unigram = inference.evaluate(str(run), with_unigram=True)["unigram_loss"]
    shown = {key: value for key, value in results.items() if key != "failed"}
    atomic_json(out / "results.json", shown | {"unigram_loss": unigram})  # for the report
    print("\n".join(table(results)))
    print(f"A model that only knows word frequencies: {unigram:.3f} nats.")
    print("One seed is too few to say which is better: see `bert-fast compare`.")

    heading(f"3 of 3: fill in masks with the {best} model")
    fitting = 0
    for (sentence, accepted), [words] in zip(
        SENTENCES.items(), inference.fill_mask(trained, list(SENTENCES), top=TOP), strict=True
    ):
        fitting += any(fits(word, accepted) for word, _ in words)
        print(sentence)
        print("    " + "   ".join(f"{word} {share:.0%}" for word, share in words))
    print(f"In {fitting} of {len(SENTENCES)} sentences, at least one of the first {TOP} words fits.")

    page = out / "report.html"
    reporting.write([out], page)
    heading(f"done in {clock(time.monotonic() - began)}")
    print(
        f"  {page}: the report, for a browser; {out}/results.md: the comparison\n"
        f"  {run}: the model with the lower loss\n\n"
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
    except Interrupted as interrupted:
        print(f"\n{interrupted}; the same command continues", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from what was saved", file=sys.stderr)
        sys.exit(130)
