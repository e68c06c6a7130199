"""The command `finetune`."""

import pathlib

from absl import flags

from bert_fast.commands import REQUIRED, begin_computing, needs, nothing, process_flags, processes

WHAT = "fine-tune and score a checkpoint on GLUE, SQuAD or your own file; to continue, repeat the command"
EXAMPLE = "--config=glue:task=mrpc --checkpoint=runs/mini --workdir=runs/mrpc --config.data.dir=GLUE"


def define(args, argv: list[str]):
    from bert_fast.commands import config_flag

    config_flag.define(args, argv, what="The config", example="glue:task=mrpc")
    flags.DEFINE_string(
        "workdir",
        None,
        "The folder for the results. Finished runs in it are not repeated. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_string("checkpoint", None, "The encoder: a run folder or one checkpoints/STEP.", flag_values=args)
    flags.DEFINE_string(
        "hf",
        None,
        "Instead of --checkpoint: the encoder, as a Hugging Face folder or a model's NAME[@REVISION] on the Hub.",
        flag_values=args,
    )
    process_flags(args)


def run(args, texts: list[str]) -> int:
    from bert_fast.tasks import settings, sweep

    nothing(texts)
    begin_computing()
    needs(args, "config", "workdir")
    config = args.config.to_dict()
    with processes(args, config):
        made = settings.make(config)
        if results := sweep.finetune(made, config, pathlib.Path(args.workdir), args.checkpoint or "", args.hf or ""):
            print(sweep.table(results))
    return 0
