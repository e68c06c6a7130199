"""The state of a run: fresh, resumed, or carried from one stage to the next by the methods' surgery."""

import dataclasses
import pathlib
from collections.abc import Callable, Container

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bert_fast import bert, qkv
from bert_fast.bert import Params
from bert_fast.method import Method, Program, Stage
from bert_fast.train import checkpoint
from bert_fast.train.compile import state_shardings
from bert_fast.train.optim import change_moments
from bert_fast.train.sharding import path_of, replicated
from bert_fast.train.step import SURGERY, TrainState, join, partition


def first_state(params: Params, method: Method, stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh):
    """The state at step 0, for the first stage."""
    params, method_state = method.init(params, stage.program.model)
    return enter_state(jnp.zeros((), jnp.int32), params, stage.program, optimizer.init, method_state, mesh)


def enter_state(step, params: Params, program: Program, opt_state_of: Callable, method_state, mesh: Mesh) -> TrainState:
    """A state from a whole parameter tree, split and placed as a program needs it."""
    learns, frozen = partition(params, program)
    state = TrainState(step, learns, frozen, opt_state_of(learns), method_state)
    if jax.process_count() > 1:
        # If each process has a single device, device_put (jax 0.10.2) makes the process's own array unusable.
        state = jax.tree.map(
            lambda leaf: np.asarray(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf, state
        )
    return jax.tree.map(jax.device_put, state, state_shardings(state, mesh))


def resumed(folder: pathlib.Path, method: Method, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state in a checkpoint, placed on this mesh. Another mesh may have written it."""
    stage, kept = checkpoint.about(folder).stage, checkpoint.shapes(folder)

    def like(learns, frozen):
        # Only the structure of this method state is used: its shapes may have changed in a later stage.
        _, method_state = method.init(bert.init(stage.program.model, jax.random.key(0)), stage.program.model)
        return TrainState(jnp.zeros((), jnp.int32), learns, frozen, optimizer.init(learns), method_state)

    state = jax.eval_shape(like, kept["params"], kept.get("frozen", {}))
    state = state._replace(method=checkpoint.branch(folder, kept, "method", state.method))
    before_5 = qkv.is_separate(state.params) or qkv.is_separate(state.frozen)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        replicated(state, mesh) if before_5 else state_shardings(state, mesh),
    )
    state = checkpoint.restore(folder, target)
    if before_5:
        state = jax.jit(joined, out_shardings=state_shardings(jax.eval_shape(joined, state), mesh))(state)
    return state


def joined(state: TrainState) -> TrainState:
    """The state of a checkpoint older than format 5, with its separate query, key and value joined."""

    def join_in(tree):
        return qkv.in_layers(qkv.join, tree)

    moments = change_moments(state.opt_state, state.params, join_in)
    return state._replace(params=join_in(state.params), frozen=join_in(state.frozen), opt_state=moments)


def check_model(name: str, params: Params, model: bert.Config, branches: Container[str] | None = None):
    """Raises ValueError if parameters do not fit a model. Ignores leaves that methods add.

    branches: the branches to check, such as "layers"; None checks all. A fine-tuned model has other output heads, so
    not all of its branches can be checked.
    """
    shapes = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(bert.shapes(model)):
        if branches is not None and path[0].key not in branches:
            continue
        if shapes.get(path_of(path)) != leaf.shape:
            raise ValueError(
                f"stage {name}: {path_of(path)} has shape {shapes.get(path_of(path))}, but the stage's model expects "
                f"{leaf.shape}"
            )


def next_state(
    state: TrainState,
    method: Method,
    old: Stage,
    new: Stage,
    initial: Callable[[], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
) -> tuple[TrainState, Stage]:
    """The state at the start of the next stage, after the methods' surgery. Also that stage, with its guesses settled.

    Moments of parameters that were frozen start at zero. Raises ValueError if the parameters do not fit the new stage's
    model.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SURGERY), state.step)
    params = before = join(state.params, state.frozen)
    params, of_moments, method_state, new = method.enter(params, state.method, old, new, initial, key)
    check_model(new.name, params, new.program.model, before.keys())
    new = dataclasses.replace(new, guess=False)

    def opt_state_of(learns):
        if of_moments is None:
            return optimizer.init(learns)
        change_of = of_moments

        def change(moment):
            # Fresh zeros for each moment: the step donates all of them, and cannot donate one buffer twice.
            zeros = jax.tree.map(jnp.zeros_like, state.frozen)
            return partition(change_of(join(moment, zeros)), new.program)[0]

        return change_moments(state.opt_state, state.params, change)

    return enter_state(state.step, params, new.program, opt_state_of, method_state, mesh), new
