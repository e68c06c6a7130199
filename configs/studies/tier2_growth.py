"""Late growth, the arm of tier2_rivals.py that gained most, and two variants of it, with the five seeds of tier1.py.

    python -m experiments.study tier2_growth
    bert-fast compare tier2_growth --data=SHARDS --out=runs/tier2_growth

In the variants, the model starts with two layers instead of one; or half of the tokens skip the middle layers of the
grown model.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1, tier2_rivals


def get_study() -> Study:
    late = tier2_rivals.get_study().arms["late growth"]
    arms = {
        "dense": tier1.get_study().arms["dense"],
        "late growth": late,
        "late growth, two layers": {**late, "stacking.depths": "2,6"},
        "late growth + token dropping": {**late, **tier1.TOKEN_DROP, "methods": "stacking,token_drop"},
    }
    return dataclasses.replace(tier1.get_study(), arms=arms)
