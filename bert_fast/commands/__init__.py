"""The commands, one file each: what it does in a line, an example, its flags, and `run`.

What a command needs beyond its flags it imports when it runs, so that --help is quick.
"""

import importlib
import types

from absl import flags

from bert_fast import BadInput

REQUIRED = "required"
# As people meet them: first what makes a model, then what is done with it.
NAMES = ("prepare", "plan", "pretrain", "evaluate", "fill-mask", "finetune", "predict", "export", "import")


def known() -> dict[str, types.ModuleType]:
    """The module of every command, by its name."""
    return {name: importlib.import_module(f"{__name__}.{name.replace('-', '_')}") for name in NAMES}


def checkpoint_flag(args: flags.FlagValues):
    flags.DEFINE_string(
        "checkpoint", None, "A run folder (its newest good step) or one checkpoints/STEP. " + REQUIRED, flag_values=args
    )


def process_flags(args: flags.FlagValues):
    """The flags of a command that several processes run together."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Several processes, which JAX finds by itself (TPU slice, Slurm).",
        flag_values=args,
    )
    flags.DEFINE_string("coordinator", None, "Several processes elsewhere: HOST:PORT of the first.", flag_values=args)
    flags.DEFINE_integer("process_count", None, "With --coordinator: how many processes there are.", flag_values=args)
    flags.DEFINE_integer("process_index", None, "With --coordinator: which of them this is, from 0.", flag_values=args)


def join_processes(args):
    """Connects to the other processes, if there are any. Raises BadInput for flags that do not go together."""
    import jax

    given = [args[name].value is not None for name in ("coordinator", "process_count", "process_index")]
    if any(given) and not all(given):
        raise BadInput("--coordinator, --process_count and --process_index go together: give all three, or none")
    if args.distributed or args.coordinator:
        jax.distributed.initialize(args.coordinator, args.process_count, args.process_index)


def keep_programs():
    """Keeps compiled programs on disk; called by commands that compute."""
    from bert_fast.train import cache

    cache.keep_programs()


def needs(args, *names: str):
    for name in names:
        if args[name].value is None:
            raise BadInput(f"--{name} is missing: {args[name].help.replace(REQUIRED, '').strip()}")


def nothing(texts: list[str]):
    if texts:
        raise BadInput(f"unexpected argument {texts[0]!r}: every option is written --name=value")
