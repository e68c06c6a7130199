"""What pre-training gave, and what each method kept of it: the checkpoints of small_truth.py on GLUE and SQuAD.

    python -m experiments.downstream --truth=runs/truth --folder=runs/downstream           runs what is not finished
    python -m experiments.downstream --truth=runs/truth --folder=runs/downstream --page    writes the page

CoLA, MRPC and STS-B in full, SST-2 on a fixed 8,000 of its rows, SQuAD v1.1 on a fixed 2,000 questions (and 1,000 held
out) at 256 tokens; and the same model with random weights. First every arm with seed 0, then with the next: stopped
after --hours, or by you, the table is a fair one of fewer seeds, and the same command goes on. On a CPU two processes
with half of the --arms each, pinned to a core (taskset), are faster than one. Reads
$BERT_FAST_DATA/{glue,squad}; writes experiments/downstream.md.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import sys

import jax

from bert_fast.tasks import settings, sweep
from bert_fast.train.counters import TIMES
from configs import glue, squad
from experiments.small_truth import ARMS, folder_of

HERE = pathlib.Path(__file__).parent
RANDOM = "random weights"
ARM_NAMES = ("dense", "layer dropping", "token dropping", "EarlyBERT", "stacking", "MSLT", "stacking + token dropping")
# Config, seeds and what differs from it; one learning rate for all arms, higher than BERT-base's as the model is small.
GLUE = {"predict_test": False, "learning_rates": "3e-4", "dropout": 0.0, "keep": "none"}
TASKS = {
    "cola": (glue.get_config("task=cola"), 3, GLUE),
    "mrpc": (glue.get_config("task=mrpc"), 3, GLUE),
    "stsb": (glue.get_config("task=stsb"), 3, GLUE),
    "sst2": (glue.get_config("task=sst2"), 3, GLUE | {"data.train_examples": 8_000}),
    "squad1.1": (
        squad.get_config("version=1.1"),
        1,
        GLUE | {"data.seq_len": 256, "epochs": 2.0, "data.train_examples": 2_000, "data.held_out_examples": 1_000},
    ),
}
KEYS = {"cola": "matthews", "mrpc": "score", "stsb": "score", "sst2": "accuracy", "squad1.1": "f1"}


def config_of(task: str, arm: str, seed: int, data: pathlib.Path) -> dict:
    made, _, changes = TASKS[task]
    made = made.copy_and_resolve_references()
    where = data / ("squad" if task.startswith("squad") else "glue")
    made.update_from_flattened_dict(changes | {"data.dir": str(where), "seeds": str(seed)})
    made.random_weights = arm == RANDOM
    return made.to_dict()


def arms_of(truth: pathlib.Path, wanted: str) -> list[str]:
    names = wanted.split(";") if wanted else [*ARM_NAMES, RANDOM]
    if unknown := [name for name in names if name not in (*ARMS, RANDOM)]:
        sys.exit(f"error: no arm {unknown[0]!r}: there are {', '.join((*ARMS, RANDOM))}")
    there = [name for name in names if name == RANDOM or (folder_of(truth, name) / "summary.json").exists()]
    for name in set(names) - set(there):
        print(f"no finished run of {name!r} in {truth}: left out", flush=True)
    return there


def train(
    truth: pathlib.Path, folder: pathlib.Path, arms: list[str], tasks: list[str], data: pathlib.Path, hours: float
):
    """Every run that is not finished, until the time is up."""
    # Arms of one shape share what is compiled, across calls.
    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    for seed in range(max(TASKS[task][1] for task in tasks)):
        for task in (task for task in tasks if seed < TASKS[task][1]):
            for arm in arms:
                if spent(folder) > hours * 3600:
                    return print(
                        f"{hours} hours are up before {task} of {arm}, seed {seed}: --hours goes on", flush=True
                    )
                config = config_of(task, arm, seed, data)
                checkpoint = folder_of(truth, "dense" if arm == RANDOM else arm)
                sweep.finetune(settings.make(config), config, folder_of(folder, arm) / task, str(checkpoint))
    return print("all runs are finished", flush=True)


def spent(folder: pathlib.Path) -> float:
    """Seconds of all finished runs, of several processes together."""
    runs = [
        run
        for path in folder.glob("*/*/results.json")
        for task in json.loads(path.read_text())["tasks"].values()
        for run in task["runs"]
    ]
    return sum(run[key] for run in runs for key in TIMES)


def last_of(folder: pathlib.Path, arm: str, task: str) -> dict[int, dict[str, float]]:
    """What each finished seed of a task came to at the end of training."""
    path = folder_of(folder, arm) / task / "results.json"
    if not path.exists():
        return {}
    (found,) = json.loads(path.read_text())["tasks"].values()
    return {run["seed"]: run["last"] for run in found["runs"]}


def shown(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def page(truth: pathlib.Path, folder: pathlib.Path, arms: list[str]):
    found = {(arm, task): last_of(folder, arm, task) for arm in arms for task in TASKS}
    # Only seeds that every arm has, or an arm would be compared by other draws than the next.
    seeds = {task: sorted(set.intersection(*(set(found[arm, task]) for arm in arms))) for task in TASKS}
    glue_tasks = [task for task in TASKS if seeds[task] and not task.startswith("squad")]
    in_all = sorted(set.intersection(*(set(seeds[task]) for task in glue_tasks))) if glue_tasks else []
    lines, dense = [], None
    for arm in arms:
        cells = []
        for task in TASKS:
            values = [found[arm, task][seed] for seed in seeds[task]]
            cells.append(shown([value[KEYS[task]] for value in values]) if values else "-")
            if values and task.startswith("squad"):
                cells[-1] += " / " + shown([value["exact_match"] for value in values])
        means = [statistics.fmean(found[arm, task][seed][KEYS[task]] for task in glue_tasks) for seed in in_all]
        mean = statistics.fmean(means) if means else math.nan
        dense = mean if arm == "dense" else dense
        less = "" if dense is None else f"{mean - dense:+.1f}"
        loss = ""
        if arm != RANDOM:
            summary = json.loads((folder_of(truth, arm) / "summary.json").read_text())
            loss = f"{summary['valid']['mlm_loss']:.3f}"
        lines.append(f"| {arm} | {loss} | {' | '.join(cells)} | {shown(means) if means else '-'} | {less} |")
    finished = ", ".join(f"{task} {' '.join(map(str, seeds[task])) or 'none'}" for task in TASKS)
    text = f"""# Downstream: what pre-training gave, and what each method kept

`python -m experiments.downstream --truth=runs/truth --folder=runs/downstream`, then with `--page`; {platform.machine()},
processes of one core each, {spent(folder) / 3600:.1f} core-hours in steps, compiling and evaluation. The checkpoints of `small_truth.py` (12 layers of width 128, about 4 M tokens: far
from what BERT saw) and their model with random weights, fine-tuned as in `configs/glue.py` and `configs/squad.py`, but
at a learning rate of {GLUE["learning_rates"]} and without dropout for all; the rate was not chosen per arm. In percent, on the held-out
sets at the end of training: mean ± sample deviation over the seeds that every arm has finished: {finished}.
SST-2: a fixed 8,000 training rows. SQuAD: a fixed 2,000 training and 1,000 held-out questions, 256 tokens.

| encoder | held-out MLM loss | CoLA (Matthews) | MRPC (F1, accuracy) | STS-B (Pearson, Spearman) | SST-2 (accuracy) | SQuAD (F1 / EM) | mean of GLUE | - dense |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

MRPC's majority class scores 74.8, CoLA's 0. Differences within the deviations are none, and one seed tells no small difference.
"""
    (HERE / "downstream.md").write_text(text)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", required=True, help="the folder of small_truth.py")
    parser.add_argument("--folder", required=True, help="where results are kept")
    parser.add_argument("--arms", default="", help="only these, separated by semicolons")
    parser.add_argument("--tasks", default=",".join(TASKS), help="only these, separated by commas")
    parser.add_argument(
        "--hours", type=float, default=4.0, help="of steps, compiling and evaluation in all, over every call"
    )
    parser.add_argument("--page", action="store_true", help="write the page")
    args = parser.parse_args()
    truth, folder = pathlib.Path(args.truth), pathlib.Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    arms = arms_of(truth, args.arms)
    if args.page:
        return page(truth, folder, arms)
    if "BERT_FAST_DATA" not in os.environ:
        sys.exit("error: set BERT_FAST_DATA to the folder that holds glue/ and squad/")
    data = pathlib.Path(os.environ["BERT_FAST_DATA"])
    return train(truth, folder, arms, tasks_of(args.tasks), data, args.hours)


def tasks_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        sys.exit(f"error: no task {unknown[0]!r}: there are {', '.join(TASKS)}")
    return names


if __name__ == "__main__":
    main()
