"""How much of a method's saving in FLOPs becomes a saving in cycles, and how much could at most.

Every figure is computed once per instrument (see tpu.py).
"""

from typing import NamedTuple

from bert_fast.planner.estimate import CostEstimate, StageEstimate
from bert_fast.planner.tpu import INSTRUMENTS

NO_SAVING = 0.02  # a smaller saving in FLOPs has no meaningful realised fraction


class Saving(NamedTuple):
    """A run or stage relative to dense training, by one instrument.

    flops, cycles: ratios to dense training. ceiling: the value that `realised` would have if the layers' cycles shrank
    as much as their FLOPs, while the cycles of embeddings, head and optimizer stayed the same.
    """

    flops: float
    cycles: float
    ceiling: float

    @property
    def realised(self) -> float | None:
        """The saving in cycles divided by the saving in FLOPs; None if hardly any FLOPs are saved."""
        return (1 - self.cycles) / (1 - self.flops) if abs(1 - self.flops) > NO_SAVING else None

    @property
    def of_ceiling(self) -> float | None:
        """The realised fraction divided by its ceiling."""
        return None if self.realised is None else self.realised / self.ceiling


def of_stage(stage: StageEstimate, dense: StageEstimate) -> dict[str, Saving]:
    """The savings of one step of a stage, by instrument; {} if the cycles of `stage` or `dense` are unknown."""
    if not stage.cycles or not dense.cycles:
        return {}
    flops = stage.flops / dense.flops
    return {name: Saving(flops, stage.cycles[name] / dense.cycles[name], ceiling(name, dense)) for name in INSTRUMENTS}


def of_run(plan: CostEstimate, dense: CostEstimate) -> dict[str, Saving]:
    """The savings of a whole run, by instrument; {} if the cycles of `plan` or `dense` are unknown."""
    ratios = {}
    for name in INSTRUMENTS:
        cycles, others = plan.cycles(name), dense.cycles(name)
        if cycles is None or others is None:
            return {}
        ratios[name] = cycles / others
    weights = [stage.steps * stage.flops / dense.flops for stage in dense.stages]
    ceilings = {
        name: sum(weight * ceiling(name, stage) for weight, stage in zip(weights, dense.stages, strict=True))
        for name in INSTRUMENTS
    }
    return {name: Saving(plan.flops / dense.flops, ratios[name], ceilings[name]) for name in INSTRUMENTS}


def ceiling(instrument: str, dense: StageEstimate) -> float:
    """The layers' share of a dense step's cycles, divided by their share of its FLOPs."""
    return dense.layers[instrument] / dense.cycles[instrument] / (dense.dense_layers / dense.dense)


def lower(savings: dict[str, Saving]) -> Saving:
    """The saving with the lowest `of_ceiling` of all instruments; None counts as 0."""
    return min(savings.values(), key=lambda saving: saving.of_ceiling or 0.0)
