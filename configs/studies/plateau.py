"""How soon does a small model do better than word frequencies? It has two layers and 2 M tokens of documentation.

    bert-fast compare plateau --out=runs/plateau

`python -m experiments.plateau --folder=runs/plateau` writes experiments/plateau.md.
"""

from bert_fast.compare.study import Study

MUON = {"optimizer.name": "muon"}
GROWING = {"phases": "8@256:0.4,64@32:0.6"}
FASTER = {**MUON, **GROWING, "learning_rate.peak": 6e-3}
BEST = {**FASTER, "model.init_std": 0.05}


def get_study() -> Study:
    return Study(
        config="quickstart",
        changes={
            "optimizer.name": "adamw",
            "phases": "64:1",
            "model.init_std": 0.02,
            "model.residual_init_std": 0.02,
            "learning_rate.peak": 3e-3,
            "learning_rate.warmup_steps": 100,
            "eval.every": 25,
            "eval.examples": 500,
            "log_every": 25,
            "checkpoint.every": 0,
        },
        arms={
            "AdamW, rows of 64": {},
            "Muon, rows of 64": MUON,
            "AdamW, rows of 8, then 64": GROWING,
            "Muon, rows of 16, then 64": {**MUON, "phases": "16@128:0.5,64@32:0.5"},
            "Muon, rows of 8, then 64": {**MUON, **GROWING},
            "and at twice the rate": FASTER,
            "and larger initial weights": BEST,
            "and random positions": {**BEST, "data.random_positions": True},
        },
        budgets=("tokens:2048000",),
    )
