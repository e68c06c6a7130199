"""The study of the four methods at a half and a quarter of the budget of tier1.py, with three seeds.

    python -m experiments.study tier2
    bert-fast compare tier2 --data=SHARDS --out=runs/tier2

The arms and their peak rates are the same as in tier1.py.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1


def get_study() -> Study:
    budgets = (f"seconds:{tier1.SECONDS // 4}", f"seconds:{tier1.SECONDS // 2}")
    return dataclasses.replace(tier1.get_study(), seeds=(0, 1, 2), budgets=budgets)
