"""What every method costs on TPUs at BERT's sizes, by the compiler's estimate and by its static schedule.

    python -m experiments.tpu_plan            compiles the unfinished plans
    python -m experiments.tpu_plan --page     writes the page from the finished plans

Finished plans are kept in experiments/plans, one small file each. Commit them: the script then continues from them on
another machine. They stay valid until a change to the code that decides what a program does or how its cycles are
counted. Needs requirements-tpu.txt, but no TPU. A BERT-base program takes two to four minutes to compile on one core;
all programs together take several hours. You can stop the script at any time; started again, it resumes. --only and
--arms select a part of the plans. --page writes experiments/tpu_plan.md. --depth=2 tries the script on a smaller model;
--page then prints the page instead of writing it.
"""

import ast
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import platform

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling needs no TPU

from bert_fast import BadInput, methods, versions
from bert_fast.configs import bert, combined
from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.overlap import Communication
from bert_fast.data.files import atomic_json
from bert_fast.planner import estimate
from bert_fast.planner.estimate import CostEstimate, Slice, StageEstimate
from bert_fast.train import settings
from experiments import common, tpu_tables

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
    "dense, no dropout": ("", {"model.dropout": 0.0, "model.attention_dropout": 0.0}),
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
    "all four, neurons=layer": (
        combined.get_config("all").methods,
        ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer"},
    ),
    "all four, neurons=layer, examples_per_row=2": (
        combined.get_config("all").methods,
        ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer", "token_drop.examples_per_row": 2},
    ),
}
METHODS = ("dense", "layer dropping", "token dropping", "EarlyBERT, align=128", "stacking", "MSLT")
AT_128 = (*METHODS, "token dropping, examples_per_row=2", "all four, neurons=layer, examples_per_row=2")
# (topology, size, tokens, arms). An arm that saves nothing on one chip is not compiled for the others.
WANTED = (
    ("v5e:1x1", "base", 128, (*AT_128, "layer dropping, cond", "dense, no dropout")),
    # An example of 512 tokens keeps 256, which fill the TPU's lanes: examples_per_row=2 is not needed.
    ("v5e:1x1", "base", 512, (*METHODS, "all four, neurons=layer", "dense, no dropout")),
    ("v5e:4x4", "base", 128, AT_128),
    ("v5p:2x2x1", "base", 128, AT_128),
    ("v6e:1x1", "base", 128, (*AT_128, "MSLT, frozen_dropout=False")),
    ("v5e:4x4", "large", 128, ("dense", "all four, neurons=layer, examples_per_row=2")),
    ("v5e:16x16", "base", 128, ("dense", "all four, neurons=layer, examples_per_row=2")),
)
PRICED = ("v5e:1x1", "v5p:2x2x1")
# The modules that decide what the programs do and how their cycles are counted.
DECIDING = (
    *("activations attention bert cross_entropy dropout layers method methods plan qkv schedule token_order").split(),
    *("cost planner.estimate planner.programs planner.saving planner.tpu versions").split(),
    *(f"train.{name}" for name in "compile compiler_options objective optim sharding state step timeline".split()),
)


def chips_of(topology: str) -> int:
    return math.prod(int(size) for size in topology.split(":")[1].split("x"))


def batch_of(topology: str, size: str, seq: int) -> int:
    """Examples per step, over all chips."""
    return BATCHES.get((topology.split(":")[0], size), BATCH) * 128 // seq * chips_of(topology)


@dataclasses.dataclass(frozen=True)
class Plans:
    """The finished plans in a folder. depth: layers of a smaller model, to try the script; 0: each size's own depth."""

    folder: pathlib.Path
    depth: int = 0

    def settings(self, arm: str, topology: str, size: str, seq: int) -> settings.PretrainSettings:
        """Settings of an arm: pre-LN, MLM only, one phase, bfloat16, dropout, and the same batch for all arms."""
        names, changes = ARMS[arm]
        chips, batch = chips_of(topology), batch_of(topology, size, seq)
        config = bert.get_config(f"size={size},seq={seq},objective=mlm,norm=pre")
        steps = EXAMPLES // batch
        config.update(methods=names, batch_size=batch, steps=steps)
        config.update_from_flattened_dict(
            {"model.dtype": "bfloat16", "eval.batch_size": max(32, chips), "learning_rate.warmup_steps": steps // 100}
            | ({"model.depth": self.depth} if self.depth else {})
            | changes
        )
        return settings.make(config.to_dict(), estimate.BERT, tuple(methods.known()))

    def file(self, arm: str, topology: str, size: str, seq: int) -> pathlib.Path:
        depth = f"-{self.depth}-layers" if self.depth else ""
        name = f"{topology}-{size}-{seq}-{arm}{depth}.json"
        return self.folder / name.replace(":", "-").replace(", ", "-").replace(" ", "-")

    def make(self, cache: pathlib.Path, only: str, arms: list[str]):
        """Makes each plan that is missing or from another version of the code. Known programs come from the cache."""
        now = code()
        for topology, size, seq, wanted in WANTED:
            for arm in wanted:
                path = self.file(arm, topology, size, seq)
                if only not in f"{topology}/{size}/{seq}" or arm not in (arms or wanted):
                    continue
                if path.exists() and json.loads(path.read_text())["code"] == now:
                    continue
                print(f"== {topology}, {size}, {seq} tokens: {arm}", flush=True)
                made = self.settings(arm, topology, size, seq)
                found = estimate.plan(made, estimate.on(topology), cache, print)
                atomic_json(path, {"code": now, "stages": [dataclasses.asdict(stage) for stage in found.stages]})

    def read(self, arm: str, topology: str, size: str, seq: int) -> CostEstimate | None:
        """The finished plan of an arm, or None if there is none."""
        path = self.file(arm, topology, size, seq)
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        if kept["code"] != code():
            raise BadInput(f"{path} was made by another version of the code: run the same command without --page first")
        stages = [
            StageEstimate(**{**stage, "communication": Communication(*stage["communication"])})
            for stage in kept["stages"]
        ]
        chip = TPUS[topology.split(":")[0]]
        return CostEstimate(Slice(topology, chip, [None] * chips_of(topology) * chip.devices), stages)


def code() -> str:
    """A fingerprint of the code in the DECIDING modules, without its prose. Plans with another fingerprint are out of
    date.
    """
    package = common.HERE.parent / "bert_fast"
    paths = [package / name.replace(".", "/") for name in DECIDING]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) or [path.with_suffix(".py")])]
    texts = [without_prose(file.read_text()) for file in files]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def without_prose(source: str) -> str:
    """The syntax tree of Python code, without comments, docstrings and the texts of errors."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
    return ast.dump(tree)


def costs(plans: Plans) -> str:
    """The cost table: a BERT-base with the paper's number of examples, on each chip of PRICED."""
    lines = []
    for arm in AT_128:
        cells = []
        for topology in PRICED:
            plan, dense = (plans.read(name, topology, "base", 128) for name in (arm, "dense"))
            hours, of_dense = plan and plan.hours(), dense and dense.hours()
            price = TPUS[topology.split(":")[0]].dollars
            if plan is None or hours is None or of_dense is None or price is None:
                cells += ["not compiled yet" if plan is None else "does not fit", ""]
                continue
            cells.append(f"{hours * plan.chips:,.0f} h, {hours * plan.chips * price:,.0f} USD")
            cells.append(f"{hours / of_dense:.2f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    names = [topology.split(":")[0] for topology in PRICED]
    head = " | ".join(f"{name} | / dense" for name in names)
    prices = ", ".join(f"{name} {TPUS[name].dollars:.2f} ({TPUS[name].sources[1]})" for name in names)
    return f"""| | {head} |
|---|{"---|" * 2 * len(names)}
{chr(10).join(lines)}

Chip-hours and price of {EXAMPLES:,} examples of 128 tokens: BERT's 1,000,000 steps of 256. (In the paper a tenth of the steps
had 512 tokens, which costs more.) Cycles are from the instrument that counts more. The time for input, evaluation
and saving is left out. USD per chip-hour: {prices}.
"""


def page(plans: Plans) -> str:
    tables = []
    for topology, size, seq, arms in WANTED:
        dense = plans.read("dense", topology, size, seq)
        title = f"## {topology}: BERT-{size}, {batch_of(topology, size, seq):,} x {seq} tokens"
        if dense is None:
            tables.append(f"{title}\n\nNot compiled yet.")
            continue
        found = {arm: plans.read(arm, topology, size, seq) for arm in arms}
        tables.append(f"{title}\n\n{tpu_tables.methods(found, dense)}")
    return f"""# What every method costs on TPUs, by their compiler

`python -m experiments.tpu_plan`, then with `--page`; {platform.machine()}, no TPU. Pre-LN, MLM, bfloat16, dropout,
AdamW. The compiled step is the step of a real run, built by the same function.

- Cycles are the TPU compiler's (libtpu {versions.libtpu_of_jax()}), **not measurements**. Two instruments count them: the compiler's own *estimate* for
  each operation, and the static *schedule* that it writes for each operation and kernel (`bert_fast/cost/schedule.py`).
- Realised = (1 - cycles / dense cycles) / (1 - FLOPs / dense FLOPs). Its *ceiling* is (the layers' share of a dense step's cycles) /
  (their share of its FLOPs), because embeddings, head and optimizer do not shrink. Of the two instruments, the lower fraction counts.
- *no schedule*: cycles of operations that have no schedule. They are bounds from bytes, FLOPs or the estimate.
- *collectives, ms*: their time at the full bandwidth of the links. *not hidden*: the part of it during which no other work runs.
- If a stage has several programs, cycles are from the {estimate.MOST} most frequent ones; the others are assumed to take equally many cycles
  per FLOP. Memory is for the program that needs the most, and the largest program is always compiled.
- Layer dropping uses systematic sampling: once theta has settled, 8 or 9 of 12 layers run in a step.

## Goals, and what was found

*before*: figures of November 2026, before the trunk was made faster. *found*: of the two instruments,
the one that counts more cycles, unless a row says otherwise.

{tpu_tables.figures(plans.read)}

## What MSLT sends

{tpu_tables.communication(plans.read("dense", "v5e:4x4", "base", 128), plans.read("MSLT", "v5e:4x4", "base", 128))}

{(chr(10) * 2).join(tables)}

## What a BERT-base costs, with the paper's number of examples

{costs(plans)}"""


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", default=str(common.HERE / "plans"), help="the folder for finished plans")
    parser.add_argument("--only", default="", help="only tables whose TOPOLOGY/SIZE/TOKENS contains this text")
    parser.add_argument("--arms", default="", help="only these arms, separated by semicolons")
    parser.add_argument("--cache", default="~/.cache/bert_fast/plan", help="the folder that caches compiled programs")
    parser.add_argument("--depth", type=int, default=0, help="layers of a smaller model, to try the script")
    parser.add_argument("--page", action="store_true", help="write the page instead of compiling")
    args = parser.parse_args()
    plans = Plans(pathlib.Path(args.folder), args.depth)
    plans.folder.mkdir(parents=True, exist_ok=True)
    if args.page:
        return print(page(plans)) if args.depth else common.write_page("tpu_plan", page(plans))
    arms = common.chosen(args.arms, ";", ARMS, "arm") if args.arms else []
    return plans.make(pathlib.Path(args.cache).expanduser(), args.only, arms)


if __name__ == "__main__":
    main()
