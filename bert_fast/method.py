"""The interface of a training method: programs, stages, and the hooks that the train loop calls.

A method is a `Method`: a tuple of pure functions. By default, each function changes nothing. Each file in
`methods/` makes a method with its `make`, and `chain` composes methods. The trunk (bert.py) and the train loop
never name a method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_fast.bert import Config, Params
from bert_fast.plan import Plan
from bert_fast.schedule import Schedule

State = Any  # a pytree of arrays; checkpointed


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that a compiled train step depends on. Once its plan is packed (plan.py), it identifies such a step.

    batch_size: examples per step, over all devices and micro-batches.
    frozen_paths: regular expressions for the paths of frozen leaves outside the layer stack.
    """

    model: Config
    plan: Plan
    batch_size: int
    micro_batches: int
    seq_len: int
    slots: int
    objective: str
    frozen_paths: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive steps that share one program.

    steps: maximum number of steps; `Method.observe` may end the stage earlier.
    ask_every: steps between calls of `Method.observe`; 0: never.
    schedule_from: where the schedule starts to count: at the start of the "run" or of this "stage". A restart counts
        as a new run.
    warm_again: number of steps over which the rate climbs again, from 0 to the schedule's value.
    skipped: if this is a part of a stage that was cut, the number of steps in the parts before it.
    data: "continue" takes the next examples, in the order that all stages of this objective and sequence length share.
        "restart" starts training over: the data, the schedule and the methods' clock begin at 0.
    guess: whether the widths of the program's model are a guess, which `Method.enter` will replace. A guess is used to
        estimate a run's cost; it is never stored, and never compiled for a run.
    """

    name: str
    program: Program
    steps: int
    schedule: Schedule
    schedule_from: str = "run"
    warm_again: int = 0
    skipped: int = 0
    ask_every: int = 0
    data: str = "continue"
    guess: bool = False

    def learning_rate(self, clock: "Clock", since: int) -> float:
        """Learning rate `since` steps after the first step of this stage."""
        at = since + self.skipped
        rate = self.schedule(at if self.schedule_from == "stage" else clock.step)
        return rate * min(1.0, at / self.warm_again) if self.warm_again else rate


class Clock(NamedTuple):
    """Progress since training started (at step 0 or at a restart): steps done, and steps planned."""

    step: int
    steps: int


def cut(stages: Sequence[Stage], at: int) -> tuple[Stage, ...]:
    """The stages, with the one that contains step `at` split in two there. Learning rates do not change."""
    result, begins = [], 0
    for stage in stages:
        done, begins = at - begins, begins + stage.steps
        if 0 < done < stage.steps:
            result.append(dataclasses.replace(stage, steps=done))
            rest = {"steps": stage.steps - done, "skipped": stage.skipped + done, "data": "continue"}
            result.append(dataclasses.replace(stage, **rest))
        else:
            result.append(stage)
    return tuple(result)


def same(tree):
    """The tree itself. `Method.enter` returns this function to keep the optimizer moments unchanged."""
    return tree


def _unchanged(params, state, old, new, initial, key):
    return params, same, state, new


class Method(NamedTuple):
    """The hooks. On the host, `params` is the whole tree, trainable and frozen.

    name     prefix of the method's keys in the metrics
    needs_initial  whether `enter` may call `initial()`; if so, the checkpoint of step 0 is kept
    init     (params, config) -> (params, state): once; may add leaves to the parameters
    stages   (stages) -> stages: host, once: changes the timeline. Widths that only the run can determine
             are guessed, and their stages are marked with `guess`
    observe  (params, state, stage, step) -> (state, done): host, every `stage.ask_every` steps: does work
             that is too expensive for `update`, or not needed in every step. If `done`, the stage ends here
    enter    (params, state, old, new, initial, key) -> (params, moments, state, new): host, between stages:
             grows, prunes or rewinds the model, and replaces guesses in `new.program`. `moments` is a function
             that is applied to each optimizer moment (a tree like the parameters). If it is None, the optimizer
             is reset. `initial()` returns the parameters of step 0
    draw     (stage, clock, rng) -> scale_ML or None: host, each step: for each micro-batch and layer, the
             factor that scales the layer's residual branches, 0 to skip the layer. `rng` depends only on
             the run's seed and the step. The draws of several methods are multiplied
    order    (state, batch, program, key) -> batch: traced: sorts the kept tokens to the front
    weights  (params) -> (params, penalty): traced, differentiable: the parameters that the trunk
             sees. Called separately on the trainable and on the frozen parameters
    update   (state, params, batch, losses) -> state: traced, after the step: updates the state from the
             losses of the batch or from the trainable parameters
    report   (state, stage, clock, pieces) -> dict: host: values for each row of the log. Their keys get the
             method's name as a prefix. `pieces[id]` is a word piece
    """

    name: str = ""
    needs_initial: bool = False
    init: Callable[[Params, Config], tuple[Params, State]] = lambda params, config: (params, ())
    stages: Callable[[tuple[Stage, ...]], tuple[Stage, ...]] = lambda stages: stages
    observe: Callable[[Params, State, Stage, int], tuple[State, bool]] = lambda params, state, stage, step: (
        state,
        False,
    )
    enter: Callable[..., tuple[Params, Callable[[Params], Params] | None, State, Stage]] = _unchanged
    draw: Callable[[Stage, Clock, np.random.Generator], np.ndarray | None] = lambda stage, clock, rng: None
    order: Callable[[State, Any, Program, Any], Any] = lambda state, batch, program, key: batch
    weights: Callable[[Params], tuple[Params, Any]] = lambda params: (params, 0.0)
    update: Callable[[State, Params, Any, Any], State] = lambda state, params, batch, losses: state
    report: Callable[[State, Stage, Clock, Sequence[str]], Mapping[str, Any]] = lambda state, stage, clock, pieces: {}


def chain(*methods: Method) -> Method:
    """One method that applies `methods` in order. Its state is the tuple of their states. `chain()` changes nothing."""

    def init(params, config):
        states = []
        for method in methods:
            params, state = method.init(params, config)
            states.append(state)
        return params, tuple(states)

    def stages(stages):
        for method in methods:
            stages = method.stages(stages)
        return stages

    def observe(params, states, stage, step):
        seen = [m.observe(params, state, stage, step) for m, state in zip(methods, states, strict=True)]
        return tuple(state for state, _ in seen), any(done for _, done in seen)

    def enter(params, states, old, new, initial, key):
        changes, entered = [], []
        for method, state in zip(methods, states, strict=True):
            params, moments, state, new = method.enter(params, state, old, new, initial, key)
            changes.append(moments)
            entered.append(state)

        def all_moments(moments):
            for change in changes:
                moments = change(moments)
            return moments

        return params, None if None in changes else all_moments, tuple(entered), new

    def draw(stage, clock, rng):
        rngs = rng.spawn(len(methods))
        drawn = [m.draw(stage, clock, rng) for m, rng in zip(methods, rngs, strict=True)]
        drawn = [scale_ML for scale_ML in drawn if scale_ML is not None]
        return np.prod(drawn, axis=0) if drawn else None

    def order(states, batch, program, key):
        for index, (method, state) in enumerate(zip(methods, states, strict=True)):
            batch = method.order(state, batch, program, jax.random.fold_in(key, index))
        return batch

    def weights(params):
        total = 0.0
        for method in methods:
            params, penalty = method.weights(params)
            total = total + penalty
        return params, total

    def update(states, params, batch, losses):
        return tuple(m.update(state, params, batch, losses) for m, state in zip(methods, states, strict=True))

    def report(states, stage, clock, pieces):
        reports = [(m.name, m.report(state, stage, clock, pieces)) for m, state in zip(methods, states, strict=True)]
        return {f"{name}/{key}": value for name, of_method in reports for key, value in of_method.items()}

    return Method(
        needs_initial=any(method.needs_initial for method in methods),
        init=init,
        stages=stages,
        observe=observe,
        enter=enter,
        draw=draw,
        order=order,
        weights=weights,
        update=update,
        report=report,
    )
