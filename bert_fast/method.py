"""What a method may change: programs, stages, and the hooks between which the train loop runs.

A method is a `Method`: a tuple of pure functions whose defaults change nothing, made by the `make`
of a file in `methods/`. The trunk and the loop know no method by name; `chain` composes them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_fast.bert import Config, Params
from bert_fast.plan import Plan
from bert_fast.schedule import Schedule

State = Any  # a pytree of arrays; checkpointed


@dataclasses.dataclass(frozen=True)
class Program:
    """All that a compiled train step depends on. With its plan packed it is the key of the compiled programs.

    batch_size: examples of a step, over all devices and micro-batches.
    frozen: regular expressions of the paths, outside the stack of layers, of leaves that do not learn.
    """

    model: Config
    plan: Plan
    batch_size: int
    micro_batches: int
    seq_len: int
    slots: int
    objective: str
    frozen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of steps with one program.

    steps: how many at most; `Method.done` may end it earlier, asked every `ask_every` steps (0: never).
    schedule_from: the schedule counts from the start of the "run" or of this "stage".
    data: "continue" in the shared order of this sequence length, or "restart" at its beginning.
    """

    name: str
    program: Program
    steps: int
    schedule: Schedule
    schedule_from: str = "run"
    ask_every: int = 0
    data: str = "continue"


class Surgery(NamedTuple):
    """What happens to the parameters between two stages, and to each optimizer moment (None: a fresh optimizer)."""

    params: Callable[[Params], Params] = lambda params: params
    moments: Callable[[Params], Params] | None = lambda moments: moments


def _unchanged(params, state, old, new, initial, key):
    return Surgery(), state, new


class Method(NamedTuple):
    """The hooks. `params` on the host is the whole tree, what learns and what does not.

    name     stands before the method's keys in the metrics
    needs_initial  whether `enter` may call `initial()`: the checkpoint of step 0 is then kept
    init     (params, config) -> (params, state): once; may add leaves to the parameters
    stages   (stages) -> stages: host, once; the timeline as far as it is known
    done     (params, state, stage, step) -> bool: host; whether the stage ends here
    enter    (params, state, old, new, initial, key) -> (Surgery, state, new): host, between stages:
             grow, prune, rewind. May settle what was unknown in `new.program`; `initial()` gives the
             parameters of step 0
    draw     (program, step) -> scale_ML or None: host, each step, from its own seed and the step
             alone: what the residual branches of each micro-batch's layers are multiplied by, 0 to
             skip; several methods' draws multiply
    order    (state, batch, program) -> batch: traced: puts the tokens that are kept first
    weights  (params) -> (params, penalty): traced, differentiable: the parameters that the trunk
             sees. Called on what learns and on what does not, each by itself
    update   (state, batch, losses) -> (state, metrics): traced: learn from the losses of the batch
    """

    name: str = ""
    needs_initial: bool = False
    init: Callable[[Params, Config], tuple[Params, State]] = lambda params, config: (params, ())
    stages: Callable[[tuple[Stage, ...]], tuple[Stage, ...]] = lambda stages: stages
    done: Callable[[Params, State, Stage, int], bool] = lambda params, state, stage, step: False
    enter: Callable[..., tuple[Surgery, State, Stage]] = _unchanged
    draw: Callable[[Program, int], np.ndarray | None] = lambda program, step: None
    order: Callable[[State, Any, Program], Any] = lambda state, batch, program: batch
    weights: Callable[[Params], tuple[Params, Any]] = lambda params: (params, 0.0)
    update: Callable[[State, Any, Any], tuple[State, Mapping]] = lambda state, batch, losses: (state, {})


def chain(*methods: Method) -> Method:
    """The methods as one, applied in order; its state is the tuple of theirs. `chain()` is the identity."""

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

    def done(params, states, stage, step):
        return any(m.done(params, state, stage, step) for m, state in zip(methods, states, strict=True))

    def enter(params, states, old, new, initial, key):
        surgeries, entered = [], []
        for method, state in zip(methods, states, strict=True):
            surgery, state, new = method.enter(params, state, old, new, initial, key)
            params = surgery.params(params)
            surgeries.append(surgery)
            entered.append(state)

        def all_params(params):
            for surgery in surgeries:
                params = surgery.params(params)
            return params

        def all_moments(moments):
            for surgery in surgeries:
                moments = surgery.moments(moments)
            return moments

        fresh = any(surgery.moments is None for surgery in surgeries)
        return Surgery(all_params, None if fresh else all_moments), tuple(entered), new

    def draw(program, step):
        drawn = [scale_ML for m in methods if (scale_ML := m.draw(program, step)) is not None]
        return np.prod(drawn, axis=0) if drawn else None

    def order(states, batch, program):
        for method, state in zip(methods, states, strict=True):
            batch = method.order(state, batch, program)
        return batch

    def weights(params):
        total = 0.0
        for method in methods:
            params, penalty = method.weights(params)
            total = total + penalty
        return params, total

    def update(states, batch, losses):
        updated, metrics = [], {}
        for method, state in zip(methods, states, strict=True):
            state, of_method = method.update(state, batch, losses)
            updated.append(state)
            metrics |= {f"{method.name}/{key}": value for key, value in of_method.items()}
        return tuple(updated), metrics

    return Method(
        needs_initial=any(method.needs_initial for method in methods),
        init=init,
        stages=stages,
        done=done,
        enter=enter,
        draw=draw,
        order=order,
        weights=weights,
        update=update,
    )
