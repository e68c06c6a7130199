"""The command `plan`."""

import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from bert_fast import command
from bert_fast.commands import needs, nothing

WHAT = "show what a run will cost, before it starts"
LENGTHS = ("steps", "budget", "costs")
PICTURES = (".html", ".png", ".svg")
EXAMPLE = "--config=combined:size=base --topology=v5e:4x4 --compare=bert:size=base"


def define(args, argv: list[str]):
    # Compiling for a TPU does not need a TPU. Without this line, JAX would look for one and hold it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from bert_fast.commands import config_flag

    config_flag.define(args, argv, what="The config")
    config_flag.define(args, argv, "compare", "A config to compare with", required=False)
    flags.DEFINE_string(
        "topology", "cpu", "A TPU slice, such as v5e:4x4, or cpu or gpu to count FLOPs only.", flag_values=args
    )
    flags.DEFINE_float(
        "utilisation",
        0.4,
        "Also give hours and price at this share of the TPU's peak, if the estimated cycles allow that share.",
        0.01,
        1.0,
        flag_values=args,
    )
    flags.DEFINE_bool(
        "profile", False, "Also show where the cycles go, by source line and operation.", flag_values=args
    )
    flags.DEFINE_bool(
        "search",
        False,
        "Find the batch, micro-batches, recomputation and mesh that cost least (many compiles).",
        flag_values=args,
    )
    flags.DEFINE_string(
        "cache", "~/.cache/bert_fast/plan", "The folder in which the compiler's results are kept.", flag_values=args
    )
    flags.DEFINE_string(
        "picture",
        "",
        "Also draw what each layer does in each step into this file: .html, or with matplotlib .png or .svg.",
        flag_values=args,
    )


def run(args, texts: list[str]) -> int:
    from bert_fast import BadInput, methods
    from bert_fast.data import shards
    from bert_fast.planner import cost_report, estimate, search
    from bert_fast.train import settings
    from bert_fast.train.report import say

    nothing(texts)
    needs(args, "config")
    given = [name for name in ("config", "compare") if args[name].value is not None]

    def settings_of(name: str) -> settings.PretrainSettings:
        config = args[name].value.to_dict()
        folder = config["data"]["dir"]
        words = shards.read_manifest(folder)["vocab"] if folder else estimate.BERT
        return settings.make(config, words, tuple(methods.known()))

    def show(planned: estimate.CostEstimate) -> bool:
        totals = cost_report.totals(planned, args.utilisation)
        print("\n".join([cost_report.stages(planned), *cost_report.details(planned), *totals]))
        return planned.fits

    if "compare" in given and (lengths := lengths_of(args)):
        for key in lengths:
            args.compare[key] = args.config[key]
        shown = " ".join(f"--compare.{key}={args.compare[key]}" for key in lengths)
        say(f"the compared config gets the same length: {shown} (because no length is given for --compare)")
    if args.picture:
        if args.search:
            raise BadInput("--picture draws the given configs, and --search looks for others: drop one of these flags")
        draw(args.picture, {name: args[name].value.to_dict() for name in given}, settings_of)
    where, cache = estimate.on(args.topology), pathlib.Path(args.cache).expanduser()
    for flag in ("profile", "search"):
        if args[flag].value and where.chip is None:
            raise BadInput(f"--{flag} needs the TPU compiler: add --topology=v5e:1x1, or another TPU slice")
    if args.search:
        for name in given:
            made = settings_of(name)
            found, own = search.search(made, where, cache, say)
            print(cost_report.choices(found, own, made, where))
            print("least cost: " + pretrain_with(sys.argv[2:], name, found[0].choice.flags(made)))
        print(cost_report.CAVEAT)
        return 0
    planned = estimate.plan(settings_of("config"), where, cache, say)
    fits = show(planned)
    if args.compare is not None:
        other = estimate.plan(settings_of("compare"), where, cache, say)
        print()
        fits = show(other) and fits
        print("\n".join(["", *cost_report.comparison(planned, other)]))
    if args.profile:
        print("\n".join(cost_report.profile(stage) for stage in planned.stages))
    if where.chip is not None:
        print(cost_report.CAVEAT)
    return 0 if fits else 1


def lengths_of(args) -> list[str]:
    """The length keys that are given for --config, if none is given for --compare."""
    if any(f"compare.{key}" in args for key in LENGTHS):
        return []
    return [key for key in LENGTHS if f"config.{key}" in args]


def draw(out: str, configs: Mapping[str, Mapping[str, Any]], settings_of: Callable[[str], Any]):
    """Writes a picture of the configs' plans. configs: keyed by flag. Raises BadInput if the file cannot be written."""
    from bert_fast import BadInput
    from bert_fast.train.report import say

    path = pathlib.Path(out)
    if path.suffix not in PICTURES:
        raise BadInput(f"--picture={out}: expected a file that ends in {', '.join(PICTURES)}")
    named = {flag: config["methods"] or "dense" for flag, config in configs.items()}
    if len(set(named.values())) < len(named):
        named = {flag: f"{name} (--{flag})" for flag, name in named.items()}
    made = {named[flag]: settings_of(flag) for flag in configs}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html":
            from bert_fast.reporting import planned

            planned.write({named[flag]: (made[named[flag]], config) for flag, config in configs.items()}, path)
        else:
            from bert_fast.notebook import pictures

            pictures.plans_of(made).savefig(path, dpi=120)
    except OSError as error:
        raise BadInput(f"--picture={out} cannot be written ({error.strerror or error}): give another file") from error
    say(f"wrote {path}")


def pretrain_with(argv: list[str], name: str, changes: Mapping[str, object]) -> str:
    """The command that trains the config given as --NAME in argv. changes: new values, by key."""
    given = [arg.lstrip("-") for arg in argv if re.match(rf"--?{name}[.=]", arg)]
    kept = [arg for arg in given if arg.partition("=")[0].removeprefix(f"{name}.") not in changes]
    spelled = [f"--config{arg.removeprefix(name)}" for arg in kept]
    spelled += [f"--config.{key}={value}" for key, value in changes.items()]
    return " ".join([command(), "pretrain", *map(shlex.quote, spelled), "--workdir=DIR", "--config.data.dir=DIR"])
