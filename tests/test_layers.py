"""Dropout, attention, and weights cast to another type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import layers


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_dropout_drops_at_the_given_rate_and_keeps_the_mean():
    n = 10**6
    for rate in (0.1, 0.5):
        y = np.asarray(layers.dropout(jnp.ones(n), rate, jax.random.key(0)))
        assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-4)
        assert np.any(y != np.asarray(layers.dropout(jnp.ones(n), rate, jax.random.key(1))))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_and_its_gradient_equal_the_formula(rate):
    rng, key = np.random.default_rng(0), jax.random.key(0)
    q, k, v = (rng.standard_normal((2, count, 2, 8)).astype(np.float32) for count in (5, 7, 7))
    allowed_BQK = rng.random((2, 5, 7)) < 0.5
    allowed_BQK[0, 1] = False  # a query that may attend to no key, such as a padding token
    weights_BQHE = rng.standard_normal(q.shape).astype(np.float32)
    weights_BQHE[0, 1] = 0  # nothing depends on its output

    def formula(q, k, v):
        logits_BHQK = jnp.einsum("BQHE,BKHE->BHQK", q, k) / np.sqrt(8)
        probs_BHQK = jax.nn.softmax(jnp.where(allowed_BQK[:, None], logits_BHQK, -1e30))
        if rate:
            probs_BHQK = jnp.where(layers.drawn(probs_BHQK.shape, rate, key), probs_BHQK / (1 - rate), 0)
        return jnp.einsum("BHQK,BKHE->BQHE", probs_BHQK, v)

    def gradients(attend):
        return jax.value_and_grad(lambda *qkv: jnp.sum(attend(*qkv) * weights_BQHE), (0, 1, 2))(q, k, v)

    ours = gradients(lambda *qkv: layers.attend(*qkv, allowed_BQK, rate, key))
    jax.tree.map(close, ours, gradients(formula))
    if not rate:
        theirs = gradients(lambda *qkv: jax.nn.dot_product_attention(*qkv, mask=allowed_BQK[:, None]))
        jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_cast_into_separate_arrays(dtype):
    linear = layers.Linear(layers.Config(10, dtype=dtype), (4,))
    x_BD = jnp.ones((2, 3), dtype)
    program = jax.jit(linear.apply).lower(linear.init(jax.random.key(0), x_BD), x_BD).as_text()
    assert ("optimization_barrier" in program) == (dtype == "bfloat16")
