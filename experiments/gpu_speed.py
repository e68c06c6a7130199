"""Steps of BERT on one GPU: tokens per second, share of the peak, every method against dense training, and PyTorch.

    python -m experiments.gpu_speed --folder=runs/gpu_speed           meant to take 8 minutes on an H100 or H200
    python -m experiments.gpu_speed --folder=/tmp/tiny --cases=tiny/64 --batch=8 --rounds=2   tries the script on a CPU

In each case, every kind of step takes turns with a large matrix product and with Hugging Face transformers in PyTorch,
which runs in separate processes. The comparison with PyTorch needs torch and transformers, and is left out without
them. A case whose results are in the folder is not repeated. Once all CASES are finished, the script writes
experiments/gpu_speed.md.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # leaves memory for PyTorch

import dataclasses
import datetime
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import jax

from bert_fast import methods
from bert_fast.configs import bert, combined
from bert_fast.configs import common as shipped
from bert_fast.cost.flops import step_flops
from bert_fast.data.files import atomic_json
from bert_fast.method import Stage
from bert_fast.plan import Route
from bert_fast.planner import estimate
from bert_fast.planner.timing import Stepper, alternate, make_batch, stepper
from bert_fast.train import optim, settings, timeline
from bert_fast.train.sharding import global_batch
from experiments import common
from experiments.timing import one_device, peak, steady

CASES = ("base/128", "base/512", "large/128", "large/512")
TOKENS = {"base": 256 * 128, "large": 128 * 128}  # tokens in a batch
BURST = 0.4  # seconds that each turn of a program takes
STEPS = 100_000
SYSTEMATIC, MSLT, ALIGNED = (
    {"layer_drop.sampling": "systematic"},
    {"stacking.variant": "mslt"},
    {"early_bert.align": 64},
)
# For each method: its name in configs, its settings, and the stage to time, from 0 (the first) to 1 (the last).
METHODS = {
    "layer dropping": ("layer_drop", SYSTEMATIC, 1.0),
    "token dropping": ("token_drop", {}, 1.0),
    "EarlyBERT, slim stage": ("early_bert", ALIGNED, 1.0),
    "stacking, second stage": ("stacking", {}, 0.5),
    "MSLT, growing": ("stacking", MSLT, 0.5),
    "all four, slim and full depth": (
        combined.get_config("all").methods, ALIGNED | SYSTEMATIC | {"early_bert.neurons": "layer"}, 1.0,
    ),
}  # fmt: skip
HALF = "dense, half of the layers"  # shows the share of time that the layers take, which limits what a method saves


@dataclasses.dataclass(frozen=True)
class Case:
    """A model size and a row length."""

    size: str
    seq: int
    batch: int
    dtype: str

    def stage(self, names: str = "", changes: dict | None = None, at: float = 1.0, depth: int = 0):
        """A method, its stage to time, that stage's index, and the optimizer."""
        config = bert.get_config(f"size={self.size},seq={self.seq},objective=mlm,norm=pre")
        config.update(methods=names, batch_size=self.batch, steps=STEPS)
        config.update_from_flattened_dict(
            {"model.dtype": self.dtype, "learning_rate.warmup_steps": 1000} | (changes or {})
        )
        if depth:
            config.model.depth = depth
        made = settings.make(config.to_dict(), estimate.BERT, tuple(methods.known()))
        method = methods.make(made.methods)
        stages = timeline.stages(made, method)
        index = round(at * (len(stages) - 1))
        return method, stages[index], index, optim.make(made.optimizer)


def add(case: Case, mesh, *wanted, **more) -> tuple[Callable[[int], None], float, int]:
    """Returns (a function that runs N steps, mean FLOPs per step, bytes that the program needs)."""
    method, stage, index, optimizer = case.stage(*wanted, **more)
    steps = stepper(method, stage, index == 0, optimizer, mesh)
    draw = steady(method, stage, STEPS)[0]
    steps.add(draw.program, draw.route)
    memory = steps.programs.compiled[steps.programs.key_of(draw.program, steps.state, draw.route)].memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    return burst(steps, stage, draw.program, draw.route), step_flops(draw.program, draw.on_L).executed, used


def burst(steps: Stepper, stage: Stage, program, route: Route) -> Callable[[int], None]:
    """A function that runs N steps and blocks only on the last, as a run does."""
    batch = global_batch(make_batch(stage.program), steps.mesh)

    def take(count: int):
        for _ in range(count):
            steps.state, metrics = steps.programs(program, steps.state, batch, route, 1e-4, 0)
        float(metrics["loss"])

    return take


class Torch:
    """A worker that takes PyTorch's steps. See torch_worker.py."""

    def __init__(self, case: Case, slots: int, gathered: bool):
        depth, width, heads = shipped.SIZES[case.size]
        asked = {"size": [depth, width, heads, 4 * width], "batch": case.batch, "seq": case.seq, "slots": slots}
        command = [sys.executable, "-m", "experiments.torch_worker", json.dumps(asked | {"gathered": gathered})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> dict:
        return self.answer()

    def answer(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"experiments.torch_worker ended with code {self.process.wait()}; see its message above")
        return json.loads(line)

    def take(self, count: int):
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        self.answer()

    def close(self):
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(case: Case, rounds: int, which: list[str]) -> dict:
    """The seconds per step of every program of a case, round by round. Also each program's FLOPs and bytes."""
    mesh, wide = one_device(), 8192 if jax.default_backend() == "gpu" else 512
    has_torch = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
    slots = case.stage()[1].program.slots
    workers = {f"PyTorch, {kind}": Torch(case, slots, gathered) for kind, gathered in
               (("all positions", False), ("predicted positions", True))} if has_torch else {}  # fmt: skip
    runs: dict[str, Callable[[int], None]] = {}
    found: dict = {"flops": {}, "bytes": {}, "versions": {"jax": jax.__version__}}
    product, product_flops = peak(case.dtype, wide)
    runs["product"] = lambda count: [product() for _ in range(count)] and None
    found["flops"]["product"] = product_flops
    full = case.stage()[1].program.model.depth
    wanted = {"dense": ((), {}), HALF: ((), {"depth": full // 2})}
    wanted |= {name: (METHODS[name], {}) for name in which}
    for name, (arguments, more) in wanted.items():
        began = time.monotonic()
        runs[name], found["flops"][name], found["bytes"][name] = add(case, mesh, *arguments, **more)
        print(f"compiled in {time.monotonic() - began:.0f} s: {name}", flush=True)
    for name, worker in workers.items():
        ready = worker.ready()
        runs[name], found["bytes"][name] = worker.take, ready.pop("bytes")
        found["versions"] |= ready
    counts = {}
    for name, take in runs.items():
        take(2)
        began = time.perf_counter()
        take(2)
        counts[name] = max(1, round(2 * BURST / (time.perf_counter() - began)))
    turns = {name: lambda name=name, take=take: take(counts[name]) for name, take in runs.items()}
    seconds = alternate(turns, rounds, warm=1, rest=0.05)
    for worker in workers.values():
        worker.close()
    return found | {"seconds": {name: [each / counts[name] for each in values] for name, values in seconds.items()}}


def lines_of(case: Case, found: dict) -> list[str]:
    seconds, flops = found["seconds"], found["flops"]
    rates = [flops["product"] / each for each in seconds["product"]]
    dense = seconds["dense"]
    halved = common.ratios(seconds[HALF], dense)
    share = 1 - flops[HALF] / flops["dense"]
    ceiling = common.spread([(1 - each) / share for each in halved])[0]
    lines = []
    for name, values in seconds.items():
        if name in ("product", HALF):
            continue
        tokens = common.spread([case.batch * case.seq / each for each in values])
        used = f"{found['bytes'][name] / 2**30:.1f}" if found["bytes"][name] else "-"
        ratio = common.spread(common.ratios(values, dense))
        cells = [f"{tokens[0]:,.0f}", "", common.with_range(ratio, ".3f", "-"), "", "", used]
        if name in flops:
            of_peak = [flops[name] / each / rate for each, rate in zip(values, rates, strict=True)]
            cells[1] = common.with_range(common.spread(of_peak), ".2f", "-")
            if flops[name] < 0.98 * flops["dense"]:
                realised = (1 - ratio[0]) / (1 - flops[name] / flops["dense"])
                cells[3], cells[4] = f"{realised:.2f}", f"{realised / ceiling:.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        f"## BERT-{case.size}, {case.batch} x {case.seq} tokens, {case.dtype}",
        "",
        f"One {case.dtype} matrix product: {common.spread(rates)[0] / 1e12:.1f} TFLOP/s. Ceiling of the realised fraction: {ceiling:.2f}.",
        "",
        "| | tokens/s | of the product's rate | time / dense | realised | of its ceiling | GiB |",
        "|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", required=True, help="the folder for finished cases")
    parser.add_argument("--cases", default=",".join(CASES), help="SIZE/ROW_LENGTH, separated by commas")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--batch", type=int, default=0, help="examples in a batch (default: TOKENS[SIZE] / row length)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each program takes its turn")
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes after which no case is started")
    args = parser.parse_args()
    began, folder = time.monotonic(), pathlib.Path(args.folder)
    sections, kinds = [], set()
    done: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    which = common.chosen(args.methods, ";", METHODS, "method") if args.methods else []
    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    for name in args.cases.split(","):
        size, seq = name.split("/")
        case = Case(size, int(seq), args.batch or TOKENS[size] // int(seq), dtype)
        path = folder / f"{size}-{seq}-{case.batch}.json"
        if not path.exists():
            if time.monotonic() - began > 60 * args.minutes:
                print(
                    f"{name}: not started, because {args.minutes:.0f} minutes have passed. "
                    "Run the same command again to continue"
                )
                continue
            print(f"== {name}", flush=True)
            atomic_json(path, measure(case, args.rounds, which) | {"device": jax.devices()[0].device_kind})
        found = json.loads(path.read_text())
        sections += lines_of(case, found)
        done.add(name)
        kinds.add(f"{found['device']}; " + ", ".join(f"{key} {value}" for key, value in found["versions"].items()))
    text = "\n".join(
        [
            "# Steps of BERT on one GPU",
            "",
            f"`python -m experiments.gpu_speed`, {datetime.date.today()}, {'; '.join(sorted(kinds))}. Pre-LN, MLM, dropout 0.1, AdamW with "
            "clipping. Medians over the rounds; in brackets, the 10th to 90th percentile. *Realised*: share of time saved / share of FLOPs saved. "
            "Its ceiling is the realised fraction of dense training with half of the layers. PyTorch: `torch.compile`, SDPA, fused AdamW, "
            "bfloat16 autocast; its MLM head runs on all positions, as users run it, or on the predicted ones, as ours does.",
            "",
            *sections,
        ]
    )
    if jax.default_backend() == "gpu" and done == set(CASES):
        common.write_page("gpu_speed", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
