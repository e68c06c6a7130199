"""The command `pretrain`: shards to a model; the same command continues an interrupted run."""

import pathlib

from absl import flags

from bert_fast import BadInput
from bert_fast.commands import REQUIRED, needs, nothing

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
    flags.DEFINE_bool(
        "distributed",
        False,
        "Several processes, which JAX finds by itself (TPU slice, Slurm).",
        flag_values=args,
    )
    flags.DEFINE_string("coordinator", None, "Several processes elsewhere: HOST:PORT of the first.", flag_values=args)
    flags.DEFINE_integer("process_count", None, "With --coordinator: how many processes there are.", flag_values=args)
    flags.DEFINE_integer("process_index", None, "With --coordinator: which of them this is, from 0.", flag_values=args)


def run(args, texts: list[str]) -> int:
    import jax

    from bert_fast import methods, settings
    from bert_fast.data import shards
    from bert_fast.train.loop import pretrain

    nothing(texts)
    needs(args, "config", "workdir")
    config = args.config.to_dict()
    if not config["data"]["dir"]:
        raise BadInput("--config.data.dir is missing: the folder that `python -m bert_fast prepare --out=DIR` made")
    manifest = shards.read_manifest(config["data"]["dir"])
    given = [args[name].value is not None for name in ("coordinator", "process_count", "process_index")]
    if any(given) and not all(given):
        raise BadInput("--coordinator, --process_count and --process_index go together: give all three, or none")
    if args.distributed or args.coordinator:
        jax.distributed.initialize(args.coordinator, args.process_count, args.process_index)
    made = settings.make(config, manifest["vocab"], tuple(methods.known()))
    pretrain(made, config, pathlib.Path(args.workdir))
    return 0
