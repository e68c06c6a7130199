"""The programs that a run will compile, and the shapes that they take, without a step being run."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import bert
from bert_fast.cost.flops import step_flops
from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.plan import Route, pack
from bert_fast.settings import Settings
from bert_fast.train import begin
from bert_fast.train.compile import state_shardings
from bert_fast.train.sharding import BATCH
from bert_fast.train.step import TrainState, partition


class Draw(NamedTuple):
    """One of the packed plans that a stage's steps have, the share of steps with it, a route of it, and how often each
    layer runs in these.
    """

    share: float
    program: Program
    route: Route
    on_L: tuple[float, ...]


def timeline(settings: Settings, method: Method) -> list[Stage]:
    """The stages of a run, with what only the run will tell as the methods expect it."""
    return list(method.expect(begin.stages(settings, method)))


def draws(method: Method, stage: Stage, clocks: Iterable[Clock]) -> list[Draw]:
    """The packed plans of a stage at these times, the most frequent first; their shares sum to 1."""
    found: dict[Program, list[tuple[Route, np.ndarray]]] = {}
    program, count = stage.program, 0
    for clock in clocks:
        scale_ML = method.draw(stage, clock, np.random.default_rng(count))
        plan, route = pack(program.plan, scale_ML, program.model.widths_L)
        on_L = np.ones(program.model.depth) if scale_ML is None else (scale_ML != 0).mean(0)
        found.setdefault(begin.with_plan(program, plan), []).append((route, on_L))
        count += 1
    result = []
    for program, drawn in sorted(found.items(), key=lambda item: -len(item[1])):
        mean_L = np.mean([on_L for _, on_L in drawn], axis=0)
        # Behind conditionals routes of one program differ in how many layers run: one that is like the mean.
        route, _ = min(drawn, key=lambda each: abs(each[1].sum() - mean_L.sum()))
        result.append(Draw(len(drawn) / count, program, route, tuple(mean_L.tolist())))
    return result


def most_frequent(drawn: Sequence[Draw], most: int) -> list[Draw]:
    """The first so many, with shares that sum to 1 again: they stand for the others."""
    total = sum(draw.share for draw in drawn[:most])
    return [draw._replace(share=draw.share / total) for draw in drawn[:most]]


def to_compile(drawn: Sequence[Draw], most: int) -> list[Draw]:
    """The most frequent, and the one that computes most where it is none of them, without a share: it has to fit."""
    chosen = most_frequent(drawn, most)
    largest = max(drawn, key=lambda draw: step_flops(draw.program).executed)
    return chosen if largest in drawn[:most] else [*chosen, largest._replace(share=0.0)]


def clocks(stages: Sequence[Stage], index: int, count: int) -> list[Clock]:
    """So many times, spread over a stage."""
    began = [sum(stage.steps for stage in stages[:i]) for i in range(index + 1)]
    training = max((began[i] for i in range(index + 1) if stages[i].data == "restart"), default=0)
    steps = began[index] + np.linspace(0, stages[index].steps - 1, count).astype(int)
    return [begin.clock_of(stages, index, int(step), training) for step in steps]


def batch_shapes(program: Program, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What a train step takes as its batch."""
    B, S, slots = program.batch_size, program.seq_len, program.slots
    shapes = dict.fromkeys(("ids", "types", "positions", "segments"), (B, S))
    shapes |= {"slots": (B, slots), "labels": (B, slots), "weights": (B, slots), "cls": (B,)}
    if "nsp" in program.objective:
        shapes["next"] = (B,)
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.ShapeDtypeStruct(shape, np.float32 if name == "weights" else np.int32, sharding=sharding)
        for name, shape in shapes.items()
    }


def state_shapes(
    method: Method, stage: Stage, added: bool, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state of a stage. added: whether what the method adds to the parameters is there, as before a restart."""

    def make():
        model = stage.program.model
        params, method_state = method.init(bert.init(model, jax.random.key(0)), model)
        if not added:
            params, _ = method.weights(params)
        learns, frozen = partition(params, stage.program)
        return TrainState(jnp.zeros((), jnp.int32), learns, frozen, optimizer.init(learns), method_state)

    return with_shardings(jax.eval_shape(make), mesh)


def with_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )


def other_shapes(route: Route, mesh: Mesh) -> tuple[Route, jax.ShapeDtypeStruct]:
    """A route, and a learning rate."""
    everywhere = NamedSharding(mesh, P())
    route = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), route)
    return route, jax.ShapeDtypeStruct((), np.float32, sharding=everywhere)
