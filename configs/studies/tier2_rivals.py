"""What the methods have to beat, at the budget of tier1.py, with three seeds.

    python -m experiments.study tier2_rivals
    bert-fast compare tier2_rivals --data=SHARDS --out=runs/tier2_rivals

If a simpler change saves as much as a method, the saving is not due to the method. The simpler changes are late growth,
dropping random tokens, a random ticket, a longer time on short rows, and lower layers that skip [MASK] tokens (3ML).
Another rival, a shallower model, is an arm of the main part of the study (tier1.py).
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1


def get_study() -> Study:
    arms = {
        "dense": {},
        "late growth": {**tier1.STACKING, "stacking.depths": "1,6", "stacking.shares": "0.7,0.3"},  # arXiv 2511.04981
        "longer short rows": {"phases": "8@256:0.6,64@32:0.4"},
        "3ML": {"methods": "mask_later"},
        "random token dropping": {**tier1.TOKEN_DROP, "token_drop.scores": "random"},
        "random ticket": {**tier1.EARLY_BERT, "early_bert.ticket": "random"},
    }
    arms = {arm: {"learning_rate.peak": tier1.RATES["dense"], **changes} for arm, changes in arms.items()}
    return dataclasses.replace(tier1.get_study(), arms=arms, seeds=(0, 1, 2))
