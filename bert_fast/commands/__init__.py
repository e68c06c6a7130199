"""The commands. Each is a file with a one-line description, an example, its flags, and `run`.

A command imports what it needs only when it runs, so that --help is fast.
"""

import contextlib
import importlib
import re
import resource
import types

from absl import flags

from bert_fast import BadInput

REQUIRED = "(required)"
# In the order of use: first the commands that make a model, then the commands that use it.
NAMES = (
    "doctor",
    "prepare",
    "convert",
    "plan",
    "costs",
    "compare",
    "pretrain",
    "report",
    "evaluate",
    "fill-mask",
    "embed",
    "finetune",
    "predict",
    "export",
    "import",
    "push",
    "pull",
)


# The flags and config keys of each command that may be the URL of a bucket.
CHECKPOINT = {"checkpoint"}
BUCKETS = {
    "doctor": {"data", "workdir"},
    "plan": {"config.data.dir", "compare.data.dir"},
    "costs": {"config.data.dir", "compare.data.dir"},
    "pretrain": {"workdir", "config.data.dir", "config.init"},
    "report": {""},  # the arguments without a flag
    "evaluate": {"checkpoint", "data"},
    "finetune": CHECKPOINT,
    **dict.fromkeys(("fill-mask", "embed", "predict", "export", "push"), CHECKPOINT),
}


def known() -> dict[str, types.ModuleType]:
    """The module of each command, by its name."""
    return {name: importlib.import_module(f"{__name__}.{name.replace('-', '_')}") for name in NAMES}


def checkpoint_flag(args: flags.FlagValues):
    flags.DEFINE_string(
        "checkpoint",
        None,
        "A run folder (its newest undamaged checkpoint) or one checkpoints/STEP. " + REQUIRED,
        flag_values=args,
    )


def process_flags(args: flags.FlagValues):
    """Adds the flags of a command that several processes can run together."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join the processes that JAX finds by itself (TPU slice, Slurm).",
        flag_values=args,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "Join processes that JAX cannot find by itself: HOST:PORT of the first process.",
        flag_values=args,
    )
    flags.DEFINE_integer("process_count", None, "With --coordinator: the number of processes.", flag_values=args)
    flags.DEFINE_integer(
        "process_index", None, "With --coordinator: the number of this process, from 0.", flag_values=args
    )


@contextlib.contextmanager
def processes(args, config: dict):
    """Runs the block together with the other processes, if any. All must have the same config and code.

    Raises BadInput if only some of --coordinator, --process_count and --process_index are given, or if not all
    processes join.
    """
    from bert_fast.train import agreement

    join_processes(args)
    with agreement.together():
        agreement.agree("settings and code", lambda: agreement.settings_of(config) | agreement.code())
        yield


def join_processes(args):
    import jax

    given = [args[name].value is not None for name in ("coordinator", "process_count", "process_index")]
    if any(given) and not all(given):
        raise BadInput("--coordinator, --process_count and --process_index go together: give all three, or none")
    count, index = args.process_count, args.process_index
    if all(given) and count < 1:
        raise BadInput(f"--process_count={count}: expected at least 1")
    if all(given) and not 0 <= index < count:
        raise BadInput(f"--process_index={index}: expected 0 to {count - 1}, because --process_count={count}")
    if args.coordinator and not re.search(r":\d+$", args.coordinator):
        raise BadInput(
            f"--coordinator={args.coordinator}: expected HOST:PORT, such as {args.coordinator.rstrip(':')}:12345"
        )
    if args.distributed or args.coordinator:
        try:
            jax.distributed.initialize(args.coordinator, args.process_count, args.process_index)
        except jax.errors.JaxRuntimeError as error:
            raise BadInput(
                "not all processes joined within 300 s: start --process_count processes, each with its "
                f"own --process_index, that reach --coordinator={args.coordinator} ({str(error).splitlines()[0]})"
            ) from error
        except ValueError as error:  # nothing says how many processes there are
            raise BadInput(
                f"--distributed: JAX finds no cluster here ({error}): run it on a TPU slice, under Slurm or Open MPI, "
                "or give --coordinator, --process_count and --process_index"
            ) from error


def begin_computing():
    """Keeps freed memory in the process, and compiled programs on disk. Allows as many open files as the system does,
    because every shard that has been read stays open. Commands that compute call it first.
    """
    from bert_fast.train import cache, host_memory

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows fewer than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host_memory.keep_freed()
    cache.keep_programs()


def needs(args, *names: str):
    """Raises BadInput if one of these flags is missing."""
    for name in names:
        if args[name].value in (None, ""):
            raise BadInput(f"--{name} is missing: {args[name].help.replace(REQUIRED, '').strip()}")


def refuse_urls(command_name: str, args, texts: list[str]):
    """Raises BadInput if the URL of a bucket is given where the command needs a place on a disk."""
    from bert_fast import storage

    def check(key: str, value):
        if isinstance(value, str) and storage.is_bucket(value) and key not in BUCKETS.get(command_name, ()):
            what = f"--{key}={value}" if key else value
            raise BadInput(
                f"{what} is in a bucket: {command_name} needs a place on a disk here. Copy it with `aws s3 sync` or "
                "`gcloud storage rsync` (docs/buckets.md)"
            )

    for name in args:
        value = args[name].value
        if name in ("config", "compare") and value is not None:
            check(f"{name}.data.dir", value["data"]["dir"])
            check(f"{name}.init", value.get("init", ""))
        else:
            check(name, value)
    if command_name == "report":
        for text in texts:
            check("", text)


def nothing(texts: list[str]):
    """Raises BadInput if there are arguments that are not options."""
    if texts:
        raise BadInput(f"unexpected argument {texts[0]!r}: every option is written --name=value")


def with_config_files(argv: list[str]) -> list[str]:
    """The command line, with the names of shipped configs replaced by their files."""
    if not any(arg.lstrip("-").split("=")[0] in ("config", "compare") for arg in argv):
        return argv
    from bert_fast.commands import config_flag

    return config_flag.with_files(argv)
