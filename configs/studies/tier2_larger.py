"""The study of the four methods at twice the budget of tier1.py: the arms that gained most, with three seeds.

    python -m experiments.study tier2_larger
    bert-fast compare tier2_larger --data=SHARDS --out=runs/tier2_larger

The arms and their peak rates are the same as in tier1.py and tier2_growth.py.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1, tier2_growth


def get_study() -> Study:
    known = tier1.get_study().arms | tier2_growth.get_study().arms
    most = ("shallower", "stacking + token dropping", "late growth", "late growth + token dropping")
    arms = {arm: known[arm] for arm in ("dense", *most)}
    return dataclasses.replace(tier1.get_study(), arms=arms, seeds=(0, 1, 2), budgets=(f"seconds:{2 * tier1.SECONDS}",))
