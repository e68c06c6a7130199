"""What the TPU compiler expects of every method at BERT's sizes: cycles against dense beside FLOPs against dense.

    python -m experiments.tpu_plan [--only=v5e:1x1/128]    compiles what is not in the cache, and writes the page

No TPU is needed, but requirements-tpu.txt. A BERT-base program takes one to three minutes on two cores, all of them
some hours; what was compiled is kept (--cache), so stop it as you like. Writes experiments/tpu_plan.md.
"""

import argparse
import os
import pathlib
import platform

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling takes no TPU

from bert_fast import BadInput, methods, settings
from bert_fast.cost.accelerators import GIB
from bert_fast.forecast import planner
from bert_fast.forecast.planner import Plan
from configs import bert, combined

HERE = pathlib.Path(__file__).parent
BATCH = 128  # of 128 tokens, a chip; a quarter of it at 512
SYSTEMATIC = {"layer_drop.sampling": "systematic"}
# Methods of each arm, and their arguments.
BASE = {
    "dense": ("", {}),
    "layer dropping": ("layer_drop", SYSTEMATIC),
    "layer dropping, cond": ("layer_drop", SYSTEMATIC | {"layer_drop.execution": "cond"}),
    "token dropping": ("token_drop", {}),
    "EarlyBERT, align=128": ("early_bert", {"early_bert.align": 128}),
    "stacking": ("stacking", {}),
    "MSLT": ("stacking", {"stacking.variant": "mslt"}),
    "combined": (combined.get_config().methods, {"early_bert.align": 128} | SYSTEMATIC),
}
# (topology, size, tokens, which arms)
WANTED = (
    ("v5e:1x1", "base", 128, tuple(BASE)),
    ("v5e:1x1", "base", 512, tuple(BASE)),
    ("v5e:4x4", "base", 128, tuple(BASE)),
    ("v5p:2x2x1", "base", 128, tuple(BASE)),
    ("v6e:1x1", "base", 128, tuple(BASE)),
    ("v5e:4x4", "large", 128, ("dense", "combined")),
    ("v5e:16x16", "base", 128, ("dense", "combined")),
)


def settings_of(arm: str, topology: str, size: str, seq: int) -> settings.Settings:
    """Every arm pre-LN, with MLM alone, one phase, bfloat16 and dropout, on the same batch."""
    names, changes = BASE[arm]
    chips = len(planner.on(topology).devices)
    config = bert.get_config(f"size={size},seq={seq},objective=mlm,norm=pre")
    config.update(methods=names, batch_size=BATCH * 128 // seq * chips)
    config.update_from_flattened_dict({"model.dtype": "bfloat16", "eval.batch_size": max(32, chips)} | changes)
    return settings.make(config.to_dict(), planner.BERT, tuple(methods.known()))


def rows_of(name: str, plan: Plan, dense: Plan) -> list[str]:
    """A line for each stage of a plan."""
    lines = []
    (whole,) = dense.stages
    for stage in plan.stages:
        label = name if len(plan.stages) == 1 else f"{name}, {stage.name}"
        flops = stage.flops / whole.flops
        if stage.cycles is None or whole.cycles is None:
            lines.append(f"| {label} | {flops:.3f} | does not fit: {stage.problem} |  |  |  |  |  |")
            continue
        ratio = stage.cycles / whole.cycles
        realised = f"{(1 - ratio) / (1 - flops):.2f}" if flops < 0.98 else ""
        chip = plan.where.chip
        used = stage.flops / len(plan.where.devices) / (stage.cycles / chip.clock * chip.peak / chip.devices)
        sent = ", ".join(f"{kind} {size / 2**20:,.0f}" for kind, size in stage.collectives.items()) or "-"
        lines.append(
            f"| {label} | {flops:.3f} | {ratio:.3f} | **{realised}** | {stage.cycles / 1e6:,.1f} | {used:.2f} | "
            f"{1e3 * stage.bound(chip):.2f} | {stage.temporaries / GIB:.2f} | {sent} |"
        )
    return lines


HEAD = """\
| | FLOPs / dense | cycles / dense | realised | M cycles | of peak | not counted, at least ms | temporaries GiB | collectives MiB |
|---|---|---|---|---|---|---|---|---|
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only tables whose TOPOLOGY/SIZE/TOKENS holds this")
    parser.add_argument("--arms", default="", help="only these, separated by semicolons")
    parser.add_argument("--cache", default="~/.cache/bert_fast/plan", help="where what was compiled is kept")
    args = parser.parse_args()
    cache = pathlib.Path(args.cache).expanduser()
    tables = []
    for topology, size, seq, arms in WANTED:
        where = planner.on(topology)
        if args.only not in f"{topology}/{size}/{seq}":
            continue
        plans: dict[str, Plan] = {}
        for arm in arms:
            if args.arms and arm not in ("dense", *args.arms.split(";")):
                continue
            print(f"== {topology}, {size}, {seq} tokens: {arm}", flush=True)
            try:
                plans[arm] = planner.plan(settings_of(arm, topology, size, seq), where, cache, print)
            except BadInput as error:
                print(f"left out: {error}", flush=True)
        lines = [line for arm, plan in plans.items() for line in rows_of(arm, plan, plans["dense"])]
        batch = plans["dense"].stages[0].batch_size
        title = f"## {topology}: BERT-{size}, {batch:,} x {seq} tokens"
        tables.append(f"{title}\n\n{HEAD}" + "\n".join(lines))
    if not args.only and not args.arms:
        text = f"""# What the TPU compiler expects of every method

`python -m experiments.tpu_plan`, {platform.machine()}, no TPU. Pre-LN, MLM, bfloat16, dropout, AdamW; the step that a run
would take, built by the same function. Cycles are the estimate of the TPU compiler (libtpu {planner.tpu.LIBTPU}), and **no
measurement**; realised = (1 - cycles / dense's) / (1 - FLOPs / dense's). Gathers, scatters, sorts and custom calls carry no
estimate: beside, the least time that their bytes take. Of a stage with several programs the two most frequent stand for all.

{chr(10).join(chr(10) + table for table in tables)}
"""
        (HERE / "tpu_plan.md").write_text(text)
    else:
        print("\n\n".join(tables))


if __name__ == "__main__":
    main()
