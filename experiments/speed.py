"""How much of its saving in FLOPs each method realises as a saving in step time, at BERT-base widths.

    python -m experiments.speed [--seq=128,512] [--rounds=10] [--dtype=bfloat16 --batch=64]

All programs take turns in one process, together with a dense step (same norm layout, batch, dropout and dtype) and one
large matrix product. Realised fraction = (1 - t / t_dense) / (1 - F / F_dense), one value per round. On a GPU the
default is bfloat16 with a larger batch. Writes experiments/speed.md (on a GPU: speed_gpu.md).
"""

import gc
import platform
import statistics

import jax
import numpy as np
from absl import app, flags

from bert_fast import bert, methods
from bert_fast.cost.flops import step_flops
from bert_fast.data.masking import prediction_slots
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.planner.programs import most_frequent
from bert_fast.planner.timing import alternate, stepper
from bert_fast.schedule import Schedule
from experiments.common import spread, with_range, write_page
from experiments.timing import adamw, one_device, peak, steady

SEQ = flags.DEFINE_list("seq", ["128", "512"], "Sequence lengths.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds. Each runs every program once.")
DEPTH = flags.DEFINE_integer("depth", 12, "Layers.")
BATCH = flags.DEFINE_integer(
    "batch", 0, "Examples per batch at 128 tokens; at 512, a quarter as many (default: 8 on a CPU, 128 on a GPU)."
)
DTYPE = flags.DEFINE_string("dtype", "", "Type of the activations (default: float32 on a CPU, bfloat16 on a GPU).")
ONLY = flags.DEFINE_string("only", "", "Run only groups whose name contains this text, and write no page.")

STEPS = 100_000
MSLT = {"variant": "mslt"}
# For each group: methods with their arguments, and the stages to measure at 128 and at 512 tokens (None: all).
GROUPS = {
    "layer dropping": ([("layer_drop", {"sampling": "systematic"})], None, None),
    "token dropping": ([("token_drop", {})], None, None),
    "EarlyBERT": ([("early_bert", {})], [1], [1]),
    "stacking": ([("stacking", {})], [0, 1], []),
    "MSLT": ([("stacking", MSLT)], [1, 2, 3], [3]),
    "token + layer dropping": ([("token_drop", {}), ("layer_drop", {})], None, None),
    "EarlyBERT + token dropping": ([("early_bert", {}), ("token_drop", {})], [1], []),
    "stacking + token dropping": ([("stacking", {}), ("token_drop", {})], [0, 1], []),
    "MSLT + token dropping": ([("stacking", MSLT), ("token_drop", {})], [1, 2, 3], []),
}
PAPERS = {
    "layer dropping": "24 % of the time per sample",
    "token dropping": "25 %",
    "EarlyBERT": "35-45 % of the whole time",
    "MSLT": "52 % of the time",
}


def dense_stage(seq_len: int) -> Stage:
    on_cpu = jax.default_backend() == "cpu"
    dtype = DTYPE.value or ("float32" if on_cpu else "bfloat16")
    model = bert.Config(vocab_size=30_522, depth=DEPTH.value, norm="pre", dtype=dtype)
    batch = max(1, (BATCH.value or (8 if on_cpu else 128)) * 128 // seq_len)
    program = Program(model, whole(model.depth), batch, 1, seq_len, prediction_slots(seq_len), "mlm")
    return Stage("training", program, STEPS, Schedule(1e-4, STEPS))


def timeline_of(method, dense: Stage) -> tuple[Stage, ...]:
    return method.stages((dense,))


def measure(dense: Stage, optimizer, mesh) -> list[dict]:
    """One row per measured stage. FLOPs and time are relative to dense; timings are arrays with one value per round."""
    long = dense.program.seq_len >= 512
    product, product_flops = peak(dense.program.model.dtype, 3072 if jax.default_backend() == "cpu" else 16384)
    plain = stepper(methods.make([]), dense, True, optimizer, mesh)
    runs, found = {"dense": plain.add(dense.program), "product": product}, []
    for name, (wanted, *chosen) in GROUPS.items():
        if ONLY.value not in name:
            continue
        method = methods.make(wanted)
        timeline = timeline_of(method, dense)
        for index in range(len(timeline)) if chosen[long] is None else chosen[long]:
            stage = timeline[index]
            steps = stepper(method, stage, index == 0, optimizer, mesh)
            drawn = most_frequent(steady(method, stage, STEPS), 3)
            label = name + (f", stage {stage.name}" if len(timeline) > 1 else "")
            for number, draw in enumerate(drawn):
                runs[f"{label}/{number}"] = steps.add(draw.program, draw.route)
            found.append((name, label, drawn))
            print(f"compiled: {label} at {dense.program.seq_len} tokens", flush=True)
    seconds = {key: np.array(values) for key, values in alternate(runs, ROUNDS.value, warm=1).items()}
    dense_flops, rows = step_flops(dense.program).executed, []
    for name, label, drawn in found:
        time = sum(draw.share * seconds[f"{label}/{number}"] for number, draw in enumerate(drawn))
        flops = sum(draw.share * step_flops(draw.program, draw.on_L).executed for draw in drawn)
        time_share, flops_share = time / seconds["dense"], flops / dense_flops
        rows.append(
            {
                "name": label,
                "group": name,
                "seq": dense.program.seq_len,
                "flops": flops_share,
                "time": time_share,
                "realised": (1 - time_share) / (1 - flops_share),
                "utilisation": (flops / time) / (product_flops / seconds["product"]),
                "dense utilisation": (dense_flops / seconds["dense"]) / (product_flops / seconds["product"]),
                "dense seconds": seconds["dense"],
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    def show(key):
        return with_range(spread(row[key]), ".2f", "-")

    realised = show("realised") if row["flops"] < 0.97 else "-"
    paper = PAPERS.get(row["group"], "")
    return (
        f"| {row['name']} | {row['seq']} | {row['flops']:.3f} | {show('time')} | {realised} | {show('utilisation')} | "
        f"{show('dense utilisation')} | {paper} |"
    )


def whole_runs(rows: list[dict], dense: Stage) -> list[str]:
    """FLOPs and time of whole runs relative to dense training, one line per method.

    The stages are weighted by their shares of the steps. If a stage was not measured, its time is taken from a row with
    the same FLOPs, which has the same program. A dense stage has no such row. Its relative FLOPs stand in for its
    relative time.
    """
    lines, full = [], step_flops(dense.program).executed
    rows = [row for row in rows if row["seq"] == dense.program.seq_len]
    for name, (wanted, *_) in GROUPS.items():
        timeline = timeline_of(methods.make(wanted), dense)
        flops = time = 0.0
        for stage in timeline:
            share = step_flops(stage.program).executed / full
            found = [row for row in rows if row["name"] in (name, f"{name}, stage {stage.name}")]
            found += [row for row in rows if abs(row["flops"] - share) < 5e-4]
            flops += stage.steps / STEPS * (found[0]["flops"] if found else share)
            time += stage.steps / STEPS * (statistics.median(found[0]["time"]) if found else share)
        lines.append(f"| {name} | {flops:.2f} | {time:.2f} | {1 - time:.0%} | {PAPERS.get(name, '')} |")
    return lines


def main(_):
    mesh, optimizer = one_device(), adamw(clip_norm=1.0)
    rows, totals = [], []
    for seq_len in map(int, SEQ.value):
        dense = dense_stage(seq_len)
        rows += measure(dense, optimizer, mesh)
        gc.collect()
        if seq_len == 128 and not ONLY.value:
            totals = whole_runs(rows, dense)
    if ONLY.value:
        return
    device, model = jax.devices()[0].device_kind, dense_stage(128).program
    lines = [
        "# Speed: promised and realised savings",
        "",
        f"`python -m experiments.speed --rounds={ROUNDS.value}` on {device} ({platform.machine()}), jax {jax.__version__}. "
        f"{DEPTH.value} layers at BERT-base widths, pre-LN, {model.model.dtype}, batches of {model.batch_size} x 128 tokens, or equally "
        "many tokens in longer examples, dropout 0.1, whole steps with AdamW. Every program takes turns with a dense step and with "
        "one large matrix product. Values are medians over the rounds; in brackets, the 10th to 90th percentile.",
        "",
        "| | tokens | FLOPs / dense | time / dense | **realised fraction** | utilisation | utilisation of dense | saving in the paper |",
        "|---|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
        "- Realised fraction: share of time saved / share of FLOPs saved (matrix products, forward and backward).",
        "- Utilisation: FLOPs per second of the step / FLOPs per second of the matrix product in the same round.",
        "- Layer dropping is measured in its steady state, at theta 0.5. The time is the mean over its most frequent "
        "programs, which run different numbers of layers, weighted by how often each is drawn.",
        "- EarlyBERT is measured in its slim stage: 8 of 12 heads and 60 % of the neurons, pruned globally.",
        "- MSLT is measured in its growing stages. Its joint stage is the same as a dense step.",
        "",
        "Whole runs at 128 tokens, computed from these stages and their shares of the steps (EarlyBERT's search included):",
        "",
        "| | FLOPs / dense | time / dense | time saved | saving in the paper |",
        "|---|---|---|---|---|",
        *totals,
        "",
        f"A dense step takes {' and '.join(f'{statistics.median(r):.2f} s' for r in {row['seq']: row['dense seconds'] for row in rows}.values())} "
        f"at {' and '.join(SEQ.value)} tokens.",
    ]
    text = "\n".join(lines) + "\n"
    write_page("speed" if jax.default_backend() == "cpu" else f"speed_{jax.default_backend()}", text)


if __name__ == "__main__":
    app.run(main)
