"""A run's timeline: its stages, its clock, and the programs that its steps run."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_fast import BadInput
from bert_fast.cost.flops import step_flops
from bert_fast.data import masking
from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.plan import Route, frozen_depth, pack, whole
from bert_fast.train.settings import PretrainSettings

DRAW = 103  # identifies the methods' draws among the uses of the seed; step.py numbers the uses on the device
TIMES = 200  # points of a stage at which its methods' draws are sampled, to estimate its cost


def stages(settings: PretrainSettings, method: Method) -> tuple[Stage, ...]:
    """The timeline of a pre-training run: one stage per phase, then changed by the methods.

    Raises BadInput if a stage is left without steps, or if none of its layers learns.
    """
    plain, done, share = [], 0, 0.0
    for seq_len, part, batch_size in settings.phases:
        share += part
        end = round(settings.steps * share)
        program = Program(
            model=settings.model,
            plan=whole(settings.model.depth),
            batch_size=batch_size or settings.batch_size,
            micro_batches=settings.micro_batches,
            seq_len=seq_len,
            slots=masking.prediction_slots(seq_len, settings.data.masked_share),
            objective=settings.data.objective,
        )
        plain.append(Stage(f"{seq_len}-tokens", program, end - done, settings.schedule))
        done = end
    timeline = method.stages(tuple(stage for stage in plain if stage.steps))
    empty = [stage.name for stage in timeline if stage.steps < 1]
    if empty or not timeline:
        raise BadInput(f"{settings.steps} steps leave none for {', '.join(empty)}: increase --config.steps")
    for stage in timeline:
        if frozen_depth(stage.program.plan) == stage.program.model.depth:
            raise BadInput(f"no layer learns in stage {stage.name}: do not freeze the topmost one")
    return timeline


def clock_of(timeline: Sequence[Stage], index: int, step: int, began: int) -> Clock:
    """The clock at `step` of the run, which is in stage `index`. The clock counts from the last restart of the data.

    began: the step of that restart; 0 if the data has not restarted.
    """
    first, last = index, index
    while first and timeline[first].data != "restart":
        first -= 1
    while last + 1 < len(timeline) and timeline[last + 1].data != "restart":
        last += 1
    return Clock(step - began, sum(stage.steps for stage in timeline[first : last + 1]))


def drawn(method: Method, stage: Stage, clock: Clock, rng: np.random.Generator) -> tuple[Program, Route, np.ndarray]:
    """What one step of a stage runs: the program with its plan packed, the route, and for each layer the share of
    micro-batches that run it, [L].
    """
    program = stage.program
    scale_ML = method.draw(stage, clock, rng)
    plan, route = pack(program.plan, scale_ML, program.model.widths_L)
    on_L = np.ones(program.model.depth) if scale_ML is None else (scale_ML != 0).mean(0)
    return dataclasses.replace(program, plan=plan), route, on_L


def rng_of(seed: int, step: int) -> np.random.Generator:
    """The generator of a step's draws: it depends on the run's seed and the step alone."""
    return np.random.default_rng((seed, DRAW, step))


class Draw(NamedTuple):
    """One packed plan of a stage: the share of steps that run it, a route, and how often each layer runs."""

    share: float
    program: Program
    route: Route
    on_L: tuple[float, ...]


def clocks(stages: Sequence[Stage], index: int, count: int = TIMES) -> list[Clock]:
    """`count` clocks, spread evenly over stage `index`."""
    began = [sum(stage.steps for stage in stages[:i]) for i in range(index + 1)]
    training = max((began[i] for i in range(index + 1) if stages[i].data == "restart"), default=0)
    steps = began[index] + np.linspace(0, stages[index].steps - 1, count).astype(int)
    return [clock_of(stages, index, int(step), training) for step in steps]


def draws(method: Method, stage: Stage, clocks: Sequence[Clock]) -> list[Draw]:
    """The packed plans that a stage draws at these clocks, the most frequent first. Their shares sum to 1."""
    found: dict[Program, list[tuple[Route, np.ndarray]]] = {}
    for number, clock in enumerate(clocks):
        program, route, on_L = drawn(method, stage, clock, np.random.default_rng(number))
        found.setdefault(program, []).append((route, on_L))
    result = []
    for program, routes in sorted(found.items(), key=lambda item: -len(item[1])):
        mean_L = np.mean([on_L for _, on_L in routes], axis=0)
        # With conditionals, the routes of one program differ in how many layers run. Use the route nearest the mean.
        route, _ = min(routes, key=lambda each: abs(each[1].sum() - mean_L.sum()))
        result.append(Draw(len(routes) / len(clocks), program, route, tuple(mean_L.tolist())))
    return result


def flops_of(plans: Sequence[Draw]) -> float:
    """Mean FLOPs per step over packed plans."""
    return sum(draw.share * step_flops(draw.program, draw.on_L).executed for draw in plans)
