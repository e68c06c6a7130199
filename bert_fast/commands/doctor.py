"""The command `doctor`."""

import dataclasses
import json

from absl import flags

from bert_fast.commands import begin_computing, nothing

WHAT = "check this machine: devices, packages, memory, disk or bucket, shards, a step, a checkpoint"
EXAMPLE = "--data=shards --workdir=runs"


def define(args, argv: list[str]):
    flags.DEFINE_string("data", "", "A shards folder to check.", flag_values=args)
    flags.DEFINE_string(
        "workdir", ".", "Where runs will be stored: a folder, or a bucket such as gs://BUCKET/runs.", flag_values=args
    )
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.", flag_values=args)


def run(args, texts: list[str]) -> int:
    """Exit code: 1 if a check failed, else 0."""
    from bert_fast import doctor

    nothing(texts)
    begin_computing()
    results = []
    for result in doctor.examine(args.data, args.workdir):
        results.append(result)
        if not args.json:
            print(doctor.line_of(result), flush=True)
    wrong = [result.name for result in results if result.verdict == doctor.FAIL]
    if args.json:
        print(json.dumps({"passed": not wrong, "checks": [dataclasses.asdict(result) for result in results]}))
    else:
        print(f"\n{len(wrong)} of {len(results)} checks failed: {', '.join(wrong)}" if wrong else "\nall checks passed")
    return 1 if wrong else 0
