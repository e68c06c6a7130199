"""A hand-written cost estimate."""

import dataclasses

from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.overlap import Communication
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
        1.8e13,
        cycles={"estimate": 15e6, "schedule": 14e6},
        layers={"estimate": 12.6e6, "schedule": 11.2e6},
        unscheduled={"gather": 1e5},
        copies=9e12,
        communication=Communication(2e-3, 1e-4),
    )
    return estimate.CostEstimate(where, [dataclasses.replace(stage, **changes)])
