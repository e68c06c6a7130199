"""Variants of late growth, the arm of tier2_rivals.py that gained most, with three seeds.

    python -m experiments.study tier2_growth
    bert-fast compare tier2_growth --data=SHARDS --out=runs/tier2_growth

The model starts with two layers instead of one, or grows after half of the steps instead of 0.7 of them. In the last
arm, half of the tokens skip the middle layers of the grown model.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1, tier2_rivals


def get_study() -> Study:
    late = tier2_rivals.get_study().arms["late growth"]
    arms = {
        "dense": tier1.get_study().arms["dense"],
        "late growth, two layers": {**late, "stacking.depths": "2,6"},
        "late growth, half": {**late, "stacking.shares": "0.5,0.5"},
        "late growth + token dropping": {**late, **tier1.TOKEN_DROP, "methods": "stacking,token_drop"},
    }
    return dataclasses.replace(tier1.get_study(), arms=arms, seeds=(0, 1, 2))
