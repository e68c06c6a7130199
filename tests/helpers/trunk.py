"""A small model, its batch, and losses and gradients for any plan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import bert
from bert_fast.dropout import draws
from bert_fast.method import Program
from bert_fast.plan import pack, whole
from helpers import reference

POST = bert.Config(
    vocab_size=150,
    depth=3,
    width=16,
    heads=2,
    head_size=8,
    mlp_dim=24,
    max_len=12,
    pooler=True,
    dropout=0.0,
    attention_dropout=0.0,
)


PRE = dataclasses.replace(POST, norm="pre")
DENSE = whole(3)
BATCH = reference.random_batch(POST, rows=3, length=12, slots=4)


def losses_sum(config, params, frozen, batch, plan, route, draws):
    """(sum of all losses, hidden states)."""
    x_BSD = bert.encode(config, params, frozen, batch, plan, route, draws)
    losses = bert.losses(config, params, frozen, x_BSD, batch)
    return jnp.sum(losses.mlm_BP) + jnp.sum(losses.next_B), x_BSD


value_and_grad = jax.value_and_grad(losses_sum, argnums=1, has_aux=True)


def run(config, params, plan=DENSE, scale_L=None, batch=BATCH, seed=None, frozen=None, of=value_and_grad):
    """(loss, hidden states, gradients) of one batch, with dropout if `seed` is given.

    Not jitted by default: JAX then compiles each operation separately, once for all tests.
    """
    plan, route = pack(plan, None if scale_L is None else np.array([scale_L], np.float32))
    found = None if seed is None else draws(jax.random.key(seed), len(batch["ids"]))
    route = jax.tree.map(lambda of_micro_batches: of_micro_batches[0], route)
    (loss, x_BSD), grads = of(config, params, frozen or {}, batch, plan, route, found)
    return loss, x_BSD, grads


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def layers_of(tree, *indices):
    """The tree with only these layers."""
    return {**tree, "layers": jax.tree.map(lambda leaf: leaf[np.array(indices)], tree["layers"])}


def program_of(config, plan, frozen_paths=()):
    return Program(config, plan, 3, 1, 12, 4, "mlm+nsp", frozen_paths)
