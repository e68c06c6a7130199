"""The command `plan`: what a run will cost, before it starts."""

import os
import pathlib

from absl import flags

from bert_fast.commands import REQUIRED, needs, nothing

WHAT = "what a run will cost, before it starts"
EXAMPLE = "--config=configs/combined.py:size=base --topology=v5e:4x4 --compare=configs/bert.py:size=base"


def define(args, argv: list[str]):
    # Compiling for a TPU takes none; without this JAX would look for one, and hold it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ml_collections import config_flags

    what = "The run: a file in configs/ with its arguments, and --config.NAME=VALUE as in pretrain. " + REQUIRED
    config_flags.DEFINE_config_file("config", None, what, sys_argv=argv, flag_values=args)
    what = "Another run, which it is compared with; --compare.NAME=VALUE changes it."
    config_flags.DEFINE_config_file("compare", None, what, sys_argv=argv, flag_values=args)
    flags.DEFINE_string("topology", "cpu", "A TPU slice such as v5e:4x4; cpu or gpu: FLOPs alone.", flag_values=args)
    flags.DEFINE_float(
        "utilisation",
        0.4,
        "The share of a TPU's peak at which hours and price are stated.",
        0.01,
        1.0,
        flag_values=args,
    )
    flags.DEFINE_bool("profile", False, "Also where the cycles go, by source line and operation.", flag_values=args)
    flags.DEFINE_bool("largest_batch", False, "Also the largest batch that fits (several compiles).", flag_values=args)
    flags.DEFINE_string(
        "cache", "~/.cache/bert_fast/plan", "Where what the compiler said of a program is kept.", flag_values=args
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

    where, cache = estimate.on(args.topology), pathlib.Path(args.cache).expanduser()
    for flag in ("profile", "largest_batch"):
        if args[flag].value and where.chip is None:
            raise BadInput(f"--{flag} asks the TPU compiler: give --topology=v5e:1x1 or another TPU slice with it")
    planned = estimate.plan(settings_of("config"), where, cache, say)
    print(
        "\n".join(
            [cost_report.stages(planned), *cost_report.details(planned), *cost_report.totals(planned, args.utilisation)]
        )
    )
    fits = planned.fits
    if args.compare is not None:
        other = estimate.plan(settings_of("compare"), where, cache, say)
        print(
            "\n".join(
                [
                    "",
                    cost_report.stages(other),
                    *cost_report.details(other),
                    *cost_report.totals(other, args.utilisation),
                ]
            )
        )
        fits = fits and other.fits
        print("\n".join(["", *cost_report.comparison(planned, other)]))
    if args.profile:
        print("\n".join(cost_report.profile(stage) for stage in planned.stages))
    if args.largest_batch:
        print(f"the largest batch that fits: {estimate.largest_batch(settings_of('config'), where, cache, say)}")
    if where.chip is not None:
        print(cost_report.CAVEAT)
    return 0 if fits else 1
