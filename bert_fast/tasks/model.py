"""The encoder with a head on it: parameters, logits, losses, and one step.

Parameters are those of the encoder, without its pre-training heads, and `task`: the head's.
Axes: B examples, S positions, D width, C classes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bert_fast import bert
from bert_fast.bert import Params
from bert_fast.layers import Config, Linear, apply, dropout, keys_of
from bert_fast.method import Method, Program
from bert_fast.plan import Route
from bert_fast.train.step import TrainState

DROPOUT, HEAD = 200, 201  # uses of the seed on the device
NEVER = -1e30  # a logit of what cannot be chosen; finite, so that differences stay numbers


@dataclasses.dataclass(frozen=True)
class Head:
    """What is predicted: one of `outputs` "classes", a "score" (one number), or a "span" (its first and last token)."""

    kind: str
    outputs: int


class SentenceHead(nn.Module):
    """Logits of the [CLS] vector, through the pooler and dropout (`create_model` of google-research/bert): [B, C]."""

    config: Config
    outputs: int

    @nn.compact
    def __call__(self, x_BD, key):
        pooled_BD = jnp.tanh(Linear(self.config, (self.config.width,), name="pooler")(x_BD))
        pooled_BD = dropout(pooled_BD, self.config.dropout, key)
        return Linear(self.config, (self.outputs,), name="output")(pooled_BD).astype(jnp.float32)


class SpanHead(nn.Module):
    """Logits of each token to be an answer's first, and its last (run_squad.py of google-research/bert): [B, S, 2]."""

    config: Config

    @nn.compact
    def __call__(self, x_BSD):
        return Linear(self.config, (2,), name="output")(x_BSD).astype(jnp.float32)


def init(config: Config, head: Head, encoder: Params, key) -> Params:
    """The encoder's parameters with a fresh head, whose pooler is that of pre-training where there is one."""
    params = {name: leaf for name, leaf in encoder.items() if name not in ("mlm", "next")}
    if head.kind == "span":
        x_BSD = jnp.zeros((1, 1, config.width), config.dtype)
        return {**params, "task": SpanHead(config).init(key, x_BSD)["params"]}
    x_BD = jnp.zeros((1, config.width), config.dtype)
    task = SentenceHead(config, head.outputs).init(key, x_BD, None)["params"]
    if "next" in encoder:
        task = {**task, "pooler": encoder["next"]["pooler"]}
    return {**params, "task": task}


def logits(config: Config, head: Head, params: Params, batch, plan, key) -> Any:
    """[B, C] of classes, [B, 1] of a score, [B, S, 2] of a span; dropout where key is given.

    No span begins or ends at padding, so that the width of a batch does not matter.
    """
    trunk_key, head_key = keys_of(key, 2)
    x_BSD = bert.encode(config, params, {}, batch, plan, Route(), trunk_key)
    if head.kind == "span":
        logits_BS2 = apply(SpanHead(config), params["task"], x_BSD)
        return jnp.where(batch["segments"][..., None] != 0, logits_BS2, NEVER)
    return apply(SentenceHead(config, head.outputs), params["task"], x_BSD[:, 0], head_key)


def losses(head: Head, found, labels):
    """What each example costs: nats, or for a score the squared error: [B]. A span costs the mean of its two ends."""
    if head.kind == "score":
        return jnp.square(found[:, 0] - labels)
    if head.kind == "span":
        return bert.cross_entropy(jnp.swapaxes(found, 1, 2), labels)[0].mean(1)
    return bert.cross_entropy(found, labels)[0]


def make_step(method: Method, optimizer: optax.GradientTransformation, head: Head):
    """The train step: (state, batch, seed, learning_rate, program) -> (state, loss). Only `program` is static, so that
    seeds and learning rates share what is compiled.

    The loss is the mean over the batch's examples plus the methods' penalties. `Method.update` gets no
    pre-training losses here (None).
    """

    def train_step(state: TrainState, batch, seed, learning_rate, program: Program):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT), state.step)

        def loss_of(params):
            seen, penalty = method.weights(params)
            found = logits(program.model, head, seen, batch, program.plan, key)
            loss_B = losses(head, found, batch["labels"]) * batch["weights"]
            loss = loss_B.sum() / batch["weights"].sum()
            return loss + penalty, loss

        (_, loss), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        method_state = method.update(state.method, params, batch, None)
        return TrainState(state.step + 1, params, state.frozen, opt_state, method_state), loss

    return train_step


def make_predict(method: Method, head: Head):
    """(params, batch, program) -> logits, without dropout. `program` is static."""

    def predict(params: Params, batch, program: Program):
        return logits(program.model, head, method.weights(params)[0], batch, program.plan, None)

    return predict
