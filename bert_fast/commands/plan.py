"""The command `plan`."""

import os
import pathlib

from absl import flags

from bert_fast.commands import needs, nothing

WHAT = "show what a run will cost, before it starts"
EXAMPLE = "--config=combined:size=base --topology=v5e:4x4 --compare=bert:size=base"


def define(args, argv: list[str]):
    # Compiling for a TPU does not need a TPU. Without this line, JAX would look for one and hold it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from bert_fast.commands import config_flag

    config_flag.define(args, argv, what="The config")
    config_flag.define(args, argv, "compare", "A config to compare with", required=False)
    flags.DEFINE_string("topology", "cpu", "A TPU slice, such as v5e:4x4. cpu or gpu: FLOPs only.", flag_values=args)
    flags.DEFINE_float(
        "utilisation",
        0.4,
        "The share of a TPU's peak to give hours and price for. Left out where the cycles allow less.",
        0.01,
        1.0,
        flag_values=args,
    )
    flags.DEFINE_bool(
        "profile", False, "Also show where the cycles go, by source line and operation.", flag_values=args
    )
    flags.DEFINE_bool(
        "largest_batch", False, "Also find the largest batch that fits (several compiles).", flag_values=args
    )
    flags.DEFINE_string(
        "cache", "~/.cache/bert_fast/plan", "The folder in which the compiler's results are kept.", flag_values=args
    )


def run(args, texts: list[str]) -> int:
    from bert_fast import BadInput, methods
    from bert_fast.data import shards
    from bert_fast.planner import cost_report, estimate
    from bert_fast.train import settings
    from bert_fast.train.report import say

    nothing(texts)
    needs(args, "config")

    def settings_of(name: str) -> settings.PretrainSettings:
        config = args[name].value.to_dict()
        folder = config["data"]["dir"]
        words = shards.read_manifest(folder)["vocab"] if folder else estimate.BERT
        return settings.make(config, words, tuple(methods.known()))

    def show(planned: estimate.CostEstimate) -> bool:
        totals = cost_report.totals(planned, args.utilisation)
        print("\n".join([cost_report.stages(planned), *cost_report.details(planned), *totals]))
        return planned.fits

    where, cache = estimate.on(args.topology), pathlib.Path(args.cache).expanduser()
    for flag in ("profile", "largest_batch"):
        if args[flag].value and where.chip is None:
            raise BadInput(f"--{flag} needs the TPU compiler: add --topology=v5e:1x1, or another TPU slice")
    planned = estimate.plan(settings_of("config"), where, cache, say)
    fits = show(planned)
    if args.compare is not None:
        other = estimate.plan(settings_of("compare"), where, cache, say)
        print()
        fits = show(other) and fits
        print("\n".join(["", *cost_report.comparison(planned, other)]))
    if args.profile:
        print("\n".join(cost_report.profile(stage) for stage in planned.stages))
    if args.largest_batch:
        print(f"the largest batch that fits: {estimate.largest_batch(settings_of('config'), where, cache, say)}")
    if where.chip is not None:
        print(cost_report.CAVEAT)
    return 0 if fits else 1
