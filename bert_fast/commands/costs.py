"""The command `costs`."""

import os
import pathlib

from absl import flags

from bert_fast.commands import begin_computing, needs, nothing

WHAT = "measure what steps cost, for budgets in time or money"
EXAMPLE = "--config=bert:size=mini --config.data.dir=SHARDS --out=runs/costs.json"


def define(args, argv: list[str]):
    if any(arg.lstrip("-").startswith("topology=") for arg in argv):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling for a TPU does not need one
    from bert_fast.commands import REQUIRED, config_flag

    config_flag.define(args, argv, what="The config of the run")
    config_flag.define(args, argv, "compare", "A second config, to time alternately with --config", required=False)
    flags.DEFINE_string("out", None, "The file to write. " + REQUIRED, flag_values=args)
    flags.DEFINE_string(
        "topology",
        "",
        "A TPU such as v5e:1x1. Its compiler estimates the costs; nothing is measured.",
        flag_values=args,
    )
    flags.DEFINE_integer("rounds", 15, "How many times each program is timed.", lower_bound=3, flag_values=args)
    flags.DEFINE_string(
        "cache", "~/.cache/bert_fast/plan", "The folder in which the compiler's results are kept.", flag_values=args
    )


def run(args, texts: list[str]) -> int:
    from bert_fast import BadInput, methods
    from bert_fast.data import shards
    from bert_fast.planner import estimate
    from bert_fast.planner import step_costs as made
    from bert_fast.train import settings, step_costs

    nothing(texts)
    needs(args, "config", "out")
    runs = []
    for name in ("config", "compare"):
        if args[name].value is not None:
            config = args[name].value.to_dict() | {"budget": "", "costs": ""}
            folder = config["data"]["dir"]
            words = shards.read_manifest(folder)["vocab"] if folder else estimate.BERT
            runs.append(settings.make(config, words, tuple(methods.known())))
    out = pathlib.Path(args.out)
    if out.is_dir():
        raise BadInput(f"--out={out} is a folder: give a file to write, such as {out / 'costs.json'}")
    if args.topology:
        costs = made.compiled(runs, args.topology, pathlib.Path(args.cache).expanduser())
    else:
        begin_computing()
        costs = made.measured(runs, args.rounds)
    step_costs.write(costs, out)
    for key, curve in costs.curves.items():
        print(f"{key}: " + ", ".join(f"{point.seconds:.4g} s for {point.flops:.3g} FLOPs" for point in curve))
    print(f"wrote {out} ({costs.instrument} on {costs.machine}); use it with --config.costs={out}")
    return 0
