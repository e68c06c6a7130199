"""Rivals and ablations of the four methods, at equal reference time.

    bert-fast compare rivals --out=runs/rivals

If a shallower model, late growth, random tokens or growing rows save as much as a method, the saving is not the
method's.
"""

from bert_fast.compare.study import Study

LAYER_DROP = {"methods": "layer_drop", "layer_drop.sampling": "systematic"}
STACKING = {"methods": "stacking"}
MSLT = {"methods": "stacking", "stacking.variant": "mslt"}
# arXiv 2511.04981. With stacking's own rates, one fall per stage, the last rate would be above 0.
LATE = {"stacking.depths": "1", "stacking.shares": "0.7,0.3", "stacking.learning_rate": "run"}
# The paper of layer dropping trains at ten times the rate of its baseline (arXiv 2010.13369, section 5).
PEAK, HIGHER_PEAK = 3e-3, 6e-3


def get_study() -> Study:
    return Study(
        config="quickstart",
        changes={
            "model.depth": 8,
            "phases": "64:1",
            "learning_rate.peak": PEAK,
            "learning_rate.warmup_steps": 100,
            "eval.every": 0,
            "checkpoint.every": 0,
        },
        arms={
            "dense": {},
            # A method has to beat these.
            "shallower": {"model.depth": 6},
            "late growth": {**STACKING, **LATE},
            "growing rows": {"phases": "8@256:0.4,64@32:0.6"},
            "3ML": {"methods": "mask_later"},
            # Token dropping: do its scores matter?
            "token dropping": {"methods": "token_drop"},
            "random token dropping": {"methods": "token_drop", "token_drop.scores": "random"},
            # EarlyBERT: does its ticket matter?
            "EarlyBERT": {"methods": "early_bert"},
            "random ticket": {"methods": "early_bert", "early_bert.ticket": "random"},
            # Layer dropping: rescaling and learning rate in all four combinations, then without each schedule.
            "layer dropping": LAYER_DROP,
            "layer dropping, not rescaled": {**LAYER_DROP, "layer_drop.rescale": False},
            "layer dropping, higher rate": {**LAYER_DROP, "learning_rate.peak": HIGHER_PEAK},
            "layer dropping, higher rate, not rescaled": {
                **LAYER_DROP,
                "layer_drop.rescale": False,
                "learning_rate.peak": HIGHER_PEAK,
            },
            "layer dropping, no time schedule": {**LAYER_DROP, "layer_drop.time_schedule": False},
            "layer dropping, no depth schedule": {**LAYER_DROP, "layer_drop.depth_schedule": False},
            # MSLT: how layers start, how long they learn together, how its embeddings are treated.
            "MSLT": MSLT,
            "MSLT, random layers": {**MSLT, "stacking.init": "random"},
            "MSLT, half of it joint": {**MSLT, "stacking.shares": "0.125,0.125,0.125,0.125,0.5"},
            "MSLT, embeddings A": {**MSLT, "stacking.embedding": "A"},
            "MSLT, embeddings C": {**MSLT, "stacking.embedding": "C"},
            # Stacking: how layers start.
            "stacking": STACKING,
            "stacking, random layers": {**STACKING, "stacking.init": "random"},
            "stacking, identity": {**STACKING, "stacking.init": "identity"},
            "stacking, moments carried": {**STACKING, "stacking.optimizer": "carry"},
        },
        seeds=(0, 1, 2),
        budgets=("seconds:60",),
    )
