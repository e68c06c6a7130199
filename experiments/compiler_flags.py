"""How many cycles the TPU compiler's options save in a step of a few layers, by its estimate and by its schedule.

    python -m experiments.compiler_flags                 compiles what is missing, and writes the page

Needs requirements-tpu.txt, but no TPU. Each option takes about a minute on two cores. You can stop the script at any
time. To resume, run its command again. --only selects topologies. Options that are worth it belong in
bert_fast/train/compiler_options.py.
"""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling needs no TPU

import jax

from bert_fast import methods, versions
from bert_fast.configs import bert
from bert_fast.planner import estimate
from bert_fast.planner.estimate import StageEstimate
from bert_fast.planner.tpu import INSTRUMENTS
from bert_fast.train import settings
from bert_fast.train.compiler_options import OPTIONS
from experiments import common

WORTH = 0.01  # an option is worth it if it saves this share of a step's cycles by both instruments
ROWS = 128  # examples per chip
# From MaxText's benchmarks/xla_flags_library.py, and sizes of vector memory around those that others use.
VMEM = {
    f"vector memory {kib // 1024} MiB": {"xla_tpu_scoped_vmem_limit_kib": kib} for kib in (32768, 49152, 65536, 98304)
}
ONE_CHIP = VMEM | {
    "no bundle-aware cost of fusions": {"xla_tpu_use_bundle_aware_cost_model_for_fusions": False},
    "experimental scheduler features": {"xla_tpu_enable_all_experimental_scheduler_features": True},
    "latency hiding, second run": {"xla_latency_hiding_scheduler_rerun": 2},
    "dots ordered before layouts": {"xla_tpu_order_dot_after_layout": False},
    "no reads and writes fused between steps": {"xla_tpu_rwb_fusion": False},
    "multiple outputs in nested fusions": {"xla_tpu_nested_dot_fusion": True},
    "no prefetch across programs": {"xla_tpu_enable_cross_program_prefetch": False},
    "barriers removed": {"xla_tpu_aggressive_opt_barrier_removal": "ENABLED"},
}
ALL_REDUCE = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_reduce": True,
}
SLICE = {
    "all-reduce fused with work": ALL_REDUCE,
    "data-parallel all-reduce": {
        "xla_tpu_enable_data_parallel_all_reduce_opt": True,
        "xla_tpu_data_parallel_opt_different_sized_ops": True,
    },
    "layout for reduce-scatter": {
        "xla_tpu_use_minor_sharding_for_major_trivial_input": True,
        "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": 1,
        "xla_tpu_assign_all_reduce_scatter_layout": True,
    },
}
WANTED = {"v5e:1x1": ONE_CHIP, "v5e:4x4": SLICE, "v6e:1x1": VMEM, "v5p:2x2x1": VMEM}


def settings_of(chips: int, depth: int) -> settings.PretrainSettings:
    config = bert.get_config("size=base,seq=128,objective=mlm,norm=pre")
    config.update(batch_size=ROWS * chips)
    config.update_from_flattened_dict(
        {"model.dtype": "bfloat16", "model.depth": depth, "eval.batch_size": max(32, chips)}
    )
    return settings.make(config.to_dict(), estimate.BERT, tuple(methods.known()))


def found(topology: str, depth: int, options: dict, cache: pathlib.Path) -> StageEstimate | str:
    """The plan's only stage, compiled with these options in addition to the shipped ones, or the compiler's error."""
    where = estimate.on(topology)
    try:
        made = estimate.plan(
            settings_of(len(where.devices), depth), where, cache, print, dict(OPTIONS["tpu"]) | options
        )
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0][:120]
    (stage,) = made.stages
    return stage.problem or stage


def row(label: str, stage: StageEstimate | str, base: StageEstimate) -> str:
    if isinstance(stage, str):
        return f"| {label} | refused: {stage} | | | | |"
    saved = [1 - stage.cycles[name] / base.cycles[name] for name in INSTRUMENTS]
    figures = " | ".join(
        f"{stage.cycles[name] / 1e6:.2f} ({-100 * part:+.1f} %)" for name, part in zip(INSTRUMENTS, saved, strict=True)
    )
    waits = 1e3 * stage.communication.exposed
    worth = "yes" if min(saved) >= WORTH else ""
    return f"| {label} | {figures} | {waits:.2f} | {stage.temporaries / 2**30:.2f} | {worth} |"


def table(topology: str, depth: int, cache: pathlib.Path) -> str:
    base = found(topology, depth, {}, cache)
    assert isinstance(base, StageEstimate), base
    lines = [row("as shipped", base, base)]
    for label, options in WANTED[topology].items():
        spelled = ", ".join(f"`{name}={value}`" for name, value in options.items())
        lines.append(row(f"{label}: {spelled}", found(topology, depth, options, cache), base))
    return f"""## {topology}

| options | {" | ".join(f"{name}, M cycles" for name in INSTRUMENTS)} | collectives not hidden, ms | temporaries, GiB | worth it |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--only", default="", help="only these topologies, separated by commas; writes no page")
    parser.add_argument("--depth", type=int, default=2, help="layers of the model")
    parser.add_argument("--cache", default="~/.cache/bert_fast/plan", help="the folder that caches compiled programs")
    args = parser.parse_args()
    chosen = common.chosen(args.only, ",", WANTED, "topology") if args.only else list(WANTED)
    cache = pathlib.Path(args.cache).expanduser()
    tables = [table(topology, args.depth, cache) for topology in chosen]
    shipped = ", ".join(f"`{name}={value}`" for name, value in OPTIONS["tpu"].items()) or "none"
    page = f"""# Options of the TPU compiler

`python -m experiments.compiler_flags`; libtpu {versions.libtpu_of_jax()}, no TPU. BERT-base widths with {args.depth} layers, {ROWS} x 128 tokens a chip,
pre-LN, MLM, bfloat16, dropout, AdamW. Options that save at least {WORTH:.0%} of the cycles by both instruments are shipped
(`bert_fast/train/compiler_options.py`): {shipped}. Estimates, not measurements.

{chr(10).join(tables)}"""
    if args.only or args.depth != 2:
        print(page)
    else:
        common.write_page("compiler_flags", page)


if __name__ == "__main__":
    main()
