"""Ablations of each paper's method, at half of the budget of tier1.py, with three seeds.

    python -m experiments.study tier3
    bert-fast compare tier3 --data=SHARDS --out=runs/tier3

The arms keep the peak rates of tier1.py, unless the name of an arm says otherwise.
"""

import dataclasses

from bert_fast.compare.study import Study
from bert_fast.configs.studies import tier1
from bert_fast.configs.studies.tier1 import EARLY_BERT, EQUAL_SHARES, LAYER_DROP, MSLT, RATES, STACKING, TOKEN_DROP

RATE, HIGHER_RATE = ({"learning_rate.peak": factor * RATES["layer dropping"]} for factor in (1, 2))


def get_study() -> Study:
    arms = {
        "dense": {"learning_rate.peak": RATES["dense"]},
        # Layer dropping: rescaling and learning rate in all four combinations, then without each of the two schedules.
        # The paper trains at ten times the rate of its baseline (arXiv 2010.13369, section 5).
        "layer dropping": {**LAYER_DROP, **RATE},
        "layer dropping, not rescaled": {**LAYER_DROP, "layer_drop.rescale": False, **RATE},
        "layer dropping, higher rate": {**LAYER_DROP, **HIGHER_RATE},
        "layer dropping, higher rate, not rescaled": {**LAYER_DROP, "layer_drop.rescale": False, **HIGHER_RATE},
        "layer dropping, no time schedule": {**LAYER_DROP, "layer_drop.time_schedule": False, **RATE},
        "layer dropping, no depth schedule": {**LAYER_DROP, "layer_drop.depth_schedule": False, **RATE},
        # Token dropping and EarlyBERT: the choice that they learn, and simpler choices.
        "token dropping": TOKEN_DROP,
        "token dropping, random tokens": {**TOKEN_DROP, "token_drop.scores": "random"},
        "token dropping, by frequency": {**TOKEN_DROP, "token_drop.scores": "frequency"},
        "EarlyBERT": EARLY_BERT,
        "EarlyBERT, random ticket": {**EARLY_BERT, "early_bert.ticket": "random"},
        # Stacking and MSLT: stages and their shares of the steps, the first weights of new layers, the optimizer's
        # moments, the learning rate of the released code, and the training of MSLT's embeddings.
        "stacking": STACKING,
        "stacking, from two layers": {**STACKING, "stacking.depths": "2,6"},
        "stacking, half and half": {**STACKING, "stacking.shares": "0.5,0.5"},
        "stacking, random layers": {**STACKING, "stacking.init": "random"},
        "stacking, identity": {**STACKING, "stacking.init": "identity"},
        "stacking, moments carried": {**STACKING, "stacking.optimizer": "carry"},
        "stacking, released rates": {"methods": "stacking"},
        "MSLT, longer first stage": MSLT,
        "MSLT, equal shares": EQUAL_SHARES,
        "MSLT, half of it joint": {**MSLT, "stacking.shares": "0.35,0.05,0.05,0.05,0.5"},
        "MSLT, random layers": {**MSLT, "stacking.init": "random"},
        "MSLT, embeddings A": {**MSLT, "stacking.embedding": "A"},
    }
    known = {
        "token": "token dropping",
        "EarlyBERT": "EarlyBERT",
        "stacking": "stacking",
        "MSLT": "MSLT, longer first stage",
    }

    def rate(arm: str) -> float:
        return RATES[next((name for start, name in known.items() if arm.startswith(start)), "dense")]

    arms = {arm: {"learning_rate.peak": rate(arm), **changes} for arm, changes in arms.items()}
    return dataclasses.replace(
        tier1.get_study(), arms=arms, seeds=(0, 1, 2), budgets=(f"seconds:{tier1.SECONDS // 2}",)
    )
