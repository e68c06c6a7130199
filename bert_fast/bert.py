"""BERT: the trunk that every method shares. A plan (plan.py) says which layers run and which tokens they update.

Axes: B examples, S tokens of an example, Q queries (tokens that are updated), X tokens that are not updated,
K keys (tokens that are attended to), N tokens that are updated, attended to or both, P prediction slots, L layers,
R layers that run in this step, D width, V rows of the embedding table.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_fast.cross_entropy import cross_entropy
from bert_fast.dropout import Draws
from bert_fast.layers import Block, Config, Embed, MlmHead, NextHead, apply, layer_norm, residual
from bert_fast.plan import Plan, Route, frozen_depth

Params = Mapping[str, Any]

# Each part of the model that draws dropout masks has a number, and its masks depend on that. A layer's number is its
# index. These are the numbers of the other parts.
EMBED, TASK_HEAD = 10_000, 10_001


def init(config: Config, key) -> Params:
    """Fresh float32 parameters. Those of the layers are stacked: `[L, ...]`.

    Layer i depends only on (key, i), so a deeper model starts with the same lower layers.
    """
    row = {name: jnp.zeros((1, 1), jnp.int32) for name in ("ids", "positions", "types")}
    x_BSD = jnp.zeros((1, 1, config.width), config.dtype)
    embed_key, layers_key, mlm_key, next_key = jax.random.split(key, 4)
    block = Block(config, max(config.heads_L), max(config.mlp_dim_L), keys=1)

    def layer(index):
        return block.init(jax.random.fold_in(layers_key, index), x_BSD, x_BSD, row["ids"], None, None)

    embed = Embed(config).init(embed_key, row, None)["params"]
    params = {
        "embed": embed,
        "layers": jax.vmap(layer)(jnp.arange(config.depth))["params"],
        "mlm": MlmHead(config).init(mlm_key, x_BSD, embed["word"])["params"],
    }
    if not config.tied:
        params["mlm"]["word"] = embed["word"]
    if config.norm == "pre":
        params["final_norm"] = layer_norm(config, "final_norm").init(mlm_key, x_BSD)["params"]
    if config.pooler:
        params["next"] = NextHead(config).init(next_key, x_BSD[:, 0])["params"]
    return params


@functools.lru_cache(64)
def shapes(config: Config) -> Params:
    """The shapes and types of the parameters that `init` makes. All callers share the result: do not change it."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def narrow(layer: Params, heads: int, mlp_dim: int) -> Params:
    """One layer's parameters, cut to its first `heads` heads and `mlp_dim` neurons."""

    def first(name, kernel, bias):
        return {"kernel": layer[name]["kernel"][kernel], "bias": layer[name]["bias"][bias]}

    head_size = layer["attention_output"]["kernel"].shape[1]
    everything, heads_, mlp_dim_, columns = (slice(count) for count in (None, heads, mlp_dim, 3 * heads * head_size))
    return {
        **layer,
        "qkv": first("qkv", (everything, columns), columns),
        "attention_output": first("attention_output", heads_, everything),
        "mlp_hidden": first("mlp_hidden", (everything, mlp_dim_), mlp_dim_),
        "mlp_output": first("mlp_output", mlp_dim_, everything),
    }


def layers_of(stack: Params, indices_R: Sequence) -> list[Params]:
    """The layers of a stack at `indices_R`, which are distinct and may be traced."""
    leaves, treedef = jax.tree.flatten(stack)
    taken = [_taken(len(leaf_L), leaf_L, list(indices_R)) for leaf_L in leaves]
    return [treedef.unflatten(layer) for layer in zip(*taken, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _taken(depth: int, leaf_L, indices_R):
    return [jax.lax.dynamic_index_in_dim(leaf_L, index, keepdims=False) for index in indices_R]


def _taken_forward(depth, leaf_L, indices_R):
    return _taken(depth, leaf_L, indices_R), indices_R


def _taken_backward(depth, indices_R, gradients_R):
    """Writes the gradient of each layer to its place once. With plain slicing, JAX would pad every one of these
    gradients to the size of the whole stack, and then add them up.
    """
    gradient_L = jnp.zeros((depth, *gradients_R[0].shape), gradients_R[0].dtype)
    for gradient, index in zip(gradients_R, indices_R, strict=True):
        gradient_L = jax.lax.dynamic_update_index_in_dim(gradient_L, gradient, index, 0)
    return gradient_L, None


_taken.defvjp(_taken_forward, _taken_backward)


def running(params: Params, frozen: Params, plan: Plan, route: Route) -> list[list[tuple]]:
    """For each span, (parameters, index, scale) of every layer that runs. Without a route, scale is None."""
    runs, at = [], 0
    for span in plan:
        count = span.stop - span.start
        indices, scales = range(span.start, span.stop), [None] * count
        if route.scale_R is not None:
            listed = slice(at, at + (count if span.run is None else span.run))
            scales, at = list(route.scale_R[listed]), listed.stop
            if len(scales) < count:
                indices = list(route.layers_R[listed])
        runs.append((indices, scales))
    chosen = [index for indices, _ in runs for index in indices]
    below = sum(len(indices) for span, (indices, _) in zip(plan, runs, strict=True) if span.frozen)
    above = [index - frozen_depth(plan) for index in chosen[below:]]
    layers = layers_of(frozen["layers"], chosen[:below]) if below else []
    layers = iter(layers + (layers_of(params["layers"], above) if above else []))
    return [
        [(next(layers), index, scale) for index, scale in zip(indices, scales, strict=True)] for indices, scales in runs
    ]


def merge(params: Params, frozen: Params) -> Params:
    """Merges two trees that share no leaf."""
    both = {**frozen, **params}
    for name in frozen.keys() & params.keys():
        both[name] = merge(params[name], frozen[name])
    return both


def side_by_side(x, count: int):
    """Joins every `count` neighbouring examples along the token axis: [B, S, ...] to [B/count, count S, ...]."""
    return x.reshape(len(x) // count, count * x.shape[1], *x.shape[2:])


def encode(config: Config, params: Params, frozen: Params, batch, plan: Plan, route: Route, draws: Draws | None):
    """Hidden states of the last layer: [B, S, D].

    `params` are trained, `frozen` are not. `frozen["layers"]` has the lowest layers and `params["layers"]` the layers
    above. Every other leaf is in one of the two trees. Dropout is off without `draws`.
    Tokens attend to each other if their `segments` are equal. Padding (0) attends to padding, so the
    softmax always has at least one key.
    """
    of_embed = draws.of(EMBED) if draws is not None and plan[0].dropout else None
    outside = merge(
        {name: leaf for name, leaf in params.items() if name != "layers"},
        {name: leaf for name, leaf in frozen.items() if name != "layers"},
    )
    x_BSD = apply(Embed(config), outside["embed"], batch, of_embed)
    if frozen_depth(plan):  # no gradient passes below a frozen layer; a tied table can still learn through the head
        x_BSD = jax.lax.stop_gradient(x_BSD)
    segments_BS = batch["segments"]
    for span, layers in zip(plan, running(params, frozen, plan, route), strict=True):
        shapes = config.widths_L[span.start : span.stop]
        if len(layers) < len(shapes) and len(set(shapes)) > 1:
            raise ValueError(f"layers of {span} differ in width, so a traced index cannot choose among them: use cond")
        x_BQD, idle_BXD = (x_BSD, None) if span.queries is None else jnp.split(x_BSD, [span.queries], axis=1)
        queries, keys = (segments_BS.shape[1] if count is None else count for count in (span.queries, span.keys))
        segments_BN = segments_BS[:, : max(queries, keys)]
        if span.examples_per_row > 1:
            if queries != keys:
                raise ValueError(f"{span} joins several examples, which requires queries == keys")
            # Joined examples must not attend to each other: make their segments distinct.
            places_B1 = jnp.arange(len(segments_BN))[:, None] % span.examples_per_row
            x_BQD = side_by_side(x_BQD, span.examples_per_row)
            segments_BN = side_by_side(segments_BN * span.examples_per_row + places_B1, span.examples_per_row)
            keys *= span.examples_per_row

        for (layer, index, scale), (heads, mlp_dim) in zip(layers, shapes, strict=False):

            def update(
                x_BQD,
                layer,
                scale,
                of_layer,
                shape=(heads, mlp_dim),
                keys=keys,
                idle_BXD=idle_BXD,
                segments_BN=segments_BN,
            ):
                z_BND = x_BQD = residual(x_BQD) if config.norm == "pre" else x_BQD
                if idle_BXD is not None and x_BQD.shape[1] < keys:
                    z_BND = jnp.concatenate([x_BQD, idle_BXD], axis=1)[:, :keys]
                layer = narrow(layer, *shape)
                return apply(Block(config, *shape, keys=keys), layer, x_BQD, z_BND, segments_BN, scale, of_layer)

            of_layer = draws.of(index) if draws is not None and span.dropout else None
            if span.cond and scale is not None:
                # Without jax.checkpoint, every intermediate value of the branch is carried through the conditional.
                stay = lambda x_BQD, *_: x_BQD  # noqa: E731
                x_BQD = jax.lax.cond(scale != 0, jax.checkpoint(update), stay, x_BQD, layer, scale, of_layer)
            else:
                run = jax.checkpoint(update) if config.recompute == "block" else update
                x_BQD = run(x_BQD, layer, scale, of_layer)
        x_BQD = x_BQD.reshape(len(x_BSD), -1, config.width)
        x_BSD = x_BQD if idle_BXD is None else jnp.concatenate([x_BQD, idle_BXD], axis=1)
    if config.norm == "pre":
        x_BSD = apply(layer_norm(config), outside["final_norm"], x_BSD)
    return x_BSD


class Losses(NamedTuple):
    """Cross-entropies in nats, float32: one per prediction slot, and one per next-sentence label (None if absent)."""

    mlm_BP: Any
    correct_BP: Any  # whether the label had the largest logit
    next_B: Any
    next_correct_B: Any
    capped_BP: Any = None  # whether a logit was too large for the fused loss; None for the exact loss


def head_inputs(config: Config, params: Params, frozen: Params, x_BSD, slots_BP):
    """The inputs of the MLM head: its parameters, the hidden states at the given positions, and the word table."""
    x_BPD = jnp.take_along_axis(x_BSD, slots_BP[..., None], axis=1)
    head = merge(params.get("mlm", {}), frozen.get("mlm", {}))
    return head, x_BPD, (merge(params.get("embed", {}), frozen.get("embed", {})) if config.tied else head)["word"]


def predict(config: Config, params: Params, frozen: Params, x_BSD, slots_BP):
    """MLM logits at the given positions: [B, P, V]. Rows that only pad the word table get minus infinity."""
    head, *inputs = head_inputs(config, params, frozen, x_BSD, slots_BP)
    return apply(MlmHead(config), head, *inputs)


def losses(config: Config, params: Params, frozen: Params, x_BSD, batch, fused: bool = False) -> Losses:
    """The loss of each prediction in the batch, without weights and without averaging.

    fused: computes the loss together with the matrix product that makes the logits. This is faster, and caps large
    logits: see `cross_entropy.fused`.
    """
    capped_BP = None
    if fused:
        head, *inputs = head_inputs(config, params, frozen, x_BSD, batch["slots"])
        mlm_BP, correct_BP, capped_BP = apply(MlmHead(config), head, *inputs, batch["labels"])
    else:
        mlm_BP, correct_BP = cross_entropy(predict(config, params, frozen, x_BSD, batch["slots"]), batch["labels"])
    if "next" not in batch:
        return Losses(mlm_BP, correct_BP, None, None, capped_BP)
    head = merge(params.get("next", {}), frozen.get("next", {}))
    cls_BD = jnp.take_along_axis(x_BSD, batch["cls"][:, None, None], axis=1)[:, 0]
    logits_B2 = apply(NextHead(config), head, cls_BD)
    return Losses(mlm_BP, correct_BP, *cross_entropy(logits_B2, batch["next"]), capped_BP)
