"""How much pre-training improves GLUE and SQuAD scores, and how much of that each method keeps.

    python -m experiments.downstream --truth=runs/truth --folder=runs/downstream           trains what is unfinished
    python -m experiments.downstream --truth=runs/truth --folder=runs/downstream --page    writes the page

Fine-tunes the checkpoints of small_truth.py, and the same model with random weights. Trains on all of CoLA, MRPC and
STS-B, on 8,000 fixed examples of SST-2, and on 2,000 fixed questions of SQuAD v1.1 at 256 tokens, with 1,000 held out.
Every arm runs with seed 0 before any arm runs with seed 1, so the table is fair whenever you stop or --hours is spent.
To resume, repeat the command. On a CPU, two processes are faster than one: give each process half of the --arms and one
core (taskset). Reads $BERT_FAST_DATA/{glue,squad}; writes experiments/downstream.md.
"""

import json
import math
import pathlib
import platform
import statistics

import jax

from bert_fast.configs import glue, squad
from bert_fast.tasks import settings, sweep
from bert_fast.train.counters import TIMES
from experiments import common
from experiments.small_truth import ARMS, folder_of

RANDOM = "random weights"
ARM_NAMES = ("dense", "layer dropping", "token dropping", "EarlyBERT", "stacking", "MSLT", "stacking + token dropping")
# For each task: config, number of seeds, and changes to the config. All arms share one learning rate. It is higher than
# BERT-base's because the model is small.
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
    """The wanted arms with a finished pre-training run in `truth`, and the random weights if they are wanted."""
    names = common.chosen(wanted, ";", (*ARMS, RANDOM), "arm") if wanted else [*ARM_NAMES, RANDOM]
    there = [name for name in names if name == RANDOM or (folder_of(truth, name) / "summary.json").exists()]
    for name in set(names) - set(there):
        print(f"leaving out arm {name!r}: it has no finished run in {truth}", flush=True)
    return there


def train(
    truth: pathlib.Path, folder: pathlib.Path, arms: list[str], tasks: list[str], data: pathlib.Path, hours: float
):
    """Trains the unfinished runs until the time is up."""
    # Arms whose models have the same shape share compiled programs, also between calls.
    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    for seed in range(max(TASKS[task][1] for task in tasks)):
        for task in (task for task in tasks if seed < TASKS[task][1]):
            for arm in arms:
                if spent(folder) > hours * 3600:
                    return print(
                        f"stopped after {hours} hours, before {task}, {arm}, seed {seed}: raise --hours to continue",
                        flush=True,
                    )
                config = config_of(task, arm, seed, data)
                checkpoint = folder_of(truth, "dense" if arm == RANDOM else arm)
                sweep.finetune(settings.make(config), config, folder_of(folder, arm) / task, str(checkpoint))
    return print("all runs have finished", flush=True)


def spent(folder: pathlib.Path) -> float:
    """Total seconds of all finished runs in the folder, from all processes."""
    runs = [
        run
        for path in folder.glob("*/*/results.json")
        for task in json.loads(path.read_text())["tasks"].values()
        for run in task["runs"]
    ]
    return sum(run[key] for run in runs for key in TIMES)


def last_of(folder: pathlib.Path, arm: str, task: str) -> dict[int, dict[str, float]]:
    """Metrics at the end of training of each finished run of a task, by seed."""
    path = folder_of(folder, arm) / task / "results.json"
    if not path.exists():
        return {}
    (found,) = json.loads(path.read_text())["tasks"].values()
    return {run["seed"]: run["last"] for run in found["runs"]}


def page(truth: pathlib.Path, folder: pathlib.Path, arms: list[str]):
    found = {(arm, task): last_of(folder, arm, task) for arm in arms for task in TASKS}
    # Use only seeds that every arm has finished: otherwise the arms would be compared on different seeds.
    seeds = {task: sorted(set.intersection(*(set(found[arm, task]) for arm in arms))) for task in TASKS}
    glue_tasks = [task for task in TASKS if seeds[task] and not task.startswith("squad")]
    in_all = sorted(set.intersection(*(set(seeds[task]) for task in glue_tasks))) if glue_tasks else []
    lines, dense = [], None
    for arm in arms:
        cells = []
        for task in TASKS:
            values = [found[arm, task][seed] for seed in seeds[task]]
            cells.append(common.with_deviation([value[KEYS[task]] for value in values], ".1f") if values else "-")
            if values and task.startswith("squad"):
                cells[-1] += " / " + common.with_deviation([value["exact_match"] for value in values], ".1f")
        means = [statistics.fmean(found[arm, task][seed][KEYS[task]] for task in glue_tasks) for seed in in_all]
        mean = statistics.fmean(means) if means else math.nan
        dense = mean if arm == "dense" else dense
        less = "" if dense is None else f"{mean - dense:+.1f}"
        loss = ""
        if arm != RANDOM:
            summary = json.loads((folder_of(truth, arm) / "summary.json").read_text())
            loss = f"{summary['valid']['mlm_loss']:.3f}"
        of_glue = common.with_deviation(means, ".1f") if means else "-"
        lines.append(f"| {arm} | {loss} | {' | '.join(cells)} | {of_glue} | {less} |")
    finished = ", ".join(f"{task} {' '.join(map(str, seeds[task])) or 'none'}" for task in TASKS)
    text = f"""# Downstream: how much pre-training improves scores, and how much of that each method keeps

`python -m experiments.downstream --truth=runs/truth --folder=runs/downstream`, then with `--page`; {platform.machine()},
processes of one core each, {spent(folder) / 3600:.1f} core-hours in steps, compiling, evaluation and saving.

The checkpoints of `small_truth.py` (12 layers of width 128, about 4 M tokens, far fewer than BERT saw) and the same model
with random weights are fine-tuned as in `configs/glue.py` and `configs/squad.py`, but at a learning rate of {GLUE["learning_rates"]} and
without dropout. The rate was not tuned for any arm. Scores are percentages on the held-out sets at the end of training: mean ±
sample deviation over the seeds that every arm has finished ({finished}).
SST-2 has 8,000 fixed training examples. SQuAD has 2,000 fixed training questions and 1,000 held-out ones, at 256 tokens.

| encoder | held-out MLM loss | CoLA (Matthews) | MRPC (F1, accuracy) | STS-B (Pearson, Spearman) | SST-2 (accuracy) | SQuAD (F1 / EM) | mean of GLUE | minus dense |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

Always predicting the majority class scores 74.8 on MRPC and 0 on CoLA. Differences within the deviations are not significant, and a single seed cannot
show a small difference.
"""
    common.write_page("downstream", text)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--truth", required=True, help="the --folder of small_truth.py")
    parser.add_argument("--folder", required=True, help="where results are kept")
    parser.add_argument("--arms", default="", help="only these arms, separated by semicolons")
    parser.add_argument("--tasks", default=",".join(TASKS), help="only these tasks, separated by commas")
    parser.add_argument(
        "--hours",
        type=float,
        default=4.0,
        help="limit on the hours of steps, compiling, evaluation and saving, over all calls",
    )
    parser.add_argument("--page", action="store_true", help="write the page instead of training")
    args = parser.parse_args()
    truth, folder = pathlib.Path(args.truth), pathlib.Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    arms = arms_of(truth, args.arms)
    if args.page:
        return page(truth, folder, arms)
    data = common.data_root("glue/ and squad/")
    return train(truth, folder, arms, common.chosen(args.tasks, ",", TASKS, "task"), data, args.hours)


if __name__ == "__main__":
    main()
