"""A study for one GPU, about an hour long: BERT-mini with 8 layers instead of 4, two budgets, two seeds.

    bert-fast compare medium --data=SHARDS --out=runs/medium

You can stop the comparison at any time. The command above then continues it.
"""

from bert_fast.compare.study import Study
from bert_fast.configs.studies import arms


def get_study() -> Study:
    return Study(
        config="bert:size=mini,seq=128,objective=mlm,norm=pre",
        changes={
            "batch_size": 256,
            "model.depth": 8,
            "model.dtype": "bfloat16",
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "optimizer.bias_correction": True,
            "learning_rate.peak": 1e-3,
            "learning_rate.warmup_steps": 300,
            "eval.every": 0,
            "checkpoint.every": 1000,
        },
        arms=arms(depth=8),
        seeds=(0, 1),
        budgets=("seconds:60", "seconds:120"),
    )
