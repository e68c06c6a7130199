"""The commands: `python -m bert_fast COMMAND --help`."""

import difflib
import json
import os
import pathlib
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from bert_fast import BadInput, Interrupted, python

REQUIRED = "required"


def run_prepare(args, texts: list[str]) -> int:
    from bert_fast.data.prepare import prepare

    nothing(texts)
    needs(args, "source", "out")
    given = ("vocab", "vocab_size", "cased", "strip_accents", "valid_fraction", "text_key", "tfds_data_dir")
    prepare(args.source, args.out, **{name: args[name].value for name in (*given, "skip_bad", "processes")})
    return 0


def prepare_flags(args, argv: list[str]):
    flags.DEFINE_string(
        "source", None, "Text: docs, files:GLOB or tfds:NAME[/CONFIG]:SPLIT. " + REQUIRED, flag_values=args
    )
    flags.DEFINE_string("out", None, "The shards folder that is made. " + REQUIRED, flag_values=args)
    flags.DEFINE_string("vocab", None, "An existing vocab.txt; without it one is trained.", flag_values=args)
    flags.DEFINE_integer("vocab_size", 30_522, "Word pieces of a vocabulary that is trained.", flag_values=args)
    flags.DEFINE_bool("cased", False, "Keep upper case.", flag_values=args)
    flags.DEFINE_bool(
        "strip_accents", None, "Strip accents; as BERT does, exactly where case is dropped.", flag_values=args
    )
    flags.DEFINE_float("valid_fraction", 0.01, "Share of documents that are held out, by a hash.", flag_values=args)
    flags.DEFINE_string(
        "text_key", "text", "Field of a .jsonl, .parquet or tfds record with the text.", flag_values=args
    )
    flags.DEFINE_string("tfds_data_dir", None, "Where tensorflow-datasets keeps its data.", flag_values=args)
    flags.DEFINE_bool("skip_bad", False, "Count and skip documents that cannot be read.", flag_values=args)
    flags.DEFINE_integer("processes", None, "Processes; by default one a core.", flag_values=args)


def run_pretrain(args, texts: list[str]) -> int:
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


def pretrain_flags(args, argv: list[str]):
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


def run_evaluate(args, texts: list[str]) -> int:
    from bert_fast.inference import evaluate

    nothing(texts)
    needs(args, "checkpoint")
    changes = {name: args[name].value for name in ("examples", "seq_len") if args[name].value is not None}
    print(json.dumps(evaluate(args.checkpoint, args.data or "", args.unigram, **changes)))
    return 0


def checkpoint_flag(args):
    flags.DEFINE_string(
        "checkpoint", None, "A run folder (its newest good step) or one checkpoints/STEP. " + REQUIRED, flag_values=args
    )


def evaluate_flags(args, argv: list[str]):
    checkpoint_flag(args)
    flags.DEFINE_string("data", None, "Another shards folder than the run's own.", flag_values=args)
    flags.DEFINE_integer(
        "examples", None, "Rows of the valid split; by default the run's --config.eval.", flag_values=args
    )
    flags.DEFINE_integer("seq_len", None, "Their length; by default the run's --config.eval.", flag_values=args)
    flags.DEFINE_bool("unigram", False, "Also the loss of add-one word counts on the same masks.", flag_values=args)


def run_fill_mask(args, texts: list[str]) -> int:
    from bert_fast.inference import fill_mask, load

    needs(args, "checkpoint")
    if not texts:
        raise BadInput('no text: give one or more, as "The capital of France is [MASK]."')
    for text, masks in zip(texts, fill_mask(load(args.checkpoint), texts, args.top), strict=True):
        print(text)
        for number, words in enumerate(masks, 1):
            label = f"  [MASK] {number}: " if len(masks) > 1 else "  "
            print(label + "  ".join(f"{word} {share:.1%}" for word, share in words))
    return 0


def fill_mask_flags(args, argv: list[str]):
    checkpoint_flag(args)
    flags.DEFINE_integer("top", 5, "How many words for each mask.", lower_bound=1, flag_values=args)


def run_plan(args, texts: list[str]) -> int:
    from bert_fast import methods, settings
    from bert_fast.cost import bill, planner
    from bert_fast.data import shards
    from bert_fast.train.report import say

    nothing(texts)
    needs(args, "config")

    def settings_of(name: str) -> settings.Settings:
        config = args[name].value.to_dict()
        folder = config["data"]["dir"]
        words = shards.read_manifest(folder)["vocab"] if folder else planner.BERT
        return settings.make(config, words, tuple(methods.known()))

    where, cache = planner.on(args.topology), pathlib.Path(args.cache).expanduser()
    planned = planner.plan(settings_of("config"), where, cache, say)
    print("\n".join([bill.stages(planned), *bill.details(planned), *bill.totals(planned, args.utilisation)]))
    if args.compare is not None:
        other = planner.plan(settings_of("compare"), where, cache, say)
        print("\n".join(["", bill.stages(other), *bill.totals(other, args.utilisation)]))
        print("\n".join(["", *bill.comparison(planned, other)]))
    if args.profile:
        print("\n".join(bill.profile(stage) for stage in planned.stages))
    if args.largest_batch:
        print(f"the largest batch that fits: {planner.largest_batch(settings_of('config'), where, cache, say)}")
    if where.chip is not None:
        print(bill.CAVEAT)
    return 0 if planned.fits else 1


def plan_flags(args, argv: list[str]):
    # Compiling for a TPU takes none; without this JAX would look for one, and hold it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ml_collections import config_flags

    what = "The run: a file in configs/ with its arguments, and --config.NAME=VALUE as in pretrain. " + REQUIRED
    config_flags.DEFINE_config_file("config", None, what, sys_argv=argv, flag_values=args)
    what = "Another run, which it is compared with; --compare.NAME=VALUE changes it."
    config_flags.DEFINE_config_file("compare", None, what, sys_argv=argv, flag_values=args)
    flags.DEFINE_string("topology", "cpu", "A TPU slice such as v5e:4x4; cpu or gpu: FLOPs alone.", flag_values=args)
    flags.DEFINE_float(
        "utilisation", 0.4, "The share of the peak at which hours and price are stated.", 0.01, 1.0, flag_values=args
    )
    flags.DEFINE_bool("profile", False, "Also where the cycles go, by source line and operation.", flag_values=args)
    flags.DEFINE_bool("largest_batch", False, "Also the largest batch that fits (several compiles).", flag_values=args)
    flags.DEFINE_string(
        "cache", "~/.cache/bert_fast/plan", "Where what the compiler said of a program is kept.", flag_values=args
    )


class Command(NamedTuple):
    run: Callable[[flags.FlagValues, list[str]], int]
    define: Callable[[flags.FlagValues, list[str]], None]
    what: str
    example: str


COMMANDS = {
    "prepare": Command(
        run_prepare, prepare_flags, "text to shards and a vocabulary", '--source="files:corpus/*.txt.gz" --out=shards'
    ),
    "pretrain": Command(
        run_pretrain,
        pretrain_flags,
        "shards to a model; the same command continues an interrupted run",
        "--config=configs/bert.py:size=mini --workdir=runs/mini --config.data.dir=shards",
    ),
    "evaluate": Command(
        run_evaluate, evaluate_flags, "held-out loss of a checkpoint, one JSON line", "--checkpoint=runs/mini"
    ),
    "fill-mask": Command(
        run_fill_mask,
        fill_mask_flags,
        "the most probable words for each [MASK]",
        '--checkpoint=runs/mini "The capital of France is [MASK]."',
    ),
    "plan": Command(
        run_plan,
        plan_flags,
        "what a run will cost, before it starts",
        "--config=configs/token_drop.py:size=base --topology=v5e:4x4 --compare=configs/bert.py:size=base",
    ),
}


def needs(args, *names: str):
    for name in names:
        if args[name].value is None:
            raise BadInput(f"--{name} is missing: {args[name].help.replace(REQUIRED, '').strip()}")


def nothing(texts: list[str]):
    if texts:
        raise BadInput(f"unexpected argument {texts[0]!r}: every option is written --name=value")


def usage() -> str:
    lines = [f"  {name:<10} {command.what}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m bert_fast COMMAND [--name=value ...]", "", *lines, "", "COMMAND --help tells its options."]
    )


def help_of(name: str, args: flags.FlagValues) -> str:
    lines = [f"{name}: {COMMANDS[name].what}", ""]
    for flag_name in sorted(args, key=lambda key: (REQUIRED not in (args[key].help or ""), key)):
        flag = args[flag_name]
        default = "" if flag.default in (None, "") else f" [{flag.default}]"
        lines.append(f"  --{flag_name:<16} {flag.help}{default}")
    return "\n".join([*lines, "", f"example: python -m bert_fast {name} {COMMANDS[name].example}"])


def parse(args: flags.FlagValues, argv: list[str]) -> list[str]:
    """Fills `args`, and returns what is no option. Raises BadInput, where ml_collections buries the reason."""
    try:
        texts = args(argv)[1:]
        for name in ("config", "compare"):
            if name in args and args[name].value is not None:
                args[name].value.lock()
        return texts
    except (AttributeError, KeyError) as error:
        found = [arg.split("=")[0] for arg in argv if arg.startswith("--config.")]
        reason = str(error).strip("\"'").replace("\\'", "'").replace("\\n", ". ").replace("'", "", 2)
        raise BadInput(f"unknown config key {reason} (of {', '.join(found)}); config.json of a run lists all") from None
    except (OSError, flags.Error) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BadInput):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        if isinstance(error, OSError):
            there = sorted(str(path) for path in pathlib.Path("configs").glob("*.py") if path.name[0] not in "_c")
            path = next((arg.split("=", 1)[1].split(":")[0] for arg in argv if arg.startswith("--config=")), "")
            raise BadInput(f"no config file {path!r} can be read: known are {', '.join(there) or 'none'}") from None
        raise


def warn(message, category, filename, lineno, file=None, line=None):
    """Shows a warning without the line of code that gave it."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Runs a command; its exit code: 0, 2 for bad input, 130 and 143 after SIGINT and SIGTERM."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1) or list(COMMANDS)
        print(f"error: unknown command {name!r}: did you mean {' or '.join(near)}?\n\n{usage()}", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # configs import each other from the folder that the command runs in
    args, warnings.showwarning = flags.FlagValues(), warn
    try:
        COMMANDS[name].define(args, argv)
        if "--help" in rest or "-h" in rest:
            print(help_of(name, args))
            return 0
        texts = parse(args, [name, *rest])
        return COMMANDS[name].run(args, texts)
    except Interrupted as interrupted:
        command = shlex.join([python(), "-m", "bert_fast", *argv])
        print(f"\n{interrupted}. To continue:\n  {command}", file=sys.stderr)
        return interrupted.exit_code
    except (BadInput, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from what was saved", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
