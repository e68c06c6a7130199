"""The command `pretrain`: shards to a model; the same command continues an interrupted run."""

import pathlib

from absl import flags

from bert_fast import BadInput
from bert_fast.commands import REQUIRED, join_processes, keep_programs, needs, nothing, process_flags

WHAT = "shards to a model; the same command continues an interrupted run"
EXAMPLE = "--config=configs/bert.py:size=mini --workdir=runs/mini --config.data.dir=shards"


def define(args, argv: list[str]):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "A file in configs/ with its arguments, as configs/bert.py:size=mini,seq=128; single values are "
        "changed by --config.steps=1000 and so on. " + REQUIRED,
        sys_argv=argv,  # without it the overrides are read from the command line of whoever calls main()
        flag_values=args,
    )
    flags.DEFINE_string(
        "workdir", None, "The run folder; a run that is there is continued. " + REQUIRED, flag_values=args
    )
    process_flags(args)


def run(args, texts: list[str]) -> int:
    from bert_fast import methods
    from bert_fast.data import shards
    from bert_fast.train import settings
    from bert_fast.train.loop import pretrain

    nothing(texts)
    keep_programs()
    needs(args, "config", "workdir")
    config = args.config.to_dict()
    if not config["data"]["dir"]:
        raise BadInput("--config.data.dir is missing: the folder that `python -m bert_fast prepare --out=DIR` made")
    manifest = shards.read_manifest(config["data"]["dir"])
    join_processes(args)
    made = settings.make(config, manifest["vocab"], tuple(methods.known()))
    pretrain(made, config, pathlib.Path(args.workdir))
    return 0
