"""A night on a laptop: every method and two combinations, at three budgets, three seeds.

    bert-fast compare small --out=runs/small

It can be stopped at any time; the same command continues it.
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
