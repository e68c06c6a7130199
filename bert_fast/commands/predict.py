"""The command `predict`."""

from absl import flags

from bert_fast.commands import REQUIRED, begin_computing, needs, nothing

WHAT = "apply a fine-tuned model to a file of texts: labels, scores, tags or answers"
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
        "The texts: a .csv or .tsv with a header; a .jsonl; SQuAD's .json; or, for tags, a CoNLL file. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_string(
        "out",
        None,
        "A .jsonl, .tsv or (for tags) .conll file to write [JSON Lines on standard output].",
        flag_values=args,
    )
    flags.DEFINE_list(
        "columns",
        None,
        "The columns with the texts, such as a,b [the task's columns, else common names].",
        flag_values=args,
    )
    flags.DEFINE_integer("batch_size", 32, "Number of examples in a batch.", lower_bound=1, flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.tasks.predict import predict_file

    nothing(texts)
    begin_computing()
    needs(args, "checkpoint", "data")
    print(predict_file(args.checkpoint, args.data, args.out or "", args.columns or (), args.batch_size), end="")
    return 0
