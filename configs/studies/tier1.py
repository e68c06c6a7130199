"""The main part of the study of the four methods: equal reference time, less than an epoch of books, five paired seeds.

    python -m experiments.study tier1
    bert-fast compare tier1 --data=SHARDS --out=runs/tier1

The first command uses the project's own text and keeps a record of each run in this repository. The model has six
layers of width 96 and the recipe of experiments/plateau.md, so that every arm learns from context. The same three peak
rates were tried for every arm (tier1_rates.py), and each arm has its best. Every schedule falls to 0 at the end of the
budget.
"""

from bert_fast.compare.study import Study

LAYER_DROP = {"methods": "layer_drop", "layer_drop.sampling": "systematic"}  # fewer programs to compile
TOKEN_DROP = {"methods": "token_drop", "token_drop.shortest": 16}  # rows of 8 tokens have none to spare
EARLY_BERT = {"methods": "early_bert", "early_bert.search": 0.15}  # the search ends well after the warm-up
STACKING = {"methods": "stacking", "stacking.learning_rate": "run"}  # with "segments", the last rate would be above 0
# With equal shares, MSLT freezes its first layers before they have learned from context, and stays near the loss of a
# unigram model: 5.71 nats at [MASK], 0.28 below it (records/tier1_rates). So here all rows of 8 tokens belong to the
# first stage.
EQUAL_SHARES = {"methods": "stacking", "stacking.variant": "mslt"}
MSLT = {**EQUAL_SHARES, "stacking.shares": "0.4,0.1,0.1,0.1,0.3"}
ARMS = {
    "dense": {},
    "shallower": {"model.depth": 4},  # a step costs about as much as a step of the methods
    "layer dropping": LAYER_DROP,
    "token dropping": TOKEN_DROP,
    "EarlyBERT": EARLY_BERT,
    "stacking": STACKING,
    "MSLT, longer first stage": MSLT,
    "stacking + token dropping": {**STACKING, **TOKEN_DROP, "methods": "stacking,token_drop"},
}
RATES = {  # the best of tier1_rates, for MSLT of tier1_rates_mslt
    "dense": 6e-3,
    "shallower": 6e-3,
    "layer dropping": 6e-3,
    "token dropping": 6e-3,
    "EarlyBERT": 6e-3,
    "stacking": 6e-3,
    "MSLT, longer first stage": 6e-3,
    "stacking + token dropping": 6e-3,
}
SECONDS = 200


def get_study() -> Study:
    return Study(
        config="quickstart",
        changes={
            "model.depth": 6,
            "model.width": 96,
            "model.heads": 3,  # EarlyBERT prunes a third of them
            "model.head_size": 32,
            "model.mlp_dim": 384,
            "learning_rate.warmup_steps": 50,
            "log_every": 25,
            "eval.every": 250,
            "eval.examples": 1000,
            "checkpoint.every": 0,
            "sinks": "",
        },
        arms={arm: {**changes, "learning_rate.peak": RATES[arm]} for arm, changes in ARMS.items()},
        seeds=(0, 1, 2, 3, 4),
        budgets=(f"seconds:{SECONDS}",),
        rounds=60,  # a step cost that is 5 % too low gives an arm 5 % more steps
    )
