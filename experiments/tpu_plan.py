"""What the TPU compiler expects of every method at BERT's sizes: cycles against dense beside FLOPs against dense.

    python -m experiments.tpu_plan --folder=runs/tpu_plan            compiles what is not finished
    python -m experiments.tpu_plan --folder=runs/tpu_plan --page     writes the page from what is

No TPU is needed, but requirements-tpu.txt. A BERT-base program takes two to four minutes on a core, all of them some
hours: stop it as you like; --only and --arms choose. Writes experiments/tpu_plan.md.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import platform
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling takes no TPU

from bert_fast import BadInput, methods
from bert_fast.cost.accelerators import GIB, TPUS
from bert_fast.data.files import atomic_json
from bert_fast.planner import estimate, tpu
from bert_fast.planner.estimate import CostEstimate, Slice, StageEstimate
from bert_fast.train import settings
from configs import bert, combined

HERE = pathlib.Path(__file__).parent
BATCH = 128  # of 128 tokens, a chip; a quarter of it at 512
# As many a core where a chip has two of them or larger ones: of less, what a step costs once is too large a part. And
# what fits of BERT-large.
BATCHES = {("v5p", "base"): 256, ("v6e", "base"): 256, ("v5e", "large"): 64}
EXAMPLES = 256 * 1_000_000  # BERT's steps of 256 (Devlin et al. 2019, A.2), in as many steps as the batch makes of them
SYSTEMATIC = {"layer_drop.sampling": "systematic"}
ALIGNED = {"early_bert.align": 128}
MSLT = {"stacking.variant": "mslt"}
# Methods of each arm, and their arguments.
ARMS = {
    "dense": ("", {}),
    "layer dropping": ("layer_drop", SYSTEMATIC),
    "layer dropping, cond": ("layer_drop", SYSTEMATIC | {"layer_drop.execution": "cond"}),
    "token dropping": ("token_drop", {}),
    "token dropping, examples_per_row=2": ("token_drop", {"token_drop.examples_per_row": 2}),
    "EarlyBERT, align=128": ("early_bert", ALIGNED),
    "stacking": ("stacking", {}),
    "MSLT": ("stacking", MSLT),
    # On v6e deciding dropout takes an eighth of a step, and all of it in layers that only run forward.
    "MSLT, frozen_dropout=False": ("stacking", MSLT | {"stacking.frozen_dropout": False}),
    # Without neurons=layer layers differ in width, and those that are dropped stand behind conditionals.
    "combined, neurons=layer": (combined.get_config().methods, ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer"}),
    "combined, neurons=layer, examples_per_row=2": (
        combined.get_config().methods,
        ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer", "token_drop.examples_per_row": 2},
    ),
}
METHODS = ("dense", "layer dropping", "token dropping", "EarlyBERT, align=128", "stacking", "MSLT")
AT_128 = (*METHODS, "token dropping, examples_per_row=2", "combined, neurons=layer, examples_per_row=2")
# (topology, size, tokens, which arms): what is not better on one chip is not compiled for others.
WANTED = (
    ("v5e:1x1", "base", 128, (*AT_128, "layer dropping, cond")),
    ("v5e:1x1", "base", 512, (*METHODS, "combined, neurons=layer")),  # 256 tokens fill the lanes, without others beside
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
    """Examples of a step, of all chips."""
    return BATCHES.get((topology.split(":")[0], size), BATCH) * 128 // seq * chips_of(topology)


def settings_of(arm: str, topology: str, size: str, seq: int) -> settings.PretrainSettings:
    """Every arm pre-LN, with MLM alone, one phase, bfloat16 and dropout, on the same batch."""
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
    """A fingerprint of the modules that plans are made with, by which those of another state of them are known."""
    sources = [
        module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "bert_fast" and module.__file__
    ]
    return hashlib.sha256(b"".join(pathlib.Path(path).read_bytes() for path in sorted(sources))).hexdigest()[:16]


def compile_all(folder: pathlib.Path, cache: pathlib.Path, only: str, arms: list[str]):
    """Every plan that is not finished, or of another state of the code: then only what has changed is compiled."""
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
    """A plan that was made, or None."""
    path = file_of(folder, arm, topology, size, seq)
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    if kept["code"] != code():
        raise BadInput(f"{path} is of another state of the code: run the same command without --page first")
    stages = [StageEstimate(**stage) for stage in kept["stages"]]
    chip = TPUS[topology.split(":")[0]]
    return CostEstimate(Slice(topology, chip, [None] * chips_of(topology) * chip.devices), stages)


def row(label: str, flops: float, cycles: float, stage: StageEstimate | None, plan: CostEstimate) -> str:
    """A line of a table: ratios to dense, and of a stage how well it uses the chip and what it holds and sends."""
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
    """A line for each stage of a plan, and where there are several one for the whole of it."""
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
        # A search is added to the training: it is a part of the price.
        lines.append(row(f"{name}, **whole run**", plan.flops / dense.flops, cycles / others, None, plan))
    return lines


HEAD = """\
| | FLOPs / dense | cycles / dense | realised | M cycles | of peak | not counted, at least ms | temporaries GiB | collectives MiB |
|---|---|---|---|---|---|---|---|---|
"""


def costs(folder: pathlib.Path) -> str:
    """What a BERT-base of the paper's length costs on each priced chip."""
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
            allowed = at >= hours  # or the counted cycles alone take longer
            cells.append(
                f"{at * plan.chips:,.0f} h, {at * plan.chips * chip.dollars:,.0f} USD" if allowed else "not reached"
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    names = [topology.split(":")[0] for topology in PRICED]
    head = " | ".join(f"{name}: at least | of dense | {name} at 0.4 of its peak" for name in names)
    prices = ", ".join(f"{name} {TPUS[name].dollars:.2f} ({TPUS[name].sources[1]})" for name in names)
    return f"""| | {head} |
|---|{"---|" * 3 * len(names)}
{chr(10).join(lines)}

Chip-hours of {EXAMPLES:,} examples of 128 tokens, BERT's 1,000,000 steps of 256 (a tenth of which had 512 tokens in the paper: more
than here). "At least": counted cycles at the chip's clock, and the bytes of what is not counted at its bandwidth; nothing
for collectives, input, evaluation, saving. USD an hour and chip: {prices}.
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
    return f"""# What the TPU compiler expects of every method

`python -m experiments.tpu_plan --folder=runs/tpu_plan`, then with `--page`; {platform.machine()}, no TPU. Pre-LN, MLM, bfloat16, dropout,
AdamW; the step that a run would take, built by the same function. Cycles are the estimate of the TPU compiler (libtpu
{tpu.LIBTPU}), and **no measurement**; realised = (1 - cycles / dense's) / (1 - FLOPs / dense's). Gathers, scatters, sorts and custom
calls carry no estimate: beside, the least time that their bytes take. Of a stage with several programs the
{estimate.MOST} most frequent are compiled, and of the others as many cycles a FLOP are expected; memory is that of the program that needs
the most. Layers are dropped with systematic sampling: 8 or 9 of 12 run once theta has settled.

{(chr(10) * 2).join(tables)}

## What a BERT-base of the paper's length costs

{costs(folder)}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where finished plans are kept")
    parser.add_argument("--only", default="", help="only tables whose TOPOLOGY/SIZE/TOKENS holds this")
    parser.add_argument("--arms", default="", help="only these, separated by semicolons")
    parser.add_argument("--cache", default="~/.cache/bert_fast/plan", help="where what was compiled is kept")
    parser.add_argument("--page", action="store_true", help="write the page")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if args.page:
        text = page(folder)
        (HERE / "tpu_plan.md").write_text(text)
        return print(text)
    arms = [arm for arm in args.arms.split(";") if arm]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"no arm {unknown[0]!r}: there are {', '.join(ARMS)}")
    return compile_all(folder, pathlib.Path(args.cache).expanduser(), args.only, arms)


if __name__ == "__main__":
    main()
