"""The command `finetune`: a checkpoint's scores on GLUE or SQuAD."""

import pathlib

from absl import flags

from bert_fast.commands import REQUIRED, join_processes, keep_programs, needs, nothing, process_flags

WHAT = "a checkpoint's scores on GLUE or SQuAD; the same command continues an interrupted call"
EXAMPLE = "--config=configs/glue.py:task=mrpc --checkpoint=runs/mini --workdir=runs/mrpc --config.data.dir=GLUE"


def define(args, argv: list[str]):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "configs/glue.py or configs/squad.py with arguments, as configs/glue.py:task=mrpc; single values are changed "
        "by --config.seeds=0,1 and so on. " + REQUIRED,
        sys_argv=argv,
        flag_values=args,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Where results go; runs that are finished there are not run again. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_string("checkpoint", None, "The encoder: a run folder or one checkpoints/STEP.", flag_values=args)
    flags.DEFINE_string("hf", None, "Or a Hugging Face folder, such as one of BERT.", flag_values=args)
    process_flags(args)


def run(args, texts: list[str]) -> int:
    from bert_fast.tasks import settings, sweep

    nothing(texts)
    keep_programs()
    needs(args, "config", "workdir")
    config = args.config.to_dict()
    join_processes(args)
    made = settings.make(config)
    if results := sweep.finetune(made, config, pathlib.Path(args.workdir), args.checkpoint or "", args.hf or ""):
        print(sweep.table(results))
    return 0
