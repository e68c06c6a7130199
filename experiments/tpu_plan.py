"""The TPU compiler's estimates for every method at BERT's sizes: savings in cycles, compared with savings in FLOPs.

    python -m experiments.tpu_plan --folder=runs/tpu_plan            compiles the unfinished plans
    python -m experiments.tpu_plan --folder=runs/tpu_plan --page     writes the page from the finished plans

Needs requirements-tpu.txt, but no TPU. A BERT-base program takes two to four minutes to compile on one core; all
programs together take several hours. You can stop it at any time; the same command resumes. --only and --arms select a
part of the plans. Writes experiments/tpu_plan.md.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import platform
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling needs no TPU

from bert_fast import BadInput, methods, versions
from bert_fast.configs import bert, combined
from bert_fast.cost.accelerators import GIB, TPUS
from bert_fast.data.files import atomic_json
from bert_fast.planner import estimate
from bert_fast.planner.estimate import CostEstimate, Slice, StageEstimate
from bert_fast.train import settings
from experiments import common

BATCH = 128  # examples per chip at 128 tokens; a quarter as many at 512
# v5p has two cores per chip, and v6e has one larger core. They need more examples, or the fixed cost of a step weighs
# too much. For BERT-large, no more than 64 examples fit.
BATCHES = {("v5p", "base"): 256, ("v6e", "base"): 256, ("v5e", "large"): 64}
EXAMPLES = 256 * 1_000_000  # BERT's million steps of 256 (Devlin et al. 2019, A.2): steps = EXAMPLES / batch
SYSTEMATIC = {"layer_drop.sampling": "systematic"}
ALIGNED = {"early_bert.align": 128}
MSLT = {"stacking.variant": "mslt"}
# The methods of each arm, and their arguments.
ARMS = {
    "dense": ("", {}),
    "layer dropping": ("layer_drop", SYSTEMATIC),
    "layer dropping, cond": ("layer_drop", SYSTEMATIC | {"layer_drop.execution": "cond"}),
    "token dropping": ("token_drop", {}),
    "token dropping, examples_per_row=2": ("token_drop", {"token_drop.examples_per_row": 2}),
    "EarlyBERT, align=128": ("early_bert", ALIGNED),
    "stacking": ("stacking", {}),
    "MSLT": ("stacking", MSLT),
    # On v6e, drawing dropout masks takes about an eighth of a step. Frozen layers run only forward but still draw them.
    "MSLT, frozen_dropout=False": ("stacking", MSLT | {"stacking.frozen_dropout": False}),
    # Without neurons=layer, layers differ in width, and layer dropping needs conditionals.
    "combined, neurons=layer": (combined.get_config().methods, ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer"}),
    "combined, neurons=layer, examples_per_row=2": (
        combined.get_config().methods,
        ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer", "token_drop.examples_per_row": 2},
    ),
}
METHODS = ("dense", "layer dropping", "token dropping", "EarlyBERT, align=128", "stacking", "MSLT")
AT_128 = (*METHODS, "token dropping, examples_per_row=2", "combined, neurons=layer, examples_per_row=2")
# (topology, size, tokens, arms). An arm that saves nothing on one chip is not compiled for the others.
WANTED = (
    ("v5e:1x1", "base", 128, (*AT_128, "layer dropping, cond")),
    ("v5e:1x1", "base", 512, (*METHODS, "combined, neurons=layer")),  # 256 kept tokens fill the lanes by themselves
    ("v5e:4x4", "base", 128, AT_128),
    ("v5p:2x2x1", "base", 128, AT_128),
    ("v6e:1x1", "base", 128, (*AT_128, "MSLT, frozen_dropout=False")),
    ("v5e:4x4", "large", 128, ("dense", "combined, neurons=layer, examples_per_row=2")),
    ("v5e:16x16", "base", 128, ("dense", "combined, neurons=layer, examples_per_row=2")),
)
PRICED = ("v5e:1x1", "v5p:2x2x1")


def chips_of(topology: str) -> int:
    return math.prod(int(size) for size in topology.split(":")[1].split("x"))


def batch_of(topology: str, size: str, seq: int) -> int:
    """Examples per step, over all chips."""
    return BATCHES.get((topology.split(":")[0], size), BATCH) * 128 // seq * chips_of(topology)


def settings_of(arm: str, topology: str, size: str, seq: int) -> settings.PretrainSettings:
    """Settings of an arm: pre-LN, MLM only, one phase, bfloat16, dropout, and the same batch for all arms."""
    names, changes = ARMS[arm]
    chips, batch = chips_of(topology), batch_of(topology, size, seq)
    config = bert.get_config(f"size={size},seq={seq},objective=mlm,norm=pre")
    steps = EXAMPLES // batch
    config.update(methods=names, batch_size=batch, steps=steps)
    config.update_from_flattened_dict(
        {"model.dtype": "bfloat16", "eval.batch_size": max(32, chips), "learning_rate.warmup_steps": steps // 100}
        | changes
    )
    return settings.make(config.to_dict(), estimate.BERT, tuple(methods.known()))


def file_of(folder: pathlib.Path, arm: str, topology: str, size: str, seq: int) -> pathlib.Path:
    return folder / f"{topology}-{size}-{seq}-{arm}.json".replace(":", "-").replace(", ", "-").replace(" ", "-")


def code() -> str:
    """A fingerprint of the imported bert_fast modules. Plans with another one come from another version of the code."""
    sources = [
        module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "bert_fast" and module.__file__
    ]
    return hashlib.sha256(b"".join(pathlib.Path(path).read_bytes() for path in sorted(sources))).hexdigest()[:16]


def compile_all(folder: pathlib.Path, cache: pathlib.Path, only: str, arms: list[str]):
    """Makes each plan that is missing or from another version of the code. Unchanged programs come from the cache."""
    now = code()
    for topology, size, seq, wanted in WANTED:
        for arm in wanted:
            path = file_of(folder, arm, topology, size, seq)
            if only not in f"{topology}/{size}/{seq}" or arm not in (arms or wanted):
                continue
            if path.exists() and json.loads(path.read_text())["code"] == now:
                continue
            print(f"== {topology}, {size}, {seq} tokens: {arm}", flush=True)
            found = estimate.plan(settings_of(arm, topology, size, seq), estimate.on(topology), cache, print)
            atomic_json(path, {"code": now, "stages": [dataclasses.asdict(stage) for stage in found.stages]})


def read(folder: pathlib.Path, arm: str, topology: str, size: str, seq: int) -> CostEstimate | None:
    """The finished plan of an arm, or None if there is none."""
    path = file_of(folder, arm, topology, size, seq)
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    if kept["code"] != code():
        raise BadInput(f"{path} was made by another version of the code: run the same command without --page first")
    stages = [StageEstimate(**stage) for stage in kept["stages"]]
    chip = TPUS[topology.split(":")[0]]
    return CostEstimate(Slice(topology, chip, [None] * chips_of(topology) * chip.devices), stages)


def row(label: str, flops: float, cycles: float, stage: StageEstimate | None, plan: CostEstimate) -> str:
    """A table row: ratios to dense training; for a stage, also its use of the chip, its memory and its collectives."""
    realised = f"**{(1 - cycles) / (1 - flops):.2f}**" if flops < 0.98 else ""
    if stage is None:
        return f"| {label} | {flops:.3f} | {cycles:.3f} | {realised} | | | | | |"
    chip = plan.where.chip
    assert chip is not None
    assert stage.cycles is not None
    used = stage.flops / len(plan.where.devices) / (stage.cycles / chip.clock * chip.peak / chip.devices)
    sent = ", ".join(f"{kind} {size / 2**20:,.0f}" for kind, size in stage.collectives.items()) or "-"
    return (
        f"| {label} | {flops:.3f} | {cycles:.3f} | {realised} | {stage.cycles / 1e6:,.1f} | {used:.2f} | "
        f"{1e3 * stage.bound(chip):.2f} | {stage.temporaries / GIB:.2f} | {sent} |"
    )


def rows_of(name: str, plan: CostEstimate | None, dense: CostEstimate) -> list[str]:
    """One table row per stage of a plan, and one for the whole run if there are several stages."""
    if plan is None:
        return [f"| {name} | not compiled yet | | | | | | | |"]
    lines = []
    (whole,) = dense.stages
    for stage in plan.stages:
        label = name if len(plan.stages) == 1 else f"{name}, {stage.name}"
        if stage.cycles is None or whole.cycles is None:
            lines.append(f"| {label} | {stage.flops / whole.flops:.3f} | does not fit: {stage.problem} | | | | | | |")
        else:
            lines.append(row(label, stage.flops / whole.flops, stage.cycles / whole.cycles, stage, plan))
    cycles, others = plan.cycles(), dense.cycles()
    if len(plan.stages) > 1 and cycles and others:
        # EarlyBERT's search comes in addition to the training, so its cost is included.
        lines.append(row(f"{name}, **whole run**", plan.flops / dense.flops, cycles / others, None, plan))
    return lines


HEAD = """\
| | FLOPs / dense | cycles / dense | realised | M cycles | share of peak | not counted, ms (at least) | temporaries, GiB | collectives, MiB |
|---|---|---|---|---|---|---|---|---|
"""


def costs(folder: pathlib.Path) -> str:
    """The cost table: a BERT-base with the paper's number of examples, on each chip of PRICED."""
    lines = []
    for arm in AT_128:
        cells = []
        for topology in PRICED:
            plan, dense = (read(folder, name, topology, "base", 128) for name in (arm, "dense"))
            chip = TPUS[topology.split(":")[0]]
            hours = plan and plan.hours()
            if plan is None or dense is None or hours is None or chip.dollars is None:
                cells.append("not compiled yet" if plan is None else "does not fit")
                cells += ["", ""]
                continue
            at = plan.hours_at(0.4)
            assert at is not None
            of_dense = hours / (dense.hours() or hours)
            cells.append(f"{hours * plan.chips:,.0f} h, {hours * plan.chips * chip.dollars:,.0f} USD")
            cells.append(f"{of_dense:.2f}")
            allowed = at >= hours  # otherwise even the lower bound takes longer
            cells.append(
                f"{at * plan.chips:,.0f} h, {at * plan.chips * chip.dollars:,.0f} USD" if allowed else "not reached"
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    names = [topology.split(":")[0] for topology in PRICED]
    head = " | ".join(f"{name}: at least | / dense | {name} at 0.4 of its peak" for name in names)
    prices = ", ".join(f"{name} {TPUS[name].dollars:.2f} ({TPUS[name].sources[1]})" for name in names)
    return f"""| | {head} |
|---|{"---|" * 3 * len(names)}
{chr(10).join(lines)}

Chip-hours and price of {EXAMPLES:,} examples of 128 tokens: BERT's 1,000,000 steps of 256. (In the paper a tenth of the steps
had 512 tokens, which costs more.) "At least" is a lower bound: the counted cycles at the chip's clock, plus the bytes of operations that
are not counted, at the memory's bandwidth. It leaves out collectives, input, evaluation and saving. "Not reached": even the lower bound
takes longer than a run at 0.4 of the peak.
USD per chip-hour: {prices}.
"""


def page(folder: pathlib.Path) -> str:
    tables = []
    for topology, size, seq, arms in WANTED:
        dense = read(folder, "dense", topology, size, seq)
        title = f"## {topology}: BERT-{size}, {batch_of(topology, size, seq):,} x {seq} tokens"
        if dense is None:
            tables.append(f"{title}\n\nNot compiled yet.")
            continue
        lines = [line for arm in arms for line in rows_of(arm, read(folder, arm, topology, size, seq), dense)]
        tables.append(f"{title}\n\n{HEAD}" + "\n".join(lines))
    return f"""# The TPU compiler's estimates for every method

`python -m experiments.tpu_plan --folder=runs/tpu_plan`, then with `--page`; {platform.machine()}, no TPU. Pre-LN, MLM, bfloat16, dropout,
AdamW. The compiled step is the step of a real run, built by the same function.

- Cycles are **estimates** of the TPU compiler (libtpu {versions.libtpu_of_jax()}), **not measurements**.
- Realised = (1 - cycles / dense cycles) / (1 - FLOPs / dense FLOPs).
- *not counted*: the compiler gives no estimate for gathers, scatters, sorts and custom calls. The column is a lower bound on
  their time: the time to move their bytes.
- If a stage has several programs, cycles are from the {estimate.MOST} most frequent ones; the others are assumed to take equally many cycles
  per FLOP. Memory is for the program that needs the most, and the largest program is always compiled.
- Layer dropping uses systematic sampling: once theta has settled, 8 or 9 of 12 layers run in a step.

{(chr(10) * 2).join(tables)}

## What a BERT-base costs, with the paper's number of examples

{costs(folder)}"""


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", required=True, help="the folder for finished plans")
    parser.add_argument("--only", default="", help="only tables whose TOPOLOGY/SIZE/TOKENS contains this text")
    parser.add_argument("--arms", default="", help="only these arms, separated by semicolons")
    parser.add_argument("--cache", default="~/.cache/bert_fast/plan", help="the folder that caches compiled programs")
    parser.add_argument("--page", action="store_true", help="write the page instead of compiling")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if args.page:
        return common.write_page("tpu_plan", page(folder))
    arms = common.chosen(args.arms, ";", ARMS, "arm") if args.arms else []
    return compile_all(folder, pathlib.Path(args.cache).expanduser(), args.only, arms)


if __name__ == "__main__":
    main()
