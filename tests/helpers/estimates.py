"""A hand-written cost estimate."""

import dataclasses

from bert_fast.cost.accelerators import TPUS
from bert_fast.planner import estimate

V5E = estimate.Slice("v5e:2x4", TPUS["v5e"], [None] * 8)


def made_plan(where=V5E, **changes):
    stage = estimate.StageEstimate(
        "one",
        1000,
        256,
        128,
        2e13,
        2e13,
        cycles=15e6,
        not_counted={"gather": 819e5, "copy-start": 9e12},
    )
    return estimate.CostEstimate(where, [dataclasses.replace(stage, **changes)])
