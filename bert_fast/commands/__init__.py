"""The commands, one file each: what it does in a line, an example, its flags, and `run`.

What a command needs beyond its flags it imports when it runs, so that --help is quick.
"""

import importlib
import types

from absl import flags

from bert_fast import BadInput

REQUIRED = "required"
# As people meet them: first what makes a model, then what is done with it.
NAMES = ("prepare", "plan", "pretrain", "evaluate", "fill-mask", "finetune", "export", "import")


def known() -> dict[str, types.ModuleType]:
    """The module of every command, by its name."""
    return {name: importlib.import_module(f"{__name__}.{name.replace('-', '_')}") for name in NAMES}


def checkpoint_flag(args: flags.FlagValues):
    flags.DEFINE_string(
        "checkpoint", None, "A run folder (its newest good step) or one checkpoints/STEP. " + REQUIRED, flag_values=args
    )


def needs(args, *names: str):
    for name in names:
        if args[name].value is None:
            raise BadInput(f"--{name} is missing: {args[name].help.replace(REQUIRED, '').strip()}")


def nothing(texts: list[str]):
    if texts:
        raise BadInput(f"unexpected argument {texts[0]!r}: every option is written --name=value")
