"""One train step as a pure function of a static program.

Axes: as in bert.py, plus M micro-batches.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_fast import bert, dropout
from bert_fast.bert import Params
from bert_fast.dropout import Draws
from bert_fast.method import Method, Program
from bert_fast.plan import Route, frozen_depth
from bert_fast.train.sharding import path_of

# Each number identifies a use of the seed on the device. The seed's key is folded with this number, then with the
# number of the step. These numbers are large, because the initial parameters come from splitting the same key, and
# splitting a key gives the same keys as folding the numbers 0, 1, 2, ... into it.
STEP, SURGERY, ORDER = 100, 101, 102

LARGEST = float(np.finfo(np.float32).max)  # a limit of the gradient's norm that accepts every finite norm


class TrainState(NamedTuple):
    """Everything that a step changes, and `frozen`: parameters that take part in this stage but do not learn."""

    step: Any
    params: Params
    frozen: Params
    opt_state: Any
    method: Any


def partition(params: Params, program: Program) -> tuple[Params, Params]:
    """Splits a whole tree into (trained, frozen) for this program. The frozen tree holds the layers that the plan
    freezes, which are the lowest ones, and the leaves whose path matches a pattern in `program.frozen_paths`.
    """
    lowest = frozen_depth(program.plan)
    learns, frozen = {}, {}

    def put(tree, path, leaf):
        for name in path[:-1]:
            tree = tree.setdefault(name, {})
        tree[path[-1]] = leaf

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[0] == "layers":
            if lowest:
                put(frozen, names, leaf[:lowest])
            put(learns, names, leaf[lowest:])
        else:
            matches = any(re.search(pattern, path_of(path)) for pattern in program.frozen_paths)
            put(frozen if matches else learns, names, leaf)
    return learns, frozen


def join(params: Params, frozen: Params) -> Params:
    """The inverse of `partition`: the whole tree."""
    whole_tree = bert.merge({**params, "layers": {}}, {**frozen, "layers": {}})
    both = params["layers"]
    if "layers" in frozen:
        both = jax.tree.map(lambda low, high: jnp.concatenate([low, high]), frozen["layers"], both)
    return {**whole_tree, "layers": both}


def micro_batches(batch, count: int):
    """Every array of the batch as [M, B/M, ...].

    Example r goes to micro-batch r % M. So each micro-batch takes equal parts from all devices, and no example moves
    to another device.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), batch)


def whole_batch(stacked):
    """The inverse of `micro_batches`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), stacked)


class Objective(NamedTuple):
    """The training objective, as functions that JAX traces.

    totals: (program, batch) -> the denominators of the loss, from the whole batch
    loss: (program, params, frozen, micro_batch, totals, route, draws) -> (loss, losses). `loss` is the
        micro-batch's part of the batch's loss, in nats; the parts add up. `losses` holds the losses of each
        example: a tree of arrays [B/M, ...], or None.
    sums: (program, losses, batch) -> float32 sums over the batch, for the log
    """

    totals: Callable[[Program, Any], Any]
    loss: Callable[..., tuple[Any, Any]]
    sums: Callable[[Program, Any, Any], dict[str, Any]]


class Gradient(NamedTuple):
    """The results of a step before its update. batch: in the order that the methods chose. losses: see `Objective`."""

    batch: Any
    loss: Any
    losses: Any
    penalty: Any
    grads: Params


def make_gradient(method: Method, objective: Objective):
    """The first part of the train step: (state, batch, route, seed, program) -> Gradient. Only `program` is static."""

    def gradient(state: TrainState, batch, route: Route, seed, program: Program) -> Gradient:
        key, order_key = (
            jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), state.step) for use in (STEP, ORDER)
        )
        batch = method.order(state.method, batch, program, order_key)
        count, draws = program.micro_batches, dropout.draws(key, program.batch_size)
        totals = objective.totals(program, batch)

        def loss_of(params, micro, route_R, examples_B):
            (seen, penalty), (fixed, _) = method.weights(params), method.weights(state.frozen)
            loss, losses = objective.loss(program, seen, fixed, micro, totals, route_R, Draws(draws.words, examples_B))
            return loss + penalty / count, (losses, penalty)

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        if count == 1:
            route_R = jax.tree.map(lambda x: x[0], route)
            (loss, (losses, penalty)), grads = gradient_of(state.params, batch, route_R, draws.examples_B)
        else:

            def add(total, xs):
                (loss, aux), grads = gradient_of(state.params, *xs)
                return jax.tree.map(jnp.add, total, (loss, grads)), aux

            zero = (jnp.zeros(()), optax.tree.zeros_like(state.params))
            xs = (micro_batches(batch, count), route, micro_batches(draws.examples_B, count))
            (loss, grads), (losses, penalty) = jax.lax.scan(add, zero, xs)
            losses, penalty = whole_batch(losses), jnp.mean(penalty)
        return Gradient(batch, loss, losses, jnp.asarray(penalty, jnp.float32), grads)

    return gradient


def make_update(method: Method, optimizer: optax.GradientTransformation, objective: Objective):
    """The second part of the train step: (state, Gradient, learning_rate, limit, program) -> (state, metrics).

    The update is kept only if the loss is finite and the gradient's norm is at most `limit`. Otherwise the parameters
    and the states of the optimizer and the methods stay as they were, and the metric "kept" is 0. The decision does not
    depend on the new parameters, because that would need a second copy of them. Instead, the norm of the parameters
    after the step is a metric, which `Engine.settle` checks.
    """

    def update(state: TrainState, found: Gradient, learning_rate, limit, program: Program):
        norm = optax.tree.norm(found.grads)
        kept = jnp.isfinite(found.loss) & (norm <= limit)  # false if the norm is NaN
        updates, opt_state = optimizer.update(found.grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        method_state = method.update(state.method, params, found.batch, found.losses)
        params, opt_state, method_state = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old),
            (params, opt_state, method_state),
            (state.params, state.opt_state, state.method),
        )
        metrics = {
            "loss": found.loss,
            "penalty": found.penalty,
            "gradient_norm": norm,
            "parameter_norm": optax.tree.norm(params),
            "kept": kept,
            **objective.sums(program, found.losses, found.batch),
        }
        return TrainState(state.step + 1, params, state.frozen, opt_state, method_state), metrics

    return update


def make_step(method: Method, optimizer: optax.GradientTransformation, objective: Objective):
    """The train step: (state, batch, route, learning_rate, seed, program) -> (state, metrics).

    Only `program` is static. The loss is the objective's loss plus the methods' penalties. It does not depend on the
    number of micro-batches. `seed` is a uint32. Every random key is derived from the seed and the step's number.
    For the optional argument `limit`, see `make_update`.
    """
    gradient, update = make_gradient(method, objective), make_update(method, optimizer, objective)

    def train_step(state: TrainState, batch, route: Route, learning_rate, seed, program: Program, limit=LARGEST):
        return update(state, gradient(state, batch, route, seed, program), learning_rate, limit, program)

    return train_step
