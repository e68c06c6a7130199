"""Checks on this machine whether `pretrain` accepts a task's flags, before anything that costs money is made."""

import warnings

from bert_fast import BadInput
from experiments.tpu_vm.task import Task


def refuse_local_files(task: Task, path: str):
    """Raises BadInput for flags that name a file of this machine, which the TPU would not find."""
    for arg in task.args:
        key, _, value = arg.lstrip("-").partition("=")
        if key == "config" and value.partition(":")[0].endswith(".py"):
            remedy = "name a shipped config, and give the changes as --config.KEY=VALUE"
        elif key in ("config.costs", "config.init") and value and "://" not in value:
            remedy = (
                "give a budget in tokens or flops" if key == "config.costs" else "copy the run to a bucket: gs://..."
            )
        else:
            continue
        raise BadInput(f"{path}: args: {arg} names a file of this machine, which the TPU does not have: {remedy}")


def check(task: Task, path: str) -> str:
    """Raises BadInput for flags that `bert-fast pretrain` would refuse on the TPU, with the message that it would give.

    The shards are not read: BERT's vocabulary stands in for theirs. This machine may have nothing but Python and
    gcloud. If a package is missing, the flags are not checked, and a note that says so is returned. Otherwise, the
    returned text is empty.
    """
    refuse_local_files(task, path)
    try:
        from absl import flags

        from bert_fast import __main__ as program
        from bert_fast import commands, methods
        from bert_fast.commands import pretrain
        from bert_fast.planner.estimate import BERT
        from bert_fast.train import budget, settings, timeline
    except ImportError as error:
        return f"args are not checked here, because {error.name} is not installed: `pip install .` in this clone"
    values = flags.FlagValues()
    with warnings.catch_warnings():
        warnings.showwarning = program.warn
        try:
            argv = ["pretrain", *commands.with_config_files(list(task.args))]
            pretrain.define(values, argv)
            commands.nothing(program.parse(values, argv))
            made = settings.make(values.config.to_dict(), BERT, tuple(methods.known()))
            method = methods.make(made.methods)
            timeline.stages(budget.resolved(made, method), method)
        except (BadInput, flags.Error) as error:
            raise BadInput(f"{path}: args: {error}") from None
    return ""
