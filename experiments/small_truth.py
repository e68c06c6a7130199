"""A first small truth: does each method train, and what does its curve look like beside dense training?

    python -m experiments.small_truth --folder=runs/truth            trains every arm that is not finished
    python -m experiments.small_truth --folder=runs/truth --clock    measures the arms' steps, and writes the page
    python -m experiments.small_truth --folder=runs/truth --page     writes it again

12 layers of width 128 and about 4 M tokens an arm, on a CPU. Prepares shards of the two corpora of
$BERT_FAST_DATA/corpus first. Stop it as you like: the same command goes on. `--clock` wants a machine
that does nothing else: it lets steps of every stage of every arm take turns with a dense step, so that
the arms' seconds compare although they were trained at different times. Writes experiments/small_truth.md and .png.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_fast import inference, methods
from bert_fast.data import shards
from bert_fast.data.masking import read_vocab
from bert_fast.data.unigram import unigram_loss
from bert_fast.planner.programs import most_frequent
from bert_fast.train import description, optim
from bert_fast.train.evaluate import eval_batches
from bert_fast.train.log import read_rows
from bert_fast.train.settings import Data, Evaluation, Optimizer
from bert_fast.train.sharding import make_mesh
from experiments.timing import alternate, spread, steady, stepper

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/bert.py:size=tiny,seq=128,objective=mlm,norm=pre"
COMMON = {
    "steps": 1000,
    "batch_size": 32,
    "log_every": 25,
    "model.depth": 12,
    "model.heads": 4,
    "model.head_size": 32,
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
    "model.init_std": 0.05,
    "optimizer.bias_correction": True,
    "learning_rate.peak": 2e-3,
    "learning_rate.warmup_steps": 100,
    "eval.every": 50,
    "eval.examples": 500,
    "eval.seq_len": 128,
    "checkpoint.every": 100,
    "checkpoint.keep": 1,
}
MSLT = {"stacking.variant": "mslt"}
# The first arm is what the others are compared with; the next two differ in the seed alone: in the order of the data,
# in the masks and in the initial weights.
ARMS = {
    "dense": {},
    "dense, seed 1": {"seed": 1},
    "dense, seed 2": {"seed": 2},
    "dense, post-LN": {"model.norm": "post", "learning_rate.peak": 5e-4},
    "layer dropping": {"methods": "layer_drop"},
    "token dropping": {"methods": "token_drop"},
    "EarlyBERT": {"methods": "early_bert"},
    "stacking": {"methods": "stacking"},
    "MSLT": {"methods": "stacking", **MSLT},
    "stacking + token dropping": {"methods": "stacking,token_drop"},
    "MSLT + token dropping": {"methods": "stacking,token_drop", **MSLT},
    "all four": {"methods": "stacking,early_bert,token_drop,layer_drop"},
}
PAPERS = {  # what the papers say is saved
    "layer dropping": "24 % of the time of a sample (arXiv 2010.13369)",
    "token dropping": "25 % (arXiv 2203.13240)",
    "EarlyBERT": "35-45 % of the time in all (arXiv 2101.00063)",
    "MSLT": "52 % of the time: 110 % faster (arXiv 2011.13635)",
}


def folder_of(root: pathlib.Path, arm: str) -> pathlib.Path:
    return root / arm.replace(",", "").replace(" + ", "+").replace(" ", "-")


def prepare(data: pathlib.Path):
    """The shards, unless they are there."""
    if (data / "manifest.json").exists():
        return
    if "BERT_FAST_DATA" not in os.environ:
        sys.exit("error: set BERT_FAST_DATA to the folder that holds corpus/*/*.txt.gz")
    source = f"--source=files:{os.environ['BERT_FAST_DATA']}/corpus/*/*.txt.gz"
    arguments = ["prepare", source, f"--out={data}", "--vocab_size=1024"]
    subprocess.run([sys.executable, "-m", "bert_fast", *arguments], check=True)


def train(root: pathlib.Path, data: pathlib.Path, only: str):
    """Every arm that is not finished, one after the other."""
    for arm, changes in ARMS.items():
        workdir = folder_of(root, arm)
        if (workdir / "summary.json").exists() or (only and arm not in only.split(";")):
            continue
        print(f"== {arm}", flush=True)
        flags = [f"--config.{key}={value}" for key, value in {**COMMON, **changes, "data.dir": data}.items()]
        command = [sys.executable, "-m", "bert_fast", "pretrain", f"--config={CONFIG}", f"--workdir={workdir}", *flags]
        if subprocess.run(command).returncode:
            sys.exit(f"error: {arm} did not finish; its folder is {workdir}")


def stages_of(workdir: pathlib.Path) -> list:
    """The stages as the run settled them."""
    return [description.stage_from_json(tree) for tree in json.loads((workdir / "stages.json").read_text())["stages"]]


def measure(root: pathlib.Path, arms: list[str], rounds: int) -> dict:
    """For each arm, the time of a step of each of its stages against a dense step; and the dense step's, in seconds."""
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    config = json.loads((folder_of(root, "dense") / "config.json").read_text())
    optimizer = optim.make(Optimizer(**config["optimizer"]))
    runs, parts = {}, {}
    jax.config.update("jax_compilation_cache_dir", str((root / "compiled").absolute()))  # arms share programs
    for arm in arms:
        print(f"compiling: {arm}", flush=True)
        config = json.loads((folder_of(root, arm) / "config.json").read_text())
        names = [name for name in config["methods"].split(",") if name]
        method = methods.make([(name, config[name]) for name in names])
        for index, stage in enumerate(stages_of(folder_of(root, arm))):
            steps = stepper(method, stage, index == 0, optimizer, mesh)
            for number, draw in enumerate(most_frequent(steady(method, stage, config["steps"]), 3)):
                name = f"{arm}/{index}/{number}"
                runs[name], parts[name] = steps.add(draw.program, draw.route), draw.share
    print(f"timing {len(runs)} programs, {rounds} rounds", flush=True)
    seconds = alternate(runs, rounds)
    dense = seconds["dense/0/0"]
    shares: dict[str, list[float]] = {}
    for name, part in parts.items():
        arm, index, _ = name.split("/")
        ratio = spread([a / b for a, b in zip(seconds[name], dense, strict=True)])[0]
        shares.setdefault(arm, []).extend([0.0] * (int(index) + 1 - len(shares.get(arm, []))))
        shares[arm][int(index)] += part * ratio
    return {"dense_seconds": spread(dense)[0], "shares": shares}


def curve(root: pathlib.Path, arm: str, clock: dict) -> list[dict]:
    """The held-out rows of an arm, with `clock_seconds`: its steps at the measured time of each."""
    workdir = folder_of(root, arm)
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "valid"]
    names = [stage.name for stage in stages_of(workdir)]
    seconds, last = 0.0, 0
    for row in read_rows(workdir / "metrics.jsonl"):
        share = clock["shares"][arm][names.index(row["stage"])]
        seconds, last = seconds + (row["step"] - last) * share * clock["dense_seconds"], row["step"]
        if row["split"] == "valid":
            next(valid for valid in rows if valid["step"] == row["step"])["clock_seconds"] = seconds
    return rows


def reaches(rows: list[dict], loss: float, key: str) -> float | None:
    """Where a curve first comes down to a loss, between two evaluations on a straight line."""
    for before, row in zip([None, *rows], rows, strict=False):
        if row["mlm_loss"] <= loss:
            if before is None:
                return row[key]
            part = (before["mlm_loss"] - loss) / (before["mlm_loss"] - row["mlm_loss"])
            return before[key] + part * (row[key] - before[key])
    return None


def at_flops(rows: list[dict], flops: float) -> float:
    """The loss of a curve at so many FLOPs, between two evaluations on a straight line."""
    return float(np.interp(flops, [row["flops"] for row in rows], [row["mlm_loss"] for row in rows]))


AXES = (("examples", "examples"), ("flops", "FLOPs"), ("clock_seconds", "seconds"))


def page(root: pathlib.Path, data: pathlib.Path, arms: list[str], clock: dict):
    """Writes the page and the picture."""
    curves = {arm: curve(root, arm, clock) for arm in arms}
    dense = curves["dense"][-1]
    seeds = [curves[arm][-1]["mlm_loss"] for arm in arms if arm in ("dense", "dense, seed 1", "dense, seed 2")]
    near = max(seeds) - min(seeds) + 0.02
    settings = Evaluation(0, COMMON["eval.examples"], COMMON["eval.seq_len"], 32, 0)
    held_out = eval_batches(Data(str(data), "mlm", 0.15, False, 0.1, 0), settings)
    size = shards.read_manifest(data)["vocab"]["size"]
    split, mask = shards.Split(data, "train"), read_vocab(data).mask
    hidden = [{**b, "weights": b["weights"] * (np.take_along_axis(b["ids"], b["slots"], 1) == mask)} for b in held_out]
    unigram, unigram_hidden = unigram_loss(split, size, held_out), unigram_loss(split, size, hidden)
    behind = {arm: inference.evaluate(str(folder_of(root, arm)), str(data))["mask_loss"] for arm in arms}

    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained", sharey=True)
    for axis, (key, label) in zip(axes, AXES, strict=True):
        for index, (arm, rows) in enumerate(curves.items()):
            style = {"color": "black", "alpha": 0.4 if "," in arm else 1} if arm.startswith("dense") else {}
            style["linestyle"] = ":" if arm == "dense, post-LN" else "-" if index < 10 else "--"
            axis.plot([row[key] for row in rows], [row["mlm_loss"] for row in rows], label=arm, **style)
        axis.axhline(dense["mlm_loss"], color="gray", linewidth=0.5)
        axis.set(xlabel=label)
    low = min(rows[-1]["mlm_loss"] for rows in curves.values())
    axes[0].set(ylabel="held-out MLM loss of the full model (nats)", ylim=(low - 0.05, low + 1.2))
    axes[0].legend(fontsize=8)
    figure.savefig(HERE / "small_truth.png", dpi=110)

    lines = []
    for arm, rows in curves.items():
        last = rows[-1]
        met = [reaches(rows, dense["mlm_loss"], key) for key, _ in AXES]
        where = [
            "-" if value is None else f"{value / dense[key]:.2f}" for value, (key, _) in zip(met, AXES, strict=True)
        ]
        saved_flops, saved = 1 - last["flops"] / dense["flops"], 1 - last["clock_seconds"] / dense["clock_seconds"]
        realised = f"{saved / saved_flops:.2f}" if saved_flops > 0.02 else ""
        lines.append(
            f"| {arm} | {last['mlm_loss']:.3f} | {last['mlm_loss'] - dense['mlm_loss']:+.3f} | "
            f"{last['mlm_loss'] - at_flops(curves['dense'], last['flops']):+.3f} | {behind[arm]:.3f} | "
            f"{last['examples']:,} | "
            f"{last['flops'] / dense['flops']:.2f} | {last['clock_seconds'] / dense['clock_seconds']:.2f} | {realised} | "
            f"{' / '.join(where)} | {PAPERS.get(arm, '')} |"
        )
    changes = " ".join(f"--config.{key}={value}" for key, value in COMMON.items())
    text = f"""# A first small truth

That each method trains, and how its held-out loss falls beside dense training's. 12 layers of width 128 and
{dense["tokens_real"] / 1e6:.1f} M tokens an arm (EarlyBERT: and the search before) are far too little for a ranking, and none is
claimed: a unigram model has {unigram:.3f} nats on the same masks, {unigram_hidden:.3f} on those of them that hide their word
("behind [MASK]": the others mostly still stand in the text).

`python -m experiments.small_truth --folder=runs/truth`, then with `--clock`; {platform.machine()}, 2 cores. Wikipedia of
2015 and public-domain books, a vocabulary of 1,024 word pieces of their own, every arm

    python -m bert_fast pretrain --config={CONFIG} {changes}

pre-LN but one, with the same seed but two, so with the same data, masks and initial weights. The loss is that of the full
model, nothing dropped, on the first {COMMON["eval.examples"]:,} rows of the valid split (fingerprint `{dense["fingerprint"]}`).
Seconds are steps at the time of each stage's step measured in turns with the dense step ({clock["rounds"]} rounds,
a dense step {clock["dense_seconds"]:.2f} s), because the arms were trained at different times beside other work.

| arm | loss | - dense | - dense at equal FLOPs | behind [MASK] | examples | FLOPs / dense | seconds / dense | realised | reaches dense's loss at examples / FLOPs / seconds of dense | the paper saves |
|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

Near dense is the largest difference among the three dense seeds + 0.02 nats: within {near:.3f} nats. At equal FLOPs dense
training is in the middle of its schedule, its learning rate still high: that flatters the others.

![held-out loss against examples, FLOPs and seconds](small_truth.png)
"""
    (HERE / "small_truth.md").write_text(text)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where shards and runs are kept")
    parser.add_argument("--arms", default="", help="train only these, separated by semicolons")
    parser.add_argument("--clock", action="store_true", help="measure the steps and write the page")
    parser.add_argument("--page", action="store_true", help="write the page from what --clock measured last")
    parser.add_argument("--rounds", type=int, default=7, help="of --clock")
    args = parser.parse_args()
    root, data = pathlib.Path(args.folder), pathlib.Path(args.folder) / "shards"
    prepare(data)
    if not args.clock and not args.page:
        return train(root, data, args.arms)
    arms = [arm for arm in ARMS if (folder_of(root, arm) / "summary.json").exists()]
    if args.clock:
        clock = measure(root, arms, args.rounds) | {"rounds": args.rounds}
        (root / "clock.json").write_text(json.dumps(clock))
    page(root, data, arms, json.loads((root / "clock.json").read_text()))


if __name__ == "__main__":
    main()
