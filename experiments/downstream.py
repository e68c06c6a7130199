"""Whether pre-training at the size of the study improves downstream scores: dense encoders against random weights.

    python -m experiments.downstream --runs=runs/study/tier2_larger/runs/seconds=400    trains, and keeps the scores
    python -m experiments.downstream --page                                             writes the page

Scores can compare methods only if pre-training improves them. Fine-tunes the study's dense encoders, and the same model
with random weights, on all of CoLA, MRPC and STS-B, on 8,000 fixed examples of SST-2, and on 2,000 fixed questions of
SQuAD v1.1. Ctrl-C saves, and the same command continues; scores that are kept are not made again. With two cores, start
two processes, each with one core (taskset) and with some of the --seeds. Reads $BERT_FAST_DATA/{glue,squad}; writes
experiments/records/downstream.json and experiments/downstream.md.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bert_fast import Interrupted
from bert_fast.configs import glue, squad
from bert_fast.data.files import atomic_json
from bert_fast.tasks import settings, sweep
from experiments import common

KEPT = common.HERE / "records/downstream.json"
FOLDER = common.HERE.parent / "runs/downstream"
SEEDS = (0, 1, 2)
ENCODERS = ("dense", "random weights")
RATES = ("0.0003", "0.001")  # higher than for BERT-base, because the model is small
SHARED = {"learning_rates": ",".join(RATES), "dropout": 0.0, "keep": "none", "predict_test": False}
# For each task: its name on the page, the folder of its data, its config, and changes to the config.
TASKS = {
    "cola": ("CoLA (Matthews)", "glue", glue, "task=cola", {}),
    "mrpc": ("MRPC (mean of F1 and accuracy)", "glue", glue, "task=mrpc", {}),
    "stsb": ("STS-B (mean of Pearson and Spearman)", "glue", glue, "task=stsb", {}),
    "sst2": ("SST-2 (accuracy)", "glue", glue, "task=sst2", {"data.train_examples": 8_000}),
    "squad1.1": (
        "SQuAD v1.1 (F1)",
        "squad",
        squad,
        "version=1.1,seq=128",
        {
            "epochs": 2.0,
            "data.train_examples": 2_000,
            "data.held_out_examples": 1_000,
            "data.stride": 64,
            "data.max_question": 32,
        },
    ),
}
DEVIATIONS = 3  # pre-training shows in a task if dense encoders are at least this many deviations above random weights

Scores = dict[str, dict[str, dict[str, dict[str, float]]]]  # by task, encoder, learning rate and seed


def config_of(task: str, encoder: str, seed: int, data: pathlib.Path) -> dict[str, Any]:
    _, folder, config, arguments, changes = TASKS[task]
    made = config.get_config(arguments)
    random = encoder == "random weights"
    made.update_from_flattened_dict(
        {**SHARED, **changes, "seeds": str(seed), "random_weights": random, "data.dir": str(data / folder)}
    )
    return made.to_dict()


def folder_of(task: str, encoder: str, seed: int) -> pathlib.Path:
    return FOLDER / encoder.replace(" ", "-") / f"seed={seed}" / task


def train(runs: pathlib.Path, seeds: Sequence[int], data: pathlib.Path):
    """Fine-tunes what is left. Each encoder is fine-tuned with the seed that it was trained with."""
    jax.config.update("jax_compilation_cache_dir", str(FOLDER / "compiled"))  # the encoders share compiled programs
    for seed in seeds:
        for task in TASKS:
            for encoder in ENCODERS:
                if finished(kept(), task, encoder, seed):
                    continue
                config = config_of(task, encoder, seed, data)
                start = str(runs / "dense" / f"seed={seed}")
                sweep.finetune(settings.make(config), config, folder_of(task, encoder, seed), start)
                atomic_json(KEPT, kept())


def finished(scores: Scores, task: str, encoder: str, seed: int) -> bool:
    return all(str(seed) in scores.get(task, {}).get(encoder, {}).get(rate, {}) for rate in RATES)


def kept() -> Scores:
    """The scores at the end of training: those in KEPT, which may be from another machine, and those of FOLDER."""
    found: Scores = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for task in TASKS:
        for encoder in ENCODERS:
            for seed in SEEDS:
                path = folder_of(task, encoder, seed) / "results.json"
                runs = next(iter(json.loads(path.read_text())["tasks"].values()))["runs"] if path.exists() else []
                for run in runs:
                    of_encoder = found.setdefault(task, {}).setdefault(encoder, {})
                    of_encoder.setdefault(str(run["learning_rate"]), {})[str(seed)] = run["last"]["score"]
    return found


def best(scores: Mapping[str, Mapping[str, float]]) -> tuple[str, list[float]]:
    """The learning rate with the highest mean score, and its scores by seed."""
    rate = max(scores, key=lambda rate: statistics.fmean(scores[rate].values()))
    return rate, [scores[rate][seed] for seed in sorted(scores[rate])]


def distance(dense: Sequence[float], random: Sequence[float]) -> float:
    """The difference of the mean scores, in standard deviations of the difference between two single runs."""
    deviation = (statistics.variance(dense) + statistics.variance(random)) ** 0.5
    difference = statistics.fmean(dense) - statistics.fmean(random)
    return difference / deviation if deviation else float("inf") * difference if difference else 0.0


def page(scores: Scores) -> str:
    """The page. Raises ValueError if a run is missing."""
    lines, shown = [], []
    for task, (title, *_) in TASKS.items():
        for encoder in ENCODERS:
            if left := [str(seed) for seed in SEEDS if not finished(scores, task, encoder, seed)]:
                raise ValueError(f"{task}, {encoder}: not finished for seed {', '.join(left)}")
        (rate, dense), (other, random) = (best(scores[task][encoder]) for encoder in ENCODERS)
        if (deviations := distance(dense, random)) >= DEVIATIONS:
            shown.append(title)
        cells = [title, common.with_deviation(dense, ".1f"), rate, common.with_deviation(random, ".1f"), other]
        lines.append("| " + " | ".join([*cells, f"{deviations:+.1f}"]) + " |")
    verdict = (
        f"By this rule, pre-training shows in {', '.join(shown)}."
        if shown
        else "By this rule, pre-training shows in no task, so the study does not compare the methods' scores."
    )
    return f"""# Does pre-training at the size of the study show in downstream scores?

`python -m experiments.downstream --runs=runs/study/tier2_larger/runs/seconds=400`, then with `--page`.

Dense encoders of the [study](README.md#the-study) at its largest budget (`tier2_larger`), and the same model with random weights, are fine-tuned as in
`configs/glue.py` and `configs/squad.py`, without dropout, with the learning rate ({" or ".join(RATES)}) that has the higher mean score, chosen
for each encoder and task. Scores are percentages on the held-out sets at the end of training: mean ± deviation over {len(SEEDS)} seeds. *Distance*: the
difference of the means, in standard deviations of the difference between two single runs. Pre-training shows in a task if the distance is at
least {DEVIATIONS}.

| task | dense | rate | random weights | rate | distance |
|---|---|---|---|---|---|
{chr(10).join(lines)}

{verdict}
"""


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--runs", type=pathlib.Path, help="the folder of the study's runs at its largest budget")
    parser.add_argument("--seeds", default="0,1,2", help="the seeds to fine-tune")
    parser.add_argument("--page", action="store_true", help="write the page from the kept scores")
    args = parser.parse_args()
    if args.page:
        try:
            common.write_page("downstream", page(json.loads(KEPT.read_text()) if KEPT.exists() else {}))
        except ValueError as error:
            sys.exit(f"error: {error}: train first")
    elif args.runs is None:
        parser.error("give --runs, the folder of the study's runs, or --page")
    else:
        seeds = [int(seed) for seed in common.chosen(args.seeds, ",", [str(seed) for seed in SEEDS], "seed")]
        try:
            train(args.runs, seeds, common.data_root("glue/ and squad/"))
        except Interrupted as stopped:
            sys.exit(f"{stopped}. The same command continues")


if __name__ == "__main__":
    main()
