"""The command `compare`."""

import pathlib
import shlex

from absl import flags

from bert_fast.commands import REQUIRED, needs

WHAT = "compare methods at equal budgets and seeds"
EXAMPLE = "smoke --out=runs/smoke"


def define(args, argv: list[str]):
    del argv
    flags.DEFINE_string(
        "out", None, "The study's folder. To continue a study, run its command again. " + REQUIRED, flag_values=args
    )
    flags.DEFINE_string("data", "", "A shards folder, instead of the study's own corpus.", flag_values=args)
    flags.DEFINE_integer(
        "processes", 0, "Runs to train at once; 0: one per core for narrow models on a CPU, else one.", 0,
        flag_values=args,
    )  # fmt: skip
    flags.DEFINE_string("task_data", "", "The folder with the task data, such as glue/.", flag_values=args)
    flags.DEFINE_string(
        "records", "", "A folder that keeps each finished run as a small file. Runs that it holds are not repeated.",
        flag_values=args,
    )  # fmt: skip
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Train nothing: prepare the text and the step costs if they are missing, and print the plan (runs, time, disk "
        "and price).",
        flag_values=args,
    )
    flags.DEFINE_string(
        "preset", "", "A study that ships with the package: smoke, small, medium or paper.", flag_values=args
    )


def run(args, texts: list[str]) -> int:
    from bert_fast import BadInput, command
    from bert_fast.compare import compare
    from bert_fast.train.report import say

    needs(args, "out")
    names = [*texts, *([args.preset] if args.preset else [])]
    if len(names) != 1:
        raise BadInput(
            "give one study: a Python file that defines get_study(), or a shipped one by name, such as "
            "compare smoke --out=runs/smoke"
        )
    changes = {"task_data": str(pathlib.Path(args.task_data).resolve())} if args.task_data else {}
    results = compare(names[0], args.out, args.data, args.processes, args.dry_run, changes, args.records)
    if "budgets" in results:
        print(pathlib.Path(args.out, "results.md").read_text())
        say(f"try: {command()} report {shlex.quote(args.out)}")
    return 1 if results["failed"] else 0
