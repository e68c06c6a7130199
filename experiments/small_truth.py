"""A small-scale test: does each method train, and how does its loss curve compare with dense training's?

    python -m experiments.small_truth --folder=runs/truth            trains the unfinished arms
    python -m experiments.small_truth --folder=runs/truth --clock    times the arms' steps and writes the page
    python -m experiments.small_truth --folder=runs/truth --page     writes the page again

Each arm has 12 layers of width 128 and trains on about 4 M tokens, on a CPU. The script first prepares shards of the
two corpora in $BERT_FAST_DATA/corpus. You can stop the script at any time. To resume, run its command again. `--clock`
needs an idle machine. It times a step of every stage of every arm, in turns with a dense step. So the step times can be
compared, although the arms were not trained at the same time. The page is experiments/small_truth.md, and its plot is
experiments/small_truth.png.
"""

import json
import pathlib
import platform
import statistics
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
from bert_fast.planner.timing import alternate, stepper
from bert_fast.train import description, optim
from bert_fast.train.evaluate import eval_batches
from bert_fast.train.log import read_rows
from bert_fast.train.settings import Data, Evaluation, Optimizer
from experiments import common
from experiments.timing import one_device, steady

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
# All arms are compared with the first. The next two differ from it only in the seed, and so in the order of the data,
# the masks and the initial weights.
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
PAPERS = {  # savings that the papers report
    "layer dropping": "24 % of the time per sample (arXiv 2010.13369)",
    "token dropping": "25 % (arXiv 2203.13240)",
    "EarlyBERT": "35-45 % of the whole time (arXiv 2101.00063)",
    "MSLT": "52 % of the time: 110 % faster (arXiv 2011.13635)",
}


def folder_of(root: pathlib.Path, arm: str) -> pathlib.Path:
    return root / arm.replace(",", "").replace(" + ", "+").replace(" ", "-")


def prepare(data: pathlib.Path):
    """Prepares the shards if they do not exist yet."""
    if (data / "manifest.json").exists():
        return
    source = f"--source=files:{common.data_root('corpus/*/*.txt.gz')}/corpus/*/*.txt.gz"
    arguments = ["prepare", source, f"--out={data}", "--vocab_size=1024"]
    subprocess.run([sys.executable, "-m", "bert_fast", *arguments], check=True)


def train(root: pathlib.Path, data: pathlib.Path, only: str):
    """Trains the unfinished arms one after the other."""
    for arm, changes in ARMS.items():
        workdir = folder_of(root, arm)
        if (workdir / "summary.json").exists() or (only and arm not in only.split(";")):
            continue
        print(f"== {arm}", flush=True)
        flags = [f"--config.{key}={value}" for key, value in {**COMMON, **changes, "data.dir": data}.items()]
        command = [sys.executable, "-m", "bert_fast", "pretrain", f"--config={CONFIG}", f"--workdir={workdir}", *flags]
        if subprocess.run(command).returncode:
            sys.exit(f"error: arm {arm!r} failed; its run folder is {workdir}")


def stages_of(workdir: pathlib.Path) -> list:
    """A run's stages, as recorded in its folder."""
    return [description.stage_from_json(tree) for tree in json.loads((workdir / "stages.json").read_text())["stages"]]


def measure(root: pathlib.Path, arms: list[str], rounds: int) -> dict:
    """The step time of each stage of each arm, relative to a dense step, and the seconds of a dense step."""
    mesh = one_device()
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
        ratio = statistics.median(common.ratios(seconds[name], dense))
        shares.setdefault(arm, []).extend([0.0] * (int(index) + 1 - len(shares.get(arm, []))))
        shares[arm][int(index)] += part * ratio
    return {"dense_seconds": statistics.median(dense), "shares": shares}


def curve(root: pathlib.Path, arm: str, clock: dict) -> list[dict]:
    """The held-out rows of an arm. Adds `clock_seconds`, the time of all steps so far by the step times of --clock."""
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
    """The value of `key` where a curve first reaches a loss, interpolated linearly; None if it never does."""
    for before, row in zip([None, *rows], rows, strict=False):
        if row["mlm_loss"] <= loss:
            if before is None:
                return row[key]
            part = (before["mlm_loss"] - loss) / (before["mlm_loss"] - row["mlm_loss"])
            return before[key] + part * (row[key] - before[key])
    return None


def at_flops(rows: list[dict], flops: float) -> float:
    """The loss of a curve at a number of FLOPs, interpolated linearly between evaluations."""
    return float(np.interp(flops, [row["flops"] for row in rows], [row["mlm_loss"] for row in rows]))


AXES = (("examples", "examples"), ("flops", "FLOPs"), ("clock_seconds", "seconds"))


def page(root: pathlib.Path, data: pathlib.Path, arms: list[str], clock: dict):
    """Writes the page and the plot."""
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
    figure.savefig(common.HERE / "small_truth.png", dpi=110)

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
    text = f"""# A small-scale test of every method

Does each method train, and how does its held-out loss compare with dense training's? The model has 12 layers of width 128, and
each arm trains on {dense["tokens_real"] / 1e6:.1f} M tokens (EarlyBERT: plus its search). This is far too little for a ranking, and none is claimed.
For scale: a unigram model reaches {unigram:.3f} nats on the same masks. It reaches {unigram_hidden:.3f} if only words hidden by [MASK] count, as in the
column "loss on words hidden by [MASK]". Half of the other predicted words are still visible in the text.

`python -m experiments.small_truth --folder=runs/truth`, then with `--clock`; {platform.machine()}, 2 cores. The text is Wikipedia
of 2015 and public-domain books, with a vocabulary of 1,024 word pieces trained on it. Every arm runs this command with the flags of its method:

    python -m bert_fast pretrain --config={CONFIG} {changes}

All arms but one are pre-LN. All but two share a seed, and therefore data, masks and initial weights.
*loss* is the loss of the full model, with nothing dropped, on the first {COMMON["eval.examples"]:,} examples of the valid split (fingerprint
`{dense["fingerprint"]}`). The arms were trained at different times, alongside other work. So *seconds* are the sum of step times that were
measured later, stage by stage, in turns with a dense step ({clock["rounds"]} rounds; a dense step takes {clock["dense_seconds"]:.2f} s).
*realised* is the share of seconds saved / the share of FLOPs saved.

| arm | loss | minus dense | minus dense at equal FLOPs | loss on words hidden by [MASK] | examples | FLOPs / dense | seconds / dense | realised | reaches dense training's final loss at this share of dense training's examples / FLOPs / seconds | saving in the paper |
|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

An arm counts as near dense training if its loss is at most {near:.3f} nats higher: the largest difference among the three dense seeds,
plus 0.02 nats. "At equal FLOPs" flatters the methods: at that point dense training is in the middle of its schedule, at a high learning
rate.

![held-out loss against examples, FLOPs and seconds](small_truth.png)
"""
    common.write_page("small_truth", text)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", required=True, help="the folder for shards and runs")
    parser.add_argument("--arms", default="", help="train only these arms, separated by semicolons")
    parser.add_argument("--clock", action="store_true", help="time the steps, then write the page")
    parser.add_argument("--page", action="store_true", help="write the page from the last --clock measurement")
    parser.add_argument("--rounds", type=int, default=7, help="timing rounds of --clock")
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
