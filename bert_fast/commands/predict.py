"""The command `predict`: what a fine-tuned model says of the texts in a file."""

from absl import flags

from bert_fast.commands import REQUIRED, keep_programs, needs, nothing

WHAT = "a fine-tuned model's labels, scores or answers for a file of texts"
EXAMPLE = "--checkpoint=runs/mrpc/mrpc/lr=3e-05,seed=0 --data=pairs.tsv --out=predictions.tsv"


def define(args, argv: list[str]):
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A run of finetune, WORKDIR/TASK/lr=R,seed=S, or its checkpoints/STEP. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_string(
        "data",
        None,
        "The texts: a .tsv with a header, as GLUE's; a .jsonl, one object a line; or SQuAD's .json. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_string("out", None, "A .jsonl or .tsv; by default JSON Lines on standard output.", flag_values=args)
    flags.DEFINE_list(
        "columns",
        None,
        "The columns with the texts, as a,b; by default the task's own, else usual names.",
        flag_values=args,
    )
    flags.DEFINE_integer("batch_size", 32, "Rows in a batch.", lower_bound=1, flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.tasks.predict import predict_file

    nothing(texts)
    keep_programs()
    needs(args, "checkpoint", "data")
    print(predict_file(args.checkpoint, args.data, args.out or "", args.columns or (), args.batch_size), end="")
    return 0
