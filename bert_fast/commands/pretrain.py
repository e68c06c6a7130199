"""The command `pretrain`."""

import pathlib

from absl import flags

from bert_fast import BadInput, command
from bert_fast.commands import REQUIRED, join_processes, keep_programs, needs, nothing, process_flags

WHAT = "train a model on shards; the same command continues an interrupted run"
EXAMPLE = "--config=bert:size=mini --workdir=runs/mini --config.data.dir=shards"


def define(args, argv: list[str]):
    from bert_fast.commands import config_flag

    config_flag.define(args, argv, what="The config")
    flags.DEFINE_string(
        "workdir", None, "The run folder. An unfinished run in it is continued. " + REQUIRED, flag_values=args
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
        raise BadInput(f"--config.data.dir is missing: give the folder that `{command()} prepare --out=DIR` made")
    manifest = shards.read_manifest(config["data"]["dir"])
    join_processes(args)
    made = settings.make(config, manifest["vocab"], tuple(methods.known()))
    pretrain(made, config, pathlib.Path(args.workdir))
    return 0
