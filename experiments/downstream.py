"""Whether pre-training at the size of the study improves downstream scores: dense encoders against random weights.

    python -m experiments.downstream --runs=runs/study/tier2_rivals/runs/seconds=200    trains, and keeps the scores
    python -m experiments.downstream --page                                             writes the page

Only if pre-training shows can scores tell methods apart. Fine-tunes the study's dense encoders, and the same model with
random weights, on all of CoLA, MRPC and STS-B, on 8,000 fixed examples of SST-2 and on 2,000 fixed questions of SQuAD
v1.1. Ctrl-C saves, and the same command continues. On two cores, give each of two processes a core (taskset) and some of
the --seeds. Reads $BERT_FAST_DATA/{glue,squad}; writes experiments/records/downstream.json and experiments/downstream.md.
"""

import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bert_fast.data.files import atomic_json
from experiments import common

KEPT = common.HERE / "records/downstream.json"
FOLDER = common.HERE.parent / "runs/downstream"
SEEDS = (0, 1, 2)
ENCODERS = {"dense": False, "random weights": True}
RATES = "3e-4,1e-3"  # higher than for BERT-base, because the model is small
SHARED = {"learning_rates": RATES, "dropout": 0.0, "keep": "none"}
GLUE = {**SHARED, "predict_test": False, "data.train_examples": 8_000}
SQUAD = {
    **SHARED,
    "epochs": 2.0,
    "data.train_examples": 2_000,
    "data.held_out_examples": 1_000,
    "data.stride": 64,
    "data.max_question": 32,
}
CALLS = {"glue": ("glue:task=all", GLUE), "squad": ("squad:version=1.1,seq=128", SQUAD)}
TASKS = {
    "cola": "CoLA (Matthews)",
    "mrpc": "MRPC (F1, accuracy)",
    "stsb": "STS-B (Pearson, Spearman)",
    "sst2": "SST-2 (accuracy)",
    "squad1.1": "SQuAD (F1, EM)",
}
DEVIATIONS = 3  # the dense encoders must be this many deviations above random weights


def train(runs: pathlib.Path, seeds: Sequence[int]):
    """Fine-tunes what is left. Each encoder is fine-tuned with the seed that it was trained with."""
    for seed in seeds:
        for encoder, random in ENCODERS.items():
            for name, (config, changes) in CALLS.items():
                changes = {**changes, "seeds": seed, "random_weights": random}
                changes["data.dir"] = common.data_root("glue/ and squad/") / name
                flags = [f"--config.{key}={value}" for key, value in changes.items()]
                flags += [
                    f"--checkpoint={runs / 'dense' / f'seed={seed}'}",
                    f"--workdir={folder_of(encoder, seed, name)}",
                ]
                command = [sys.executable, "-m", "bert_fast", "finetune", f"--config={config}", *flags]
                if code := subprocess.run(command, check=False).returncode:
                    sys.exit(code)
                keep()


def folder_of(encoder: str, seed: int, call: str) -> pathlib.Path:
    return FOLDER / encoder.replace(" ", "-") / f"seed={seed}" / call


def keep():
    """Adds the scores of all finished runs to the records."""
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for encoder in ENCODERS:
        for seed in SEEDS:
            for call in CALLS:
                path = folder_of(encoder, seed, call) / "results.json"
                if path.exists():
                    for task, about in json.loads(path.read_text())["tasks"].items():
                        for run in about["runs"]:
                            scores = found.setdefault(task, {}).setdefault(encoder, {})
                            scores.setdefault(f"{run['learning_rate']:g}", {})[str(seed)] = run["last"]["score"]
    atomic_json(KEPT, found)


def best(scores: dict[str, dict[str, float]]) -> tuple[str, list[float]]:
    """The rate with the highest mean score, and its scores by seed."""
    rate = max(scores, key=lambda rate: statistics.fmean(scores[rate].values()))
    return rate, [scores[rate][seed] for seed in sorted(scores[rate])]


def above(dense: Sequence[float], random: Sequence[float]) -> float:
    """How many deviations the dense encoders are above random weights. The deviation is that of the difference of two
    scores, from the deviations of both over seeds.
    """
    deviation = (statistics.variance(dense) + statistics.variance(random)) ** 0.5
    difference = statistics.fmean(dense) - statistics.fmean(random)
    return difference / deviation if deviation else 0.0  # without a deviation, all scores are 0


def page(kept: dict[str, Any]) -> str:
    lines, shown = [], []
    for task, title in TASKS.items():
        (rate, dense), (other, random) = (best(kept[task][encoder]) for encoder in ENCODERS)
        distance = above(dense, random)
        if distance >= DEVIATIONS:
            shown.append(title)
        cells = [title, common.with_deviation(dense, ".1f"), rate, common.with_deviation(random, ".1f"), other]
        lines.append("| " + " | ".join([*cells, f"{distance:+.1f}"]) + " |")
    verdict = (
        f"Pre-training shows in {', '.join(shown)}." if shown else
        "Pre-training shows in no task, so scores cannot tell the methods apart at this size, and the study leaves them out."
    )  # fmt: skip
    return f"""# Does pre-training at the size of the study show in downstream scores?

`python -m experiments.downstream --runs=runs/study/tier2_rivals/runs/seconds=200`, then with `--page`.

Dense encoders of the [study](../README.md) at its largest budget, and the same model with random weights, are fine-tuned as in
`configs/glue.py` and `configs/squad.py`, without dropout, at the better of the rates {RATES.replace(",", " and ")} (the mean score decides, for each
encoder and task). Scores are percentages on the held-out sets at the end of training: mean ± deviation over {len(SEEDS)} seeds. *Distance*:
the difference of the means, in deviations of a difference between two runs. Pre-training shows in a task if it is at least {DEVIATIONS}.

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
        common.write_page("downstream", page(json.loads(KEPT.read_text())))
    elif args.runs is None:
        parser.error("give --runs, the folder of the study's runs, or --page")
    else:
        train(args.runs, [int(seed) for seed in common.chosen(args.seeds, ",", map(str, SEEDS), "seed")])


if __name__ == "__main__":
    main()
