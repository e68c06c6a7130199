"""What an error in the step costs is worth: dense training with 10 % less and 10 % more time than in tier1.py.

    python -m experiments.study tier2_clock
    bert-fast compare tier2_clock --data=SHARDS --out=runs/tier2_clock

If an arm's steps are charged 10 % too little, the arm trains for 10 % longer than it should.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1


def get_study() -> Study:
    budgets = tuple(f"seconds:{round(share * tier1.SECONDS)}" for share in (0.9, 1.1))
    arms = {"dense": tier1.get_study().arms["dense"]}
    return dataclasses.replace(tier1.get_study(), arms=arms, seeds=(0, 1, 2), budgets=budgets)
