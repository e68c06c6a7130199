"""The programs that a run will compile, and the shapes of their arguments, without running a step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import bert
from bert_fast.cost.flops import step_flops
from bert_fast.method import Method, Program, Stage
from bert_fast.plan import Route
from bert_fast.train.compile import state_shardings
from bert_fast.train.sharding import BATCH
from bert_fast.train.step import TrainState, partition
from bert_fast.train.timeline import Draw


def most_frequent(drawn: Sequence[Draw], most: int) -> list[Draw]:
    """The first `most` draws. They also represent the other draws, so their shares are rescaled to sum to 1."""
    total = sum(draw.share for draw in drawn[:most])
    return [draw._replace(share=draw.share / total) for draw in drawn[:most]]


def to_compile(drawn: Sequence[Draw], most: int) -> list[Draw]:
    """The most frequent draws. The largest draw must also fit into memory. If it is not among them, it is added with
    share 0.
    """
    chosen = most_frequent(drawn, most)
    largest = max(drawn, key=lambda draw: step_flops(draw.program).executed)
    return chosen if largest in drawn[:most] else [*chosen, largest._replace(share=0.0)]


def batch_shapes(program: Program, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a train step's batch."""
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
    """The shapes of a stage's train state.

    added: whether the state has the method's extra parameters. A restart drops these.
    """

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


def other_shapes(route: Route, mesh: Mesh) -> tuple[Any, ...]:
    """The shapes of a route, a learning rate, a seed and a limit of the gradient's norm."""
    everywhere = NamedSharding(mesh, P())
    route = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), route)
    numbers = (np.float32, np.uint32, np.float32)
    return route, *(jax.ShapeDtypeStruct((), dtype, sharding=everywhere) for dtype in numbers)
