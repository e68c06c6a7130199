"""The command `pretrain`."""

import dataclasses

from absl import flags

from bert_fast import STARTED, BadInput, command
from bert_fast.commands import REQUIRED, begin_computing, needs, nothing, process_flags, processes

WHAT = "train a model on shards; the same command continues an interrupted run"
EXAMPLE = "--config=bert:size=mini --workdir=runs/mini --config.data.dir=shards"


def define(args, argv: list[str]):
    from bert_fast.commands import config_flag

    config_flag.define(args, argv, what="The config")
    flags.DEFINE_string(
        "workdir",
        None,
        "The run folder, or a place in a bucket: s3://BUCKET/PATH or gs://BUCKET/PATH. An unfinished run in it is "
        "continued. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_integer(
        "profile",
        None,
        "Trace three steps, beginning with this one, into profile/ in the run folder. "
        "Choose a step after the first few, which wait for compilation.",
        lower_bound=0,
        flag_values=args,
    )
    flags.DEFINE_enum(
        "extend",
        None,
        ["stretch", "constant"],
        "Allow a larger --config.steps than the run in --workdir began with. From here on, the learning "
        "rate is as in a run with the new number of steps (stretch), or stays as in the last step (constant).",
        flag_values=args,
    )
    process_flags(args)


def run(args, texts: list[str]) -> int:
    from bert_fast import methods
    from bert_fast.data import shards
    from bert_fast.train import remote, resume, settings
    from bert_fast.train.loop import pretrain

    nothing(texts)
    begin_computing()
    needs(args, "config", "workdir")
    config = args.config.to_dict()
    if not config["data"]["dir"]:
        raise BadInput(f"--config.data.dir is missing: give the folder that `{command()} prepare --out=DIR` made")
    with processes(args, config), remote.run_folder(args.workdir) as (workdir, mirror):
        manifest = shards.read_manifest(config["data"]["dir"])
        resume.settle_activation(workdir, config)
        made = settings.make(config, manifest["vocab"], tuple(methods.known()))
        made = dataclasses.replace(made, profile=args.profile, extend=args.extend or "")
        pretrain(made, config, workdir, STARTED, mirror)
    return 0
