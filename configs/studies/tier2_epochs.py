"""The study of the four methods where text is scarce: more than 20 epochs of a small corpus, at the budget of tier1.py.

    python -m experiments.study tier2_epochs
    bert-fast compare tier2_epochs --data=SHARDS --out=runs/tier2_epochs

The arms and their peak rates are the same as in tier1.py.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1


def get_study() -> Study:
    return dataclasses.replace(tier1.get_study(), seeds=(0, 1, 2))
