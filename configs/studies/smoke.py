"""Ten minutes on two cores: each method against dense training at equal reference time. Far too small for a ranking.

    bert-fast compare smoke --out=runs/smoke

The study can be stopped at any time. Give the command again to continue the study.
"""

from bert_fast.compare.study import Study


def get_study() -> Study:
    return Study(
        config="quickstart",
        changes={
            "model.depth": 4,
            "phases": "64:1",  # with a single length, fewer programs are compiled
            "learning_rate.warmup_steps": 10,
            "eval.every": 0,
            "eval.examples": 300,
            "checkpoint.every": 0,
        },
        arms={
            "dense": {},
            "layer dropping": {"methods": "layer_drop", "layer_drop.sampling": "systematic"},
            "token dropping": {"methods": "token_drop"},
            "EarlyBERT": {"methods": "early_bert", "early_bert.search": 0.2},
            "stacking": {"methods": "stacking", "stacking.learning_rate": "run"},
            "MSLT": {"methods": "stacking", "stacking.variant": "mslt"},
        },
        seeds=(0, 1),
        budgets=("seconds:10", "seconds:20"),
    )
