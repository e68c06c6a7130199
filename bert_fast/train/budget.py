"""Turns a budget into steps before a run begins, so that every schedule ends exactly where the budget does.

A run's costs are known in advance, because stages are fixed and the methods' draws depend only on the seed and the
step. Two things are known only during the run: the step at which a search for a ticket (a pruned model) stops, and
the widths of that ticket. So the rest of the run is planned again whenever a new stage begins.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Sequence

import numpy as np

from bert_fast import BadInput, command
from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.budget import Budget
from bert_fast.cost.flops import step_flops
from bert_fast.method import Method, Program, Stage
from bert_fast.schedule import Schedule
from bert_fast.train import timeline
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.step_costs import StepCosts, key_of

DRAWS = 5_000  # at most this many steps of a stage are drawn in advance, spread evenly over the stage
TABLE = "costs.json"  # the name of a table of step costs in a suggested command
ROUNDS = 30  # tries in the search for the number of steps


class Meter:
    """Computes what steps cost, in the unit of a run's budget."""

    def __init__(self, settings: PretrainSettings, method: Method):
        assert settings.budget is not None
        self.budget: Budget = settings.budget
        self.costs, self.method, self.seed = settings.costs, method, settings.seed
        self.methods, self.optimizer = settings.methods, settings.optimizer.name
        if self.budget.timed:
            self.factor = factor(self.budget, self.costs)

    def of_step(self, stage: Stage, program: Program, on_L: Sequence[float]) -> float:
        """Cost of one step of a stage, with this packed program."""
        if self.budget.unit == "tokens":
            return program.batch_size * program.seq_len
        if self.budget.unit == "examples":
            return program.batch_size
        flops = step_flops(program, on_L).executed
        if self.costs is None or not self.budget.timed:
            return flops
        return self.factor * self.costs.seconds(key_of(stage, self.methods, self.optimizer), flops)

    def of_stage(self, stages: Sequence[Stage], index: int, first: int, steps: int, began: int) -> float:
        """Cost of `steps` steps of stage `index`, beginning at step `first` of the run.

        began: the step of the last restart; 0 if there was none.
        """
        if steps < 1:
            return 0.0
        stage, known = stages[index], {}
        drawn = np.unique(np.linspace(first, first + steps - 1, min(steps, DRAWS)).astype(int))
        total = 0.0
        for step in drawn:
            clock = timeline.clock_of(stages, index, int(step), began)
            rng = timeline.rng_of(self.seed, int(step))
            program, route, on_L = timeline.drawn(self.method, stage, clock, rng)
            gated = any(span.cond for span in program.plan)  # with `cond`, FLOPs also depend on `on_L`
            key = program, tuple(on_L) if gated else ()
            if key not in known:
                known[key] = self.of_step(stage, program, on_L.tolist())
            if route.scale_R is None:  # nothing is drawn: all steps of the stage are the same
                return steps * known[key]
            total += known[key]
        return total * steps / len(drawn)

    def of_all(self, stages: Sequence[Stage], begin: int = 0, first: int = 0, began: int = 0) -> float:
        """Cost of all steps of stage `begin` and the later stages. Stage `begin` begins at step `first`."""
        total = 0.0
        for index in range(begin, len(stages)):
            began = first if stages[index].data == "restart" else began
            total += self.of_stage(stages, index, first, stages[index].steps, began)
            first += stages[index].steps
        return total

    def course(self, stages: Sequence[Stage]) -> list[tuple[int, float]]:
        """(step, cost up to that step) at the start of a run and at the end of each of its stages."""
        found, began = [(0, 0.0)], 0
        for index, stage in enumerate(stages):
            first, cost = found[-1]
            began = first if stage.data == "restart" else began
            cost += self.of_stage(stages, index, first, stage.steps, began)
            found.append((first + stage.steps, cost))
        return found

    def spent(self, stages: Sequence[Stage], ends: Sequence[int]) -> float:
        """Cost of the finished stages, which ended at these steps."""
        total, first, began = 0.0, 0, 0
        for index, end in enumerate(ends):
            began = first if stages[index].data == "restart" else began
            total += self.of_stage(stages, index, first, end - first, began)
            first = end
        return total


def factor(budget: Budget, costs: StepCosts | None) -> float:
    """The cost of a reference second, in the unit of a timed budget.

    Raises BadInput if the step costs are missing, or are for another chip than the budget.
    """
    if costs is None:
        raise BadInput(
            f"--config.budget={budget} needs the costs of steps. Make a table of them with this command, and give it "
            f"as --config.costs={TABLE}:\n  {costs_command(sys.argv[2:], budget)}"
        )
    if not budget.chip:
        return 1.0
    if costs.chip != budget.chip:
        made = f"for {costs.chip}" if costs.chip else f"on {costs.machine}"
        raise BadInput(
            f"--config.budget={budget} is for {budget.chip}, but the step costs were made {made}: make them with "
            f"costs --topology={TPUS[budget.chip].smallest_slice}"
        )
    hours = costs.chips / 3600
    return hours * (TPUS[budget.chip].dollars or 0.0) if budget.unit == "usd" else hours


def costs_command(argv: Sequence[str], budget: Budget) -> str:
    """The command that makes the table of step costs for a run. argv: the arguments of the run's command."""
    given = [arg for arg in argv if re.match(r"--?config(=|\.(?!(budget|costs|steps)=))", arg)]
    if not any(re.match("--?config=", arg) for arg in given):  # called from Python, for example
        given = ["--config=CONFIG", "--config.data.dir=SHARDS"]
    chip = [f"--topology={TPUS[budget.chip].smallest_slice}"] if budget.chip else []
    return " ".join([command(), "costs", *map(shlex.quote, given), *chip, f"--out={TABLE}"])


def resolved(settings: PretrainSettings, method: Method) -> PretrainSettings:
    """The settings, with the largest number of steps that the budget allows. Unchanged without a budget.

    Raises BadInput if the budget does not allow a single step of every stage.
    """
    if settings.budget is None:
        return settings
    meter = Meter(settings, method)

    def cost(steps: int) -> float | None:
        try:
            stages = timeline.stages(with_steps(settings, steps), method)
        except BadInput:  # too few steps for the stages
            return None
        return meter.of_all(stages)

    guess = settings.steps
    while (found := cost(guess)) is None and guess < 2**24:
        guess *= 2
    if found is None:
        timeline.stages(with_steps(settings, guess), method)  # raises errors that do not depend on the number of steps
    each = (found or 1.0) / guess
    steps = most(cost, settings.budget.amount, each)
    if steps < 1:
        raise BadInput(f"--config.budget={settings.budget} does not allow even one step, which costs {each:.4g}")
    try:
        timeline.stages(with_steps(settings, steps), method)
    except BadInput as error:
        raise BadInput(f"--config.budget={settings.budget} allows {steps} steps, and {error}") from None
    return with_steps(settings, steps)


def with_steps(settings: PretrainSettings, steps: int) -> PretrainSettings:
    schedule = dataclasses.replace(settings.schedule, steps=steps)
    return dataclasses.replace(settings, steps=steps, schedule=schedule)


def most(cost: Callable[[int], float | None], amount: float, each: float) -> int:
    """The largest n with cost(n) <= amount, for a cost that grows by about `each` per step. 0 if there is none.

    `cost(n)` is None if n steps are too few for the stages.
    """
    low, high = 0, None  # `low` steps cost at most the amount, and `high` steps cost more
    guess = max(1, int(amount / each * (1 + 1e-12)))
    for _ in range(ROUNDS):
        found = cost(guess) or 0.0
        if found <= amount * (1 + 1e-12):
            low = guess
        else:
            high = guess
        if high is not None and high - low <= 1:
            return low
        step = max(1, round(abs(amount - found) / each))
        guess = guess + step if found <= amount * (1 + 1e-12) else guess - step
        if high is not None:
            guess = min(guess, high - 1)
        guess = max(guess, low + 1)
    return low


def replanned(meter: Meter, planned: Sequence[Stage], stages: Sequence[Stage], ends: Sequence[int]) -> list[Stage]:
    """The timeline, with its unfinished stages fitted to the rest of the budget.

    planned: the timeline of the config. stages: the same timeline, with the widths that are known by now. ends: the
    steps at which the finished stages ended. Nothing changes if these stages took as many steps as planned, and no
    widths were guessed for them or for the next stage.
    """
    index = len(ends)
    taken = np.diff([0, *ends]).tolist()
    if taken == [stage.steps for stage in planned[:index]] and not any(stage.guess for stage in planned[: index + 1]):
        return list(stages)
    first = ends[-1] if ends else 0
    starts = [i for i in range(index + 1) if stages[i].data == "restart"]
    began = sum(taken[: starts[-1]]) if starts else 0
    left = meter.budget.amount - meter.spent(stages, ends)
    total = sum(stage.steps for stage in planned[index:])

    def fitted(steps: int) -> list[Stage]:
        """The timeline with `steps` steps for stage `index` and the later stages, in the planned proportions."""
        bounds = np.round(np.cumsum([0, *(stage.steps for stage in planned[index:])]) / total * steps).astype(int)
        found = list(stages)
        for i, count in enumerate(np.diff(bounds), start=index):
            found[i] = dataclasses.replace(stages[i], steps=int(count))
        for i in range(index, len(found)):
            schedule, skipped = stretched(planned, found, i), 0
            if planned[i].skipped:  # part of a stage that was cut: the parts before it are stretched too
                skipped = found[i - 1].skipped + found[i - 1].steps
            found[i] = dataclasses.replace(found[i], schedule=schedule, skipped=skipped)
        return found

    def cost(steps: int) -> float:
        return meter.of_all(fitted(steps), index, first, began)

    steps = max(1, most(cost, left, max(cost(total) / total, 1e-300)))
    return fitted(steps)


def stretched(planned: Sequence[Stage], fitted: Sequence[Stage], index: int) -> Schedule:
    """A stage's schedule, stretched as much as the stage. A schedule that counts the training's steps is stretched as
    much as the training.
    """
    if planned[index].schedule_from == "stage":
        before, now = planned[index].steps, fitted[index].steps
    else:
        before, now = (timeline.clock_of(stages, index, 0, 0).steps for stages in (planned, fitted))
    schedule = planned[index].schedule
    return dataclasses.replace(schedule, steps=max(1, round(schedule.steps * now / before)))
