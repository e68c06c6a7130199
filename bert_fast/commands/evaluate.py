"""The command `evaluate`."""

import json

from absl import flags

from bert_fast.commands import begin_computing, checkpoint_flag, needs, nothing

WHAT = "print the held-out loss of a checkpoint, as one JSON line"
EXAMPLE = "--checkpoint=runs/mini"


def define(args, argv: list[str]):
    checkpoint_flag(args)
    flags.DEFINE_string("data", None, "A shards folder other than the run's own.", flag_values=args)
    flags.DEFINE_integer("examples", None, "Number of held-out examples [as in the run].", flag_values=args)
    flags.DEFINE_integer("seq_len", None, "Tokens in an example [as in the run].", flag_values=args)
    flags.DEFINE_bool(
        "unigram",
        False,
        "Also print the loss of a unigram model (add-one counts), on the same masks.",
        flag_values=args,
    )


def run(args, texts: list[str]) -> int:
    from bert_fast.inference import evaluate

    nothing(texts)
    begin_computing()
    needs(args, "checkpoint")
    changes = {name: args[name].value for name in ("examples", "seq_len") if args[name].value is not None}
    print(json.dumps(evaluate(args.checkpoint, args.data or "", args.unigram, **changes)))
    return 0
