"""One train step and one evaluation step, as pure functions of a static program.

Axes: as in bert.py, and M micro-batches.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_fast import bert
from bert_fast.bert import Losses, Params
from bert_fast.method import Method, Program
from bert_fast.plan import Route, edit, frozen_depth
from bert_fast.train.sharding import path_of

# Uses of the seed on the device, folded in before the step; the parameters begin from the seed itself, whose first
# few folds are the keys that it is split into.
STEP, SURGERY, ORDER = 100, 101, 102


class TrainState(NamedTuple):
    """All that a step changes, and `frozen`: parameters that take part in this stage but do not learn."""

    step: Any
    params: Params
    frozen: Params
    opt_state: Any
    method: Any


def partition(params: Params, program: Program) -> tuple[Params, Params]:
    """A whole tree as (what learns, what does not) in this program: the lowest layers, and leaves whose path
    matches `program.frozen`.
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
            matches = any(re.search(pattern, path_of(path)) for pattern in program.frozen)
            put(frozen if matches else learns, names, leaf)
    return learns, frozen


def join(params: Params, frozen: Params) -> Params:
    """The whole tree of the two that `partition` made."""
    whole_tree = bert.merge({**params, "layers": {}}, {**frozen, "layers": {}})
    both = params["layers"]
    if "layers" in frozen:
        both = jax.tree.map(lambda low, high: jnp.concatenate([low, high]), frozen["layers"], both)
    return {**whole_tree, "layers": both}


def micro_batches(batch, count: int):
    """Every array of the batch as [M, B/M, ...].

    Example r goes to micro-batch r % M: neighbours stay on their device when examples are spread over devices.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), batch)


def whole_batch(stacked):
    """The inverse of `micro_batches`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), stacked)


def sums(losses: Losses, batch, mask_id: int) -> dict:
    """Float32 sums over a batch: with their own denominators, so that rows of a log can be added up.

    Of the predictions, those behind [MASK] are summed once more: the others are mostly words that still stand in the
    text, and a model gains half a nat by copying them before it has learned anything of language.
    """
    ids_BP = jnp.take_along_axis(batch["ids"], batch["slots"], axis=1)
    hidden_BP = batch["weights"] * (ids_BP == mask_id).astype(jnp.float32)
    result = {
        "mask_sum": jnp.sum(losses.mlm_BP * hidden_BP),
        "masks": jnp.sum(hidden_BP),
        "mlm_sum": jnp.sum(losses.mlm_BP * batch["weights"]),
        "mlm_correct": jnp.sum(losses.correct_BP.astype(jnp.float32) * batch["weights"]),
        "predictions": jnp.sum(batch["weights"]),
        "tokens_real": jnp.sum(batch["segments"] != 0),
    }
    if losses.next_B is not None:
        # Rows that only fill up a last batch have no real token and no label.
        real_B = (batch["segments"] != 0).any(1)
        result["next_sum"] = jnp.sum(losses.next_B * real_B.astype(jnp.float32))
        result["next_correct"] = jnp.sum(losses.next_correct_B * real_B)
        result["rows"] = jnp.sum(real_B)
    return result


def make_step(method: Method, optimizer: optax.GradientTransformation, seed: int):
    """The train step: (state, batch, route, learning_rate, program) -> (state, metrics). `program` is static.

    The loss is the mean over the predictions of the whole batch (nats) plus, where there are labels,
    the mean next-sentence loss and the methods' penalties: the same however many micro-batches.
    """

    def train_step(state: TrainState, batch, route: Route, learning_rate, program: Program):
        key, order_key = (
            jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), state.step) for use in (STEP, ORDER)
        )
        batch = method.order(state.method, batch, program, order_key)
        count = program.micro_batches
        predictions = jnp.maximum(jnp.sum(batch["weights"]), 1)

        def loss_of(params, micro, route_R, key):
            (seen, penalty), (fixed, _) = method.weights(params), method.weights(state.frozen)
            x_BSD = bert.encode(program.model, seen, fixed, micro, program.plan, route_R, key)
            losses = bert.losses(program.model, seen, fixed, x_BSD, micro)
            loss = jnp.sum(losses.mlm_BP * micro["weights"]) / predictions + penalty / count
            if losses.next_B is not None:
                loss = loss + jnp.sum(losses.next_B) / program.batch_size
            return loss, (losses, penalty)

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        if count == 1:
            route_R = jax.tree.map(lambda x: x[0], route)
            (loss, (losses, penalty)), grads = gradient_of(state.params, batch, route_R, key)
        else:

            def add(total, xs):
                micro, route_R, index = xs
                (loss, aux), grads = gradient_of(state.params, micro, route_R, jax.random.fold_in(key, index))
                return jax.tree.map(jnp.add, total, (loss, grads)), aux

            zero = (jnp.zeros(()), optax.tree.zeros_like(state.params))
            xs = (micro_batches(batch, count), route, jnp.arange(count))
            (loss, grads), (losses, penalty) = jax.lax.scan(add, zero, xs)
            losses, penalty = whole_batch(losses), jnp.mean(penalty)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        method_state = method.update(state.method, params, batch, losses)
        metrics = {
            "loss": loss,
            "penalty": jnp.asarray(penalty, jnp.float32),
            "gradient_norm": optax.tree.norm(grads),
            **sums(losses, batch, program.model.special_ids[-1]),
        }
        return TrainState(state.step + 1, params, state.frozen, opt_state, method_state), metrics

    return train_step


def make_eval_step(method: Method):
    """The evaluation step: (params, frozen, method_state, batch, program) -> sums. `program` is static.

    No dropout; every layer takes part, and as many tokens as the plan of the program says.
    """

    def eval_step(params: Params, frozen: Params, method_state, batch, program: Program):
        model, plan = program.model, edit(program.plan, 0, program.model.depth, frozen=False)
        seen = join(method.weights(params)[0], method.weights(frozen)[0])
        batch = method.order(method_state, batch, program, jax.random.key(0))
        x_BSD = bert.encode(model, seen, {}, batch, plan, Route(), None)
        return sums(bert.losses(model, seen, {}, x_BSD, batch), batch, model.special_ids[-1])

    return eval_step
