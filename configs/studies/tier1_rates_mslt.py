"""Peak learning rates for MSLT with a longer first stage: the same three trials as for the other arms of tier1.py.

    python -m experiments.study tier1_rates_mslt
    bert-fast compare tier1_rates_mslt --data=SHARDS --out=runs/tier1_rates_mslt

tier1.py says why the first stage is longer.
"""

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1, tier1_rates


def get_study() -> Study:
    return tier1_rates.trials({arm: changes for arm, changes in tier1.ARMS.items() if changes is tier1.MSLT})
