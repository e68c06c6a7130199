"""Weights cast to another type."""

import jax
import jax.numpy as jnp
import pytest

from bert_fast import layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_cast_into_separate_arrays(dtype):
    linear = layers.Linear(layers.Config(10, dtype=dtype), 4)
    x_BD = jnp.ones((2, 3), dtype)
    program = jax.jit(linear.apply).lower(linear.init(jax.random.key(0), x_BD), x_BD).as_text()
    assert ("optimization_barrier" in program) == (dtype == "bfloat16")
