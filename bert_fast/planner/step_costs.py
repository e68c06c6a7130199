"""Makes a table of step costs: times the programs of runs on this machine, or compiles them for a TPU."""

import dataclasses
import functools
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import scipy.optimize

from bert_fast import BadInput, methods
from bert_fast.cost.flops import step_flops
from bert_fast.method import Method, Program, Stage
from bert_fast.planner import estimate
from bert_fast.planner.timing import Stepper, alternate, stepper
from bert_fast.train import optim, timeline
from bert_fast.train.report import say
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.sharding import make_mesh
from bert_fast.train.step_costs import Point, StepCosts, check, key_of, not_ascending

ROUNDS = 15
UNHINDERED = 0.2  # a cost is the mean over this share of the rounds: the fastest ones
LONG, MOST = 0.1, 50  # a short step is repeated for LONG seconds, but at most MOST times
REST = 0.05  # seconds of rest before a measurement; a slow first step after the rest counts little among repeated steps
AGAIN = 3  # costs that do not ascend are measured again: at least AGAIN times in all, and for AGAIN * ROUNDS rounds
NOISE = 0.05  # costs in the wrong order get their mean if it is this close to each of them: see `unhindered`


class Timed(NamedTuple):
    """A program to time: the key of its curve in the table, its FLOPs, its stage, the stage's index, and its draw."""

    key: str
    flops: float
    stage: Stage
    index: int
    draw: timeline.Draw


def names_of(settings: PretrainSettings) -> str:
    return ",".join(name for name, _ in settings.methods)


def programs_of(settings: PretrainSettings, method: Method) -> Iterator[Timed]:
    """The programs that span a run's step costs: the cheapest, the most frequent and the most expensive of each stage.

    If a search decides the widths, the stage is also timed with all heads and neurons.
    """
    stages = timeline.stages(settings, method)
    for index, stage in enumerate(stages):
        variants = [stage]
        if stage.guess:
            model, depth = settings.model, stage.program.model.depth
            model = stage.program.model.with_widths(model.heads_L[:depth], model.mlp_dim_L[:depth])
            variants.append(dataclasses.replace(stage, program=dataclasses.replace(stage.program, model=model)))
        for variant in variants:
            drawn = timeline.draws(method, variant, timeline.clocks(stages, index))
            by_cost = sorted(drawn, key=flops_of)
            key = key_of(variant, settings.methods, settings.optimizer.name)
            for draw in {flops_of(draw): draw for draw in (by_cost[0], drawn[0], by_cost[-1])}.values():
                yield Timed(key, flops_of(draw), variant, index, draw)


def flops_of(draw: timeline.Draw) -> float:
    return step_flops(draw.program, draw.on_L).executed


def measured(runs: Sequence[PretrainSettings], rounds: int = ROUNDS) -> StepCosts:
    """The step costs of runs on this machine. Every program takes turns with every other.

    Raises BadInput if, after the last measurement, a step still takes clearly less time than one with fewer FLOPs.
    """
    steps, points = {}, {}
    for number, settings in enumerate(runs):
        method, optimizer = methods.make(settings.methods), optim.make(settings.optimizer)
        mesh = make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
        say(f"[{number + 1}/{len(runs)}] compiling the steps of {names_of(settings) or 'dense'}")
        made: dict[Program, Stepper] = {}
        stages = timeline.stages(settings, method)
        for timed in programs_of(settings, method):
            if (timed.key, timed.flops) in points:
                continue  # another run of the same config
            added = not any(earlier.data == "restart" for earlier in stages[: timed.index + 1])
            if timed.stage.program not in made:
                made[timed.stage.program] = stepper(method, timed.stage, added, optimizer, mesh)
            points[timed.key, timed.flops] = name = f"{timed.key} {timed.flops}"
            steps[name] = made[timed.stage.program].add(timed.draw.program, timed.draw.route)
    counts = {name: repeats(step) for name, step in steps.items()}
    repeated = {name: functools.partial(repeat, step, counts[name]) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for attempt in range(attempts(rounds)):
        say(f"timing {len(steps)} programs, {rounds} rounds" + (" once more" if attempt else ""))
        for name, found in alternate(repeated, rounds, rest=REST).items():
            seconds[name] += [total / counts[name] for total in found]
        curves: dict[str, list[Point]] = {}
        for (key, flops), name in points.items():
            curves.setdefault(key, []).append(Point(flops, unhindered(seconds[name])))
        ordered = {key: tuple(sorted(curve)) for key, curve in curves.items()}
        if not any(not_ascending(curve) for curve in ordered.values()):
            break
    costs = StepCosts("measured", machine(), {key: pooled(key, curve) for key, curve in ordered.items()})
    check(costs, "the step costs")
    return costs


def attempts(rounds: int) -> int:
    """How often costs that do not ascend are measured, with `rounds` rounds each time."""
    return max(AGAIN, math.ceil(AGAIN * ROUNDS / rounds))


def pooled(key: str, curve: tuple[Point, ...]) -> tuple[Point, ...]:
    """The nearest curve that ascends, if no point moves by more than NOISE; otherwise the same curve.

    Neighbours in the wrong order get their mean, and a line says so. In very small programs, starting a step takes most
    of its time, so programs with different FLOPs may take the same time.
    """
    if not not_ascending(curve):
        return curve
    seconds = [point.seconds for point in curve]
    ascending = scipy.optimize.isotonic_regression(seconds).x
    if any(abs(mean - given) > NOISE * given for mean, given in zip(ascending, seconds, strict=True)):
        return curve
    say(f"stage {key}: costs in the wrong order, which noise explains, are replaced by their mean")
    return tuple(Point(point.flops, float(mean)) for point, mean in zip(curve, ascending, strict=True))


def unhindered(seconds: Sequence[float]) -> float:
    """Mean of the fastest rounds, because other work on the machine only adds time. On a shared machine, single steps
    varied by a fifth. Two measurements of 15 rounds there differed by 5 % in this mean, and by 9 % in the median.
    """
    return statistics.mean(sorted(seconds)[: max(1, round(UNHINDERED * len(seconds)))])


def repeats(step: Callable[[], float]) -> int:
    """How often to repeat a step so that the repetitions take LONG seconds."""
    step()
    began = time.perf_counter()
    step()
    return max(1, min(MOST, math.ceil(LONG / (time.perf_counter() - began))))


def repeat(step: Callable[[], float], count: int):
    for _ in range(count):
        step()


def machine() -> str:
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({platform.machine()}), jax {jax.__version__}"


def compiled(runs: Sequence[PretrainSettings], topology: str, cache: pathlib.Path) -> StepCosts:
    """The step costs of runs on a TPU slice, by the compiler: a lower bound (`StageEstimate.seconds` in estimate.py).

    Raises BadInput if a run does not fit on the slice.
    """
    where = estimate.on(topology)
    if where.chip is None or not where.chip.clock:
        raise BadInput(f"--topology={topology}: the compiler estimates steps of TPUs such as v5e:1x1")
    curves: dict[str, tuple[Point, ...]] = {}
    chips = 0
    for settings in runs:
        method = methods.make(settings.methods)
        planned = estimate.plan(dataclasses.replace(settings, budget=None), where, cache, say)
        if not planned.fits:
            problem = next(stage.problem for stage in planned.stages if stage.problem)
            raise BadInput(f"{names_of(settings) or 'dense'} does not fit on {topology}: {problem}")
        chips = planned.chips
        for stage, costs in zip(timeline.stages(settings, method), planned.stages, strict=True):
            key = key_of(stage, settings.methods, settings.optimizer.name)
            curves[key] = (Point(costs.flops, costs.seconds(where.chip)),)
    return StepCosts("compiled", f"{topology} by the TPU compiler", curves, where.chip.name, chips)
