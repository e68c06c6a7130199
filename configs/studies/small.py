"""A night on a laptop: every method and two combinations, each with three budgets and three seeds.

    bert-fast compare small --out=runs/small

The study can be stopped at any time. Give the command again to continue the study.
"""

from bert_fast.compare.study import Study
from bert_fast.configs.studies import arms


def get_study() -> Study:
    return Study(
        config="quickstart",
        changes={
            "model.depth": 8,
            "learning_rate.peak": 3e-3,
            "learning_rate.warmup_steps": 100,
            "eval.every": 0,
            "checkpoint.every": 0,
        },
        arms=arms(depth=8),
        budgets=("seconds:120", "seconds:240", "seconds:480"),
    )
