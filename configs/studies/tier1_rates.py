"""Peak learning rates for the main part of the study: three trials for every arm, on a seed that the study does not
use.

    python -m experiments.study tier1_rates
    bert-fast compare tier1_rates --data=SHARDS --out=runs/tier1_rates

Trials have the study's budget, because in half of it a model does not get beyond word frequencies ("A pilot of the
study" in experiments/LOG.md). The results of the trials are kept apart from the study's results.
"""

import dataclasses
from collections.abc import Mapping

from bert_fast.compare.study import Arm, Study
from bert_fast.configs.studies import tier1

RATES = (3e-3, 6e-3, 1.2e-2)


def trials(arms: Mapping[str, Arm]) -> Study:
    """Each arm with every rate."""
    tried = {
        f"{arm}, rate {rate:g}": {**changes, "learning_rate.peak": rate}
        for arm, changes in arms.items()
        for rate in RATES
    }
    return dataclasses.replace(tier1.get_study(), arms=tried, seeds=(100,))


def get_study() -> Study:
    # MSLT's longer first stage came from these trials; its own are in tier1_rates_mslt.py.
    arms = {arm: changes for arm, changes in tier1.ARMS.items() if changes is not tier1.MSLT}
    return trials({**arms, "MSLT": tier1.EQUAL_SHARES})
