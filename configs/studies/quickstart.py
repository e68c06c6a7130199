"""The comparison of `make quickstart`: dense BERT and an accelerated one, at equal reference time.

    bert-fast compare quickstart --out=runs/quickstart

It takes about five minutes on two cores. Stacking gained well at equal time in the study (experiments/stacking.md),
with six layers. A model of two layers has no middle layers in which tokens could be dropped.
"""

from bert_fast.compare.study import Study


def get_study() -> Study:
    return Study(
        config="quickstart",
        changes={"checkpoint.every": 0},
        arms={
            "dense": {},
            "stacking": {"methods": "stacking", "stacking.learning_rate": "run"},
        },
        seeds=(0,),
        budgets=("seconds:180",),
    )
